"""What the U-Nets that are written out here share."""

from __future__ import annotations

from torch import nn

from config import Config, ConfigProblem

PRIOR = -4.6
"""First bias of the logits: every class begins as improbable (p = 0.01) as a bone is at a pixel. At p = 0.5 the Dice
loss has hardly a slope, and the first epochs would go into leaving it (Lin et al. 2017, arXiv:1708.02002, 4.1)."""


def conv_block(inside: int, outside: int, convs: int = 2, stride: int = 1, dropout: float = 0.0) -> nn.Sequential:
    """(N, inside, H, W) -> (N, outside, H / stride, W / stride): `convs` times a 3 x 3 convolution, batch
    normalisation and ReLU, then `dropout` of whole channels."""
    layers: list[nn.Module] = []
    for i in range(convs):
        layers += [
            nn.Conv2d(outside if i else inside, outside, 3, 1 if i else stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
        ]
    if dropout:
        layers.append(nn.Dropout2d(dropout))
    return nn.Sequential(*layers)


def logits_layer(inside: int, outside: int, kernel: int = 1) -> nn.Conv2d:
    """The convolution that makes logits, with PRIOR as its first bias."""
    layer = nn.Conv2d(inside, outside, kernel, padding=kernel // 2)
    nn.init.constant_(layer.bias, PRIOR)  # type: ignore[arg-type]
    return layer


def first_channels(fixed: int | None, cfg: Config) -> int:
    """Channels of the first stage: those that the variant's name fixes, else `base_channels`.

    Raises:
        ConfigProblem: --base_channels contradicts the name.
    """
    asked = cfg.model.base_channels
    if fixed is None:
        return asked
    if asked not in (fixed, Config().model.base_channels):
        raise ConfigProblem(
            f"base_channels {asked} contradicts {cfg.model.model_file}, which has {fixed}: leave it out, or leave the "
            f"{fixed} out of the name."
        )
    return fixed
