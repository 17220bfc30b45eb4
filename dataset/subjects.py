"""The table of subjects: what its columns hold, for each split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset.splits import ALIASES, number_of, read_table
from engine.files import FileProblem

BINS = 20
"""Of a column of numbers."""
MOST_VALUES = 30
"""Different texts of a column that are counted; the rest counts as unknown."""
FEW_NUMBERS = 6
"""A column of so many different numbers or fewer is counted by value."""


@dataclass(frozen=True)
class Column:
    """A column of the table, English where its name is known."""

    name: str
    splits: tuple[str, ...]
    values: tuple[str, ...]
    """Those that are counted, the most frequent first; empty for a column of numbers."""
    edges: tuple[float, ...]
    """Of the bins of a column of numbers."""
    counts: tuple[tuple[int, ...], ...]
    """Of each split: subjects with each value, or in each bin."""
    unknown: int
    """Subjects without a value, with a text in a column of numbers, or with a rare text."""

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "splits": self.splits,
            "values": self.values,
            "edges": self.edges,
            "counts": self.counts,
            "unknown": self.unknown,
        }


def read_columns(meta: Path, subjects: Mapping[str, Collection[str]]) -> list[Column]:
    """The columns of a table of subjects that hold anything.

    Args:
        meta: as `dataset.splits.read_strata`.
        subjects: split -> its subjects.

    Raises:
        FileProblem: the table can't be read, has a subject twice, or none of the subjects.
    """
    rows = read_table(meta)
    known = {split: [rows[name] for name in sorted(names) if name in rows] for split, names in subjects.items()}
    if not any(known.values()):
        raise FileProblem(f"{meta}: its column ID has none of the subjects: correct it or the folders.")
    english = {own.casefold(): name for name, own in ALIASES.items()}
    names = [name for name in next(iter(rows.values())) if name != "ID"]
    columns = [_column(english.get(n.casefold(), n), {s: [r[n] for r in of] for s, of in known.items()}) for n in names]
    return [column for column in columns if any(map(any, column.counts))]


def _column(name: str, cells: Mapping[str, Sequence[str]]) -> Column:
    filled = [cell for of in cells.values() for cell in of if cell]
    numbers = [number for cell in filled if (number := number_of(cell)) is not None]
    if 2 * len(numbers) > len(filled) and len(set(numbers)) > FEW_NUMBERS:
        return _numbers(name, {split: [number_of(cell) for cell in of] for split, of in cells.items()})
    frequent = [value for value, _ in Counter(filled).most_common(MOST_VALUES)]
    counts = tuple(tuple(list(of).count(value) for value in frequent) for of in cells.values())
    unknown = sum(map(len, cells.values())) - sum(map(sum, counts))
    return Column(name, tuple(cells), tuple(frequent), (), counts, unknown)


def _numbers(name: str, cells: Mapping[str, Sequence[float | None]]) -> Column:
    known = {split: [value for value in of if value is not None] for split, of in cells.items()}
    edges = np.histogram_bin_edges([value for of in known.values() for value in of], BINS)
    counts = tuple(tuple(np.histogram(of, edges)[0].tolist()) for of in known.values())
    unknown = sum(map(len, cells.values())) - sum(map(len, known.values()))
    return Column(name, tuple(cells), (), tuple(edges.tolist()), counts, unknown)
