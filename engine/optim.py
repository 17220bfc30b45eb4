"""Optimizers by timm's names, their groups of parameters, and a frozen encoder."""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from config import ConfigProblem, Train, suggest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # timm's use of torch.jit, which users can't mend
    import timm.optim

library: Any = timm.optim

LOOKAHEAD = "lookahead_"
"""Before any name: Lookahead (Zhang et al. 2019, arXiv:1907.08610) around that optimizer."""

ENCODERS = ("encoder", "backbone", "trunk", "swinViT")
"""Names that architectures give their encoder; the last is MONAI's."""

REFUSED = {
    "lbfgs": "evaluates the loss several times in a step",
    "adahessian": "takes second derivatives",
}
"""Optimizer -> what the training loop doesn't do for it."""

OWN = ("weight_decay", "momentum", "lr_scale")
"""Options of a group that follow the settings, not a saved state."""


def optimizer_names() -> list[str]:
    """Every optimizer that works here, without `lookahead_`. Those of packages that aren't installed are left out."""
    names: list[str] = library.list_optimizers()
    return [name for name in names if name not in REFUSED and _package_of(name) is None]


def build_optimizer(network: nn.Module, train: Train) -> torch.optim.Optimizer:
    """The configured optimizer over all parameters of `network`, the frozen ones too.

    Up to four groups: encoder and rest, each with and without weight decay. Spared are parameters of one dimension
    (biases, norms) and those that a module names in timm's `no_weight_decay()`. Each group has an `lr_scale`:
    encoder_lr in the encoder, else 1. Groups follow from the network alone: a saved state fits whatever the settings.

    Raises:
        ConfigProblem: an optimizer that is unknown (with near names) or can't be used; momentum for one that has none;
            encoder_lr or freeze_encoder for a network without an encoder.
    """
    name = _checked_name(train)
    if (train.encoder_lr != 1 or train.freeze_encoder) and encoder_of(network) is None:
        raise ConfigProblem(
            f"encoder_lr is {train.encoder_lr:g} and freeze_encoder {train.freeze_encoder:g}, but this network has no "
            f"encoder of its own: leave both out, or choose a network with one, such as model.model_unet_resnet34."
        )
    # Fused is the only kind that is faster than torch's default on CPUs as well.
    fused = "fused" in inspect.signature(_information(name).opt_class).parameters
    options: dict[str, Any] = {"fused": True} if fused else {}
    groups = _groups(network, train)
    optimizer: torch.optim.Optimizer = library.create_optimizer_v2(
        groups, opt=name, lr=train.lr, weight_decay=train.weight_decay, momentum=train.momentum, **options
    )
    set_lr(optimizer, train.lr)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Continue from the `state_dict()` of the same kind of optimizer over the same network.

    Weight decay, momentum and the encoder's learning rate stay those of the settings: torch would put the saved ones in
    their place.

    Raises:
        ValueError: the groups are of another network.
    """
    own = [{option: group[option] for option in OWN if option in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, own, strict=True):
        group.update(options)


def encoder_of(network: nn.Module) -> nn.Module | None:
    """The part of a network, or of its `body`, that is its encoder; None where it names none."""
    body = getattr(network, "body", network)
    found = (getattr(body, name, None) for name in ENCODERS)
    return next((part for part in found if isinstance(part, nn.Module)), None)


def freeze(network: nn.Module, frozen: bool) -> None:
    """Hold the encoder as it is, or let it learn (again). Call it after `network.train()`, which undoes a part.

    A frozen encoder keeps its weights, running statistics and all: its normalisation uses them instead of the batch's,
    so the rest of the network trains on the features that inference will see. Its dropout goes on.

    Raises:
        ConfigProblem: there is no encoder to freeze.
    """
    encoder = encoder_of(network)
    if encoder is None:
        if frozen:
            raise ConfigProblem("freeze_encoder has no meaning for a network without an encoder: leave it out.")
        return
    encoder.requires_grad_(not frozen)
    if frozen:
        for part in encoder.modules():
            if isinstance(part, _NormBase):
                part.eval()


def _checked_name(train: Train) -> str:
    """timm's spelling of `optimizer`, which exists and can be used."""
    name = train.optimizer.casefold()
    kind = name.removeprefix(LOOKAHEAD)
    if kind in REFUSED:
        raise ConfigProblem(
            f"optimizer {train.optimizer!r} {REFUSED[kind]}, which the training loop doesn't do: choose another, such "
            f"as adamw."
        )
    if kind not in library.list_optimizers():
        near = suggest(kind, optimizer_names())
        raise ConfigProblem(f"optimizer {train.optimizer!r} is unknown{near}: --list_optimizers has all.")
    if missing := _package_of(kind):
        raise ConfigProblem(
            f"optimizer {train.optimizer!r} is of the package {missing}, which is not installed: install it, or choose "
            f"another, such as adamw."
        )
    if train.momentum != Train().momentum and not _information(kind).has_momentum:
        raise ConfigProblem(
            f"momentum {train.momentum:g} has no meaning for optimizer {train.optimizer!r}, which has none: leave it "
            f"out."
        )
    return name


def _information(name: str) -> Any:
    return library.get_optimizer_info(name.removeprefix(LOOKAHEAD))


def _package_of(name: str) -> str | None:
    """The package that timm would take the optimizer from, where that is not installed."""
    kind = _information(name).opt_class
    package: str | None = kind.split(".")[0] if isinstance(kind, str) else None
    return package if package and importlib.util.find_spec(package) is None else None


def _groups(network: nn.Module, train: Train) -> list[dict[str, Any]]:
    """Groups that are not empty: encoder and rest, with and without weight decay."""
    encoder = encoder_of(network)
    inside = {id(p) for p in encoder.parameters()} if encoder else set()
    spared = {id(p) for p in _spared(network)}
    groups = []
    for in_encoder, decays in product((True, False), repeat=2):
        members = [p for p in network.parameters() if (id(p) in inside, id(p) not in spared) == (in_encoder, decays)]
        if members:
            groups.append({
                "params": members,
                "weight_decay": train.weight_decay if decays else 0.0,
                "lr_scale": train.encoder_lr if in_encoder else 1.0,
            })
    return groups


def _spared(network: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters without weight decay."""
    yield from (p for p in network.parameters() if p.ndim <= 1)
    for module in network.modules():
        if hasattr(module, "no_weight_decay"):
            patterns = module.no_weight_decay()  # type: ignore[operator]
            yield from (p for name, p in module.named_parameters() if any(fnmatch(name, each) for each in patterns))
