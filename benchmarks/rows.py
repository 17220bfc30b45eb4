"""One measured comparison, its ratio, its place in a JSON file and in the table on the screen."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

Repeats = tuple[float, ...]
"""One number for each repeat; none where it was not measured."""

MORE_IS_BETTER = {
    "samples/s": True,
    "ms": False,
    "MB": False,
    "MB/sample": False,
    "x logits": False,
    "%": False,
    "grey levels": False,
    "kills": False,
    "faults": False,
    "loss": False,
}
"""Unit -> whether the larger number is ahead."""


@dataclass(frozen=True)
class Row:
    """Us and one peer at one task."""

    case: str
    peer: str
    unit: str
    """One of MORE_IS_BETTER."""
    ours: Repeats = ()
    theirs: Repeats = ()
    note: str = ""
    """What a reader must know beside the numbers: why there are none, or how the peer was set."""

    def __post_init__(self) -> None:
        if self.unit not in MORE_IS_BETTER:
            raise ValueError(f"unit {self.unit!r} is not known: add it to MORE_IS_BETTER.")

    @property
    def ratio(self) -> float | None:
        """How many times we are ahead, from the medians: above 1 we are. None where a side was not measured."""
        if not (self.ours and self.theirs):
            return None
        ours, theirs = median(self.ours), median(self.theirs)
        above, below = (ours, theirs) if MORE_IS_BETTER[self.unit] else (theirs, ours)
        return above / below if below else None


def record(benchmark: str, rows: list[Row]) -> dict[str, Any]:
    """The rows as JSON has them: medians in `rows`, (lowest, highest) of the repeats in `spread`, in the same order."""
    return {
        "rows": [
            {
                "benchmark": benchmark,
                "case": row.case,
                "peer": row.peer,
                "unit": row.unit,
                "ours": median(row.ours) if row.ours else None,
                "theirs": median(row.theirs) if row.theirs else None,
                "ratio": row.ratio,
            }
            for row in rows
        ],
        "spread": [
            {"case": row.case, "peer": row.peer, "ours": _spread(row.ours), "theirs": _spread(row.theirs)}
            for row in rows
        ],
        "notes": notes(rows),
    }


def notes(rows: list[Row]) -> list[str]:
    """The rows' notes, each once."""
    return list(dict.fromkeys(row.note for row in rows if row.note))


def table(rows: list[Row]) -> str:
    """Medians with (lowest..highest) of the repeats, and the ratio; then the notes."""
    lines = [("case", "peer", "ours", "theirs", "unit", "ratio")]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append((row.case, row.peer, _shown(row.ours), _shown(row.theirs), row.unit, ratio))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, "ratio above 1: we are ahead.", *notes(rows)])


def _spread(repeats: Repeats) -> list[float] | None:
    return [min(repeats), max(repeats)] if repeats else None


def _shown(repeats: Repeats) -> str:
    if not repeats:
        return "not measured"
    middle = _digits(median(repeats))
    return middle if len(repeats) == 1 else f"{middle} ({_digits(min(repeats))}..{_digits(max(repeats))})"


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
