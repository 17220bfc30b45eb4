"""One phantom: a drawn hand radiograph and the outlines of its 29 bones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from config import HAND_BONES
from dataset.phantom_body import draw_body
from dataset.phantom_plate import radiograph
from dataset.phantom_pose import pose_hand
from dataset.phantom_styles import style_of
from dataset.phantom_taking import draw_taking

SIDES = ("L", "R")

DEFAULT_STYLES = ("competition",)


@dataclass(frozen=True)
class Phantom:
    """One drawn radiograph and its truth."""

    image: NDArray[np.uint8]
    """(size, size)."""
    polygons: dict[str, list[NDArray[np.int32]]]
    """Class name -> polygons, (n, 2) as x, y; cv2.fillPoly of them is the class's mask. None where it is not seen."""
    side: str
    """"L" or "R". A right hand has its thumb at the left of the picture (PA: seen from its back)."""
    bent: bool
    """The wrist is strongly deviated."""


def mirrored(phantom: Phantom) -> Phantom:
    """The other hand, letters and all."""
    flip, last = np.array([-1, 1], np.int32), np.array([phantom.image.shape[1] - 1, 0], np.int32)
    polygons = {name: [polygon * flip + last for polygon in found] for name, found in phantom.polygons.items()}
    image, side = np.ascontiguousarray(phantom.image[:, ::-1]), SIDES[1 - SIDES.index(phantom.side)]
    return replace(phantom, image=image, polygons=polygons, side=side)


def draw_phantom(
    seed: int, subject: int, side: str, size: int, bent: bool, styles: Sequence[str] = DEFAULT_STYLES
) -> Phantom:
    """Draw one hand. The same arguments give the same picture anywhere; another size gives the same hand.

    Both hands of a subject share their body and one of `styles` (dataset.phantom_styles.STYLES); pose, exposure and
    noise are each hand's own. Open physes (growth cartilage) count as bone. What the frame or the collimator cuts off
    is not labelled.

    Raises:
        ValueError: `side` or `size` is wrong; as ConfigProblem where `styles` are.
    """
    if side not in SIDES:
        raise ValueError(f"side is {side!r}: a hand is one of {SIDES}.")
    if not 128 <= size <= 2048:
        raise ValueError(f"size is {size}: phantoms are drawn from 128 to 2048 pixels.")
    style = style_of(seed, subject, styles)
    body = draw_body(np.random.default_rng((seed, subject)), style)
    hand_seed = np.random.SeedSequence((seed, subject, 1 + SIDES.index(side)))
    posing, taking, grain = (np.random.default_rng(part) for part in hand_seed.spawn(3))
    hand = pose_hand(body, bent, style, posing)
    taken = draw_taking(hand, side, style, taking)
    image, polygons = radiograph(hand, taken, size, grain)
    return Phantom(image, {name: polygons[name] for name in HAND_BONES}, side, bent)
