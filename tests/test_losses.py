"""model/losses against their formulas in float64, written out on all classes at once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from config import Config, ConfigProblem
from engine import settings
from engine.bits import pack
from model.losses import build_loss, canonical_name, term_names


def bce(x: Tensor, t: Tensor, cfg: Config) -> Tensor:
    return -(t * x.sigmoid().log() + (1 - t) * (-x).sigmoid().log()).mean()


def focal(x: Tensor, t: Tensor, cfg: Config) -> Tensor:
    p = x.sigmoid()
    p_t = t * p + (1 - t) * (1 - p)
    alpha_t = t * cfg.loss.focal_alpha + (1 - t) * (1 - cfg.loss.focal_alpha)
    return -(alpha_t * (1 - p_t) ** cfg.loss.focal_gamma * p_t.log()).mean()


def dice(x: Tensor, t: Tensor, cfg: Config) -> Tensor:
    present = t.sum((0, 2, 3)) > 0
    if not present.any():
        return 0 * x.sum()
    p = x.sigmoid()
    share = (2 * (p * t).sum((0, 2, 3)) + 1) / (p.sum((0, 2, 3)) + t.sum((0, 2, 3)) + 1)
    return (1 - share)[present].mean()


FORMULAS: dict[str, Callable[[Tensor, Tensor, Config], Tensor]] = {"BCE": bce, "Focal": focal, "Dice": dice}
SUMS = ["_".join(["Combined", *terms]) for n in (2, 3) for terms in permutations(FORMULAS, n)]


def configured(loss: str, **values: Any) -> Config:
    return settings.replace(Config(), {"loss": loss, **values})


def example(n_classes: int = 5, absent: tuple[int, ...] = (2,), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (2, K, 9, 13) float64 and boolean targets, some classes without a pixel."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((2, n_classes, 9, 13), generator=generator, dtype=torch.float64) * 3
    target = torch.rand(logits.shape, generator=generator) < 0.3
    target[:, list(absent)] = False
    return logits, target


def packed(target: Tensor) -> Tensor:
    return torch.stack([pack(masks.float(), 0.5) for masks in target])


def compare(cfg: Config, logits: Tensor, target: Tensor, dtype: torch.dtype, tolerance: float) -> None:
    """Value and gradient against the formula's."""
    terms = cfg.loss.loss.removeprefix("Combined_").split("_")
    weights = cfg.loss.loss_weights or (1.0,) * len(terms)
    ours = logits.to(dtype).requires_grad_()
    value = build_loss(cfg)(ours, packed(target))
    assert value.dtype == torch.float32 and value.shape == ()
    (3 * value).backward()
    exact = logits.to(dtype).double().requires_grad_()
    expected = sum(
        (w * FORMULAS[term](exact, target.double(), cfg) for w, term in zip(weights, terms, strict=True)),
        torch.zeros((), dtype=torch.float64),
    )
    (3 * expected).backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    assert ours.grad is not None and exact.grad is not None and ours.grad.dtype == dtype
    scale = exact.grad.abs().max()
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=tolerance, atol=float(tolerance * scale) + 1e-12)


def test_all_terms_are_tested() -> None:
    assert sorted(term_names()) == sorted(FORMULAS)


@pytest.mark.parametrize("loss", [*FORMULAS, *SUMS])
def test_value_and_gradient_equal_the_formula(loss: str) -> None:
    logits, target = example()
    compare(configured(loss), logits, target, torch.float32, 1e-5)


@pytest.mark.parametrize("loss", SUMS)
def test_weights(loss: str) -> None:
    logits, target = example(seed=1)
    weights = (0.7, 2.5, 0.1)[: loss.count("_")]
    compare(configured(loss, loss_weights=weights), logits, target, torch.float32, 1e-5)
    first_only = configured(loss, loss_weights=(2.0, *(0.0,) * (len(weights) - 1)))
    value = build_loss(first_only)(logits.float(), packed(target))
    term = FORMULAS[loss.split("_")[1]](logits, target.double(), first_only)
    torch.testing.assert_close(value.double(), 2 * term, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [*FORMULAS, "Combined_Focal_Dice"])
def test_half_precision(loss: str, dtype: torch.dtype) -> None:
    """Sums are float32 whatever the logits: only the gradient is rounded to their type."""
    logits, target = example()
    compare(configured(loss), logits, target, dtype, 1e-2)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (1.0, 1.0), (0.0, 0.5), (0.9, 5.0)])
def test_focal_parameters(alpha: float, gamma: float) -> None:
    logits, target = example()
    compare(configured("Focal", focal_alpha=alpha, focal_gamma=gamma), logits, target, torch.float32, 1e-5)
    if gamma == 0:
        half_bce = 0.5 * bce(logits, target.double(), Config())
        value = build_loss(configured("Focal", focal_alpha=alpha, focal_gamma=gamma))(logits.float(), packed(target))
        torch.testing.assert_close(value.double(), half_bce, rtol=1e-5, atol=0)


