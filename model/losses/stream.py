"""A weighted sum of terms in one pass over the logits, block by block.

Written out on 29 classes at once, a loss keeps eight to ten tensors of the logits' size for the backward pass. Here the
forward pass adds up statistics of small blocks and keeps only the slopes of the loss in them; the backward pass
computes the statistics of each block again and writes its gradient. So what is needed beside the logits is their
gradient and one block, which fits a CPU's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.bits import n_words
from engine.distributed import ALONE, World
from model.losses.block import Block, Outlines, Term

BLOCK = {"cpu": 1 << 18, "cuda": 1 << 21}
"""Device -> logits in a block of rows: a CPU's second-level cache, or enough work for a GPU's kernels while the block's
eight temporaries stay small beside 29 classes of 1024 x 1024."""

View = tuple[slice, slice, slice]
"""Where a block lies in the logits."""


@dataclass(frozen=True)
class Loss:
    """A weighted sum of terms, of one output of the network or of several (deep supervision)."""

    terms: Sequence[Term]
    weights: Sequence[float]
    n_classes: int
    world: World = ALONE
    """Processes that train together: the loss is that of all their samples, on all of them. Its gradient is `ranks`
    times as large, as DistributedDataParallel takes the mean over the ranks."""

    def __call__(
        self, logits: Tensor | Sequence[Tensor], bits: Tensor, samples: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar, float32 (float64 for float64 logits). Its gradient can't be differentiated again.

        Args:
            logits: (N, K, H, W) float32, float64 or half, in any memory layout. Or a sequence of such outputs from fine
                to coarse, whose losses have the weights 1, 1/2, 1/4, … over their sum; each is compared with the
                target's nearest pixels.
            bits: (N, words, H, W) int32 packed targets.
            samples: (N,) weights of the samples in all means over pixels and in all sums over the batch; terms of whole
                maps, and dice_over=sample, take all alike. None weighs all by 1.

        Raises:
            ValueError: shapes that do not fit each other or the classes.
        """
        if isinstance(logits, Tensor):
            self._check(logits, bits)
            loss: Tensor = _Streamed.apply(logits, bits, samples, self)
            return loss
        shares = [0.5**i for i in range(len(logits))]
        losses = [s * self(one, sample(bits, *one.shape[2:]), samples) for s, one in zip(shares, logits, strict=True)]
        return torch.stack(losses).sum() / sum(shares)

    def _check(self, logits: Tensor, bits: Tensor) -> None:
        n, k, h, w = logits.shape
        expected = (n, n_words(self.n_classes), h, w)
        if k != self.n_classes or bits.shape != expected:
            raise ValueError(
                f"logits are {tuple(logits.shape)} and targets {tuple(bits.shape)}, but {self.n_classes} classes need "
                f"({n}, {self.n_classes}, {h}, {w}) and {expected}."
            )


def sample(bits: Tensor, h: int, w: int) -> Tensor:
    """(N, words, H, W) -> (N, words, h, w): the words at row floor((r + 0.5) * H / h), columns likewise."""
    for axis, length in ((2, h), (3, w)):
        if length != bits.shape[axis]:
            position = (2 * torch.arange(length, device=bits.device) + 1) * bits.shape[axis] // (2 * length)
            bits = bits.index_select(axis, position)
    return bits


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits: Tensor, bits: Tensor, samples: Tensor | None, loss: Loss
    ) -> Tensor:
        outlines, terms = Outlines(bits), loss.terms
        with torch.autocast(logits.device.type, enabled=False):
            totals = _totals(logits, outlines, terms)
            with torch.enable_grad():
                leaves = [total.requires_grad_() for total in totals]
                weighted = [_weighted(leaf, samples, term) for leaf, term in zip(leaves, terms, strict=True)]
                wholes = [loss.world.stack(total) for total in weighted]
                values = [w * term.value(whole) for w, term, whole in zip(loss.weights, terms, wholes, strict=True)]
                value = torch.stack(values).sum()
            if ctx.needs_input_grad[0]:
                slopes = torch.autograd.grad(value, leaves)
                ctx.save_for_backward(logits, *(slope * loss.world.ranks for slope in slopes))
                ctx.outlines, ctx.terms = outlines, terms
        return value.detach()

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None]:
        logits, *slopes = ctx.saved_tensors
        slopes = [slope * outer for slope in slopes]
        gradient = torch.zeros_like(logits)
        with torch.autocast(logits.device.type, enabled=False):
            for whole_maps, chosen in _kinds(ctx.terms):
                for view, block in _blocks(logits, ctx.outlines, whole_maps):
                    with torch.enable_grad():
                        found = [ctx.terms[i].statistics(block) for i in chosen]
                    wanted = [slopes[i][:, view[1]] if whole_maps else slopes[i] for i in chosen]
                    gradient[view].add_(torch.autograd.grad(found, block.logits, wanted)[0])
        return gradient, None, None, None


