"""engine/jobs/scheduler.py: passes over a queue, with `sleep` in place of runners; then whole schedulers; messages."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine import background
from engine.files import FileProblem, locked, write_text
from engine.jobs import scheduler
from engine.jobs.entry import UNBORN, Entry, Spec
from engine.jobs.process import BOOT, MARK, Identity, kill_marked, marked
from engine.jobs.scheduler import LOCK, ROOT, RUNNER, Options, Scheduler, run
from engine.jobs.store import Store

QUEUE = Path("log/queue")
OPTIONS = Options(command=("run",), min_free=0.0)
DEAF = "trap '' TERM; echo > deaf; while :; do sleep 60; done"


class Started:
    """Takes the place of background.spawn: starts a program of the test's own with the environment of a runner."""

    def __init__(self) -> None:
        self.argv = ["sleep", "60"]
        self.given: list[tuple[list[str], str]] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, argv: list[str], name: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        self.given.append((argv, name))
        self.processes.append(subprocess.Popen(self.argv, env=environment, start_new_session=True))
        return self.processes[-1]

    @property
    def names(self) -> list[str]:
        return [name for _, name in self.given]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BONES_GPUS", "0")
    monkeypatch.setattr(scheduler, "GRACE", 0.2)
    monkeypatch.setattr(scheduler, "LOOK", 0.0)
    monkeypatch.setattr(scheduler, "REST", 0.0)
    started = Started()
    monkeypatch.setattr(background, "spawn", started)
    yield started
    started.end()


@pytest.fixture
def store(started: Started) -> Iterator[Store]:
    with Store(QUEUE) as store:
        yield store


def add(store: Store, *names: str, **more: Any) -> list[int]:
    return store.add([Spec(name, **more) for name in names])


def begun(store: Store, number: int, argv: tuple[str, ...] = ("sleep", "60")) -> tuple[Entry, subprocess.Popen[bytes]]:
    """An entry that runs, and its runner: a process that no scheduler of this test has started."""
    token = store.claim(number, ())
    assert token is not None
    process = subprocess.Popen(argv, env={**os.environ, MARK: token}, start_new_session=True)
    identity = Identity.of(process.pid)
    assert identity is not None and store.began(number, token, identity)
    return store.get(number), process


def ended(store: Store, entry: Entry, code: int) -> None:
    assert store.ended(entry.id, entry.token, code, "", progress=False)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def steps(scheduler: Scheduler, until: Callable[[], object]) -> None:
    stop = time.monotonic() + 20
    while not until():
        assert time.monotonic() < stop
        scheduler.step()
        time.sleep(0.01)


# --- what starts


def test_a_runner_for_each_entry_that_fits(store: Store, started: Started) -> None:
    low, high, later = add(store, "low"), add(store, "high", priority=2), add(store, "later", after=("high",))
    both = Scheduler(store, Options(command=("python", "run.py"), cpu_slots=2, min_free=0.0))
    assert both.step()
    (argv, name), (_, other) = started.given
    assert (name, other) == ("high", "low")
    entry = store.get(high[0])
    assert argv == [*RUNNER, str(QUEUE.absolute()), str(entry.id), entry.token, "python", "run.py"]
    assert [store.get(i).state for i in (*low, *high, *later)] == ["running", "running", "queued"]
    assert len(marked(entry.token)) == 1
    both.step()
    assert len(started.given) == 2, "those run already"
    identity = Identity.of(started.processes[0].pid)
    assert identity and store.began(entry.id, entry.token, identity)
    ended(store, entry, 0)
    both.step()
    assert started.names[2:] == ["later"]


def test_nothing_starts_while_the_queue_is_paused(store: Store, started: Started) -> None:
    add(store, "x")
    store.pause()
    paused = Scheduler(store, OPTIONS)
    paused.step()
    assert started.given == [] and paused.unfinished()
    store.unpause()
    paused.step()
    assert started.names == ["x"]


