"""The trunk of HRNetV2 that model_hrnet and model_hrnet_ocr share: stem and four stages of parallel resolutions, as
timm has them, without timm's layers for classification.

timm's trunk is the one for ImageNet, which enlarges coarse features by nearest neighbours where branches exchange them;
the authors' code for segmentation does that bilinearly, and so does this. It has no weights, so pretrained ones fit.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config
from model.downloads import downloading

STRIDE = 32
"""Of the coarsest branch."""

FINEST = 4
"""Stride of the finest branch, which logits are drawn at."""

ENCODERS = {
    "w18": "hrnet_w18.ms_aug_in1k",
    "w32": "hrnet_w32.ms_in1k",
    "w48": "hrnet_w48.ms_in1k",
    "w64": "hrnet_w64.ms_in1k",
}
"""Width of the finest branch -> architecture and ImageNet weights, as timm names them."""


def build_encoder(name: str, cfg: Config) -> nn.Module:
    """(N, in_channels, H, W), H and W multiples of 32, to four maps at strides 4, 8, 16 and 32 with C, 2C, 4C and 8C
    channels. A one-channel stem sums pretrained RGB filters.

    Raises:
        ConfigProblem: pretrained weights that can't be downloaded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its use of torch.jit, which users can't mend
        import timm  # here: listing names must not wait for it
    pretrained = cfg.model.pretrained
    with downloading(name) if pretrained else nullcontext():
        encoder: nn.Module = timm.create_model(
            name, pretrained, features_only=True, feature_location="", out_indices=(1, 2, 3, 4),
            in_chans=cfg.model.in_channels,
        )
    for part in encoder.modules():
        if isinstance(part, nn.Upsample):
            part.mode, part.align_corners = "bilinear", False
        if isinstance(part, nn.Conv2d) and not pretrained:
            part.reset_parameters()  # timm's start grows to logits of 4e5 until the running statistics have settled
    return encoder


def width_of(encoder: nn.Module) -> int:
    """Channels of the four maps together."""
    return sum(encoder.feature_info.channels())  # type: ignore[operator, union-attr]


def blocks_of(encoder: nn.Module) -> list[nn.Module]:
    """Parts for gradient checkpointing. timm's modules of a stage write into the list that they are given, so they
    can't run twice; their branches and exchange units can."""
    blocks = [encoder.layer1]
    for stage in (encoder.stage2, encoder.stage3, encoder.stage4):
        for module in stage:  # type: ignore[union-attr]
            exchange = [unit for row in module.fuse_layers for unit in row if not isinstance(unit, nn.Identity)]
            blocks += [*module.branches, *exchange]
    return blocks  # type: ignore[return-value]


def joined(maps: list[Tensor]) -> Tensor:
    """All maps at the size of the first, one after the other: (N, 15C, H/4, W/4)."""
    size = maps[0].shape[-2:]
    return torch.cat([maps[0], *(F.interpolate(m, size, mode="bilinear") for m in maps[1:])], 1)


def full_size(logits: Tensor) -> Tensor:
    """(N, K, H/4, W/4) -> (N, K, H, W)."""
    return F.interpolate(logits, scale_factor=FINEST, mode="bilinear")
