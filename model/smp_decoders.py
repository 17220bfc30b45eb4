"""The one door to segmentation_models_pytorch: its decoders over its own and timm's encoders."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from config import Config, ConfigProblem

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # the library's use of torch.jit, which users can't mend
    import segmentation_models_pytorch as smp

STRIDE = 32


def knows_encoder(name: str) -> bool:
    """True for every encoder that the library can build, timm's as `tu-<name>` included."""
    if name in smp.encoders.encoders:
        return True
    import timm

    return name.startswith("tu-") and name.removeprefix("tu-") in timm.list_models()


def build_smp(decoder: str, encoder: str, cfg: Config) -> tuple[nn.Module, int]:
    """`decoder` (the library's class name) on `encoder`; its one-channel stem sums pretrained RGB filters.

    Raises:
        ConfigProblem: an encoder that the decoder can't use; pretrained weights that can't be downloaded, with the flag
            that goes without.
    """
    weights = "imagenet" if cfg.model.pretrained else None
    try:
        kind: Any = getattr(smp, decoder)
        net = kind(encoder_name=encoder, encoder_weights=weights, in_channels=1, classes=len(cfg.data.classes))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        if weights is None:
            raise ConfigProblem(
                f"{encoder} does not work as encoder of {decoder} ({reason}): choose another, such as resnet34."
            ) from error
        # Hub clients raise a dozen kinds when there is no network or no such file; the remedy is one.
        raise ConfigProblem(
            f"pretrained weights of {encoder} could not be loaded ({reason}): connect to the network "
            f"once, or give --no_pretrained to start from random weights."
        ) from error
    return net, STRIDE
