"""The loop that starts what is queued and looks after what runs; one for a queue.

It holds nothing that it could lose: what runs is in the table and has a runner of its own. A scheduler that begins
finds both as they are, however the one before it has ended.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from engine import background
from engine.files import FileProblem, locked, write_text
from engine.jobs import traces
from engine.jobs.clusters import Clusters
from engine.jobs.entry import Entry, may_start
from engine.jobs.inventory import gpus
from engine.jobs.messages import Messages
from engine.jobs.policy import choose
from engine.jobs.process import MARK, Identity, ask_marked, boot_id, kill_marked, marked
from engine.jobs.runner import GRACE, note_end
from engine.jobs.store import Store
from engine.stop import StopFlag, Stopped

ROOT = Path(__file__).resolve().parent.parent.parent
RUNNER = (sys.executable, "-u", str(ROOT / "engine/jobs/runner.py"))
LOCK = "scheduler.lock"
PLACE = "place"
"""File in the queue's folder: the working folder of its experiments."""

POLL = 0.5
"""Seconds between two looks at runners and at what others have written."""
SOON = 0.1
"""The same after a pass that changed something."""
LOOK = 5.0
"""Seconds between two looks at what nobody announces: GPUs that others leave, disk space, runs outside of the queue."""
REST = 60.0
"""The same where nothing waits for that."""
GB = 10**9


@dataclass(frozen=True)
class Options:
    """How a queue is run."""

    command: tuple[str, ...] = (sys.executable, "-u", str(ROOT / "run_exp.py"))
    """Interpreter and script that the flags of an entry are for."""
    cpu_slots: int = 1
    """Entries without a GPU that may run at once."""
    min_free: float = 5.0
    """GB. Nothing starts with less space left where its experiment would write."""
    notify: str = ""
    """Webhook that is told what has ended or failed: engine.notify."""


@dataclass
class Ending:
    """What is left of an attempt whose runner is gone."""

    asked: float = 0.0
    """When its processes were told to stop, time.monotonic(); 0 before."""
    empty: int = 0
    """Looks in a row that found none."""


