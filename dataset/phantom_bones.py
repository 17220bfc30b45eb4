"""Bones on the plate: each one's silhouette, the path lengths through its shell and core, and its outline as labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from dataset.phantom_body import Body
from dataset.phantom_flesh import Image, Mask
from dataset.phantom_outline import PosedBone
from dataset.phantom_shape import PROFILE, Floats

CORTICAL_PER_MM = 0.088
SPONGY_PER_MM = 0.088
"""Attenuation per mm that bone adds to the flesh it displaces; the spongy one is scaled by the bone's own `spongy`
share. Tuned so that mean and deviation of the pictures come near the competition's, not measured."""

TEXTURE_MM = 72.0
TEXTURE_PIXEL_MM = 0.1
STRANDS = ((0.7, 6.0, 1.0), (1.2, 4.0, 0.8), (3.5, 3.0, 0.5))
"""Trabeculae: spacing in mm, how much longer than wide, weight."""

FLAT_CORTEX = 0.66
"""Thickness of the shell towards the viewer against that at the sides: shafts show dark inside bright edges."""


@dataclass(frozen=True)
class Canvas:
    """What bones are drawn on, (size * factor) squared."""

    matrix: Floats
    """2 x 3, plate mm to the unit square."""
    size: int
    """Of the finished picture."""
    factor: int
    attenuation: Image
    patches: Image
    """What shells are thicker here and thinner there, mm."""
    field: Mask | None
    """1 where the plate was exposed; bones are neither seen nor labelled outside."""


@cache
def _strands() -> Image:
    """A tile of trabecular texture, mean 0 and sigma 1, TEXTURE_PIXEL_MM per pixel, strands along its columns."""
    rng = np.random.default_rng(20)
    count = int(TEXTURE_MM / TEXTURE_PIXEL_MM)
    fy = np.fft.fftfreq(count, TEXTURE_PIXEL_MM)[:, None]
    fx = np.fft.rfftfreq(count, TEXTURE_PIXEL_MM)[None, :]
    total = np.zeros((count, count))
    for period, stretch, weight in STRANDS:
        band = np.exp(-(((np.hypot(fx, fy * stretch) * period - 1.0) / 0.45) ** 2))
        field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((count, count))) * band, (count, count))
        # Zero lines of a band-limited field are thin and branch, as trabeculae do.
        ridges = np.exp(-np.abs(field / field.std()) * 2.0)
        total += weight * (ridges - ridges.mean()) / ridges.std()
    return np.asarray(total / total.std(), np.float32)


def resized(picture: Image, size: int, interpolation: int) -> Image:
    """cv2.resize of a square float picture."""
    return np.asarray(cv2.resize(picture, (size, size), interpolation=interpolation), np.float32)


@lru_cache(maxsize=16)  # hands differ in scale, so sizes never stop coming
def _strands_at(pixel_mm: float) -> Image:
    """The tile averaged down to about `pixel_mm` per pixel."""
    tile = _strands()
    count = min(int(TEXTURE_MM / pixel_mm), len(tile))
    return resized(tile, count, cv2.INTER_AREA) if count < len(tile) else tile


def to_pixels(points: Floats, matrix: Floats, size: int) -> Floats:
    """Plate mm to pixels of a picture of that size, whose first pixel spans 0 to 1."""
    return np.asarray((points @ matrix[:, :2].T + matrix[:, 2]) * size)


