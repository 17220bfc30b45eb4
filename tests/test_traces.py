"""engine/jobs/traces.py: what an experiment's folder tells the queue."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine import run_state
from engine.files import write_json, write_text
from engine.jobs import traces
from engine.jobs.entry import Entry, Spec
from engine.jobs.store import Store
from engine.record import Metrics

ROW = {**dict.fromkeys(("lr", "train_loss", "val_dice", "samples_per_second", "waiting", "gpu_gib")), "step": 1}


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """One that runs."""
    monkeypatch.chdir(tmp_path)
    with Store(Path("log/queue")) as store:
        (number,) = store.add([Spec("x")])
        store.claim(number, ())
        return store.get(number)


def settings(path: str, epochs: int, fold: str = "0") -> None:
    write_json(path, {"train": {"epoch": epochs}, "data": {"fold": fold, "n_folds": 5}})


def metrics(folder: str, seconds: list[float], written: float) -> None:
    table = Metrics(Path(folder) / "metrics.csv", 0)
    for epoch, each in enumerate(seconds):
        table.add(epoch=epoch, seconds=each, **ROW)
    os.utime(table.path, (written, written))


@pytest.mark.parametrize(
    ("argv", "folder"),
    [
        ((), "checkpoints/x"),
        (("--lr", "1e-4", "--output_dir", "runs"), "runs/x"),
        (("--output-dir=/a/b",), "/a/b/x"),
        (("--saved_dir", "old", "--output_dir", "new"), "new/x"),
        (("--output_dir",), "checkpoints/x"),
    ],
)
def test_where_an_experiment_lies(argv: tuple[str, ...], folder: str) -> None:
    assert traces.folder_of(Spec("x", argv)) == Path(folder)


def test_states_have_the_names_that_runs_give_them() -> None:
    assert traces.STATES == (run_state.LAST, run_state.PREVIOUS)


def test_progress(entry: Entry) -> None:
    assert not traces.progress(entry) and traces.newest_state(entry.spec) == 0
    write_text("checkpoints/x/last.pt", "")
    os.utime("checkpoints/x/last.pt", (entry.started - 5,) * 2)
    assert not traces.progress(entry) and traces.newest_state(entry.spec) == entry.started - 5
    write_text("checkpoints/x/fold3/previous.pt", "")
    os.utime("checkpoints/x/fold3/previous.pt", (entry.started + 5,) * 2)
    assert traces.progress(entry)


def test_eta_is_the_rest_at_the_pace_of_the_last_epochs(entry: Entry) -> None:
    now = entry.started + 100
    assert traces.eta(entry, now) is None, "nothing is written yet"
    settings("checkpoints/x/config.json", epochs=10)
    assert traces.eta(entry, now) is None, "no epoch is done"
    metrics("checkpoints/x", [100.0, 20.0, 20.0, 22.0, 18.0, 20.0], written=now)
    assert traces.eta(entry, now) == pytest.approx(4 * 20.0)
    assert traces.eta(entry, now + 15) == pytest.approx(4 * 20.0 - 15)
    assert traces.eta(entry, now + 1e6) == 0


def test_eta_after_a_pause_counts_from_the_start_of_the_attempt(entry: Entry) -> None:
    settings("checkpoints/x/config.json", epochs=3)
    metrics("checkpoints/x", [50.0], written=entry.started - 9999)
    assert traces.eta(entry, entry.started + 10) == pytest.approx(2 * 50.0 - 10)


def test_eta_of_all_folds(entry: Entry) -> None:
    settings("checkpoints/x/config.json", epochs=2, fold="all")
    now = entry.started + 50
    metrics("checkpoints/x/fold0", [10.0, 10.0], written=now - 20)
    metrics("checkpoints/x/fold1", [10.0], written=now)
    assert traces.eta(entry, now) == pytest.approx((5 * 2 - 3) * 10.0)


def test_no_eta_from_what_another_run_has_left(entry: Entry) -> None:
    settings("checkpoints/x/config.json", epochs=3)
    metrics("checkpoints/x", [50.0], written=entry.started)
    os.utime("checkpoints/x/config.json", (entry.added - 60,) * 2)
    assert traces.eta(entry) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"train": {"epoch": "many"}, "data": {"fold": "0"}}'])
def test_no_eta_without_whole_settings(text: str, entry: Entry) -> None:
    write_text("checkpoints/x/config.json", text)
    metrics("checkpoints/x", [50.0], written=entry.started)
    assert traces.eta(entry) is None


def test_no_eta_from_a_damaged_table_or_for_what_does_not_run(entry: Entry) -> None:
    settings("checkpoints/x/config.json", epochs=3)
    write_text("checkpoints/x/metrics.csv", "epoch,seconds\n0,\n")
    assert traces.eta(entry) is None
    metrics("checkpoints/x", [50.0], written=entry.started)
    assert traces.eta(entry) is not None
    with Store(Path("log/queue")) as store:
        store.fail(entry.id, entry.token, "stopped")
        assert traces.eta(store.get(entry.id)) is None
