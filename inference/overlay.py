"""Pictures of masks on a radiograph: outlines and a light fill, one colour for each class."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray


def class_colours(n_classes: int) -> list[tuple[int, int, int]]:
    """BGR colours, neighbours in the class order far apart in hue (steps of the golden ratio)."""
    colours = []
    for k in range(n_classes):
        r, g, b = colorsys.hsv_to_rgb((k * 0.618034) % 1, 0.55 if k % 2 else 0.85, 1.0)
        colours.append((int(255 * b), int(255 * g), int(255 * r)))
    return colours


def draw_overlay(
    image: NDArray[np.uint8], bits: NDArray[np.int32], classes: Sequence[str], title: str = ""
) -> NDArray[np.uint8]:
    """(H, W) uint8 and packed masks (words, H, W) -> (H', W', 3) uint8 BGR picture.

    Images below 1024 px are enlarged to it, so that outlines stay thinner than the bones.
    """
    factor = max(1, -(-1024 // max(image.shape)))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    grey = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    fill = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    thickness = max(1, max(size) // 1000)
    kernel = np.ones((2 * thickness + 1,) * 2, np.uint8)
    outlines = []
    for k, colour in enumerate(class_colours(len(classes))):
        mask = ((bits[k // 32] >> (k % 32)) & 1).astype(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        if not width:
            continue
        # In the mask's box only: a third of the time at 2048.
        part = mask[top : top + height, left : left + width]
        large = cv2.resize(part, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
        box = fill[factor * top : factor * (top + height), factor * left : factor * (left + width)]
        box[large > 0] = 0.75 * box[large > 0] + 0.25 * np.array(colour)
        # Rims and not contours: the masks of a network that has learned nothing have millions of those.
        outlines.append((box, large > cv2.erode(large, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0), colour))
    for box, rim, colour in outlines:
        box[rim] = colour
    if title:
        scale = max(size) / 1100
        cv2.putText(
            fill, title, (12, int(34 * scale)), cv2.FONT_HERSHEY_SIMPLEX, scale, (255,) * 3, thickness, cv2.LINE_AA
        )
    return np.asarray(fill, dtype=np.uint8)
