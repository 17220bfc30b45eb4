"""The queue against its goals: a durable add, a list of 1 000 entries, adoption after kill -9, an idle scheduler.

`bare SQL` is the floor: the same rows by one statement of sqlite3, as durable, without rules, checks and events.
"""

from __future__ import annotations

import os
import pty
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path

import psutil

from benchmarks.measure import in_turn, milliseconds
from benchmarks.rows import Repeats, Row
from engine.jobs.database import NAME
from engine.jobs.entry import Spec
from engine.jobs.process import marked, stop_marked
from engine.jobs.store import Store

DESCRIPTION = "The queue: durable add, ls of 1 000 entries, adoption after a kill, idle scheduler; each with its goal"

ROOT = Path(__file__).resolve().parent.parent
GOAL, BARE = "goal", "bare SQL"
ENTRIES = 1000
ARGV = ("--model_file", "unet_convnext_tiny", "--lr", "1e-4", "--loss", "Combined_BCE_Dice", "--fold", "0")
HUNG = 60.0
"""Seconds after which something is taken to hang."""
QUEUE = Path("log/queue")
"""Of the scheduler that is measured, in its working directory."""
SCHEDULER = f"""
import sys
from pathlib import Path
from engine.jobs import scheduler
command = (sys.executable, "-c", "import time; time.sleep(600)")
scheduler.run(Path({str(QUEUE)!r}), scheduler.Options(command=command, cpu_slots=2, min_free=0))
"""


def run(quick: bool) -> list[Row]:
    """All rows; `quick` repeats less often and watches the idle scheduler for a short time."""
    (ROOT / "log").mkdir(exist_ok=True)
    # Here and not in /tmp, which may be memory: then nothing would be flushed to a disk.
    with tempfile.TemporaryDirectory(prefix="queue-", dir=ROOT / "log") as root:
        folder = Path(root)
        rows = [*adding(folder / "add", 20 if quick else 200), *listing(folder / "list", 3 if quick else 15)]
        rows += scheduling(folder / "schedule", 2 if quick else 10, 5.0 if quick else 60.0)
    return rows


