"""A U-Net whose skip connections pass attention gates (Oktay et al. 2018, arXiv:1804.03999), written out.

Features x of a skip are weighed by a map in [0, 1] that they and the gating signal g of the next coarser scale give
together: sigmoid(psi(relu(theta(x) + phi(g)))), counted on g's grid and interpolated to x's. theta is a 2 x 2
convolution of stride 2, phi and psi are 1 x 1; a 1 x 1 convolution with normalisation follows, as in the authors' code.
The coarsest g is a 1 x 1 convolution of the coarsest features, later ones are the decoder's features. The finest skip
has no gate, as in the paper: its features are too low-dimensional to decide by.

The paper's network is 3-D with 16 first channels; this is the same in 2-D. Its deep supervision mixes the logits of all
scales in a last convolution, in the authors' code; here each scale's logits meet the labels themselves, as in Lee et
al. 2015 (arXiv:1409.5185), and inference needs the finest ones only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config
from model.blocks import conv_block, first_channels, logits_layer
from model.network import Built

PAPER = "Oktay et al. 2018, arXiv:1804.03999"

OPTIONS = ("base_channels", "dropout", "deep_supervision")

SCALES = 5

VARIANTS: dict[str, int | None] = {"": None, "32": 32, "64": 64}
"""Channels of the first stage; None follows `base_channels`."""


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built."""
    net = AttentionUNet(
        cfg.model.in_channels,
        len(cfg.data.classes),
        first_channels(VARIANTS[variant], cfg),
        cfg.model.dropout,
        cfg.model.deep_supervision,
    )
    return Built(net, 2 ** (SCALES - 1), [*net.encoder, *net.gates, *net.decoder])


class AttentionUNet(nn.Module):
    """(N, in_channels, H, W) -> (N, K, H, W), H and W multiples of 16; in training mode with deep supervision a list
    of four, each half as high and wide as the one before."""

    def __init__(self, in_channels: int, n_classes: int, channels: int, dropout: float, deep_supervision: bool) -> None:
        super().__init__()
        widths = [channels * 2**i for i in range(SCALES)]
        inputs = [in_channels, *widths]
        self.encoder = nn.ModuleList(conv_block(inputs[i], width) for i, width in enumerate(widths))
        self.gating = nn.Sequential(
            nn.Conv2d(widths[-1], widths[-1], 1, bias=False), nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True)
        )
        coarse_to_fine = range(SCALES - 2, -1, -1)
        self.gates = nn.ModuleList(AttentionGate(widths[i], widths[i + 1]) for i in coarse_to_fine if i)
        self.decoder = nn.ModuleList(
            conv_block(widths[i] + widths[i + 1], widths[i], dropout=dropout) for i in coarse_to_fine
        )
        heads = SCALES - 1 if deep_supervision else 1
        self.heads = nn.ModuleList(logits_layer(width, n_classes) for width in widths[:heads])

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        skips: list[Tensor] = []
        for i, stage in enumerate(self.encoder):
            x = stage(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        gate_signal, maps = self.gating(x), list[Tensor]()
        for i, stage in enumerate(self.decoder):
            skip = skips[-2 - i]
            if i < len(self.gates):
                skip = self.gates[i](skip, gate_signal)
            x = stage(torch.cat([skip, F.interpolate(x, scale_factor=2, mode="bilinear")], 1))
            gate_signal = x
            maps.append(x)
        if not self.training or len(self.heads) == 1:
            out: Tensor = self.heads[0](x)
            return out
        return [head(features) for head, features in zip(self.heads, maps[::-1], strict=True)]


class AttentionGate(nn.Module):
    """Skip (N, skip, H, W) and gating signal (N, gate, H / 2, W / 2) -> the skip, weighed, (N, skip, H, W)."""

    def __init__(self, skip: int, gate: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(skip, skip, 2, 2, bias=False)
        self.phi = nn.Conv2d(gate, skip, 1)
        self.psi = nn.Conv2d(skip, 1, 1)
        self.output = nn.Sequential(nn.Conv2d(skip, skip, 1, bias=False), nn.BatchNorm2d(skip))

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        weighed: Tensor = self.output(x * self.attention(x, g))
        return weighed

    def attention(self, x: Tensor, g: Tensor) -> Tensor:
        """The map, (N, 1, H, W), 0 to 1."""
        coarse = torch.sigmoid(self.psi(F.relu(self.theta(x) + self.phi(g))))
        return F.interpolate(coarse, scale_factor=2, mode="bilinear")
