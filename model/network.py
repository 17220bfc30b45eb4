"""What every architecture is wrapped in: normalisation of the input and sizes that don't fit the stride."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config, ConfigProblem
from engine.names import check_variant, resolve

MEAN, STD = 0.124, 0.168
"""Grey value statistics of the competition's images on the [0, 1] range (docs/data.md)."""


class Network(nn.Module):
    """(N, 1, H, W) grey values in [0, 1], any size -> logits (N, K, H, W).

    Normalisation lies inside, so an exported network takes grey values too.
    """

    def __init__(self, body: nn.Module, stride: int) -> None:
        super().__init__()
        self.body = body
        self.stride = stride

    def forward(self, grey: Tensor) -> Tensor:
        x = (grey - MEAN) / STD
        height, width = x.shape[-2:]
        down, right = -height % self.stride, -width % self.stride
        if height + down == width + right == self.stride:
            right += self.stride  # instance normalisation of a single coarsest pixel is undefined
        if down or right:
            # Black margin, as around a collimated radiograph; cut off again below.
            x = F.pad(x, (0, right, 0, down), value=-MEAN / STD)
        logits: Tensor = self.body(x)
        return logits[..., :height, :width]


def build(cfg: Config) -> Network:
    """The network that `model_file` names, with one output channel for each class.

    Modules of this package hold `VARIANTS` (variant -> what its builder needs) and `build(variant, cfg)`, which
    returns the bare network and its stride: the factor that heights and widths must be a multiple of.

    Raises:
        ConfigProblem: unknown name (with near ones), or an option that the architecture can't follow.
    """
    name = resolve("model", cfg.model.model_file)
    module = name.load()
    known = getattr(module, "accepts", lambda variant: False)
    if not known(name.variant):
        check_variant(name, module.VARIANTS)
    ignored = {"base_channels", "dropout", "pretrained"} - set(module.OPTIONS)
    default = Config().model
    for option in sorted(ignored):
        if getattr(cfg.model, option) != getattr(default, option):
            raise ConfigProblem(f"{option} {getattr(cfg.model, option)!r} has no meaning for {name}: leave it out.")
    body, stride = module.build(name.variant, cfg)
    network = Network(body, stride)
    # Convolutions run faster on it: 20 % on two CPU cores, more on tensor cores.
    return network.to(memory_format=torch.channels_last)
