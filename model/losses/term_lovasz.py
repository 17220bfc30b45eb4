"""Lovasz hinge (Berman et al. 2018, arXiv:1705.08790): the convex extension of the Jaccard loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from config import Config
from model.losses.block import Block, Term
from model.losses.classes import mean_of_pairs
from model.losses.names import class_weights

NAME = "Lovasz"
OPTIONS = ()


def build(cfg: Config) -> Term:
    """Hinge errors of all pixels of the batch, sorted, times the growth of the Jaccard loss (algorithm 1), by class.

    A class that is absent from the batch is left out of the mean over classes, as in Dice.
    """
    weights = class_weights(cfg)
    return Term(statistics, lambda total: mean_of_pairs(total, weights), whole_maps=True)


def statistics(block: Block) -> Tensor:
    """(1, C, 2): loss of each class and whether it occurs."""
    errors, truths = (1 + block.wrong).transpose(0, 1).flatten(1), block.target.transpose(0, 1).flatten(1)
    found = [torch.stack([hinge(e, t), t.amax()]) for e, t in zip(errors, truths, strict=True)]
    return torch.stack(found)[None]


def hinge(errors: Tensor, truth: Tensor) -> Tensor:
    """The loss of one class: errors and truth (pixels) in any order."""
    ordered, order = errors.sort(descending=True)
    positive = truth[order] > 0
    # The Jaccard loss when the first pixels are wrong is 1 - kept / union. Its growth is in closed form, as the
    # difference of two quotients near 1 would keep few digits in float32. Counts are int64: float32 ends at 2^24.
    total = positive.sum()
    kept, union = total - positive.cumsum(0), total + (~positive).cumsum(0)
    numerator = torch.where(positive, 1, kept)
    denominator = torch.where(positive, union, union * (union - 1)).clamp(min=1)  # 0 where the class is absent
    return (F.relu(ordered) * (numerator.to(errors.dtype) / denominator.to(errors.dtype))).sum()
