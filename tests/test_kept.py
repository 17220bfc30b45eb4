"""model/kept.py, and what the loop keeps, when it validates and when it has seen enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_run_exp import read_csv
from test_train import assert_same, small, trainer, weights_of
from torch import nn

from config import Config
from engine import settings
from inference.build import single
from inference.metrics import DiceTable
from inference.pipeline import validate
from inference.validation import Validation
from model.checkpoint import read_checkpoint
from model.kept import BEST, INDEX, Kept
from train import Trainer

__all__ = ["trainer"]  # a fixture

CLASSES = ("Ulna", "Radius")


def update(
    kept: Kept, folder: Path, dices: Sequence[float], by_class: Sequence[Mapping[str, float]] = (), **values: Any
) -> None:
    """One validation an epoch; the weights of epoch e are e."""
    cfg = settings.replace(Config(), values)
    first = len(kept.dice) and max(int(name[6:10]) for name in kept.dice)
    for i, dice in enumerate(dices):
        epoch = first + i + 1
        classes = by_class[i] if by_class else dict.fromkeys(CLASSES, dice)
        kept.update(folder, {"w": torch.full((2,), float(epoch))}, cfg, epoch, dice, classes)


def epochs_in(folder: Path) -> list[int]:
    """Epochs whose weights are kept; every file holds what its name says."""
    found = []
    for path in sorted(folder.glob("epoch_*.safetensors")):
        read = read_checkpoint(path)
        assert read.weights["w"].tolist() == [read.epoch] * 2 and path.name == f"epoch_{read.epoch:04d}.safetensors"
        found.append(read.epoch)
    if found:
        names = [f"epoch_{epoch:04d}.safetensors" for epoch in found]
        assert [row["file"] for row in read_csv(folder / INDEX)] == names
    return found


DICES = (0.3, 0.5, 0.4, 0.5, 0.2, 0.45)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, []),
        ({"keep_top": 1}, [2]),
        ({"keep_top": 3}, [2, 4, 6]),
        ({"keep_top": 100}, [1, 2, 3, 4, 5, 6]),
        ({"save_interval": 2}, [2, 4, 6]),
        ({"save_interval": 3, "keep_top": 2}, [2, 3, 4, 6]),
    ],
)
def test_what_is_kept(values: dict[str, Any], expected: list[int], tmp_path: Path) -> None:
    kept = Kept()
    update(kept, tmp_path, DICES, **values)
    assert epochs_in(tmp_path) == expected
    best = read_checkpoint(tmp_path / BEST)
    assert (best.epoch, best.score, kept.best) == (2, 0.5, 0.5), "of equal ones, the first"


def test_the_best_of_each_class_and_why_a_file_is_there(tmp_path: Path) -> None:
    by_class = [{"Ulna": 0.9, "Radius": 0.1}, {"Ulna": 0.8, "Radius": 0.7}, {"Ulna": 0.9, "Radius": 0.2}]
    update(Kept(), tmp_path, (0.5, 0.75, 0.55), by_class, best_per_class=True, keep_top=1, save_interval=3)
    assert epochs_in(tmp_path) == [1, 2, 3]
    assert [(row["val_dice"], row["why"]) for row in read_csv(tmp_path / INDEX)] == [
        ("0.500000", "best Ulna"),
        ("0.750000", "top 1; best Radius"),
        ("0.550000", "every 3"),
    ]


def test_kept_goes_on_from_its_plain_values(tmp_path: Path) -> None:
    """As after a resume: nothing that was kept is forgotten, nothing lies there for ever."""
    values = {"keep_top": 2, "best_per_class": True}
    whole, first = Kept(), Kept()
    update(whole, tmp_path / "whole", DICES, **values)
    update(first, tmp_path / "cut", DICES[:3], **values)
    record = {"best": first.best, "dice": dict(first.dice), "of_class": dict(first.of_class)}
    second = Kept(**record)
    update(second, tmp_path / "cut", DICES[3:], **values)
    # Epoch numbers follow from the newest that is kept, 3, in both.
    assert second == whole
    assert epochs_in(tmp_path / "cut") == epochs_in(tmp_path / "whole") == [2, 4]


def test_a_dice_of_nan_is_never_the_best(tmp_path: Path) -> None:
    kept = Kept()
    update(kept, tmp_path, (0.4, float("nan"), 0.3))
    assert (kept.best, read_checkpoint(tmp_path / BEST).epoch) == (0.4, 1)


# --- in the loop


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[int]]]:
    """Validations with these Dice values instead of real ones; the list gets an entry for each."""

    def script(*values: float) -> list[int]:
        calls: list[int] = []

        def score(self: Validation, network: nn.Module) -> DiceTable:
            table = DiceTable(self.cfg.data.classes)
            table.add("x", np.full(len(self.cfg.data.classes), values[len(calls)]))
            calls.append(len(calls))
            return table

        monkeypatch.setattr(Validation, "score", score)
        monkeypatch.setattr(Validation, "pictures", lambda self, network: ())
        return calls

    yield script


def test_val_interval_and_the_last_epoch(
    trainer: Callable[..., Trainer], tmp_path: Path, scripted: Callable[..., list[int]]
) -> None:
    calls = scripted(0.1, 0.2, 0.15)
    assert trainer(epoch=5, val_interval=2).fit() == pytest.approx(0.2)
    assert [row["val_dice"] for row in read_csv(tmp_path / "x" / "metrics.csv")] == ["", "0.1", "", "0.2", "0.15"]
    assert len(calls) == 3 and read_checkpoint(tmp_path / "x" / BEST).epoch == 4


def test_patience_counts_validations(
    trainer: Callable[..., Trainer], tmp_path: Path, scripted: Callable[..., list[int]]
) -> None:
    scripted(0.3, 0.2, 0.4, 0.4, 0.1, 0.9)
    found = trainer(epoch=20, val_interval=2, patience=2)
    assert found.fit() == pytest.approx(0.4)
    assert (found.at.epoch, found.at.waited) == (10, 2)
    assert len(read_csv(tmp_path / "x" / "metrics.csv")) == 10


def test_a_plateau_drops_the_rate(
    trainer: Callable[..., Trainer], tmp_path: Path, scripted: Callable[..., list[int]]
) -> None:
    scripted(0.3, 0.2, 0.3, 0.1, 0.5)
    found = trainer(epoch=5, scheduler="ReduceLROnPlateau", plateau_patience=1, lr_gamma=0.5)
    found.fit()
    rates = [float(row["lr"]) for row in read_csv(tmp_path / "x" / "metrics.csv")]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-2, 5e-3, 5e-3])


def test_save_interval_keeps_weights_of_epochs_without_validation(
    trainer: Callable[..., Trainer], tmp_path: Path, scripted: Callable[..., list[int]]
) -> None:
    scripted(0.1, 0.2)
    found, ends = trainer(epoch=4, val_interval=3, save_interval=2), []
    real = found.run_epoch

    def run_epoch() -> dict[str, float | None]:
        row = real()
        ends.append(weights_of(found.network))
        return row

    found.run_epoch = run_epoch  # type: ignore[method-assign]
    found.fit()
    names = sorted(path.name for path in (tmp_path / "x").glob("epoch_*"))
    assert names == ["epoch_0002.safetensors", "epoch_0004.safetensors"]
    for name, weights in zip(names, ends[1::2], strict=True):
        assert_same(read_checkpoint(tmp_path / "x" / name).weights, weights)


def test_the_best_checkpoint_is_chosen_by_the_submissions_dice(
    trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    found = trainer(epoch=2, limit_val=3)
    best = found.fit()
    folder = tmp_path / "x"
    read = read_checkpoint(folder / BEST)
    table = validate(single(read.cfg, read.network()), found.validation.records, read.cfg, "cpu")
    assert table.mean() == best == read.score
    assert best == pytest.approx(max(float(r["val_dice"]) for r in read_csv(folder / "metrics.csv")), rel=1e-5)
    again = DiceTable.from_images_csv(folder / "val_dice.csv")
    assert again.names() == [record.key for record in found.validation.records] and again.mean() == best
    per_class = read_csv(folder / "per_class.csv")
    assert [row["class"] for row in per_class] == list(read.cfg.data.classes)
    assert np.mean([float(row["mean"]) for row in per_class]) == pytest.approx(best, abs=1e-6)
    assert {row["worst_image"] for row in per_class} <= set(again.names())
    assert max(float(row["std"]) for row in per_class) > 0


def test_further_metrics_are_written_with_the_dice(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    from inference.metric_names import METRICS

    found = trainer(epoch=1, metrics=["all"], limit_val=2)
    found.fit()
    scores = read_csv(tmp_path / "x" / "scores.csv")
    assert {row["metric"] for row in scores} | {"confusion"} == set(METRICS)
    assert len(scores) == 29 * (len(METRICS) - 1)
    assert (tmp_path / "x" / "confusion.csv").stat().st_size > 0
    dice = {row["class"]: float(row["mean"]) for row in read_csv(tmp_path / "x" / "per_class.csv")}
    iou = {row["class"]: float(row["mean"] or 0) for row in scores if row["metric"] == "iou"}
    assert all(iou[name] <= dice[name] + 1e-6 for name in dice)


# --- which images


@pytest.mark.parametrize(
    ("values", "train", "val"),
    [
        ({"limit_train": 3, "limit_val": 1}, 3, 1),
        ({"limit_val": 0}, 8, 4),
        ({"fold": "none"}, 12, 0),
        ({"overfit_batches": 2, "augment": "light"}, 4, 4),
    ],
)
def test_which_images_train_and_validate(
    values: dict[str, Any], train: int, val: int, phantom_root: Path, tmp_path: Path
) -> None:
    found = Trainer(settings.shortened(small(phantom_root, tmp_path, **values)))
    keys = [{record.key for record in part} for part in (found.train_records, found.validation.records)]
    assert [len(part) for part in keys] == [train, val]
    subjects = [{key.split("/")[0] for key in part} for part in keys]
    if "overfit_batches" in values:
        assert keys[0] == keys[1]
        epochs = [{key: image for b in found.loader.epoch(e) for key, image in zip(b.keys, b.images, strict=True)}
                  for e in (0, 1)]  # fmt: skip
        assert all(torch.equal(image, epochs[1][key]) for key, image in epochs[0].items()), "nothing is augmented"
    else:
        assert not subjects[0] & subjects[1], "both hands of a subject lie on one side"
    found.close(0)


def test_training_on_everything_ends_with_the_last_weights(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    found = trainer(fold="none", epoch=2, ema_decay=0.5)
    assert np.isnan(found.fit()) and found.ema is not None
    best = read_checkpoint(tmp_path / "x" / BEST)
    assert np.isnan(best.score) and best.epoch == 2
    assert_same(best.weights, weights_of(found.ema.network))
    assert [row["val_dice"] for row in read_csv(tmp_path / "x" / "metrics.csv")] == ["", ""]
    assert not (tmp_path / "x" / "per_class.csv").exists()


def test_further_metrics_are_of_the_weights_that_are_kept(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    found = trainer(epoch=1, metrics=["iou"], limit_val=2)
    found.fit()
    before = (tmp_path / "x" / "scores.csv").read_bytes()
    found.kept.best = 2.0  # no later validation is better
    with torch.no_grad():
        for parameter in found.network.parameters():
            parameter.normal_()
    found.validate()
    assert (tmp_path / "x" / "scores.csv").read_bytes() == before
    found.evaluate(found.network)
    assert (tmp_path / "x" / "scores.csv").read_bytes() != before
