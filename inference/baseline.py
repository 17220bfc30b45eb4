"""The score of not looking at the image: everything is foreground, or each image shows the mean training mask.

A model that is not far above it has learned the average hand, or its data are too alike to mean anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
"""Height and width of the mean mask, px."""
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Thresholds on the mean mask; the best for the training images is taken for each class."""


def mean_mask_dice(train: Sequence[Record], test: Sequence[Record], cfg: Config) -> float:
    """Competition-style Dice of the mean training mask on `test`, in the hand's box at SIDE x SIDE.

    It is helped in every way: the box of all bones is the true one, and left hands are mirrored onto right ones by the
    labels. Dice is taken in the box, so it is no leaderboard score.
    """
    masks = np.stack([_boxed(r, cfg) for r in progress(train, "mean mask", unit="images")])
    mean, levels = _mean_mask(masks)
    chosen = mean > levels[:, None, None]
    table = DiceTable(cfg.data.classes)
    for record in test:
        table.add(record.key, _dice(chosen, _boxed(record, cfg)))
    return table.mean()


@dataclass(frozen=True)
class Blind:
    """Competition-style Dice of predictions that do not look at the image, at the images' own sizes."""

    foreground: float
    """Every pixel is of every class."""
    mean_mask: float
    """The mean training mask, stretched to the image, at the threshold that is best for the training images."""

    @property
    def best(self) -> float:
        """What a network must beat."""
        return max(self.foreground, self.mean_mask)


def blind_dice(train: Sequence[Record], test: Sequence[Record], cfg: Config) -> Blind:
    """What predictions that do not look at the image reach on `test`, in any layout and with any classes.

    Args:
        train, test: labelled, of any sizes.
    """
    mean, levels = _mean_mask(np.stack([_scaled(_words(record, cfg), cfg) for record in train]))
    full, mapped = DiceTable(cfg.data.classes), DiceTable(cfg.data.classes)
    for record in test:
        bits = _words(record, cfg)
        height, width = bits.shape[1:]
        masks = _planes(bits, cfg)
        stretched = np.stack([cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in mean])
        full.add(record.key, _dice(np.ones_like(masks), masks))
        mapped.add(record.key, _dice(stretched > levels[:, None, None], masks))
    return Blind(full.mean(), mapped.mean())


def _mean_mask(masks: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of masks (N, K, SIDE, SIDE): their mean, and the threshold on it of each class that is best for them, (K,)."""
    mean = masks.mean(0)
    levels = np.stack([np.stack([_dice(mean > level, mask) for mask in masks]).mean(0) for level in LEVELS])
    return mean, np.array(LEVELS)[levels.argmax(0)]


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> NDArray[np.float64]:
    overlap = np.count_nonzero(a & b, axis=(1, 2))
    sizes = np.count_nonzero(a, axis=(1, 2)) + np.count_nonzero(b, axis=(1, 2))
    return np.asarray((2 * overlap + 1e-4) / (sizes + 1e-4), dtype=np.float64)


def _boxed(record: Record, cfg: Config) -> NDArray[np.bool_]:
    """All masks of an image, cut to the box of all bones and scaled to SIDE, thumb to the left: (K, SIDE, SIDE)."""
    bits = _words(record, cfg)
    rows, columns = np.nonzero(np.bitwise_or.reduce(bits))
    if not len(rows):
        return np.zeros((len(cfg.data.classes), SIDE, SIDE), bool)
    masks = _scaled(bits[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1], cfg)
    # The first class is the thumb's tip where classes are the competition's; for others the side hardly matters.
    first = np.nonzero(masks[0])[1]
    return masks[..., ::-1] if len(first) and first.mean() > SIDE / 2 else masks


def _words(record: Record, cfg: Config) -> NDArray[np.int32]:
    return read_label(record, cfg.data.classes, *image_shape(record.image))


def _scaled(bits: NDArray[np.int32], cfg: Config) -> NDArray[np.bool_]:
    """Packed words of any size -> masks (K, SIDE, SIDE)."""
    words = [cv2.resize(w.view(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST) for w in bits]
    return _planes(np.stack(words).view(np.int32), cfg)


def _planes(bits: NDArray[np.int32], cfg: Config) -> NDArray[np.bool_]:
    """Packed words (words, H, W) -> masks (K, H, W)."""
    return np.stack([(bits[k // 32] >> (k % 32)) & 1 for k in range(len(cfg.data.classes))]).astype(bool)
