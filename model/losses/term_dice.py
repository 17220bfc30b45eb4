"""Soft Dice loss (Milletari et al. 2016, arXiv:1606.04797, with plain instead of squared sums)."""

from __future__ import annotations

from torch import Tensor

from config import Config
from model.losses import Term
from model.losses.by_class import Counts

NAME = "Dice"

SMOOTH = 1.0
"""Pixels added to both sides of the fraction: gradients stay finite for tiny bones."""


def build(cfg: Config) -> Term:
    """1 - Dice per class, over all pixels of the batch; mean over the classes that occur in the batch.

    A class that is absent from the batch is left out of the mean: its Dice would be 0 whatever the network says and
    dilute the others. Its false positives are for the pixel-wise term, and for batches where it occurs.
    """

    def dice(logits: Tensor, target: Tensor, counts: Counts) -> Tensor:
        if counts.pixels == 0:
            return 0 * logits.sum()
        probs = logits.sigmoid()
        overlap = (probs * target).sum()
        return (1 - (2 * overlap + SMOOTH) / (probs.sum() + counts.pixels + SMOOTH)) / counts.present

    return dice
