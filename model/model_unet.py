"""U-Net decoder (arXiv:1505.04597) on any encoder that segmentation_models_pytorch or timm has.

`model.model_unet_resnet34`, `model.model_unet_efficientnet-b4`, `model.model_unet_tu-convnext_tiny`: the variant is the
encoder's name; the table lists the usual ones, every other known encoder works as well.
"""

from __future__ import annotations

from torch import nn

from config import Config
from model.smp_decoders import build_smp, knows_encoder

OPTIONS = ("pretrained",)

DEFAULT = "resnet34"

VARIANTS = ("", "resnet18", "resnet34", "resnet50", "efficientnet-b0", "efficientnet-b4", "mit_b0", "mit_b2")


def accepts(variant: str) -> bool:
    """Whether the variant is an encoder, in the table or not."""
    return knows_encoder(variant)


def build(variant: str, cfg: Config) -> tuple[nn.Module, int]:
    """The bare network and its stride."""
    return build_smp("Unet", variant or DEFAULT, cfg)
