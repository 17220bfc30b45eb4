"""The learning rate of every step: a function of the settings and of numbers that a checkpoint holds anyway, so that
resuming restores no scheduler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from config import Train

START_FACTOR, END_FACTOR = 25.0, 1e4
"""OneCycleLR begins at lr / 25 and ends at 1 / 10 000 of that (torch's defaults, after fastai)."""

BETTER = 1.0001
"""A Dice more than this many times the best so far is better (torch's default)."""


@dataclass
class Plateau:
    """What ReduceLROnPlateau has seen of the validations: plain numbers, for the checkpoint."""

    best: float = -1.0
    """Best Dice so far; -1 before the first."""
    waited: int = 0
    """Validations since then, or since the last drop."""
    drops: int = 0
    """Times that the rate has dropped."""

    def see(self, dice: float, patience: int) -> bool:
        """Count one validation; True where the rate drops: at the first of more than `patience` without a better Dice.
        NaN is not better."""
        if dice > self.best * BETTER:
            self.best, self.waited = dice, 0
        else:
            self.waited += 1
        if self.waited <= patience:
            return False
        self.waited, self.drops = 0, self.drops + 1
        return True


def learning_rate(train: Train, step: int, steps_per_epoch: int, drops: int = 0) -> float:
    """Learning rate of training step `step` (from 0, counted over all epochs).

    A linear warm-up from `warmup_min_lr` to `lr`, then the scheduler, then the constant `swa_lr` of the last
    `swa_epochs`, before which the scheduler has come to its end. Values are those of torch's scheduler of that name,
    stepped after every step. Cosines and the polynomial begin after the warm-up, and a cosine shorter than what is left
    rises again; StepLR and MultiStepLR count epochs from the start of training; OneCycleLR has a warm-up of its own.

    Args:
        drops: of a Plateau, for ReduceLROnPlateau.
    """
    total = (train.epoch - train.swa_epochs) * steps_per_epoch
    if step >= total and train.swa_epochs:
        return train.swa_lr
    if train.scheduler == "OneCycleLR":
        return _one_cycle(train, step, total)
    warmup = _steps(train.warmup_epochs, steps_per_epoch) if train.use_warmup and train.warmup_epochs else 0
    if step < warmup:
        return train.warmup_min_lr + (train.lr - train.warmup_min_lr) * step / warmup
    return _after_warmup(train, step, warmup, total, steps_per_epoch, drops)


def _after_warmup(train: Train, step: int, warmup: int, total: int, steps_per_epoch: int, drops: int) -> float:
    span = train.lr - train.min_lr
    since, left = step - warmup, max(1, total - warmup)
    match train.scheduler:
        case "CosineAnnealingLR" | "CosineAnnealingWarmRestarts":
            # Loshchilov and Hutter 2017 (arXiv:1608.03983, eq. 5).
            period = _steps(train.scheduler_t_max, steps_per_epoch) if train.scheduler_t_max else left
            if train.scheduler == "CosineAnnealingWarmRestarts":
                since, period = _since_restart(since, period, train.scheduler_t_mult)
            return train.min_lr + 0.5 * span * (1 + math.cos(math.pi * since / period))
        case "PolynomialLR":
            # "poly" of Chen et al. 2017 (arXiv:1606.00915, section 4.1.1), lifted by min_lr.
            return float(train.min_lr + span * max(0.0, 1 - since / left) ** train.poly_power)
        case "StepLR":
            dropped = step // _steps(train.step_size, steps_per_epoch)
        case "MultiStepLR":
            dropped = sum(step >= _steps(milestone, steps_per_epoch) for milestone in train.milestones)
        case "ReduceLROnPlateau":
            return float(max(train.min_lr, train.lr * train.lr_gamma**drops))
        case _:
            return train.lr
    return float(train.lr * train.lr_gamma**dropped)


def _since_restart(since: int, period: int, factor: int) -> tuple[int, int]:
    """Steps since the last restart, and the length of the period that they are in."""
    while since >= period:
        since, period = since - period, period * factor
    return since, period


def _one_cycle(train: Train, step: int, total: int) -> float:
    """Smith and Topin 2018 (arXiv:1708.07120) with torch's two phases, both half a cosine; momentum stays constant."""
    first = train.lr / START_FACTOR
    top = train.onecycle_share * total - 1  # torch's count: a fraction of a step
    if step <= top:
        return _half_cosine(first, train.lr, step / top if top else 1.0)
    return _half_cosine(train.lr, first / END_FACTOR, (step - top) / (total - 1 - top))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _steps(epochs: float, steps_per_epoch: int) -> int:
    """The nearest number of steps, at least one."""
    return max(1, round(epochs * steps_per_epoch))
