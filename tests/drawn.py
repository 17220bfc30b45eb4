"""Drawn scenes whose picture and labels show the same shapes, to see whether both go the same way."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from config import AUGMENT_SETS, HAND_BONES, Augment, Config, Range
from dataset.frame import Frame, View, fit_frame
from dataset.labels import rasterise
from dataset.readers import Record
from dataset.samples import Samples
from engine import settings

STRONG: dict[str, Range] = {
    **{name: (low, high, 1.0) for name, (low, high, _) in AUGMENT_SETS["heavy"].items()},
    "copy_paste": (1.0, 4.0, 1.0),
    "mixup": (0.3, 0.5, 1.0),
    "cutmix": (0.2, 0.5, 1.0),
}
"""Every augmentation, strong, in every sample."""


def only(ranges: dict[str, Range]) -> Augment:
    """Every augmentation off but these."""
    return settings.replace(Config(), {"augment": "none", **ranges}).augment


def disc(height: int, width: int, radius: float) -> NDArray[np.bool_]:
    """One disc, off the middle, (height, width)."""
    y, x = np.mgrid[:height, :width]
    return np.asarray((y - 0.45 * height) ** 2 + (x - 0.4 * width) ** 2 < radius**2)


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Dice of two masks."""
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def offset(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How far the middles of two masks lie apart, (y, x) px."""
    return np.asarray(np.argwhere(a).mean(0) - np.argwhere(b).mean(0))


def texture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth random picture from 20 to 235, (height, width)."""
    rough = np.random.default_rng(seed).standard_normal((height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(rough, (0, 0), 2.0)
    low, high = smooth.min(), smooth.max()
    return np.asarray(20 + (smooth - low) * (215 / (high - low)), dtype=np.uint8)


def random_words(words: int, height: int, width: int, seed: int = 0) -> NDArray[np.int32]:
    """Packed labels of any bits, sign bits and NaN patterns included."""
    return np.random.default_rng(seed).integers(-(2**31), 2**31, (words, height, width)).astype(np.int32)


def polygons(height: int, width: int, seed: int) -> dict[str, list[NDArray[np.int32]]]:
    """Discs on a loose grid, one for each of 12 bones, of a twelfth to an eighth of the image's short side."""
    rng, short = np.random.default_rng(seed), min(height, width)
    found = {}
    for k in range(12):
        radius = short * rng.uniform(1 / 16, 1 / 10)
        x, y = (k % 3 + rng.uniform(0.4, 0.6)) * width / 3, (k // 3 + rng.uniform(0.4, 0.6)) * height / 4
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)
        found[HAND_BONES[(5 * k) % 29]] = [np.rint(points).astype(np.int32)]
    return found


class Scenes:
    """Images drawn from the labels themselves (bones 200 on 60): a dataset.sources.Source."""

    def __init__(self, views: list[View], image_size: int, side: int) -> None:
        self.views = views
        self.image_size, self.side = image_size, side
        self.polygons = {i: polygons(*view.file, seed=i) for i, view in enumerate(views)}

    def load(self, index: int) -> tuple[Frame, NDArray[np.uint8]]:
        """Frame and picture."""
        view = self.views[index]
        bits = rasterise(self.polygons[index], HAND_BONES, *view.file, "scene")
        image = np.where(bits[0] != 0, 200, 60).astype(np.uint8)
        return fit_frame(view, self.image_size, self.side), image


VIEWS = [View.whole((160, 160)), View((180, 150), 5, 8, 160, 130, True), View((150, 170), 0, 10, 150, 150)]
"""Of files smaller than twice the samples' side, so that they are stored as they are."""


def samples_of(
    ranges: dict[str, Range],
    views: list[View] = VIEWS,
    image_size: int = 160,
    side: int = 160,
    mode: str = "random",
) -> Samples:
    """Samples of drawn scenes."""
    values = {"augment": "none", "image_size": image_size, "window_size": side, "window_mode": mode, **ranges}
    source = Scenes(views, image_size, side)
    records = [Record(Path(f"scene{i}.png"), Path(f"scene{i}.json"), f"ID{i}") for i in range(len(views))]
    samples = Samples(records, settings.replace(Config(), values), side, True, source)
    samples.polygons = dict(source.polygons)
    return samples