class Scheduler:
    """Passes over a queue. For one process at a time: see `run`."""

    def __init__(self, store: Store, options: Options) -> None:
        self.store, self.options = store, options
        self.messages = Messages(store, options.notify)
        self.clusters = Clusters(store, options.command)
        self.runners: dict[str, subprocess.Popen[bytes]] = {}
        """Those that this process has started, by token."""
        self.endings: dict[str, Ending] = {}
        self.said: set[str] = set()
        """Why some must not start, at the last look."""
        self.watching = False
        """Whether something waits for what nobody announces."""
        self.next_look = 0.0

    def step(self) -> bool:
        """One pass, without waiting; returns whether it changed anything, so that another one may find more to do."""
        self.runners = {token: runner for token, runner in self.runners.items() if runner.poll() is None}
        running = [entry for entry in self.store.entries(states=["running"]) if entry.spec.executor == "local"]
        changed = self.store.changed()
        self.endings = {entry.token: self.endings[entry.token] for entry in running if entry.token in self.endings}
        for entry in running:
            changed |= self._look_after(entry)
        changed |= self.clusters.step()
        if changed or time.monotonic() >= self.next_look:
            changed |= bool(self.store.skip_children())
            changed |= self._start()
            self.messages.tell()
            self.next_look = time.monotonic() + (LOOK if self.watching else REST)
        return changed

    def unfinished(self) -> bool:
        """Whether something runs or may start without anybody's help."""
        live = self.store.entries(states=["queued", "running"])
        able = {entry.spec.name for entry in live if entry.state == "running"}
        waiting = [entry for entry in live if entry.state == "queued" and not entry.held]
        states = self.store.states()
        machine = len(gpus()) if any(entry.spec.gpus for entry in waiting) else 0
        fitting = [
            entry
            for entry in waiting
            if entry.spec.executor != "local"
            or (entry.spec.gpus <= machine if entry.spec.gpus else self.options.cpu_slots)
        ]
        while more := [
            entry.spec.name
            for entry in fitting
            if entry.spec.name not in able
            and all(states.get(name) == "done" or name in able for name in entry.spec.after)
        ]:
            able.update(more)
        return bool(able)

    # What runs

    def _look_after(self, entry: Entry) -> bool:
        """See to a running entry whose runner is gone; returns whether there is more to see to soon."""
        token, ending = entry.token, self.endings.get(entry.token)
        if token in self.runners or (entry.runner is not None and entry.runner.alive()):
            return False
        if ending is None:
            ending = self.endings[token] = Ending()
        if marked(token):
            ending.empty = 0
            if entry.runner is not None:  # else it is a runner that is about to begin
                self._stop(token, ending)
            return False
        # A process that is being made, or is between two programs, has no environment to be found by: look again.
        ending.empty += 1
        if ending.empty > 1:
            self._conclude(entry)
        return True

    def _stop(self, token: str, ending: Ending) -> None:
        """Ask what a runner has left behind to stop, and after a while kill it."""
        if not ending.asked and ask_marked(token):
            ending.asked = time.monotonic()
        elif ending.asked and time.monotonic() - ending.asked > GRACE:
            kill_marked(token)

    def _conclude(self, entry: Entry) -> None:
        """No process of the attempt is left."""
        number, token, name = entry.id, entry.token, entry.spec.name
        if entry.runner is None:
            self.store.give_back(number, token, "its runner never began", counts=False, unless_begun=True)
            return
        if (code := background.noted(name, token)) is not None:
            note_end(self.store, entry, code)
            return
        gone = "the machine was restarted" if entry.runner.boot != boot_id() else "its runner was killed"
        self.store.give_back(number, token, gone, counts=True, progress=traces.progress(entry))

    # What waits

    def _start(self) -> bool:
        """Start what has room and no obstacle; returns whether anything was."""
        live = [entry for entry in self.store.entries(states=["queued", "running"]) if entry.spec.executor == "local"]
        queued = [entry for entry in live if entry.state == "queued"]
        newest = self.store.newest([name for entry in queued for name in entry.spec.after])
        waiting = [entry for entry in queued if may_start(entry, newest)]
        self.watching = False
        if not waiting or self.store.paused:
            return False
        running = [entry for entry in live if entry.state == "running"]
        found = gpus() if any(entry.spec.gpus for entry in waiting) else []
        obstacles = self._obstacles(waiting, len(found))
        now = time.time()
        while True:
            chosen = choose(waiting, running, found, self.options.cpu_slots, now, obstacles)
            outside = {entry.spec.name: why for entry, _ in chosen if (why := _runs_outside(entry))}
            if not outside:
                break
            obstacles |= outside
        self.watching = bool(found or obstacles)
        self._say(obstacles)
        for entry, devices in chosen:
            self._launch(entry, devices)
        return bool(chosen)

    def _obstacles(self, waiting: Sequence[Entry], machine: int) -> dict[str, str]:
        """Experiments that must not start, whatever there is room for -> why."""

        @cache
        def full(folder: Path) -> str:
            while not folder.exists():
                folder = folder.parent
            enough = shutil.disk_usage(folder).free >= self.options.min_free * GB
            return "" if enough else f"{folder} has less than {self.options.min_free:g} GB left: free some (--min_free)"

        found = {entry.spec.name: full(traces.folder_of(entry.spec).parent.absolute()) for entry in waiting}
        found |= {
            entry.spec.name: f"it needs {entry.spec.gpus} GPUs, and the queue may use {machine} here"
            for entry in waiting
            if entry.spec.gpus > machine
        }
        return {name: why for name, why in found.items() if why}

    def _say(self, obstacles: dict[str, str]) -> None:
        """Print what is new about experiments that must not start."""
        names: dict[str, list[str]] = {}
        for name, why in obstacles.items():
            names.setdefault(why, []).append(name)
        for why, those in names.items():
            if why not in self.said:
                more = f" and {len(those) - 1} more" if len(those) > 1 else ""
                print(f"{those[0]}{more} can't start: {why}", flush=True)
        self.said = set(names)

    def _launch(self, entry: Entry, devices: tuple[int, ...]) -> None:
        token = self.store.claim(entry.id, devices)
        if token is None:  # cancelled or held meanwhile
            return
        argv = [*RUNNER, str(self.store.folder.absolute()), str(entry.id), token, *self.options.command]
        try:
            self.runners[token] = background.spawn(argv, entry.spec.name, {**os.environ, MARK: token})
        except OSError as error:
            why = f"its runner could not be started ({error.strerror})"
            self.store.give_back(entry.id, token, why, counts=False)


