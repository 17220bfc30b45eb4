"""The one door to segmentation_models_pytorch (SMP): its decoders over its own and timm's encoders.

What the library leaves undone is done here for all of them: batches of one train, Swin takes any size, layers that
nothing uses go, and the parts that gradient checkpointing computes again are found, the last two by one forward and
backward pass on the meta device, which computes nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from config import Config, ConfigProblem
from model.downloads import downloading
from model.network import Built
from model.norms import allow_single_values

DEFAULT = "resnet34"
"""Encoder of the families' bare names, where they don't say another."""

STRIDE = 32
"""Of the last stage of most encoders."""

SHARE = 0.2
"""Of all features: the most that gradient checkpointing computes again at once, where layers can be cut that fine."""


@cache
def library() -> Any:
    """segmentation_models_pytorch; importing it takes seconds, which lists of names shall not cost."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its use of torch.jit, which users can't mend
        import segmentation_models_pytorch
    return segmentation_models_pytorch


def encoder_name(variant: str) -> str:
    """The encoder as SMP spells it: its own name where there is one (resnet34, efficientnet-b4, mit_b0), else timm's
    (convnext_tiny, with or without tu- before and a pretrained tag behind). "" is DEFAULT."""
    name = variant or DEFAULT
    return name if name in library().encoders.encoders or name.startswith("tu-") else f"tu-{name}"


def knows_encoder(variant: str) -> bool:
    """Whether SMP or timm has the encoder."""
    name = encoder_name(variant)
    if name in library().encoders.encoders:
        return True
    import timm

    plain = name.removeprefix("tu-")
    return timm.is_model(plain) and ("." not in plain or timm.is_model_pretrained(plain))


def known_weights(variant: str) -> tuple[str, ...]:
    """Names of the encoder's pretrained weights, as its library spells them; --pretrained takes the first. timm's
    others are had by the encoder's name with a tag: `convnext_tiny.fb_in22k`."""
    name = encoder_name(variant)
    own = library().encoders.encoders.get(name)
    if own is not None:
        return tuple(sorted(own["pretrained_settings"], key=lambda weights: weights != "imagenet"))
    import timm

    plain = name.removeprefix("tu-")
    if "." in plain:
        return (plain,)
    if not timm.is_model_pretrained(plain):
        return ()
    about: Any = timm.get_pretrained_cfg(plain)
    default = f"{plain}.{about.tag}"
    return default, *(n for n in timm.list_models(f"{plain}.*", pretrained=True) if n != default)


def build_smp(
    decoder: str,
    variant: str,
    cfg: Config,
    options: Mapping[str, Any] | None = None,
    stride: int = STRIDE,
    least: int = 0,
) -> Built:
    """`decoder` (the library's class name, built with `options`) on the encoder `variant`. Its one-channel stem sums
    pretrained RGB filters.

    Raises:
        ConfigProblem: an encoder that the decoder can't use; pretrained weights that there are not or that can't be
            downloaded.
    """
    encoder = encoder_name(variant)
    options = {**_any_size(encoder), **(options or {})}
    try:
        built = finished(_network(decoder, encoder, cfg, options, None), cfg.model.in_channels, stride, least)
    except Exception as error:  # each encoder refuses in its own way, some only when they run
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise ConfigProblem(
            f"{encoder} does not work as encoder of {decoder} ({reason}): choose another, such as resnet34"
            f"{_takers(options)}."
        ) from error
    if not cfg.model.pretrained:
        return built
    known = known_weights(variant)
    if not known:
        raise ConfigProblem(f"no pretrained weights of {encoder} are known: give --no_pretrained, or another encoder.")
    with downloading(encoder):
        net = _network(decoder, encoder, cfg, options, True if encoder.startswith("tu-") else known[0])
    return finished(net, cfg.model.in_channels, stride, least)


def finished(net: nn.Module, in_channels: int, stride: int, least: int = 0) -> Built:
    """`net`, ready to train: without layers that get no gradient, with batches of one, with its blocks found.

    Raises:
        RuntimeError: it takes no size but its own, or computes something that its output does not depend on.
    """
    allow_single_values(net)
    trial = _trial(net, in_channels, stride, least)
    if trial.unused:
        _drop(net, trial.unused)
        trial = _trial(net, in_channels, stride, least)
    if trial.unused:
        raise RuntimeError(f"{sorted(trial.unused)[0]} gets no gradient")
    return Built(net, stride, _blocks(net, trial.calls), least)


