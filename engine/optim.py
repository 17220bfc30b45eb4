"""Optimizers and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from config import Train

SGD_MOMENTUM = 0.99
"""nnU-Net's (Isensee et al. 2021)."""


def build_optimizer(parameters: Iterable[nn.Parameter], train: Train) -> torch.optim.Optimizer:
    """The configured optimizer. Weight decay spares biases and norms, which have one dimension."""
    chosen = list(parameters)
    groups = [
        {"params": [p for p in chosen if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in chosen if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if train.optimizer == "SGD":
        return torch.optim.SGD(groups, lr=train.lr, momentum=SGD_MOMENTUM, nesterov=True)
    kind = torch.optim.AdamW if train.optimizer == "AdamW" else torch.optim.Adam
    return kind(groups, lr=train.lr)


def learning_rate(train: Train, step: int, steps_per_epoch: int) -> float:
    """Learning rate of training step `step` (from 0): linear warm-up, then a cosine or a constant.

    A function of the step alone, so that resuming needs no state. The cosine is Loshchilov and Hutter 2017
    (arXiv:1608.03983, eq. 5) without restarts, over the steps after the warm-up.
    """
    warmup = round(train.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return train.warmup_min_lr + (train.lr - train.warmup_min_lr) * step / warmup
    if train.scheduler == "None":
        return train.lr
    share = (step - warmup) / max(1, train.epoch * steps_per_epoch - warmup)
    return train.min_lr + 0.5 * (train.lr - train.min_lr) * (1 + math.cos(math.pi * share))
