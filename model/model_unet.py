"""U-Net decoder on any encoder that segmentation_models_pytorch (SMP) or timm has.

Ronneberger, Fischer, Brox 2015, arXiv:1505.04597, with padded convolutions, batch normalisation, nearest upsampling and
an encoder that may be pretrained. `model.model_unet_resnet34`, `model.model_unet_efficientnet_b4`,
`model.model_unet_mit_b2`: the variant is the encoder's name; the table lists the usual ones, every other that has maps
at strides 2 or 4 to 32 works as well. Logits are made at full resolution.
"""

from __future__ import annotations

from config import Config
from model.network import Built
from model.smp_decoders import build_smp, known_weights, knows_encoder

PAPER = "Ronneberger, Fischer, Brox 2015, arXiv:1505.04597"

OPTIONS = ("pretrained",)

VARIANTS = (
    "", "resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_b0", "efficientnet_b4", "convnext_tiny",
    "mit_b0", "mit_b1", "mit_b2", "mit_b3", "mit_b4", "mit_b5",
)

accepts, weights = knows_encoder, known_weights


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built."""
    return build_smp("Unet", variant, cfg)
