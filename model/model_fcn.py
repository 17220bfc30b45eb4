"""Fully convolutional network on a dilated ResNet, as torchvision has it.

Long, Shelhamer, Darrell 2015, arXiv:1411.4038. torchvision's differs from the paper: a ResNet whose last two stages are
dilated, so features stay at stride 8, a head of one 3 x 3 convolution and a classifier, and one bilinear enlargement
instead of sums with finer stages. Its auxiliary head is left out here, and its dropout of 10 % is --dropout 0.1. A
one-channel stem sums the RGB filters.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, ResNet101_Weights, WeightsEnum
from torchvision.models import segmentation as library

from config import Config
from model.downloads import downloading
from model.model_simple_unet import PRIOR
from model.network import Built, Published

PAPER = "Long, Shelhamer, Darrell 2015, arXiv:1411.4038"

OPTIONS = ("pretrained", "dropout")

STRIDE = 8

VARIANTS: dict[str, WeightsEnum] = {
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": ResNet101_Weights.IMAGENET1K_V1,
}
"""ResNet -> its ImageNet weights, those that torchvision's FCNs start from."""

AUXILIARY = 2_365_205
"""Parameters of torchvision's auxiliary head at 21 classes."""

PUBLISHED = {
    variant: Published(stated - AUXILIARY, f"torchvision: {stated:,}, {AUXILIARY:,} in an auxiliary head", classes=21)
    for variant, stated in {"resnet50": 35_322_218, "resnet101": 54_314_346}.items()
}


def weights(variant: str) -> tuple[str, ...]:
    """What --pretrained loads, as torchvision names it."""
    return (str(VARIANTS[variant]),)


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built.

    Raises:
        ConfigProblem: pretrained weights that can't be downloaded.
    """
    chosen = VARIANTS[variant] if cfg.model.pretrained else None
    with downloading(variant) if chosen else nullcontext():
        make = getattr(library, f"fcn_{variant}")
        made = make(weights_backbone=chosen, num_classes=len(cfg.data.classes), aux_loss=False)
    backbone, head = made.backbone, made.classifier
    if cfg.model.in_channels == 1:
        backbone["conv1"] = _summed(backbone["conv1"])
    _, _, _, dropout, last = head
    dropout.p = cfg.model.dropout
    nn.init.constant_(last.bias, PRIOR)
    stages = [block for name in ("layer1", "layer2", "layer3", "layer4") for block in backbone[name]]
    return Built(FCN(backbone, head), STRIDE, [*stages, head])


class FCN(library.FCN):  # type: ignore[misc]
    """(N, C, H, W) -> (N, K, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x)["out"]
        return logits


def _summed(stem: nn.Conv2d) -> nn.Conv2d:
    """The stem that does to a grey image what `stem` does to three channels of it."""
    new = nn.Conv2d(1, stem.out_channels, 7, 2, 3, bias=False)
    with torch.no_grad():
        new.weight.copy_(stem.weight.sum(1, keepdim=True))
    return new
