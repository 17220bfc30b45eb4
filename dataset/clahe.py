"""Contrast-limited adaptive histogram equalisation of whole images."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Clahe:
    """CLAHE (Zuiderveld 1994, Graphics Gems IV, VIII.5) as OpenCV computes it."""

    clip: float
    """Clip limit, in multiples of a flat histogram's bin."""
    tiles: int
    """Tiles along each side."""

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Equalise (H, W) uint8 at its own size; returns a new (H, W) uint8. Safe to call from several threads."""
        # A new object each time: one keeps its tables between calls, so threads can't share it.
        return np.asarray(cv2.createCLAHE(self.clip, (self.tiles, self.tiles)).apply(image), dtype=np.uint8)
