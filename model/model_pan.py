"""PAN: a pyramid of attention over the coarsest features, and features of the encoder weighted by coarser ones.

Li et al. 2018, arXiv:1805.10180, as segmentation_models_pytorch has it: encoder dilated to stride 16, decoder of 32
channels. The pyramid halves stride-16 features three times, hence the smallest size of 128 px. Logits are made at
stride 4 and enlarged four times. The decoder's convolutions have no bias: normalisation would take it out again.
"""

from __future__ import annotations

from torch import nn

from config import Config
from model.network import Built
from model.smp_decoders import build_smp, known_weights, knows_encoder

PAPER = "Li et al. 2018, arXiv:1805.10180"

OPTIONS = ("pretrained",)

VARIANTS = ("", "resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_b4")

STRIDE = 16

LEAST = 8 * STRIDE

accepts, weights = knows_encoder, known_weights


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built."""
    built = build_smp("PAN", variant, cfg, {"encoder_output_stride": STRIDE}, STRIDE, LEAST)
    for part in built.body.decoder.modules():  # type: ignore[union-attr]
        if isinstance(part, nn.Conv2d):
            part.bias = None
    return built
