"""DPT: tokens of four depths of a plain vision transformer as maps of strides 4 to 32, fused from coarse to fine.

Ranftl, Bochkovskiy, Koltun 2021, arXiv:2103.13413, as segmentation_models_pytorch has it, without the auxiliary head.
The variant is one of timm's ViTs. Images may have any size: its position embeddings are interpolated. Logits are made
at stride 2 and enlarged twice. `dropout` acts before them (the authors' code: 0.1).
"""

from __future__ import annotations

from torch import nn

from config import Config
from model.network import Built
from model.smp_decoders import build_smp, known_weights, knows_encoder

PAPER = "Ranftl, Bochkovskiy, Koltun 2021, arXiv:2103.13413"

OPTIONS = ("dropout", "pretrained")

DEFAULT = "vit_base_patch16_224"

VARIANTS = ("", "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224")

accepts = knows_encoder


def weights(variant: str) -> tuple[str, ...]:
    """See smp_decoders.known_weights."""
    return known_weights(variant or DEFAULT)


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built."""
    # The coarsest map is half the size of the tokens' grid, which must be even: stride 32 with patches of 16.
    built = build_smp("DPT", variant or DEFAULT, cfg, {"dynamic_img_size": True})
    for part in built.body.segmentation_head.modules():  # type: ignore[union-attr]
        if isinstance(part, nn.Dropout):
            part.p = cfg.model.dropout
    return built
