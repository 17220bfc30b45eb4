"""The queue's file: how it begins, and one sentence for each thing that can be wrong with it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from engine.files import FileProblem
from engine.jobs import database
from engine.jobs.entry import Spec
from engine.jobs.store import Store


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "queue") as opened:
        yield opened



def test_it_begins_once_and_leaves_nothing_beside_itself(tmp_path: Path) -> None:
    folder = tmp_path / "log" / "queue"
    for _ in range(2):
        with Store(folder) as queue:
            assert queue.path == folder / "queue.db"
    assert os.listdir(folder) == ["queue.db"]


@pytest.mark.parametrize(("kind", "mode"), [("ext4", "wal"), ("nfs4", "delete"), ("fuse.sshfs", "delete")])
def test_network_file_systems_get_the_journal_that_they_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, mode: str
) -> None:
    mounts = [SimpleNamespace(mountpoint="/", fstype="xfs"), SimpleNamespace(mountpoint=str(tmp_path), fstype=kind)]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    with Store(tmp_path / "queue") as queue:
        queue.add([Spec("x")])
    with closing(sqlite3.connect(tmp_path / "queue/queue.db")) as plain:
        assert plain.execute("PRAGMA journal_mode").fetchone() == (mode,)


def test_every_commit_is_flushed(queue: Store) -> None:
    assert queue._read("PRAGMA synchronous")[0][0] == 2
    assert queue._read("PRAGMA journal_mode")[0][0] == "wal"


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * (path.stat().st_size - 4096))


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as plain:
        plain.execute(f"PRAGMA user_version = {database.VERSION + 1}")


def another(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as plain:
        plain.execute("CREATE TABLE entry (id)")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (newer, "is of version 2, and this program knows 1: update the program, or choose another folder"),
        (another, "is no queue but another database: choose another folder with --queue."),
        (lambda path: path.write_bytes(b""), "is no queue but another database: choose another folder with --queue."),
        (
            lambda path: path.write_text("experiments = []\n" * 99),
            "is no database: move it away, or choose another folder with --queue.",
        ),
        (damage, r"is damaged \(.*\): move it away and add the entries again."),
        (lambda path: path.rename(path.with_name("queue.db-wal")), "is missing beside queue.db-wal, which holds"),
    ],
)
def test_a_file_that_is_no_queue_is_left_alone(tmp_path: Path, harm: Callable[[Path], None], said: str) -> None:
    with Store(tmp_path) as queue:
        queue.add([Spec("x")])
    path = tmp_path / "queue.db"
    harm(path)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    with pytest.raises(FileProblem, match=f"^{path} {said}"), Store(tmp_path) as queue:
        queue.entries()
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "queue").write_text("")
    with pytest.raises(FileProblem, match=r"queue.db can't be written \(.*\): choose another folder with --queue.$"):
        Store(tmp_path / "queue")


def test_a_lock_that_stays_is_said(queue: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "PATIENCE", 0.01)
    with Store(queue.folder) as other, queue._writing():
        with pytest.raises(FileProblem, match=r"queue.db was locked for 0 s: end the process that hangs"):
            other.add([Spec("x")])
        assert other.entries() == []
    assert queue.add([Spec("x")]) == [1]