def adding(folder: Path, repeats: int) -> list[Row]:
    """One entry, on disk when the call returns."""
    number = count()
    with Store(folder / "ours") as store, Store(folder / "bare"), bare(folder / "bare") as connection:

        def add() -> None:
            store.add([Spec(f"x{next(number)}", ARGV)])

        def insert() -> None:
            values = [f"x{next(number)}", str(ARGV), 0, 0, "[]", 2, 0.0, "local", "queued", time.time()]
            columns = "name, argv, gpus, priority, after, retries, hours, executor, state, added"
            connection.execute(f"INSERT INTO entry ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

        found = in_turn({"ours": partial(milliseconds, add), "bare": partial(milliseconds, insert)}, repeats)
        same = len(store.entries()) == connection.execute("SELECT count(*) FROM entry").fetchone()[0] == repeats
        assert same, "both have added the same number"
    whole = in_turn({"ours": lambda: milliseconds(lambda: add_alone(folder / "alone", next(number)))}, repeats)["ours"]
    return [
        Row("durable add, queue open", BARE, "ms", found["ours"], found["bare"]),
        Row("durable add, queue open", GOAL, "ms", found["ours"], (20.0,)),
        Row("durable add, with opening and closing", GOAL, "ms", whole, (20.0,)),
    ]


def add_alone(folder: Path, number: int) -> None:
    """What a command does that adds an entry while no scheduler has the queue open."""
    with Store(folder) as store:
        store.add([Spec(f"x{number}", ARGV)])


def listing(folder: Path, repeats: int) -> list[Row]:
    """1 000 entries of all states."""
    with Store(folder) as store, bare(folder) as connection:
        ids = store.add([Spec(f"experiment-{each:04}", ARGV) for each in range(ENTRIES)])
        store.cancel(ids[::3])
        for each in ids[1::3]:
            token = store.claim(each, (0,))
            assert token is not None
            assert store.ended(each, token, each % 2, "", True)
        statement = "SELECT * FROM entry ORDER BY id"
        assert [row[0] for row in connection.execute(statement)] == [entry.id for entry in store.entries()] == ids
        sides = {"ours": store.entries, "bare": lambda: connection.execute(statement).fetchall()}
        reading = in_turn({name: partial(milliseconds, read) for name, read in sides.items()}, repeats)
        commands = in_turn({"pipe": partial(command, folder, False), "tty": partial(command, folder, True)}, repeats)
    return [
        Row(f"{ENTRIES} entries read", BARE, "ms", reading["ours"], reading["bare"]),
        Row(f"schedule.py ls of {ENTRIES}, whole command, into a pipe", GOAL, "ms", commands["pipe"], (300.0,)),
        Row(f"schedule.py ls of {ENTRIES}, whole command, in a terminal", GOAL, "ms", commands["tty"], (300.0,)),
    ]


def command(folder: Path, terminal: bool) -> float:
    """`schedule.py ls`, from its start to its end, in ms."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    argv = [sys.executable, str(ROOT / "scripts/schedule.py"), "ls", "--queue", str(folder)]
    start = time.perf_counter()
    process = subprocess.Popen(argv, cwd=ROOT, stdout=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    said = b""
    with suppress(OSError), open(ours, "rb", buffering=0) as output:  # a terminal ends with an error
        while part := output.read(2**16):
            said += part
    code = process.wait()
    taken = 1e3 * (time.perf_counter() - start)
    assert code == 0, f"ls ended with exit code {code}"
    assert said.count(b"experiment-") >= ENTRIES, "ls has listed all"
    return taken


def scheduling(root: Path, repeats: int, idle: float) -> list[Row]:
    """A scheduler that is killed with -9 while an experiment runs, and the next one."""
    (root / QUEUE).mkdir(parents=True)
    taken: list[float] = []
    with Store(root / QUEUE) as store, leaving_nothing(store):
        (first,) = store.add([Spec("runs")])
        scheduler = start(root)
        try:
            wait_for(lambda: store.get(first).runner is not None)
            before = store.get(first)
            for each in range(repeats):
                scheduler.kill()
                scheduler.wait()
                (follower,) = store.add([Spec(f"next{each}")])
                begin = time.perf_counter()
                scheduler = start(root)
                wait_for(partial(runs, store, follower))
                taken.append(1e3 * (time.perf_counter() - begin))
                assert store.get(first) == before, "what ran was left alone"
                token = store.get(follower).token
                store.cancel([follower])
                wait_for(partial(gone, token))
            memory, share = watch(psutil.Process(scheduler.pid), idle)
        finally:
            scheduler.kill()
            scheduler.wait()
    how = "Adoption: from the start of Python to the claim of what waits, in the pass that has looked after what runs."
    return [
        Row("adoption after kill -9 of the scheduler", GOAL, "ms", tuple(taken), (2000.0,), note=how),
        Row("idle scheduler, resident memory", GOAL, "MB", memory, (40.0,)),
        Row(f"idle scheduler, share of a core in {idle:.0f} s", GOAL, "%", share, (1.0,)),
    ]


def start(root: Path) -> subprocess.Popen[bytes]:
    """A scheduler whose experiments sleep."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(root / "scheduler.log", "ab") as log:
        return subprocess.Popen([sys.executable, "-c", SCHEDULER], cwd=root, env=environment, stdout=log, stderr=log)


def runs(store: Store, entry_id: int) -> bool:
    """Whether the entry has been claimed."""
    return store.get(entry_id).state == "running"


def gone(token: str) -> bool:
    """Whether no process of the attempt is left."""
    return not marked(token)


def wait_for(holds: Callable[[], bool]) -> None:
    """Until it holds; raises TimeoutError where that takes too long."""
    end = time.monotonic() + HUNG
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"The scheduler did not get on within {HUNG:.0f} s.")
        time.sleep(0.002)


def watch(process: psutil.Process, seconds: float) -> tuple[Repeats, Repeats]:
    """Memory in MB and share of a core in %, while nothing happens."""
    before = process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    share = max(0.0, 100 * (after.user + after.system - before.user - before.system) / seconds)  # sums are rounded
    return (process.memory_info().rss / 1e6,), (share,)


@contextmanager
def leaving_nothing(store: Store) -> Iterator[None]:
    """End all that still runs afterwards."""
    try:
        yield
    finally:
        for entry in store.entries(states=["running"]):
            stop_marked(entry.token, 0.0)


@contextmanager
def bare(folder: Path) -> Iterator[sqlite3.Connection]:
    """The queue's file without the queue, every statement committed and flushed."""
    with closing(sqlite3.connect(folder / NAME, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        yield connection
