"""Bands of a frame -> bands of the image file -> packed masks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from dataset.frame import Frame
from engine.bits import n_words, pack
from inference.forward import Blend
from inference.probs import quantise
from inference.rows import Axis, resample

SUREST = 1e-6
"""Probabilities nearer to 0 or 1 than this count as this far: their logits are finite."""


def logit(probability: float) -> float:
    """The logit at which a sigmoid gives `probability`: thresholding there needs no sigmoid."""
    return math.log(probability / (1 - probability))


def limits_of(thresholds: Sequence[float], blend: Blend) -> Tensor:
    """Thresholds on probabilities, one a class, on the scale of a predictor's maps: (K,) float32."""
    return torch.tensor([t if blend == "probs" else logit(t) for t in thresholds], dtype=torch.float32)


def on_file(bands: Iterable[Tensor], frame: Frame, blend: Blend) -> Iterator[Tensor]:
    """Bands of a frame -> bands of its image file, (K, rows, file width), interpolated bilinearly.

    Beyond the frame's view there is no bone: probability 0, or the logit of SUREST.
    """
    view = frame.view
    down = Axis.between(view.height, frame.fitted_height, frame.top)
    across = Axis.between(view.width, frame.fitted_width, frame.left)
    rows = resample(bands, down, across)
    height, width = view.file
    if (view.height, view.width) == (height, width) and not view.mirrored:
        yield from rows
        return
    nothing = 0.0 if blend == "probs" else logit(SUREST)
    above, below = view.top, height - view.top - view.height
    for number, band in enumerate(rows):
        if number == 0 and above:
            yield band.new_full((len(band), above, width), nothing)
        seen = band.flip(-1) if view.mirrored else band
        yield F.pad(seen, (view.left, width - view.left - view.width), value=nothing)
        classes = len(band)
    if below:
        yield band.new_full((classes, below, width), nothing)


class Packed:
    """Collects bands of an image file as packed words; only these leave the device.

    Args:
        limits: (K,) above which a pixel belongs to a class, on the scale of the bands.
    """

    def __init__(self, height: int, width: int, limits: Tensor) -> None:
        self.limits = limits
        self.words = torch.zeros((n_words(len(limits)), height, width), dtype=torch.int32, device=limits.device)
        self.done = 0

    def add(self, band: Tensor) -> None:
        """Take the next rows, (K, rows, W)."""
        words = self.words[:, self.done : self.done + band.shape[1]]
        if band.is_cuda:
            words[:] = pack(band, self.limits)
        else:
            limits = self.limits.tolist()
            for k, plane in enumerate(band):
                _mark(plane.contiguous().numpy(), np.float32(limits[k]), k % 32, words[k // 32].numpy())
        self.done += band.shape[1]

    def result(self) -> NDArray[np.int32]:
        """The packed masks, int32 (words, H, W), once all rows have come."""
        assert self.done == self.words.shape[1], f"{self.done} of {self.words.shape[1]} rows came"
        return np.asarray(self.words.cpu().numpy())


@njit(cache=True, nogil=True)
def _mark(plane: NDArray[np.float32], limit: np.float32, bit: int, words: NDArray[np.int32]) -> None:
    """Set a bit of words, (R, W), where the plane, (R, W), is above the limit."""
    # Contiguous rows, so that this compiles to vector instructions: a fifth of the time of pack's four operations.
    flag = np.int32(np.uint32(1) << np.uint32(bit))
    for r in range(plane.shape[0]):
        for c in range(plane.shape[1]):
            words[r, c] |= flag if plane[r, c] > limit else np.int32(0)


class Quantised:
    """Collects bands of an image file as the bytes that the probability store keeps."""

    def __init__(self, n_classes: int, height: int, width: int, device: str) -> None:
        self.values = torch.zeros((n_classes, height, width), dtype=torch.uint8, device=device)
        self.done = 0

    def add(self, probs: Tensor) -> None:
        """Take the next rows of probabilities, (K, rows, W)."""
        self.values[:, self.done : self.done + probs.shape[1]] = quantise(probs)
        self.done += probs.shape[1]


class Sureness:
    """Collects bands of an image: how sure the network is of each mask.

    Args:
        limits: (K,) above which a pixel belongs to a class, on the scale of the bands.
        blend: what the bands are.
    """

    def __init__(self, limits: Tensor, blend: Blend) -> None:
        self.limits, self.blend = limits, blend
        self.sums = torch.zeros((2, len(limits)), dtype=torch.float64, device=limits.device)

    def add(self, band: Tensor) -> None:
        """Take the next rows, (K, rows, W)."""
        inside = band > self.limits[:, None, None]
        for k, (plane, mask) in enumerate(zip(band, inside, strict=True)):
            sure = plane[mask]  # a few per cent of the plane
            self.sums[0, k] += (sure.sigmoid() if self.blend == "logits" else sure).sum()
            self.sums[1, k] += len(sure)

    def result(self) -> tuple[float, ...]:
        """Mean probability inside each mask, 0 where it is empty: (K,)."""
        return tuple((self.sums[0] / self.sums[1].clamp(min=1)).tolist())
