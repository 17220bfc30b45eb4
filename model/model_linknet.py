"""LinkNet: decoder blocks that narrow, double and widen the features, and add the encoder's instead of joining them.

Chaurasia, Culurciello 2017, arXiv:1707.03718, as segmentation_models_pytorch has it: with one block more, which takes
the place of the paper's last transposed convolutions (32 channels at full resolution), and an encoder by choice (the
paper's is ResNet-18). Logits are made at full resolution.
"""

from __future__ import annotations

from config import Config
from model.network import Built
from model.smp_decoders import build_smp, known_weights, knows_encoder

PAPER = "Chaurasia, Culurciello 2017, arXiv:1707.03718"

OPTIONS = ("pretrained",)

VARIANTS = ("", "resnet18", "resnet34", "resnet50", "efficientnet_b0", "efficientnet_b4", "convnext_tiny")

accepts, weights = knows_encoder, known_weights


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built."""
    return build_smp("Linknet", variant, cfg)
