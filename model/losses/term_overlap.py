"""Overlap loss: pairs of classes must overlap where they do in the labels, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from config import Config, ConfigProblem
from model.losses.block import Block, Term
from model.losses.names import class_weights

NAME = "Overlap"
OPTIONS = ()

SMOOTH = 1.0
"""Pixels added to the denominator: no overlap in labels or prediction gives 0."""


def build(cfg: Config) -> Term:
    """(F + M) / (F + M + 2 C + 1), each summed over all pairs of classes i < j and all pixels of the batch:

    F = p_i p_j (1 - t_i t_j), overlap in the prediction, but not in the labels;
    M = t_i t_j (1 - p_i p_j), overlap in the labels, but not in the prediction;
    C = p_i p_j t_i t_j, overlap in both.

    This is 1 - Dice of the products, between 0 and 1. Sums are pooled over pairs, so that the hundreds that never meet
    can't dilute those that do, and no pair needs a rule for being absent. A pair weighs the product of its classes'
    weights.

    Raises:
        ConfigProblem: there is one class only.
    """
    weights = class_weights(cfg)
    if len(weights) < 2:
        raise ConfigProblem(f"loss {cfg.loss.loss}: Overlap needs two classes, but classes has one: leave Overlap out.")

    def statistics(block: Block) -> Tensor:
        # (N, 3): the sums of p_i p_j, of t_i t_j and of C.
        return torch.stack([pairs(maps, weights) for maps in (block.probs, block.target, block.overlap)], 1)

    def value(total: Tensor) -> Tensor:
        predicted, labelled, both = total.sum(0).unbind(0)
        return 1 - (2 * both + SMOOTH) / (predicted + labelled + SMOOTH)

    return Term(statistics, value)


def pairs(maps: Tensor, weights: Sequence[float]) -> Tensor:
    """(N): sum of w_i m_i w_j m_j over pixels and pairs i < j of maps (N, K, h, W).

    Half of the square of the sum minus the sum of the squares: K products a pixel, not K^2.
    """
    weighted = maps if set(weights) == {1.0} else maps * maps.new_tensor(weights)[:, None, None]
    return ((weighted.sum(1) ** 2).sum((1, 2)) - (weighted * weighted).sum((1, 2, 3))) / 2
