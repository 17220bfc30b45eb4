"""Soft Dice loss (Milletari et al. 2016, arXiv:1606.04797, with plain instead of squared sums)."""

from __future__ import annotations

from torch import Tensor

from config import Config
from model.losses import Term

NAME = "Dice"

SMOOTH = 1.0
"""Pixels added to both sides of the fraction: gradients stay finite for tiny bones."""


def build(cfg: Config) -> Term:
    """1 - Dice per class, over all pixels of the batch, mean over the classes that occur in the batch.

    A class that is absent from the batch is left out of the mean: its Dice would be 0 whatever the network says and
    dilute the others. Its false positives are for the pixel-wise term, and for batches where it occurs.
    """

    def dice(logits: Tensor, target: Tensor) -> Tensor:
        probs = logits.sigmoid()
        axes = (0, 2, 3)
        size = target.sum(axes).to(probs.dtype)
        overlap = (probs * target).sum(axes)
        loss = 1 - (2 * overlap + SMOOTH) / (probs.sum(axes) + size + SMOOTH)
        present = (size > 0).to(probs.dtype)
        return (loss * present).sum() / present.sum().clamp(min=1)

    return dice
