"""Focal loss (Lin et al. 2017, arXiv:1708.02002, eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from config import Config
from model.losses.block import Block, Term
from model.losses.classes import pixel_mean, pixel_sums
from model.losses.names import class_weights

NAME = "Focal"
OPTIONS = ("focal_alpha", "focal_gamma")


def build(cfg: Config) -> Term:
    """Mean over all pixels of alpha_t (1 - p_t)^gamma times the cross-entropy, then over all classes, absent ones too.

    The paper divides by the number of foreground boxes instead of pixels, which segmentation does not have.
    """
    alpha, gamma = cfg.loss.focal_alpha, cfg.loss.focal_gamma

    def statistics(block: Block) -> Tensor:
        # 1 - p_t = sigmoid(wrong), whose log is wrong - softplus(wrong): no 0 * inf at extreme logits.
        hard = torch.exp(gamma * (block.wrong - block.cross_entropy))
        return pixel_sums((1 - alpha + (2 * alpha - 1) * block.target) * (hard * block.cross_entropy))

    return Term(statistics, pixel_mean(class_weights(cfg)))
