"""The score of not looking: the mean training mask, placed on the hand's box.

A model that is not far above it has learned the average hand, or its data are too alike to mean anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from config import Config
from dataset.images import image_shape
from dataset.labels import read_label
from dataset.readers import Record
from engine.progress import progress
from inference.metrics import DiceTable

SIDE = 256
"""Height and width of the common box, px."""
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Thresholds on the mean mask; the best for the training images is taken for each class."""


def mean_mask_dice(train: Sequence[Record], test: Sequence[Record], cfg: Config) -> float:
    """Competition-style Dice of the mean training mask on `test`, in the hand's box at SIDE x SIDE.

    It is helped in every way: the box of all bones is the true one, and left hands are mirrored onto right ones by the
    labels. Dice is taken in the box, so it is no leaderboard score.
    """
    masks = np.stack([_boxed(r, cfg) for r in progress(train, "mean mask", unit="images")])
    mean = masks.mean(0)
    levels = np.stack([np.stack([_dice(mean > level, mask) for mask in masks]).mean(0) for level in LEVELS])
    best = np.array(LEVELS)[levels.argmax(0)]
    chosen = mean > best[:, None, None]
    table = DiceTable(cfg.data.classes)
    for record in test:
        table.add(record.key, _dice(chosen, _boxed(record, cfg)))
    return table.mean()


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> NDArray[np.float64]:
    overlap = np.count_nonzero(a & b, axis=(1, 2))
    sizes = np.count_nonzero(a, axis=(1, 2)) + np.count_nonzero(b, axis=(1, 2))
    return np.asarray((2 * overlap + 1e-4) / (sizes + 1e-4), dtype=np.float64)


def _boxed(record: Record, cfg: Config) -> NDArray[np.bool_]:
    """All masks of an image, cut to the box of all bones and scaled to SIDE, thumb to the left: (K, SIDE, SIDE)."""
    bits = read_label(record, cfg.data.classes, *image_shape(record.image))
    rows, columns = np.nonzero(np.bitwise_or.reduce(bits))
    if not len(rows):
        return np.zeros((len(cfg.data.classes), SIDE, SIDE), bool)
    box = bits[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    words = [cv2.resize(w.view(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST) for w in box]
    small = np.stack(words).view(np.int32)
    masks = np.stack([(small[k // 32] >> (k % 32)) & 1 for k in range(len(cfg.data.classes))]).astype(bool)
    # The first class is the thumb's tip where classes are the competition's; for others the side hardly matters.
    first = np.nonzero(masks[0])[1]
    return masks[..., ::-1] if len(first) and first.mean() > SIDE / 2 else masks
