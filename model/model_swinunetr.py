"""Swin UNETR in two dimensions, as MONAI has it: windowed self-attention to stride 32, convolutions back up.

Hatamizadeh et al. 2022, arXiv:2201.01266: patches of 2 x 2 pixels, four stages of two Swin blocks with windows of 7 x 7
(Liu et al. 2021, arXiv:2103.14030), and residual blocks of convolutions on the features of each scale and on the way
up. The paper's network is three-dimensional: neither its parameter count nor its pretrained weights are of use here.
Variants are the authors' three sizes: 24 features (MONAI's default), tiny 12, base 48.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from config import Config
from model.model_simple_unet import PRIOR
from model.network import Built

PAPER = "Hatamizadeh et al. 2022, arXiv:2201.01266"

OPTIONS = ("dropout",)

STRIDE = 32

VARIANTS = {"": 24, "tiny": 12, "base": 48}
"""Name -> features of the finest stage; deeper stages double them."""


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built. Dropout is that of the transformer: on patches, projections and in the perceptrons."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the library's use of torch.jit, which users can't mend
        from monai.networks.nets.swin_unetr import SwinUNETR  # here, because it takes seconds

    net: Any = SwinUNETR(
        in_channels=cfg.model.in_channels, out_channels=len(cfg.data.classes), feature_size=VARIANTS[variant],
        drop_rate=cfg.model.dropout, spatial_dims=2,
    )
    nn.init.constant_(net.out.conv.conv.bias, PRIOR)
    down, up = (1, 2, 3, 4), (5, 4, 3, 2, 1)
    blocks = [
        *(getattr(net.swinViT, f"layers{i}")[0] for i in down),
        *(getattr(net, f"encoder{i}") for i in (*down, 10)),
        *(getattr(net, f"decoder{i}") for i in up),
    ]
    return Built(net, STRIDE, blocks)
