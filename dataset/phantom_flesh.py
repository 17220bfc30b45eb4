"""Soft tissue around the bones: its silhouette and the path length through it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dataset.phantom_pose import PosedHand
from dataset.phantom_shape import Floats

Image = NDArray[np.float32]
Mask = NDArray[np.uint8]

FINGER_MM = ((9.4, 9.2, 8.0), (8.7, 8.1, 6.8), (8.9, 8.3, 7.0), (8.3, 7.7, 6.4), (7.4, 6.8, 5.7))
"""Half widths of the flesh at the knuckle, the middle joint and the tip, thumb first."""

METACARPAL_MM = ((11.5, 9.6), (11.0, 8.9), (10.5, 7.6))
"""Half widths of the flesh along the metacarpals of the thumb, index and little finger: at their bases and heads."""

PAD_MM = 4.0
"""Flesh beyond the last bone."""

FOREARM_MM = (29.0, 30.0, 36.0, 44.0)
"""Half widths of the forearm at the points of PosedHand.forearm."""

FINGER_DEPTH_MM, PALM_DEPTH_MM = 14.0, 17.0
"""Path length in the middle of a finger and of the palm; both are flat there and fall off near the skin."""

ROLL_MM = 5.0
"""How near: a finger; the palm half as far again."""

MUSCLE_MM = 13.0
"""What the thumb's muscles and the forearm's flesh add."""


class _Canvas:
    """A small picture on which flesh is painted in plate millimetres."""

    def __init__(self, matrix: Floats, size: int) -> None:
        self.matrix, self.size = matrix, size
        self.scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))

    def pixels(self, points: Floats) -> NDArray[np.int32]:
        """In sixteenths of a pixel, as OpenCV's shift=4 takes them."""
        return np.round((points @ self.matrix[:, :2].T + self.matrix[:, 2]) * 16).astype(np.int32)

    def blank(self) -> Mask:
        return np.zeros((self.size, self.size), np.uint8)

    def sweep(self, mask: Mask, points: Floats, radii: Floats) -> None:
        """A tube of changing radius along a line."""
        steps = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
        at = np.arange(0.0, steps[-1] + 1.0, max(1.5, 0.13 * radii.min()))
        line = np.stack([np.interp(at, steps, points[:, axis]) for axis in (0, 1)], axis=1)
        for centre, radius in zip(self.pixels(line), np.interp(at, steps, radii) * self.scale * 16, strict=True):
            cv2.circle(mask, (int(centre[0]), int(centre[1])), max(int(radius), 16), 255, -1, cv2.LINE_8, 4)

    def rounded(self, mask: Mask, millimetres: float) -> Mask:
        """Blur and threshold: rounds webs and corners, as skin does."""
        soft = cv2.GaussianBlur(mask, (0, 0), max(millimetres * self.scale, 0.6))
        return np.where(soft > 124, 255, 0).astype(np.uint8)

    def blurred(self, picture: Image, millimetres: float) -> Image:
        """A wide blur, done on a quarter of the size: nothing finer is left anyway."""
        quarter = cv2.resize(picture, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
        quarter = cv2.GaussianBlur(quarter, (0, 0), max(millimetres * self.scale / 4, 0.6))
        return np.asarray(cv2.resize(quarter, (self.size, self.size), interpolation=cv2.INTER_LINEAR), np.float32)

    def depth(self, mask: Mask, roll: float) -> Image:
        """0 at the skin, 1 from `roll` mm inside on, round in between."""
        inside = cv2.distanceTransform(mask, cv2.DIST_L2, 5) / np.float32(self.scale * roll)
        return np.asarray(np.sqrt(1.0 - np.square(1.0 - np.minimum(inside, 1.0))), np.float32)


def turned_quarter(towards: Floats) -> Floats:
    """Unit vector to the little finger's side of the way `towards` the elbow."""
    return np.asarray(np.array([-towards[1], towards[0]]) / np.hypot(*towards))


def flesh_path(hand: PosedHand, matrix: Floats, size: int) -> Image:
    """Path length through flesh in mm, (size, size). `matrix` (2 x 3) maps plate mm to pixels of this picture."""
    canvas = _Canvas(matrix, size)
    grow = hand.body.flesh * hand.body.size
    fingers = canvas.blank()
    for joints, (knuckle, middle, tip) in zip(hand.chains, FINGER_MM, strict=True):
        last = (joints[-1] - joints[-2]) / np.hypot(*(joints[-1] - joints[-2]))
        end = joints[-1] + last * (PAD_MM - tip) * grow
        start = joints[1] * 0.75 + joints[0] * 0.25
        line = np.vstack([start, joints[1:-1], joints[-2] * 0.45 + end * 0.55, end])
        radii = [knuckle, *np.linspace(knuckle, middle, len(joints) - 2), middle * 0.94, tip]
        canvas.sweep(fingers, line, np.array(radii) * grow)
    palm = canvas.blank()
    thumb, index, long_finger, ring, little = hand.chains
    heel = hand.forearm[0]
    for joints, radii_mm in zip((thumb, index, little), METACARPAL_MM, strict=True):
        canvas.sweep(palm, joints[:2], np.array(radii_mm) * grow)
    canvas.sweep(palm, hand.forearm, np.array(FOREARM_MM) * grow)
    across = np.array([-1.0, 1.0])[:, None] * turned_quarter(hand.forearm[1] - heel) * (FOREARM_MM[0] - 10.5) * grow
    for joints, side in zip((thumb, little), across, strict=True):
        canvas.sweep(palm, np.vstack([joints[0], heel + side]), np.array([10.5, 10.5]) * grow)
    webs = [joints[1] * 0.72 + joints[2] * 0.28 for joints in (index, long_finger, ring, little)]
    crotch = thumb[1] * 0.55 + index[1] * 0.45 + (thumb[0] - thumb[1]) * 0.08
    outline = np.stack([heel, thumb[0], thumb[1], crotch, *webs, little[1], little[0], heel])
    cv2.fillPoly(palm, [canvas.pixels(outline)], 255, cv2.LINE_8, 4)
    palm = canvas.rounded(palm, 3.2 * grow)
    finger_part = FINGER_DEPTH_MM * canvas.depth(canvas.rounded(fingers, 1.2 * grow), ROLL_MM * grow)
    palm_part = PALM_DEPTH_MM * canvas.depth(palm, ROLL_MM * 1.5 * grow)
    # Where a finger runs over the palm both are seen, but its far end inside the palm has no edge.
    both = canvas.blurred(np.minimum(finger_part, palm_part), 3.0 * grow)
    path = np.maximum(finger_part, palm_part) + 0.25 * both
    muscle = canvas.blank()
    thenar = np.stack([thumb[0], thumb[1] * 0.85 + crotch * 0.15, crotch, index[1] * 0.45 + index[0] * 0.55, index[0]])
    cv2.fillPoly(muscle, [canvas.pixels(thenar)], 255, cv2.LINE_8, 4)
    canvas.sweep(muscle, hand.forearm, np.array(FOREARM_MM) * 0.45 * grow)
    mass = canvas.blurred(muscle.astype(np.float32) / 255.0, 5.0 * grow)
    path = (path + MUSCLE_MM * mass * (palm_part / PALM_DEPTH_MM)) * np.float32(grow)
    return np.asarray(cv2.GaussianBlur(path, (0, 0), max(0.5 * canvas.scale, 0.3)), np.float32)
