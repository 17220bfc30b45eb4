"""UPerNet: a feature pyramid whose coarsest level sees averages over 1, 2 x 2, 3 x 3 and 6 x 6 parts of the image.

Xiao et al. 2018, arXiv:1807.10221, with the paper's 512 channels. It is the decoder that Swin (Liu et al. 2021,
arXiv:2103.14030) and ConvNeXt (Liu et al. 2022, arXiv:2201.03545) were shown with; both take any size here. From
segmentation_models_pytorch: each of the encoder's maps is normalised first (LayerNorm), as those papers do; there is no
auxiliary head. Logits are made at stride 4 and enlarged four times.
"""

from __future__ import annotations

from config import Config
from model.network import Built
from model.smp_decoders import build_smp, known_weights, knows_encoder

PAPER = "Xiao et al. 2018, arXiv:1807.10221"

OPTIONS = ("pretrained",)

VARIANTS = (
    "", "resnet18", "resnet34", "resnet50", "resnet101", "convnext_tiny", "convnext_small", "convnext_base",
    "swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224", "swin_base_patch4_window7_224",
    "swinv2_tiny_window8_256",
)

CHANNELS = 512

accepts, weights = knows_encoder, known_weights


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built."""
    return build_smp("UPerNet", variant, cfg, {"decoder_channels": CHANNELS})
