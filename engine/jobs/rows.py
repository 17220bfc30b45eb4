"""The queue's table as such: what is in it, and single changes of it inside of transactions. Which changes there may be
is decided in engine/jobs/store.py; the queue's SQL is here.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from config import ConfigProblem
from engine.jobs import database
from engine.jobs.entry import Entry, Event, Spec, State
from engine.jobs.process import Identity

PAUSED, SCHEDULER = "paused", "scheduler"
"""Facts about the whole queue."""
OF_SPEC = tuple(field.name for field in fields(Spec))


class Rows:
    """The queue of a folder; begun where there is none. Any number of processes may have it open.

    For one thread, not to be used across a fork. All methods raise FileProblem where the database can't be read or
    written (disk full, no permission, damaged); it then is as it was before the call.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / database.NAME
        self._connection = database.connect(folder)
        self._connection.row_factory = sqlite3.Row
        self._version = self._data_version()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it; what a method has returned from is on disk already."""
        self._connection.close()

    def entries(
        self,
        ids: Collection[int] | None = None,
        states: Collection[str] | None = None,
        names: Collection[str] | None = None,
    ) -> list[Entry]:
        """Entries of these ids, states and names (None: of all), by id."""
        asked = {column: g for column, g in (("id", ids), ("state", states), ("name", names)) if g is not None}
        # One JSON list each: the number of parameters of a statement is limited.
        parts = [f"{column} IN (SELECT value FROM json_each(?))" for column in asked]
        where = f"WHERE {' AND '.join(parts)}" if parts else ""
        values = [json.dumps(list(given)) for given in asked.values()]
        return [_entry(row) for row in self._read(f"SELECT * FROM entry {where} ORDER BY id", values)]

    def get(self, entry_id: int) -> Entry:
        """The entry of this id.

        Raises:
            ConfigProblem: there is none.
        """
        return self._asked([entry_id])[0]

    def newest(self, names: Collection[str] | None = None) -> dict[str, Entry]:
        """Name of each experiment (None: of all) -> its newest entry, the one that `after` means."""
        return {entry.spec.name: entry for entry in self.entries(names=names)}  # they come by id

    def states(self) -> dict[str, State]:
        """Name of each experiment -> state of its newest entry."""
        return {row["name"]: row["state"] for row in self._read("SELECT name, state FROM entry ORDER BY id")}

    def events(self, ids: Collection[int] | None = None, since: int = 0) -> list[Event]:
        """What has happened after the event of number `since`, to these entries or (None) to all, in order."""
        where = "" if ids is None else "AND id IN (SELECT value FROM json_each(?))"
        values = [since] if ids is None else [since, json.dumps(list(ids))]
        rows = self._read(f"SELECT * FROM event WHERE number > ? {where} ORDER BY number", values)
        return [Event(**dict(row)) for row in rows]

    @property
    def paused(self) -> bool:
        """Whether nothing is claimed at the moment."""
        return bool(self._fact(PAUSED))

    def scheduler(self) -> Identity | None:
        """The scheduler that was the last to begin; it may be gone."""
        found = self._fact(SCHEDULER)
        return Identity.from_json(found) if found else None

    def changed(self) -> bool:
        """Whether another process, or another Store, has written since the last call; costs microseconds."""
        before, self._version = self._version, self._data_version()
        return before != self._version

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: all of it is on disk afterwards, or, after any error, nothing."""
        with database.in_words(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # some errors of the disk have rolled back already
                    self._connection.execute("ROLLBACK")
                raise

    def _read(self, statement: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with database.in_words(self.path):
            return self._connection.execute(statement, values).fetchall()

    def _data_version(self) -> int:
        return int(self._read("PRAGMA data_version")[0][0])

    def _asked(self, ids: Collection[int], states: Collection[State] | None = None, rule: str = "") -> list[Entry]:
        """The entries of these ids; raises ConfigProblem where one is missing or in none of these states."""
        found = {entry.id: entry for entry in self.entries(ids)}
        faults = [f"entry {each} is not in the queue: `ls` shows what is." for each in ids if each not in found]
        if states is not None:
            faults += [f"{e} is {e.state}: {rule}." for e in found.values() if e.state not in states]
        if faults:
            raise ConfigProblem("\n".join(faults))
        return [found[each] for each in dict.fromkeys(ids)]

    def _insert(self, spec: Spec) -> int:
        lists = {"argv": json.dumps(spec.argv), "after": json.dumps(spec.after)}
        values = {**vars(spec), **lists, "state": "queued", "added": time.time()}
        marks = ", ".join("?" * len(values))
        statement = f"INSERT INTO entry ({', '.join(values)}) VALUES ({marks})"
        entry_id = self._connection.execute(statement, [*values.values()]).lastrowid
        assert entry_id is not None
        self._event(entry_id, spec.name, "", "queued", "added")
        return entry_id

    def _delete(self, entry_id: int) -> None:
        self._connection.execute("DELETE FROM entry WHERE id = ?", [entry_id])

    def _set(self, entry_id: int, columns: Mapping[str, Any]) -> None:
        assigned = ", ".join(f"{column} = ?" for column in columns)
        self._connection.execute(f"UPDATE entry SET {assigned} WHERE id = ?", [*columns.values(), entry_id])

    def _note(self, entry: Entry, after: str, reason: str) -> None:
        self._event(entry.id, entry.spec.name, entry.state, after, reason)

    def _event(self, entry_id: int, name: str, before: str, after: str, reason: str) -> None:
        self._connection.execute(
            "INSERT INTO event (time, id, name, before, after, reason) VALUES (?, ?, ?, ?, ?, ?)",
            [time.time(), entry_id, name, before, after, reason],
        )

    def _fact(self, key: str) -> str:
        found = self._read("SELECT value FROM fact WHERE key = ?", [key])
        return str(found[0]["value"]) if found else ""

    def _set_fact(self, key: str, value: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", [key, value])


def _entry(row: sqlite3.Row) -> Entry:
    columns = dict(row)
    columns |= {name: tuple(json.loads(columns[name])) for name in ("argv", "after", "devices")}
    columns |= {name: bool(columns[name]) for name in ("held", "cancelling")}
    columns["runner"] = Identity.from_json(columns["runner"]) if columns["runner"] else None
    return Entry(spec=Spec(**{name: columns.pop(name) for name in OF_SPEC}), **columns)
