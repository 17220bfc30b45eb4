"""Stopping and going on: signals, the time limit, damaged states, changed settings, a full disk, and what survives."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_run_exp import ROOT, content, elsewhere, last_state, one_sentence, read_csv, run, stop_after, tiny

from engine.run_state import newest_state
from engine.stop import EXIT_INTERRUPTED, EXIT_RESUMABLE, TIME_IS_UP, StopFlag, Stopped

__all__ = ["elsewhere"]  # a fixture

PLAIN = ("--threshold", "0.01", "--wandb", "off")


@pytest.fixture
def no_csv(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test split is not predicted."""
    monkeypatch.setattr("inference.submit.submit", lambda cfg, checkpoints: None)


@pytest.fixture(scope="module")
def whole(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an experiment of 2 epochs that nothing has stopped. Read only."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(*tiny(phantom_root, folder, "whole", "--epoch", "2", *PLAIN))[0] == 0
    return folder / "whole"


def resume(folder: Path, name: str, *more: str) -> tuple[int, str, str]:
    return run("--exp_name", name, "--output_dir", str(folder), "--resume", *more)


def same(one: Any, other: Any) -> bool:
    """Whether two states hold the same numbers."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def assert_same_run(one: Path, other: Path) -> None:
    """Both have come to the same end: every number of the state, and all rows but their times."""
    states = [last_state(folder) for folder in (one, other)]
    for part in states[0].keys() - {"config", "tracker"}:
        assert same(states[0][part], states[1][part]), part
    for a, b in zip(*(read_csv(folder / "metrics.csv") for folder in (one, other)), strict=True):
        for column in ("epoch", "step", "lr", "train_loss", "val_dice"):
            assert a[column] == b[column]
    assert (one / "val_dice.csv").read_text() == (other / "val_dice.csv").read_text()


# --- the flag


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, EXIT_RESUMABLE), (signal.SIGINT, EXIT_INTERRUPTED)]
)
def test_a_signal_sets_the_flag_and_the_handlers_come_back(signum: signal.Signals, code: int) -> None:
    seen: list[int] = []
    before = {s: signal.signal(s, lambda number, frame: seen.append(number)) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        with StopFlag() as stop:
            assert stop.signum == stop.reason == 0
            signal.raise_signal(signum)
            assert stop.signum == stop.reason == signum
            # Ctrl-C now ends the process: whoever asks twice does not want to wait.
            assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        for number in before:
            assert signal.getsignal(number) not in (signal.SIG_DFL, signal.default_int_handler)
            signal.raise_signal(number)
        assert seen == [signal.SIGTERM, signal.SIGINT]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert Stopped(signum).exit_code == code
    assert str(Stopped(signum)) == f"stopped by {signum.name}"


def test_the_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopFlag():
        _ = 1 // 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("first", "second", "later", "lives"),
    [
        ("SIGTERM", "SIGTERM", 1.9, True),  # by torchrun and to the whole group
        ("SIGINT", "SIGTERM", 1.9, True),
        ("SIGTERM", "SIGTERM", 2.1, False),
        ("SIGINT", "SIGINT", 0.0, False),  # a person who does not want to wait
        ("SIGTERM", "SIGINT", 0.0, False),
        ("SIGINT", "SIGTERM", 2.1, False),
    ],
)
def test_a_second_signal_ends_the_process_unless_it_is_the_same_request(
    first: str, second: str, later: float, lives: bool
) -> None:
    script = (
        "import signal, sys, time\nfrom engine import stop\n"
        "now = [100.0]; stop.time.monotonic = lambda: now[0]\n"
        "with stop.StopFlag() as flag:\n"
        "    signal.raise_signal(signal.Signals[sys.argv[1]]); first = flag.signum\n"
        "    now[0] += float(sys.argv[3])\n"
        "    signal.raise_signal(signal.Signals[sys.argv[2]]); sys.exit(3 + (first != flag.signum))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, first, second, str(later)], cwd=ROOT)
    assert done.returncode == (3 if lives else -signal.Signals[second])


def test_the_time_limit_is_a_reason_and_a_signal_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("engine.stop.time.monotonic", lambda: now[0])
    unlimited, stop = StopFlag(), StopFlag(0.5)
    now[0] += 1800
    assert stop.reason == 0
    now[0] += 1
    assert (stop.reason, unlimited.reason) == (TIME_IS_UP, 0)
    stop.signum = signal.SIGINT
    assert stop.reason == signal.SIGINT
    ended = Stopped(TIME_IS_UP)
    assert (ended.exit_code, str(ended)) == (EXIT_RESUMABLE, "stopped by the time limit (max_hours)")


def test_exit_codes_are_the_documented_ones() -> None:
    assert (EXIT_RESUMABLE, EXIT_INTERRUPTED) == (75, 130)


# --- going on


@pytest.mark.usefixtures("no_csv")
@pytest.mark.parametrize(
    ("steps", "more"),
    [
        (6, ["--ema_decay", "0.9", "--swa_epochs", "1", "--keep_top", "1", "--best_per_class"]),
        (5, ["--scheduler", "plateau", "--plateau_patience", "0", "--patience", "5", "--optimizer", "lion"]),
        (7, ["--freeze_encoder", "1", "--encoder_lr", "0.1", "--workers", "2", "--augment", "heavy"]),
    ],
    ids=["averages", "plateau", "encoder"],
)
def test_all_that_a_run_has_learnt_survives_a_stop(
    steps: int, more: list[str], phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*PLAIN, "--epoch", "2", *more]
    assert run(*tiny(phantom_root, tmp_path, "whole", *argv))[0] == 0
    with monkeypatch.context() as patch:
        stop_after(steps, signal.SIGTERM, patch)
        code, out, _ = run(*tiny(phantom_root, tmp_path, "cut", *argv))
    assert code == 75 and "stopped by SIGTERM: saved; continue with --exp_name cut --resume" in out
    position = last_state(tmp_path / "cut")["position"]
    assert (position["epoch"], position["step"]) == (steps // 4, steps % 4)
    assert resume(tmp_path, "cut", *(["--workers", "0"] if "--workers" in more else []))[0] == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    kept = [sorted(p.name for p in (tmp_path / n).glob("*.safetensors")) for n in ("whole", "cut")]
    assert kept[0] == kept[1]


@pytest.mark.usefixtures("no_csv")
def test_the_time_limit_stops_a_run_that_goes_on_later(whole: Path, phantom_root: Path, tmp_path: Path) -> None:
    code, out, _ = run(*tiny(phantom_root, tmp_path, "cut", "--epoch", "2", *PLAIN, "--max_hours", "1e-7"))
    assert code == 75 and "stopped by the time limit (max_hours): saved" in out
    assert resume(tmp_path, "cut")[0] == 75, "the limit is the experiment's own, until another is given"
    code, out, _ = resume(tmp_path, "cut", "--max_hours", "0")
    assert code == 0 and "Going on after epoch 1, step 0" not in out
    assert_same_run(whole, tmp_path / "cut")


@pytest.mark.usefixtures("no_csv")
def test_a_damaged_last_state_gives_way_to_the_one_before(whole: Path, phantom_root: Path, tmp_path: Path) -> None:
    """As a flipped byte on a disk; what was lost is computed again."""
    assert run(*tiny(phantom_root, tmp_path, "cut", "--epoch", "2", *PLAIN))[0] == 0
    path = tmp_path / "cut" / "last.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    before = newest_state(tmp_path / "cut")[0]["position"]
    assert (before["epoch"], before["step"]) == (1, 4), "before the last validation"
    code, out, err = resume(tmp_path, "cut", "--epoch", "2")
    assert code == 0, err
    assert f"{path} is empty, truncated or damaged" in out
    assert f"Resuming from {tmp_path / 'cut' / 'previous.pt'}. Going on after epoch 1, step 4." in out
    assert len(read_csv(tmp_path / "cut" / "metrics.csv")) == 2
    assert resume(tmp_path, "cut", "--epoch", "3")[0] == 0


@pytest.fixture
def begun(phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_csv: None) -> Path:
    """The folder of all experiments, with one called cut that was stopped in its second epoch."""
    with monkeypatch.context() as patch:
        stop_after(6, signal.SIGTERM, patch)
        assert run(*tiny(phantom_root, tmp_path, "cut", "--epoch", "2", *PLAIN))[0] == 75
    return tmp_path


def test_changed_settings_are_shown(begun: Path) -> None:
    code, out, err = resume(begun, "cut", "--lr", "0.001", "--workers", "1", "--max_hours", "5")
    assert code == 0, err
    assert "resuming with lr 0.001 instead of 0.004, workers 1 instead of 0\n" in out


REFUSED: list[tuple[list[str], str]] = [
    (["--base_channels", "8"], "base_channels 8 instead of 4"),
    (["--optimizer", "sgd"], "optimizer 'sgd' instead of 'adamw'"),
    (["--dropout", "0.5", "--norm", "group"], "dropout 0.5 instead of 0.0, norm 'group' instead of 'own'"),
    (["--model", "unet_resnet18"], "model_file 'model.model_unet_resnet18'"),
    (["--classes", "a", "b"], "classes"),
]


def test_settings_of_network_and_optimizer_are_refused(begun: Path) -> None:
    before = content(begun)
    for more, said in REFUSED:
        code, _, err = resume(begun, "cut", *more)
        assert (code, one_sentence(err)) == (2, True)
        assert said in err and "--force_resume" in err
        assert content(begun) == before


def test_the_same_name_in_another_spelling_is_no_change(begun: Path) -> None:
    code, out, err = resume(begun, "cut", "--optimizer", "AdamW", "--model", "SIMPLE_UNET_QUARTER")
    assert code == 0, err
    assert "resuming with" not in out


def test_forced_another_optimizer_begins_anew(begun: Path) -> None:
    code, out, err = resume(begun, "cut", "--optimizer", "sgd", "--force_resume")
    assert code == 0, err
    assert "resuming with optimizer 'sgd' instead of 'adamw'" in out and "optimizer sgd begins anew" in out
    assert "momentum_buffer" in str(last_state(begun / "cut")["optimizer"])


def test_forced_weights_that_do_not_fit_are_one_sentence(begun: Path) -> None:
    before = {name: (begun / "cut" / name).read_bytes() for name in ("last.pt", "config.json")}
    code, _, err = resume(begun, "cut", "--base_channels", "8", "--force_resume")
    assert (code, one_sentence(err)) == (1, True)
    assert "does not fit model.model_simple_unet_quarter" in err
    assert {name: (begun / "cut" / name).read_bytes() for name in before} == before


def test_another_batch_size_goes_on_with_the_samples_that_are_left(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import Trainer

    seen: list[str] = []
    real: Callable[..., int] = Trainer.step

    def step(self: Any, found: Any, accumulated: int = 1) -> int:
        seen.extend(found.keys)
        return real(self, found, accumulated)

    monkeypatch.setattr(Trainer, "step", step)
    assert resume(begun, "cut", "--batch_size", "1")[0] == 0
    assert len(seen) == len(set(seen)) == 4, "2 of 4 steps of 2 samples were done"


# --- the disk


@pytest.mark.usefixtures("no_csv")
def test_a_full_disk_is_one_sentence_and_the_old_state_goes_on(
    whole: Path, phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = torch.save, [0]

    def save(value: Any, path: Any) -> None:
        calls[0] += 1
        if calls[0] == 4:
            Path(path).write_bytes(b"half of a state")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(value, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        code, _, err = run(*tiny(phantom_root, tmp_path, "cut", "--epoch", "2", *PLAIN))
    assert (code, one_sentence(err)) == (1, True), err
    assert f"The disk is full: {tmp_path / 'cut' / 'last.pt'} was not written." in err
    assert not list((tmp_path / "cut").glob("*.part"))
    code, out, _ = resume(tmp_path, "cut")
    assert code == 0 and "Going on after epoch 1, step 0." in out
    assert_same_run(whole, tmp_path / "cut")


# --- what else a command does with an experiment


def test_eval_only_validates_the_best_weights_again(whole: Path, phantom_root: Path, tmp_path: Path) -> None:
    folder = whole.parent
    before = {name: (whole / name).read_bytes() for name in ("last.pt", "best.safetensors", "val_dice.csv")}
    tables = len(list(whole.glob("inference/*/submission.csv")))
    code, out, err = run("--exp_name", "whole", "--output_dir", str(folder), "--eval_only", "--metrics", "iou")
    assert code == 0, err
    best = max(float(row["val_dice"]) for row in read_csv(whole / "metrics.csv"))
    assert f"validation Dice {best:.4f}" in out and "Ulna" in out
    assert {name: (whole / name).read_bytes() for name in before} == before
    assert len(list(whole.glob("inference/*/submission.csv"))) == tables + 1
    assert {row["metric"] for row in read_csv(whole / "scores.csv")} == {"iou"}
    code, _, err = run(*tiny(phantom_root, tmp_path, "none", "--eval_only"))
    assert code in (1, 2) and one_sentence(err)
    assert not (tmp_path / "none").exists()


def test_debug_takes_two_steps_through_to_the_csv(phantom_root: Path, tmp_path: Path) -> None:
    more = ["--epoch", "50", "--accumulate", "4", "--swa_epochs", "3", "--scheduler", "restarts"]
    code, _, err = run(*tiny(phantom_root, tmp_path, "x", *more, "--scheduler_t_max", "9", "--debug"))
    assert code == 0, err
    (row,) = read_csv(tmp_path / "x" / "metrics.csv")
    assert (row["epoch"], row["step"]) == ("0", "2") and row["val_dice"]
    (table,) = (tmp_path / "x").glob("inference/*/submission.csv")
    assert len({line["image_name"] for line in read_csv(table)}) == 2
    assert len(read_csv(tmp_path / "x" / "val_dice.csv")) == 2


def test_overfitting_trains_and_validates_on_the_same_images(phantom_root: Path, tmp_path: Path) -> None:
    """Which the check of the data must not take for a subject in two folds."""
    code, out, err = run(*tiny(phantom_root, tmp_path, "x", "--overfit_batches", "1", *PLAIN))
    assert code == 0, err
    assert "2 training and 2 validation images, 1 steps of 2 an epoch" in out
    assert len(read_csv(tmp_path / "x" / "val_dice.csv")) == 2


def test_metrics_on_demand_reach_the_predictions(phantom_root: Path, tmp_path: Path) -> None:
    code, out, err = run(*tiny(phantom_root, tmp_path, "x", "--debug", "--metrics", "all", *PLAIN))
    assert code == 0, err
    (table,) = (tmp_path / "x").glob("inference/*/scores.csv")
    names = {row["metric"] for row in read_csv(table)}
    assert names == {row["metric"] for row in read_csv(tmp_path / "x" / "scores.csv")} and "hausdorff95" in names
    assert (table.parent / "confusion.csv").exists() and "surface_dice" in out


def test_a_profile_leaves_the_experiment_alone(begun: Path) -> None:
    names = ("last.pt", "previous.pt", "best.safetensors", "metrics.csv")
    before = {name: (begun / "cut" / name).read_bytes() for name in names}
    code, out, err = resume(begun, "cut", "--profile", "2")
    assert code == 0, err
    assert "2 steps of 2 samples" in out and (begun / "cut" / "profile.json").exists()
    assert {name: (begun / "cut" / name).read_bytes() for name in before} == before
    code, out, err = resume(begun, "cut")
    assert code == 0 and "Going on after epoch 1, step 2" in out, "and does not become a setting of it"


def test_the_webhook_hears_of_start_and_end_and_is_kept_nowhere(
    phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, str]] = []
    monkeypatch.setattr("engine.notify.notify", lambda url, text: said.append((url, text)))
    hook = "http://127.0.0.1:9/secret-path"
    assert run(*tiny(phantom_root, tmp_path, "x", "--debug", "--notify", hook))[0] == 0
    with monkeypatch.context() as patch:
        stop_after(1, signal.SIGTERM, patch)
        assert run(*tiny(phantom_root, tmp_path, "y", "--notify", hook))[0] == 75
    assert run(*tiny(phantom_root, tmp_path, "z", "--optimizer", "adamm", "--notify", hook))[0] == 2
    assert {url for url, _ in said} == {hook}
    *texts, last = (text for _, text in said)
    assert texts == ["x: started", "x: done", "y: started", "y: stopped, resumable", "z: started"]
    assert last.startswith("z: failed: optimizer 'adamm' is unknown")
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"secret-path" not in path.read_bytes(), path