def _network(
    decoder: str, encoder: str, cfg: Config, options: Mapping[str, Any], weights: str | bool | None
) -> nn.Module:
    kind = getattr(library(), decoder)
    net: nn.Module = kind(
        encoder_name=encoder,
        encoder_weights=weights,
        in_channels=cfg.model.in_channels,
        classes=len(cfg.data.classes),
        **options,
    )
    return net


def _any_size(encoder: str) -> dict[str, Any]:
    """What timm needs to know for Swin to take images of any size: windows are shifted at every stage, and the masks of
    the shifts follow the image."""
    from timm.models import is_model, is_model_in_modules

    plain = encoder.removeprefix("tu-").partition(".")[0]
    if is_model(plain) and is_model_in_modules(plain, ["swin_transformer", "swin_transformer_v2"]):
        return {"strict_img_size": False, "always_partition": True}
    return {}


def _takers(options: Mapping[str, Any]) -> str:
    """Where an encoder goes that can't be dilated."""
    dilated = {"output_stride", "encoder_output_stride"} & options.keys()
    return ", or a family that does not dilate it, such as model_unet, model_fpn or model_upernet" if dilated else ""


@dataclass
class _Call:
    """A module's forward pass."""

    count: int = 0
    plain: bool = True
    """Whether it was given nothing but tensors, sizes and None: lists may be written into."""
    bytes: int = 0
    """Of its output, where it is one tensor."""


@dataclass(frozen=True)
class _Trial:
    unused: frozenset[str]
    """Parameters without gradient."""
    calls: dict[nn.Module, _Call]


def _trial(net: nn.Module, in_channels: int, stride: int, least: int) -> _Trial:
    """Run `net` on the meta device, forward and backward, at a size that is not square."""
    calls: dict[nn.Module, _Call] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        call = calls.setdefault(module, _Call())
        call.count += 1
        call.plain &= all(arg is None or isinstance(arg, (Tensor, int)) for arg in (*args, *kwargs.values()))
        call.bytes += out.nbytes if isinstance(out, Tensor) else 0

    side = max(least, 4 * stride)
    image = torch.empty(2, in_channels, side, side + stride, device="meta")
    weights = {name: torch.empty_like(p, device="meta", requires_grad=True) for name, p in net.named_parameters()}
    buffers = {name: torch.empty_like(b, device="meta") for name, b in net.named_buffers()}
    hooks = [module.register_forward_hook(record, with_kwargs=True) for module in net.modules()]
    try:
        out = functional_call(net, {**weights, **buffers}, (image,))
    finally:
        for hook in hooks:
            hook.remove()
    total = torch.stack([part.sum() for part in ([out] if isinstance(out, Tensor) else out)]).sum()
    gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    return _Trial(frozenset(n for n, g in zip(weights, gradients, strict=True) if g is None), calls)


def _drop(parent: nn.Module, unused: frozenset[str], prefix: str = "") -> None:
    """Take out the modules all of whose parameters are unused; names of the rest stay."""
    for name, child in list(parent.named_children()):
        own = {f"{prefix}{name}.{n}" for n, _ in child.named_parameters()}
        if own and own <= unused:
            setattr(parent, name, nn.Identity())
        elif own:
            _drop(child, unused, f"{prefix}{name}.")
    for name, _ in list(parent.named_parameters(recurse=False)):
        if f"{prefix}{name}" in unused:
            setattr(parent, name, None)


def _blocks(net: nn.Module, calls: Mapping[nn.Module, _Call]) -> list[nn.Module]:
    """The largest modules that hold at most SHARE of the features, run once, and can run again on the same inputs."""
    leaves = {part: call.bytes for part, call in calls.items() if not list(part.children())}
    features = {part: sum(leaves.get(m, 0) for m in part.modules()) for part in net.modules()}
    sides = [part for name, part in net.named_children() if name in ("encoder", "decoder")]
    whole = sum(features[part] for part in sides)

    def of(part: nn.Module) -> list[nn.Module]:
        inner = [block for child in part.children() for block in of(child)]
        call = calls.get(part)
        again = call is not None and call.count == 1 and call.plain and any(True for _ in part.children())
        if again and any(True for _ in part.parameters()) and (features[part] <= SHARE * whole or not inner):
            return [part]
        return inner

    return [block for part in sides for block in of(part)]
