"""For which class a pixel is mistaken, where a pixel may have several: the multi-label confusion matrix.

Heydarian 2022 (doi 10.1109/ACCESS.2022.3151048), a pixel being an instance. Rows are the truth, columns the prediction;
the last of each is the background, a pixel without any class. A pixel with true classes T and predicted ones P counts

* at (k, k) for every k in both;
* where some are missed and others are extra, at (i, j) for every i of T \\ P and every j of P \\ T;
* where some are missed and none is extra, at (i, background);
* where none is missed and some are extra, at (i, j) for every i of T (background where T is empty) and j of P \\ T;
* at (background, background) where both are empty.

So the diagonal holds true positives, and where no pixel has two classes this is the ordinary confusion matrix. A row's
sum may exceed the class's pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from inference.metrics import ImageTable, class_above_last, flat_pair, write_csv
from inference.rle import WORD_BITS

BACKGROUND = "background"


def count_confusion(
    pred_bits: NDArray[np.int32], true_bits: NDArray[np.int32], n_classes: int
) -> NDArray[np.int64]:
    """The confusion matrix of one image, int64 (n_classes + 1, n_classes + 1), in pixels.

    Args:
        pred_bits, true_bits: packed words, int32 (ceil(n_classes / 32), H, W), of one size.

    Raises:
        ValueError: another dtype, shapes that differ, or a bit above the last class is set.
    """
    pred, true = flat_pair(pred_bits, true_bits, n_classes)
    last = len(pred) * WORD_BITS
    matrix = np.zeros((last + 1, last + 1), np.int64)
    changes = (pred[:, 1:] != pred[:, :-1]) | (true[:, 1:] != true[:, :-1])
    begins = np.flatnonzero(np.logical_or.reduce(changes)) + 1
    begins = np.concatenate([[0], begins, [pred.shape[1]]])
    _confuse(pred, true, begins, matrix)
    if matrix[n_classes:last].any() or matrix[:, n_classes:last].any():
        raise class_above_last(n_classes)
    kept = np.append(np.arange(n_classes), last)
    return np.asarray(matrix[np.ix_(kept, kept)])


class ConfusionTable(ImageTable[np.int64]):
    """Confusion matrices of images."""

    def add(self, image_name: str, matrix: NDArray[np.int64]) -> None:
        """Add one image's matrix, int64 (K + 1, K + 1), of `count_confusion`.

        Raises:
            ValueError: the image is there already, or `matrix` has another shape.
        """
        side = len(self.classes) + 1
        if matrix.shape != (side, side):
            raise ValueError(
                f"The confusion matrix of image {image_name!r} has shape {matrix.shape}, but must have "
                f"({side}, {side}): {side - 1} classes and the background."
            )
        self._keep(image_name, matrix)

    def total(self) -> NDArray[np.int64]:
        """The sum over images, int64 (K + 1, K + 1).

        Raises:
            ValueError: the table is empty.
        """
        return np.asarray(self._table("confusion matrix").sum(axis=0))

    def to_csv(self, path: Path | str) -> None:
        """Write the sum over images with class names, a row a true class; atomic, replaces an older file.

        Raises:
            ValueError: the table is empty.
        """
        names = (*self.classes, BACKGROUND)
        rows = [(name, *row) for name, row in zip(names, self.total().tolist(), strict=True)]
        write_csv(path, [("truth \\ prediction", *names), *rows])


@njit(cache=True, nogil=True)
def _confuse(
    pred: NDArray[np.uint32], true: NDArray[np.uint32], begins: NDArray[np.int64], matrix: NDArray[np.int64]
) -> None:
    """Add the pixels of words (W32, P) to the matrix (32 W32 + 1, 32 W32 + 1).

    The pixels from each of `begins` to the next, of which the last is P, have the same words and count at once.
    """
    background = len(matrix) - 1
    rows, columns = np.empty(background, np.int64), np.empty(background, np.int64)
    for i in range(begins.size - 1):
        begin, size = begins[i], begins[i + 1] - begins[i]
        any_missed = False
        for w in range(len(pred)):
            any_missed |= (true[w, begin] & (true[w, begin] ^ pred[w, begin])) != 0
        n_rows = n_columns = 0
        for w in range(len(pred)):
            p, t = pred[w, begin], true[w, begin]
            k = WORD_BITS * w
            while p | t:
                if p & t & 1:
                    matrix[k, k] += size
                if t & 1 and not (any_missed and p & 1):
                    rows[n_rows] = k
                    n_rows += 1
                if p & 1 and not t & 1:
                    columns[n_columns] = k
                    n_columns += 1
                p >>= 1
                t >>= 1
                k += 1
        if n_rows and not any_missed and not n_columns:
            continue  # all right
        if n_rows == 0:
            rows[0], n_rows = background, 1
        if n_columns == 0:
            columns[0], n_columns = background, 1
        for r in rows[:n_rows]:
            for c in columns[:n_columns]:
                matrix[r, c] += size
