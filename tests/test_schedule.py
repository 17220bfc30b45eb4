"""engine/schedule.py: learning rates against torch's schedulers and against the papers' formulas; the plateau."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from config import Train
from engine.schedule import Plateau, learning_rate

LR, LOW = 3e-3, 1e-5

SHAPES = [(1, 1), (3, 7), (5, 4), (2, 30), (12, 10)]
"""Epochs and steps of each."""


def rates(train: Train, per_epoch: int, drops: int = 0) -> list[float]:
    return [learning_rate(train, step, per_epoch, drops) for step in range(train.epoch * per_epoch)]


def plain(scheduler: str, epoch: int, **options: Any) -> Train:
    """Settings without warm-up."""
    return Train(epoch=epoch, lr=LR, min_lr=LOW, use_warmup=False, scheduler=scheduler, **options)  # type: ignore[arg-type]


def torchs(kind: Callable[..., Any], steps: int, **options: Any) -> list[float]:
    """Rates that a scheduler of torch gives step by step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler, found = kind(optimizer, **options), []
    for step in range(steps):
        if step:
            optimizer.step()
            scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


def same(found: list[float], expected: list[float]) -> None:
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-15)


# --- each schedule is torch's


@pytest.mark.parametrize(("epoch", "per_epoch"), SHAPES)
@pytest.mark.parametrize("t_max", [0.0, 0.5, 2.0])
def test_cosine(epoch: int, per_epoch: int, t_max: float) -> None:
    """A cosine shorter than the training rises again, as torch's does."""
    steps = epoch * per_epoch
    period = max(1, round(t_max * per_epoch)) if t_max else steps
    expected = torchs(lr_scheduler.CosineAnnealingLR, steps, T_max=period, eta_min=LOW)
    same(rates(plain("CosineAnnealingLR", epoch, scheduler_t_max=t_max), per_epoch), expected)


@pytest.mark.parametrize(("epoch", "per_epoch"), SHAPES)
@pytest.mark.parametrize("t_max", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("t_mult", [1, 2, 3])
def test_cosine_with_restarts(epoch: int, per_epoch: int, t_max: float, t_mult: int) -> None:
    steps = epoch * per_epoch
    first = max(1, round(t_max * per_epoch)) if t_max else steps
    kind = lr_scheduler.CosineAnnealingWarmRestarts
    train = plain("CosineAnnealingWarmRestarts", epoch, scheduler_t_max=t_max, scheduler_t_mult=t_mult)
    same(rates(train, per_epoch), torchs(kind, steps, T_0=first, T_mult=t_mult, eta_min=LOW))


@pytest.mark.parametrize(("epoch", "per_epoch"), SHAPES)
@pytest.mark.parametrize("step_size", [0.5, 1.0, 2.5, 20.0])
def test_step(epoch: int, per_epoch: int, step_size: float) -> None:
    drop = max(1, round(step_size * per_epoch))
    expected = torchs(lr_scheduler.StepLR, epoch * per_epoch, step_size=drop, gamma=0.3)
    same(rates(plain("StepLR", epoch, step_size=step_size, lr_gamma=0.3), per_epoch), expected)


@pytest.mark.parametrize(("epoch", "per_epoch"), SHAPES)
@pytest.mark.parametrize("milestones", [(), (1.0,), (0.5, 1.0, 4.0), (2.25, 11.0)])
def test_multi_step(epoch: int, per_epoch: int, milestones: tuple[float, ...]) -> None:
    drops = [max(1, round(milestone * per_epoch)) for milestone in milestones]
    expected = torchs(lr_scheduler.MultiStepLR, epoch * per_epoch, milestones=drops, gamma=0.3)
    same(rates(plain("MultiStepLR", epoch, milestones=milestones, lr_gamma=0.3), per_epoch), expected)


@pytest.mark.parametrize(("epoch", "per_epoch"), SHAPES)
@pytest.mark.parametrize("power", [0.9, 1.0, 2.0])
def test_polynomial(epoch: int, per_epoch: int, power: float) -> None:
    steps = epoch * per_epoch
    train = plain("PolynomialLR", epoch, poly_power=power)
    expected = torchs(lr_scheduler.PolynomialLR, steps, total_iters=steps, power=power)
    same(rates(replace(train, min_lr=0.0), per_epoch), expected)
    same(rates(train, per_epoch), [LOW + (LR - LOW) * (1 - step / steps) ** power for step in range(steps)])


@pytest.mark.parametrize(("epoch", "per_epoch"), SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.07, 0.3, 0.9])
def test_one_cycle(epoch: int, per_epoch: int, share: float) -> None:
    steps = epoch * per_epoch
    kind = lr_scheduler.OneCycleLR
    expected = torchs(kind, steps, max_lr=LR, total_steps=steps, pct_start=share, cycle_momentum=False)
    found = rates(plain("OneCycleLR", epoch, onecycle_share=share), per_epoch)
    same(found, expected)
    assert max(found) <= LR * (1 + 1e-12)


