"""The queue's SQLite file: whole or absent, durable, and its troubles in words.

Committed is committed, whatever is killed and whenever: write-ahead log, synchronous FULL (sqlite.org/wal.html). That
log needs memory that all its processes share, so on network file systems the rollback journal takes its place.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil

from engine.files import FileProblem, atomic_path

NAME = "queue.db"
VERSION = 1
"""Of the tables below; SQLite's user_version."""
OURS = 0x424F4E45
"""SQLite's application_id."""
PATIENCE = 30.0
"""Seconds to wait for other processes' transactions, each of which takes milliseconds."""
NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "panfs", "fuse", "9p", "afs")
"""How the types of file systems begin that several machines may write at the same time."""
FULL = 2**20
"""Bytes. With fewer left, an error of the file system is taken for a full disk."""

TABLES = """
CREATE TABLE entry (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, argv TEXT NOT NULL, gpus INTEGER NOT NULL,
    priority INTEGER NOT NULL, after TEXT NOT NULL, retries INTEGER NOT NULL, hours REAL NOT NULL,
    executor TEXT NOT NULL, state TEXT NOT NULL, held INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '',
    attempt INTEGER NOT NULL DEFAULT 0, token TEXT NOT NULL DEFAULT '', runner TEXT NOT NULL DEFAULT '',
    devices TEXT NOT NULL DEFAULT '[]', external TEXT NOT NULL DEFAULT '', exit_code INTEGER, added REAL NOT NULL,
    started REAL NOT NULL DEFAULT 0, ended REAL NOT NULL DEFAULT 0, cancelling INTEGER NOT NULL DEFAULT 0,
    spent INTEGER NOT NULL DEFAULT 0, short INTEGER NOT NULL DEFAULT 0, unborn INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX live ON entry (name) WHERE state IN ('queued', 'running');
CREATE INDEX named ON entry (name, id);
CREATE TABLE event (
    number INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, id INTEGER NOT NULL, name TEXT NOT NULL,
    before TEXT NOT NULL, after TEXT NOT NULL, reason TEXT NOT NULL
);
CREATE TABLE fact (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
"""argv, after and devices are JSON lists; `runner` is an Identity; `fact` holds what the whole queue has once."""


def connect(folder: Path) -> sqlite3.Connection:
    """Open the queue of a folder; where there is none, begin one.

    Raises:
        FileProblem: it is of a newer version, damaged, no queue, or can't be written; the file is as it was.
    """
    path = folder / NAME
    try:
        _create(path)
    except OSError as error:
        raise FileProblem(f"{path} can't be written ({error.strerror}): choose another folder with --queue.") from None
    with in_words(path):
        # rw: a file that has gone since must not come back empty.
        found = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", PATIENCE, isolation_level=None, uri=True)
    try:
        with in_words(path):
            _check(path, found)
            found.execute("PRAGMA synchronous = FULL")
        return found
    except BaseException:
        found.close()
        raise


def _create(path: Path) -> None:
    log = path.with_name(f"{NAME}-wal")
    orphaned = log.exists()  # looked for before the database, which another process may begin right now
    if path.exists():
        return
    if orphaned:
        raise FileProblem(f"{path} is missing beside {log.name}, which holds a part of it: put it back, or move both.")
    try:
        with in_words(path), atomic_path(path, overwrite=False) as part, closing(sqlite3.connect(part)) as begun:
            begun.executescript(
                f"PRAGMA journal_mode = MEMORY; BEGIN; {TABLES} PRAGMA application_id = {OURS}; "
                f"PRAGMA user_version = {VERSION}; COMMIT; PRAGMA journal_mode = {_journal(path.parent)}"
            )
    except FileProblem:
        if not path.exists():  # else another process was first
            raise


def _journal(folder: Path) -> str:
    """The journal that a file system allows."""
    place, mounts = folder.resolve(), {Path(m.mountpoint): m.fstype for m in psutil.disk_partitions(all=True)}
    kind = next((mounts[at] for at in (place, *place.parents) if at in mounts), "")
    return "DELETE" if kind.startswith(NETWORK) else "WAL"


def _check(path: Path, connection: sqlite3.Connection) -> None:
    """Raise FileProblem where the file is not of this program and version."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    if owner != OURS:
        raise FileProblem(f"{path} is no queue but another database: choose another folder with --queue.")
    if version > VERSION:
        raise FileProblem(
            f"{path} is of version {version}, and this program knows {VERSION}: update the program, or choose another "
            f"folder with --queue."
        )


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Turn SQLite's errors that users can mend into FileProblem."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if said := _sentence(path, error):
            raise FileProblem(said) from error
        raise


def _sentence(path: Path, error: sqlite3.DatabaseError) -> str:
    """What is wrong and what helps; nothing for mistakes of this program."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    unwritable = f"{path} can't be written ({error})"
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and shutil.disk_usage(path.parent).free < FULL):
        return f"The disk is full: nothing was written to {path}. Free some space and run again."
    return {
        sqlite3.SQLITE_IOERR: f"{unwritable}: see whether the disk or a quota is full.",
        sqlite3.SQLITE_READONLY: f"{unwritable}: get write permission, or choose another folder with --queue.",
        sqlite3.SQLITE_CANTOPEN: f"{unwritable}: get write permission, or choose another folder with --queue.",
        sqlite3.SQLITE_PERM: f"{unwritable}: get write permission, or choose another folder with --queue.",
        sqlite3.SQLITE_NOTADB: f"{path} is no database: move it away, or choose another folder with --queue.",
        sqlite3.SQLITE_CORRUPT: f"{path} is damaged ({error}): move it away and add the entries again.",
        sqlite3.SQLITE_BUSY: f"{path} was locked for {PATIENCE:.0f} s: end the process that hangs, and run again.",
    }.get(code, "")
