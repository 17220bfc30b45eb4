"""A plain U-Net, written out: the model to read first, and the one that trains on a laptop.

Ronneberger, Fischer, Brox 2015, arXiv:1505.04597, with padded convolutions, normalisation and nearest upsampling. The
variants `half` and `quarter` fold blocks of 2 x 2 or 4 x 4 pixels into channels before the first stage and unfold the
logits after the last (Shi et al. 2016, arXiv:1609.05158): most of a U-Net's time goes into its finest stages, and this
way they are small while no pixel is lost. They unfold to half of the full resolution and interpolate the rest: unfolded
all the way, outlines show the blocks (test Dice of the demo 0.915 against 0.918).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config
from model.blocks import PRIOR as PRIOR
from model.blocks import conv_block, first_channels, logits_layer
from model.network import Built

PAPER = "Ronneberger, Fischer, Brox 2015, arXiv:1505.04597"

OPTIONS = ("base_channels", "dropout")

WIDEST = 256
"""Channels double from stage to stage up to this."""


@dataclass(frozen=True)
class Shape:
    """What sets the variants apart."""

    fold: int = 1
    """Side of the pixel blocks that become channels."""
    stages: int = 5
    channels: int | None = None
    """Of the first stage; None follows `base_channels`."""


VARIANTS: dict[str, Shape] = {
    "": Shape(),
    "16": Shape(channels=16),
    "32": Shape(channels=32),
    "64": Shape(channels=64),
    "half": Shape(fold=2, stages=6),
    "quarter": Shape(fold=4, stages=5),
}


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built."""
    shape = VARIANTS[variant]
    channels = first_channels(shape.channels, cfg)
    net = SimpleUNet(shape, cfg.model.in_channels, len(cfg.data.classes), channels, cfg.model.dropout)
    return Built(net, shape.fold * 2 ** (shape.stages - 1), [*net.encoder, *net.decoder])


class SimpleUNet(nn.Module):
    """(N, in_channels, H, W) -> (N, K, H, W), H and W multiples of the stride."""

    def __init__(self, shape: Shape, in_channels: int, n_classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        widths = [min(channels * 2**i, max(WIDEST, channels)) for i in range(shape.stages)]
        inputs = [in_channels * shape.fold**2, *widths]
        self.fold = shape.fold
        self.encoder = nn.ModuleList(
            conv_block(inputs[i], width, stride=2 if i else 1) for i, width in enumerate(widths)
        )
        self.decoder = nn.ModuleList(
            conv_block(widths[i + 1] + widths[i], widths[i], dropout=dropout)
            for i in reversed(range(shape.stages - 1))
        )
        self.unfold = max(1, shape.fold // 2)
        self.head = logits_layer(widths[0], n_classes * self.unfold**2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_unshuffle(x, self.fold)
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for stage in self.decoder:
            skip = skips.pop()
            x = stage(torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip], 1))
        logits = F.pixel_shuffle(self.head(x), self.unfold)
        if self.fold > 1:
            logits = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
        return logits
