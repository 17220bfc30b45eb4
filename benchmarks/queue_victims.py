"""The processes of a queue that are there to be killed: `python -m benchmarks.queue_victims ROLE ARGUMENTS...`.

Scheduler and runner are the real ones, with faster looks, in a process that kills itself with -9 where it was aimed at.
The run is a small program in place of run_exp.py: it saves, resumes, goes on record as run_exp.py does, and starts a
process in a session of its own, as torchrun does.

What is aimed at is one line in the file `aim` of the folder that QUEUE_VICTIMS names: a moment, and how many seconds
later the process dies; whoever comes to that moment first takes the file.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine import background
from engine.files import write_text
from engine.jobs import database, runner, scheduler
from engine.jobs.entry import Spec
from engine.jobs.process import MARK
from engine.jobs.store import Store
from engine.stop import EXIT_RESUMABLE, StopFlag

FOLDER = "QUEUE_VICTIMS"
"""Environment variable of all processes of a harness: its folder, which is where they work."""
QUEUE = Path("log/queue")
AIM, HITS, NOTES, ADDED = "aim", "hits", "notes", "added"
STEPS = 4
SECONDS_A_STEP = 0.03
SLOTS = 3
MODULE = "benchmarks.queue_victims"
WRITES = {"scheduler": ("claim", "give_back", "ended"), "runner": ("began", "ended"), "user": ("add",)}
"""Methods of Store that a role is killed in: within the transaction, and in its commit."""
STARTED, OVERLAPPED, REPEATED = "started", "overlapped", "repeated"
"""What a run notes: that it began; that another one of its experiment was alive; that one had been done already."""


def moment(name: str) -> None:
    """A place in which a process may be killed."""
    folder = Path(os.environ[FOLDER])
    aim, mine = folder / AIM, folder / f"{AIM}.{os.getpid()}"
    with suppress(FileNotFoundError):
        wanted, seconds = json.loads(aim.read_text(encoding="utf-8"))
        if wanted == name:
            aim.rename(mine)
            append(folder / HITS, name)
            if seconds:  # from another thread: SQLite leaves the lock of the interpreter while it writes
                threading.Timer(seconds, die).start()
            else:
                die()


def die() -> None:
    """As by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def append(path: Path, line: str) -> None:
    """Add a line at one go."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, f"{line}\n".encode())
    os.close(handle)


def around(owner: Any, name: str, before: str = "", after: str = "") -> None:
    """Let a function have moments before and after it."""
    inner: Callable[..., Any] = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if before:
            moment(before)
        result = inner(*arguments, **named)
        if after:
            moment(after)
        return result

    setattr(owner, name, wrapped)


def within_writes(role: str) -> None:
    """Let the transactions of a role have moments: at each statement that changes something, and at the commit."""
    at: list[str] = []

    def watch(statement: str) -> None:
        if at and statement.startswith(("INSERT", "UPDATE")):
            moment(f"{role}: writes {at[-1]}")
        elif at and statement == "COMMIT":
            moment(f"{role}: commits {at[-1]}")

    connect = database.connect

    def watched(folder: Path) -> sqlite3.Connection:
        connection = connect(folder)
        connection.set_trace_callback(watch)
        return connection

    database.connect = watched
    for name in WRITES[role]:
        setattr(Store, name, _named(getattr(Store, name), name, at))


def _named(method: Callable[..., Any], name: str, at: list[str]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        at.append(name)
        try:
            return method(*arguments, **named)
        finally:
            at.pop()

    return wrapped


def schedule(until_empty: str) -> int:
    """A scheduler; `until_empty` is 1 or 0."""
    moment("scheduler: starts")
    within_writes("scheduler")
    around(background, "spawn", "scheduler: claimed, runner not started", "scheduler: runner started")
    fast: dict[str, Any] = {"POLL": 0.05, "SOON": 0.02, "LOOK": 0.3, "GRACE": 5.0}
    vars(scheduler).update(fast, RUNNER=(sys.executable, "-m", MODULE, "runner"))
    options = scheduler.Options(command=(sys.executable, "-m", MODULE, "job"), cpu_slots=SLOTS, min_free=0.0)
    return scheduler.run(QUEUE, options, until_empty == "1")


def run_one(*argv: str) -> int:
    """A runner."""
    moment("runner: starts")
    within_writes("runner")
    around(subprocess, "Popen", "runner: began, run not started", "runner: run started")
    around(runner, "stop_marked", "runner: run ended, its processes not looked for", "runner: run ended, not noted")
    around(Store, "ended", "", "runner: end noted")
    vars(runner).update({"POLL": 0.05, "GRACE": 5.0, "LEFT": 2.0, "AGAIN": 0.1})
    return runner.main(argv)


def add(*names: str) -> int:
    """A user who adds entries, and believes that they are in the queue as soon as the command has ended."""
    within_writes("user")
    with Store(QUEUE) as store:
        store.add([Spec(name, retries=10**6) for name in names])
    append(Path(ADDED), "\n".join(names))
    return 0


def work(*argv: str) -> int:
    """A run: STEPS steps with a state after each, and an exit code on record."""
    moment("run: starts")
    name = argv[argv.index("--exp_name") + 1]
    notes, folder = Path(NOTES), Path("checkpoints") / name
    lock = os.open(notes / f"{name}.lock", os.O_RDWR | os.O_CREAT)
    append(notes / name, f"{STARTED} {os.environ[MARK]} {os.getpid()}")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        append(notes / name, f"{OVERLAPPED} {os.environ[MARK]}")
    if (before := background.read_record(name)) and before.exit_code == 0:
        append(notes / name, f"{REPEATED} {os.environ[MARK]}")
    code = background.on_record(name, folder, list(argv), lambda: _steps(folder, lock, "--resume" in argv))
    moment("run: on record as done")
    return code


def _steps(folder: Path, lock: int, resume: bool) -> int:
    """Work that is the more done the more often it was resumed."""
    moment("run: on record")
    state = folder / "last.pt"
    done = int(state.read_text(encoding="utf-8")) if resume and state.exists() else 0
    write_text(folder / "config.json", "{}")
    # It holds the lock as well, so that one that is left over counts as a run that is alive.
    rank = subprocess.Popen(["sleep", "600"], start_new_session=True, pass_fds=[lock])
    try:
        with StopFlag() as stop:
            for step in range(done, STEPS):
                moment("run: works")
                time.sleep(SECONDS_A_STEP)
                moment("run: saves")
                write_text(state, str(step + 1))
                if stop.signum:
                    return EXIT_RESUMABLE
        moment("run: done, not on record")
        return 0
    finally:
        rank.kill()
        rank.wait()


ROLES: dict[str, Callable[..., int]] = {"scheduler": schedule, "runner": run_one, "job": work, "user": add}

if __name__ == "__main__":
    sys.exit(ROLES[sys.argv[1]](*sys.argv[2:]))
