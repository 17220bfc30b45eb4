"""Normalisation layers of any architecture, changed after it is built; and batches of one."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

GROUPS = 32
"""Groups of group normalisation (Wu and He 2018, arXiv:1803.08494), where they divide the channels."""

Kind = Literal["batch", "group", "instance"]


def replace_norms(body: nn.Module, kind: Kind) -> None:
    """Put layers of `kind` in place of batch, group and instance normalisation; LayerNorm of transformers stays.

    Weights and biases are kept, running statistics are not: pretrained ones are of another kind of layer.
    """
    made: dict[nn.Module, nn.Module] = {}  # nnU-Net's modules hold each layer under two parents
    for parent in list(body.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, (_BatchNorm, _InstanceNorm, nn.GroupNorm)):
                if child not in made:
                    made[child] = _replaced(child, kind)
                parent._modules[name] = made[child]


def _replaced(norm: _BatchNorm | _InstanceNorm | nn.GroupNorm, kind: Kind) -> nn.Module:
    channels = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
    new: nn.Module
    if kind == "group":
        groups = next(g for g in range(min(GROUPS, channels), 0, -1) if channels % g == 0)
        new = GroupNorm(groups, channels, norm.eps)
    elif kind == "instance":
        new = InstanceNorm(channels, norm.eps, affine=True)
    else:
        new = BatchNorm(channels, norm.eps)
    if norm.weight is not None:
        new.load_state_dict({**new.state_dict(), "weight": norm.weight.detach(), "bias": norm.bias.detach()})
    if not hasattr(norm, "act"):
        return new
    # timm's layers of batch normalisation with an activation inside (EfficientNet, HRNet's relatives).
    return nn.Sequential(new, norm.get_submodule("drop"), norm.get_submodule("act"))


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that takes a batch of one pooled value a channel: that has no spread, so the running
    statistics stand in."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class GroupNorm(nn.GroupNorm):
    """Group normalisation; a group of one pooled value has no spread, so only weight and bias act."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        return _affine(self, x) if self.num_groups == self.num_channels and _is_single(x) else super().forward(x)


class InstanceNorm(nn.InstanceNorm2d):
    """The same for instance normalisation."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        return _affine(self, x) if _is_single(x) else super().forward(x)


def _is_single(x: Tensor) -> bool:
    return x.shape[2] * x.shape[3] == 1


def _affine(norm: nn.GroupNorm | nn.InstanceNorm2d, x: Tensor) -> Tensor:
    return x * norm.weight[:, None, None] + norm.bias[:, None, None]


def allow_single_values(part: nn.Module) -> None:
    """Let batches of one train where `part` pools to one value a channel. Names in the state dict stay."""
    for parent in list(part.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                new = BatchNorm(child.num_features, child.eps, child.momentum)
                new.load_state_dict(child.state_dict())
                setattr(parent, name, new)