@pytest.mark.parametrize("n_classes", [1, 29, 31, 32, 33, 65])
def test_targets_of_one_two_and_three_words(n_classes: int) -> None:
    logits, target = example(n_classes, absent=())
    compare(configured("Combined_BCE_Focal_Dice"), logits, target, torch.float32, 1e-5)


def test_channels_last_logits() -> None:
    logits, target = example()
    compare(
        configured("Combined_Focal_Dice"), logits.to(memory_format=torch.channels_last), target, torch.float32, 1e-5
    )


@pytest.mark.parametrize("absent", [(), (0,), (1, 3), (0, 1, 2, 3, 4)])
def test_absent_classes(absent: tuple[int, ...]) -> None:
    """Dice leaves them out of its mean, neither as 0 nor as 1; pixel-wise terms count their false positives."""
    logits, target = example(absent=absent)
    for loss in ("Dice", "Focal", "BCE"):
        compare(configured(loss), logits, target, torch.float32, 1e-5)
    x = logits.float().requires_grad_()
    dice_value = build_loss(configured("Dice"))(x, packed(target))
    dice_value.backward()
    assert x.grad is not None and not x.grad[:, list(absent)].any()
    there = [k for k in range(5) if k not in absent]
    if there:
        alone = build_loss(configured("Dice"))(logits.float()[:, there], packed(target[:, there]))
        torch.testing.assert_close(dice_value.detach(), alone)
    else:
        assert dice_value == 0
    if absent:
        y = logits.float().requires_grad_()
        build_loss(configured("Focal"))(y, packed(target)).backward()
        assert y.grad is not None and (y.grad[:, list(absent)] > 0).all(), "less is better everywhere"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [*FORMULAS, "Combined_BCE_Focal_Dice"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_extreme_logits_stay_finite(loss: str, dtype: torch.dtype, gamma: float) -> None:
    target = torch.zeros((1, 3, 8, 8), dtype=torch.bool)
    target[:, 0, :4] = True
    target[:, 1] = True
    for value in (1e4, -1e4, 0.0):
        logits = torch.full(target.shape, value, dtype=dtype)
        logits[..., ::2] *= -1
        logits.requires_grad_()
        result = build_loss(configured(loss, focal_gamma=gamma))(logits, packed(target))
        result.backward()
        assert torch.isfinite(result) and result >= 0
        assert logits.grad is not None and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", [*FORMULAS, *SUMS])
def test_a_perfect_prediction_is_near_the_minimum(loss: str) -> None:
    _, target = example(absent=())
    right = torch.where(target, 25.0, -25.0)
    function, bits = build_loss(configured(loss)), packed(target)
    best = function(right, bits)
    assert 0 <= best < 1e-3
    worse = right.clone()
    worse[0, 0, :3] *= -1
    assert function(worse, bits) > best + 1e-3
    assert function(-right, bits) > function(worse, bits)


def test_a_gradient_step_improves() -> None:
    logits, target = example()
    for loss in (*FORMULAS, "Combined_Focal_Dice"):
        x, function, bits = logits.float().requires_grad_(), build_loss(configured(loss)), packed(target)
        before = function(x, bits)
        before.backward()
        assert x.grad is not None
        assert function(x.detach() - 0.1 * x.grad / x.grad.abs().max(), bits) < before


def test_without_gradient() -> None:
    logits, target = example()
    with torch.no_grad():
        value = build_loss(configured("Combined_Focal_Dice"))(logits.float(), packed(target))
    assert not value.requires_grad and torch.isfinite(value)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("bce", "BCE"),
        ("FOCAL", "Focal"),
        ("dice", "Dice"),
        ("focal_dice", "Combined_Focal_Dice"),
        ("COMBINED_dice_BCE", "Combined_Dice_BCE"),
        ("combined_bce_focal_dice", "Combined_BCE_Focal_Dice"),
        ("Combined_Dice", "Dice"),
    ],
)
def test_names_in_any_case(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical
    logits, target = example()
    a, b = (build_loss(configured(n))(logits.float(), packed(target)) for n in (name, canonical))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "near"),
    [("Combined_Focl_Dice", "Focal"), ("dise", "Dice"), ("BCEE", "BCE"), ("Combined_BCE_Dicee", "Dice")],
)
def test_unknown_terms(name: str, near: str) -> None:
    with pytest.raises(ConfigProblem, match=rf"'{name}'.*is no term; terms are BCE, Dice, Focal.*did you mean {near}"):
        build_loss(configured(name))
