"""Name -> network, and what every architecture is wrapped in: normalisation, sizes that don't fit, options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config, ConfigProblem
from engine import settings
from engine.names import Name, check_variant, resolve
from model.norms import replace_norms
from model.recompute import recompute

NORMALIZE: dict[str, tuple[float, float]] = {
    "unit": (0.0, 1.0),
    "dataset": (0.124, 0.168),
    "imagenet": (0.449, 0.226),
}
"""Mean and standard deviation on the [0, 1] range: of the competition's images (docs/data.md), and of ImageNet's over
its three channels (torchvision's figures). "image" takes each input's own."""

TWO_STAGE = ("first_model", "first_size", "second_model", "second_classes", "second_share", "second_size")

OPTIONAL = ("base_channels", "dropout", "deep_supervision", "pretrained", *TWO_STAGE)
"""Settings that not every architecture can follow."""


@dataclass(frozen=True)
class Built:
    """What the `build` of a family returns."""

    body: nn.Module
    """Normalised (N, in_channels, H, W), H and W multiples of `stride` and at least `least`, to logits (N, K, H, W). In
    training mode with `deep_supervision` to a list of logits, (N, K, H, W) first and then coarser ones (also full-size
    ones, where the paper upsamples them)."""
    stride: int
    """Factor that heights and widths must be a multiple of."""
    blocks: Sequence[nn.Module] = ()
    """Parts of `body`, none inside another, whose features `grad_checkpoint` computes again: together nearly all."""
    least: int = 0
    """Smallest height and width, px."""


@dataclass(frozen=True)
class Published:
    """A parameter count that a paper or a library states."""

    parameters: int
    source: str
    in_channels: int = 3
    classes: int = 1
    options: dict[str, object] = field(default_factory=dict)
    """Other settings that it was counted with."""
    digits: int | None = None
    """Digits that it is stated with (65.9 M has 3); None is exact."""


class Network(nn.Module):
    """(N, 1, H, W) grey values in [0, 1], any size -> logits (N, K, H, W); in training mode with deep supervision a
    list of them, fine to coarse.

    Normalisation lies inside, so an exported network takes grey values too. An image of three channels passes where the
    network takes three.

    Args:
        statistics: mean and standard deviation of grey values; None takes each input's own.
    """

    def __init__(self, built: Built, in_channels: int, statistics: tuple[float, float] | None) -> None:
        super().__init__()
        self.body = built.body
        self.stride = built.stride
        self.least = built.least
        self.in_channels = in_channels
        self.statistics = statistics

    def forward(self, grey: Tensor) -> Tensor | list[Tensor]:
        mean, std = self.statistics or _own_statistics(grey)
        height, width = grey.shape[-2:]
        full_height, full_width = self.padded(height, width)
        if (full_height, full_width) != (height, width):
            # Black margin, as around a collimated radiograph; cut off again below.
            grey = F.pad(grey, (0, full_width - width, 0, full_height - height))
        if grey.shape[1] < self.in_channels:
            grey = grey.expand(-1, self.in_channels, -1, -1)
        out: Tensor | list[Tensor] = self.body((grey - mean) / std)
        if isinstance(out, Tensor):
            return out[..., :height, :width]
        # A coarse map keeps every pixel that covers a part of the image.
        return [o[..., : -(-height * o.shape[-2] // full_height), : -(-width * o.shape[-1] // full_width)] for o in out]

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that the architecture really sees."""
        sides = [max(side, self.least) for side in (height, width)]
        sides = [side + -side % self.stride for side in sides]
        if sides == [self.stride, self.stride] and self.stride > 1:
            sides[1] += self.stride  # normalisation of a single coarsest pixel is undefined
        return sides[0], sides[1]


def _own_statistics(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each input, (N, 1, 1, 1) each; a blank one is divided by almost nothing."""
    std, mean = torch.std_mean(grey.float(), (1, 2, 3), keepdim=True)
    return mean, std + 1e-3


def build(cfg: Config) -> Network:
    """The network that `model_file` names, with one output channel for each class.

    Modules of this package hold
        PAPER: authors, year and arXiv number or journal;
        VARIANTS: variant -> what its builder needs; and `accepts(variant)` where more are known than listed;
        OPTIONS: those of OPTIONAL that its networks follow;
        PUBLISHED: variant -> Published;
        weights(variant): names of pretrained weights, where there are any;
        build(variant, cfg) -> Built.

    Raises:
        ConfigProblem: unknown name (with near ones), or an option that the architecture can't follow.
    """
    built = build_body(model_name(cfg), cfg)
    network = Network(built, cfg.model.in_channels, NORMALIZE.get(cfg.model.normalize))
    # Convolutions run faster on it: 20 % on two CPU cores, more on tensor cores.
    return network.to(memory_format=torch.channels_last)


def model_name(cfg: Config) -> Name:
    """The network that `model_file` names, which exists.

    Raises:
        ConfigProblem: it doesn't; names the near ones.
    """
    name = resolve("model", cfg.model.model_file)
    module = name.load()
    if not getattr(module, "accepts", lambda variant: False)(name.variant):
        check_variant(name, module.VARIANTS)
    return name


def build_body(name: Name, cfg: Config) -> Built:
    """The architecture alone, with the normalisation layers and the saving of memory that the settings ask for.

    Raises:
        ConfigProblem: an option that it can't follow.
    """
    module, default = name.load(), Config()
    for option in OPTIONAL:
        value = settings.get(cfg, option)
        if option not in module.OPTIONS and value != settings.get(default, option):
            raise ConfigProblem(
                f"{option} {value!r} has no meaning for {name}, which follows "
                f"{', '.join(module.OPTIONS) or 'no option'}: leave it out."
            )
    built: Built = module.build(name.variant, cfg)
    if cfg.model.norm != "own":
        replace_norms(built.body, cfg.model.norm)
    if cfg.model.grad_checkpoint:
        recompute(built.blocks)
    return built
