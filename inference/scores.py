"""Scores on demand beside the competition's Dice, per class and image at full size.

What happens to empty masks is told in metric_names.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from inference.confusion import ConfusionTable, count_confusion
from inference.metric_names import BY_COUNTS, BY_SURFACES, CONFUSION, chosen_metrics
from inference.metrics import Metric, ScoreTable, count_bits, write_csv
from inference.surfaces import hausdorff, surface_dice, surface_distances

DISTANCES = ("hausdorff", "hausdorff95")
CSV_NAMES = "scores.csv", "confusion.csv"


def scores_from_counts(counts: NDArray[np.int64], n_pixels: int) -> dict[str, NDArray[np.float64]]:
    """iou, precision, recall and accuracy, float64 (...) each, from counts (3, ...) of `count_bits`.

    With I pixels in both: I / |A or B|, I / |prediction|, I / |truth|, and the share of the image's pixels that both
    masks call the same.
    """
    both, pred, true = counts.astype(np.float64)
    either = pred + true - both

    def share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
        ratio = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
        return np.where(either > 0, ratio, np.nan)

    return {
        "iou": share(both, either),
        "precision": share(both, pred),
        "recall": share(both, true),
        "accuracy": 1 - (either - both) / n_pixels,
    }


def scores_from_surfaces(
    pred_bits: NDArray[np.int32], true_bits: NDArray[np.int32], n_classes: int, tolerance: float
) -> dict[str, NDArray[np.float64]]:
    """hausdorff and hausdorff95 in px, and surface_dice at `tolerance` px, float64 (n_classes,) each.

    Where one mask is empty the distances are the image's diagonal, more than any two pixels are apart.

    Raises:
        ValueError: as `surface_distances`.
    """
    distances = surface_distances(pred_bits, true_bits, n_classes)
    diagonal = math.hypot(*true_bits.shape[1:])
    return {
        "hausdorff": np.array([hausdorff(d, 100, diagonal) for d in distances]),
        "hausdorff95": np.array([hausdorff(d, 95, diagonal) for d in distances]),
        "surface_dice": np.array([surface_dice(d, tolerance) for d in distances]),
    }


class Scores:
    """The metrics that were asked for, of every image.

    Args:
        metrics: names of METRICS, or `all`.
        tolerance: of surface_dice, px of the original image.

    Raises:
        ConfigProblem: an unknown metric.
        ValueError: `tolerance` is not 0 or more.
    """

    def __init__(self, classes: Sequence[str], metrics: Iterable[str], tolerance: float) -> None:
        if not tolerance >= 0:
            raise ValueError(f"The tolerance of surface_dice is {tolerance} px, but must be 0 or more.")
        self.classes, self.tolerance = tuple(classes), tolerance
        names = chosen_metrics(metrics)
        self.tables = {name: ScoreTable(classes, _metric(name)) for name in names if name != CONFUSION}
        """Metric name -> its table."""
        self.confusion = ConfusionTable(classes) if CONFUSION in names else None

    def add(self, image_name: str, pred_bits: NDArray[np.int32], true_bits: NDArray[np.int32]) -> None:
        """Score one image: packed words, int32 (ceil(K / 32), H, W), of one size, the original's.

        Raises:
            ValueError: the image is there already, another dtype, shapes that differ, or a bit above the last class.
        """
        k = len(self.classes)
        values: dict[str, NDArray[np.float64]] = {}
        if self.tables.keys() & set(BY_COUNTS):
            n_pixels = math.prod(true_bits.shape[1:])
            values |= scores_from_counts(count_bits(pred_bits, true_bits, k), n_pixels)
        if self.tables.keys() & set(BY_SURFACES):
            values |= scores_from_surfaces(pred_bits, true_bits, k, self.tolerance)
        for name, table in self.tables.items():
            table.add(image_name, values[name])
        if self.confusion is not None:
            self.confusion.add(image_name, count_confusion(pred_bits, true_bits, k))

    def merge(self, others: Sequence[Self], order: Sequence[str]) -> None:
        """Take in the scores of other ranks; images are then in `order`, so that no mean depends on the ranks.

        Raises:
            ValueError: an image was scored twice, never, or is not in `order`.
        """
        for name, table in self.tables.items():
            table.merge([other.tables[name] for other in others], order)
        if self.confusion is not None:
            self.confusion.merge([other.confusion for other in others if other.confusion is not None], order)

    def means(self) -> dict[str, float]:
        """Metric name -> mean over images, then over classes; NaN where nothing has a value.

        Raises:
            ValueError: no image was added.
        """
        return {name: table.mean() for name, table in self.tables.items()}

    def to_csv(self, folder: Path) -> None:
        """Write scores.csv (a row a metric and class, six decimals) and confusion.csv, as asked for; each atomic.

        `worst` is the least value, of distances the largest; `left_out` counts images with the class in neither mask.

        Raises:
            ValueError: no image was added.
        """
        if self.tables:
            head = ("metric", "class", "mean", "std", "worst", "worst_image", "left_out")
            rows = [
                (name, c.label, *map(_six, (c.mean, c.std, c.worst)), c.worst_image, c.left_out)
                for name, table in self.tables.items()
                for c in table.summary()
            ]
            write_csv(folder / CSV_NAMES[0], [head, *rows])
        if self.confusion is not None:
            self.confusion.to_csv(folder / CSV_NAMES[1])

    def text(self) -> str:
        """For people: the mean over images of each class and metric, the mean over classes, and how often an image was
        left out of a class; empty where only the confusion matrix was asked for.

        Raises:
            ValueError: no image was added.
        """
        if not self.tables:
            return ""
        summaries = [table.summary() for table in self.tables.values()]
        columns = [
            (name, *(f"{c.mean:.4f}" for c in rows), f"{mean:.4f}", str(sum(c.left_out for c in rows)))
            for (name, mean), rows in zip(self.means().items(), summaries, strict=True)
        ]
        columns.insert(0, ("class", *self.classes, "mean", "left out"))
        widths = [max(map(len, column)) for column in columns]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in zip(*columns, strict=True)
        )


def _metric(name: str) -> Metric:
    distance = name in DISTANCES
    return Metric(name, math.inf if distance else 1.0, high_is_good=not distance, always_defined=name == "accuracy")


def _six(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"
