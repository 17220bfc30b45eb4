"""Losses of how two regions overlap: Dice, Jaccard, Tversky and what follows from them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from config import Config, ConfigProblem
from model.losses.block import Block, Term
from model.losses.classes import mean
from model.losses.names import class_weights

SMOOTH = 1.0
"""Pixels added to both sides of the fraction: gradients stay finite for tiny bones.

Losses are 1 minus a fraction, as (wrong + …) / (…) would cancel digits of small gradients in float32."""


def region_term(cfg: Config, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Term:
    """A term that is 1 minus a fraction of sums.

    `dice_over` says over what they are taken: class, each class over the batch; sample, each class of each sample;
    batch, everything, where class weights multiply the sums. A class that is absent from the batch (sample: from the
    sample) is left out of the mean: its loss would be nearly 1 whatever the network says and dilute the others. Its
    false positives are for the pixel-wise term, and for batches where it occurs. With batch they count.

    Args:
        loss: sums over the pixels of p t, p and t, of one shape -> losses of that shape.
    """
    over, weights = cfg.loss.dice_over, class_weights(cfg)

    def value(total: Tensor) -> Tensor:
        sums = total if over == "sample" else total.sum(0, keepdim=True)
        if over == "batch":
            everything = (sums * sums.new_tensor(weights)[:, None]).sum((0, 1))
            return loss(*everything.unbind(0)) * (everything[2] > 0)
        return mean(loss(*sums.unbind(2)), sums[..., 2] > 0, weights)

    return Term(region_sums, value)


def region_sums(block: Block) -> Tensor:
    """(N, C, 3): sums over the pixels of p t, p and t."""
    return block.region_sums


def dice_loss(overlap: Tensor, probs: Tensor, target: Tensor) -> Tensor:
    """1 - (2 TP + 1) / (2 TP + FP + FN + 1) of soft counts."""
    return 1 - (2 * overlap + SMOOTH) / (probs + target + SMOOTH)


def jaccard_loss(overlap: Tensor, probs: Tensor, target: Tensor) -> Tensor:
    """1 - (TP + 1) / (TP + FP + FN + 1) of soft counts."""
    return 1 - (overlap + SMOOTH) / (probs + target - overlap + SMOOTH)


def tversky_loss(cfg: Config) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """1 - (TP + 1) / (TP + alpha FP + beta FN + 1) of soft counts (Salehi et al. 2017, arXiv:1706.05721, eq. 3).

    Raises:
        ConfigProblem: alpha and beta are both 0.
    """
    alpha, beta = cfg.loss.tversky_alpha, cfg.loss.tversky_beta
    if alpha == beta == 0:
        raise ConfigProblem("tversky_alpha and tversky_beta are both 0, so that nothing is wrong: raise one of them.")

    def loss(overlap: Tensor, probs: Tensor, target: Tensor) -> Tensor:
        wrong = alpha * (probs - overlap) + beta * (target - overlap)
        return 1 - (overlap + SMOOTH) / (overlap + wrong + SMOOTH)

    return loss
