"""From path lengths to a radiograph: beam, scatter, noise, window, collimation, and what lies on the plate."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dataset.phantom_bones import Canvas, draw_bone, resized, to_pixels
from dataset.phantom_flesh import Image, Mask, flesh_path
from dataset.phantom_pose import PosedHand
from dataset.phantom_taking import Metal, Taking, Text

FINE = 768
"""Bones are drawn on at least this many pixels and averaged down: cortices are thinner than a coarse pixel."""

UNEVEN, UNEVEN_MM = 56, 0.1
"""Shells differ in thickness from place to place: knots per side of the picture (5 mm), sigma."""

FLESH_PER_MM = 0.0185
"""Attenuation of flesh; tuned like CORTICAL_PER_MM."""

METAL = 3.0
"""Attenuation of metal: nothing passes."""

MOTTLE, MOTTLE_KNOTS = 0.03, (24, 60)
"""Flesh is uneven (fat, tendons, vessels): sigma as a share of its attenuation, knots per side of the picture."""

FLESH_PIXELS = 512
"""Flesh is drawn at this size, or twice that for larger pictures: it is smooth, and nobody labels it."""

SHARPEN_MM = 0.7

PIXELS_OF_NOISE = 512
"""Size at which Taking.noise is meant: a larger picture has fewer quanta per pixel."""

SPECKS = 12


def radiograph(
    hand: PosedHand, taking: Taking, size: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], dict[str, list[NDArray[np.int32]]]]:
    """The picture and the polygons of its bones."""
    factor = max(1, round(FINE / size + 0.45))
    offsets = rng.random((len(hand.bones) + len(hand.extras), 2))
    uneven = rng.standard_normal((UNEVEN, UNEVEN), np.float32) * np.float32(UNEVEN_MM)
    patches = resized(uneven, size * factor, cv2.INTER_LINEAR)
    bones = np.zeros_like(patches)
    field = None if taking.field is None else _filled(taking, size * factor, 1, cv2.LINE_8)
    canvas = Canvas(taking.matrix, size, factor, bones, patches, field)
    polygons = {
        name: draw_bone(bone, canvas, hand.body, offsets[number])
        for number, (name, bone) in enumerate(hand.bones.items())
    }
    for bone, offset in zip(hand.extras, offsets[len(hand.bones) :], strict=True):
        draw_bone(bone, canvas, hand.body, offset)
    for metal in taking.metals:
        _add_metal(bones, metal, taking)
    mottle = np.zeros((FLESH_PIXELS // 2, FLESH_PIXELS // 2), np.float32)
    for knots in MOTTLE_KNOTS:
        uneven = rng.standard_normal((knots, knots), np.float32) * np.float32(MOTTLE)
        mottle += resized(uneven, len(mottle), cv2.INTER_CUBIC)
    coarse = FLESH_PIXELS if size <= FLESH_PIXELS else 2 * FLESH_PIXELS
    flesh = flesh_path(hand, taking.matrix * coarse, coarse) * np.float32(FLESH_PER_MM)
    flesh *= np.float32(1.0) + resized(mottle, coarse, cv2.INTER_LINEAR)
    total = resized(flesh, size, cv2.INTER_CUBIC if size > coarse else cv2.INTER_AREA)
    total += resized(bones, size, cv2.INTER_AREA)
    return _shown(_detected(total, taking, rng), taking), polygons


def _filled(taking: Taking, size: int, value: int, line: int) -> Mask:
    """The collimated field."""
    assert taking.field is not None
    field = np.zeros((size, size), np.uint8)
    cv2.fillPoly(field, [np.round(taking.field * size * 16).astype(np.int32)], value, line, 4)
    return field


def _share_per_mm(taking: Taking) -> float:
    """Shares of the picture a millimetre at the plate."""
    return float(np.sqrt(abs(np.linalg.det(taking.matrix[:, :2]))))


def _add_metal(bones: Image, metal: Metal, taking: Taking) -> None:
    size = len(bones)
    scale = _share_per_mm(taking) * size
    x, y = to_pixels(metal.middle[None], taking.matrix, size)[0]
    along = taking.matrix[:, :2] @ metal.along
    degrees = float(np.rad2deg(np.arctan2(along[1], along[0])) + 90.0)
    across, long = (half * scale for half in metal.half_mm)
    line = max(round(metal.line_mm * scale), 1)
    drawn = np.zeros(bones.shape, np.uint8)
    if metal.solid:
        corners = cv2.boxPoints(((float(x), float(y)), (2 * across, 2 * long), degrees))
        cv2.fillPoly(drawn, [np.round(corners).astype(np.int32)], 1)
    else:
        cv2.ellipse(drawn, (round(x), round(y)), (round(across), round(long)), degrees, 0, 360, 1, line)
    bones += np.float32(METAL) * drawn


def _coarse_blur(picture: Image, sigma_share: float) -> Image:
    """A wide Gaussian blur (sigma as a share of the side), done on 128 x 128: nothing finer is left anyway."""
    small = cv2.GaussianBlur(resized(picture, 128, cv2.INTER_AREA), (0, 0), sigma_share * 128)
    return resized(np.asarray(small, np.float32), len(picture), cv2.INTER_LINEAR)


def _blurred(picture: Image, sigma: float) -> Image:
    """Sigma in pixels; what is too small to matter costs nothing."""
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.float32) if sigma > 0.3 else picture


def _detected(total: Image, taking: Taking, rng: np.random.Generator) -> Image:
    """Attenuation as the detector and its console report it: blurred, veiled, noisy, sharpened; air is about 0."""
    size, share_per_mm = len(total), _share_per_mm(taking)
    total = _blurred(total, taking.blur_mm * share_per_mm * size)
    fine = SHARPEN_MM * share_per_mm * size
    if fine > 0.3:
        total = total + np.float32(taking.sharpen) * (total - _blurred(total, fine))
    if taking.ramp.any():
        at = np.linspace(0.0, 1.0, size, dtype=np.float32)
        rise = np.abs(taking.ramp).astype(np.float32)
        total += rise[0] * (at if taking.ramp[0] > 0 else at[::-1])
        total += rise[1] * (at if taking.ramp[1] > 0 else at[::-1])[:, None]
    beam = np.exp(-total)
    veil = np.float32(taking.scatter)
    beam = (beam + veil * _coarse_blur(beam, taking.scatter_mm * share_per_mm)) / (np.float32(1.0) + veil)
    grain = rng.standard_normal((size, size), np.float32)
    sigma = taking.grain_mm * share_per_mm * size
    if sigma > 0.3:
        grain = _blurred(grain, sigma) * np.float32(max(2.0 * np.sqrt(np.pi) * sigma, 1.0))  # as strong as before
    beam += grain * np.sqrt(beam) * np.float32(taking.noise * np.sqrt(size / PIXELS_OF_NOISE))
    signal = -np.log(np.maximum(beam, 1e-3))
    signal += np.float32(taking.edge) * (signal - _coarse_blur(signal, taking.edge_mm * share_per_mm))
    return np.asarray(signal, np.float32)


def _shown(signal: Image, taking: Taking) -> NDArray[np.uint8]:
    """Grey levels of an attenuation, in its frame and with what lies on the plate."""
    shown = np.float32(taking.base) + np.float32(taking.gain) * signal / (
        1.0 + np.float32(taking.knee) * np.maximum(signal, 0.0)
    )
    if taking.film:
        straight = np.clip(shown, 0.0, 1.0)
        curved = straight * straight * (3.0 - 2.0 * straight)
        shown = straight + np.float32(taking.film) * (curved - straight)
    for text in taking.texts:
        _add_text(shown, text)
    if taking.dust:
        _add_dust(shown, taking.dust)
    _add_glare(shown, taking)
    if taking.field is not None:
        _collimate(shown, taking)
    return np.asarray(np.clip(shown * 255.0 + 0.5, 0, 255), np.uint8)


def _add_text(shown: Image, text: Text) -> None:
    """White letters, plain or on a grey disc, in a small patch of their own."""
    size = len(shown)
    width = 192 if len(text.words) == 1 else 70 * len(text.words) + 40
    drawn = np.zeros((192, width), np.uint8)
    if text.disc:
        cv2.circle(drawn, (96, 96), 62, 60, -1, cv2.LINE_AA)
    level = round(255 * text.level)
    cv2.putText(drawn, text.words, (96 - 32, 96 + 34), cv2.FONT_HERSHEY_DUPLEX, 3.2, level, 11, cv2.LINE_AA)
    turn = cv2.getRotationMatrix2D((width / 2, 96), text.degrees, 1.0)
    drawn = np.asarray(cv2.warpAffine(drawn, turn, (width, 192)), np.uint8)
    tall = max(int(text.height * size * 3), 8)
    wide = min(tall * width // 192, size)
    letters = cv2.resize(drawn.astype(np.float32), (wide, tall), interpolation=cv2.INTER_AREA)
    x = int(np.clip(round(text.place[0] * size) - wide // 2, 0, size - wide))
    y = int(np.clip(round(text.place[1] * size) - tall // 2, 0, size - tall))
    patch = shown[y : y + tall, x : x + wide]
    np.maximum(patch, letters / np.float32(255.0), out=patch)


def _add_dust(shown: Image, seed: int) -> None:
    """Bright specks and thin scratches of a film."""
    rng = np.random.default_rng(seed)
    size = len(shown)
    drawn = np.zeros(shown.shape, np.uint8)
    for x, y, reach, angle, level in rng.random((SPECKS, 5)):
        start = np.array([x, y]) * size
        end = start + (0.004 if level < 0.7 else 0.15 * reach) * size * np.array([np.cos(6 * angle), np.sin(6 * angle)])
        points = np.round(np.stack([start, end]) * 16).astype(np.int32)
        cv2.polylines(drawn, [points], False, int(60 + 120 * level), max(round(size / 1024), 1), cv2.LINE_AA, 4)
    shown += drawn.astype(np.float32) / np.float32(512.0)


def _add_glare(shown: Image, taking: Taking) -> None:
    """Bright soft bands along the edges."""
    size, scale = len(shown), _share_per_mm(taking)
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]) if taking.field is None else taking.field
    at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    for number, (level, width_mm) in enumerate(taking.glare):
        if not level:
            continue
        first, second = corners[number], corners[(number + 1) % 4]
        inwards = np.array([first[1] - second[1], second[0] - first[0]]) / np.hypot(*(second - first))
        reach = np.float32(1.0 / (scale * width_mm))
        x = (at - np.float32(first[0])) * np.float32(inwards[0]) * reach
        y = (at - np.float32(first[1])) * np.float32(inwards[1]) * reach
        away = np.maximum(y[:, None] + x[None, :], np.float32(0.0))
        shown += np.float32(level) * np.exp(-away)


def _collimate(shown: Image, taking: Taking) -> None:
    """Outside of the field nothing was exposed; its rim may stay bright."""
    assert taking.field is not None
    size = len(shown)
    rim = max(size / 512, 0.5)
    field = _filled(taking, size, 255, cv2.LINE_AA)
    share = cv2.GaussianBlur(field, (0, 0), rim).astype(np.float32) / np.float32(255.0)
    shown *= share
    shown += np.float32(taking.outside) * (np.float32(1.0) - share)
    if taking.line:
        line = np.zeros(shown.shape, np.uint8)
        corners = [np.round(taking.field * size * 16).astype(np.int32)]
        cv2.polylines(line, corners, True, 255, max(round(2 * rim), 1), cv2.LINE_AA, 4)
        shown += cv2.GaussianBlur(line, (0, 0), 2 * rim).astype(np.float32) * np.float32(taking.line / 255.0)
