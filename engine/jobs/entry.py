"""Entries of the queue, what has happened to them, and what becomes of one when an attempt at it is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Literal

from config import ConfigProblem
from engine.jobs.process import Identity
from engine.stop import EXIT_INTERRUPTED, EXIT_RESUMABLE

State = Literal["queued", "running", "done", "failed", "cancelled", "skipped", "lost"]
"""`running` from its claim on; `lost`: it went away and had no retries left; `skipped`: what it comes after failed."""
ENDED: tuple[State, ...] = ("done", "failed", "cancelled", "skipped", "lost")
"""States that only `retry` leads out of."""
BLOCKING: tuple[State, ...] = ("failed", "cancelled", "skipped", "lost")
"""States in which an entry takes those that come after it along."""

SHORT = 300.0
"""Seconds. An attempt that ends sooner and has left no newer state of its experiment came to nothing."""
LOOP = 3
"""So many such attempts in a row are a crash loop."""
UNBORN = 10
"""Times in a row that no runner begins, before the entry is held: so often, nobody has killed them all by chance."""


@dataclass(frozen=True)
class Spec:
    """What shall be run, and when.

    Raises:
        ConfigProblem: a number is out of its range, or it has no name.
    """

    name: str
    """exp_name; only one entry of it may be queued or running."""
    argv: tuple[str, ...] = ()
    """Flags of run_exp.py."""
    gpus: int = 0
    """How many it needs; 0 runs on the CPU."""
    priority: int = 0
    """The highest goes first."""
    after: tuple[str, ...] = ()
    """Names of entries that must be done before; of each name, the newest entry counts."""
    retries: int = 2
    """How often it is run again after it was killed, preempted or lost."""
    hours: float = 0.0
    """An attempt is stopped after this time; 0 is no limit."""
    executor: str = "local"

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigProblem("An entry has no name: give it an exp_name.")
        for field, value in (("gpus", self.gpus), ("retries", self.retries), ("hours", self.hours)):
            if not 0 <= value < float("inf"):
                raise ConfigProblem(f"{self.name}: {field} is {value}, but must be 0 or more.")


@dataclass(frozen=True)
class Entry:
    """A row of the queue's table."""

    id: int
    """From 1, in the order in which they were added; never given twice."""
    spec: Spec
    state: State
    held: bool
    """Queued, and stays so until it is released."""
    reason: str
    """Why it is in its state; empty where there is nothing to say."""
    attempt: int
    """Number of the attempt, 0 before the first: how often it was claimed since it was added or retried."""
    token: str
    """Of the running attempt; as `runner`, `devices` and `external`, nothing otherwise."""
    runner: Identity | None
    """None until the runner has begun."""
    devices: tuple[int, ...]
    """Indices of its GPUs."""
    external: str
    """What another executor calls the attempt."""
    exit_code: int | None
    """Of the last attempt that has ended by itself."""
    added: float
    """Unix time, as the next two; 0 where it has not happened."""
    started: float
    """When the last attempt was claimed, then when it began."""
    ended: float
    cancelling: bool
    """It runs and is to be stopped, not to be run again."""
    spent: int
    """Retries used up."""
    short: int
    """Attempts in a row that came to nothing."""
    unborn: int
    """Attempts in a row whose runner has not begun."""

    def __str__(self) -> str:
        return f"{self.spec.name} (entry {self.id})"


