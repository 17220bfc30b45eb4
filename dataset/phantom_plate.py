"""From path lengths to a radiograph: framing, scatter, noise, window, collimation, side marker, ring."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dataset.phantom_bones import draw_bone, resized, to_pixels
from dataset.phantom_flesh import Image, flesh_path
from dataset.phantom_pose import PosedHand
from dataset.phantom_shape import Floats

FINE = 768
"""Bones are drawn on at least this many pixels and averaged down: cortices are thinner than a coarse pixel."""

UNEVEN, UNEVEN_MM = 56, 0.1
"""Shells differ in thickness from place to place: knots per side of the picture (5 mm), sigma."""

FLESH_PER_MM = 0.0185
"""Attenuation of flesh; tuned like CORTICAL_PER_MM."""

MOTTLE, MOTTLE_KNOTS = 0.03, (24, 60)
"""Flesh is uneven (fat, tendons, vessels): sigma as a share of its attenuation, knots per side of the picture."""

FLESH_PIXELS = 512
"""Flesh is drawn at this size, or twice that for larger pictures: it is smooth, and nobody labels it."""

SHARPEN_MM = 0.7

FRAME_MM = 274.0
"""Side of the picture at the plate, so that bone areas come near the competition's (docs/data.md)."""

PIXELS_OF_NOISE = 512
"""Size at which Taking.noise is meant: a larger picture has fewer quanta per pixel."""


@dataclass(frozen=True)
class Chances:
    """(low, high) of uniform draws, sigmas of normal ones, and probabilities. Chosen by eye, as Ranges are."""

    scale_sigma: float = 0.03
    shift_sigma: float = 0.025
    """Sideways, share of the picture."""
    top: tuple[float, float] = (0.05, 0.115)
    """Space above the longest finger, share of the picture."""
    gain: tuple[float, float] = (0.85, 1.3)
    knee: tuple[float, float] = (0.5, 1.2)
    base: tuple[float, float] = (0.0, 0.05)
    """Window: shown = base + gain * a / (1 + knee * a) of [0, 1], a the attenuation: the wrist must not saturate."""
    scatter: tuple[float, float] = (0.04, 0.15)
    """Share of the beam that arrives as veil, and its reach."""
    scatter_mm: tuple[float, float] = (8.0, 20.0)
    edge: tuple[float, float] = (0.0, 0.4)
    """Strength of the console's coarse edge enhancement (8 mm), which darkens the surroundings of the hand."""
    sharpen: tuple[float, float] = (0.1, 0.9)
    """Strength of its fine one (0.7 mm), which brings out trabeculae and the edges of shells."""
    noise: tuple[float, float] = (0.003, 0.011)
    blur_mm: tuple[float, float] = (0.07, 0.2)
    """Focal spot and detector."""
    collimated: float = 0.55
    bright_border: float = 0.3
    """Of the collimated: the edge shows as a bright line."""
    veiled_outside: float = 0.25
    """Of the collimated: the console leaves the unexposed rim grey, not black."""
    plate_degrees: float = 1.2
    marker: float = 0.8
    ring: float = 0.05


CHANCES = Chances()


@dataclass(frozen=True)
class Taking:
    """How one picture was taken and windowed. `matrix` maps plate mm to the unit square (x right, y down)."""

    matrix: Floats
    gain: float
    knee: float
    base: float
    scatter: float
    scatter_mm: float
    edge: float
    sharpen: float
    noise: float
    blur_mm: float
    field: Floats | None
    """Corners of the collimated field in the unit square."""
    outside: float
    """Brightness outside of it."""
    border: float
    """Brightness of the line along its edge; 0 for none."""
    marker: tuple[str, Floats, float, float, bool] | None
    """Text, place in the unit square, height (share), degrees, on a disc."""
    ring: tuple[Floats, Floats, float] | None
    """Place and finger direction in plate mm, half width in mm."""


