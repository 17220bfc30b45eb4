"""UNet 3+: every decoder stage sees all scales (Huang et al. 2020, arXiv:2004.08790), written out.

A stage takes the encoder's features of its own and all finer scales (max pooling) and the decoder's of all coarser ones
(bilinear), makes each as wide as the first stage by one convolution, and fuses the five by another. With deep
supervision each of the five scales gives logits, interpolated to full size. Left out: the classification-guided module,
which blanks the prediction where an image holds none of the one organ.

Variant `64` is the paper's. Memory is the price: the finest stage interpolates 31 times the first stage's channels to
full size before it makes them fewer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config
from model.blocks import conv_block, first_channels, logits_layer
from model.network import Built, Published

PAPER = "Huang et al. 2020, arXiv:2004.08790"

OPTIONS = ("base_channels", "deep_supervision")

SCALES = 5

VARIANTS: dict[str, int | None] = {"": None, "64": 64}
"""Channels of the first stage; None follows `base_channels`."""

PUBLISHED = {"64": Published(26_970_000, "the paper's table 1, UNet 3+ without deep supervision", digits=4)}


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built."""
    channels = first_channels(VARIANTS[variant], cfg)
    net = UNet3Plus(cfg.model.in_channels, len(cfg.data.classes), channels, cfg.model.deep_supervision)
    return Built(net, 2 ** (SCALES - 1), [*net.encoder, *net.decoder])


class UNet3Plus(nn.Module):
    """(N, in_channels, H, W) -> (N, K, H, W), H and W multiples of 16; in training mode with deep supervision a list
    of five of that size."""

    def __init__(self, in_channels: int, n_classes: int, channels: int, deep_supervision: bool) -> None:
        super().__init__()
        widths = [channels * 2**i for i in range(SCALES)]
        fused, inputs = channels * SCALES, [in_channels, *widths]
        decoded = [fused] * (SCALES - 1) + widths[-1:]
        self.encoder = nn.ModuleList(conv_block(inputs[i], width) for i, width in enumerate(widths))
        self.decoder = nn.ModuleList(
            FullScaleStage(i, widths[: i + 1] + decoded[i + 1 :], channels) for i in range(SCALES - 1)
        )
        heads = SCALES if deep_supervision else 1
        self.heads = nn.ModuleList(logits_layer(width, n_classes, kernel=3) for width in decoded[:heads])

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        features: list[Tensor] = []
        for i, stage in enumerate(self.encoder):
            x = stage(F.max_pool2d(x, 2) if i else x)
            features.append(x)
        for i in range(SCALES - 2, -1, -1):
            features[i] = self.decoder[i](*features)  # the encoder's up to i, the decoder's beyond
        if not self.training or len(self.heads) == 1:
            out: Tensor = self.heads[0](features[0])
            return out
        return [_resampled(head(features[i]), i) for i, head in enumerate(self.heads)]


class FullScaleStage(nn.Module):
    """Features of all scales, fine to coarse, (N, inputs[j], H / 2^j, W / 2^j) -> (N, 5 channels, H / 2^scale,
    W / 2^scale)."""

    def __init__(self, scale: int, inputs: list[int], channels: int) -> None:
        super().__init__()
        self.scale = scale
        self.branches = nn.ModuleList(conv_block(width, channels, convs=1) for width in inputs)
        self.fusion = conv_block(channels * len(inputs), channels * len(inputs), convs=1)

    def forward(self, *features: Tensor) -> Tensor:
        branches = [branch(_resampled(features[j], j - self.scale)) for j, branch in enumerate(self.branches)]
        fused: Tensor = self.fusion(torch.cat(branches, 1))
        return fused


def _resampled(x: Tensor, octaves: int) -> Tensor:
    """(N, C, H, W) -> (N, C, H 2^octaves, W 2^octaves)."""
    if octaves > 0:
        return F.interpolate(x, scale_factor=2**octaves, mode="bilinear")
    return F.max_pool2d(x, 2**-octaves) if octaves else x
