"""MA-Net: a U-Net with attention between all positions of the coarsest map and between channels of each skip.

Fan et al. 2020, IEEE Access 8, 179656-179665, as segmentation_models_pytorch has it, but for one step: there the
attention's result, one row of channels for each position, is read as if it were one row of positions for each channel.
Logits are made at full resolution. The attention's map has (H W / 1024)^2 entries.

Skips are weighed through a sixteenth of their channels, which a ReLU can leave dead from the start, most likely where
there are one or two (EfficientNet, MiT-B0).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from config import Config
from model.network import Built
from model.smp_decoders import STRIDE, build_smp, finished, known_weights, knows_encoder

PAPER = "Fan et al. 2020, IEEE Access 8, 179656-179665"

OPTIONS = ("pretrained",)

VARIANTS = ("", "resnet18", "resnet34", "resnet50", "convnext_tiny")

accepts, weights = knows_encoder, known_weights


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built."""
    net: Any = build_smp("MAnet", variant, cfg).body
    net.decoder.center = PositionAttention(net.decoder.center)
    return finished(net, cfg.model.in_channels, STRIDE)


class PositionAttention(nn.Module):
    """(N, C, h, w) -> the same: each position gets a mix of all positions. Takes over the layers of SMP's PABBlock."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.top_conv: nn.Conv2d = block.top_conv
        self.center_conv: nn.Conv2d = block.center_conv
        self.bottom_conv: nn.Conv2d = block.bottom_conv
        self.out_conv: nn.Conv2d = block.out_conv

    def forward(self, x: Tensor) -> Tensor:
        likeness = self.center_conv(x).flatten(2).transpose(1, 2) @ self.top_conv(x).flatten(2)
        # Over all pairs of positions at once, as in the library.
        weight = torch.softmax(likeness.flatten(1), 1).view_as(likeness)
        mixed = self.bottom_conv(x).flatten(2) @ weight.transpose(1, 2)
        out: Tensor = self.out_conv(x + mixed.view_as(x))
        return out
