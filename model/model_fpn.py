"""Feature pyramid with a segmentation branch for each of its levels, added up.

Lin et al. 2017, arXiv:1612.03144, and for segmentation Kirillov et al. 2019, arXiv:1901.02446, as
segmentation_models_pytorch has it: without the 3 x 3 convolution behind each level of the pyramid; `dropout` drops
whole channels of the sum (the papers drop none). Logits are made at stride 4 and enlarged four times.
"""

from __future__ import annotations

from config import Config
from model.network import Built
from model.smp_decoders import build_smp, known_weights, knows_encoder

PAPER = "Kirillov et al. 2019, arXiv:1901.02446"

OPTIONS = ("dropout", "pretrained")

VARIANTS = (
    "", "resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_b0", "efficientnet_b4", "convnext_tiny",
    "mit_b0", "mit_b2",
)

accepts, weights = knows_encoder, known_weights


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built."""
    return build_smp("FPN", variant, cfg, {"decoder_dropout": cfg.model.dropout})
