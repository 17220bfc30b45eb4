"""The queue's table among several processes: at once, killed in the middle, without space, without permission."""

from __future__ import annotations

import os
import random
import resource
import select
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from engine.files import FileProblem
from engine.jobs.entry import Entry, Spec
from engine.jobs.process import Identity
from engine.jobs.store import Store

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = 8
NOBODY = 65534


def forked(work: Callable[[Callable[[str], None]], None]) -> tuple[int, int]:
    """Run `work(say)` in a forked process; its number, and the end of a pipe where its lines arrive."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    code = 1
    try:
        os.close(reading)
        work(lambda line: os.write(writing, f"{line}\n".encode()) and None)
        code = 0
    except BaseException:
        os.write(writing, traceback.format_exc().encode())
    os._exit(code)


def lines(process: int, reading: int) -> list[str]:
    """All that it has said, after its end."""
    with open(reading, encoding="utf-8") as said:
        text = said.read()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, -signal.SIGKILL), text
    return text.splitlines()


def all_at_once(work: Callable[[int, Callable[[str], None]], None]) -> list[list[str]]:
    """What eight processes say that begin at the same moment."""
    waiting, go = os.pipe()

    def begin(number: int, say: Callable[[str], None]) -> None:
        os.close(go)
        os.read(waiting, 1)  # until nobody holds the other end any more
        work(number, say)

    started = [forked(partial(begin, number)) for number in range(PROCESSES)]
    os.close(go)
    try:
        return [lines(*each) for each in started]
    finally:
        os.close(waiting)


def killed(work: Callable[[Callable[[str], None]], None], after: int, seconds: float) -> list[str]:
    """What it says until it is killed with -9, so long after the line of this number."""
    process, reading = forked(work)
    said = b""
    while said.count(b"\n") < after:
        byte = os.read(reading, 1)
        assert byte, said
        said += byte
    handle = os.pidfd_open(process)
    select.select([handle], [], [], seconds)
    os.close(handle)
    os.kill(process, signal.SIGKILL)
    return [*said.decode().splitlines(), *lines(process, reading)]


@contextmanager
def plain(folder: Path) -> Iterator[sqlite3.Connection]:
    """The file as SQLite sees it."""
    with closing(sqlite3.connect(f"file:{folder}/queue.db?mode=rw", uri=True)) as connection:
        yield connection


def sound(folder: Path) -> bool:
    with plain(folder) as connection:
        return bool(connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)])


# At once


def test_eight_that_begin_a_queue_and_add_lose_nothing(tmp_path: Path) -> None:
    def add(number: int, say: Callable[[str], None]) -> None:
        with Store(tmp_path / "queue") as queue:
            for each in range(12):
                (entry_id,) = queue.add([Spec(f"{number}-{each}")])
                say(f"{entry_id} {number}-{each}")

    told = dict(line.split() for said in all_at_once(add) for line in said)
    with Store(tmp_path / "queue") as queue:
        assert {str(entry.id): entry.spec.name for entry in queue.entries()} == told
        assert len(told) == 12 * PROCESSES
        assert len(queue.events()) == 12 * PROCESSES
    assert sorted(os.listdir(tmp_path / "queue")) == ["queue.db"]


def test_of_eight_only_one_adds_claims_and_begins(tmp_path: Path) -> None:
    with Store(tmp_path) as queue:
        queue.add([Spec(f"e{each}", retries=9) for each in range(6)])
        token = queue.claim(1, ())
        assert token

    def race(number: int, say: Callable[[str], None]) -> None:
        with Store(tmp_path) as queue:
            if queue.began(1, token, Identity.me()):
                say("began")
            for each in range(2, 7):
                if queue.claim(each, (number,)):
                    say(f"claimed {each}")
            try:
                queue.add([Spec("same")])
                say("added")
            except ValueError:
                pass

    said = Counter(line for each in all_at_once(race) for line in each)
    assert said == Counter(["began", *(f"claimed {each}" for each in range(2, 7)), "added"])


# Killed


def steps(folder: Path, number: int, say: Callable[[str], None]) -> None:
    """Add entries and take each through an attempt or two, for ever; says each step when it is done."""
    with Store(folder) as queue:
        for each in range(10**6):
            name = f"{number}-{each}"
            (entry_id,) = queue.add([Spec(name)])
            say(f"{entry_id} queued 0")
            for code, state in ((75, "queued"), (0, "done")):
                token = queue.claim(entry_id, (0,))
                assert token
                say(f"{entry_id} running {queue.get(entry_id).attempt}")
                assert queue.began(entry_id, token, Identity.me())
                assert queue.ended(entry_id, token, code, "", True)
                say(f"{entry_id} {state} {queue.get(entry_id).attempt}")


@pytest.mark.parametrize(("file_system", "attended"), [("ext4", False), ("ext4", True), ("nfs4", False)])
def test_killed_at_any_moment_nothing_that_was_said_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_system: str, attended: bool
) -> None:
    """`attended`: another process has the queue open, so that the killed one's log is not begun anew."""
    mount = SimpleNamespace(mountpoint=str(tmp_path), fstype=file_system)
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [mount])
    chance, folder, steps_said = random.Random(7), tmp_path / "queue", 0
    other = Store(folder) if attended else None
    before: dict[int, Entry] = {}
    for number in range(25):
        work = partial(steps, folder, number)
        said = killed(work, after=chance.randrange(20), seconds=chance.uniform(0, 0.002))
        with Store(folder) as queue:
            found = {entry.id: entry for entry in queue.entries()}
            assert {event.id: event.after for event in queue.events()} == {k: entry.state for k, entry in found.items()}
        assert sound(folder)
        assert {each: found[each] for each in before} == before
        newest = {f"{each} {entry.state} {entry.attempt}" for each, entry in found.items() if each not in before}
        # Of each entry, the last thing that was said; one more step may be done, and not said any more.
        last = {line.split()[0]: line for line in said}
        assert len({*last.values()} - newest) + len(newest) - len(last) <= 1
        before, steps_said = found, steps_said + len(said)
    assert steps_said > 200
    if other is not None:
        assert {entry.id: entry for entry in other.entries()} == before
        other.close()


