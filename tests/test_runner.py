"""engine/jobs/runner.py: one attempt from its claim to its end, with small shell scripts in place of run_exp.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine import background
from engine.files import FileProblem, write_text
from engine.jobs import runner
from engine.jobs.entry import Entry, Spec, State
from engine.jobs.process import MARK, Identity, marked
from engine.jobs.scheduler import ROOT, RUNNER
from engine.jobs.store import Store

QUEUE = Path("log/queue")


@pytest.fixture(autouse=True)
def fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seconds in (("POLL", 0.02), ("AGAIN", 0.01), ("GRACE", 0.5), ("LEFT", 0.2)):
        monkeypatch.setattr(runner, name, seconds)


@pytest.fixture
def store() -> Store:
    return Store(QUEUE)


def claimed(store: Store, devices: tuple[int, ...] = (), **more: object) -> Entry:
    """An entry whose attempt nobody has begun."""
    (number,) = store.add([replace(Spec("x", retries=1), **more)])  # type: ignore[arg-type]
    assert store.claim(number, devices) is not None
    return store.get(number)


def attempt(store: Store, entry: Entry, script: str, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """Run an attempt in this process; the entry afterwards. `$@` of the script are the entry's flags."""
    monkeypatch.setenv(MARK, entry.token)
    assert runner.main([str(QUEUE.absolute()), str(entry.id), entry.token, "sh", "-c", script, "sh"]) == 0
    return store.get(entry.id)


