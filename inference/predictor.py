"""Predictors: a framed image in, logits out, band by band.

A band is a run of finished rows, from top to bottom: it is thresholded, packed and released before the next is
computed, so that 29 float maps of a large image never exist at once. Windows are blended in logits, so a threshold on
probabilities is one on logits. A network's own output is also logits; all predictors compose on that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from dataset.frame import window_starts
from inference.windows import axis_weights


class Predictor(Protocol):
    """Anything that turns a framed image into logits."""

    window: int
    """Least height and width of a frame, px."""

    def bands(self, grey: Tensor) -> Iterator[Tensor]:
        """(1, 1, H, W) grey values in [0, 1] -> consecutive bands (K, rows, W) float32, H rows in all."""
        ...


class Whole:
    """The whole frame through the network at once."""

    def __init__(self, network: nn.Module, window: int, *, half: bool = False) -> None:
        self.network = network
        self.window = window
        self.half = half

    def bands(self, grey: Tensor) -> Iterator[Tensor]:
        """See Predictor."""
        yield run_network(self.network, grey, self.half)[0]


class Sliding:
    """Overlapping windows, blended by weights that sum to one.

    Peak memory is one row of windows: (K, window, W) floats, whatever the height.

    Args:
        sigma: standard deviation of the Gaussian as a share of the window; None for equal weights.
        batch: windows that go through the network together.
    """

    def __init__(
        self, network: nn.Module, window: int, stride: int, sigma: float | None, batch: int, *, half: bool = False
    ) -> None:
        self.network = network
        self.window = window
        self.stride = stride
        self.sigma = sigma
        self.batch = batch
        self.half = half

    def bands(self, grey: Tensor) -> Iterator[Tensor]:
        """See Predictor."""
        height, width = grey.shape[-2:]
        side = self.window
        tops, lefts = window_starts(height, side, self.stride), window_starts(width, side, self.stride)
        down, across = (
            torch.from_numpy(axis_weights(size, side, self.stride, self.sigma)).to(grey.device)
            for size in (height, width)
        )
        rows: Tensor | None = None  # (K, side, W): sums of the windows that reach into rows [top, top + side)
        for i, top in enumerate(tops):
            if rows is not None:
                moved = top - tops[i - 1]
                rows = torch.cat([rows[:, moved:], torch.zeros_like(rows[:, :moved])], 1)
            for first in range(0, len(lefts), self.batch):
                chosen = lefts[first : first + self.batch]
                views = torch.cat([grey[..., top : top + side, left : left + side] for left in chosen])
                logits = run_network(self.network, views, self.half)
                if rows is None:
                    rows = logits.new_zeros((logits.shape[1], side, width))
                for j, left in enumerate(chosen):
                    weights = down[i][:, None] * across[first + j][None, :]
                    rows[:, :, left : left + side].addcmul_(logits[j], weights)
            assert rows is not None
            finished = tops[i + 1] - top if i + 1 < len(tops) else side
            yield rows[:, :finished]


def run_network(network: nn.Module, grey: Tensor, half: bool) -> Tensor:
    """Logits (N, K, H, W) float32 without gradients; `half` runs CUDA in half precision."""
    cast = torch.autocast("cuda", half_type()) if half and grey.is_cuda else nullcontext()
    with torch.inference_mode(), cast:
        logits: Tensor = network(grey)
    return logits.float()


def half_type() -> torch.dtype:
    """bfloat16 where the GPU has it, else float16."""
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
