"""Soft Dice loss (Milletari et al. 2016, arXiv:1606.04797, with plain instead of squared sums)."""

from __future__ import annotations

from config import Config
from model.losses.block import Term
from model.losses.regions import dice_loss, region_term

NAME = "Dice"
OPTIONS = ("dice_over",)


def build(cfg: Config) -> Term:
    """1 - Dice; regions.region_term says over what, and what absent classes do."""
    return region_term(cfg, dice_loss)
