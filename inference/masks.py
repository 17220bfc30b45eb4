"""Logits of a frame -> packed masks at the image's own size, band by band."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataset.frame import Frame
from engine.bits import n_words, pack
from inference.predictor import Predictor


def logit(probability: float) -> float:
    """The logit at which a sigmoid gives `probability`: thresholding there needs no sigmoid."""
    return math.log(probability / (1 - probability))


def predict_bits(
    predictor: Predictor, grey: NDArray[np.uint8], frame: Frame, n_classes: int, threshold: float, device: str
) -> NDArray[np.int32]:
    """Packed masks of the frame's view at the file's own resolution, (words, height, width) int32.

    `grey` is the framed image, (frame_height, frame_width) uint8. Logits are interpolated back bilinearly, then
    thresholded.
    """
    target = Unfit(frame, n_classes, threshold)
    for band in predictor.bands(torch.from_numpy(grey).to(device)[None, None].float() / 255):
        target.add(band)
    return target.result()


class Unfit:
    """Collects bands of frame rows and writes finished rows of the view's own size into packed words."""

    def __init__(self, frame: Frame, n_classes: int, threshold: float) -> None:
        self.frame = frame
        view = frame.view
        self.bits = np.zeros((n_words(n_classes), view.height, view.width), np.int32)
        self.limit = logit(threshold)
        self.kept: Tensor | None = None  # rows of the frame that later output rows still need
        self.kept_from = 0
        self.done = 0
        self.rows = _neighbours(view.height, frame.fitted_height, frame.top)
        self.columns = _neighbours(view.width, frame.fitted_width, frame.left)
        self.same = (view.height, view.width) == (frame.fitted_height, frame.fitted_width)

    def add(self, band: Tensor) -> None:
        """Take the next rows of the frame, (K, rows, frame_width) float32."""
        kept = band if self.kept is None else torch.cat([self.kept, band], 1)
        low, high, share = self.rows
        have = self.kept_from + kept.shape[1]
        ready = int(np.searchsorted(high, have, side="left"))
        # A few rows at a time: an image larger than the frame would otherwise need its full-size float maps.
        for first in range(self.done, ready, 128):
            part = slice(first, min(first + 128, ready))
            packed = pack(self._resample(kept, low[part], high[part], share[part]), self.limit)
            self.bits[:, part] = packed.cpu().numpy()
        self.done = max(self.done, ready)
        need = min(int(low[self.done]), have) if self.done < len(low) else have  # a black margin may come first
        # clone: a view would keep the predictor's whole row of windows alive.
        self.kept, self.kept_from = kept[:, need - self.kept_from :].clone(), need

    def result(self) -> NDArray[np.int32]:
        """The packed masks, once all rows of the frame have come."""
        assert self.done == self.frame.view.height, f"{self.done} of {self.frame.view.height} rows came"
        return self.bits

    def _resample(
        self, kept: Tensor, low: NDArray[np.int64], high: NDArray[np.int64], share: NDArray[np.float32]
    ) -> Tensor:
        left = self.frame.left
        if self.same:
            first = int(low[0]) - self.kept_from
            return kept[:, first : first + len(low), left : left + self.frame.view.width]
        device = kept.device
        weight = torch.from_numpy(share).to(device)[None, :, None]
        rows = torch.lerp(
            kept[:, torch.from_numpy(low - self.kept_from).to(device)],
            kept[:, torch.from_numpy(high - self.kept_from).to(device)],
            weight,
        )
        c_low, c_high, c_share = (torch.from_numpy(a).to(device) for a in self.columns)
        return torch.lerp(rows[..., c_low], rows[..., c_high], c_share[None, None, :])


def _neighbours(
    size: int, fitted: int, offset: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each output pixel the two frame pixels around it and the share of the second (bilinear, edges repeated)."""
    at = np.clip((np.arange(size) + 0.5) * (fitted / size) - 0.5, 0, fitted - 1)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, fitted - 1)
    return low + offset, high + offset, (at - low).astype(np.float32)
