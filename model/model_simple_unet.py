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

OPTIONS = ("base_channels", "dropout")

WIDEST = 256
"""Channels double from stage to stage up to this."""

PRIOR = -4.6
"""First bias of the logits: every class begins as improbable (p = 0.01) as a bone is at a pixel. At p = 0.5 the Dice
loss has hardly a slope, and the first epochs would go into leaving it (Lin et al. 2017, arXiv:1708.02002, 4.1)."""


@dataclass(frozen=True)
class Shape:
    """What sets the variants apart."""

    fold: int
    """Side of the pixel blocks that become channels."""
    stages: int


VARIANTS: dict[str, Shape] = {
    "": Shape(fold=1, stages=5),
    "half": Shape(fold=2, stages=6),
    "quarter": Shape(fold=4, stages=5),
}


def build(variant: str, cfg: Config) -> tuple[nn.Module, int]:
    """The bare network and its stride."""
    shape = VARIANTS[variant]
    net = SimpleUNet(shape, len(cfg.data.classes), cfg.model.base_channels, cfg.model.dropout)
    return net, shape.fold * 2 ** (shape.stages - 1)


class SimpleUNet(nn.Module):
    """(N, 1, H, W) -> (N, K, H, W), H and W multiples of the stride."""

    def __init__(self, shape: Shape, n_classes: int, base_channels: int, dropout: float) -> None:
        super().__init__()
        widths = [min(base_channels * 2**i, max(WIDEST, base_channels)) for i in range(shape.stages)]
        inputs = [shape.fold**2, *widths]
        self.fold = shape.fold
        self.encoder = nn.ModuleList(
            _block(inputs[i], width, stride=2 if i else 1) for i, width in enumerate(widths)
        )
        self.decoder = nn.ModuleList(
            _block(widths[i + 1] + widths[i], widths[i], dropout=dropout) for i in reversed(range(shape.stages - 1))
        )
        self.unfold = max(1, shape.fold // 2)
        self.head = nn.Conv2d(widths[0], n_classes * self.unfold**2, 1)
        nn.init.constant_(self.head.bias, PRIOR)  # type: ignore[arg-type]

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


def _block(inside: int, outside: int, stride: int = 1, dropout: float = 0.0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(2):
        layers += [
            nn.Conv2d(inside if i == 0 else outside, outside, 3, stride if i == 0 else 1, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
        ]
    if dropout:
        layers.append(nn.Dropout2d(dropout))
    return nn.Sequential(*layers)
