"""Boundary loss (Kervadec et al. 2019, arXiv:1812.07032): probability times the distance from the true outline."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from config import Config
from model.losses.block import Block, Term, distance_to
from model.losses.classes import mean_of_pairs
from model.losses.names import class_weights

NAME = "Boundary"
OPTIONS = ()


def build(cfg: Config) -> Term:
    """Mean over pixels of p times the signed distance (px) to the class's outline, outside positive, inside negative.

    Its minimum is negative, and its size that of distances in px: give it a small weight (the paper begins with 0.01)
    beside a loss of regions. The mean over samples and classes leaves out the absent, which have no outline. Distances
    are OpenCV's, on the CPU.
    """
    weights = class_weights(cfg)
    return Term(statistics, lambda total: mean_of_pairs(total, weights), whole_maps=True)


def statistics(block: Block) -> Tensor:
    """(N, C, 2): loss of each class of each sample and whether it occurs."""
    masks = block.target.flatten(0, 1).cpu().numpy() > 0
    distances = torch.from_numpy(np.stack([signed_distance(mask) for mask in masks]))
    loss = (block.probs * distances.view_as(block.target).to(block.target)).mean((2, 3))
    return torch.stack([loss, block.target.amax((2, 3))], 2)


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """(H, W) float32: px from each pixel's centre to the outline, which runs between pixels; 0 everywhere if empty.

    An outline is half a pixel from the pixels beside it, on both sides. The paper's code has 1 and 0 there.
    """
    if not mask.any() or mask.all():
        return np.zeros(mask.shape, np.float32)
    return np.where(mask, 0.5 - distance_to(~mask), distance_to(mask) - 0.5)