def draw_bone(bone: PosedBone, canvas: Canvas, body: Body, place: Floats) -> list[NDArray[np.int32]]:
    """Add one bone to the canvas and return its polygons in pixels of the finished picture, none where it is not seen.

    The chord through the bone at a pixel is that of an ellipse: its depth at this station of the axis times a function
    of the distance to the silhouette's edge. The core is the same with the shell's thickness taken off all around.
    `place` is where in the tile of trabeculae it lies, (2,) in [0, 1).
    """
    size, factor, matrix = canvas.size, canvas.factor, canvas.matrix
    points = to_pixels(bone.contour, matrix, size * factor)
    low = np.maximum(np.floor(points.min(axis=0) / factor).astype(int) - 2, 0) * factor
    high = np.minimum(np.ceil(points.max(axis=0) / factor).astype(int) + 2, size) * factor
    width, height = (int(n) for n in high - low)
    if width <= 0 or height <= 0:
        return []
    mask = np.zeros((height, width), np.uint8)
    # Pixel centres are at half-integers of this coordinate, fillPoly's at integers.
    cv2.fillPoly(mask, [np.round((points - low - 0.5) * 64).astype(np.int32)], 1, cv2.LINE_8, 6)
    box = (slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0])))
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2])))) * size * factor
    # Pixels outside the picture count as neither inside nor outside, so a bone that leaves it has no edge there.
    inside = np.asarray(cv2.distanceTransform(mask, cv2.DIST_L2, 5), np.float32)
    if canvas.field is not None:
        mask &= canvas.field[box]
    back = np.linalg.inv(matrix[:, :2] * size * factor)
    frame = np.array([[bone.axis[1], -bone.axis[0]], bone.axis])  # across, along
    first = back @ (low + 0.5 - matrix[:, 2] * size * factor) - bone.origin
    tile = _strands_at(round(1.0 / (scale * body.coarseness), 3))
    _add_bone(
        canvas.attenuation[box], mask, inside, canvas.patches[box], 1.0 / scale, np.column_stack([frame @ back,
        frame @ first]), np.stack([bone.edge, bone.depth, bone.cortex, bone.spongy]), (len(PROFILE) - 1) / bone.length,
        bone.ridges, tile, place * len(tile), len(tile) / (TEXTURE_MM * body.coarseness), body.texture, body.density,
    )  # fmt: skip
    return _polygons(mask, factor, low // factor)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _round(share: float) -> float:
    """Chord of an ellipse (its largest is 1) at a share of the half width from its edge."""
    rest = 1.0 - min(share, 1.0)
    return math.sqrt(1.0 - rest * rest)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _lines(h: float, v: float, ridges: Floats) -> tuple[float, float]:
    """Dense bone in mm that lines add at a place of the bone's frame (mm), and the share of bone that gaps leave."""
    more, left = 0.0, 1.0
    for n in range(len(ridges)):
        across, along, c, s, bow, half, sigma, mm = ridges[n]
        p = (h - across) * c + (v - along) * s
        if abs(p) > 1.5 * half:
            continue
        q = ((v - along) * c - (h - across) * s - bow * p * p) / sigma
        if abs(q) > 3.0:
            continue
        shape = math.exp(-0.5 * q * q - 0.8 * (p / half) ** 4)
        if mm > 0.0:
            more += mm * shape
        else:
            left *= 1.0 + mm * shape
    return more, left


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _add_bone(
    attenuation: Image,
    mask: Mask,
    inside: Image,
    patches: Image,
    pixel_mm: float,
    to_frame: Floats,
    profile: Floats,
    per_mm: float,
    ridges: Floats,
    tile: Image,
    place: Floats,
    per_tile: float,
    contrast: float,
    density: float,
) -> None:
    """One pass over the pixels of a bone. `to_frame` (2 x 3) maps a pixel to mm across and along; `profile` holds edge,
    depth, cortex and spongy share at stations that lie `per_mm` apart; `per_tile` is pixels of the tile a mm."""
    last, side = profile.shape[1] - 1, len(tile)
    for i in range(mask.shape[0]):
        for j in range(mask.shape[1]):
            if mask[i, j] == 0:
                continue
            h = to_frame[0, 0] * j + to_frame[0, 1] * i + to_frame[0, 2]
            v = to_frame[1, 0] * j + to_frame[1, 1] * i + to_frame[1, 2]
            station = min(max(v * per_mm, 0.0), last - 1e-6)
            at = int(station)
            part = station - at
            edge = profile[0, at] + part * (profile[0, at + 1] - profile[0, at])
            depth = profile[1, at] + part * (profile[1, at + 1] - profile[1, at])
            shell = profile[2, at] + part * (profile[2, at + 1] - profile[2, at])
            spongy = profile[3, at] + part * (profile[3, at + 1] - profile[3, at])
            shell = max(shell + patches[i, j], 0.06)
            far = max(inside[i, j] - 0.5, 0.0) * pixel_mm
            outer = depth * _round(far / edge)
            core = max(depth - 2.0 * FLAT_CORTEX * shell, 0.0)
            core *= _round(max(far - shell, 0.0) / max(edge - shell, 0.4))
            core = min(core, outer)
            more, left = _lines(h, v, ridges)
            x, y = h * per_tile + place[0], v * per_tile + place[1]
            x0, y0 = math.floor(x), math.floor(y)
            x, y = x - x0, y - y0
            a, b, c, d = int(x0) % side, int(x0 + 1) % side, int(y0) % side, int(y0 + 1) % side
            strand = (tile[c, a] * (1 - x) + tile[c, b] * x) * (1 - y) + (tile[d, a] * (1 - x) + tile[d, b] * x) * y
            grain = max(1.0 + contrast * strand, 0.0)
            compact = outer - core + more * min(outer / 3.0, 1.0)
            attenuation[i, j] += density * left * (CORTICAL_PER_MM * compact + SPONGY_PER_MM * spongy * core * grain)


def _polygons(mask: Mask, factor: int, offset: NDArray[np.int64]) -> list[NDArray[np.int32]]:
    """Outlines whose cv2.fillPoly gives the pixels that the bone covers by half or more."""
    shape = (mask.shape[1] // factor, mask.shape[0] // factor)
    cover = cv2.resize(mask * np.uint8(255), shape, interpolation=cv2.INTER_AREA)
    for threshold in (127, 63, 0):
        found, _ = cv2.findContours((cover > threshold).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        polygons = [np.asarray(points[:, 0] + offset, np.int32) for points in found if len(points) >= 3]
        if polygons:
            return polygons
    return []
