"""Binary cross-entropy: one independent decision per class and pixel, since bones overlap."""

from __future__ import annotations

import torch
from torch import Tensor

from config import Config
from model.losses.block import Block, Term
from model.losses.classes import pixel_mean, pixel_sums
from model.losses.names import class_weights

NAME = "BCE"
OPTIONS = ("pos_weight", "label_smoothing", "pixel_weight", "pixel_weight_gain", "pixel_weight_sigma")


def build(cfg: Config) -> Term:
    """Mean over all pixels of -w u log p - (1 - u) log(1 - p), then over all classes, absent ones too.

    u = t (1 - s) + s / 2 is the smoothed target, w = pos_weight. `pixel_weight` turns the mean over the pixels into a
    weighted one: 1 + gain exp(-d^2 / (2 sigma^2)), d px from the nearest outline of any class, or 1 + gain where two or
    more classes hold the pixel.
    """
    positive, smoothing = cfg.loss.pos_weight, cfg.loss.label_smoothing

    def loss(block: Block) -> Tensor:
        answer = block.cross_entropy
        if not smoothing and positive == 1:
            return answer
        # The other answer's cross-entropy is cross_entropy - wrong, and where one has pos_weight, the other has 1.
        weight, other = 1 + (positive - 1) * block.target, positive + (1 - positive) * block.target
        return (1 - smoothing / 2) * weight * answer + smoothing / 2 * other * (answer - block.wrong)

    return Term(lambda block: pixel_sums(loss(block), pixel_weight(cfg, block)), pixel_mean(class_weights(cfg)))


def pixel_weight(cfg: Config, block: Block) -> Tensor | None:
    """(N, 1, h, W); None where all pixels weigh the same."""
    gain, sigma = cfg.loss.pixel_weight_gain, cfg.loss.pixel_weight_sigma
    if cfg.loss.pixel_weight == "distance":
        return 1 + gain * torch.exp(-((block.outline_distance / sigma) ** 2) / 2)
    if cfg.loss.pixel_weight == "overlap":
        return 1 + gain * (block.target.sum(1, keepdim=True) >= 2)
    return None
