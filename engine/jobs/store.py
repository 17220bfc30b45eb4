"""The queue's rules: how entries go from state to state. Each step is one durable transaction.

An attempt has a token. Whoever reports about it gives the token back, and is told False where the entry has gone on
without it: so of a runner that was given up and one that took its place, only one ever begins.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from config import ConfigProblem, suggest
from engine.jobs.entry import (
    BLOCKING,
    ENDED,
    Entry,
    Spec,
    Verdict,
    blocked,
    counted,
    cycle,
    described,
    may_start,
    outcome,
    skipped_by,
    uncounted,
)
from engine.jobs.process import Identity
from engine.jobs.rows import PAUSED, SCHEDULER, Rows

IDLE: Mapping[str, Any] = {"token": "", "runner": "", "devices": "[]", "external": "", "cancelling": False}
"""Columns of an entry that does not run."""


class Store(Rows):
    """A queue and what may be done with it; Rows says how it is opened, read, and what goes wrong with its file."""

    # What users do

    def add(self, specs: Sequence[Spec]) -> list[int]:
        """Add entries, all or none; returns their ids in the order of `specs`.

        Raises:
            ConfigProblem: a name is queued or running already or comes twice; an `after` is no entry, or one that has
                failed; a cycle. One line each.
        """
        with self._writing():
            self._check_names([spec.name for spec in specs])
            ids = [self._insert(spec) for spec in specs]
            self._check_parents(self.entries(ids))
            return ids

    def cancel(self, ids: Collection[int], reason: str = "cancelled") -> list[Entry]:
        """Cancel what is queued, and ask what runs to stop (`cancelling`); what has ended already stays.

        Returns:
            The entries that this changes, as they are now.
        """
        with self._writing():
            live = [entry for entry in self._asked(ids) if entry.state not in ENDED and not entry.cancelling]
            for entry in live:
                if entry.state == "running" and (entry.runner or entry.spec.executor != "local"):
                    self._note(entry, "running", f"to be stopped: {reason}")
                    self._set(entry.id, {"cancelling": True, "reason": reason})
                else:  # its runner, if it was to begin, is told False
                    self._move(entry, Verdict("cancelled", reason))
            return self.entries([entry.id for entry in live])

    def hold(self, ids: Collection[int], reason: str = "held") -> None:
        """Keep queued entries from starting."""
        with self._writing():
            for entry in self._asked(ids, ["queued"], "only what is queued can be held"):
                if not entry.held:
                    self._note(entry, "queued", reason)
                    self._set(entry.id, {"held": True, "reason": reason})

    def release(self, ids: Collection[int]) -> None:
        """Let held entries start; a crash loop is counted anew."""
        with self._writing():
            for entry in self._asked(ids, ["queued"], "only what is queued can be released"):
                if entry.held:
                    self._note(entry, "queued", "released")
                    self._set(entry.id, {"held": False, "reason": "", "short": 0, "unborn": 0})

    def set_priority(self, ids: Collection[int], priority: int) -> None:
        """The highest goes first."""
        with self._writing():
            for entry in self._asked(ids, ("queued", "running"), "a priority is for what is queued or running"):
                self._note(entry, entry.state, f"priority {priority}")
                self._set(entry.id, {"priority": priority})

    def remove(self, ids: Collection[int]) -> None:
        """Forget entries that have ended; their experiments stay where they are."""
        with self._writing():
            gone = {e.id: e for e in self._asked(ids, ENDED, "only what has ended can be removed: cancel it first")}
            needed = self.newest({name for entry in self.entries(states=["queued"]) for name in entry.spec.after})
            if missed := [str(entry) for entry in needed.values() if entry.id in gone]:
                raise ConfigProblem(f"Queued entries come after {', '.join(missed)}: cancel those first.")
            for entry in gone.values():
                self._note(entry, "", "removed")
                self._delete(entry.id)

    def retry(self, ids: Collection[int]) -> list[Entry]:
        """Queue entries that have ended again, attempts counted from 0, with all that was skipped because of them.

        Returns:
            All entries that are queued again.

        Raises:
            ConfigProblem: one has not ended, a newer entry of its name exists, or what it comes after has failed or is
                not there.
        """
        with self._writing():
            asked = self._asked(ids, ENDED, "only what has ended can be run again")
            newest = self.newest()
            again = {entry.id: entry for entry in [*asked, *skipped_by(asked, newest)]}
            for entry in again.values():
                if (newer := newest[entry.spec.name]).id != entry.id:
                    raise ConfigProblem(f"{entry} was added again as entry {newer.id}: use that one.")
                self._set(entry.id, {"attempt": 0, "exit_code": None, "started": 0.0})
                self._move(entry, Verdict("queued", "run again"))
            self._check_parents(asked)
            return self.entries(again)

    def pause(self) -> None:
        """Claim nothing until `unpause`; what runs goes on."""
        self._set_paused(True)

    def unpause(self) -> None:
        """Claim again."""
        self._set_paused(False)

    # What schedulers do

    def beat(self, scheduler: Identity) -> None:
        """Note which scheduler works. Its lock shows that it lives, so once is enough: each call is a durable write."""
        with self._writing():
            self._set_fact(SCHEDULER, scheduler.to_json())

    def claim(self, entry_id: int, devices: Sequence[int]) -> str | None:
        """Begin an attempt.

        Returns:
            Its token; None where the entry is not queued (any more), held, or has to wait for another, or the queue is
            paused.
        """
        with self._writing():
            entry = next(iter(self.entries([entry_id], ["queued"])), None)
            if entry is None or self.paused or not may_start(entry, self.newest(entry.spec.after)):
                return None
            attempt, token = entry.attempt + 1, os.urandom(8).hex()
            where = f" on GPU {', '.join(map(str, devices))}" if devices else ""
            self._note(entry, "running", f"attempt {attempt}{where}")
            columns = {"attempt": attempt, "token": token, "devices": json.dumps(list(devices)), "started": time.time()}
            self._set(entry.id, {"state": "running", "reason": "", **columns})
            return token

    def external(self, entry_id: int, token: str, text: str) -> bool:
        """Note what another executor calls the attempt."""
        with self._writing():
            if entry := self._attempt(entry_id, token):
                self._set(entry.id, {"external": text})
            return entry is not None

    def give_back(
        self,
        entry_id: int,
        token: str,
        reason: str,
        counts: bool,
        progress: bool = False,
        unless_begun: bool = False,
    ) -> bool:
        """An attempt is over, without its own word: its runner is dead, or never began.

        Args:
            counts: whether it uses up a retry; without one left the entry is lost.
            progress: whether it has left a newer state of its experiment.
            unless_begun: do nothing where a runner has begun meanwhile.
        """
        with self._writing():
            entry = self._attempt(entry_id, token)
            if entry and unless_begun and entry.runner:
                return False
            if entry and counts:
                self._move(entry, counted(entry, reason, time.time() - entry.started, progress, exhausted="lost"))
            elif entry:
                self._move(entry, uncounted(entry, reason, progress))
            return entry is not None

    def fail(self, entry_id: int, token: str, reason: str, state: Literal["failed", "lost"] = "failed") -> bool:
        """End an attempt and its entry, whatever retries are left."""
        with self._writing():
            if entry := self._attempt(entry_id, token):
                self._move(entry, Verdict(state, reason))
            return entry is not None

    def skip_children(self) -> list[Entry]:
        """Skip what waits for something that will not be done, to any depth; returns it."""
        if not blocked(self.entries(states=["queued"]), self.states()):  # nearly always: no need to lock anyone out
            return []
        with self._writing():
            found = blocked(self.entries(states=["queued"]), self.states())
            for entry, why in found:
                self._move(entry, Verdict("skipped", why))
            return self.entries([entry.id for entry, _ in found])

    # What runners do

    def began(self, entry_id: int, token: str, runner: Identity) -> bool:
        """Take an attempt on; where it is False, the runner must leave at once. Only one is ever told True."""
        with self._writing():
            entry = self._attempt(entry_id, token)
            if entry is None or entry.runner:
                return False
            self._note(entry, "running", f"began as process {runner.pid} on {runner.host}")
            self._set(entry.id, {"runner": runner.to_json(), "started": time.time(), "unborn": 0})
            return True

    def ended(self, entry_id: int, token: str, exit_code: int, reason: str, progress: bool) -> bool:
        """The experiment has exited: done, failed, or queued for a retry.

        Args:
            reason: where it says more than the exit code, else empty.
            progress: whether it has left a newer state of its experiment.
        """
        with self._writing():
            entry = self._attempt(entry_id, token)
            if entry is None:
                return False
            why, result = reason or described(exit_code), outcome(exit_code)
            self._set(entry.id, {"exit_code": exit_code})
            if result == "again":
                self._move(entry, counted(entry, why, time.time() - entry.started, progress, exhausted="failed"))
            else:
                self._move(entry, Verdict(result, reason if result == "done" else why))
            return True

    # What several of these need

    def _attempt(self, entry_id: int, token: str) -> Entry | None:
        """The entry where this attempt at it runs."""
        return next((entry for entry in self.entries([entry_id], ["running"]) if entry.token == token), None)

    def _check_names(self, names: Sequence[str]) -> None:
        """Raise ConfigProblem where a name is not free."""
        live = self.entries(states=["queued", "running"], names=names)
        faults = [f"{entry} is {entry.state}: wait for it, cancel it, or take another exp_name." for entry in live]
        twice = [name for name, times in Counter(names).items() if times > 1]
        faults += [f"{name} comes more than once: give each entry its own exp_name." for name in twice]
        if faults:
            raise ConfigProblem("\n".join(faults))

    def _check_parents(self, entries: Sequence[Entry]) -> None:
        """Raise ConfigProblem where these entries come after something that is not there or will not be done."""
        states, faults = self.states(), []
        for entry, parent in ((each, name) for each in entries for name in each.spec.after):
            if parent not in states:
                faults.append(f"{entry} comes after {parent}, which is not in the queue{suggest(parent, states)}.")
            elif states[parent] in BLOCKING:
                faults.append(f"{entry} comes after {parent}, which is {states[parent]}: retry that first.")
        if circle := cycle(self.entries(states=["queued", "running"])):
            faults.append(f"{' after '.join(circle)}: none of these could ever start.")
        if faults:
            raise ConfigProblem("\n".join(faults))

    def _move(self, entry: Entry, to: Verdict) -> None:
        """The entry leaves its state: as `to` says or, where it was to be stopped and has not finished, cancelled."""
        if entry.cancelling and to.state != "done":
            to = Verdict("cancelled", entry.reason)
        self._note(entry, to.state, to.reason)
        self._set(entry.id, {**asdict(to), **IDLE, "ended": time.time() if to.state in ENDED else 0.0})

    def _set_paused(self, paused: bool) -> None:
        with self._writing():
            if paused != self.paused:
                self._set_fact(PAUSED, "yes" if paused else "")
                self._event(0, "", "", "", "paused" if paused else "resumed")
