"""Any sequence of steps, also those of runners that were given up: what must hold after each of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from config import ConfigProblem
from engine.jobs.entry import BLOCKING, ENDED, LOOP, Entry, Spec
from engine.jobs.process import Identity
from engine.jobs.store import Store

NAMES = ("a", "b", "c")
ME = Identity.me()

some = st.sampled_from([0, 0, 0, 1, 2, 3, 5, 8])
"""Which of the entries or tokens there are, from the newest on."""
names = st.sampled_from(NAMES)

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""A folder that flushing costs nothing in: thousands of steps, and none of them is about the disk."""


class Queue(RuleBasedStateMachine):
    """Users, schedulers and runners at one queue, each with all that they ever knew."""

    @initialize(reopened=st.booleans())
    def begin(self, reopened: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="queue-", dir=MEMORY))
        self.store = Store(self.folder)
        self.reopened = reopened
        self.tokens: list[tuple[int, str]] = []
        """All that were ever given out."""
        self.born: set[str] = set()
        """Those whose runner has begun."""
        self.attempts: dict[int, int] = {}
        self.before: dict[int, Entry] = {}
        self.may_leave: set[int] = set()
        """Entries that the last step may have taken out of an ended state."""

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)

    def pick(self, number: int, states: Collection[str] | None = None) -> Entry | None:
        found = self.store.entries(states=states)
        return found[-1 - number % len(found)] if found else None

    # Users

    @rule(name=names, after=st.sets(names, max_size=2), retries=st.integers(0, 3))
    def add(self, name: str, after: set[str], retries: int) -> None:
        live = {entry.spec.name for entry in self.store.entries(states=["queued", "running"])}
        try:
            (new,) = self.store.add([Spec(name, after=tuple(sorted(after)), retries=retries)])
        except ConfigProblem:
            assert name in live or self.loose(after - {name}) or self.waits_for(name, after)
        else:
            assert name not in live
            self.attempts[new] = 0

    def loose(self, parents: Collection[str]) -> bool:
        """Whether one of them is not there or will not be done."""
        states = self.store.states()
        return any(states.get(parent) in (None, *BLOCKING) for parent in parents)

    def waits_for(self, name: str, after: Collection[str]) -> bool:
        """Whether one of `after` is or waits for `name`, by way of what is queued or running."""
        live = {entry.spec.name: entry.spec.after for entry in self.store.entries(states=["queued", "running"])}
        reached, left = set[str](), list(after)
        while left:
            reached.add(parent := left.pop())
            left += [each for each in live.get(parent, ()) if each not in reached]
        return name in reached

    @rule(number=some)
    def cancel(self, number: int) -> None:
        if entry := self.pick(number):
            changed = self.store.cancel([entry.id])
            assert bool(changed) == (entry.state not in ENDED and not entry.cancelling)
            assert all(each.state == "cancelled" or each.cancelling for each in changed)

    @rule(number=some, release=st.booleans())
    def hold(self, number: int, release: bool) -> None:
        if entry := self.pick(number, ["queued"]):
            (self.store.release if release else self.store.hold)([entry.id])
            assert self.store.get(entry.id).held is not release

    @rule(number=some)
    def retry(self, number: int) -> None:
        if entry := self.pick(number, ENDED):
            newest = self.store.newest()[entry.spec.name] == entry
            try:
                again = self.store.retry([entry.id])
            except ConfigProblem:
                # Or it would take along something that waits for it in a circle: the names tell too little to say so.
                assert not newest or entry.spec.after
                return
            assert newest
            assert not self.loose(entry.spec.after)
            assert entry.id in [each.id for each in again]
            assert all(self.before[each.id].state == "skipped" for each in again if each.id != entry.id)
            self.may_leave = {each.id for each in again}
            self.attempts |= dict.fromkeys(self.may_leave, 0)

    @rule(number=some)
    def remove(self, number: int) -> None:
        if entry := self.pick(number, ENDED):
            try:
                self.store.remove([entry.id])
            except ConfigProblem:
                return
            self.before.pop(entry.id)

    @rule(pause=st.booleans())
    def pause(self, pause: bool) -> None:
        (self.store.pause if pause else self.store.unpause)()
        assert self.store.paused is pause

    # Schedulers

    @rule(number=some, states=st.sampled_from([("queued",), None]), begins=st.booleans())
    def claim(self, number: int, states: Collection[str] | None, begins: bool) -> None:
        if entry := self.pick(number, states):
            token = self.store.claim(entry.id, (0,))
            done = all(self.store.states()[name] == "done" for name in entry.spec.after)
            assert bool(token) == (entry.state == "queued" and not entry.held and not self.store.paused and done)
            if token:
                assert (entry.id, token) not in self.tokens
                self.tokens.append((entry.id, token))
                self.attempts[entry.id] += 1
                if begins:
                    self.began(0)

    @rule()
    def skip(self) -> None:
        skipped = self.store.skip_children()
        assert all(entry.state == "skipped" for entry in skipped)
        states = self.store.states()
        for entry in self.store.entries(states=["queued"]):
            assert not [name for name in entry.spec.after if states.get(name) in BLOCKING]

    # Runners, and what is said about them, with tokens old and new

    @precondition(lambda self: self.tokens)
    @rule(number=some)
    def began(self, number: int) -> None:
        entry_id, token = self.tokens[-1 - number % len(self.tokens)]
        runs = self.runs(entry_id, token)
        assert self.store.began(entry_id, token, ME) == (runs and token not in self.born)
        self.born |= {token} if runs else set()

    @precondition(lambda self: self.tokens)
    @rule(
        number=some,
        how=st.sampled_from(["exit", "dead", "innocent", "fail"]),
        code=st.sampled_from([0, 1, 2, 75, 130, -9]),
        progress=st.booleans(),
    )
    def over(self, number: int, how: str, code: int, progress: bool) -> None:
        entry_id, token = self.tokens[-1 - number % len(self.tokens)]
        runs = self.runs(entry_id, token)
        cancelling = runs and self.store.get(entry_id).cancelling
        told = {
            "exit": lambda: self.store.ended(entry_id, token, code, "", progress),
            "dead": lambda: self.store.give_back(entry_id, token, "dead", counts=True, progress=progress),
            "innocent": lambda: self.store.give_back(entry_id, token, "reboot", counts=False, progress=progress),
            "fail": lambda: self.store.fail(entry_id, token, "too long"),
        }[how]()
        assert told == runs
        if runs:
            state = self.store.get(entry_id).state
            if how == "exit" and code == 0:
                assert state == "done"
            elif cancelling:
                assert state == "cancelled"
            elif how == "innocent":
                assert state == "queued"
            else:
                assert state in {"exit": ("queued", "failed"), "dead": ("queued", "lost"), "fail": ("failed",)}[how]

    def runs(self, entry_id: int, token: str) -> bool:
        """Whether it is the newest token of a running entry."""
        newest = [each for entry, each in self.tokens if entry == entry_id][-1]
        return token == newest and bool(self.store.entries([entry_id], ["running"]))

    # What must hold

    @invariant()
    def holds(self) -> None:
        if self.reopened:
            self.store.close()
            self.store = Store(self.folder)
        entries = self.store.entries()
        for entry in entries:
            self.check(entry)
        live = [entry.spec.name for entry in entries if entry.state in ("queued", "running")]
        assert len(live) == len({*live})
        assert {*self.before} <= {entry.id for entry in entries}
        for entry in entries:
            if entry.state == "queued":
                assert {*entry.spec.after} <= self.store.states().keys()
                assert not self.waits_for(entry.spec.name, entry.spec.after)
        self.before, self.may_leave = {entry.id: entry for entry in entries}, set()

    def check(self, entry: Entry) -> None:
        running, was = entry.state == "running", self.before.get(entry.id)
        assert bool(entry.token) == bool(entry.devices) == running
        if running:
            assert entry.token == [token for each, token in self.tokens if each == entry.id][-1]
            assert (entry.runner == ME) == (entry.token in self.born)
        else:
            assert entry.runner is None
            assert not entry.cancelling
        assert entry.attempt == self.attempts[entry.id]
        assert entry.spent <= min(entry.spec.retries, entry.attempt)
        assert entry.short <= min(LOOP, entry.attempt)
        assert entry.state in ENDED or entry.short < LOOP or entry.held or running
        assert not entry.held or entry.state == "queued"
        assert (entry.ended > 0) == (entry.state in ENDED)
        if was is not None and was.state in ENDED and entry.id not in self.may_leave:
            assert entry == was

    @invariant()
    def events_lead_there(self) -> None:
        state: dict[int, str] = {}
        for event in self.store.events():
            if event.id:
                assert event.before == state.get(event.id, "")
                state[event.id] = event.after
        assert {entry.id: entry.state for entry in self.store.entries()} == {k: v for k, v in state.items() if v}


TestQueue = Queue.TestCase
TestQueue.settings = settings(derandomize=True, max_examples=60, stateful_step_count=50, deadline=None)
