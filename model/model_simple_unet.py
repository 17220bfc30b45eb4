"""A plain U-Net, written out: the model to read first, and the one that trains on a laptop.

Ronneberger, Fischer, Brox 2015, arXiv:1505.04597, with padded convolutions, instance normalisation and LeakyReLU as in
nnU-Net (Isensee et al. 2021). The variants with a stem work at half or a quarter of the resolution and interpolate the
logits: most of a U-Net's time goes into its first stages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config

OPTIONS = ("base_channels", "dropout")


@dataclass(frozen=True)
class Shape:
    """What sets the variants apart."""

    stages: int = 5
    stem: int = 1
    """Stride of the first convolution."""
    widest: int = 512
    """Channels never grow beyond this."""


VARIANTS: dict[str, Shape] = {
    "": Shape(),
    "half": Shape(stages=6, stem=2, widest=256),
}


def build(variant: str, cfg: Config) -> tuple[nn.Module, int]:
    """The bare network and its stride."""
    shape = VARIANTS[variant]
    net = SimpleUNet(shape, len(cfg.data.classes), cfg.model.base_channels, cfg.model.dropout)
    return net, shape.stem * 2 ** (shape.stages - 1)


class SimpleUNet(nn.Module):
    """(N, 1, H, W) -> (N, K, H, W), H and W multiples of the stride."""

    def __init__(self, shape: Shape, n_classes: int, base_channels: int, dropout: float) -> None:
        super().__init__()
        widths = [min(base_channels * 2**i, shape.widest) for i in range(shape.stages)]
        self.scale = shape.stem
        self.encoder = nn.ModuleList(
            _block(1 if i == 0 else widths[i - 1], width, stride=shape.stem if i == 0 else 2)
            for i, width in enumerate(widths)
        )
        self.decoder = nn.ModuleList(
            _block(widths[i + 1] + widths[i], widths[i], dropout=dropout) for i in reversed(range(shape.stages - 1))
        )
        self.head = nn.Conv2d(widths[0], n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for stage in self.decoder:
            skip = skips.pop()
            x = stage(torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip], 1))
        logits: Tensor = self.head(x)
        if self.scale > 1:
            logits = F.interpolate(logits, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return logits


def _block(inside: int, outside: int, stride: int = 1, dropout: float = 0.0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(2):
        layers += [
            nn.Conv2d(inside if i == 0 else outside, outside, 3, stride if i == 0 else 1, 1, bias=False),
            nn.InstanceNorm2d(outside, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        ]
    if dropout:
        layers.append(nn.Dropout2d(dropout))
    return nn.Sequential(*layers)
