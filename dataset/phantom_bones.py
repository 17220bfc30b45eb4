"""Bones on the plate: each one's silhouette, the path lengths through its shell and core, and its outline as labels."""

from __future__ import annotations

from functools import cache, lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from dataset.phantom_flesh import Image, Mask
from dataset.phantom_pose import PosedBone
from dataset.phantom_shape import PROFILE, Floats

CORTICAL_PER_MM = 0.094
SPONGY_PER_MM = 0.088
"""Attenuation per mm that bone adds to the flesh it displaces; the spongy one is scaled by the bone's own `spongy`
share. Tuned so that mean and deviation of the pictures come near the competition's, not measured."""

TEXTURE_MM = 96.0
TEXTURE_PIXEL_MM = 0.125
STRANDS = ((1.0, 3.5, 0.9), (0.6, 2.5, 1.0), (4.0, 1.2, 0.45))
"""Trabeculae: spacing in mm, how much longer than wide, weight."""

STRAND_CONTRAST = 0.42

FLAT_CORTEX = 0.6
"""Thickness of the shell towards the viewer against that at the sides: shafts show dark inside bright edges."""


@cache
def _strands() -> Image:
    """A tile of trabecular texture, mean 0 and sigma 1, TEXTURE_PIXEL_MM per pixel, strands along its columns."""
    rng = np.random.default_rng(20)
    count = int(TEXTURE_MM / TEXTURE_PIXEL_MM)
    fy = np.fft.fftfreq(count, TEXTURE_PIXEL_MM)[:, None]
    fx = np.fft.rfftfreq(count, TEXTURE_PIXEL_MM)[None, :]
    total = np.zeros((count, count))
    for period, stretch, weight in STRANDS:
        band = np.exp(-(((np.hypot(fx, fy * stretch) * period - 1.0) / 0.35) ** 2))
        field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((count, count))) * band, (count, count))
        # Zero lines of a band-limited field are thin and branch, as trabeculae do.
        ridges = np.exp(-np.abs(field / field.std()) * 2.4)
        total += weight * (ridges - ridges.mean()) / ridges.std()
    return np.asarray(total / total.std(), np.float32)


def resized(picture: Image, size: int, interpolation: int) -> Image:
    """cv2.resize of a square float picture."""
    return np.asarray(cv2.resize(picture, (size, size), interpolation=interpolation), np.float32)


@lru_cache(maxsize=16)  # hands differ in scale, so sizes never stop coming
def _strands_at(pixel_mm: float) -> tuple[Image, float]:
    """The tile averaged down to about `pixel_mm` per pixel, and its exact pixel."""
    tile = _strands()
    count = min(int(TEXTURE_MM / pixel_mm), len(tile))
    if count < len(tile):
        tile = resized(tile, count, cv2.INTER_AREA)
    return tile, TEXTURE_MM / count


def to_pixels(points: Floats, matrix: Floats, size: int) -> Floats:
    """Plate mm to pixels of a picture of that size, whose first pixel spans 0 to 1."""
    return np.asarray((points @ matrix[:, :2].T + matrix[:, 2]) * size)


def draw_bone(
    bone: PosedBone,
    matrix: Floats,
    size: int,
    factor: int,
    attenuation: Image,
    patches: Image,
    density: float,
    texture: Floats,
) -> list[NDArray[np.int32]]:
    """Add one bone to `attenuation` (size * factor squared) and return its polygons at `size`.

    The chord through the bone at a pixel is that of an ellipse: its depth at this station of the axis times a function
    of the distance to the silhouette's edge. The core is the same with the shell's thickness taken off all around.
    `patches`, like `attenuation` in shape, is what the shell is thicker here and thinner there, mm; `texture` is
    the place in the tile of trabeculae, (2,) in [0, 1).
    """
    fine = size * factor
    points = to_pixels(bone.contour, matrix, fine)
    low = np.maximum(np.floor(points.min(axis=0) / factor).astype(int) - 2, 0) * factor
    high = np.minimum(np.ceil(points.max(axis=0) / factor).astype(int) + 2, size) * factor
    width, height = (int(n) for n in high - low)
    mask = np.zeros((height, width), np.uint8)
    # Pixel centres are at half-integers of this coordinate, fillPoly's at integers.
    cv2.fillPoly(mask, [np.round((points - low - 0.5) * 64).astype(np.int32)], 1, cv2.LINE_8, 6)
    pixel_mm = 1.0 / (float(np.sqrt(abs(np.linalg.det(matrix[:, :2])))) * fine)
    # Pixels outside the picture count as neither inside nor outside, so a bone that leaves it has no edge there.
    inside = np.maximum(cv2.distanceTransform(mask, cv2.DIST_L2, 5) - 0.5, 0.0) * np.float32(pixel_mm)
    origin = to_pixels(bone.origin[None], matrix, fine)[0] - low - 0.5
    axis = (matrix[:, :2] @ bone.axis) * fine
    axis = axis / np.hypot(*axis)
    step = pixel_mm / bone.length * (len(PROFILE) - 1)
    x = ((np.arange(width) - origin[0]) * axis[0] * step).astype(np.float32)
    y = ((np.arange(height) - origin[1]) * axis[1] * step).astype(np.float32)
    station = np.clip(y[:, None] + x[None, :] + 0.5, 0, len(PROFILE) - 1).astype(np.uint8)
    edge, depth, cortex, spongy = (
        np.asarray(values, np.float32)[station] for values in (bone.edge, bone.depth, bone.cortex, bone.spongy)
    )
    cortex = np.maximum(cortex + patches[low[1] : high[1], low[0] : high[0]], 0.1)
    outer = depth * _ellipse(inside / edge)
    core = np.maximum(depth - 2.0 * FLAT_CORTEX * cortex, 0.0) * _ellipse(
        np.maximum(inside - cortex, 0.0) / np.maximum(edge - cortex, 0.4)
    )
    core = np.minimum(core, outer)
    tile, tile_mm = _strands_at(round(pixel_mm, 3))
    turn = np.array([[-axis[1], axis[0]], [axis[0], axis[1]]]) * (pixel_mm / tile_mm)
    strands = cv2.warpAffine(
        tile, np.hstack([turn, texture[:, None] * len(tile)]), (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_WRAP,
    )  # fmt: skip
    grain = np.maximum(1.0 + np.float32(STRAND_CONTRAST) * strands, 0.0)
    added = CORTICAL_PER_MM * (outer - core) + SPONGY_PER_MM * spongy * core * grain
    attenuation[low[1] : high[1], low[0] : high[0]] += np.float32(density) * added * mask
    return _polygons(mask, factor, low // factor)


def _ellipse(depth_share: Image) -> Image:
    """Chord of an ellipse (its largest is 1) at a share of the half width from its edge."""
    return np.sqrt(np.maximum(1.0 - np.square(1.0 - np.minimum(depth_share, 1.0)), 0.0))


def _polygons(mask: Mask, factor: int, offset: NDArray[np.int64]) -> list[NDArray[np.int32]]:
    """Outlines whose cv2.fillPoly gives the pixels that the bone covers by half or more."""
    shape = (mask.shape[1] // factor, mask.shape[0] // factor)
    cover = cv2.resize(mask * np.uint8(255), shape, interpolation=cv2.INTER_AREA)
    for threshold in (127, 63, 0):
        found, _ = cv2.findContours((cover > threshold).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        polygons = [np.asarray(points[:, 0] + offset, np.int32) for points in found if len(points) >= 3]
        if polygons:
            return polygons
    raise AssertionError("a bone covers no pixel")
