"""A run killed in every phase and resumed (`python -m benchmarks kill` has the long form), and what measures it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import bench_step, phases, victim, wholeness
from benchmarks.bench_kill import rows_of
from benchmarks.case import Case
from benchmarks.killed_runs import Found
from benchmarks.phases import PHASES, Aim, Watch
from config import Config
from engine.files import FileProblem, write_json, write_text
from engine.run_state import LAST, MANIFEST, write_state
from inference.folds import VAL_DICE
from model.checkpoint import save_weights
from model.kept import BEST

ROOT = Path(__file__).resolve().parent.parent


def measured(command: list[str], path: Path, **environ: str) -> dict[str, Any]:
    """What a benchmark wrote: in a process of its own, as it forks and this one has threads."""
    argv = [sys.executable, "-m", "benchmarks", *command, "--json", str(path)]
    done = subprocess.run(
        argv, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environ}
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_a_run_killed_in_every_phase_ends_as_if_it_never_was(tmp_path: Path) -> None:
    found = measured(["kill", "--quick"], tmp_path / "found.json", TMPDIR=str(tmp_path))
    kills = {row["case"].rpartition(" ")[2]: row["ours"] for row in found["rows"] if row["unit"] == "kills"}
    assert {phase: kills[phase] for phase in PHASES} == dict.fromkeys(PHASES, 1)
    faults = {row["case"]: row["ours"] for row in found["rows"] if row["unit"] == "faults"}
    assert len(faults) == 4
    assert not any(faults.values()), found["notes"]


@pytest.mark.full
def test_a_hundred_kills(tmp_path: Path) -> None:
    found = measured(["kill"], tmp_path / "found.json", TMPDIR=str(tmp_path))
    rows = [row for row in found["rows"] if row["ours"] is not None]
    assert sum(row["ours"] for row in rows if row["case"].endswith("killed in all")) >= 68  # without DALI
    assert all(row["ours"] for row in rows if row["unit"] == "kills")
    assert not any(row["ours"] for row in rows if row["unit"] == "faults"), found["notes"]


# --- what kills


def test_a_watch_counts_moments_by_phase() -> None:
    watch = Watch()
    watch.begin(None)
    watch.moment()
    with watch.within("validation"):
        assert watch.phase == "validation"
        with watch.within("weights"):
            watch.moment()
        assert watch.phase == "validation"
        watch.moment()
    assert watch.phase == "start"
    counts = {phase: count for phase, count in watch.moments().items() if count}
    assert counts == {"start": 1, "validation": 2, "weights": 2}
    watch.begin(None)
    assert not any(watch.moments().values())


def test_only_the_thread_and_process_that_began_are_watched() -> None:
    watch = Watch()
    watch.moment()  # before
    watch.begin(None)

    def other() -> None:
        with watch.within("data"):
            watch.moment()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert not any(watch.moments().values())


def test_the_aim_is_hit_and_no_other_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    kills: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "killpg", lambda group, signum: kills.append((group, signum)))
    watch = Watch()
    watch.begin(Aim("state", 3))
    for _ in range(3):
        watch.moment()
    assert not kills
    with watch.within("state"):
        watch.moment()
        assert not kills
        watch.moment()
        assert kills == [(0, signal.SIGKILL)]
        watch.moment()
    assert len(kills) == 1


def fork_of(work: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kill: Aim | float | None) -> victim.Ending:
    """How a run ends whose command is `work`."""
    monkeypatch.setattr(victim.run_exp, "main", work)
    monkeypatch.setattr(victim, "install", lambda watch: None)
    monkeypatch.setattr(victim.torch, "set_num_threads", lambda threads: None)
    return victim.attempt(["--x"], tmp_path / "log", Watch(), kill)


@pytest.mark.parametrize("code", [0, 1, 75])
def test_a_run_that_nobody_kills_ends_with_its_code(
    code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def work(argv: list[str]) -> int:
        os.write(1, f"did {argv}\n".encode())
        return code

    ending = fork_of(work, monkeypatch, tmp_path, None)
    assert (ending.code, ending.phase) == (code, "start")
    assert (tmp_path / "log").read_text() == "did ['--x']\n"


def test_errors_of_a_run_are_codes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(argv: list[str]) -> int:
        raise SystemExit(2)

    def broken(argv: list[str]) -> int:
        raise FileProblem("a reason")

    assert fork_of(refused, monkeypatch, tmp_path, None).code == 2
    assert fork_of(broken, monkeypatch, tmp_path, None).code == 1


def test_a_kill_by_time_takes_the_whole_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def work(argv: list[str]) -> int:
        child = subprocess.Popen(["sleep", "60"])
        (tmp_path / "child").write_text(str(child.pid))
        return child.wait()

    start = time.monotonic()
    ending = fork_of(work, monkeypatch, tmp_path, 0.5)
    assert ending.code == victim.KILLED
    assert time.monotonic() - start < 30
    status = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    assert not status.exists() or status.read_text().split()[2] in "ZX"


def test_a_run_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(victim, "HUNG", 0.2)
    with pytest.raises(TimeoutError, match="did not end within"):
        fork_of(lambda argv: signal.pause(), monkeypatch, tmp_path, None)


def test_what_the_watch_replaces_is_there() -> None:
    for owner, name, phase in phases.FUNCTIONS:
        assert callable(getattr(owner, name)) and phase in PHASES
    for owner, name in (*phases.ON_DISK, *phases.ITEM_BY_ITEM):
        assert callable(getattr(owner, name))


def test_waiting_for_a_batch_is_loading() -> None:
    watch, seen = Watch(), []

    def batches() -> Any:
        for number in (1, 2):
            seen.append(watch.phase)
            yield number

    count = phases._loading(watch, lambda pace, batches: iter(batches))
    watch.begin(None)
    assert [(batch, watch.phase) for batch in count(None, batches())] == [(1, "start"), (2, "start")]
    assert seen == ["loading"] * 2
    assert watch.moments()["loading"] == 3  # the last one finds the end


# --- what looks at the files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return experiment(tmp_path / "a")


def experiment(folder: Path) -> Path:
    """What a finished run leaves, in small."""
    position = dict.fromkeys(("position", "kept", "plateau", "scaler", "ema", "swa", "generators"), 1)
    write_state(folder, {**position, "network": {"w": torch.arange(5.0)}, "optimizer": {"state": [torch.ones(2)]}})
    save_weights(folder / BEST, {"w": torch.arange(4.0)}, Config(), float("nan"), 3)
    write_json(folder / "config.json", {"a": 1})
    write_text(folder / "metrics.csv", "epoch,val_dice,seconds\n0,0.5,1.0\n")
    for name in (VAL_DICE, "per_class.csv", "kept.csv", "inference/test/submission.csv"):
        write_text(folder / name, "image,Ulna\nx,1\n")
    return folder


def test_whole_files_are_readable_and_the_same(folder: Path, tmp_path: Path) -> None:
    assert wholeness.unreadable(folder) == []
    assert wholeness.leftovers(folder) == []
    other = experiment(tmp_path / "b")
    write_text(other / "metrics.csv", "epoch,val_dice,seconds\n0,0.5,7.7\n")  # a timing
    assert wholeness.differences(folder, other) == []


@pytest.mark.parametrize(
    "name", [LAST, BEST, MANIFEST, "config.json", "metrics.csv", "kept.csv", "inference/test/submission.csv"]
)
def test_a_file_that_is_cut_is_found(name: str, folder: Path) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert any(fault.startswith(str(path)) for fault in wholeness.unreadable(folder))


def test_temporary_files_are_leftovers_and_not_unreadable(folder: Path) -> None:
    (folder / ".last.pt.x.part").write_bytes(b"")
    (folder / "inference" / ".test.x.part").mkdir()
    (folder / "inference" / ".test.x.part" / "submission.csv").write_bytes(b"")
    assert wholeness.unreadable(folder) == []
    assert len(wholeness.leftovers(folder)) == 2


def test_one_other_bit_is_a_difference(folder: Path, tmp_path: Path) -> None:
    other = experiment(tmp_path / "b")
    save_weights(other / BEST, {"w": torch.tensor([-0.0, 1, 2, 3])}, Config(), float("nan"), 3)
    assert wholeness.differences(folder, other) == [f"{folder}: {BEST}"]
    shutil.copy(folder / BEST, other / BEST)
    write_text(other / "metrics.csv", "epoch,val_dice,seconds\n0,0.6,1.0\n")
    assert wholeness.differences(folder, other) == [f"{folder}: metrics.csv epoch 0"]
    shutil.copy(folder / "metrics.csv", other / "metrics.csv")
    write_text(other / "inference" / "test-2" / "submission.csv", "image,Ulna\nx,2\n")
    assert wholeness.differences(folder, other) == [f"{folder}: submission.csv"]


def test_rows_count_kills_and_faults() -> None:
    found = Found(runs=2, unreadable=["last.pt: cut"])
    found.kills.update({"step": 3, "state": 1})
    rows = {row.case.partition(": ")[2]: row for row in rows_of("x", found, 5.0)}
    assert rows["killed in step"].ours == (3.0,) and rows["killed in data"].ours == (0.0,)
    assert rows["killed in all"].ours == (4.0,)
    assert rows["files not whole after a kill"].ours == (1.0,)
    assert rows["files not whole after a kill"].note == "last.pt: cut"


# --- the step's benchmark


def test_time_inside_functions_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(0, 100, 2))  # each call of the clock is two seconds later
    monkeypatch.setattr(bench_step.time, "perf_counter", lambda: next(ticks))
    owner = SimpleNamespace(double=lambda x: 2 * x)
    inside = bench_step.Inside()
    before = owner.double
    with inside.counted(owner, "double"):
        assert (owner.double(3), owner.double(4)) == (6, 8)
    assert owner.double is before
    assert (inside.milliseconds, inside.calls) == (4000, {"double": 2})


TINY = Case(size=128, window=64, subjects=6, windows=1, batch=2, workers=0)


def test_both_loops_take_the_same_steps(phantom_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataset.readers import read_competition

    monkeypatch.setattr(bench_step, "draw", lambda case: read_competition(phantom_root, "train"))
    small = {"model_file": "model.model_simple_unet_quarter", "base_channels": 4}
    values = {**small, "device": "cpu", "amp": True, "compile": False}
    rows = bench_step.measured("tiny", values, TINY, 1)
    assert [row.unit for row in rows] == ["ms", "samples/s", "%"]
    assert all(row.ours[0] > 0 for row in rows) and 0 < rows[2].ours[0] < 100
    taken: list[int] = []
    trainer = bench_step.build(values, TINY)
    step = trainer.optimizer.step
    monkeypatch.setattr(trainer.optimizer, "step", lambda *a, **k: (taken.append(1), step(*a, **k))[1])
    batch = next(iter(trainer.loader.epoch(0)))
    bench_step.epoch(trainer)
    assert len(taken) == len(trainer.loader) == 6
    bench_step.bare(trainer, batch)
    assert len(taken) == 12
    trainer.loader.close()
    (row,) = bench_step.curves({"tiny": values}, TINY, 6)
    assert row.ours == row.theirs and row.unit == "loss"  # the CPU has no half precision here


def test_gpu_rows_are_not_measured_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = bench_step.gpu_rows(TINY, 1)
    assert {row.unit for row in rows} == {"ms", "samples/s", "MB", "loss"}
    assert all(not row.ours and "there is no GPU" in row.note for row in rows)