@pytest.mark.parametrize(("epoch", "share", "expected"), [(2, 0.5, [LR, LR / 25 / 1e4]), (1, 1.0, [LR])])
def test_one_cycle_where_torch_divides_by_zero(epoch: int, share: float, expected: list[float]) -> None:
    assert rates(plain("OneCycleLR", epoch, onecycle_share=share), 1) == pytest.approx(expected)


def test_one_cycle_that_only_rises() -> None:
    found = rates(plain("OneCycleLR", 2, onecycle_share=1.0), 9)
    assert found == sorted(found)
    assert (found[0], found[-1]) == (pytest.approx(LR / 25), pytest.approx(LR))


def test_constant() -> None:
    assert rates(plain("None", 3), 4) == [LR] * 12


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("factor", [0.1, 0.5])
def test_plateau(patience: int, factor: float) -> None:
    scores = [0.0, 0.2, 0.2, 0.20001, 0.3, 0.1, math.nan, 0.1, 0.2, 0.3, *[0.31] * 5, 0.32, *[0.2] * 20]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    theirs = lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor=factor, patience=patience, min_lr=LOW)
    train, ours = plain("ReduceLROnPlateau", 1, lr_gamma=factor), Plateau()
    for score in scores:
        before = ours.drops
        dropped = ours.see(score, patience)
        assert dropped == (ours.drops > before)
        theirs.step(score)
        rate = learning_rate(train, 0, 10, ours.drops)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        ours = Plateau(**json.loads(json.dumps(asdict(ours))))  # through a checkpoint
    assert ours.drops > 2
    assert learning_rate(train, 0, 10, 100) == LOW


# --- the parts around a schedule


@pytest.mark.parametrize("scheduler", ["CosineAnnealingLR", "PolynomialLR", "None"])
@pytest.mark.parametrize(("epoch", "per_epoch", "warmup"), [(5, 4, 1.0), (4, 9, 0.5), (2, 30, 1.9), (2, 5, 2.0)])
def test_warm_up_is_torchs_and_the_schedule_begins_after_it(
    scheduler: str, epoch: int, per_epoch: int, warmup: float
) -> None:
    train = replace(plain(scheduler, epoch), use_warmup=True, warmup_epochs=warmup, warmup_min_lr=1e-4)
    risen, total = round(warmup * per_epoch), epoch * per_epoch
    found = rates(train, per_epoch)
    same(found[:risen], torchs(lr_scheduler.LinearLR, risen, start_factor=1e-4 / LR, total_iters=risen))
    # What follows is the schedule without warm-up over the steps that are left.
    same(found[risen:], [learning_rate(plain(scheduler, 1), step, total - risen) for step in range(total - risen)])


def test_the_warm_up_rises_and_the_cosine_falls() -> None:
    train = Train(epoch=10, warmup_epochs=2.0)
    found = rates(train, 10)
    assert found[:21] == sorted(found[:21])
    assert found[20:] == sorted(found[20:], reverse=True)
    assert (found[0], found[20]) == (train.warmup_min_lr, train.lr)


def test_drops_come_at_epochs_of_the_training_whatever_the_warm_up() -> None:
    train = replace(plain("MultiStepLR", 6, milestones=(2.0, 4.0), lr_gamma=0.5), use_warmup=True, warmup_epochs=1.0)
    assert rates(train, 10)[10:] == rates(replace(train, use_warmup=False), 10)[10:]
    train = replace(train, scheduler="StepLR", step_size=2.0)
    assert rates(train, 10)[10:] == [LR] * 10 + [LR / 2] * 20 + [LR / 4] * 20


def test_no_warm_up_of_no_length_and_none_for_one_cycle() -> None:
    long = replace(plain("None", 2), use_warmup=True, warmup_epochs=0.0)
    assert rates(long, 5) == [LR] * 10
    cycle = plain("OneCycleLR", 4)
    assert rates(replace(cycle, use_warmup=True, warmup_epochs=2.0), 5) == rates(cycle, 5)


SCHEDULERS = get_args(get_type_hints(Train)["scheduler"])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_averaging_has_its_own_rate_after_the_schedule_has_ended(scheduler: str) -> None:
    options: dict[str, Any] = {"step_size": 2.0, "milestones": (1.0, 3.0), "scheduler_t_max": 2.0}
    whole = replace(plain(scheduler, 4, **options), use_warmup=True)
    found = rates(replace(whole, epoch=6, swa_epochs=2, swa_lr=7e-4), 5)
    assert found == rates(whole, 5) + [7e-4] * 10


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("warmup", [False, True])
def test_every_rate_is_positive_and_none_above_the_peak(scheduler: str, warmup: bool) -> None:
    train = replace(plain(scheduler, 5, milestones=(2.0,)), use_warmup=warmup)
    found = rates(train, 8, drops=1)
    assert all(0 < rate <= LR * (1 + 1e-12) for rate in found)
    assert found == rates(train, 8, drops=1)
