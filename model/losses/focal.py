"""Focal loss (Lin et al. 2017, arXiv:1708.02002, eq. 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from config import Config
from model.losses import Term

NAME = "Focal"


def build(cfg: Config) -> Term:
    """Mean of alpha_t (1 - p_t)^gamma times the cross-entropy, over all elements."""
    alpha, gamma = cfg.loss.focal_alpha, cfg.loss.focal_gamma

    def focal(logits: Tensor, target: Tensor) -> Tensor:
        wrong = torch.where(target, -logits, logits)  # p_t = sigmoid(-wrong)
        # Powers of sigmoid as exp(gamma log sigmoid): no 0 * inf at extreme logits.
        weighted = torch.exp(gamma * F.logsigmoid(wrong)) * F.softplus(wrong)
        return (torch.where(target, alpha, 1 - alpha) * weighted).mean()

    return focal
