"""The leaderboard's Dice between masks that lie in files: counted in run-length space, nothing is decoded.

`(2 I + eps) / (|A| + |B| + eps)` as in inference/metrics.py, from the same integer counts, so the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dataset.readers import Record
from engine.progress import progress
from inference.csv_masks import CsvMasks, LabelMasks, MaskSource
from inference.mask_files import check_new, whole_folder
from inference.metrics import DiceTable, dice_from_counts


def count_runs(pred: Sequence[NDArray[np.int64]], true: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Pixels per class as int64 (3, K), as `metrics.count_bits`: in both, in the prediction, in the truth.

    Args:
        pred, true: for each class runs as `parse_runs` gives them, sorted and disjoint.
    """
    counts = np.empty((3, len(pred)), np.int64)
    for k, (a, b) in enumerate(zip(pred, true, strict=True)):
        counts[:, k] = _common_pixels(a, b), area(a), area(b)
    return counts


def area(runs: NDArray[np.int64]) -> int:
    """Pixels of a mask, from its runs (R, 2)."""
    return int((runs[:, 1] - runs[:, 0]).sum())


def dice_table(pred: MaskSource, true: MaskSource, keys: Mapping[str, str]) -> DiceTable:
    """Dice of every image and class; streams, in the order of `keys`.

    Args:
        pred, true: of the same classes in the same order.
        keys: images to score -> what the table calls them.

    Raises:
        FileProblem: masks that can't be read, or lie outside of their image where its size is known.
    """
    table = DiceTable(pred.classes)
    for name, key in progress(keys.items(), "Dice", len(keys), "images"):
        shape = true.shape(name) or pred.shape(name)
        n_pixels = shape[0] * shape[1] if shape else None
        table.add(key, dice_from_counts(count_runs(pred.runs(name, n_pixels), true.runs(name, n_pixels))))
    return table


def score_submission(csv: Path, records: Sequence[Record], classes: Sequence[str]) -> DiceTable:
    """Dice of a submission against the labels of people, by the records' keys: bit-equal to inference/pipeline.score.

    Args:
        records: labelled images, each of which must be in the CSV; others in it are not looked at.

    Raises:
        FileProblem: the CSV or a label can't be used, an image is not in the CSV, or two images share a name.
    """
    keys = {record.name: record.key for record in records}
    return dice_table(CsvMasks(csv, classes), LabelMasks(csv, records, classes), keys)


def check_new_table(output: str) -> None:
    """Raise FileProblem where `save_table` would overwrite something; "" is nothing to write."""
    if output:
        check_new(Path(output))


def save_table(table: DiceTable, output: str) -> str:
    """Write Dice per image as `output`, a .csv, or per_class.csv and images.csv in it, a new folder; says what it did.

    Raises:
        FileProblem: it exists; an empty folder counts as absent.
    """
    path = Path(output)
    check_new(path)
    if path.suffix == ".csv":
        table.images_to_csv(path)
        return f"per image:  {path}"
    with whole_folder(path) as folder:
        table.to_csv(folder / "per_class.csv")
        table.images_to_csv(folder / "images.csv")
    return f"per class:  {path / 'per_class.csv'}\nper image:  {path / 'images.csv'}"


def class_text(table: DiceTable) -> str:
    """A line each class: mean and least Dice over the images, and the image of the least."""
    width = max(map(len, ("class", *table.classes)))
    lines = [f"{'class':<{width}}    mean     min  image"]
    lines += [f"{c.label:<{width}}  {c.mean:.4f}  {c.worst:.4f}  {c.worst_image}" for c in table.summary()]
    return "\n".join(lines)


def worst_text(table: DiceTable, n: int) -> str:
    """The `n` images of the lowest mean Dice, a line each, lowest first; with the class that is worst there."""
    worst = table.worst(n)
    width = max((len(image.image_name) for image in worst), default=0)
    return "\n".join(f"  {w.image_name:<{width}}  {w.mean:.4f}  ({w.worst_class} {w.worst_dice:.4f})" for w in worst)


@njit(cache=True, nogil=True)
def _common_pixels(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Pixels in both of two run lists, by one walk along them."""
    i = j = count = 0
    while i < len(a) and j < len(b):
        first, end = max(a[i, 0], b[j, 0]), min(a[i, 1], b[j, 1])
        if end > first:
            count += end - first
        if a[i, 1] <= b[j, 1]:
            i += 1
        else:
            j += 1
    return count
