"""Tversky loss (Salehi et al. 2017, arXiv:1706.05721)."""

from __future__ import annotations

from config import Config
from model.losses.block import Term
from model.losses.regions import region_term, tversky_loss

NAME = "Tversky"
OPTIONS = ("dice_over", "tversky_alpha", "tversky_beta")


def build(cfg: Config) -> Term:
    """1 - Tversky index; regions.region_term says over what, and what absent classes do.

    Raises:
        ConfigProblem: tversky_alpha and tversky_beta are both 0.
    """
    return region_term(cfg, tversky_loss(cfg))
