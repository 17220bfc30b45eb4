"""Comparisons that need a GPU."""

from __future__ import annotations

from benchmarks.machine import gpu
from benchmarks.rows import Row

PLANNED = (
    ("samples/s, DALI, one GPU", "usual way, best", "samples/s"),
    ("samples/s, resident, one GPU", "usual way, best", "samples/s"),
    ("GPU idle share in a training step", "usual way, best", "%"),
    ("CLAHE on the GPU, largest difference", "OpenCV's CLAHE", "grey levels"),
)
"""Case, peer and unit."""


def rows() -> list[Row]:
    """One row for each of them, so far without numbers."""
    note = "GPU rows: not measured here" + (", there is no GPU." if gpu() is None else ".")
    return [Row(case, peer, unit, note=note) for case, peer, unit in PLANNED]
