"""PSPNet: averages over 1, 2 x 2, 3 x 3 and 6 x 6 parts of the image beside the features of a dilated encoder.

Zhao et al. 2017, arXiv:1612.01105. The encoder is dilated to stride 8, as in the paper (segmentation_models_pytorch by
default cuts it off there instead). From the library's decoder: a 1 x 1 convolution behind the pyramid and a 3 x 3 one
to logits, where the paper has it the other way round; no normalisation of the 1 x 1 average; no auxiliary loss.
`dropout` drops whole channels (the authors' code: 0.1). Logits are made at stride 8 and enlarged eight times.
"""

from __future__ import annotations

from config import Config
from model.network import Built
from model.smp_decoders import build_smp, known_weights, knows_encoder

PAPER = "Zhao et al. 2017, arXiv:1612.01105"

OPTIONS = ("dropout", "pretrained")

VARIANTS = ("", "resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_b4")

STRIDE = 8

accepts, weights = knows_encoder, known_weights


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built."""
    options = {"encoder_depth": 5, "output_stride": STRIDE, "upsampling": STRIDE, "psp_dropout": cfg.model.dropout}
    return build_smp("PSPNet", variant, cfg, options, STRIDE)
