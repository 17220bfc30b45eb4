"""What a term of a loss sees, and what it is: statistics of a block of pixels, and a value of their total."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Some rows of all classes, or all rows of some classes. What terms share is computed once, and only if asked for.

    Maps are (N, C, h, W) float32 (float64 for float64 logits), all in the memory layout of the logits.
    """

    logits: Tensor
    """Leaf of the block's own graph."""
    target: Tensor
    """0 or 1."""
    outlines: Outlines
    """Of the whole image."""
    first_row: int
    """Where the block begins in the image."""

    @cached_property
    def probs(self) -> Tensor:
        return self.logits.sigmoid()

    @cached_property
    def overlap(self) -> Tensor:
        """probs * target: the probability of the right foreground."""
        return self.probs * self.target

    @cached_property
    def wrong(self) -> Tensor:
        """Logits of being wrong: the probability of the truth is sigmoid(-wrong)."""
        return self.logits * (1 - 2 * self.target)

    @cached_property
    def cross_entropy(self) -> Tensor:
        """-log of the probability of the truth, without overflow at any logit."""
        return F.softplus(self.wrong)

    @cached_property
    def region_sums(self) -> Tensor:
        """(N, C, 3): sums over the pixels of probs * target, of probs and of target."""
        maps = (self.overlap, self.probs, self.target)
        return torch.stack([m.sum((2, 3)) for m in maps], 2)

    @cached_property
    def outline_distance(self) -> Tensor:
        """(N, 1, h, W): px to the nearest outline of any class."""
        rows = self.outlines.distance[:, :, self.first_row : self.first_row + self.logits.shape[2]]
        return rows.to(self.logits.dtype)


@dataclass(frozen=True)
class Outlines:
    """Distances in packed targets; computed when a term first asks, kept for the backward pass."""

    bits: Tensor
    """(N, words, H, W) int32."""

    @cached_property
    def distance(self) -> Tensor:
        """(N, 1, H, W) float32: px to the nearest pixel whose word differs from a neighbour's; those have 0.

        OpenCV's exact distances, on the CPU. An image without an outline is infinitely far from one.
        """
        edge = torch.zeros_like(self.bits[:, :1], dtype=torch.bool)
        for axis in (2, 3):
            length = self.bits.shape[axis] - 1
            change = (self.bits.narrow(axis, 1, length) != self.bits.narrow(axis, 0, length)).any(1, keepdim=True)
            edge.narrow(axis, 1, length).logical_or_(change)
            edge.narrow(axis, 0, length).logical_or_(change)
        maps = [distance_to(one[0]) for one in edge.cpu().numpy()]
        return torch.from_numpy(np.stack(maps))[:, None].to(self.bits.device)


def distance_to(where: np.ndarray) -> np.ndarray:
    """(H, W) float32: px from each pixel to the nearest where `where` (H, W) holds; infinite where it never does."""
    if not where.any():
        return np.full(where.shape, np.inf, np.float32)
    found: np.ndarray = cv2.distanceTransform((~where).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return found


@dataclass(frozen=True)
class Term:
    """One summand of a loss."""

    statistics: Callable[[Block], Tensor]
    """What the loss needs to know of a block, differentiable. Those of blocks of rows are added up, those of blocks of
    classes, (n, C, ...), are joined along axis 1."""
    value: Callable[[Tensor], Tensor]
    """The total -> the loss, a scalar."""
    whole_maps: bool = False
    """It needs whole maps, so its blocks hold all rows of one class; else blocks hold some rows of all classes."""
