"""Deep residual U-Net (Zhang, Liu, Wang 2018, arXiv:1711.10684), written out.

Seven levels of one residual unit each: three down, a bridge, three up. A unit is normalisation, ReLU and convolution,
twice (He et al. 2016, arXiv:1603.05027), without the first two at the image; strided convolutions take the place of
pooling. The paper calls the shortcut of a unit an identity. No unit's output has the shape of its input, so it is a
1 x 1 convolution here, as He et al. take it then. The paper's 7.8 M parameters are those of the 3 x 3 convolutions in
its table of layers; the shortcuts add 0.4 M. How it enlarges maps is not said: here by nearest neighbour.

Variant `64` is the paper's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config
from model.blocks import first_channels, logits_layer
from model.network import Built

PAPER = "Zhang, Liu, Wang 2018, IEEE GRSL 15, arXiv:1711.10684"

OPTIONS = ("base_channels",)

SCALES = 4

VARIANTS: dict[str, int | None] = {"": None, "64": 64}
"""Channels of the first stage; None follows `base_channels`."""


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built."""
    net = ResUNet(cfg.model.in_channels, len(cfg.data.classes), first_channels(VARIANTS[variant], cfg))
    return Built(net, 2 ** (SCALES - 1), [*net.encoder, *net.decoder])


class ResUNet(nn.Module):
    """(N, in_channels, H, W) -> (N, K, H, W), H and W multiples of 8."""

    def __init__(self, in_channels: int, n_classes: int, channels: int) -> None:
        super().__init__()
        widths = [channels * 2**i for i in range(SCALES)]
        inputs = [in_channels, *widths]
        self.encoder = nn.ModuleList(
            ResidualUnit(inputs[i], width, stride=2 if i else 1, activate=i > 0) for i, width in enumerate(widths)
        )
        self.decoder = nn.ModuleList(
            ResidualUnit(widths[i + 1] + widths[i], widths[i]) for i in reversed(range(SCALES - 1))
        )
        self.head = logits_layer(channels, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for unit in self.encoder:
            x = unit(x)
            skips.append(x)
        skips.pop()
        for unit in self.decoder:
            x = unit(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skips.pop()], 1))
        logits: Tensor = self.head(x)
        return logits


class ResidualUnit(nn.Module):
    """(N, inside, H, W) -> (N, outside, H / stride, W / stride).

    Args:
        activate: normalise the input and cut it at 0 first; False for the image.
    """

    def __init__(self, inside: int, outside: int, stride: int = 1, activate: bool = True) -> None:
        super().__init__()
        before = [nn.BatchNorm2d(inside), nn.ReLU(inplace=True)] if activate else []
        self.residual = nn.Sequential(
            *before,
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
        )
        self.stride = stride
        self.shortcut = nn.Conv2d(inside, outside, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # Every stride-th pixel is taken before the 1 x 1 convolution: with its own stride, its backward pass on a CPU
        # writes past its memory where channels are few (torch 2.15, channels_last).
        out: Tensor = self.residual(x) + self.shortcut(x[..., :: self.stride, :: self.stride])
        return out