def _weighted(total: Tensor, samples: Tensor | None, term: Term) -> Tensor:
    """The statistics (N, ...) times the samples' weights: whatever is divided by them later is weighted too."""
    if samples is None or term.whole_maps:
        return total
    return total * samples.view(-1, *(1,) * (total.ndim - 1))


def _totals(logits: Tensor, outlines: Outlines, terms: Sequence[Term]) -> list[Tensor]:
    """Each term's statistics of all pixels."""
    totals: dict[int, Tensor] = {}
    for whole_maps, chosen in _kinds(terms):
        for _, block in _blocks(logits, outlines, whole_maps):
            for i in chosen:
                found = terms[i].statistics(block).detach()
                if i not in totals:
                    totals[i] = found
                else:
                    totals[i] = torch.cat([totals[i], found], 1) if whole_maps else totals[i] + found
    return [totals[i] for i in range(len(terms))]


def _kinds(terms: Sequence[Term]) -> list[tuple[bool, list[int]]]:
    """Whether whole maps are needed -> the terms that it holds for; kinds without a term are left out."""
    kinds = [(kind, [i for i, term in enumerate(terms) if term.whole_maps == kind]) for kind in (False, True)]
    return [(kind, chosen) for kind, chosen in kinds if chosen]


def _blocks(logits: Tensor, outlines: Outlines, whole_maps: bool) -> Iterator[tuple[View, Block]]:
    n, k, height, width = logits.shape
    everything = slice(None)
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows = max(1, BLOCK["cpu" if logits.device.type == "cpu" else "cuda"] // (n * k * width))
    if whole_maps:
        views: list[View] = [(everything, slice(c, c + 1), everything) for c in range(k)]
    else:
        views = [(everything, everything, slice(first, first + rows)) for first in range(0, height, rows)]
    for view in views:
        x = logits[view].detach().to(kind)
        # One class of a channels-last tensor is every 29th number: terms read it more than once.
        x = x.contiguous() if whole_maps else x
        target = _unpack(outlines.bits[:, :, view[2]], range(k)[view[1]], x)
        yield view, Block(x.requires_grad_(), target, outlines, view[2].start or 0)


def _unpack(bits: Tensor, classes: range, like: Tensor) -> Tensor:
    """These classes' masks, 0 or 1, in the type and memory layout of `like`."""
    channels_last = like.stride(1) == 1
    words = bits.movedim(1, 3) if channels_last else bits
    parts = []
    for w in range(classes.start // 32, n_words(classes.stop)):
        inside = range(max(classes.start, 32 * w), min(classes.stop, 32 * w + 32))
        shifts = torch.arange(inside.start - 32 * w, inside.stop - 32 * w, dtype=torch.int32, device=bits.device)
        if channels_last:
            parts.append(words[..., w, None] >> shifts)
        else:
            parts.append(words[:, w, None] >> shifts[:, None, None])
    # An arithmetic shift of a negative word fills with ones from above; & 1 drops them.
    masks = (torch.cat(parts, 3 if channels_last else 1) if len(parts) > 1 else parts[0]).bitwise_and_(1).to(like.dtype)
    return masks.movedim(3, 1) if channels_last else masks
