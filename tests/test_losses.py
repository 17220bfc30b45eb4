"""model/losses against formulas in float64, written out on all classes at once, and against SMP and MONAI."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from config import Config, ConfigProblem
from engine import settings
from engine.bits import pack
from model.cost import LiveBytes
from model.losses import build_loss, canonical_name, canonical_schedule, check, class_weights, names, stream, term_names
from model.losses.stream import sample

Formula = Callable[[Tensor, Tensor, Config], Tensor]


def weighted(losses: Tensor, counts: Tensor, cfg: Config) -> Tensor:
    """Mean over the last axis, the classes, and the others, of the losses that count."""
    w = torch.tensor(class_weights(cfg), dtype=losses.dtype) * counts
    return (w * losses).sum() / w.sum() if w.sum() > 0 else 0 * losses.sum()


def pixelwise(loss: Tensor, cfg: Config, u: Tensor | None = None) -> Tensor:
    u = torch.ones_like(loss) if u is None else u.expand_as(loss)
    by_class = (u * loss).sum((0, 2, 3)) / u.sum((0, 2, 3))
    return weighted(by_class, torch.ones_like(by_class), cfg)


def pixel_weights(t: Tensor, cfg: Config) -> Tensor | None:
    gain, sigma = cfg.loss.pixel_weight_gain, cfg.loss.pixel_weight_sigma
    if cfg.loss.pixel_weight == "overlap":
        return 1 + gain * (t.sum(1, keepdim=True) >= 2)
    if cfg.loss.pixel_weight == "none":
        return None
    rows = []
    for image in t.numpy():
        around = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
        near = [around[:, 1 + dy :, 1 + dx :][:, : image.shape[1], : image.shape[2]] for dy, dx in NEIGHBOURS]
        edge = np.any([(one != image).any(0) for one in near], 0)
        far = ndimage.distance_transform_edt(~edge) if edge.any() else np.full(edge.shape, np.inf)
        rows.append(torch.from_numpy(1 + gain * np.exp(-(far**2) / (2 * sigma**2)))[None])
    return torch.stack(rows)


NEIGHBOURS = ((-1, 0), (0, -1), (0, 1), (1, 0))


def bce(x: Tensor, t: Tensor, cfg: Config) -> Tensor:
    s, w = cfg.loss.label_smoothing, cfg.loss.pos_weight
    u = t * (1 - s) + s / 2
    loss = -w * u * x.sigmoid().log() - (1 - u) * (-x).sigmoid().log()
    return pixelwise(loss, cfg, pixel_weights(t, cfg))


def focal(x: Tensor, t: Tensor, cfg: Config) -> Tensor:
    p = x.sigmoid()
    p_t = t * p + (1 - t) * (1 - p)
    alpha_t = t * cfg.loss.focal_alpha + (1 - t) * (1 - cfg.loss.focal_alpha)
    return pixelwise(-alpha_t * (1 - p_t) ** cfg.loss.focal_gamma * p_t.log(), cfg)


def region(fraction: Callable[[Tensor, Tensor, Tensor, Config], Tensor]) -> Formula:
    """Loss from soft counts TP, FP, FN."""

    def loss(x: Tensor, t: Tensor, cfg: Config) -> Tensor:
        p = x.sigmoid()
        axes = {"class": (0, 2, 3), "sample": (2, 3), "batch": (0, 1, 2, 3)}[cfg.loss.dice_over]
        if cfg.loss.dice_over == "batch":
            w = torch.tensor(class_weights(cfg), dtype=x.dtype)[:, None, None]
            tp, fp, fn = ((w * one).sum() for one in (p * t, p * (1 - t), (1 - p) * t))
            return fraction(tp, fp, fn, cfg) * (t.sum() > 0)
        tp, fp, fn = (one.sum(axes) for one in (p * t, p * (1 - t), (1 - p) * t))
        return weighted(fraction(tp, fp, fn, cfg), t.sum(axes) > 0, cfg)

    return loss


def tversky(tp: Tensor, fp: Tensor, fn: Tensor, cfg: Config) -> Tensor:
    return 1 - (tp + 1) / (tp + cfg.loss.tversky_alpha * fp + cfg.loss.tversky_beta * fn + 1)


def generalized_dice(x: Tensor, t: Tensor, cfg: Config) -> Tensor:
    p, there = x.sigmoid(), [k for k in range(t.shape[1]) if t[:, k].any()]
    if not there:
        return 0 * x.sum()
    w = torch.tensor(class_weights(cfg), dtype=x.dtype)[there] / t[:, there].sum((0, 2, 3)) ** 2
    return 1 - 2 * (w * (p * t)[:, there].sum((0, 2, 3))).sum() / (w * (p + t)[:, there].sum((0, 2, 3))).sum()


def overlap(x: Tensor, t: Tensor, cfg: Config) -> Tensor:
    p, w = x.sigmoid(), class_weights(cfg)
    false = missed = both = torch.zeros((), dtype=x.dtype)
    for j in range(len(w)):
        for i in range(j):
            pp, tt = p[:, i] * p[:, j], t[:, i] * t[:, j]
            false = false + w[i] * w[j] * (pp * (1 - tt)).sum()
            missed = missed + w[i] * w[j] * (tt * (1 - pp)).sum()
            both = both + w[i] * w[j] * (pp * tt).sum()
    return (false + missed) / (false + missed + 2 * both + 1)


def lovasz(x: Tensor, t: Tensor, cfg: Config) -> Tensor:
    losses = []
    for k in range(x.shape[1]):
        errors, truth = 1 - x[:, k].flatten() * (2 * t[:, k].flatten() - 1), t[:, k].flatten()
        order = errors.detach().argsort(descending=True)
        kept, union = truth.sum() - truth[order].cumsum(0), truth.sum() + (1 - truth[order]).cumsum(0)
        jaccard = torch.cat([torch.zeros(1, dtype=x.dtype), 1 - kept / union])
        losses.append((errors[order].clamp(min=0) * jaccard.diff()).sum())
    return weighted(torch.stack(losses), t.sum((0, 2, 3)) > 0, cfg)


def ms_ssim(x: Tensor, t: Tensor, cfg: Config) -> Tensor:
    """With scipy's correlations, a map at a time; only its value, as it has no gradient."""
    p, result = x.detach().sigmoid().numpy(), torch.zeros(x.shape[:2], dtype=x.dtype)
    side = min(x.shape[2:])
    every = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])
    exponents = every[: max(1, sum(side >> i >= 11 for i in range(5)))]
    width = min(11, side - 1 + side % 2)
    kernel = np.exp(-((np.arange(width) - width // 2) ** 2) / (2 * 1.5**2))
    kernel, cut = np.outer(kernel, kernel) / kernel.sum() ** 2, width // 2

    def blur(one: np.ndarray) -> np.ndarray:
        return ndimage.correlate(one, kernel)[cut : one.shape[0] - cut, cut : one.shape[1] - cut]

    for n, k in np.ndindex(*x.shape[:2]):
        a, b, product = p[n, k], t[n, k].numpy(), 1.0
        for i, e in enumerate(exponents * every.sum() / exponents.sum()):
            ma, mb = blur(a), blur(b)
            structure = (2 * (blur(a * b) - ma * mb) + 9e-4) / (blur(a * a) - ma**2 + blur(b * b) - mb**2 + 9e-4)
            luminance = (2 * ma * mb + 1e-4) / (ma**2 + mb**2 + 1e-4) if i == len(exponents) - 1 else 1
            product *= max(1e-6, np.mean(structure * luminance)) ** e
            h, w = (2 * (length // 2) for length in a.shape)
            a, b = (one[:h, :w].reshape(h // 2, 2, w // 2, 2).mean((1, 3)) for one in (a, b))
        result[n, k] = 1 - product
    return weighted(result, torch.ones_like(result), cfg)


def boundary(x: Tensor, t: Tensor, cfg: Config) -> Tensor:
    distance = torch.zeros_like(x)
    for n, k in np.ndindex(*x.shape[:2]):
        mask = t[n, k].numpy() > 0
        if mask.any() and not mask.all():
            outside, inside = (ndimage.distance_transform_edt(one) for one in (~mask, mask))
            distance[n, k] = torch.from_numpy(np.where(mask, 0.5 - inside, outside - 0.5))
    return weighted((x.sigmoid() * distance).mean((2, 3)), t.sum((2, 3)) > 0, cfg)


FORMULAS: dict[str, Formula] = {
    "BCE": bce,
    "Boundary": boundary,
    "Dice": region(lambda tp, fp, fn, _: 1 - (2 * tp + 1) / (2 * tp + fp + fn + 1)),
    "Focal": focal,
    "FocalTversky": region(lambda tp, fp, fn, cfg: tversky(tp, fp, fn, cfg) ** (1 / cfg.loss.focal_tversky_gamma)),
    "GeneralizedDice": generalized_dice,
    "Jaccard": region(lambda tp, fp, fn, _: 1 - (tp + 1) / (tp + fp + fn + 1)),
    "Lovasz": lovasz,
    "MSSSIM": ms_ssim,
    "Overlap": overlap,
    "Tversky": region(tversky),
}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *(("Focal", {"focal_alpha": a, "focal_gamma": g}) for a, g in [(0.5, 0.0), (1.0, 1.0), (0.0, 0.5), (0.9, 5.0)]),
    ("BCE", {"pos_weight": 3.0}),
    ("BCE", {"label_smoothing": 0.2}),
    ("BCE", {"pos_weight": 0.5, "label_smoothing": 0.1, "pixel_weight": "overlap"}),
    ("BCE", {"pixel_weight": "distance", "pixel_weight_gain": 7.0, "pixel_weight_sigma": 2.0}),
    *((name, {"dice_over": d}) for name in ("Dice", "Jaccard", "FocalTversky") for d in ("sample", "batch")),
    ("Tversky", {"tversky_alpha": 0.9, "tversky_beta": 0.2, "dice_over": "sample"}),
    ("FocalTversky", {"tversky_alpha": 1.0, "focal_tversky_gamma": 0.75}),
]
SUMS = ["Combined_Focal_Dice", "Combined_BCE_Dice_Jaccard", "Combined_Overlap_Boundary_BCE_Lovasz", "Dice_MSSSIM"]


def configured(loss: str, n_classes: int = 5, **values: Any) -> Config:
    """Classes c0, c1, …"""
    return settings.replace(Config(), {"classes": tuple(f"c{k}" for k in range(n_classes)), "loss": loss, **values})


def example(n_classes: int = 5, absent: Sequence[int] = (2,), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (2, K, 21, 25) float64 and targets of blobs, some classes without a pixel, one in one sample only."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((2, n_classes, 21, 25), generator=generator, dtype=torch.float64) * 3
    noise = torch.rand(logits.shape, generator=generator)
    target = torch.nn.functional.avg_pool2d(noise, 5, 1, 2) > 0.5
    target[:, list(absent)] = False
    target[1, 0] = False
    return logits, target


def packed(target: Tensor) -> Tensor:
    return torch.stack([pack(masks.float(), 0.5) for masks in target])


def expected_of(cfg: Config, logits: Tensor, target: Tensor) -> Tensor:
    terms = cfg.loss.loss.removeprefix("Combined_").split("_")
    weights = cfg.loss.loss_weights or (1.0,) * len(terms)
    values = [w * FORMULAS[term](logits, target.double(), cfg) for w, term in zip(weights, terms, strict=True)]
    return torch.stack(values).sum()


def compare(cfg: Config, logits: Tensor, target: Tensor, dtype: torch.dtype, tolerance: float) -> None:
    """Value and gradient against the formula's; the gradient must lie in memory as the logits do."""
    ours = logits.to(dtype).requires_grad_()
    value = build_loss(cfg)(ours, packed(target))
    assert value.dtype == torch.float32 and value.shape == ()
    (3 * value).backward()
    exact = logits.to(dtype).double().requires_grad_()
    expected = expected_of(cfg, exact, target)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=2e-6)
    assert ours.grad is not None and ours.grad.dtype == dtype and ours.grad.stride() == ours.stride()
    if "MSSSIM" not in cfg.loss.loss:
        (3 * expected).backward()
        assert exact.grad is not None
        least = tolerance * exact.grad.abs().max().item() + 1e-12
        torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=tolerance, atol=least)


# --- values and gradients


def test_all_terms_are_tested() -> None:
    assert sorted(term_names()) == sorted(FORMULAS)


@pytest.mark.parametrize("loss", [*FORMULAS, *SUMS])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_value_and_gradient_equal_the_formula(loss: str, layout: torch.memory_format) -> None:
    logits, target = example()
    compare(configured(loss), logits.to(memory_format=layout), target, torch.float32, 1e-5)


@pytest.mark.parametrize(("loss", "options"), OPTIONS)
def test_options(loss: str, options: dict[str, Any]) -> None:
    logits, target = example(seed=1)
    compare(configured(loss, **options), logits, target, torch.float32, 1e-5)


@pytest.mark.parametrize(
    ("loss", "options"),
    [*((name, {}) for name in FORMULAS), ("Dice", {"dice_over": "batch"}), ("Jaccard", {"dice_over": "sample"})],
)
def test_class_weights(loss: str, options: dict[str, Any]) -> None:
    logits, target = example(seed=2)
    cfg = configured(loss, class_weights=("c1=3", "c4=0", "c2=0.5"), **options)
    compare(cfg, logits, target, torch.float32, 1e-5)
    plain = build_loss(configured(loss, **options))(logits.float(), packed(target))
    assert abs(build_loss(cfg)(logits.float(), packed(target)) - plain) > 1e-6


def test_weights_of_terms() -> None:
    logits, target = example(seed=1)
    cfg = configured("Combined_BCE_Dice_Jaccard", loss_weights=(0.3, 0.4, 2.5))
    compare(cfg, logits, target, torch.float32, 1e-5)
    first = build_loss(configured("Combined_Dice_Lovasz", loss_weights=(2.0, 0.0)))
    assert len(first.terms) == 1, "a weight of 0 costs nothing"
    expected = 2 * FORMULAS["Dice"](logits, target.double(), configured("Dice"))
    torch.testing.assert_close(first(logits.float(), packed(target)).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", FORMULAS)
def test_gradcheck(loss: str) -> None:
    """Against finite differences, in float64; it goes backward through one graph again and again."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn((2, 2, 3, 4), generator=generator, dtype=torch.float64, requires_grad=True)
    bits = torch.randint(0, 4, (2, 1, 3, 4), generator=generator, dtype=torch.int32)
    function = build_loss(configured(loss, 2))
    assert function(logits, bits).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: function(x, bits), (logits,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", FORMULAS)
def test_half_precision(loss: str, dtype: torch.dtype) -> None:
    """Sums are float32 whatever the logits: only the gradient is rounded to their type."""
    logits, target = example()
    compare(configured(loss), logits, target, dtype, 1e-2)


def test_a_sum_beyond_half_precision_inside_autocast() -> None:
    logits = torch.full((1, 2, 300, 300), 12.0, dtype=torch.float16, requires_grad=True)
    bits = torch.full((1, 1, 300, 300), 3, dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16):
        value = build_loss(configured("Combined_Dice_Overlap", 2))(logits, bits)
        value.backward()
    assert 0 <= value < 1e-4 and logits.grad is not None and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("n_classes", [1, 29, 32, 33, 65])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_targets_of_one_two_and_three_words(n_classes: int, layout: torch.memory_format) -> None:
    logits, target = (one[..., :9, :7] for one in example(n_classes, absent=()))
    loss = "Combined_BCE_Focal_Dice" if n_classes == 1 else "Combined_BCE_Dice_Lovasz_Overlap"
    compare(configured(loss, n_classes), logits.to(memory_format=layout), target, torch.float32, 1e-5)


@pytest.mark.parametrize("block", [1, 700, 10**6])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_any_size_of_blocks(block: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", {"cpu": block})
    logits, target = example()
    cfg = configured("Combined_Focal_Dice_Overlap_BCE", pixel_weight="distance")
    compare(cfg, logits.to(memory_format=layout), target, torch.float32, 1e-5)


def test_logits_that_are_a_part_of_others() -> None:
    logits, target = example()
    wide = torch.zeros((2, 5, 30, 40), dtype=torch.float64)
    wide[..., 2:23, 3:28] = logits
    for loss in ("Combined_Focal_Dice_Overlap", "MSSSIM"):
        function, bits = build_loss(configured(loss)), packed(target)
        torch.testing.assert_close(function(wide[..., 2:23, 3:28], bits), function(logits, bits))


# --- what a loss means


@pytest.mark.parametrize("absent", [(), (0,), (1, 3), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("loss", FORMULAS)
def test_absent_classes(loss: str, absent: Sequence[int]) -> None:
    logits, target = example(absent=absent)
    compare(configured(loss), logits, target, torch.float32, 1e-5)
    x = logits.float().requires_grad_()
    value = build_loss(configured(loss))(x, packed(target))
    value.backward()
    assert x.grad is not None
    slope = x.grad[:, list(absent)]
    if loss in ("BCE", "Focal", "Overlap"):
        assert (slope > 0).all(), "less is better everywhere"
    elif loss == "MSSSIM":
        assert not absent or slope.any()
    else:
        assert not slope.any(), "left out"
        there = [k for k in range(5) if k not in absent]
        part, bits = logits.float()[:, there], packed(target[:, there]) if there else None
        alone = build_loss(configured(loss, len(there)))(part, bits).item() if bits is not None else 0
        assert value.item() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("over", ["class", "sample", "batch"])
@pytest.mark.parametrize("loss", [*FORMULAS, *SUMS])
def test_a_perfect_prediction_gives_the_minimum(loss: str, over: str) -> None:
    _, target = example(absent=())
    right = torch.where(target, 25.0, -25.0)
    function, bits = build_loss(configured(loss, dice_over=over)), packed(target)
    best = function(right, bits)
    if "Boundary" not in loss:
        assert -1e-6 <= best < 1e-3
    worse = right.clone()
    worse[0, 0, :5] *= -1
    assert function(worse, bits) > best + 1e-3
    assert function(-right, bits) > function(worse, bits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", FORMULAS)
def test_extreme_logits_stay_finite(loss: str, dtype: torch.dtype) -> None:
    target = torch.zeros((1, 3, 12, 12), dtype=torch.bool)
    target[:, 0, :4] = True
    target[:, 1] = True
    for gamma in (0.0, 0.5, 2.0) if loss == "Focal" else (2.0,):
        function = build_loss(configured(loss, 3, focal_gamma=gamma))
        for value in (1e4, -1e4, 0.0):
            logits = torch.full(target.shape, value, dtype=dtype)
            logits[..., ::2] *= -1
            logits.requires_grad_()
            result = function(logits, packed(target))
            result.backward()
            assert torch.isfinite(result) and (result >= -1e-6 or loss == "Boundary")
            assert logits.grad is not None and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", FORMULAS)
def test_a_gradient_step_improves(loss: str) -> None:
    logits, target = example()
    x, function, bits = logits.float().requires_grad_(), build_loss(configured(loss)), packed(target)
    before = function(x, bits)
    before.backward()
    assert x.grad is not None
    assert function(x.detach() - 0.1 * x.grad / x.grad.abs().max(), bits) < before


def test_overlap_sees_pairs_and_not_classes() -> None:
    """Right classes one by one, wrong together: each half probable where both are certain or neither is."""
    target = torch.zeros((1, 3, 4, 4), dtype=torch.bool)
    target[:, :2, :2] = True
    function, bits = build_loss(configured("Overlap", 3)), packed(target)
    right = torch.where(target, 25.0, -25.0)
    elsewhere = right.clone()
    elsewhere[:, 2, 3] = 25.0  # a wrong class where no other is: no pair
    missed, false = right.clone(), right.clone()
    missed[:, 1, :1] = -25.0
    false[:, :2, 3:] = 25.0
    assert function(elsewhere, bits) == pytest.approx(0, abs=1e-6)
    assert function(missed, bits) == pytest.approx(4 / (4 + 2 * 4 + 1))
    assert function(false, bits) == pytest.approx(4 / (4 + 2 * 8 + 1))


def test_identities() -> None:
    logits, target = example()
    value = {
        name: build_loss(configured(name, **options))(logits, packed(target))
        for name, options in [
            ("Jaccard", {}),
            ("Tversky", {"tversky_alpha": 1.0, "tversky_beta": 1.0}),
            ("FocalTversky", {"tversky_alpha": 1.0, "tversky_beta": 1.0, "focal_tversky_gamma": 1.0}),
            ("BCE", {}),
            ("Focal", {"focal_alpha": 0.5, "focal_gamma": 0.0}),
        ]
    }
    assert value["Jaccard"] == pytest.approx(value["Tversky"].item()) == pytest.approx(value["FocalTversky"].item())
    assert value["Focal"] == pytest.approx(value["BCE"].item() / 2)


# --- others' losses, where they have the same formula


def test_smp_agrees() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch.losses")
    logits, target = example(absent=())
    t, bits, mode = target.double(), packed(target), "multilabel"
    theirs = {
        "Dice": smp.DiceLoss(mode, smooth=0.5)(logits, t),  # it halves the denominator
        "Jaccard": smp.JaccardLoss(mode, smooth=1.0)(logits, t),
        "Tversky": smp.TverskyLoss(mode, smooth=1.0, alpha=0.3, beta=0.7)(logits, t),
        "Focal": smp.FocalLoss(mode, alpha=0.25, gamma=2.0)(logits, t),
        "BCE": smp.SoftBCEWithLogitsLoss()(logits, t),
        "Lovasz": sum(smp.LovaszLoss("binary")(logits[:, k].float(), t[:, k].float()) for k in range(5)) / 5,
    }
    for name, value in theirs.items():
        assert build_loss(configured(name))(logits, bits).item() == pytest.approx(value.item(), rel=1e-6), name


def test_monai_agrees() -> None:
    losses = pytest.importorskip("monai.losses")
    from monai.metrics.regression import MultiScaleSSIMMetric

    logits, target = example(absent=())
    t, bits = target.double(), packed(target)
    gdl = losses.GeneralizedDiceLoss(sigmoid=True, smooth_nr=0.0, smooth_dr=0.0, batch=True)(logits, t)
    assert build_loss(configured("GeneralizedDice"))(logits, bits).item() == pytest.approx(gdl.item(), rel=1e-6)
    truth = torch.nn.functional.interpolate(t[:, 1:2], (176, 180)).float()
    large = 3 * truth + torch.nn.functional.interpolate(logits[:, :1], (176, 180)).float() / 2 - 2
    metric = MultiScaleSSIMMetric(2, data_range=1.0, kernel_size=11)
    similarity = metric._compute_metric(large.sigmoid(), truth).mean().item()
    ours = build_loss(configured("MSSSIM", 1))(large, packed(truth > 0)).item()
    assert ours == pytest.approx(1 - similarity, abs=1e-5)


# --- several outputs, memory, a schedule


def test_deep_supervision() -> None:
    logits, target = example()
    bits, function = packed(target), build_loss(configured("Combined_Focal_Dice"))
    outputs = [logits[..., :h, :w].float().requires_grad_() for h, w in ((21, 25), (11, 13), (6, 7))]
    value = function(outputs, bits)
    value.backward()
    separate = [function(one.detach(), sample(bits, *one.shape[2:])) for one in outputs]
    expected = (separate[0] + separate[1] / 2 + separate[2] / 4) / 1.75
    torch.testing.assert_close(value.detach(), expected)
    assert all(one.grad is not None and one.grad.any() for one in outputs)
    torch.testing.assert_close(function([outputs[0]], bits), function(outputs[0], bits))


def test_targets_are_sampled_as_nearest_exact() -> None:
    bits = torch.arange(21 * 25, dtype=torch.int32).view(1, 1, 21, 25)
    for size in ((21, 25), (10, 13), (7, 1), (42, 30)):
        expected = torch.nn.functional.interpolate(bits.float(), size, mode="nearest-exact").int()
        assert torch.equal(sample(bits, *size), expected)


@pytest.mark.parametrize("loss", ["Combined_Focal_Dice", "Combined_BCE_Dice_Overlap"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extra_memory_is_below_twice_the_logits(loss: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", {"cpu": 1 << 13})  # as small beside these logits as the real beside real ones
    logits = torch.zeros((2, 29, 64, 64), dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    bits = torch.zeros((2, 1, 64, 64), dtype=torch.int32)
    with LiveBytes() as counted:
        build_loss(configured(loss, 29))(logits, bits).backward()
    assert 1 <= counted.peak / logits.nbytes <= 2


def test_without_gradient_nothing_is_kept() -> None:
    logits, target = example()
    with torch.no_grad():
        value = build_loss(configured("Combined_Focal_Dice"))(logits.float(), packed(target))
    assert not value.requires_grad and torch.isfinite(value)
    assert not build_loss(configured("Lovasz"))(logits, packed(target)).requires_grad


def test_the_loss_of_an_epoch() -> None:
    logits, target = example()
    bits = packed(target)
    cfg = configured("Focal", loss_schedule=("20:dice_bce:0.5,2", "3:Lovasz"))
    dice_bce = configured("Combined_Dice_BCE", loss_weights=(0.5, 2.0))
    for epoch, same in [(0, "Focal"), (2, "Focal"), (3, "Lovasz"), (19, "Lovasz"), (20, dice_bce), (500, dice_bce)]:
        other = configured(same) if isinstance(same, str) else same
        assert torch.equal(build_loss(cfg, epoch)(logits, bits), build_loss(other)(logits, bits))
    first = configured("Focal", loss_schedule=("0:Lovasz",))
    assert torch.equal(build_loss(first)(logits, bits), build_loss(configured("Lovasz"))(logits, bits))


# --- names and settings


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("bce", "BCE"),
        ("focal_dice", "Combined_Focal_Dice"),
        ("COMBINED_dice_BCE", "Combined_Dice_BCE"),
        ("Combined_Dice", "Dice"),
        ("Combined_BCE_Dice_IoU", "Combined_BCE_Dice_Jaccard"),
        ("gdl", "GeneralizedDice"),
        ("ms-ssim_focaltversky", "Combined_MSSSIM_FocalTversky"),
    ],
)
def test_names_in_any_case(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical
    logits, target = example()
    a, b = (build_loss(configured(n))(logits.float(), packed(target)) for n in (name, canonical))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "near"),
    [("Combined_Focl_Dice", "Focal"), ("dise", "Dice"), ("BCEE", "BCE"), ("Iuo", "IoU"), ("lovash", "Lovasz")],
)
def test_unknown_terms(name: str, near: str) -> None:
    with pytest.raises(ConfigProblem, match=rf"'{name}'.*is no term; terms are BCE, Boundary.*did you mean .*{near}"):
        build_loss(configured(name))


def test_schedules_are_sorted_and_written_one_way() -> None:
    entries = ("20:combined_bce_dice:.1,0.9", "5:iou", "0:Focal:2")
    written = ("0:Focal:2.0", "5:Jaccard", "20:Combined_BCE_Dice:0.1,0.9")
    assert canonical_schedule(entries) == canonical_schedule(written) == written
    assert canonical_schedule(()) == ()


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (("Dice",), "must be EPOCH:LOSS"),
        (("x:Dice",), "must be EPOCH:LOSS"),
        (("-1:Dice",), "must be EPOCH:LOSS"),
        (("1:Dice:1:2",), "must be EPOCH:LOSS"),
        (("1:Dise",), "did you mean Dice"),
        (("1:",), "is no term"),
        (("1:Combined",), "names no term"),
        (("1:Dice", "01:BCE"), "same epoch"),
        (("1:BCE_Dice:1",), "1 weights, but Combined_BCE_Dice has 2 terms"),
        (("1:BCE_Dice:1,-2",), "'-2' is no weight"),
        (("1:BCE_Dice:1,nan",), "'nan' is no weight"),
        (("1:BCE_Dice:1,",), "'' is no weight"),
        (("1:BCE_Dice:0,0",), "not all be 0"),
    ],
)
def test_schedules_that_cannot_be_read(entries: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigProblem, match=said):
        canonical_schedule(entries)


def test_weights_of_classes_by_name() -> None:
    assert class_weights(configured("Dice", 3, class_weights=("c2=0.5", "c0=3"))) == (3.0, 1.0, 0.5)
    assert class_weights(configured("Dice", 2)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (("Pisiform",), "must be CLASS=NUMBER"),
        (("Pisifrom=2",), "'Pisifrom' is no class .did you mean Pisiform"),
        (("Radius=two",), "'two' is no weight"),
        (("Radius=-1",), "'-1' is no weight"),
        (("Radius=inf",), "'inf' is no weight"),
        (("Radius=1", "Radius=2"), "Radius twice"),
        (tuple(f"{name}=0" for name in Config().data.classes), "not all be 0"),
    ],
)
def test_weights_of_classes_that_cannot_be_read(entries: tuple[str, ...], said: str) -> None:
    cfg = settings.replace(Config(), {"class_weights": entries})
    for refuses in (class_weights, check, build_loss):
        with pytest.raises(ConfigProblem, match=said):
            refuses(cfg)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tversky_alpha": 0.5}, r"tversky_alpha is 0\.5.*it needs FocalTversky or Tversky"),
        ({"pos_weight": 2.0, "loss": "Dice"}, r"pos_weight is 2\.0, .*\(Dice\).*it needs BCE"),
        ({"loss": "BCE", "pixel_weight_gain": 2.0}, "needs --pixel_weight distance or overlap"),
        ({"loss": "BCE", "pixel_weight": "overlap", "pixel_weight_sigma": 2.0}, "needs --pixel_weight distance"),
        ({"loss": "Overlap", "dice_over": "batch"}, "dice_over is batch"),
        ({"loss": "BCE", "loss_schedule": ("0:Dice",), "pos_weight": 2.0}, "pos_weight"),
        ({"loss_schedule": ("50:Dice",)}, "50:Dice never begins, as the last epoch is 49"),
        ({"loss_schedule": ("0:Dice",), "loss_weights": (1.0, 2.0)}, "loss_weights .* replaces"),
    ],
)
def test_nothing_is_ignored_silently(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigProblem, match=said):
        check(settings.replace(Config(), values))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"loss_schedule": ("20:Tversky",), "tversky_alpha": 0.5},
        {"loss": "BCE", "pixel_weight": "distance", "pixel_weight_sigma": 2.0, "label_smoothing": 0.1},
        {"loss": "Tversky", "focal_alpha": 0.25, "class_weights": ("Radius=2",)},
    ],
)
def test_settings_that_are_followed(values: dict[str, Any]) -> None:
    cfg = settings.replace(Config(), values)
    check(cfg)
    assert names.unused_options(cfg) == []


def test_every_option_of_the_section_has_a_term() -> None:
    fields = set(vars(Config().loss)) - {"loss", "loss_weights", "loss_schedule", "class_weights"}
    assert {field for stem in names.TERM_FILES for field in names._constants(stem)["OPTIONS"]} == fields


def test_what_a_term_cannot_do() -> None:
    with pytest.raises(ConfigProblem, match="Overlap needs two classes"):
        build_loss(configured("Combined_BCE_Overlap", 1))
    for loss in ("Tversky", "FocalTversky"):
        with pytest.raises(ConfigProblem, match="tversky_alpha and tversky_beta are both 0"):
            build_loss(configured(loss, tversky_alpha=0.0, tversky_beta=0.0))


@pytest.mark.parametrize(("k", "words", "width"), [(4, 1, 25), (5, 2, 25), (5, 1, 24)])
def test_shapes_that_do_not_fit(k: int, words: int, width: int) -> None:
    with pytest.raises(ValueError, match="5 classes need"):
        build_loss(configured("Dice"))(torch.zeros(2, k, 21, 25), torch.zeros((2, words, 21, width), dtype=torch.int32))


def test_an_image_without_an_outline_has_plain_weights() -> None:
    logits, _ = example()
    bits = torch.zeros((2, 1, 21, 25), dtype=torch.int32)
    plain, by_distance = (build_loss(configured("BCE", pixel_weight=kind)) for kind in ("none", "distance"))
    assert by_distance(logits, bits).item() == pytest.approx(plain(logits, bits).item())
    assert math.isfinite(plain(logits, bits))
