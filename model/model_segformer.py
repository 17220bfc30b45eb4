"""SegFormer: all maps of a hierarchical transformer to one width, each by a linear layer, enlarged to stride 4, mixed.

Xie et al. 2021, arXiv:2105.15203. `b0` to `b5` are the paper's, with its encoders MiT-B0 to MiT-B5 and decoders of 256
(b0, b1) or 768 channels; any other encoder gets 256. The paper's dropout of 0.1 before the logits is left out, as
segmentation_models_pytorch has it. Logits are made at stride 4 and enlarged four times.
"""

from __future__ import annotations

from config import Config
from model.network import Built, Published
from model.smp_decoders import build_smp, known_weights, knows_encoder

PAPER = "Xie et al. 2021, arXiv:2105.15203"

OPTIONS = ("pretrained",)

DEFAULT = "b2"

NARROW, WIDE = 256, 768

VARIANTS = {"": WIDE, "b0": NARROW, "b1": NARROW, "b2": WIDE, "b3": WIDE, "b4": WIDE, "b5": WIDE}
"""Variant -> channels of the decoder."""

PUBLISHED = {
    variant: Published(count, "arXiv:2105.15203, Table 2", classes=150, digits=digits)
    for variant, count, digits in (
        ("b0", 3_800_000, 2), ("b1", 13_700_000, 3), ("b2", 27_500_000, 3),
        ("b3", 47_300_000, 3), ("b4", 64_100_000, 3), ("b5", 84_700_000, 3),
    )
}


def accepts(variant: str) -> bool:
    """Whether the variant is one of the paper's or another encoder."""
    return variant in VARIANTS or knows_encoder(variant)


def weights(variant: str) -> tuple[str, ...]:
    """See smp_decoders.known_weights."""
    return known_weights(_encoder(variant))


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built."""
    width = VARIANTS.get(variant, NARROW)
    return build_smp("Segformer", _encoder(variant), cfg, {"decoder_segmentation_channels": width})


def _encoder(variant: str) -> str:
    return f"mit_{variant or DEFAULT}" if variant in VARIANTS else variant
