"""Two networks: one draws every class on the reduced image, one draws some of them again where the first finds them.

After Zhu et al. 2018 (arXiv:1712.00201): a coarse network on the whole image finds the region of small organs, a fine
one sees that region only. Teams of the competition cropped the carpal bones that way. What differs, and why:

* Both are one module and train together; the paper trains two networks one after the other. The region is a square of
  fixed size around a mean position, not the bounding box of a thresholded mask, so nothing depends on data but the
  values of a sampling grid (Jaderberg et al. 2015, arXiv:1506.02025): it exports, compiles and batches.
* The second's logits are added to the first's, weighted by 1 in the square and less towards its border; the paper puts
  the fine result in place of the coarse one. A blend `(1 - w) first + w second` would hide the first network's mistakes
  from the loss just where it must find the region, so it would forget these classes; a sum passes it the whole
  gradient. A sum of logits is a product of the two networks' odds.

`base_channels`, `dropout` and `pretrained` go to whichever of the two follows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config, ConfigProblem, suggest
from engine import settings
from engine.names import Name
from model.blocks import PRIOR
from model.network import TWO_STAGE, Built, Network, Published, build_body, model_name

PAPER = "Zhu, Xia, Shen, Fishman, Yuille 2018, arXiv:1712.00201"

SHARED = ("base_channels", "dropout", "pretrained")

OPTIONS = (*SHARED, *TWO_STAGE)

VARIANTS = ("",)

PUBLISHED: dict[str, Published] = {}

NOTHING = 1e-4
"""Weight of the image's middle against the squared probabilities' mean over the image: far below that of a found region
(a hundredth of the image), far above that of an image without one."""

FADE = 0.2
"""Width of the square's border, as a share of half its side."""

Stage = Literal["first", "second"]

STAGES: tuple[Stage, ...] = ("first", "second")

AS_IT_IS = (0.0, 1.0)
"""Mean and standard deviation that change nothing: what the whole receives is normalised already."""


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built.

    Raises:
        ConfigProblem: windows instead of whole images; second_classes that are no classes; a stage that can't be built,
            that is two stages itself, or options that neither follows.
    """
    _check_whole_images(cfg)
    _check_classes(cfg)
    names = {stage: _name(stage, cfg) for stage in STAGES}
    _check_shared(names, cfg)
    model, classes = cfg.model, cfg.data.classes
    first = _built("first", names["first"], classes, model.first_size, cfg)
    second = _built("second", names["second"], model.second_classes, model.second_size, cfg)
    _begin_at_zero(second.body)
    net = TwoStage(
        first=Network(first, model.in_channels, AS_IT_IS),
        second=Network(second, model.in_channels, AS_IT_IS),
        first_size=model.first_size,
        second_size=model.second_size,
        share=model.second_share,
        places=[classes.index(name) for name in model.second_classes],
    )
    return Built(net, 1, (*first.blocks, *second.blocks))


class TwoStage(nn.Module):
    """(N, C, H, W) of any size -> (N, K, H, W).

    Args:
        first: makes K logits of the image, reduced to a long side of `first_size` px.
        second: makes the logits of the classes `places` from a square of `second_size` px; both sizes are rounded up to
            what the networks can take.
        share: side of that square in the image, as a share of its long side.
        places: channels that the second network draws, in its order.
    """

    places: Tensor
    fade: Tensor

    def __init__(
        self, first: Network, second: Network, first_size: int, second_size: int, share: float, places: Sequence[int]
    ) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.first_size = max(first.padded(first_size, first_size))
        self.second_size = max(second.padded(second_size, second_size))
        self.share = share
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.register_buffer("fade", _fade(self.second_size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        coarse = self._coarse(_reduced(x, self.first_size))
        half = self.half_side(height, width)
        centre = self.centre(coarse, half)
        # At most two pixels of the image to one of the square: grid_sample looks at neighbours only.
        sharp = _reduced(x, 2 * self.second_size / self.share)
        square = _pixels(self.second_size, x.device)
        region = _sample(sharp, *(centre[:, i, None] + half[i] * square for i in (0, 1))).to(x.dtype)
        fine: Tensor = self.second(region) * self.fade
        pixels = _pixels(width, x.device), _pixels(height, x.device)
        pasted = _sample(fine, *((pixels[i] - centre[:, i, None]) / half[i] for i in (0, 1)))
        logits = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
        # In place: K maps at full size are the largest tensor here.
        return logits.index_add_(1, self.places, pasted.to(logits.dtype))

    def half_side(self, height: int, width: int) -> tuple[float, float]:
        """Half of the square's side across and down, on the range -1 to 1 of the image's own sides."""
        side = self.share * max(height, width)
        return side / width, side / height

    def centre(self, coarse: Tensor, half: tuple[float, float]) -> Tensor:
        """Where the square lies: (N, K, h, w) logits of the first network -> (N, 2), across and down, -1 to 1, float32.

        The mean position, weighted by the squared probabilities: with plain ones, faint values everywhere outweigh a
        small region. The less is found, the nearer is the image's middle. The square lies inside the image where it
        can. No gradient: the loss at this place doesn't say where another would be better.
        """
        found = coarse.detach()[:, self.places].float().sigmoid().square().sum(1)
        total = found.mean((1, 2)) + NOTHING
        centre = []
        for i, other in ((0, 1), (1, 2)):
            along = found.mean(other)
            mean = (along * _pixels(along.shape[1], along.device)).mean(1) / total
            room = max(0.0, 1 - half[i])
            centre.append(mean.clamp(-room, room))
        return torch.stack(centre, 1)

    def _coarse(self, image: Tensor) -> Tensor:
        """Logits of an image of any size, its edge repeated up to the stride: the value of black isn't known here."""
        height, width = image.shape[-2:]
        full_height, full_width = self.first.padded(height, width)
        image = F.pad(image, (0, full_width - width, 0, full_height - height), mode="replicate")
        logits: Tensor = self.first(image)
        return logits[..., :height, :width]


