"""Soft Jaccard loss, also called IoU loss (Rahman and Wang 2016, doi:10.1007/978-3-319-50835-1_22)."""

from __future__ import annotations

from config import Config
from model.losses.block import Term
from model.losses.regions import jaccard_loss, region_term

NAME = "Jaccard"
ALIASES = ("IoU",)
OPTIONS = ("dice_over",)


def build(cfg: Config) -> Term:
    """1 - Jaccard index; regions.region_term says over what, and what absent classes do."""
    return region_term(cfg, jaccard_loss)
