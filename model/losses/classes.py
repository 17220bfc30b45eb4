"""Means over classes, weighed by `class_weights`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def mean(losses: Tensor, counts: Tensor, weights: Sequence[float]) -> Tensor:
    """sum of w L over sum of w, of the losses (n, K) that count (n, K, bool); 0 where none does."""
    w = losses.new_tensor(weights) * counts
    return (w * losses).sum() / w.sum().clamp(min=tiny(w))


def mean_of_pairs(total: Tensor, weights: Sequence[float]) -> Tensor:
    """The mean of losses that stand in `total` (n, K, 2) beside 1, if they count, or 0."""
    return mean(total[..., 0], total[..., 1] > 0, weights)


def tiny(like: Tensor) -> float:
    """A divisor in place of 0."""
    return torch.finfo(like.dtype).tiny


def pixel_sums(loss: Tensor, weight: Tensor | None = None) -> Tensor:
    """(N, C, 2): sums over the pixels of weight * loss and of the weight, which is 1 where not given.

    Args:
        loss: (N, C, h, W).
        weight: (N, 1, h, W), the same for all classes.
    """
    n, c, h, w = loss.shape
    if weight is None:
        return torch.stack([loss.sum((2, 3)), loss.new_full((n, c), h * w)], 2)
    return torch.stack([(weight * loss).sum((2, 3)), weight.sum((2, 3)).expand(n, c)], 2)


def pixel_mean(weights: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """Value of totals of `pixel_sums`: mean over all pixels, then over all classes, absent ones too."""

    def value(total: Tensor) -> Tensor:
        loss, weight = total.sum(0, keepdim=True).unbind(2)
        return mean(loss / weight, torch.ones_like(loss, dtype=torch.bool), weights)

    return value