def test_a_gang_gets_all_its_gpus_at_once(
    store: Store, started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BONES_GPUS", '[{"index": 0}, {"index": 1, "foreign": true}, {"index": 2}, {"index": 3}]')
    one, three, *_ = add(store, "one", gpus=1) + add(store, "three", gpus=3) + add(store, "late", gpus=1)
    add(store, "seven", gpus=7)
    gpus = Scheduler(store, OPTIONS)
    gpus.step()
    assert started.names == ["one"] and store.get(one).devices == (0,), "the others are kept for three"
    assert "seven can't start: it needs 7 GPUs, and the queue may use 4 here" in capsys.readouterr().out
    end(started.processes[0])
    store.cancel([one])
    gpus.step()
    assert started.names == ["one", "three"] and store.get(three).devices == (0, 2, 3)
    assert "seven" not in capsys.readouterr().out, "said once"


def test_too_little_space_is_said_once_and_starts_nothing(
    store: Store, started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(".")
    full, free = usage._replace(free=4 * 10**9), usage._replace(free=6 * 10**9)
    looked: list[Path] = []

    def look(path: Path) -> Any:
        looked.append(path)
        return full if "small" in path.parts else free

    monkeypatch.setattr(shutil, "disk_usage", look)
    Path("small").mkdir()
    add(store, "x", "x2", argv=("--output_dir", "small/runs"))
    add(store, "y", argv=("--output-dir=elsewhere",))
    guarded = Scheduler(store, Options(command=("run",)))
    guarded.step()
    guarded.step()
    assert started.names == ["y"] and len(looked) == 3, "one look at each folder"
    said = f"x and 1 more can't start: {Path('small').absolute()} has less than 5 GB left: free some (--min_free)\n"
    assert capsys.readouterr().out.count(said) == 1
    full = free
    store.cancel([3])
    end(started.processes[0])
    guarded.step()
    assert started.names == ["y", "x"]


def test_what_runs_outside_of_the_queue_is_waited_for(
    store: Store, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    add(store, "x", "y")
    other = subprocess.Popen(["sleep", "60"])
    identity = Identity.of(other.pid)
    assert identity is not None
    background.note(background.Record("x", identity, "token", "background", "", (), 1.0))
    waits = Scheduler(store, OPTIONS)
    waits.step()
    assert started.names == ["y"]
    assert f"x can't start: it runs already, in the background, as process {other.pid}\n" in capsys.readouterr().out
    end(other)
    end(started.processes[0])
    store.cancel([2])
    waits.step()
    assert started.names == ["y", "x"]


def test_it_looks_when_others_write_and_where_something_waits_for_what_nobody_announces(
    store: Store, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "REST", 1000.0)
    resting = Scheduler(store, OPTIONS)
    resting.step()
    add(store, "x")
    resting.step()
    assert started.names == [], "its own connection's writes are its own"
    with Store(QUEUE) as other:
        add(other, "y", gpus=1)
    resting.step()
    assert started.names == ["x"]
    monkeypatch.setenv("BONES_GPUS", "1")
    resting.step()
    assert started.names == ["x", "y"], "a GPU has come free without a word"


def test_a_runner_that_cannot_be_started_is_held_after_some_tries(
    store: Store, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(background, "spawn", refuse)
    (number,) = add(store, "x")
    tries = Scheduler(store, OPTIONS)
    for _ in range(UNBORN):
        tries.step()
    entry = store.get(number)
    assert entry.state == "queued" and entry.held and not tries.unfinished()
    assert entry.reason.endswith("its runner could not be started (Permission denied)")


def test_children_of_what_failed_are_skipped(store: Store, started: Started) -> None:
    parent, child = add(store, "parent") + add(store, "child", after=("parent",))
    add(store, "grandchild", after=("child",))
    entry, process = begun(store, parent)
    ended(store, entry, 1)
    end(process)
    Scheduler(store, OPTIONS).step()
    assert store.states() == {"parent": "failed", "child": "skipped", "grandchild": "skipped"}
    assert "parent" in store.get(child).reason and started.given == []


# --- what runs


def test_what_runs_is_adopted(store: Store, started: Started) -> None:
    (number,) = add(store, "x")
    entry, process = begun(store, number)
    adopting = Scheduler(store, OPTIONS)
    for _ in range(5):
        adopting.step()
    assert store.get(number) == entry and started.given == [] and process.poll() is None
    ended(store, entry, 0)
    end(process)
    adopting.step()
    assert store.get(number).state == "done" and not adopting.unfinished()


def test_a_runner_that_is_about_to_begin_is_left_alone(store: Store, started: Started) -> None:
    (number,) = add(store, "x")
    token = store.claim(number, ())
    process = subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: str(token)})
    while not marked(str(token)):  # in the middle of exec it has no environment, and this looks more often than `run`
        pass
    new = Scheduler(store, OPTIONS)
    for _ in range(5):
        new.step()
    assert store.get(number).token == token and process.poll() is None and started.given == []
    end(process)
    steps(new, lambda: started.given)
    assert store.get(number).attempt == 2 and store.get(number).spent == 0, "that it never began is not its fault"


def test_one_empty_look_is_not_enough(store: Store, started: Started) -> None:
    """A process that is between two programs has no environment by which it could be found."""
    (number,) = add(store, "x")
    token = store.claim(number, ())
    new = Scheduler(store, OPTIONS)
    assert new.step() and store.get(number).token == token
    assert new.step() and store.get(number).token != token


def test_what_a_dead_runner_has_left_is_stopped_before_its_entry_starts_again(store: Store, started: Started) -> None:
    """As torchrun's ranks: in sessions of their own, and one does not listen."""
    (number,) = add(store, "x")
    rank = f"setsid sleep 61 & setsid sh -c \"{DEAF.replace('$', '')}\" & sleep 62"
    entry, process = begun(store, number, ("sh", "-c", rank))
    while not Path("deaf").exists():
        time.sleep(0.01)
    assert len(marked(entry.token)) >= 4
    new = Scheduler(store, OPTIONS)
    new.step()
    assert process.poll() is None
    end(process)
    alive = marked(entry.token)

    def started_again() -> bool:
        if started.given:
            assert all(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in alive)
        return bool(started.given)

    steps(new, started_again)
    events = [event.reason for event in store.events([number])]
    assert "its runner was killed; retry 1 of 2" in events and marked(entry.token) == []


def test_without_retries_it_is_lost(store: Store, started: Started) -> None:
    (number,) = add(store, "x", retries=0)
    _, process = begun(store, number)
    end(process)
    new = Scheduler(store, OPTIONS)
    steps(new, lambda: store.get(number).state == "lost")
    assert store.get(number).reason == "its runner was killed; retries left: none of 0"


@pytest.mark.parametrize(("code", "state"), [(0, "done"), (1, "failed"), (75, "queued")])
def test_the_exit_code_on_record_counts_when_the_runner_is_dead(
    code: int, state: str, store: Store, started: Started
) -> None:
    (number,) = add(store, "x")
    store.pause()
    store.unpause()
    entry, process = begun(store, number)
    write_text("log/x.log", "error: no such file\n")
    background.note(background.Record("x", Identity.me(), entry.token, "queue", "", (), 1.0, 2.0, code))
    end(process)
    store.pause()
    steps(Scheduler(store, OPTIONS), lambda: store.get(number).state != "running")
    after = store.get(number)
    assert (after.state, after.exit_code) == (state, code)
    assert code != 1 or after.reason == "error: no such file"


def test_cancelled_without_a_runner(store: Store, started: Started) -> None:
    (number,) = add(store, "x")
    _, process = begun(store, number)
    end(process)
    store.cancel([number])
    steps(Scheduler(store, OPTIONS), lambda: store.get(number).state == "cancelled")
    assert started.given == []


def test_after_a_reboot_everything_goes_on(store: Store, started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process numbers mean nothing then: here each belongs to a process that lives, and has nothing to do with it."""
    first, second, third = add(store, "began", "claimed", "waits")
    entry, process = begun(store, first)
    claimed = store.claim(second, ())
    end(process)
    me = Identity.me()
    old = Identity(me.pid, me.started, me.boot, me.host)
    monkeypatch.setenv(BOOT, "another")
    assert not old.alive() and Identity.me().alive()
    store.pause()
    new = Scheduler(store, OPTIONS)
    steps(new, lambda: not store.entries(states=["running"]))
    assert store.get(first).reason == "the machine was restarted; retry 1 of 2" and store.get(first).spent == 1
    assert store.get(second).reason == "its runner never began" and store.get(second).spent == 0
    assert store.get(third).reason == "" and process.poll() is not None and claimed
    store.unpause()
    steps(new, lambda: started.given)
    assert started.names == ["began"] and store.get(first).token != entry.token


# --- what is left to do


def test_unfinished(store: Store, started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = Scheduler(store, OPTIONS)
    assert not idle.unfinished()
    held, _ = add(store, "held") + add(store, "child", after=("held",))
    store.hold([held])
    (big,) = add(store, "big", gpus=2)
    add(store, "after big", after=("big",))
    assert not idle.unfinished(), "nothing of that starts without help"
    monkeypatch.setenv("BONES_GPUS", "2")
    assert idle.unfinished()
    store.cancel([big])
    assert not Scheduler(store, Options(cpu_slots=0)).unfinished(), "there is no room for anything on the CPU"
    idle.step()
    assert not idle.unfinished()
    store.release([held])
    assert idle.unfinished()


# --- whole schedulers


def test_a_second_scheduler_refuses(store: Store) -> None:
    other = subprocess.Popen(["sleep", "60"])
    identity = Identity.of(other.pid)
    assert identity is not None
    store.beat(identity)
    said = rf"log/queue has a scheduler already \(process {other.pid} on .*\): leave it to that, or stop it first\."
    with locked(QUEUE / LOCK), pytest.raises(FileProblem, match=said):
        run(QUEUE, OPTIONS)
    assert store.scheduler() == identity
    end(other)


def test_a_queue_stays_with_its_working_folder(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, here = QUEUE.absolute(), Path.cwd()
    assert run(folder, OPTIONS, until_empty=True) == 0
    (here / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    said = f"{folder} is for experiments in {here}, and this is {here}/elsewhere: start it there, or delete .*/place if"
    with pytest.raises(FileProblem, match=said):
        run(folder, OPTIONS, until_empty=True)
    (folder / "place").unlink()
    assert run(folder, OPTIONS, until_empty=True) == 0


def test_until_empty(store: Store, started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "POLL", 0.0)
    monkeypatch.setattr(scheduler, "SOON", 0.0)
    add(store, "old")
    store.claim(1, ())
    store.fail(1, store.get(1).token, "long ago")
    assert run(QUEUE, OPTIONS, until_empty=True) == 0 and store.scheduler() == Identity.me()
    started.argv = ["true"]
    add(store, "x")
    assert run(QUEUE, OPTIONS, until_empty=True) == 0
    assert store.get(2).held, "no runner of it has ever begun"
    add(store, "y", after=("x",))
    store.cancel([2])
    assert run(QUEUE, OPTIONS, until_empty=True) == 1
    assert store.get(3).state == "skipped"


def test_a_full_disk_does_not_end_it(
    store: Store, started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passes: list[int] = []

    def step(self: Scheduler) -> bool:
        passes.append(1)
        if len(passes) < 4:
            raise FileProblem("The disk is full: free some.")
        return False

    monkeypatch.setattr(Scheduler, "step", step)
    assert run(QUEUE, OPTIONS, until_empty=True) == 0
    assert len(passes) == 4 and capsys.readouterr().err == "The disk is full: free some.\n"


def spawn_scheduler(command: str) -> subprocess.Popen[str]:
    code = (
        "import sys; from pathlib import Path; from engine.jobs.scheduler import Options, run\n"
        f"sys.exit(run(Path('log/queue'), Options(command=('sh', '-c', {command!r}, 'sh'), min_free=0)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-u", "-c", code]
    return subprocess.Popen(argv, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(what: Callable[[], object], seconds: float = 20.0) -> float:
    begin = time.monotonic()
    while not what():
        assert time.monotonic() - begin < seconds
        time.sleep(0.01)
    return time.monotonic() - begin


def test_ctrl_c_leaves_what_runs_and_the_next_one_adopts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    waits = "echo $$ >> starts; until [ -e go ]; do sleep 0.02; done"
    with Store(QUEUE) as store:
        add(store, "x", "y")
        first = spawn_scheduler(waits)
        try:
            wait_for(lambda: Path("starts").exists() and (QUEUE / LOCK).exists())
            first.send_signal(signal.SIGINT)
            out, _ = first.communicate(timeout=20)
            assert first.returncode == 130
            assert out.splitlines()[-1] == (
                "scheduler stopped; running on: x; waiting: 1. `python scripts/schedule.py run` goes on from here."
            )
            (entry,) = store.entries(states=["running"])
            assert entry.runner is not None and entry.runner.alive() and len(marked(entry.token)) >= 2
            Path("go").touch()  # no scheduler is needed for a run to end
            wait_for(lambda: store.get(1).state == "done")
            second = spawn_scheduler(waits)
            wait_for(lambda: store.get(2).state == "done")
            second.kill()  # not even asked
            second.communicate()
        finally:
            for each in store.entries():
                kill_marked(each.token)
    assert len(Path("starts").read_text().split()) == 2


def test_a_killed_scheduler_loses_nothing_and_the_next_one_goes_on_within_two_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    waits = "echo $$ >> starts; until [ -e go ]; do sleep 0.02; done"
    with Store(QUEUE) as store:
        add(store, "x", "y")
        first = spawn_scheduler(waits)
        try:
            wait_for(lambda: Path("starts").exists())
            first.kill()
            first.communicate()
            before = store.get(1)
            assert before.runner is not None and before.runner.alive()
            second = spawn_scheduler(waits)
            wait_for(lambda: (found := store.scheduler()) and found.pid == second.pid)
            Path("go").touch()
            assert wait_for(lambda: store.get(2).state == "done") < 2 + 2, "under load; the goal is 2 s"
            assert store.get(1).state == "done" and store.get(1).attempt == 1
            used = psutil.Process(second.pid)
            assert used.memory_info().rss < 40e6
            second.send_signal(signal.SIGTERM)
            out, _ = second.communicate(timeout=20)
            assert second.returncode == 75 and out.splitlines()[0].endswith("; runs already: x")
        finally:
            for each in store.entries():
                kill_marked(each.token)
    assert len(Path("starts").read_text().split()) == 2


# --- messages


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    posted: list[str] = []
    monkeypatch.setattr("engine.notify.notify", lambda url, text: posted.append(f"{url} {text}"))
    return posted


def test_messages_about_what_ends_or_fails(store: Store, started: Started, posted: list[str]) -> None:
    add(store, "old")
    store.cancel([1])
    told = Options(command=("run",), min_free=0.0, notify="http://chat")
    done, fails, loops, cancelled, ends = add(store, "done", "fails", "loops", "cancelled", "ends")
    add(store, "child", after=("fails",))
    first = Scheduler(store, told)
    store.hold([done, fails, loops, cancelled, ends])
    first.step()
    store.cancel([cancelled])
    store.release([done, fails, loops, ends])
    for number, code in ((done, 0), (fails, 1), (loops, 75), (loops, 75), (loops, 75)):
        entry, process = begun(store, number)
        ended(store, entry, code)
        end(process)
    store.hold([ends])
    first.step()
    first.messages.close()
    looped = "crash loop: 3 short attempts in a row without progress; the last one: exit code 75, stopped and saved"
    expected = ["done: done", "fails: failed: exit code 1", f"loops: held: {looped}", "child: skipped: fails failed"]
    assert posted == [f"http://chat {text}" for text in expected]
    store.release([ends])
    entry, process = begun(store, ends)
    ended(store, entry, 0)
    end(process)
    second = Scheduler(store, told)  # of what has happened while there was none
    second.step()
    second.messages.close()
    assert posted[4:] == ["http://chat ends: done"]
    third = Scheduler(store, told)
    third.step()
    third.messages.close()
    assert len(posted) == 5


def test_a_webhook_that_does_not_answer_holds_nothing_up(
    store: Store, started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answered = threading.Event()
    monkeypatch.setattr("engine.notify.notify", lambda url, text: answered.wait(20))
    add(store, "x", "y")
    slow = Scheduler(store, Options(command=("run",), min_free=0.0, notify="http://chat"))
    entry, process = begun(store, 1)
    ended(store, entry, 0)
    end(process)
    slow.step()
    assert started.names == ["y"]
    shown = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert shown[-2:] == ["x: done", "y: running: attempt 1"]
    assert shown[0] == "x: running: attempt 1"
    told = int((QUEUE / "told").read_text())
    answered.set()
    slow.messages.close()
    assert int((QUEUE / "told").read_text()) > told, "noted when it is out, so that none gets lost"
