"""The leaderboard's Dice, counted on packed words at full size, and tables of scores over images.

`(2 I + eps) / (|A| + |B| + eps)` per image and class, eps = 1e-4, mean over images, then over classes. Counts are
integers and sums float64: one Radius alone (75 128 pixels at 2048) overflows float16.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, Self, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from engine.files import FileProblem, write_text
from inference.rle import WORD_BITS, flat_words

EPS = 1e-4

Number = TypeVar("Number", np.int64, np.float64)


def flat_pair(
    pred_bits: NDArray[np.int32], true_bits: NDArray[np.int32], n_classes: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Prediction and truth, int32 (W32, H, W), as uint32 (W32, H * W) each.

    Raises:
        ValueError: another dtype, another number of words, or shapes that differ.
    """
    pred, true = flat_words(pred_bits, n_classes), flat_words(true_bits, n_classes)
    if pred_bits.shape != true_bits.shape:
        raise ValueError(
            f"pred_bits has shape {pred_bits.shape} and true_bits {true_bits.shape}, but scores are counted "
            "at the image's own size: resize the prediction first."
        )
    return pred, true


def class_above_last(n_classes: int) -> ValueError:
    """The error of words that hold a bit above the last class."""
    return ValueError(
        f"bits holds pixels of a class above the last: with {n_classes} classes, bits from "
        f"{n_classes % WORD_BITS} up of word {n_classes // WORD_BITS} must be 0."
    )


def count_bits(pred_bits: NDArray[np.int32], true_bits: NDArray[np.int32], n_classes: int) -> NDArray[np.int64]:
    """Pixels per class as int64 (3, n_classes): in both, in the prediction, in the truth.

    Args:
        pred_bits, true_bits: packed words, int32 (ceil(n_classes / 32), H, W), of one size.

    Raises:
        ValueError: another dtype, shapes that differ, or a bit above the last class is set.
    """
    pred, true = flat_pair(pred_bits, true_bits, n_classes)
    counts = np.zeros((3, len(pred) * WORD_BITS), np.int64)
    for w in range(len(pred)):
        _count(pred[w], true[w], counts[:, w * WORD_BITS : (w + 1) * WORD_BITS])
    if counts[:, n_classes:].any():
        raise class_above_last(n_classes)
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


class ImageTable(Generic[Number]):
    """An array for every image, kept in the order of adding."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._rows: dict[str, NDArray[Number]] = {}

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    def names(self) -> list[str]:
        """The images."""
        return list(self._rows)

    def merge(self, others: Iterable[Self], order: Sequence[str]) -> None:
        """Take in the tables of other ranks; images are then in `order`, so that no sum depends on the ranks.

        Raises:
            ValueError: an image is in two tables, in none, or not in `order`.
        """
        for other in others:
            for image_name, row in other._rows.items():
                self._keep(image_name, row)
        if odd := sorted(self._rows.keys() ^ set(order)):
            raise ValueError(
                f"The tables hold {len(self)} images and the list {len(order)}, and image {odd[0]!r} is in one of them "
                "only, but every image counts once: look at how images are shared out to ranks."
            )
        self._rows = {image_name: self._rows[image_name] for image_name in order}

    def _keep(self, image_name: str, row: NDArray[Number]) -> None:
        if image_name in self._rows:
            raise ValueError(f"Image {image_name!r} is in the table already, but every image counts once.")
        self._rows[image_name] = row

    def _table(self, what: str) -> NDArray[Number]:
        if not self._rows:
            raise ValueError(f"No image was added, so there is no {what}: check the list of validation images.")
        return np.stack(list(self._rows.values()))


class Metric(NamedTuple):
    """What a table's numbers are."""

    name: str
    highest: float = 1.0
    """Largest possible value, inf for distances; the smallest is 0."""
    high_is_good: bool = True
    always_defined: bool = False
    """Else an image without the class, in truth and prediction, has NaN and is left out."""


class ClassSummary(NamedTuple):
    """One class over the images."""

    label: str
    mean: float
    std: float
    worst: float
    worst_image: str
    """Empty where no image has a value; then the numbers are NaN."""
    left_out: int
    """Images without a value."""


