"""A stand-in for a network whose answers are ready, so that everything around a network can be timed alone."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.competition_way import planes


class Ready(nn.Module):
    """Answers for windows of the picture of `places`: parts of `logits`, in memory of their own.

    The answer for a window is off by a number of its own, at most 1.4, so that the blend shows in the masks.

    Args:
        logits: (K, H, W) of the whole picture.
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.asked: dict[tuple[int, ...], int] = {}
        """First pixels of the windows that came together, and their side."""
        self.ready: dict[tuple[int, ...], Tensor] = {}
        self.given: list[Tensor] = []

    @staticmethod
    def places(height: int, width: int) -> Tensor:
        """A picture (1, 1, H, W) float32 in which a pixel's value is its place in the flattened image.

        Whole numbers are exact in float32 up to 2^24, 4096 x 4096 px.
        """
        return torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)

    def get_ready(self) -> None:
        """Make all answers that were ever asked for; each is given away once, but not freed before the next time.

        A network's memory is its own affair: to free 122 MB takes the kernel 4 ms, which are nobody's time here.
        """
        self.given.clear()
        self.ready = {places: self._answer(places, side) for places, side in self.asked.items()}

    def forward(self, windows: Tensor) -> Tensor:
        """(N, 1, side, side) windows of `places` -> (N, K, side, side) logits; made now where they are not ready."""
        places = tuple(int(place) for place in windows[:, 0, 0, 0])
        self.asked[places] = windows.shape[-1]
        if places not in self.ready:
            return self._answer(places, windows.shape[-1])
        self.given.append(self.ready.pop(places))
        return self.given[-1]

    def _answer(self, places: tuple[int, ...], side: int) -> Tensor:
        answer = self.logits.new_empty((len(places), len(self.logits), side, side))
        for out, place in zip(answer, places, strict=True):
            top, left = divmod(place, self.logits.shape[-1])
            offset = 0.7 * (place // side % 5 - 2)
            torch.add(self.logits[:, top : top + side, left : left + side], offset, out=out)
        return answer


def logits_of(bits: NDArray[np.int32], n_classes: int) -> Tensor:
    """(K, H, W) float32 from packed words (words, H, W): half the distance to a mask's outline, px, inside above 0.

    As a network's, they end somewhere: at 12 either way.
    """
    logits = torch.empty((n_classes, *bits.shape[1:]))
    for out, mask in zip(logits.numpy(), planes(bits, n_classes), strict=True):
        inside, outside = (cv2.distanceTransform(side.view(np.uint8), cv2.DIST_L2, 5) for side in (mask, ~mask))
        np.clip((inside - outside) / 2, -12, 12, out=out)
    return logits
