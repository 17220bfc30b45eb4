"""One phantom: a drawn hand radiograph and the outlines of its 29 bones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from config import HAND_BONES
from dataset.phantom_plate import draw_taking, radiograph
from dataset.phantom_pose import draw_body, pose_hand

SIDES = ("L", "R")


@dataclass(frozen=True)
class Phantom:
    """One drawn radiograph and its truth."""

    image: NDArray[np.uint8]
    """(size, size)."""
    polygons: dict[str, list[NDArray[np.int32]]]
    """Class name -> polygons, (n, 2) as x, y; cv2.fillPoly of them is the class's mask."""
    side: str
    """"L" or "R". A right hand has its thumb at the left of the picture (PA: seen from its back)."""
    bent: bool
    """The wrist is strongly deviated."""


def draw_phantom(seed: int, subject: int, side: str, size: int, bent: bool) -> Phantom:
    """Draw one hand. The same arguments give the same picture anywhere; another size gives the same hand.

    Both hands of a subject share their body; pose, exposure and noise are each hand's own.
    """
    if side not in SIDES:
        raise ValueError(f"side is {side!r}: a hand is one of {SIDES}.")
    if not 128 <= size <= 2048:
        raise ValueError(f"size is {size}: phantoms are drawn from 128 to 2048 pixels.")
    body = draw_body(np.random.default_rng((seed, subject)))
    hand_seed = np.random.SeedSequence((seed, subject, 1 + SIDES.index(side)))
    posing, taking, grain = (np.random.default_rng(part) for part in hand_seed.spawn(3))
    hand = pose_hand(body, bent, posing)
    taken = draw_taking(hand, side, taking)
    image, polygons = radiograph(hand, taken, size, grain)
    return Phantom(image, {name: polygons[name] for name in HAND_BONES}, side, bent)
