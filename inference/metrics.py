"""The leaderboard's Dice, counted on packed words at full size.

`(2 I + eps) / (|A| + |B| + eps)` per image and class, eps = 1e-4, mean over images, then over classes. Counts are
integers and sums float64: one Radius alone (75 128 pixels at 2048) overflows float16.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from engine.files import write_text
from inference.rle import WORD_BITS, flat_words

EPS = 1e-4


def count_bits(pred_bits: NDArray[np.int32], true_bits: NDArray[np.int32], n_classes: int) -> NDArray[np.int64]:
    """Pixels per class as int64 (3, n_classes): in both, in the prediction, in the truth.

    Args:
        pred_bits, true_bits: packed words, int32 (ceil(n_classes / 32), H, W), of one size.

    Raises:
        ValueError: another dtype, shapes that differ, or a bit above the last class is set.
    """
    pred, true = flat_words(pred_bits, n_classes), flat_words(true_bits, n_classes)
    if pred_bits.shape != true_bits.shape:
        raise ValueError(
            f"pred_bits has shape {pred_bits.shape} and true_bits {true_bits.shape}, but Dice is counted "
            "at the image's own size: resize the prediction first."
        )
    counts = np.zeros((3, len(pred) * WORD_BITS), np.int64)
    for w in range(len(pred)):
        _count(pred[w], true[w], counts[:, w * WORD_BITS : (w + 1) * WORD_BITS])
    if counts[:, n_classes:].any():
        raise ValueError(
            f"bits holds pixels of a class above the last: with {n_classes} classes, bits from "
            f"{n_classes % WORD_BITS} up of word {len(pred) - 1} must be 0."
        )
    return counts[:, :n_classes].copy()


def dice_from_counts(counts: NDArray[np.int64], eps: float = EPS) -> NDArray[np.float64]:
    """Dice, float64 (...) in [0, 1], from counts (3, ...) of `count_bits`; 1 where both masks are empty.

    Raises:
        ValueError: `eps` is not above 0: two empty masks would be 0 / 0.
    """
    if not eps > 0:
        raise ValueError(f"eps is {eps}, but must be above 0, or two empty masks have no Dice.")
    both, pred, true = counts.astype(np.float64)
    return np.asarray((2 * both + eps) / (pred + true + eps))


class WorstImage(NamedTuple):
    """An image, its Dice averaged over classes, and its worst class."""

    image_name: str
    mean: float
    worst_class: str
    worst_dice: float


class DiceTable:
    """Dice of every image and class, kept in the order of `add`."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._rows: dict[str, NDArray[np.float64]] = {}

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    def add(self, image_name: str, dice: NDArray[np.float64]) -> None:
        """Add one image's Dice, (K,) in [0, 1].

        Raises:
            ValueError: the image is there already, or `dice` has another shape or a value outside [0, 1] (or NaN).
        """
        row = np.array(dice, np.float64)
        if image_name in self._rows:
            raise ValueError(f"Image {image_name!r} is in the table already, but every image counts once.")
        if row.shape != (len(self.classes),):
            raise ValueError(
                f"Dice of image {image_name!r} has shape {row.shape}, but must have ({len(self.classes)},), "
                "one value a class."
            )
        good = (row >= 0) & (row <= 1)  # False for NaN
        if not good.all():
            k = int(np.argmin(good))
            raise ValueError(
                f"Dice of image {image_name!r}, class {self.classes[k]!r}, is {row[k]}, but must be in [0, 1]."
            )
        self._rows[image_name] = row

    def per_class(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation over images, each float64 (K,); the deviation divides by n, so 0 for one image.

        Raises:
            ValueError: the table is empty.
        """
        table = self._table()
        return table.mean(axis=0), table.std(axis=0)

    def mean(self) -> float:
        """The leaderboard's score: mean over images, then over classes.

        Raises:
            ValueError: the table is empty.
        """
        return float(self.per_class()[0].mean())

    def worst(self, n: int) -> list[WorstImage]:
        """The `n` images with the lowest mean Dice, lowest first; of equal ones, the one that was added first.

        Raises:
            ValueError: the table is empty.
        """
        table = self._table()
        names, means = list(self._rows), table.mean(axis=1)
        worst: list[WorstImage] = []
        for i in np.argsort(means, kind="stable")[:n]:
            k = int(table[i].argmin())
            worst.append(WorstImage(names[i], float(means[i]), self.classes[k], float(table[i, k])))
        return worst

    def to_csv(self, path: Path | str) -> None:
        """Write `class,mean,std,min,worst_image`, a row a class, six decimals; atomic, replaces an older file.

        Raises:
            ValueError: the table is empty.
        """
        table = self._table()
        names = list(self._rows)
        mean, std = self.per_class()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("class", "mean", "std", "min", "worst_image"))
        for k, label in enumerate(self.classes):
            i = int(table[:, k].argmin())
            writer.writerow((label, f"{mean[k]:.6f}", f"{std[k]:.6f}", f"{table[i, k]:.6f}", names[i]))
        write_text(path, text.getvalue())

    def text(self) -> str:
        """The table for people: mean, standard deviation and least Dice of each class over the images.

        Raises:
            ValueError: the table is empty.
        """
        table = self._table()
        width = max(map(len, ("class", *self.classes)))
        lines = [f"{'class':<{width}}    mean     std     min"]
        lines += [
            f"{label:<{width}}  {column.mean():.4f}  {column.std():.4f}  {column.min():.4f}"
            for label, column in zip(self.classes, table.T, strict=True)
        ]
        return "\n".join(lines)

    def median_image(self) -> str:
        """Name of the image whose mean Dice is the (lower) median: neither the best nor the worst to show.

        Raises:
            ValueError: the table is empty.
        """
        means = self._table().mean(axis=1)
        return list(self._rows)[int(np.argsort(means, kind="stable")[(len(means) - 1) // 2])]

    def _table(self) -> NDArray[np.float64]:
        if not self._rows:
            raise ValueError("No image was added, so there is no Dice: check the list of validation images.")
        return np.stack(list(self._rows.values()))


@njit(cache=True, nogil=True)
def _count(pred: NDArray[np.uint32], true: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
    """Add to counts (3, 32) the pixels of each bit in both, in pred and in true, all (P,) words."""
    # Neighbours mostly hold the same pair of words: a stretch of equal pairs is counted at once, and stretches of two
    # empty words, most of a radiograph, cost no more than finding their end.
    begin = 0
    for end in range(1, pred.size + 1):
        if end < pred.size and pred[end] == pred[begin] and true[end] == true[begin]:
            continue
        p, t = pred[begin], true[begin]
        k = 0
        while p | t:
            counts[0, k] += (end - begin) * (p & t & 1)
            counts[1, k] += (end - begin) * (p & 1)
            counts[2, k] += (end - begin) * (t & 1)
            p >>= 1
            t >>= 1
            k += 1
        begin = end