@dataclass(frozen=True)
class Event:
    """One step of an entry, or of the whole queue."""

    number: int
    """From 1, in the order of events."""
    time: float
    """Unix time."""
    id: int
    """Of the entry; 0 for the queue."""
    name: str
    before: str
    """State; empty where it was added."""
    after: str
    """State; empty where it was removed."""
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What becomes of an entry when an attempt is over."""

    state: State
    reason: str
    held: bool = False
    spent: int = 0
    short: int = 0
    unborn: int = 0


def outcome(exit_code: int) -> Literal["done", "failed", "again"]:
    """What an exit code of run_exp.py says about its experiment.

    1 (a file, the data or the program is wrong) and 2 (a setting is wrong) would come again. All others but 0 were
    caused from outside: 75, 130, and signals, be they -9 or 137.
    """
    if exit_code == 0:
        return "done"
    return "failed" if exit_code in (1, 2) else "again"


def described(exit_code: int) -> str:
    """An exit code in words."""
    known = {2: "a setting is wrong", EXIT_RESUMABLE: "stopped and saved", EXIT_INTERRUPTED: "interrupted and saved"}
    return f"exit code {exit_code}" + (f", {known[exit_code]}" if exit_code in known else "")


def counted(entry: Entry, why: str, seconds: float, progress: bool, exhausted: State) -> Verdict:
    """What becomes of an entry whose attempt was stopped from outside and uses up a retry.

    Args:
        why: what has stopped it.
        seconds: how long the attempt took.
        progress: whether it has left a newer state of its experiment.
        exhausted: the state when no retries are left.
    """
    short = 0 if progress or seconds >= SHORT else entry.short + 1
    if short >= LOOP:  # even with retries left: each of them costs a GPU some minutes, all night
        reason = f"crash loop: {short} short attempts in a row without progress; the last one: {why}"
        return Verdict("queued", reason, held=True, spent=entry.spent, short=short)
    if entry.spent >= entry.spec.retries:
        return Verdict(exhausted, f"{why}; retries left: none of {entry.spec.retries}")
    spent = entry.spent + 1
    return Verdict("queued", f"{why}; retry {spent} of {entry.spec.retries}", spent=spent, short=short)


def uncounted(entry: Entry, why: str, progress: bool) -> Verdict:
    """What becomes of an entry whose attempt is over through no fault of its own; arguments as above."""
    unborn = 0 if entry.runner or progress else entry.unborn + 1
    held = unborn >= UNBORN
    reason = f"its runner did not begin {unborn} times in a row; the last time: {why}" if held else why
    return Verdict("queued", reason, held, entry.spent, entry.short, unborn)


def may_start(entry: Entry, newest: Mapping[str, Entry]) -> bool:
    """Whether a queued entry may be claimed: not held, and all that it comes after is done.

    What runs on the same cluster counts as well: there, the cluster waits for it.

    Args:
        newest: name of an experiment -> its newest entry.
    """
    executor = entry.spec.executor
    parents = [newest.get(name) for name in entry.spec.after]
    return not entry.held and all(
        parent is not None
        and (parent.state == "done" or (parent.state == "running" and parent.spec.executor == executor != "local"))
        for parent in parents
    )


def blocked(waiting: Sequence[Entry], states: Mapping[str, State]) -> list[tuple[Entry, str]]:
    """Which of the waiting entries come after something that will not be done, to any depth, and why.

    Args:
        states: name of an experiment -> state of its newest entry.
    """
    known, left, found = dict(states), list(waiting), []
    while now := [(e, name) for e in left if (name := next((n for n in e.spec.after if known.get(n) in BLOCKING), ""))]:
        found += [(entry, f"{name} {'' if known[name] == 'failed' else 'was '}{known[name]}") for entry, name in now]
        known |= {entry.spec.name: "skipped" for entry, _ in now}
        left = [entry for entry in left if known[entry.spec.name] != "skipped"]
    return found


def cycle(live: Sequence[Entry]) -> list[str]:
    """Names that wait for each other in a circle, the first one again at the end; none where there is no circle."""
    try:
        TopologicalSorter({entry.spec.name: entry.spec.after for entry in live}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def skipped_by(parents: Sequence[Entry], newest: Mapping[str, Entry]) -> list[Entry]:
    """What was skipped and comes after these entries, to any depth.

    Args:
        newest: name of an experiment -> its newest entry.
    """
    names, found = {entry.spec.name for entry in parents}, []
    left = [entry for entry in newest.values() if entry.state == "skipped"]
    while now := [entry for entry in left if names & {*entry.spec.after}]:
        found += now
        names |= {entry.spec.name for entry in now}
        left = [entry for entry in left if entry not in now]
    return found
