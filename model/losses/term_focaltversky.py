"""Focal Tversky loss (Abraham and Khan 2019, arXiv:1810.07842, eq. 3)."""

from __future__ import annotations

from torch import Tensor

from config import Config
from model.losses.block import Term
from model.losses.regions import region_term, tversky_loss

NAME = "FocalTversky"
OPTIONS = ("dice_over", "tversky_alpha", "tversky_beta", "focal_tversky_gamma")

LEAST = 1e-6
"""Smaller losses have no gradient: that of a root is infinite at 0."""


def build(cfg: Config) -> Term:
    """(1 - Tversky index)^(1 / gamma); regions.region_term says over what, and what absent classes do.

    Raises:
        ConfigProblem: tversky_alpha and tversky_beta are both 0.
    """

    plain, exponent = tversky_loss(cfg), 1 / cfg.loss.focal_tversky_gamma

    def loss(overlap: Tensor, probs: Tensor, target: Tensor) -> Tensor:
        return plain(overlap, probs, target).clamp(min=LEAST) ** exponent

    return region_term(cfg, loss)