def draw_taking(hand: PosedHand, side: str, rng: np.random.Generator) -> Taking:
    """Draw framing, window and accessories; `side` "L" mirrors the hand."""
    scale = rng.normal(1.0, CHANCES.scale_sigma) / FRAME_MM
    tips = np.vstack([bone.contour for name, bone in hand.bones.items() if name not in ("Radius", "Ulna")])
    low, high = tips.min(axis=0) - 9.0, tips.max(axis=0) + 5.0
    scale = min(scale, 0.92 / (high[0] - low[0] + 4.0), 0.82 / (high[1] - low[1]))
    centre = 0.5 + rng.normal(0.0, CHANCES.shift_sigma) - scale * (low[0] + high[0]) / 2
    centre += max(0.03 - (centre + scale * low[0]), 0.0) - max(centre + scale * high[0] - 0.97, 0.0)
    top = rng.uniform(*CHANCES.top) + scale * high[1]
    matrix = np.array([[scale, 0.0, centre], [0.0, -scale, top]])
    if side == "L":
        matrix[0] = (-scale, 0.0, 1.0 - centre)
    bones = to_pixels(tips, matrix, 1)
    return Taking(
        matrix=matrix,
        gain=rng.uniform(*CHANCES.gain),
        knee=rng.uniform(*CHANCES.knee),
        base=rng.uniform(*CHANCES.base),
        scatter=rng.uniform(*CHANCES.scatter),
        scatter_mm=rng.uniform(*CHANCES.scatter_mm),
        edge=rng.uniform(*CHANCES.edge),
        sharpen=rng.uniform(*CHANCES.sharpen),
        noise=rng.uniform(*CHANCES.noise),
        blur_mm=rng.uniform(*CHANCES.blur_mm),
        field=_draw_field(bones, rng),
        outside=float(rng.uniform(0.0, 0.25)) if rng.random() < CHANCES.veiled_outside else 0.0,
        border=float(rng.uniform(0.3, 0.9)) if rng.random() < CHANCES.bright_border else 0.0,
        marker=_draw_marker(bones, side, rng),
        ring=_draw_ring(hand, rng),
    )


def _draw_field(bones: Floats, rng: np.random.Generator) -> Floats | None:
    """Collimation never covers a bone; at the bottom the forearm leaves the picture, so there is none."""
    margin = rng.uniform(0.0, 0.07, 3)
    degrees = rng.normal(0.0, CHANCES.plate_degrees)
    if rng.random() >= CHANCES.collimated:
        return None
    left = min(margin[0], bones[:, 0].min() - 0.04)
    right = max(1.0 - margin[1], bones[:, 0].max() + 0.04)
    top = min(margin[2], bones[:, 1].min() - 0.04)
    corners = np.array([[left, top], [right, top], [right, 1.2], [left, 1.2]])
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.asarray((corners - 0.5) @ np.array([[c, -s], [s, c]]) + 0.5)


def _draw_marker(bones: Floats, side: str, rng: np.random.Generator) -> tuple[str, Floats, float, float, bool] | None:
    """A place that no bone comes near; none is drawn where a few tries find no such place."""
    height, degrees, disc = rng.uniform(0.025, 0.05), rng.normal(0.0, 12.0), rng.random() < 0.4
    places = rng.random((16, 2)) * np.array([0.84, 0.86]) + np.array([0.08, 0.07])
    if rng.random() >= CHANCES.marker:
        return None
    for place in places:
        if np.hypot(*(bones - place).T).min() > 0.12 and (place[1] < 0.6 or abs(place[0] - 0.5) > 0.32):
            return side, place, height, degrees, disc
    return None


def _draw_ring(hand: PosedHand, rng: np.random.Generator) -> tuple[Floats, Floats, float] | None:
    joints = hand.chains[rng.choice([2, 3, 3, 3, 4])]
    at = rng.uniform(0.3, 0.6)
    if rng.random() >= CHANCES.ring:
        return None
    return joints[1] * (1 - at) + joints[2] * at, joints[2] - joints[1], 8.6 * hand.body.flesh * hand.body.size


