"""How like a radiograph a phantom is, as numbers: tones, noise, edges of the cortex, texture, spectrum.

Two landmarks place and scale all measures, so that a radiograph without labels can be measured as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from config import ConfigProblem
from dataset.phantom_draw import Phantom, draw_phantom

Floats = NDArray[np.float64]

METACARPAL_MM = 65.0
"""Length of a third metacarpal, which gives the scale."""

PIXELS_PER_MM = 6.0
"""Everything is measured at this resolution."""

BANDS_MM = ((0.5, 1.0), (1.0, 2.0), (2.0, 4.0))
"""Wavelengths of texture, mm."""

SPONGY_MM = 10.0
"""Side of the square of spongy bone."""

UNITS = {
    "mean": "of white", "deviation": "of white", "5 %": "of white", "50 %": "of white", "95 %": "of white",
    "99 %": "of white", "ground": "of white", "noise": "of white", "bone above flesh": "of white",
    "medulla": "of the cortex, above flesh", "rise of the edge": "mm, 10 to 90 %", "cortex": "of the shaft's width",
    **{f"texture {low:g}-{high:g} mm": "sigma of mean" for low, high in BANDS_MM}, "streaks": "gradient across : along",
    "local contrast": "sigma of mean, 1-8 mm", "spectrum": "exponent, 0.1-1.5 / mm",
}  # fmt: skip
"""Measure -> its unit."""


@dataclass(frozen=True)
class Landmarks:
    """Places in an image, pixels as x, y."""

    base: Floats
    """Of the third metacarpal: middle of its proximal end."""
    head: Floats
    """Its distal end."""
    radius: Floats
    """In the spongy bone of the distal radius, 10 to 15 mm below the joint."""


def landmarks_of(phantom: Phantom) -> Landmarks | None:
    """From the labels; None where a bone is cut off."""
    if not (phantom.polygons["finger-11"] and phantom.polygons["Radius"] and phantom.polygons["finger-10"]):
        return None
    bone = np.vstack(phantom.polygons["finger-11"]).astype(np.float64)
    towards = np.vstack(phantom.polygons["finger-10"]).mean(axis=0) - bone.mean(axis=0)
    towards /= np.hypot(*towards)
    along = bone @ towards
    middle = bone.mean(axis=0)
    base, head = (middle + (end - middle @ towards) * towards for end in (along.min(), along.max()))
    mm = np.hypot(*(head - base)) / METACARPAL_MM
    mask = cv2.fillPoly(np.zeros(phantom.image.shape, np.uint8), phantom.polygons["Radius"], 1)
    rows, columns = np.nonzero(mask)
    down = -(np.stack([columns, rows], axis=1) @ towards) / mm
    near = (down > down.min() + 10) & (down < down.min() + 17)
    if not near.any():
        return None
    return Landmarks(base, head, np.array([columns[near].mean(), rows[near].mean()]))


def measure(image: NDArray[np.uint8], landmarks: Landmarks) -> dict[str, float]:
    """The measures of UNITS.

    Args:
        image: (H, W).
        landmarks: in its pixels.

    Raises:
        ConfigProblem: a landmark lies outside the image.
    """
    for name, place in vars(landmarks).items():
        if not ((place >= 0) & (place < image.shape[::-1])).all():
            size = f"{image.shape[1]} x {image.shape[0]}"
            raise ConfigProblem(f"{name} is {place.tolist()}, which lies outside the {size} image: give a place in it.")
    shown = image.astype(np.float32) / np.float32(255)
    levels = np.percentile(shown, (5, 50, 95, 99))
    found = {"mean": float(shown.mean()), "deviation": float(shown.std())}
    found |= {f"{share} %": float(level) for share, level in zip((5, 50, 95, 99), levels, strict=True)}
    found |= _ground(shown)
    scale = PIXELS_PER_MM * METACARPAL_MM / np.hypot(*(landmarks.head - landmarks.base))
    return found | _edges(shown, landmarks, scale) | _texture(shown, landmarks, scale) | _palm(shown, landmarks, scale)


def _upright(shown: NDArray[np.float32], middle: Floats, landmarks: Landmarks, scale: float, mm: float) -> Floats:
    """A square of `mm` around a place, the metacarpal upright, at PIXELS_PER_MM."""
    x, y = (landmarks.head - landmarks.base) / np.hypot(*(landmarks.head - landmarks.base))
    side = round(mm * PIXELS_PER_MM)
    turn = np.array([[-y, x], [-x, -y]]) * scale  # the bone's direction comes to point up
    matrix = np.column_stack([turn, side / 2 - turn @ middle])
    flags = cv2.INTER_AREA if scale < 0.7 else cv2.INTER_LINEAR
    return np.asarray(cv2.warpAffine(shown, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT), float)


def _ground(shown: NDArray[np.float32]) -> dict[str, float]:
    """Grey level and noise of the flattest twentieth of the blocks that are not black or white, noise after Immerkaer
    1996 (Laplacian difference)."""
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    rough = np.abs(cv2.filter2D(shown, -1, kernel)) * np.float32(np.sqrt(np.pi / 2) / 6)
    side = 32
    h, w = (n // side * side for n in shown.shape)
    blocks, noise = (
        a[:h, :w].reshape(h // side, side, w // side, side).mean(axis=(1, 3)) for a in (shown, rough)
    )
    lit = (blocks > 0.01) & (blocks < 0.95) & (noise > 0)
    if not lit.any():
        return {"ground": float(shown.min()), "noise": 0.0}
    dark = lit & (blocks <= np.percentile(blocks[lit], 40))
    return {"ground": float(np.median(blocks[dark])), "noise": float(np.median(noise[dark]))}


def _edges(shown: NDArray[np.float32], landmarks: Landmarks, scale: float) -> dict[str, float]:
    """Across the metacarpal's middle: how bright its cortex is, how dark the medulla, how steep the edge."""
    middle = (landmarks.base + landmarks.head) / 2
    square = _upright(shown, middle, landmarks, scale, 22.0)
    lines = square[len(square) * 4 // 10 : len(square) * 6 // 10]
    line = cv2.GaussianBlur(lines.mean(axis=0, keepdims=True), (0, 0), 0.8).ravel()
    centre, reach = len(line) // 2, round(6.5 * PIXELS_PER_MM)
    left = centre - reach + int(np.argmax(line[centre - reach : centre]))
    right = centre + int(np.argmax(line[centre : centre + reach]))
    peak = (line[left] + line[right]) / 2
    flesh = (line[max(left - 24, 0) : left].min() + line[right : right + 24].min()) / 2
    medulla = float(line[left : right + 1].min())
    height = max(peak - flesh, 1e-6)
    outer = np.flatnonzero(line[:left] < flesh + 0.5 * height)
    outer_right = np.flatnonzero(line[right:] < flesh + 0.5 * height)
    first = int(outer[-1]) if len(outer) else 0
    last = right + int(outer_right[0]) if len(outer_right) else len(line) - 1
    inner = line[left:right] < (peak + medulla) / 2
    rises = [_rise(line[: left + 1], flesh, height), _rise(line[right:][::-1], flesh, height)]
    width = max(last - first, 1)
    return {
        "bone above flesh": float(height),
        "medulla": (medulla - flesh) / height,
        "rise of the edge": float(np.mean(rises)) / PIXELS_PER_MM,
        "cortex": 1.0 - float(inner.sum()) / width,
    }


def _rise(line: Floats, flesh: float, height: float) -> float:
    """Pixels from the last place below 10 % to the first above 90 % after it."""
    below = np.flatnonzero(line < flesh + 0.1 * height)
    start = int(below[-1]) if len(below) else 0
    above = np.flatnonzero(line[start:] > flesh + 0.9 * height)
    return float(above[0]) if len(above) else float(len(line) - start)


def _texture(shown: NDArray[np.float32], landmarks: Landmarks, scale: float) -> dict[str, float]:
    """Of spongy bone: strength by wavelength, and how much stronger it varies across the bone than along it."""
    square = _upright(shown, landmarks.radius, landmarks, scale, SPONGY_MM)
    mean = max(float(square.mean()), 1e-6)
    found = {f"texture {low:g}-{high:g} mm": float(_band(square, low, high).std()) / mean for low, high in BANDS_MM}
    fine = _band(square, 0.5, 2.0)
    across, along = (float(np.abs(np.diff(fine, axis=axis)).mean()) for axis in (1, 0))
    return found | {"streaks": across / max(along, 1e-9)}


def _band(square: Floats, low_mm: float, high_mm: float) -> Floats:
    """Difference of Gaussians that passes about these wavelengths."""
    fine, coarse = (
        cv2.GaussianBlur(square, (0, 0), max(mm * PIXELS_PER_MM / (2 * np.pi), 0.3)) for mm in (low_mm, high_mm)
    )
    return np.asarray(fine - coarse, float)


def _palm(shown: NDArray[np.float32], landmarks: Landmarks, scale: float) -> dict[str, float]:
    """Of the square around the metacarpals: contrast and the exponent of the power spectrum."""
    square = _upright(shown, (landmarks.base + landmarks.head) / 2, landmarks, scale, METACARPAL_MM)
    window = np.hanning(len(square))
    power = np.abs(np.fft.fft2((square - square.mean()) * window * window[:, None])) ** 2
    axis = np.fft.fftfreq(len(square), 1 / PIXELS_PER_MM)
    frequency = np.hypot(axis, axis[:, None])
    edges = np.geomspace(0.1, 1.5, 12)
    rings = [power[(frequency >= a) & (frequency < b)].mean() for a, b in pairwise(edges)]
    slope = np.polyfit(np.log(np.sqrt(edges[:-1] * edges[1:])), np.log(np.maximum(rings, 1e-12)), 1)[0]
    contrast = float(_band(square, 1.0, 8.0).std() / max(square.mean(), 1e-6))
    return {"local contrast": contrast, "spectrum": float(slope)}


def measure_phantoms(style: str, count: int, size: int, seed: int) -> dict[str, Floats]:
    """The measures of `count` phantoms of a style, those left out whose landmarks are cut off."""
    rows = []
    for subject in range(count):
        phantom = draw_phantom(seed, subject, "LR"[subject % 2], size, False, (style,))
        landmarks = landmarks_of(phantom)
        if landmarks is not None:
            rows.append(measure(phantom.image, landmarks))
    return {name: np.array([row[name] for row in rows]) for name in UNITS}


def table(radiograph: dict[str, float], phantoms: dict[str, dict[str, Floats]]) -> str:
    """Markdown: one row a measure; the radiograph, then median and 5 to 95 % range of each style, bold where the
    radiograph lies in it."""
    lines = ["| measure | radiograph | " + " | ".join(phantoms) + " |", "| --- " * (len(phantoms) + 2) + "|"]
    for name, unit in UNITS.items():
        cells = [_cell(found[name], radiograph[name]) for found in phantoms.values()]
        lines.append(f"| {name} ({unit}) | {_short(radiograph[name])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float] | Floats, radiograph: float) -> str:
    low, middle, high = np.percentile(values, (5, 50, 95))
    text = f"{_short(middle)} ({_short(low)} to {_short(high)})"
    return f"**{text}**" if low <= radiograph <= high else text


def _short(value: float) -> str:
    return f"{value:.3g}"