def _reduced(image: Tensor, long_side: float) -> Tensor:
    """The image with this long side, px, aspect kept; itself where it is smaller."""
    height, width = image.shape[-2:]
    scale = long_side / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(scale * height)), max(1, round(scale * width)))
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


def _pixels(count: int, device: torch.device) -> Tensor:
    """Centres of `count` pixels that divide the range -1 to 1, float32."""
    return (2 * torch.arange(count, device=device) + 1) / count - 1


def _sample(image: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Bilinear samples at columns (N, w) and rows (N, h), -1 to 1, as float32 (N, C, h, w); 0 outside of the image.

    The grid is made by hand: F.affine_grid multiplies matrices, which autocast and TF32 round to whole pixels.
    """
    grid = torch.stack(torch.broadcast_tensors(across[:, None, :], down[:, :, None]), -1)
    return F.grid_sample(image.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _fade(side: int) -> Tensor:
    """Weights (side, side): 1 inside, smoothly to 0 at the outermost pixels, so that nothing outside changes."""
    edge = ((1 - _pixels(side, torch.device("cpu")).abs() - 1 / side) / FADE).clamp(0, 1)
    smooth = edge.square() * (3 - 2 * edge)
    return smooth[:, None] * smooth


def _name(stage: Stage, cfg: Config) -> Name:
    """The network that this stage asks for, which exists and has one stage."""
    field = f"{stage}_model"
    try:
        name = model_name(settings.replace(cfg, {"model_file": settings.get(cfg, field)}))
    except ConfigProblem as error:
        raise ConfigProblem(f"{field}: {error}") from None
    if name.load().build is build:
        raise ConfigProblem(f"{field} {name} has two stages itself: give a network of one, such as model.model_nnunet.")
    return name


def _built(stage: Stage, name: Name, classes: tuple[str, ...], size: int, cfg: Config) -> Built:
    default = Config()
    reset = [*TWO_STAGE, *(option for option in SHARED if option not in name.load().OPTIONS)]
    # Normalisation and checkpointing are for the caller of build(), who sees both networks.
    values = {option: settings.get(default, option) for option in (*reset, "norm", "grad_checkpoint")}
    sizes = {"image_size": size, "window_size": size}
    try:
        return build_body(name, settings.replace(cfg, {**values, **sizes, "classes": classes}))
    except ConfigProblem as error:
        raise ConfigProblem(f"{stage}_model: {error}") from None


def _begin_at_zero(body: nn.Module) -> None:
    """What is added to logits begins at 0; the class prior is in the first network's already."""
    with torch.no_grad():
        for parameter in body.parameters():
            if parameter.ndim == 1 and bool((parameter == PRIOR).all()):
                parameter.zero_()


def _check_whole_images(cfg: Config) -> None:
    for field, whole in (("dataset_file", "dataset.dataset"), ("inference_file", "inference.inference")):
        value = settings.get(cfg, field)
        if "sliding" in value.casefold():
            raise ConfigProblem(
                f"{field} {value} cuts windows, but model_two_stage finds its region in a whole image: give "
                f"--{field} {whole}."
            )


def _check_classes(cfg: Config) -> None:
    chosen, classes = cfg.model.second_classes, cfg.data.classes
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConfigProblem(
            f"second_classes is {', '.join(chosen) or 'empty'}, but model_two_stage needs at least one class, each "
            f"once: name some of {', '.join(classes)}."
        )
    unknown = [f"{name}{suggest(name, classes)}" for name in chosen if name not in classes]
    if unknown:
        raise ConfigProblem(
            f"second_classes has {', '.join(unknown)}, not in classes: with a class list of your own, name those that "
            f"the second network draws (--second_classes), out of {', '.join(classes)}."
        )


def _check_shared(names: dict[Stage, Name], cfg: Config) -> None:
    default = Config()
    for option in SHARED:
        value = settings.get(cfg, option)
        follows = any(option in name.load().OPTIONS for name in names.values())
        if value != settings.get(default, option) and not follows:
            raise ConfigProblem(
                f"{option} {value!r} has no meaning for {names['first']} nor {names['second']}: leave it out."
            )
