"""The queue on a real Slurm of one machine with two pretended GPUs: `make test-slurm`. Entries are stand-ins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, Queue, SingleNode, wait_for

from config import ConfigProblem
from engine.jobs import executor as executors
from engine.jobs.entry import Spec
from engine.jobs.store import Store

pytestmark = pytest.mark.cluster


def job(name: str, *argv: str, **more: object) -> Spec:
    return Spec(name, argv, executor="slurm", **more)  # type: ignore[arg-type]


def starts(queue: Queue, name: str) -> int:
    return sum(what.startswith("start") for what in queue.journal(name))


def test_trainings_then_an_ensemble_through_preemption_and_a_killed_controller(slurm: SingleNode, queue: Queue) -> None:
    trained = ("a", "b", "c")
    queue.add(
        job("a", "--steps", "250", gpus=1),
        job("b", "--steps", "250", gpus=1),
        job("c", "--steps", "20", gpus=2),
        job("ensemble", "--steps", "3", "--needs", *trained, after=trained),
        job("bad", "--fail"),
        job("child", after=("bad",)),
        job("never", "--steps", "9999", gpus=2, priority=-1),
    )
    scheduler = queue.schedule()
    wait_for(lambda: starts(queue, "a") and starts(queue, "b"))
    known = slurm.jobs()
    assert {known[name][1] for name in trained} == {"RUNNING", "PENDING"}
    assert known["ensemble"][2] == "Dependency", "Slurm itself holds it back"
    assert "afterok" in slurm.ask("squeue", "-h", "-n", "ensemble", "-o", "%E")

    time.sleep(8)  # Slurm writes its state down every few seconds
    slurm.kill_controller()
    time.sleep(3)
    assert queue.states()["a"] == "running", "a silent cluster says nothing about its jobs"
    slurm.control()

    with Store(queue.folder) as store:
        store.cancel([queue.entries()["never"].id], "not needed")
    wait_for(lambda: queue.states()["never"] == "cancelled")
    assert "never" not in slurm.jobs()

    slurm.ask("sbatch", "-p", "high", "--gres=gpu:2", "-J", "vip", "-o", "/dev/null", "--wrap", "sleep 2")
    wait_for(lambda: any(what.startswith("saved") for name in "ab" for what in queue.journal(name)), 90)
    while scheduler.poll() is None:
        slurm.hurry()
        time.sleep(1)

    assert queue.states() == {
        **dict.fromkeys((*trained, "ensemble"), "done"), "bad": "failed", "child": "skipped", "never": "cancelled",
    }  # fmt: skip
    entries = queue.entries()
    assert entries["child"].reason == "bad failed" and entries["bad"].reason
    assert all(entries[name].attempt == 1 for name in trained), "preemption uses up no attempt"
    for name in trained:
        what = queue.journal(name)
        saved = [step.split()[1] for step in what if step.startswith("saved")]
        assert what == ["start 0", *(part for step in saved for part in (f"saved {step}", f"start {step}")), "done"]
    assert queue.gpus("a") | queue.gpus("b") == {"0", "1"} and queue.gpus("c") == {"0,1"}
    assert queue.gpus("ensemble") == {""}, "what asks for no GPU sees none"


def test_a_killed_scheduler_finds_its_jobs_again(slurm: SingleNode, queue: Queue) -> None:
    queue.add(job("a", "--steps", "80"), job("b", "--steps", "3", "--needs", "a", after=("a",)))
    first = queue.schedule()
    wait_for(lambda: starts(queue, "a"))
    first.kill()
    first.wait()
    second = queue.schedule()
    assert second.wait(60) == 0
    assert queue.journal("a") == ["start 0", "done"] and queue.journal("b") == ["start 0", "done"]
    assert [entry.attempt for entry in queue.entries().values()] == [1, 1]


def test_a_killed_scheduler_hands_nothing_over_twice(slurm: SingleNode, queue: Queue) -> None:
    """It may die after Slurm has taken a job and before the table has its number."""
    queue.add(job("a", "--steps", "30"))
    with Store(queue.folder) as store:
        token = store.claim(1, ())
        assert token is not None
        one = executors.cluster("slurm", queue.folder, ["false"])
        number = one.start(store.get(1), token, [])
        assert one.start(store.get(1), token, []) == number
        assert one.poll(store.entries())[1].state in ("waiting", "running")
        slurm.ask("scancel", number)


def test_a_run_is_saved_before_the_time_limit_and_goes_on(
    slurm: SingleNode, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_TIMELIMIT", "3")  # Slurm warns 150 s before, or up to 60 s sooner (sbatch(1))
    queue.add(job("a", "--steps", "450"))
    scheduler = queue.schedule()
    wait_for(lambda: any(what.startswith("saved") for what in queue.journal("a")), 90)
    while scheduler.poll() is None:
        slurm.hurry()
        time.sleep(1)
    what = queue.journal("a")
    step = what[1].split()[1]
    assert what[:3] == ["start 0", f"saved {step}", f"start {step}"] and what[-1] == "done"
    assert queue.entries()["a"].attempt == 1 and int(step) > 0


def test_cancelled_while_it_runs_it_saves(slurm: SingleNode, queue: Queue) -> None:
    queue.add(job("a", "--steps", "9999"))
    scheduler = queue.schedule()
    wait_for(lambda: queue.entries()["a"].runner)
    with Store(queue.folder) as store:
        store.cancel([1])
    scheduler.wait(60)
    assert queue.states() == {"a": "cancelled"} and queue.journal("a")[-1].startswith("saved")
    wait_for(lambda: not slurm.jobs())


def test_cancelled_in_slurm_it_is_not_run_again(slurm: SingleNode, queue: Queue) -> None:
    queue.add(job("a", "--steps", "9999", retries=5))
    scheduler = queue.schedule()
    wait_for(lambda: queue.entries()["a"].runner)
    slurm.ask("scancel", slurm.jobs()["a"][0])
    assert scheduler.wait(60) == 1
    assert queue.entries()["a"].reason == "its job was cancelled in Slurm" and starts(queue, "a") == 1


def test_a_killed_run_is_retried_from_its_state(slurm: SingleNode, queue: Queue) -> None:
    queue.add(job("a", "--steps", "60", retries=1))
    scheduler = queue.schedule()
    wait_for(lambda: starts(queue, "a"))
    time.sleep(1)
    pid = int((queue.work / "journal.txt").read_text().split("|")[3])
    os.kill(pid, signal.SIGKILL)
    assert scheduler.wait(90) == 0
    first, second, done = queue.journal("a")
    assert first == "start 0" and second.startswith("start ") and int(second.split()[1]) > 0 and done == "done"
    assert queue.entries()["a"].attempt == 2


def test_what_slurm_refuses_is_said_and_not_lost(
    slurm: SingleNode, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "nowhere")
    queue.add(job("a"))
    scheduler = queue.schedule()
    wait_for(lambda: queue.entries()["a"].held)
    entry = queue.entries()["a"]
    assert entry.state == "queued" and "sbatch: error: Batch job submission failed: Invalid partition" in entry.reason
    scheduler.wait(30)


REAL = """
small = {"preset": "smoke", "phantom_train": 8, "phantom_test": 2, "n_folds": 4, "epoch": 2, "val_interval": 1}
experiments = [
    {"exp_name": "bce", **small, "loss": "BCE"},
    {"exp_name": "dice", **small, "loss": "Dice"},
    {
        "exp_name": "both", **small, "after": ["bce", "dice"], "inference_file": "inference.inference_ensemble",
        "ensemble_models": [{"path": "checkpoints/bce"}, {"path": "checkpoints/dice"}], "eval_only": True,
    },
]
"""


def test_the_real_commands_train_two_networks_and_let_both_vote(slurm: SingleNode, queue: Queue) -> None:
    (queue.work / "list.py").write_text(REAL)

    def command(script: str, *argv: str) -> None:
        line = [sys.executable, str(ROOT / script), *argv]
        done = subprocess.run(line, cwd=queue.work, capture_output=True, text=True, timeout=400)
        print(done.stdout + done.stderr)
        assert done.returncode == 0

    drawn = ("--phantom_train", "8", "--phantom_test", "2", "--n_folds", "4")
    command("run_exp.py", "--preset", "smoke", *drawn, "--check_data")  # two must not draw the same phantoms at once
    command("scripts/schedule.py", "add", "list.py", "--executor", "slurm")
    command("scripts/schedule.py", "run", "--until_empty")
    command("scripts/schedule.py", "ls")
    command("scripts/leaderboard.py")
    assert queue.states() == dict.fromkeys(("bce", "dice", "both"), "done")
    for name in ("bce", "dice", "both"):
        assert list((queue.work / "checkpoints" / name).glob("inference/*/submission.csv")), name


def test_without_slurm_the_error_says_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed: .venv/bin/pip install -e '.[slurm]'")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigProblem, match="executor slurm needs sbatch, which is not here: run the queue on a login"):
        executors.cluster("slurm", tmp_path, [])
