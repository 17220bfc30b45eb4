"""The scheduler's part of what runs on clusters: hands entries over, asks how they are, notes that in the table."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import groupby

from config import ConfigProblem
from engine.jobs.entry import Entry, may_start
from engine.jobs.executor import ClusterSilent, Executor, Refused, Report, cluster
from engine.jobs.store import Store

LOOK = 5.0
"""Seconds between two questions to a cluster: squeue is work for a controller that all users share."""


class Clusters:
    """Every executor but the local one. No package of theirs is imported before an entry asks for it.

    Args:
        command: interpreter and script that the flags of an entry are for.
    """

    def __init__(self, store: Store, command: Sequence[str]) -> None:
        self.store, self.command = store, command
        self.executors: dict[str, Executor] = {}
        self.said: dict[str, str] = {}
        """Executor -> why it was no use when it was last asked."""
        self.next_look = 0.0

    def step(self) -> bool:
        """One pass, every LOOK seconds; returns whether it changed the table.

        A cluster that is silent, or that this machine can't use, costs a line on stderr; its entries stay as they are.
        """
        if time.monotonic() < self.next_look:
            return False
        self.next_look = time.monotonic() + LOOK
        live = [e for e in self.store.entries(states=["queued", "running"]) if e.spec.executor != "local"]
        changed = False
        for name, entries in groupby(sorted(live, key=lambda e: e.spec.executor), key=lambda e: e.spec.executor):
            try:
                changed |= self._look(name, list(entries))
                self.said.pop(name, None)
            except (ClusterSilent, ConfigProblem) as problem:
                if self.said.get(name) != str(problem):
                    self.said[name] = str(problem)
                    print(f"executor {name}: {problem}", file=sys.stderr, flush=True)
        return changed

    def _look(self, name: str, entries: Sequence[Entry]) -> bool:
        """See to what runs on one executor, then hand over what may start there."""
        if name not in self.executors:
            self.executors[name] = cluster(name, self.store.folder, self.command)
        executor = self.executors[name]
        running = [entry for entry in entries if entry.state == "running"]
        reports = executor.poll(running) if running else {}
        changed = False
        for entry in running:
            changed |= settle(self.store, entry, reports[entry.id])
            if entry.cancelling and reports[entry.id].state in ("waiting", "running"):
                executor.cancel(entry)
        waiting = [entry for entry in entries if entry.state == "queued"]
        # Parents first, so that their jobs have ids by the time that their children's are handed over.
        for entry in sorted(waiting, key=lambda e: (-e.spec.priority, e.id)):
            changed |= self._start(executor, entry)
        return changed

    def _start(self, executor: Executor, entry: Entry) -> bool:
        newest = self.store.newest(entry.spec.after)
        parents = [parent for parent in newest.values() if parent.state == "running"]
        if not may_start(entry, newest) or not all(executor.waits and parent.external for parent in parents):
            return False
        token = self.store.claim(entry.id, ())
        if token is None:
            return False
        try:
            self.store.external(entry.id, token, executor.start(self.store.get(entry.id), token, parents))
        except Refused as problem:
            self.store.give_back(entry.id, token, str(problem), counts=False)
        # Silence is passed on: it may have taken the attempt, which the next look shows.
        return True


def settle(store: Store, entry: Entry, report: Report) -> bool:
    """Note in the table what has become of an attempt; returns whether it is over or has begun."""
    began = entry.runner is None and report.runner is not None
    if began and report.runner is not None:
        store.began(entry.id, entry.token, report.runner)
    arguments = entry.id, entry.token
    if report.state == "ended" and report.exit_code is not None:
        return store.ended(*arguments, report.exit_code, report.reason, report.progress)
    if report.state == "failed":
        return store.fail(*arguments, report.reason)
    if report.state in ("lost", "returned"):
        return store.give_back(*arguments, report.reason, report.state == "lost", report.progress)
    return began
