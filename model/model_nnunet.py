"""nnU-Net's 2-D architectures, from its authors' package (Isensee et al. 2021, Nature Methods 18, 203-211).

Eight stages, as nnU-Net plans them for 2-D patches of 1024 px: the coarsest map is 8 x 8. `resenc` is the residual
encoder of Isensee et al. 2024 (arXiv:2404.09556, ResEnc M's 2-D block counts).
"""

from __future__ import annotations

from typing import Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from config import Config

OPTIONS = ("base_channels", "dropout")

STAGES = 8
WIDEST = 512

VARIANTS: dict[str, dict[str, Any]] = {
    "": {"kind": PlainConvUNet, "blocks": {"n_conv_per_stage": 2}},
    "resenc": {"kind": ResidualEncoderUNet, "blocks": {"n_blocks_per_stage": (1, 3, 4, 6, 6, 6, 6, 6)}},
}


def build(variant: str, cfg: Config) -> tuple[nn.Module, int]:
    """The bare network and its stride."""
    chosen = VARIANTS[variant]
    net = chosen["kind"](
        input_channels=1,
        n_stages=STAGES,
        features_per_stage=[min(cfg.model.base_channels * 2**i, WIDEST) for i in range(STAGES)],
        conv_op=nn.Conv2d,
        kernel_sizes=3,
        strides=[1] + [2] * (STAGES - 1),
        **chosen["blocks"],
        num_classes=len(cfg.data.classes),
        n_conv_per_stage_decoder=2 if variant == "" else 1,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        dropout_op=nn.Dropout2d if cfg.model.dropout else None,
        dropout_op_kwargs={"p": cfg.model.dropout} if cfg.model.dropout else None,
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    # Outputs of the coarse stages, which only deep supervision would train.
    net.decoder.seg_layers = net.decoder.seg_layers[-1:]
    net.apply(net.initialize)
    return net, 2 ** (STAGES - 1)
