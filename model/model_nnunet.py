"""nnU-Net's 2-D architectures, from its authors' package (Isensee et al. 2021, Nature Methods 18, 203-211).

Stages follow nnU-Net's rule for a patch (planner.network_topology): halve while the edge is at least 8 px, so that the
coarsest map is 4 to 7 px wide: 8 stages at 512, 9 at 1024, 10 at 2048. Channels double from 32 up to 512 and all
kernels are 3 x 3. A variant fixes its patch and does not follow `window_size`, which may change after training; any
window works, padded to the stride.

The default, `plain` and `resenc_m` are planned for 1024 px, `plain_2048` and `resenc_l` for 2048 px.

resenc is the residual encoder of Isensee et al. 2024 (arXiv:2404.09556). Its presets M, L and XL have the same blocks
and differ only in the GPU memory (8, 24, 40 GB) that nnU-Net spends on patch and batch: left alone it would plan
512 x 448 px (7 stages), 896 x 768 (8) and 1024 x 1024 (9) for images of 2048 px. For one patch M and L are one network,
so here L, with three times M's memory, takes the larger patch.

nnU-Net's loss with deep supervision gives the coarsest decoder map no weight; here that map has no head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor, nn

from config import Config
from model.network import Built

PAPER = "Isensee et al. 2021, Nature Methods 18, 203-211; resenc: Isensee et al. 2024, arXiv:2404.09556"

OPTIONS = ("base_channels", "dropout", "deep_supervision")

WIDEST = 512
NARROWEST = 4
"""Smallest edge of the coarsest map, px."""
BLOCKS = (1, 3, 4, 6)
"""Residual blocks of the first stages; all later ones have the last number."""


@dataclass(frozen=True)
class Plan:
    """What nnU-Net derives a network from."""

    patch: int
    """Side, px."""
    residual: bool = False


VARIANTS: dict[str, Plan] = {
    "": Plan(1024),
    "plain": Plan(1024),
    "plain_2048": Plan(2048),
    "resenc_m": Plan(1024, residual=True),
    "resenc_l": Plan(2048, residual=True),
}


def stages(patch: int) -> int:
    """Stages that nnU-Net plans for a square patch of this side, px."""
    count = 1
    while patch >= 2 * NARROWEST:
        patch = -(-patch // 2)
        count += 1
    return count


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built."""
    plan = VARIANTS[variant]
    count = stages(plan.patch)
    if plan.residual:
        kind, convs = ResidualEncoderUNet, 1
        blocks = {"n_blocks_per_stage": [BLOCKS[min(i, len(BLOCKS) - 1)] for i in range(count)]}
    else:
        kind, convs = PlainConvUNet, 2
        blocks = {"n_conv_per_stage": [2] * count}
    net = kind(
        input_channels=cfg.model.in_channels,
        n_stages=count,
        features_per_stage=[min(cfg.model.base_channels * 2**i, WIDEST) for i in range(count)],
        conv_op=nn.Conv2d,
        kernel_sizes=3,
        strides=[1] + [2] * (count - 1),
        **blocks,
        num_classes=len(cfg.data.classes),
        n_conv_per_stage_decoder=convs,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        dropout_op=nn.Dropout2d if cfg.model.dropout else None,
        dropout_op_kwargs={"p": cfg.model.dropout} if cfg.model.dropout else None,
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    net.decoder = Decoder(net.encoder, len(cfg.data.classes), convs, cfg.model.deep_supervision)
    net.apply(net.initialize)
    stem = [net.encoder.stem] if plan.residual else []
    return Built(net, 2 ** (count - 1), [*stem, *net.encoder.stages, *net.decoder.stages])


class Decoder(UNetDecoder):  # type: ignore[misc]
    """nnU-Net's decoder; heads lie fine to coarse, and only those that are trained exist."""

    seg_layers: nn.ModuleList

    def __init__(self, encoder: nn.Module, n_classes: int, convs: int, deep_supervision: bool) -> None:
        super().__init__(encoder, n_classes, convs, deep_supervision)
        trained = max(1, len(self.seg_layers) - 1) if deep_supervision else 1
        self.seg_layers = nn.ModuleList(list(self.seg_layers)[::-1][:trained])

    def forward(self, skips: Sequence[Tensor]) -> Tensor | list[Tensor]:
        x, maps = skips[-1], list[Tensor]()
        for up, stage, skip in zip(self.transpconvs, self.stages, skips[-2::-1], strict=True):
            x = stage(torch.cat((up(x), skip), 1))
            maps.append(x)
        if not (self.deep_supervision and self.training):
            out: Tensor = self.seg_layers[0](x)
            return out
        return [head(x) for head, x in zip(self.seg_layers, maps[::-1], strict=False)]
