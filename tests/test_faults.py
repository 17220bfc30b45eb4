"""train.py when something goes wrong: losses and gradients that are not finite, memory that runs out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_train import ALIKE, assert_same, trainer, weights_of
from torch import Tensor

import train
from dataset.batches import Batch
from engine.files import FileProblem
from model.losses import build_loss
from train import Trainer

__all__ = ["trainer"]  # a fixture


class Faulty:
    """A loss that is multiplied by `factors` call by call (1 where they have ended)."""

    def __init__(self, real: Any, *factors: float) -> None:
        self.real, self.factors, self.calls = real, factors, 0

    def __call__(self, *args: Any) -> Tensor:
        self.calls += 1
        found: Tensor = self.real(*args)
        return found * self.factors[self.calls - 1] if self.calls <= len(self.factors) else found


def spoil(monkeypatch: pytest.MonkeyPatch, *factors: float) -> None:
    """The losses of the steps to come are multiplied by these factors."""
    faulty: list[Faulty] = []

    def build(*args: Any) -> Faulty:
        faulty.append(faulty[0] if faulty else Faulty(build_loss(*args), *factors))
        return faulty[0]

    monkeypatch.setattr(train, "build_loss", build)


def watch(found: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The samples of every step from now on."""
    seen: list[list[str]] = []
    real = Trainer.step

    def step(self: Trainer, batch: Batch, accumulated: int = 1) -> int:
        seen.append(batch.keys)
        return real(self, batch, accumulated)

    monkeypatch.setattr(Trainer, "step", step)
    return seen


# --- steps that are not finite


