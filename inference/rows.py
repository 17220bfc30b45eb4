"""Streams of bands: consecutive rows of float maps, from top to bottom, so that whole maps never exist at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

AT_ONCE = 128
"""Rows that are made at once: an image larger than its frame would otherwise need its full-size float maps."""


@dataclass(frozen=True)
class Axis:
    """For each output pixel along an axis the two pixels around it and the share of the second."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    share: NDArray[np.float32]
    plain: bool
    """Output pixels are input pixels, one after the other."""

    @staticmethod
    def between(size: int, fitted: int, offset: int = 0) -> Axis:
        """Bilinear, edges repeated: `size` output pixels from `fitted` input pixels that begin at `offset`."""
        at = np.clip((np.arange(size) + 0.5) * (fitted / size) - 0.5, 0, fitted - 1)
        low = np.floor(at).astype(np.int64)
        high = np.minimum(low + (size != fitted), fitted - 1)
        return Axis(low + offset, high + offset, (at - low).astype(np.float32), size == fitted)


def resample(bands: Iterable[Tensor], down: Axis, across: Axis) -> Iterator[Tensor]:
    """Bands (K, rows, W) -> bands (K, at most AT_ONCE, len(across)), len(down) rows in all."""
    kept: Tensor | None = None  # input rows that later output rows still need
    kept_from = done = 0
    for band in bands:
        kept = torch.cat([kept, band], 1) if kept is not None and kept.shape[1] else band
        have = kept_from + kept.shape[1]
        ready = int(np.searchsorted(down.high, have, side="left"))
        for first in range(done, ready, AT_ONCE):
            part = slice(first, min(first + AT_ONCE, ready))
            yield _resampled(kept, kept_from, down, part, across)
        done = max(done, ready)
        need = min(int(down.low[done]), have) if done < len(down.low) else have  # a black margin may come first
        # clone: a view would keep the predictor's whole row of windows alive.
        kept, kept_from = kept[:, need - kept_from :].clone(), need
    assert done == len(down.low), f"{done} of {len(down.low)} rows came"


def _resampled(kept: Tensor, kept_from: int, down: Axis, part: slice, across: Axis) -> Tensor:
    device = kept.device
    low, high = down.low[part] - kept_from, down.high[part] - kept_from
    if down.plain:
        rows = kept[:, int(low[0]) : int(low[0]) + len(low)]
    else:
        weight = torch.from_numpy(down.share[part]).to(device)[None, :, None]
        rows = torch.lerp(
            kept[:, torch.from_numpy(low).to(device)], kept[:, torch.from_numpy(high).to(device)], weight
        )
    if across.plain:
        return rows[..., int(across.low[0]) : int(across.low[0]) + len(across.low)]
    c_low, c_high, c_share = (torch.from_numpy(a).to(device) for a in (across.low, across.high, across.share))
    return torch.lerp(rows[..., c_low], rows[..., c_high], c_share[None, None, :])


def aligned(streams: Sequence[Iterable[Tensor]]) -> Iterator[list[Tensor]]:
    """Bands of several streams of equally many rows, cut so that they hold the same rows."""
    sources = [iter(stream) for stream in streams]
    bands = [next(source, None) for source in sources]
    while not any(band is None for band in bands):
        here = [band for band in bands if band is not None]
        rows = min(band.shape[1] for band in here)
        yield [band[:, :rows] for band in here]
        bands = [
            band[:, rows:] if band.shape[1] > rows else next(source, None)
            for band, source in zip(here, sources, strict=True)
        ]
    assert all(band is None for band in bands), "the streams have different numbers of rows"


def blended(streams: Sequence[Iterable[Tensor]], weights: Sequence[float]) -> Iterator[Tensor]:
    """The weighted sum of several streams; bands are new memory."""
    for parts in aligned(streams):
        total = parts[0] * weights[0]
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            total.add_(part, alpha=weight)
        yield total
