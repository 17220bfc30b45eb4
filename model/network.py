"""What every architecture is wrapped in: normalisation of the input and sizes that don't fit the stride."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config, ConfigProblem
from engine.names import check_variant, resolve

NORMALIZE: dict[str, tuple[float, float]] = {
    "unit": (0.0, 1.0),
    "dataset": (0.124, 0.168),
    "imagenet": (0.449, 0.226),
}
"""Mean and standard deviation on the [0, 1] range: of the competition's images (docs/data.md), and of ImageNet's over
its three channels (torchvision's figures). "image" takes each input's own."""


class Network(nn.Module):
    """(N, 1, H, W) grey values in [0, 1], any size -> logits (N, K, H, W).

    Normalisation lies inside, so an exported network takes grey values too.

    Args:
        statistics: mean and standard deviation of grey values; None takes each input's own.
    """

    def __init__(self, body: nn.Module, stride: int, statistics: tuple[float, float] | None) -> None:
        super().__init__()
        self.body = body
        self.stride = stride
        self.statistics = statistics

    def forward(self, grey: Tensor) -> Tensor:
        mean, std = self.statistics or _own_statistics(grey)
        height, width = grey.shape[-2:]
        down, right = -height % self.stride, -width % self.stride
        if height + down == width + right == self.stride:
            right += self.stride  # instance normalisation of a single coarsest pixel is undefined
        if down or right:
            # Black margin, as around a collimated radiograph; cut off again below.
            grey = F.pad(grey, (0, right, 0, down))
        logits: Tensor = self.body((grey - mean) / std)
        return logits[..., :height, :width]


def _own_statistics(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each input, (N, 1, 1, 1) each; a blank one is divided by almost nothing."""
    std, mean = torch.std_mean(grey.float(), (1, 2, 3), keepdim=True)
    return mean, std + 1e-3


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
    network = Network(body, stride, NORMALIZE.get(cfg.model.normalize))
    # Convolutions run faster on it: 20 % on two CPU cores, more on tensor cores.
    return network.to(memory_format=torch.channels_last)
