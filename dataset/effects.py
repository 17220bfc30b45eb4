"""Effects of an augmentation plan that act on the finished window, on the host, the same for every executor.

What albumentations has is applied by its functions, with the plan's values and seeds: nothing is drawn by it. Only this
file imports it. A window is (size, size) uint8.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import lru_cache

# Else albumentations asks the network for its newest version, at every import.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import cv2
import numpy as np
from albumentations.augmentations.blur import functional as blurs
from albumentations.augmentations.dropout import functional as dropouts
from albumentations.augmentations.geometric import functional as geometry
from albumentations.augmentations.pixel import functional as pixels
from numpy.typing import NDArray

from dataset.plan import DISTORTIONS, FILTERS, Effect

Grey = NDArray[np.uint8]
Bits = NDArray[np.int32]

TILES = 8
"""Tiles of the CLAHE augmentation along each side of the window."""
COARSE = 8
"""Pixels along a side over which slow fields (elastic, retinex) are smooth anyway, and are computed once."""
SMOOTH = 0.06
"""Standard deviation of the elastic field's smoothing, as a share of the window's side."""
CELLS = 5
"""Cells of the distorting grid along each side."""
SPARE = 256
"""Pixels by which the noise tile exceeds the window: 66 049 places, two signs."""


def apply_effects(grey: Grey, bits: Bits, effects: tuple[Effect, ...]) -> tuple[Grey, Bits]:
    """The distortions and filters of a plan on a window and its packed labels (words, size, size)."""
    for effect in effects:
        if effect.name in DISTORTIONS:
            grey, bits = _distort(grey, bits, effect)
        elif effect.name in FILTERS:
            grey = FILTER[effect.name](grey, effect.value, np.random.default_rng(effect.seed))
    return grey, bits


def _distort(grey: Grey, bits: Bits, effect: Effect) -> tuple[Grey, Bits]:
    field = DISTORTION[effect.name](len(grey), effect.value, np.random.default_rng(effect.seed))
    # Both reflect where the field leaves the window, so that they stay together there too.
    grey = np.asarray(geometry.remap(grey, *field, cv2.INTER_LINEAR, cv2.BORDER_REFLECT_101), dtype=np.uint8)
    # Nearest copies the 32 bits of a float as they are.
    words = [
        cv2.remap(word.view(np.float32), *field, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101) for word in bits
    ]
    return grey, np.stack(words).view(np.int32)


Field = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Source columns and source rows of every pixel of the window."""


def _elastic(size: int, strength: float, rng: np.random.Generator) -> Field:
    small = max(size // COARSE, 4)
    x, y = geometry.generate_displacement_fields((small, small), 1.0, SMOOTH * small, False, (0, 0), rng, "gaussian")
    scale = strength * size / max(float(np.sqrt(np.mean(x**2 + y**2))), 1e-12)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    fine = [cv2.resize(move * scale, (size, size), interpolation=cv2.INTER_CUBIC) for move in (x, y)]
    return columns + fine[0], rows + fine[1]


def _grid_distortion(size: int, strength: float, rng: np.random.Generator) -> Field:
    moves = np.zeros((2, CELLS + 1))
    moves[:, 1:-1] = rng.uniform(-strength, strength, (2, CELLS - 1))  # the outer lines stay
    # Not albumentations' generate_grid: its cells hold whole pixels, and its moves add up from line to line.
    lines = (np.arange(CELLS + 1) + moves) * size / CELLS
    even, at = np.arange(CELLS + 1) * size / CELLS, np.arange(size) + 0.5
    x, y = (np.interp(at, even, line).astype(np.float32) - np.float32(0.5) for line in lines)
    columns, rows = np.meshgrid(x, y)
    return columns, rows


def _clahe(grey: Grey, clip: float, rng: np.random.Generator) -> Grey:
    return np.asarray(pixels.clahe(grey, clip, (TILES, TILES)), dtype=np.uint8)


def _retinex(grey: Grey, share: float, rng: np.random.Generator) -> Grey:
    """Single-scale retinex (Jobson, Rahman, Woodell 1997, eq. 1): log of the image minus log of its surround."""
    small = cv2.resize(grey, None, fx=1 / COARSE, fy=1 / COARSE, interpolation=cv2.INTER_AREA)
    around = cv2.resize(cv2.GaussianBlur(small, (0, 0), max(len(small) / 8, 1)), grey.shape[::-1])
    ratio = np.log1p(grey.astype(np.float32)) - np.log1p(around.astype(np.float32))
    low, high = np.percentile(ratio[::4, ::4], (1, 99))
    flat = np.clip((ratio - low) * (255 / max(high - low, 1e-6)), 0, 255)
    return _sum(grey, flat, share)


def _edges(grey: Grey, share: float, rng: np.random.Generator) -> Grey:
    slopes = [cv2.Sobel(grey, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1))]
    return _sum(grey, np.minimum(cv2.magnitude(*slopes), 255), share)


