"""DeepLabV3: convolutions of several dilations and an image average side by side, on a dilated encoder.

Chen et al. 2017, arXiv:1706.05587: encoder at stride 8, dilations 12, 24 and 36, and one 3 x 3 convolution before the
logits, as torchvision has it too. `dropout` acts behind the pyramid (torchvision: 0.5; the paper names none). Logits
are made at stride 8 and enlarged eight times.
"""

from __future__ import annotations

from config import Config
from model.network import Built, Published
from model.smp_decoders import build_smp, known_weights, knows_encoder

PAPER = "Chen et al. 2017, arXiv:1706.05587"

OPTIONS = ("dropout", "pretrained")

VARIANTS = ("", "resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_b4")

AUXILIARY = 1024 * 256 * 9 + 2 * 256 + 256 * 21 + 21
"""Parameters of torchvision's auxiliary head, which we have not."""

PUBLISHED = {
    "resnet50": Published(
        42_004_074 - AUXILIARY, "torchvision's deeplabv3_resnet50 (42,004,074) without its auxiliary head", classes=21
    ),
    "resnet101": Published(
        60_996_202 - AUXILIARY, "torchvision's deeplabv3_resnet101 (60,996,202) without its auxiliary head", classes=21
    ),
}

STRIDE = 8

accepts, weights = knows_encoder, known_weights


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built."""
    options = {"encoder_output_stride": STRIDE, "decoder_aspp_dropout": cfg.model.dropout}
    return build_smp("DeepLabV3", variant, cfg, options, STRIDE)