def begin_one(folder: Path, say: Callable[[str], None]) -> None:
    say("now")
    Store(folder).close()


def test_killed_while_it_begins(tmp_path: Path) -> None:
    chance = random.Random(3)
    for number in range(40):
        folder = tmp_path / str(number)
        killed(partial(begin_one, folder), after=1, seconds=chance.uniform(0, 0.006))
        with Store(folder) as queue:
            assert queue.add([Spec("x")]) == [1]
        assert sound(folder)


# Without space or permission


def problem_of(work: Callable[[], object]) -> str:
    """What FileProblem says in a process of its own, which may give up rights for good."""

    def tell(say: Callable[[str], None]) -> None:
        try:
            work()
        except FileProblem as problem:
            say(str(problem))

    (said,) = lines(*forked(tell))
    return said


@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
def test_a_limit_on_files_loses_nothing(tmp_path: Path, journal: str) -> None:
    with Store(tmp_path) as queue:
        queue.add([Spec("kept")])
    with plain(tmp_path) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")

    def add() -> None:
        with Store(tmp_path) as queue:
            size = queue.path.stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            queue.add([Spec(f"long{each}", ("x" * 99999,)) for each in range(3)])

    assert problem_of(add) == (
        f"{tmp_path}/queue.db can't be written (disk I/O error): see whether the disk or a quota is full."
    )
    assert sound(tmp_path)
    with Store(tmp_path) as queue:
        assert [entry.spec.name for entry in queue.entries()] == ["kept"]
        assert queue.add([Spec("again")]) == [2]


FULL = """
import os, sys
from pathlib import Path
from engine.files import FileProblem
from engine.jobs.entry import Spec
from engine.jobs.store import Store
folder, fill, added = Path(sys.argv[1]) / "queue", Path(sys.argv[1]) / "fill", 0
with Store(folder) as queue:
    queue.add([Spec("first")])
    with open(fill, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    long = Spec("x", ("y" * 9999,))
    for work in (lambda: queue.add([long]), lambda: queue.claim(1, ()), lambda: Store(folder / "new")):
        try:
            work()
        except FileProblem as problem:
            print(problem)
    print(*queue.states())
    fill.unlink()
    print(queue.add([Spec("second")]), *queue.states())
with Store(folder) as queue:
    print(*queue.states())
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A disk of 300 kB, in a name space where this user may mount one."""
    where = tmp_path / "small"
    where.mkdir()
    mount = f"mount -t tmpfs -o size=300k none {where}"
    apart = ["unshare", "-Urm", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*apart, mount], capture_output=True).returncode:
        pytest.skip("no user name spaces here, so no small disk can be mounted")
    command = [*apart, f'{mount} && exec "$0" "$@"', sys.executable, "-c", FULL, str(where)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.stderr == ""
    full, _, new = (
        f"The disk is full: nothing was written to {where}/queue/{at}queue.db. Free some space and run again."
        for at in ("", "", "new/")
    )
    assert found.stdout.splitlines() == [full, full, new, "first", "[2] first second", "first second"]


@pytest.mark.parametrize("begun", [True, False])
def test_a_folder_that_may_not_be_written(begun: bool) -> None:
    with tempfile.TemporaryDirectory() as root:  # pytest's own folders are for one user only
        folder = Path(root) / "queue"
        os.chmod(root, stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
        folder.mkdir()
        if begun:
            with Store(folder) as queue:
                queue.add([Spec("kept")])
        for path in (*folder.iterdir(), folder):
            path.chmod(0o555)

        def add() -> None:
            if os.getuid() == 0:
                os.setresuid(NOBODY, NOBODY, NOBODY)
            with Store(folder) as queue:
                queue.add([Spec("x")])

        said = problem_of(add)
        assert said.startswith(f"{folder}/queue.db can't be written (")
        assert said.endswith("choose another folder with --queue.")
        folder.chmod(0o755)
        if begun:
            (folder / "queue.db").chmod(0o644)
            with Store(folder) as queue:
                assert [entry.spec.name for entry in queue.entries()] == ["kept"]
        else:
            assert os.listdir(folder) == []