def radiograph(
    hand: PosedHand, taking: Taking, size: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], dict[str, list[NDArray[np.int32]]]]:
    """The picture and the polygons of its bones."""
    factor = max(1, round(FINE / size + 0.45))
    bones = np.zeros((size * factor, size * factor), np.float32)
    offsets = rng.random((len(hand.bones) + len(hand.extras), 2))
    uneven = rng.standard_normal((UNEVEN, UNEVEN), np.float32) * np.float32(UNEVEN_MM)
    patches = resized(uneven, size * factor, cv2.INTER_LINEAR)
    polygons = {
        name: draw_bone(bone, taking.matrix, size, factor, bones, patches, hand.body.density, offsets[number])
        for number, (name, bone) in enumerate(hand.bones.items())
    }
    for bone, offset in zip(hand.extras, offsets[len(hand.bones) :], strict=True):
        draw_bone(bone, taking.matrix, size, factor, bones, patches, hand.body.density, offset)
    if taking.ring:
        _add_ring(bones, taking)
    mottle = np.zeros((FLESH_PIXELS // 2, FLESH_PIXELS // 2), np.float32)
    for knots in MOTTLE_KNOTS:
        field = rng.standard_normal((knots, knots), np.float32) * np.float32(MOTTLE)
        mottle += resized(field, len(mottle), cv2.INTER_CUBIC)
    coarse = FLESH_PIXELS if size <= FLESH_PIXELS else 2 * FLESH_PIXELS
    flesh = flesh_path(hand, taking.matrix * coarse, coarse) * np.float32(FLESH_PER_MM)
    flesh *= np.float32(1.0) + resized(mottle, coarse, cv2.INTER_LINEAR)
    total = resized(flesh, size, cv2.INTER_CUBIC if size > coarse else cv2.INTER_AREA)
    total += resized(bones, size, cv2.INTER_AREA)
    return _windowed(total, taking, rng), polygons


def _add_ring(bones: Image, taking: Taking) -> None:
    """Gold: nothing passes. A ring seen nearly from its side."""
    assert taking.ring is not None
    place, finger, half = taking.ring
    size = len(bones)
    scale = float(np.sqrt(abs(np.linalg.det(taking.matrix[:, :2])))) * size
    centre = to_pixels(place[None], taking.matrix, size)[0]
    along = taking.matrix[:, :2] @ finger
    angle = float(np.rad2deg(np.arctan2(along[1], along[0])) + 90.0)
    metal = np.zeros(bones.shape, np.uint8)
    axes = (round(half * scale), round(1.4 * scale))
    cv2.ellipse(metal, (round(centre[0]), round(centre[1])), axes, angle, 0, 360, 1, max(round(2.0 * scale), 1))
    bones += np.float32(3.0) * metal


def _coarse_blur(picture: Image, sigma_share: float) -> Image:
    """A wide Gaussian blur (sigma as a share of the side), done on 128 x 128: nothing finer is left anyway."""
    small = cv2.GaussianBlur(resized(picture, 128, cv2.INTER_AREA), (0, 0), sigma_share * 128)
    return resized(np.asarray(small, np.float32), len(picture), cv2.INTER_LINEAR)


def _windowed(total: Image, taking: Taking, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Attenuation to grey levels."""
    size = len(total)
    share_per_mm = float(np.sqrt(abs(np.linalg.det(taking.matrix[:, :2]))))
    blur = taking.blur_mm * share_per_mm * size
    if blur > 0.3:
        total = np.asarray(cv2.GaussianBlur(total, (0, 0), blur), np.float32)
    fine = SHARPEN_MM * share_per_mm * size
    if fine > 0.3:
        total += np.float32(taking.sharpen) * (total - np.asarray(cv2.GaussianBlur(total, (0, 0), fine), np.float32))
    beam = np.exp(-total)
    veil = np.float32(taking.scatter)
    beam = (beam + veil * _coarse_blur(beam, taking.scatter_mm * share_per_mm)) / (np.float32(1.0) + veil)
    grain = rng.standard_normal((size, size), np.float32)
    beam += grain * np.sqrt(beam) * np.float32(taking.noise * np.sqrt(size / PIXELS_OF_NOISE))
    signal = -np.log(np.maximum(beam, 1e-3))
    signal += np.float32(taking.edge) * (signal - _coarse_blur(signal, 8.0 * share_per_mm))
    signal = np.maximum(signal, 0.0)
    shown = np.float32(taking.base) + np.float32(taking.gain) * signal / (1.0 + np.float32(taking.knee) * signal)
    if taking.marker:
        _add_marker(shown, taking)
    if taking.field is not None:
        _collimate(shown, taking)
    return np.asarray(np.clip(shown * 255.0 + 0.5, 0, 255), np.uint8)


def _add_marker(shown: Image, taking: Taking) -> None:
    """A lead letter: white, plain or on a grey disc, in a small patch of its own."""
    assert taking.marker is not None
    text, place, height, degrees, disc = taking.marker
    size = len(shown)
    side = max(int(height * size * 3), 8)
    drawn = np.zeros((192, 192), np.uint8)
    if disc:
        cv2.circle(drawn, (96, 96), 62, 60, -1, cv2.LINE_AA)
    cv2.putText(drawn, text, (96 - 32, 96 + 34), cv2.FONT_HERSHEY_DUPLEX, 3.2, 240, 11, cv2.LINE_AA)
    turn = cv2.getRotationMatrix2D((96, 96), degrees, 1.0)
    letter = resized(np.asarray(cv2.warpAffine(drawn, turn, (192, 192)), np.float32), side, cv2.INTER_AREA)
    x, y = (int(np.clip(round(c * size) - side // 2, 0, size - side)) for c in place)
    patch = shown[y : y + side, x : x + side]
    np.maximum(patch, letter / np.float32(255.0), out=patch)


def _collimate(shown: Image, taking: Taking) -> None:
    """Outside of the field nothing was exposed; its rim may stay bright."""
    assert taking.field is not None
    size = len(shown)
    corners = [np.round(taking.field * size * 16).astype(np.int32)]
    field = np.zeros(shown.shape, np.uint8)
    cv2.fillPoly(field, corners, 255, cv2.LINE_AA, 4)
    rim = max(size / 512, 0.5)
    share = cv2.GaussianBlur(field, (0, 0), rim).astype(np.float32) / np.float32(255.0)
    shown *= share
    shown += np.float32(taking.outside) * (np.float32(1.0) - share)
    if taking.border:
        line = np.zeros(shown.shape, np.uint8)
        cv2.polylines(line, corners, True, 255, max(round(2 * rim), 1), cv2.LINE_AA, 4)
        shown += cv2.GaussianBlur(line, (0, 0), 2 * rim).astype(np.float32) * np.float32(taking.border / 255.0)
