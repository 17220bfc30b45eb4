"""Focal loss (Lin et al. 2017, arXiv:1708.02002, eq. 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from config import Config
from model.losses import Term
from model.losses.by_class import Counts

NAME = "Focal"


def build(cfg: Config) -> Term:
    """Mean over all pixels and classes of alpha_t (1 - p_t)^gamma times the cross-entropy."""
    alpha, gamma = cfg.loss.focal_alpha, cfg.loss.focal_gamma

    def focal(logits: Tensor, target: Tensor, counts: Counts) -> Tensor:
        wrong = logits * (1 - 2 * target)  # p_t = sigmoid(-wrong)
        # (1 - p_t)^gamma as exp(gamma log sigmoid(wrong)): no 0 * inf at extreme logits.
        weighted = torch.exp(gamma * F.logsigmoid(wrong)) * F.softplus(wrong)
        return ((1 - alpha + (2 * alpha - 1) * target) * weighted).mean() / counts.classes

    return focal
