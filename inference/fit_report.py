"""A fit for people: each choice with its gain, whether that clears its noise, and what is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.cross_fit import LEAST_SUBJECTS
from inference.fitted import TOGETHER, Evidence, Fitted


@dataclass(frozen=True, eq=False)
class Report:
    """A fit, and what a table and a plot of it need."""

    fitted: Fitted
    curves: NDArray[np.float64]
    """Dice of all images at all levels with the final weights, float64 (images, K, 255)."""
    levels: tuple[int, ...]
    """The final threshold of each class as a level, 1 to 255."""
    n_images: int
    n_subjects: int
    n_folds: int

    def text(self) -> str:
        """The choices and their evidence; then each class's weights and threshold, where some are used."""
        evidence = self.fitted.evidence
        lines = [
            f"{self.n_images} images of {self.n_subjects} subjects, {len(self.fitted.members)} members. Every Dice is "
            f"of subjects that the choice was not fitted on ({self.n_folds} folds); 95 % intervals over subjects.",
            f"simple choice (equal weights, 0.5, no post-processing): Dice {evidence[0].simple_dice:.5f}",
        ]
        if self.n_subjects < LEAST_SUBJECTS:
            lines.append(f"With fewer than {LEAST_SUBJECTS} subjects nothing clears its noise.")
        head = ("choice", "Dice", "gain over simple", "over those used before", "verdict", "on all images")
        return "\n".join([*lines, *_columns([head, *map(_row, evidence)]), *self._classes()])

    def _classes(self) -> list[str]:
        fitted, shown = self.fitted, []
        rows = [("class", *fitted.classes)]
        if fitted.thresholds is not None:
            rows.append(("threshold", *(f"{threshold:.3f}" for threshold in fitted.thresholds)))
        if fitted.weights is not None:
            shown = [f"weight {i}: {member.path}" for i, member in enumerate(fitted.members, 1)]
            rows += [(f"weight {i}", *(f"{w:.3f}" for w in row)) for i, row in enumerate(fitted.weights, 1)]
        return [*shown, *_columns(list(zip(*rows, strict=True)))] if len(rows) > 1 else []


def _row(found: Evidence) -> tuple[str, ...]:
    over_simple = _interval(found.gain, found.low, found.high)
    added = _interval(found.added, found.added_low, found.added_high)
    return found.name, f"{found.dice:.5f}", over_simple, added, _verdict(found), found.detail


def _interval(gain: float, low: float, high: float) -> str:
    return f"{gain:+.5f} [{low:+.5f}, {high:+.5f}]"


def _verdict(found: Evidence) -> str:
    if found.name == TOGETHER and not found.used:
        return "nothing is used"
    if found.clears:
        return "clears its noise" if found.used else "clears its noise, not used by itself"
    return "noise: left off" if not found.used else "noise: forced" if found.forced else "noise"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