def _runs_outside(entry: Entry) -> str:
    """Where an experiment runs that the queue has not started; nothing where it does not."""
    if (record := background.known(entry.spec.name)) and record.lives_here:
        return f"it runs already, in the {record.where}, as process {record.identity.pid}"
    return ""


def run(folder: Path, options: Options, until_empty: bool = False) -> int:
    """Run a queue until Ctrl-C or SIGTERM, which leave what runs as it is.

    Args:
        until_empty: return as soon as nothing runs and nothing may start without help.

    Returns:
        Exit code: 130 or 75 after a signal; else 0, or 1 where an entry has failed, was lost or skipped meanwhile.

    Raises:
        FileProblem: another scheduler runs the queue, it belongs to another working folder, or it can't be opened.
    """
    with Store(folder) as store, _alone(store), StopFlag() as flag:
        _check_place(folder)
        begun = time.time()
        store.beat(Identity.me())
        scheduler = Scheduler(store, options)
        adopted = ", ".join(entry.spec.name for entry in store.entries(states=["running"]))
        print(
            f"scheduler of {folder}, process {os.getpid()}: Ctrl-C stops it and leaves what runs running"
            + (f"; runs already: {adopted}" if adopted else ""),
            flush=True,
        )
        said = ""
        while not flag.signum:
            try:
                wait, said = SOON if scheduler.step() else POLL, ""
                if wait == POLL and until_empty and not scheduler.unfinished():
                    break
            except FileProblem as problem:  # a disk that is full now has space again tomorrow
                if str(problem) != said:
                    print(said := str(problem), file=sys.stderr, flush=True)
                wait = LOOK
            time.sleep(wait)
        scheduler.messages.close()
        if flag.signum:
            print(_left(store), flush=True)
            return Stopped(flag.signum).exit_code
        bad = [entry for entry in store.entries(states=["failed", "lost", "skipped"]) if entry.ended >= begun]
        return 1 if bad else 0


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Hold the lock of the queue's scheduler; the kernel opens it however the process ends."""
    lock = locked(store.folder / LOCK)
    try:
        lock.__enter__()
    except BlockingIOError:
        other = store.scheduler()
        who = f" (process {other.pid} on {other.host})" if other else ""
        raise FileProblem(f"{store.folder} has a scheduler already{who}: leave it to that, or stop it first.") from None
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _check_place(folder: Path) -> None:
    """Raise FileProblem where experiments of this queue have run in another working folder: they are resumed there."""
    path, here = folder / PLACE, str(Path.cwd())
    if not path.exists():
        write_text(path, here)
    elif (there := path.read_text(encoding="utf-8")) != here:
        raise FileProblem(
            f"{folder} is for experiments in {there}, and this is {here}: start it there, or delete {path} if you have "
            f"moved them."
        )


def _left(store: Store) -> str:
    """What goes on, and what waits, without a scheduler."""
    running = [entry.spec.name for entry in store.entries(states=["running"])]
    waiting = len(store.entries(states=["queued"]))
    return (
        f"scheduler stopped; running on: {', '.join(running) or 'nothing'}; waiting: {waiting}. "
        f"`python scripts/schedule.py run` goes on from here."
    )