def _sum(grey: Grey, other: NDArray[np.float32], share: float) -> Grey:
    return np.asarray(cv2.addWeighted(grey, 1 - share, np.rint(other).astype(np.uint8), share, 0), dtype=np.uint8)


def _sharpen(grey: Grey, share: float, rng: np.random.Generator) -> Grey:
    # As floats: in uint8 albumentations 2.0.8 wraps the difference of window and blur around at 0.
    sharp = pixels.sharpen_gaussian(grey.astype(np.float32) / 255, share, 5, 1.0)
    return np.asarray(np.rint(sharp * 255), dtype=np.uint8)


def _low_resolution(grey: Grey, share: float, rng: np.random.Generator) -> Grey:
    # By sizes: albumentations' downscale goes by factors, which shifts the window where they give no whole sizes.
    side = max(1, round(share * len(grey)))
    small = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, grey.shape[::-1], interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _blur(grey: Grey, sigma: float, rng: np.random.Generator) -> Grey:
    if sigma <= 0:
        return grey
    return np.asarray(pixels.separable_convolve(grey, blurs.create_gaussian_kernel_1d(sigma, 0)), dtype=np.uint8)


def _motion_blur(grey: Grey, length: float, rng: np.random.Generator) -> Grey:
    odd = int(length) // 2 * 2 + 1  # an even line has no middle and would shift the window against its labels
    if odd < 3:
        return grey
    # Without a shift nothing is drawn from the generator that it wants.
    kernel = blurs.create_motion_kernel(odd, float(rng.uniform(0, 180)), 0.0, False, random.Random(0))
    return np.asarray(pixels.convolve(grey, (kernel / kernel.sum()).astype(np.float32)), dtype=np.uint8)


def _noise(grey: Grey, sigma: float, rng: np.random.Generator) -> Grey:
    """Gaussian noise, cut at random from one tile: drawing a million numbers would cost more than all the rest."""
    size = len(grey)
    row, column = rng.integers(0, SPARE + 1, 2)
    grain = _noise_tile(size)[row : row + size, column : column + size]
    sign = rng.choice((-1.0, 1.0))
    # OpenCV's sum: 0.3 ms at 1024, where albumentations' add_noise takes 5.8 ms for the same numbers.
    return np.asarray(cv2.addWeighted(grey, 1.0, grain, sign * 255 * sigma, 0.0, dtype=cv2.CV_8U), dtype=np.uint8)


@lru_cache(maxsize=2)
def _noise_tile(size: int) -> NDArray[np.float32]:
    return np.random.default_rng(size).standard_normal((size + SPARE, size + SPARE), np.float32)


def _coarse_dropout(grey: Grey, share: float, rng: np.random.Generator) -> Grey:
    size, side = len(grey), max(1, round(share * len(grey)))
    corners = rng.integers(0, size - side + 1, (int(rng.integers(1, 9)), 2))
    holes = np.concatenate([corners, corners + side], axis=1)
    return np.asarray(dropouts.cutout(grey.copy(), holes, 0, rng), dtype=np.uint8)


FILTER: dict[str, Callable[[Grey, float, np.random.Generator], Grey]] = {
    "clahe": _clahe,
    "retinex": _retinex,
    "edges": _edges,
    "sharpen": _sharpen,
    "low_resolution": _low_resolution,
    "blur": _blur,
    "motion_blur": _motion_blur,
    "noise": _noise,
    "coarse_dropout": _coarse_dropout,
}
DISTORTION: dict[str, Callable[[int, float, np.random.Generator], Field]] = {
    "elastic": _elastic,
    "grid_distortion": _grid_distortion,
}
