"""Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): features are computed again instead of kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Let each block keep only its inputs while training. Results, gradients and running statistics stay the same."""
    for block in blocks:
        # A partial of a bound method, and no closure: a copy of the network (EMA) must call its own block.
        block.forward = partial(_forward, block.forward)  # type: ignore[method-assign, arg-type]


def _forward(plain: MethodType, *args: Any, **kwargs: Any) -> Any:
    block: nn.Module = plain.__self__  # type: ignore[assignment]
    if not (block.training and torch.is_grad_enabled()):
        return plain(*args, **kwargs)
    return checkpoint(
        plain,
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _statistics_kept(block)),
        **kwargs,
    )


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """The second forward pass must not move the running statistics of normalisation a second time."""
    norms = [m for m in block.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:  # without running statistics it would keep other tensors than the first pass
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
