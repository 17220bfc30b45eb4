"""Losses one class at a time: every term is a sum over classes, so no step holds all of them in float.

29 classes written out at once keep eight to ten tensors of the logits' size for the backward pass. Here each class's
gradient is computed along with its loss and only that is kept: one tensor of the logits' size, and temporaries of one
class that fit a CPU's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.losses import Term


@dataclass(frozen=True)
class Counts:
    """What a term may need to know beyond its own class."""

    classes: int
    """Classes of the network."""
    present: int
    """Classes that occur in the targets of the batch."""
    pixels: int
    """Pixels of this class in the targets of the batch."""


def sum_by_class(logits: Tensor, bits: Tensor, terms: Sequence[Term], weights: Sequence[float]) -> Tensor:
    """Weighted sum of `terms`, each added up over the classes.

    Args:
        logits: (N, K, H, W), float32 or half; sums are float32 (Radius alone, 75 128 px, overflows float16).
        bits: (N, words, H, W) int32 packed targets.
    """
    loss: Tensor = _SumByClass.apply(logits, bits, terms, weights)
    return loss


class _SumByClass(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits: Tensor, bits: Tensor, terms: Sequence[Term], weights: Sequence[float]
    ) -> Tensor:
        logits = logits.contiguous()  # one class of a channels-last tensor is every 29th number: 5 times slower
        targets = [((bits[:, k // 32] >> (k % 32)) & 1).bool() for k in range(logits.shape[1])]
        pixels = torch.stack([target.sum() for target in targets]).tolist()  # all at once: one wait for the GPU
        present = sum(count > 0 for count in pixels)
        # float16 would lose the small gradients that the scaler only enlarges afterwards; bfloat16 has the range.
        kind = torch.float32 if logits.dtype == torch.float16 else logits.dtype
        gradient = torch.empty_like(logits, dtype=kind) if ctx.needs_input_grad[0] else None
        total = logits.new_zeros((), dtype=torch.float32)
        for k, target in enumerate(targets):
            counts = Counts(len(targets), present, pixels[k])
            with torch.enable_grad():
                one, wanted = logits[:, k].float().detach().requires_grad_(), target.float()
                shares = [w * term(one, wanted, counts) for w, term in zip(weights, terms, strict=True)]
                loss = torch.stack(shares).sum()
            if gradient is not None:
                gradient[:, k] = torch.autograd.grad(loss, one)[0]
            total += loss.detach()
        if gradient is not None:
            ctx.save_for_backward(gradient)
            ctx.kind = logits.dtype
        return total

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return (gradient * outer).to(ctx.kind), None, None, None
