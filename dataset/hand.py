"""Find the hand in a radiograph, and which hand it is, from the silhouette alone: no labels, no file name."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]

SMALLEST = 32
"""Px: in less no finger shows."""

LONG_SIDE = 256
"""The silhouette is sought at this size, px: a finger is some 15 wide, and the search takes 2 ms."""

THRESHOLDS = (0.25, 0.4, 0.6, 0.9)
"""From the dark ground (0) to Otsu's threshold (1), in the order tried: Otsu's own often parts bones from flesh."""

THINNEST = 5
"""Px of the small picture: what is thinner (lines of collimation, noise) is no part of a hand."""

RIM, MARGIN = 8, 10
"""Px of the small picture that are left out at its edges, where bright plate edges would join the forearm, and that are
added around the silhouette. More are added than left out, so that a box by the edge reaches it."""

REACH = 96
"""Px from palm to farthest fingertip in the upright picture of the hand."""

FINGERTIPS = 0.75
"""What lies farther from the middle of the palm than this, share of the reach, tells where the fingers point."""

AREA = (0.03, 0.5)
"""Of a hand, share of the picture."""

PALM = (0.22, 0.38)
"""Radius of the palm's inscribed circle, share of the reach: 0.26 to 0.33 in phantoms, 0.30 in a real radiograph."""

SPLIT = 0.4
"""Least share of the rows above the palm that cross two to five fingers: at least 0.49 in phantoms."""

STEADY = 0.85
"""Least overlap (intersection over union) with the silhouette at the next threshold: above 0.9 in phantoms."""

GAP = 0.04
"""Least width of the gap between thumb and index finger, share of the reach."""


@dataclass(frozen=True)
class Hand:
    """Where the hand lies, and which one it is."""

    box: tuple[int, int, int, int]
    """x0, y0, x1, y1 in pixels of the file, end exclusive."""
    side: Literal["left", "right"]
    """Anatomical side, in a picture seen from the hand's back (PA) as usual: a right hand has its thumb at the left."""


def find_hand(image: NDArray[np.uint8]) -> Hand:
    """Box and side of the one hand in a radiograph whose fingers point up, within about 60 degrees.

    The silhouette is what is brighter than the dark ground at two thresholds alike, with a round palm and two to five
    fingers above it. On 1320 phantoms of the competition's look (four seeds that no number here was chosen on, 256, 384
    and 512 px, half of them with bent wrists) every labelled pixel was in the box and the side right for all but one,
    and the side is right on `hand_pa.png` (docs/data.md), the one real radiograph that it was tried on.

    Args:
        image: (H, W), at least 32 px each way, bright bones on a dark ground.

    Returns:
        A box around hand and forearm, on phantoms 1.2 to 1.45 times the area of the bones' own. Where no hand is
        recognised (none there, fingers closed, or the forearm joined with a broad bright edge), the whole image, and
        "right" as a guess.

    Raises:
        ValueError: no such image.
    """
    if image.ndim != 2 or image.dtype != np.uint8 or min(image.shape) < SMALLEST:
        raise ValueError(
            f"image is {image.shape} {image.dtype}, but must be (H, W) uint8, {SMALLEST} px or more each way: "
            f"give what dataset.images.read_image returns."
        )
    height, width = image.shape
    scale = LONG_SIDE / max(height, width)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    whole = Hand((0, 0, width, height), "right")
    inner = small[RIM:-RIM, RIM:-RIM]
    if not inner.size or inner.min() == inner.max():
        return whole
    inner = np.asarray(cv2.GaussianBlur(inner, (5, 5), 0), np.uint8)  # small pictures are noisier than shrunk ones
    otsu, _ = cv2.threshold(inner, 0, 255, cv2.THRESH_OTSU)
    ground = float(np.median(inner[inner <= otsu]))
    masks = (_largest(inner > ground + share * (otsu - ground)) for share in THRESHOLDS)
    for mask, next_mask in pairwise(masks):
        steady = (mask & next_mask).sum() > STEADY * (mask | next_mask).sum()
        if steady and AREA[0] < mask.mean() < AREA[1]:
            upper, palm = _upright(mask)
            fingers = (np.diff(upper, axis=1, prepend=0) == 1).sum(axis=1)
            if PALM[0] < palm < PALM[1] and ((fingers >= 2) & (fingers <= 5)).mean() > SPLIT:
                return Hand(_box(mask, height, width), _side(upper))
    return whole


def _largest(inner: NDArray[np.bool_]) -> Mask:
    """The largest component of `inner`, without thin parts and with its holes filled, in the picture with its rim."""
    mask = np.pad(inner.astype(np.uint8), RIM)
    mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((THINNEST, THINNEST), np.uint8)), np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    mask[:] = 0
    if contours:
        cv2.drawContours(mask, [max(contours, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    return mask


def _upright(mask: Mask) -> tuple[Mask, float]:
    """The hand above the middle of its palm, turned so that its fingertips point up.

    Returns:
        (REACH, 2 * REACH) of 0 and 1, palm at the middle of the lower edge; radius of the palm, share of the reach.
    """
    _, radius, _, (x, y) = cv2.minMaxLoc(cv2.distanceTransform(mask, cv2.DIST_L2, 3))
    along = np.argwhere(mask[: y + 1])[:, ::-1] - (x, y)
    far = np.hypot(*along.T)
    reach = max(float(far.max()), 1.0)
    right, down = along[far >= FINGERTIPS * reach].mean(axis=0)
    matrix = cv2.getRotationMatrix2D((x, y), float(np.rad2deg(np.arctan2(right, -down))), REACH / reach)
    matrix[:, 2] += (REACH - x, REACH - 1 - y)
    upper = cv2.warpAffine(mask, matrix, (2 * REACH, REACH), flags=cv2.INTER_NEAREST)
    return np.asarray(upper, np.uint8), radius / reach


def _side(upper: Mask) -> Literal["left", "right"]:
    """The lowest gap lies between thumb and index finger, and the thumb is the thinner part."""
    seen = np.maximum.accumulate
    gaps = (upper == 0) & (seen(upper, axis=1) & seen(upper[:, ::-1], axis=1)[:, ::-1] == 1)
    rows = np.flatnonzero(gaps.sum(axis=1) >= GAP * REACH)
    if not len(rows):
        return "right"
    row, columns = upper[rows[-1]], np.flatnonzero(gaps[rows[-1]])
    middle = columns[len(columns) // 2]
    return "right" if row[:middle].sum() < row[middle:].sum() else "left"


def _box(mask: Mask, height: int, width: int) -> tuple[int, int, int, int]:
    """Bounds of the mask with MARGIN, in pixels of the (height, width) file, outwards to whole ones."""
    h, w = mask.shape
    x, y, across, down = cv2.boundingRect(mask)
    x0, x1 = max(x - MARGIN, 0), min(x + across + MARGIN, w)
    y0, y1 = max(y - MARGIN, 0), min(y + down + MARGIN, h)
    return x0 * width // w, y0 * height // h, -(-x1 * width // w), -(-y1 * height // h)
