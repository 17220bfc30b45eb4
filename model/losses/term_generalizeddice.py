"""Generalized Dice loss (Sudre et al. 2017, arXiv:1707.03237): small classes weigh as much as large ones."""

from __future__ import annotations

from torch import Tensor

from config import Config
from model.losses.block import Term
from model.losses.classes import tiny
from model.losses.names import class_weights
from model.losses.regions import region_sums

NAME = "GeneralizedDice"
ALIASES = ("GDL",)
OPTIONS = ()


def build(cfg: Config) -> Term:
    """1 - 2 sum of w TP / sum of w (2 TP + FP + FN), w = 1 / pixels^2 of the class in the targets of the batch.

    A class that is absent from the batch is left out: the paper's weight for it is infinite. Class weights multiply w.
    The background is no class here.
    """
    weights = class_weights(cfg)

    def value(total: Tensor) -> Tensor:
        overlap, probs, target = total.sum(0).unbind(1)
        w = (target > 0) * total.new_tensor(weights) / target.clamp(min=1) ** 2
        similarity = 2 * (w * overlap).sum() / (w * (probs + target)).sum().clamp(min=tiny(total))
        return (w.sum() > 0).to(total) - similarity

    return Term(region_sums, value)
