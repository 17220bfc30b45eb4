"""The losses of the loss benchmark as they are usually written: all classes at once, on float masks."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

Dense = Callable[[Tensor, Tensor], Tensor]
"""Logits and masks of 0 and 1, both (N, K, H, W) float32 -> a scalar."""

WRITTEN_OUT, SMP, MONAI = "written out", "SMP", "MONAI"
MISSING = "{} is not installed: `make setup` installs what is compared."


def peers(loss: str) -> dict[str, Dense | None]:
    """The peers that have a loss of this name, with the formula and constants of ours; None where not installed."""
    found: dict[str, Dense | None] = {WRITTEN_OUT: {FOCAL_DICE: focal_dice, BCE_DICE_OVERLAP: bce_dice_overlap}[loss]}
    if loss == FOCAL_DICE:
        found[SMP] = smp_focal_dice() if find_spec("segmentation_models_pytorch") else None
        found[MONAI] = monai_focal_dice() if find_spec("monai") else None
    return found


FOCAL_DICE, BCE_DICE_OVERLAP = "Combined_Focal_Dice", "Combined_BCE_Dice_Overlap"


def focal_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """Focal (alpha 0.25, gamma 2) by its cross-entropy, and Dice."""
    ce = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    p_t = torch.exp(-ce)
    alpha_t = 0.25 * masks + 0.75 * (1 - masks)
    return (alpha_t * (1 - p_t) ** 2 * ce).mean() + dice(logits, masks)


def bce_dice_overlap(logits: Tensor, masks: Tensor) -> Tensor:
    """BCE, Dice, and Overlap by products of maps; the sum over pairs as (sum of maps)^2 - sum of squares, halved."""
    probs = logits.sigmoid()
    predicted, labelled, both = (pairs(maps) for maps in (probs, masks, probs * masks))
    overlap = 1 - (2 * both + 1) / (predicted + labelled + 1)
    return F.binary_cross_entropy_with_logits(logits, masks) + dice(logits, masks) + overlap


def pairs(maps: Tensor) -> Tensor:
    """Sum over pixels and pairs of classes of the products of maps."""
    return (maps.sum(1) ** 2 - (maps**2).sum(1)).sum() / 2


def dice(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - Dice of each class over the batch; all classes must occur."""
    probs = logits.sigmoid()
    overlap = (probs * masks).sum((0, 2, 3))
    total = probs.sum((0, 2, 3)) + masks.sum((0, 2, 3))
    return (1 - (2 * overlap + 1) / (total + 1)).mean()


def smp_focal_dice() -> Dense:
    from segmentation_models_pytorch.losses import DiceLoss, FocalLoss  # here: slow to load

    # Its Dice halves the denominator, so half a pixel is our one.
    one, other = FocalLoss("multilabel", alpha=0.25, gamma=2.0), DiceLoss("multilabel", smooth=0.5)
    return lambda logits, masks: one(logits, masks) + other(logits, masks)


def monai_focal_dice() -> Dense:
    from monai.losses import DiceLoss, FocalLoss  # here: it is no dependency of the product

    one = FocalLoss(alpha=0.25, gamma=2.0)
    other = DiceLoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)
    return lambda logits, masks: one(logits, masks) + other(logits, masks)
