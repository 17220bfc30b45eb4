"""train.py, step by step: accumulation, clipping, averages, frozen encoders, losses; the same run twice."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from config import Config
from dataset.batches import Batch
from engine import settings
from engine.optim import encoder_of
from model.checkpoint import read_checkpoint
from model.losses import build_loss
from train import Trainer

SMALL: dict[str, Any] = {
    "n_folds": 3, "image_size": 64, "window_size": 64, "stride": 64, "windows_per_image": 1, "batch_size": 2,
    "workers": 0, "epoch": 2, "model_file": "model.model_simple_unet_quarter", "base_channels": 4, "device": "cpu",
    "wandb": "off", "lr": 1e-2, "scheduler": "None", "use_warmup": False, "loss": "Combined_BCE_Dice", "limit_val": 2,
    "threshold": 0.01,
}  # fmt: skip
"""4 steps an epoch on the phantom of conftest.py. Networks begin at a probability of 0.01: so masks aren't empty."""

ALIKE = {"norm": "group", "loss": "BCE", "grad_clip": 0.0, "optimizer": "momentum", "momentum": 0.9}
"""A batch is the mean of its samples: nothing else connects them."""


def small(data: Path, folder: Path, **values: Any) -> Config:
    """Settings of a small run in `folder`/x."""
    base = {**SMALL, "data_root": str(data), "output_dir": str(folder), "exp_name": "x"}
    return settings.replace(Config(), {**base, **values})


@pytest.fixture
def trainer(phantom_root: Path, tmp_path: Path) -> Iterator[Callable[..., Trainer]]:
    """Builds trainers with other settings than SMALL, and closes them."""
    built: list[Trainer] = []

    def build(**values: Any) -> Trainer:
        built.append(Trainer(small(phantom_root, tmp_path, **values)))
        return built[-1]

    yield build
    for each in built:
        each.close(0)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=tolerance, rtol=tolerance, msg=name)


def moved(before: dict[str, Tensor], network: nn.Module) -> set[str]:
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}


# --- gradients


@pytest.mark.parametrize(
    ("batch", "accumulate", "images"),
    [(2, 2, 8), (1, 4, 8), (1, 4, 6)],  # 6 images: 4 of one update and 2 of the next, as with batches of 2
)
def test_accumulation_equals_the_big_batch(
    batch: int, accumulate: int, images: int, trainer: Callable[..., Trainer]
) -> None:
    big = trainer(**ALIKE, batch_size=4 if images == 8 else 2, accumulate=1 if images == 8 else 2, limit_train=images)
    parts = trainer(**ALIKE, batch_size=batch, accumulate=accumulate, limit_train=images)
    before = weights_of(big.network)
    rows = [each.run_epoch() for each in (big, parts)]
    assert len(moved(before, big.network)) > 10
    # Float32 sums of the same gradients in another order.
    assert_same(weights_of(big.network), weights_of(parts.network), tolerance=1e-5)
    if images == 8:
        assert rows[0]["train_loss"] == pytest.approx(rows[1]["train_loss"], rel=1e-4)


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_clipping(clip: float, trainer: Callable[..., Trainer]) -> None:
    found, norms = trainer(grad_clip=clip), list[float]()

    def note(*_: Any) -> None:
        norms.append(math.hypot(*(float(p.grad.norm()) for p in found.network.parameters() if p.grad is not None)))

    found.optimizer.register_step_pre_hook(note)
    found.run_epoch()
    assert len(norms) == 4
    assert all(norm == pytest.approx(clip, rel=1e-3) if clip else norm > 1e-2 for norm in norms)


def test_every_group_has_the_rate_of_its_step(trainer: Callable[..., Trainer]) -> None:
    found, rates = trainer(encoder_lr=0.1, scheduler="PolynomialLR", epoch=1, use_warmup=True, warmup_epochs=0.5), []
    found.optimizer.register_step_pre_hook(
        lambda *_: rates.append({(g["lr_scale"], g["lr"]) for g in found.optimizer.param_groups})
    )
    found.run_epoch()
    expected = [1e-6, (1e-6 + 1e-2) / 2, 1e-2, 1e-6 + (1e-2 - 1e-6) * 0.5**0.9]
    for step, lr in zip(rates, expected, strict=True):
        assert dict(step) == pytest.approx({1.0: lr, 0.1: 0.1 * lr})