class ScoreTable(ImageTable[np.float64]):
    """One metric of every image and class."""

    def __init__(self, classes: Sequence[str], metric: Metric) -> None:
        super().__init__(classes)
        self.metric = metric

    def add(self, image_name: str, values: NDArray[np.float64]) -> None:
        """Add one image's values, (K,), from 0 to the metric's highest.

        Raises:
            ValueError: the image is there already, or `values` has another shape or a value out of range (or NaN, where
                the metric is always defined).
        """
        name, highest = self.metric.name, self.metric.highest
        row = np.array(values, np.float64)
        if row.shape != (len(self.classes),):
            raise ValueError(
                f"{name} of image {image_name!r} has shape {row.shape}, but must have ({len(self.classes)},), "
                "one value a class."
            )
        good = (row >= 0) & (row <= highest) & (row < np.inf)  # False for NaN
        if not self.metric.always_defined:
            good |= np.isnan(row)
        if not good.all():
            k = int(np.argmin(good))
            limits = f"[0, {highest:g}]" if np.isfinite(highest) else "[0, inf)"
            raise ValueError(
                f"{name} of image {image_name!r}, class {self.classes[k]!r}, is {row[k]}, but must be in {limits}."
            )
        self._keep(image_name, row)

    def per_class(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation over images, each float64 (K,); the deviation divides by n, so 0 for one image.

        Raises:
            ValueError: the table is empty.
        """
        table = self._table(self.metric.name)
        mean = _mean(table)
        return mean, np.sqrt(_mean((table - mean) ** 2))

    def mean(self) -> float:
        """The mean over images, then over classes (of Dice, the leaderboard's score); NaN where nothing has a value.

        Raises:
            ValueError: the table is empty.
        """
        return float(_mean(self.per_class()[0]))

    def summary(self) -> list[ClassSummary]:
        """The classes, with the image that is worst at each; of equal ones, the one that comes first.

        Raises:
            ValueError: the table is empty.
        """
        table = self._table(self.metric.name)
        missing, names = np.isnan(table), list(self._rows)
        badness = np.where(missing, -np.inf, -table if self.metric.high_is_good else table)
        worst = badness.argmax(axis=0)
        mean, std = self.per_class()
        return [
            ClassSummary(
                label,
                float(mean[k]),
                float(std[k]),
                float(table[i, k]),
                "" if missing[i, k] else names[i],
                int(missing[:, k].sum()),
            )
            for k, (label, i) in enumerate(zip(self.classes, worst.tolist(), strict=True))
        ]


class WorstImage(NamedTuple):
    """An image, its Dice averaged over classes, and its worst class."""

    image_name: str
    mean: float
    worst_class: str
    worst_dice: float


class DiceTable(ScoreTable):
    """The competition's Dice of every image and class."""

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(classes, Metric("Dice", always_defined=True))

    def worst(self, n: int) -> list[WorstImage]:
        """The `n` images with the lowest mean Dice, lowest first; of equal ones, the one that comes first.

        Raises:
            ValueError: the table is empty.
        """
        table = self._table("Dice")
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
        rows = [(c.label, f"{c.mean:.6f}", f"{c.std:.6f}", f"{c.worst:.6f}", c.worst_image) for c in self.summary()]
        write_csv(path, [("class", "mean", "std", "min", "worst_image"), *rows])

    def images_to_csv(self, path: Path | str) -> None:
        """Write `image,<class>,…`, a row an image, every digit: what `from_images_csv` reads back.

        Raises:
            ValueError: the table is empty.
        """
        rows = [(name, *map(repr, map(float, row))) for name, row in zip(self._rows, self._table("Dice"), strict=True)]
        write_csv(path, [("image", *self.classes), *rows])

    @classmethod
    def from_images_csv(cls, path: Path) -> Self:
        """Read what `images_to_csv` wrote.

        Raises:
            FileProblem: it is missing, or something else.
        """
        try:
            with open(path, encoding="utf-8", newline="") as file:
                (_, *classes), *rows = csv.reader(file)
            table = cls(classes)
            for name, *values in rows:
                table.add(name, np.array(values, np.float64))
        except (OSError, ValueError) as error:
            raise FileProblem(f"{path} holds no Dice of images ({error}): validate the experiment again.") from None
        return table

    def text(self) -> str:
        """The table for people: mean, standard deviation and least Dice of each class over the images.

        Raises:
            ValueError: the table is empty.
        """
        width = max(map(len, ("class", *self.classes)))
        lines = [f"{'class':<{width}}    mean     std     min"]
        lines += [f"{c.label:<{width}}  {c.mean:.4f}  {c.std:.4f}  {c.worst:.4f}" for c in self.summary()]
        return "\n".join(lines)

    def median_image(self) -> str:
        """Name of the image whose mean Dice is the (lower) median: neither the best nor the worst to show.

        Raises:
            ValueError: the table is empty.
        """
        means = self._table("Dice").mean(axis=1)
        return list(self._rows)[int(np.argsort(means, kind="stable")[(len(means) - 1) // 2])]


def write_csv(path: Path | str, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV; atomic, replaces an older file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean along the first axis of what is not NaN; NaN where nothing is."""
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.asarray(np.nansum(values, axis=0) / np.count_nonzero(~np.isnan(values), axis=0))


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
