"""Multi-scale structural similarity (Wang et al. 2003, doi:10.1109/ACSSC.2003.1292216) as UNet3+ uses it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from config import Config
from model.losses.block import Block, Term
from model.losses.classes import mean_of_pairs
from model.losses.names import class_weights

NAME = "MSSSIM"
ALIASES = ("MS-SSIM",)
OPTIONS = ()

EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales, from fine to coarse (Wang et al. 2003)."""
WINDOW, SIGMA = 11, 1.5
"""Gaussian window, px (Wang et al. 2004, doi:10.1109/TIP.2003.819861)."""
C1, C2 = 0.01**2, 0.03**2
"""Constants of luminance and of contrast for values between 0 and 1 (same source)."""
LEAST = 1e-6
"""Smaller similarities have no gradient: that of a power below 1 is infinite at 0."""


def build(cfg: Config) -> Term:
    """1 - MS-SSIM of probabilities and target, of each class of each sample; mean over samples and classes.

    Absent classes count: their similarity says how empty the prediction is. Windows lie inside the map. Of the five
    scales those count that the window of 11 px fits into (from 176 px on: all), their exponents scaled to the sum of
    all five; a map below 11 px has one scale with a smaller window.
    """
    weights = class_weights(cfg)
    return Term(statistics, lambda total: mean_of_pairs(total, weights), whole_maps=True)


def statistics(block: Block) -> Tensor:
    """(N, C, 2): loss of each class of each sample and 1, as all count."""
    loss = 1 - ms_ssim(block.probs.flatten(0, 1)[:, None], block.target.flatten(0, 1)[:, None])
    loss = loss.view(block.target.shape[:2])
    return torch.stack([loss, torch.ones_like(loss)], 2)


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """(B, 1, H, W) values between 0 and 1 -> (B) similarities."""
    side = min(x.shape[2:])
    scales = max(1, sum(side >> scale >= WINDOW for scale in range(len(EXPONENTS))))
    exponents = [one * sum(EXPONENTS) / sum(EXPONENTS[:scales]) for one in EXPONENTS[:scales]]
    product = torch.ones_like(x[:, 0, 0, 0])
    for scale, exponent in enumerate(exponents):
        luminance, structure = ssim_maps(x, y)
        last = scale == scales - 1
        similarity = (luminance * structure if last else structure).mean((1, 2, 3))
        product = product * similarity.clamp(min=LEAST) ** exponent
        if not last:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return product


def ssim_maps(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure, where the whole window lies inside."""
    mean_x, mean_y, xx, yy, xy = blur(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    spread = xx - mean_x**2 + yy - mean_y**2
    return luminance, (2 * (xy - mean_x * mean_y) + C2) / (spread + C2)


def blur(maps: Tensor) -> Tensor:
    """Gaussian averages of (B, 1, H, W) where the window, 11 px or the largest odd number that fits, lies inside."""
    side = min(WINDOW, *maps.shape[2:])
    side -= 1 - side % 2
    offset = torch.arange(side, dtype=maps.dtype, device=maps.device) - side // 2
    kernel = torch.exp(-((offset / SIGMA) ** 2) / 2)
    kernel = kernel / kernel.sum()
    # Maps as channels of one sample: that convolution is 36 times as fast on a CPU as one of a single channel.
    channels, count = maps.transpose(0, 1), len(maps)
    for shape in ((1, 1, 1, -1), (1, 1, -1, 1)):
        channels = F.conv2d(channels, kernel.view(shape).repeat(count, 1, 1, 1), groups=count)
    return channels.transpose(0, 1)