def test_one_bad_loss_is_left_out_and_named(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = trainer()
    spoil(monkeypatch, 1, math.nan, math.inf)
    seen = watch(found, monkeypatch)
    row = found.run_epoch()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    assert [line.split(" at ")[0] for line in said] == ["left out: a loss of nan", "left out: a loss of inf"]
    for step, line in enumerate(said, 2):
        assert f"epoch 1, step {step} (" in line and all(key in line for key in seen[step - 1])
    assert all(torch.isfinite(tensor).all() for tensor in found.network.state_dict().values())
    assert (found.at.bad, found.at.losses) == (0, 2)
    assert row["train_loss"] is not None and math.isfinite(row["train_loss"])


def test_a_left_out_step_changes_no_weights(trainer: Callable[..., Trainer]) -> None:
    found = trainer()
    found.at.step = 1
    batch = next(iter(found.loader.epoch(0)))
    found.network.train()
    found.loss = Faulty(found.loss, math.nan)  # type: ignore[assignment]
    parameters = [p.detach().clone() for p in found.network.parameters()]
    found.step(batch)
    found.update()
    assert all(torch.equal(p, old) for p, old in zip(found.network.parameters(), parameters, strict=True))
    assert found.at.bad == 1


def test_several_bad_losses_in_a_row_stop_the_run_with_the_images(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trainer(bad_steps=3)
    spoil(monkeypatch, math.nan, 1, *[math.nan] * 3)
    seen = watch(found, monkeypatch)
    with pytest.raises(FileProblem, match=r"No finite step in 3 in a row, .*nan at epoch 2, step 1 .*--lr") as why:
        found.fit()
    assert len(seen) == 5 and all(key in str(why.value) for key in seen[-1])


def test_a_gradient_that_is_not_finite_is_left_out(
    trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    found = trainer(bad_steps=2)
    found.at.step = 1
    hook = next(found.network.parameters()).register_hook(lambda gradient: gradient * math.nan)
    batch = next(iter(found.loader.epoch(0)))
    parameters = [p.detach().clone() for p in found.network.parameters()]
    found.step(batch)
    found.update()
    assert "left out: a gradient of norm nan at epoch 1, step 2" in capsys.readouterr().out
    assert all(torch.equal(p, old) for p, old in zip(found.network.parameters(), parameters, strict=True))
    found.step(batch)
    with pytest.raises(FileProblem, match="No finite step in 2 in a row"):
        found.update()
    assert found.at.bad == 2
    hook.remove()
    found.optimizer.zero_grad()
    found.step(batch)
    found.update()
    assert found.at.bad == 0


@pytest.mark.parametrize("first", ["good", "bad"])
def test_a_bad_loss_and_the_scaler_of_float16(first: str, trainer: Callable[..., Trainer]) -> None:
    found = trainer(lr=1e-4)
    found.at.step = 1
    found.scaler = torch.amp.GradScaler("cpu", enabled=True)
    batch = next(iter(found.loader.epoch(0)))
    found.loss = Faulty(found.loss, *([1.0, math.nan] if first == "good" else [math.nan]))  # type: ignore[assignment]
    for _ in range(3):
        found.step(batch)
        found.update()
    assert (found.at.bad, found.at.losses) == (0, 2)


# --- out of memory


def run_out(found: Trainer, monkeypatch: pytest.MonkeyPatch, call: int, training: bool = True) -> None:
    """Memory runs out once, in this forward pass (from 1) in training, or in validation."""
    real, calls = found.network.forward, [0]

    def forward(grey: Tensor) -> Any:
        calls[0] += found.network.training == training
        if calls[0] == call and found.network.training == training:
            calls[0] += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")
        return real(grey)

    monkeypatch.setattr(found.network, "forward", forward)


def test_out_of_memory_is_one_sentence_with_sizes_and_remedies(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trainer()
    run_out(found, monkeypatch, 2)
    with pytest.raises(FileProblem) as why:
        found.fit()
    text = str(why.value)
    for said in ("2 x 1 x 64 x 64", "29 classes", "Tried to allocate 9 GiB", "--batch_size", "--auto_batch"):
        assert said in text
    assert "\n" not in text


@pytest.mark.parametrize("call", [1, 3])
def test_auto_batch_goes_on_with_the_same_samples_and_weights(
    call: int, trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, found = trainer(**ALIKE), trainer(**ALIKE, auto_batch=True)
    with monkeypatch.context() as patch:
        expected = [key for keys in watch(whole, patch) or [] for key in keys]
        whole.run_epoch()
    run_out(found, monkeypatch, call)
    seen = watch(found, monkeypatch)
    row = found.run_epoch()
    assert "going on with batch_size 1 and accumulate 2" in capsys.readouterr().out
    assert (found.cfg.train.batch_size, found.cfg.train.accumulate, found.at.step) == (1, 2, 8)
    expected = [key for batch in whole.loader.epoch(0) for key in batch.keys]
    done = seen[: call - 1] + seen[call:]  # the step that failed is made again
    assert [key for keys in done for key in keys] == expected
    assert_same(weights_of(whole.network), weights_of(found.network), tolerance=1e-5)
    assert row["step"] == 8 and row["train_loss"] is not None


def test_auto_batch_of_an_odd_batch_repeats_no_sample(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trainer(**ALIKE, auto_batch=True, batch_size=3, limit_train=6)
    run_out(found, monkeypatch, 2)
    seen = watch(found, monkeypatch)
    found.run_epoch()
    done = [key for keys in (seen[:1] + seen[2:]) for key in keys]
    assert len(done) == len(set(done)) == 6


def test_auto_batch_ends_at_one_sample(trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> None:
    found = trainer(auto_batch=True, batch_size=1)
    run_out(found, monkeypatch, 1)
    with pytest.raises(FileProblem, match="Memory ran out in a step of 1 x 1 x 64 x 64"):
        found.fit()


def test_validation_out_of_memory_takes_fewer_windows(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {"image_size": 128, "dataset_file": "dataset.dataset_sliding"}
    found = trainer(**shape)
    expected = found.validation.score(found.network).mean()
    run_out(found, monkeypatch, 1, training=False)
    assert found.validation.score(found.network).mean() == expected
    assert "memory ran out: going on with window_batch 1" in capsys.readouterr().out
    found = trainer(**shape, window_batch=1)
    run_out(found, monkeypatch, 1, training=False)
    with pytest.raises(FileProblem, match=r"Memory ran out with a single window .*lower --window_size"):
        found.validation.score(found.network)