def wait_for(what: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- how it ends


@pytest.mark.parametrize(
    ("script", "state", "reason"),
    [
        ("exit 0", "done", ""),
        ("exit 1", "failed", "exit code 1"),
        ("exit 2", "failed", "exit code 2, a setting is wrong"),
        ("exit 75", "queued", "exit code 75, stopped and saved; retry 1 of 1"),
        ("kill -9 $$", "queued", "exit code -9; retry 1 of 1"),
    ],
)
def test_an_exit_code_decides(
    script: str, state: State, reason: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = attempt(store, claimed(store), script, monkeypatch)
    assert (after.state, after.reason) == (state, reason)
    assert after.runner is None and after.token == ""


def test_what_has_failed_says_why(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text("log/x.log", "error: of last week\n--- today\nerror: lr is -1, but must lie above 0.\n")
    assert attempt(store, claimed(store), "exit 2", monkeypatch).reason == "error: lr is -1, but must lie above 0."


def test_what_is_on_record_beats_how_the_process_ended(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be killed when it has done everything, or be torchrun, which says 1 whatever its ranks say."""
    entry = claimed(store)
    record = background.Record("x", Identity.me(), entry.token, "queue", "", (), 1.0, 2.0, 0)
    background.note(record)
    assert attempt(store, entry, "kill -9 $$", monkeypatch).state == "done"
    store.retry([entry.id])
    store.claim(entry.id, ())
    assert attempt(store, store.get(entry.id), "exit 75", monkeypatch).state == "queued", "of another attempt"


def test_a_program_that_is_not_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = claimed(store)
    assert runner.main([str(QUEUE.absolute()), str(entry.id), entry.token, "/no/such/program"]) == 0
    after = store.get(entry.id)
    assert (after.state, after.reason) == ("failed", "/no/such/program can't be run (No such file or directory)")


def test_the_end_is_noted_as_soon_as_the_disk_has_space(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tries, ended = [], Store.ended

    def full(*arguments: object) -> bool:
        tries.append(1)
        if len(tries) < 3:
            raise FileProblem("The disk is full: free some.")
        return ended(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "ended", full)
    assert attempt(store, claimed(store), "exit 0", monkeypatch).state == "done"
    assert len(tries) == 3
    assert capfd.readouterr().out.count("its end is not noted yet, and tried again: The disk is full: free some.") == 1


# --- that it runs once


def test_a_token_starts_one_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = claimed(store)
    assert attempt(store, entry, "echo >> starts; exit 75", monkeypatch).state == "queued"
    for token in (entry.token, "another"):
        assert runner.main([str(QUEUE.absolute()), str(entry.id), token, "sh", "-c", "echo >> starts"]) == 0
    assert store.get(entry.id).state == "queued" and Path("starts").read_text() == "\n"


def test_what_was_cancelled_before_it_began_never_begins(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = claimed(store)
    store.cancel([entry.id])
    assert attempt(store, entry, "echo > started", monkeypatch).state == "cancelled"
    assert not Path("started").exists()


def test_processes_that_outlive_their_run_are_ended(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun's ranks, in sessions of their own; one of them does not listen."""
    entry = claimed(store)
    script = "setsid sleep 60 & setsid sh -c 'trap \"\" TERM; echo > deaf; while :; do sleep 60; done' & "
    wait = "until [ -e deaf ]; do sleep 0.01; done; exit 0"
    assert attempt(store, entry, script + wait, monkeypatch).state == "done"
    assert marked(entry.token) == []


# --- what it is told


def test_flags_and_gpus(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'echo "$@ on $CUDA_VISIBLE_DEVICES, $CUDA_DEVICE_ORDER" > said'
    entry = claimed(store, (3, 1), argv=("--lr", "1e-4"), gpus=2)
    attempt(store, entry, script, monkeypatch)
    assert Path("said").read_text() == "--lr 1e-4 --exp_name x --gpus 2 on 3,1, PCI_BUS_ID\n"
    attempt(store, claimed(store, (), name="y"), script, monkeypatch)
    assert Path("said").read_text() == "--exp_name y on , PCI_BUS_ID\n", "no GPU is visible to an entry without one"
    attempt(store, claimed(store, (2,), name="z", gpus=1), script, monkeypatch)
    assert Path("said").read_text() == "--exp_name z on 2, PCI_BUS_ID\n"


def test_it_resumes_what_it_has_begun_itself(store: Store) -> None:
    entry = claimed(store, argv=("--overwrite", "--output_dir", "runs"))
    plain = ["run", "--overwrite", "--output_dir", "runs", "--exp_name", "x"]
    assert runner.command_line(entry, ["run"]) == plain
    write_text("runs/x/config.json", "{}")
    assert runner.command_line(entry, ["run"]) == [*plain, "--resume", "--no_overwrite"]
    os.utime("runs/x/config.json", (entry.added - 10,) * 2)
    assert runner.command_line(entry, ["run"]) == plain, "what --overwrite was to replace is not gone on with"
    write_text("runs/x/inference/test.partial/job.json", "{}")
    assert runner.command_line(entry, ["run"])[-2:] == ["--resume", "--no_overwrite"]


def test_progress_is_a_newer_state(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = claimed(store, retries=9)
    for short in (1, 2):
        assert attempt(store, entry, "exit 75", monkeypatch).short == short
        store.claim(entry.id, ())
        entry = store.get(entry.id)
    saves = "sleep 0.02; mkdir -p checkpoints/x/fold1; echo > checkpoints/x/fold1/last.pt; exit 75"
    assert attempt(store, entry, saves, monkeypatch).short == 0
    for _ in range(3):
        store.claim(entry.id, ())
        entry = attempt(store, store.get(entry.id), "exit 75", monkeypatch)
    assert entry.held and entry.reason.startswith("crash loop: 3 short attempts in a row without progress")


# --- how it is stopped


def cancel_when_ready(entry: Entry) -> threading.Thread:
    def cancel() -> None:
        with Store(QUEUE.absolute()) as other:
            wait_for(Path("ready").exists)
            other.cancel([entry.id])

    thread = threading.Thread(target=cancel)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("trap", "code"),
    [("echo >> told; exit 75", 75), ("exit 1", 1), ("echo >> told", -9)],
    ids=["saves", "fails", "ignores it"],
)
def test_cancelled(trap: str, code: int, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = claimed(store)
    thread = cancel_when_ready(entry)
    after = attempt(store, entry, f"trap '{trap}' TERM; echo > ready; while :; do sleep 0.02; done", monkeypatch)
    thread.join()
    assert (after.state, after.exit_code) == ("cancelled", code)
    if "told" in trap:
        assert Path("told").read_text() == "\n", "asked once: a second signal ends a run before it has saved"


def test_done_while_it_was_being_cancelled(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = claimed(store)
    thread = cancel_when_ready(entry)
    after = attempt(store, entry, "trap 'exit 0' TERM; echo > ready; while :; do sleep 0.02; done", monkeypatch)
    thread.join()
    assert after.state == "done"


@pytest.mark.parametrize(("ending", "said"), [("exit 75", "(saved)"), ("", "(its newest state is whole)")])
def test_the_time_limit(ending: str, said: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = claimed(store, hours=0.3 / 3600)
    after = attempt(store, entry, f"trap '{ending}' TERM; while :; do sleep 0.02; done", monkeypatch)
    reason = f"the time limit of 8.33333e-05 h is over {said}: `retry` goes on from there"
    assert (after.state, after.reason) == ("failed", reason)


def test_a_run_that_ends_within_its_limit_is_done(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert attempt(store, claimed(store, hours=1.0), "exit 0", monkeypatch).state == "done"


def test_a_queue_that_cannot_be_read_stops_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    get, asked = Store.get, []

    def locked(self: Store, number: int) -> Entry:
        asked.append(1)
        if len(asked) > 1:
            raise FileProblem("The queue was locked.")
        return get(self, number)

    entry = claimed(store)
    monkeypatch.setattr(Store, "get", locked)
    monkeypatch.setenv(MARK, entry.token)
    assert runner.main([str(QUEUE.absolute()), str(entry.id), entry.token, "sh", "-c", "sleep 0.2"]) == 0
    assert len(asked) > 2 and store.entries([entry.id])[0].state == "done"


def test_as_a_process_of_its_own(store: Store) -> None:
    """Started from any folder; SIGTERM goes on to the run, which saves, and the entry is queued again."""
    entry = claimed(store)
    script = "trap 'exit 75' TERM; echo > ready; while :; do sleep 0.02; done"
    argv = [*RUNNER, str(QUEUE.absolute()), str(entry.id), entry.token, "sh", "-c", script, "sh"]
    with open("log/x.log", "wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, env={**os.environ, MARK: entry.token})
    wait_for(Path("ready").exists)
    begun = store.get(entry.id).runner
    assert begun is not None and begun.pid == process.pid and begun.alive()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    after = store.get(entry.id)
    assert (after.state, after.reason) == ("queued", "exit code 75, stopped and saved; retry 1 of 1")
    lines = Path("log/x.log").read_text().splitlines()
    assert [line.split(": ")[-1] for line in lines[1:]] == [
        "its runner was told to stop, so it is asked to save and stop", "ended with exit code 75"
    ]
    assert lines[0].startswith("--- ") and "x (entry 1): attempt 1: sh -c" in lines[0]


def test_it_needs_little() -> None:
    code = "import sys, psutil, engine.jobs.scheduler; print(*sys.modules); print(psutil.Process().memory_info().rss)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    modules, rss = done.stdout.splitlines()
    assert not {"torch", "numpy", "cv2", "pynvml", "urllib.request"} & set(modules.split())
    assert int(rss) < 40e6