def test_an_encoder_with_rate_0_stays_and_the_rest_learns(trainer: Callable[..., Trainer]) -> None:
    found = trainer(encoder_lr=0.0)
    encoder = encoder_of(found.network)
    assert encoder is not None
    before, parameters = weights_of(found.network), [p.detach().clone() for p in encoder.parameters()]
    found.run_epoch()
    assert all(torch.equal(p, old) for p, old in zip(encoder.parameters(), parameters, strict=True))
    assert "body.head.weight" in moved(before, found.network)


def test_a_frozen_encoder_stays_with_its_statistics_and_then_learns(trainer: Callable[..., Trainer]) -> None:
    found = trainer(freeze_encoder=1)
    before = weights_of(found.network)
    found.run_epoch()
    changed = moved(before, found.network)
    assert changed and not any(name.startswith("body.encoder") for name in changed)
    assert any("running_mean" in name for name in changed), "the decoder's statistics follow"
    found.at.epoch, found.at.step = 1, 0
    found.run_epoch()
    changed = moved(before, found.network)
    assert {"body.encoder.0.0.weight", "body.encoder.0.1.running_mean"} <= changed


# --- averages


def test_ema_is_what_is_validated_and_saved(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    found, expected, steps = trainer(ema_decay=0.9, epoch=1), dict[str, Tensor](), list[int]()
    expected |= {name: p.detach().double() for name, p in found.network.named_parameters()}

    def note(*_: Any) -> None:
        kept = min(0.9, (1 + len(steps)) / (10 + len(steps)))
        steps.append(1)
        for name, p in found.network.named_parameters():
            expected[name] = kept * expected[name] + (1 - kept) * p.detach().double()

    found.optimizer.register_step_post_hook(note)
    best = found.fit()
    assert len(steps) == 4 and found.ema is not None
    saved = read_checkpoint(tmp_path / "x" / "best.safetensors")
    assert_same(saved.weights, weights_of(found.ema.network))
    for name, tensor in expected.items():
        torch.testing.assert_close(saved.weights[name].double(), tensor, atol=1e-6, rtol=1e-5)
    assert best == saved.score == found.validation.score(found.ema.network).mean()
    assert best != found.validation.score(found.network).mean()


@pytest.mark.parametrize("score", [0.0, 0.9])
def test_swa_is_the_mean_of_the_last_epochs_and_the_best_only_where_it_is(
    score: float, trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, ends, rates = trainer(swa_epochs=2, swa_lr=5e-3, epoch=3), [], []
    real, validate = found.run_epoch, found.validation.score

    def run_epoch() -> dict[str, float | None]:
        row = real()
        ends.append(weights_of(found.network))
        rates.append(row["lr"])
        return row

    def scored(network: nn.Module) -> Any:
        table = validate(network)
        if found.swa and network is found.swa.network:
            monkeypatch.setattr(table, "mean", lambda: score)
        return table

    monkeypatch.setattr(found, "run_epoch", run_epoch)
    monkeypatch.setattr(found.validation, "score", scored)
    best = found.fit()
    assert rates == [1e-2, 5e-3, 5e-3]
    swa = read_checkpoint(tmp_path / "x" / "swa.safetensors")
    assert (swa.score, swa.epoch) == (score, 3)
    for name, _ in found.network.named_parameters():
        torch.testing.assert_close(swa.weights[name], (ends[1][name] + ends[2][name]) / 2)
    statistics = "body.encoder.0.1.running_mean"
    mean = (ends[1][statistics] + ends[2][statistics]) / 2
    assert not torch.allclose(swa.weights[statistics], mean, atol=1e-6), "they are computed anew"
    kept = read_checkpoint(tmp_path / "x" / "best.safetensors")
    assert best == kept.score == max(score, found.kept.best)
    assert (kept.score == swa.score) == (score == 0.9)
    if score == 0.9:
        assert_same(kept.weights, swa.weights)


def test_a_run_that_stops_before_swa_begins_has_no_mean(
    trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The average would still hold the first, random weights."""
    found = trainer(swa_epochs=1, epoch=4, patience=1, lr=1e-9, min_lr=0.0)
    found.kept.best = 2.0
    found.fit()
    assert found.at.epoch == 1
    assert not (tmp_path / "x" / "swa.safetensors").exists()


# --- losses


def test_the_loss_follows_its_schedule(trainer: Callable[..., Trainer]) -> None:
    found = trainer(loss="BCE", loss_schedule=["1:Combined_BCE_Dice:0.25,0.75"], epoch=2, lr=1e-9)
    batch = next(iter(found.loader.epoch(0)))
    values = []
    for epoch in (0, 1):
        found.at.epoch, found.at.step, found.at.loss_sum, found.at.losses = epoch, 0, 0.0, 0
        found.run_epoch()
        with torch.no_grad():
            values.append(float(found.loss(found.model(batch.images.float() / 255), batch.bits, batch.weights)))
    cfg = found.cfg
    parts = [build_loss(settings.replace(cfg, {"loss": n, "loss_schedule": []}), 0) for n in ("BCE", "Dice")]
    with torch.no_grad():
        bce, dice = (float(p(found.model(batch.images.float() / 255), batch.bits)) for p in parts)
    assert values == pytest.approx([bce, 0.25 * bce + 0.75 * dice], rel=1e-2)
    assert dice > 2 * bce


def test_deep_supervision_trains_all_outputs_and_validates_the_first(trainer: Callable[..., Trainer]) -> None:
    shape = {"model_file": "model.model_attention_unet", "base_channels": 2, "limit_train": 2, "epoch": 1}
    found = trainer(deep_supervision=True, **shape)
    before = weights_of(found.network)
    assert 0 <= found.fit() <= 1
    heads = {name for name in before if "head" in name and name.endswith("weight")}
    assert len(heads) > 1 and heads <= moved(before, found.network)
    assert isinstance(found.network.eval()(torch.zeros(1, 1, 64, 64)), Tensor)


def test_a_pseudo_labelled_sample_weighs_less(trainer: Callable[..., Trainer]) -> None:
    """Weight 0 leaves it out of the gradient altogether."""
    found = trainer(**ALIKE)
    batch = next(iter(found.loader.epoch(0)))
    gradients = []
    one = Batch(batch.images[:1], batch.bits[:1], batch.weights[:1], batch.keys[:1])
    first = Batch(batch.images, batch.bits, torch.tensor([1.0, 0.0]), batch.keys)
    for each in (first, one):
        found.step(each)
        gradients.append([p.grad.clone() for p in found.network.parameters() if p.grad is not None])
        found.optimizer.zero_grad(set_to_none=True)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


# --- the same again


def test_one_seed_is_one_run_whatever_the_workers(trainer: Callable[..., Trainer]) -> None:
    ends = []
    for workers, seed in ((0, 42), (0, 42), (2, 42), (0, 43)):
        found = trainer(workers=workers, seed=seed, dropout=0.2, augment="heavy")
        found.run_epoch()
        ends.append(weights_of(found.network))
    assert_same(ends[0], ends[1])
    assert_same(ends[0], ends[2])
    assert not torch.equal(ends[0]["body.head.weight"], ends[3]["body.head.weight"])


def test_bfloat16_on_a_cpu_trains_alike_and_repeats(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)  # torch pretends it where it is missing
    runs = [trainer(amp_cpu=half) for half in (True, True, False)]
    seen: list[torch.dtype] = []
    runs[0].network.body.head.register_forward_hook(lambda layer, args, out: seen.append(out.dtype))
    losses = [run.run_epoch()["train_loss"] for run in runs]
    assert set(seen) == {torch.bfloat16}
    ends = [weights_of(run.network) for run in runs]
    assert_same(ends[0], ends[1])
    assert all(tensor.dtype == ends[2][name].dtype for name, tensor in ends[0].items()), "weights stay float32"
    assert losses[0] == losses[1] != losses[2]
    assert losses[0] == pytest.approx(losses[2], rel=0.05)


def test_profile_times_steps_and_saves_nothing(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    said = trainer().profile(3)
    assert said.startswith("3 steps of 2 samples: ") and "images/s" in said and "waiting for data" in said
    assert "peak memory" in said
    events = json.loads((tmp_path / "x" / "profile.json").read_text())["traceEvents"]
    assert any("conv" in str(event.get("name")) for event in events)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["profile.json"]
