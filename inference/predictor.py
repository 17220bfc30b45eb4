"""Predictors: a framed image in, float maps out, band by band.

A band is a run of finished rows, from top to bottom: it is thresholded, packed and released before the next is
computed, so that 29 float maps of a large image never exist at once. Maps are logits or probabilities, as `blend` says:
windows, views and sizes are averaged in it. Predictors compose: any of them may be inside Scaled, and Mixed is two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.frame import window_starts
from inference.forward import Blend, Forward
from inference.rows import Axis, blended, resample
from inference.windows import axis_weights


class Predictor(Protocol):
    """Anything that turns a framed image into logits or probabilities."""

    window: int
    """Least height and width of a frame, px."""
    blend: Blend
    """What its maps are."""

    def bands(self, grey: Tensor) -> Iterator[Tensor]:
        """(1, 1, H, W) grey values in [0, 1] -> consecutive bands (K, rows, W) float32, H rows in all.

        A band holds until the next is asked for, which may be computed in the same memory.
        """
        ...


class Whole:
    """The whole frame through the network at once."""

    def __init__(self, forward: Forward, window: int) -> None:
        self.forward = forward
        self.window = window
        self.blend = forward.blend

    def bands(self, grey: Tensor) -> Iterator[Tensor]:
        """See Predictor."""
        yield from self.forward([grey])


class Sliding:
    """Overlapping windows, blended by weights that sum to one.

    Peak memory is one row of windows: (K, window, W) floats, whatever the height.

    Args:
        sigma: standard deviation of the Gaussian as a share of the window; None for equal weights.
    """

    def __init__(self, forward: Forward, window: int, stride: int, sigma: float | None) -> None:
        self.forward = forward
        self.window = window
        self.stride = stride
        self.sigma = sigma
        self.blend = forward.blend
        self._spare: Tensor | None = None

    def bands(self, grey: Tensor) -> Iterator[Tensor]:
        """See Predictor."""
        height, width = grey.shape[-2:]
        side = self.window
        tops, lefts = window_starts(height, side, self.stride), window_starts(width, side, self.stride)
        down, across = (
            torch.from_numpy(axis_weights(size, side, self.stride, self.sigma)).to(grey.device)
            for size in (height, width)
        )
        ring: Tensor | None = None  # (K, side, W) sums of windows: row y of the frame is its row y % side
        bottom = 0
        for i, top in enumerate(tops):
            answers = self.forward([grey[..., top : top + side, left : left + side] for left in lefts])
            right = 0
            for left, factors in zip(lefts, across, strict=True):
                values = next(answers)  # a zip would keep it while the network makes the next one
                if ring is None:
                    ring = self._ring(len(values), width, values)
                _add(ring, values, down[i][:, None] * factors, top, left, max(0, bottom - top), max(0, right - left))
                del values
                right = left + side
            assert ring is not None
            bottom = top + side
            finished = tops[i + 1] - top if i + 1 < len(tops) else side
            for there, _ in _wrapped(top, 0, finished, side):
                yield ring[:, there]
        if grey.device.type == "cpu":  # where fresh memory takes longer than the sums in it; GPUs keep theirs anyway
            self._spare = ring

    def _ring(self, classes: int, width: int, like: Tensor) -> Tensor:
        """Memory for a ring, with anything in it: the last frame's, if that was of the same size."""
        shape = (classes, self.window, width)
        spare, self._spare = self._spare, None
        return spare if spare is not None and spare.shape == shape else like.new_empty(shape)


def _add(ring: Tensor, values: Tensor, weights: Tensor, top: int, left: int, rows: int, columns: int) -> None:
    """Add a window, (K, side, side), times its weights, (side, side), to a ring.

    Other windows have reached its first `rows` rows, and of all rows its first `columns` columns; what lies in the rest
    is old and replaced.
    """
    side = len(weights)
    right = left + side
    for there, here in _wrapped(top, 0, rows, side):
        ring[:, there, left:right].addcmul_(values[:, here], weights[here])
    for there, here in _wrapped(top, rows, side, side):
        ring[:, there, left : left + columns].addcmul_(values[:, here, :columns], weights[here, :columns])
        torch.mul(values[:, here, columns:], weights[here, columns:], out=ring[:, there, left + columns : right])


def _wrapped(top: int, first: int, end: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Rows [first, end) of a window at `top`, in parts: where they lie in a ring of `size` rows, and in the window."""
    while first < end:
        start = (top + first) % size
        count = min(end - first, size - start)
        yield slice(start, start + count), slice(first, first + count)
        first += count


class Mixed:
    """Windows blended with the reduced whole image, which sees what no window does: where in the hand it is.

    Args:
        size: long side of the reduced image, px.
        share: weight of its prediction; windows have the rest.
    """

    def __init__(self, windows: Sliding, size: int, share: float) -> None:
        self.windows = windows
        self.size = size
        self.share = share
        self.window = windows.window
        self.blend = windows.blend

    def bands(self, grey: Tensor) -> Iterator[Tensor]:
        """See Predictor."""
        height, width = grey.shape[-2:]
        factor = self.size / max(height, width)
        small = resized(grey, max(1, round(height * factor)), max(1, round(width * factor)))
        whole = restored(self.windows.forward([small]), small, grey)
        return blended([self.windows.bands(grey), whole], [1 - self.share, self.share])


class Scaled:
    """The mean of a predictor on the frame and on the frame at other sizes.

    Args:
        base: sees the frame itself; its mean counts as that of `views` views.
        other: sees the other sizes, one view each.
        scales: those sizes, relative to the frame's.
    """

    def __init__(self, base: Predictor, views: int, other: Predictor, scales: tuple[float, ...]) -> None:
        self.base = base
        self.views = views
        self.other = other
        self.scales = scales
        self.window = base.window
        self.blend = base.blend

    def bands(self, grey: Tensor) -> Iterator[Tensor]:
        """See Predictor."""
        total = self.views + len(self.scales)
        streams = [self.base.bands(grey), *(self._at(scale, grey) for scale in self.scales)]
        return blended(streams, [self.views / total, *[1 / total] * len(self.scales)])

    def _at(self, scale: float, grey: Tensor) -> Iterator[Tensor]:
        height, width = (max(1, round(size * scale)) for size in grey.shape[-2:])
        small = resized(grey, height, width)
        missing = [max(0, self.window - size) for size in (width, height)]
        framed = F.pad(small, (0, missing[0], 0, missing[1]))
        return restored(self.other.bands(framed), small, grey)


def resized(grey: Tensor, height: int, width: int) -> Tensor:
    """(1, 1, H, W) -> (1, 1, height, width), bilinear; averages where it shrinks."""
    return F.interpolate(grey, (height, width), mode="bilinear", align_corners=False, antialias=True)


def restored(bands: Iterator[Tensor], small: Tensor, grey: Tensor) -> Iterator[Tensor]:
    """Bands of `small` (what lies beyond its size is padding) as bands of `grey`, of exactly its size."""
    down, across = (Axis.between(grey.shape[d], small.shape[d]) for d in (-2, -1))
    return resample(bands, down, across)
