"""DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611): atrous pyramid on a dilated encoder, stride-4 decoder.

The variant is the encoder; only encoders that can be dilated work, which the library says otherwise.
"""

from __future__ import annotations

from torch import nn

from config import Config, ConfigProblem
from model.smp_decoders import build_smp, knows_encoder

OPTIONS = ("pretrained",)

DEFAULT = "resnet34"

VARIANTS = ("", "resnet18", "resnet34", "resnet50", "resnet101", "efficientnet-b4")


def accepts(variant: str) -> bool:
    """Whether the variant is an encoder, in the table or not."""
    return knows_encoder(variant)


def build(variant: str, cfg: Config) -> tuple[nn.Module, int]:
    """The bare network and its stride.

    Raises:
        ConfigProblem: batches of one, which the pyramid's image pooling can't normalise.
    """
    if cfg.train.batch_size < 2:
        raise ConfigProblem(
            f"batch_size is {cfg.train.batch_size}, but model_deeplabv3plus normalises single values over the batch: "
            f"give --batch_size 2 or more."
        )
    return build_smp("DeepLabV3Plus", variant or DEFAULT, cfg)
