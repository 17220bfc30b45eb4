"""The queue for people and for programs: one line an entry, in the order of time, and JSON."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from engine.jobs import traces
from engine.jobs.entry import ENDED, Entry
from engine.jobs.policy import rank
from engine.jobs.process import Identity
from engine.jobs.store import Store

if TYPE_CHECKING:
    from rich.text import Text

HEADER = ("id", "experiment", "state", "slot", "prio", "try", "time", "left", "reason")
NUMBERS = ("id", "prio", "try", "time", "left")
"""Columns that are set flush right."""
STYLES = {"running": "bold", "done": "green", "failed": "red", "lost": "red", "cancelled": "dim", "skipped": "yellow"}
"""State -> rich's name of a style."""
NOBODY = "nothing starts them yet: python scripts/schedule.py run"
"""What is said where no scheduler works."""
REFRESH = 1.0
"""Seconds between two looks of --watch."""


@dataclass(frozen=True)
class View:
    """What a queue holds at one moment."""

    entries: Sequence[Entry]
    """As they were, are and will be: what has ended by its end, what runs by its start, what waits by its turn."""
    states: Mapping[str, str]
    """Name of each experiment of the queue -> state of its newest entry."""
    paused: bool
    scheduler: Identity | None
    """None where none works."""
    now: float
    """Unix time."""


def view(store: Store, ids: Sequence[int] | None = None) -> View:
    """What is in the queue now; of these ids, or all."""
    now, scheduler = time.time(), store.scheduler()

    def turn(entry: Entry) -> tuple[Any, ...]:
        if entry.state in ENDED:
            return 0, entry.ended, entry.id
        return (1, entry.started, entry.id) if entry.state == "running" else (2, entry.held, *rank(entry, now))

    found = sorted(store.entries(ids), key=turn)
    working = scheduler if scheduler and scheduler.alive() else None
    return View(found, store.states(), store.paused, working, now)


def lines(shown: View) -> list[str]:
    """The table, its header first."""
    cells = [HEADER, *(_cells(entry, shown) for entry in shown.entries)]
    wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
    flush = [f"{{:{'>' if name in NUMBERS else '<'}{width}}}" for name, width in zip(HEADER, wide, strict=True)]
    layout = "  ".join(flush)
    return [layout.format(*row).rstrip() for row in cells]


def summary(shown: View) -> str:
    """How many entries there are of each state, and whether anything works on them."""
    counts, works = Counter("held" if entry.held else entry.state for entry in shown.entries), shown.scheduler
    parts = [", ".join(f"{count} {state}" for state, count in counts.items()) or "no entries"]
    if works:
        parts.append(f"scheduler: process {works.pid} on {works.host}")
    elif counts["queued"]:
        parts.append(NOBODY)
    if shown.paused:
        parts.append("paused: `resume` lets it go on")
    return "; ".join(parts)


def as_json(shown: View) -> str:
    """The same as one JSON object; times are unix times, `left` is in seconds or null."""
    entries = []
    for entry in shown.entries:
        whole = asdict(entry)
        about = {"left": _left(entry, shown), "waits_for": _waits_for(entry, shown)}
        entries.append({**whole.pop("spec"), **whole, **about})
    scheduler = asdict(shown.scheduler) if shown.scheduler else None
    return json.dumps({"paused": shown.paused, "scheduler": scheduler, "entries": entries}, ensure_ascii=False)


def styled(shown: View, height: int | None = None) -> Text:
    """The table in colours, for a terminal.

    Args:
        height: lines that there is room for; what runs and what comes next is then in sight.
    """
    from rich.text import Text

    head, *rest = lines(shown)
    rows = list(zip(rest, (entry.state for entry in shown.entries), strict=True))
    if height is not None:
        room = max(1, height - 2)
        ended = sum(state in ENDED for _, state in rows)
        first = max(0, min(ended - room // 4, len(rows) - room))
        rows = rows[first : first + room]
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{head}\n", style="underline")
    for line, state in rows:
        text.append(f"{line}\n", style=STYLES.get(state, ""))
    text.append(summary(shown))
    return text


def show(shown: View) -> None:
    """Print the table in colours."""
    from rich.console import Console

    Console(highlight=False).print(styled(shown))


def watch(store: Store, ids: Sequence[int] | None) -> None:
    """Show the table until Ctrl-C; the queue does not notice."""
    from rich.live import Live

    with Live(screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(styled(view(store, ids), live.console.height), refresh=True)
                time.sleep(REFRESH)
        except KeyboardInterrupt:
            return


def _cells(entry: Entry, shown: View) -> tuple[str, ...]:
    spec, left = entry.spec, _left(entry, shown)
    until = shown.now if entry.state == "running" else entry.ended
    return (
        str(entry.id),
        spec.name,
        entry.state,
        _slot(entry),
        str(spec.priority),
        str(entry.attempt),
        _hours(until - entry.started) if entry.started and entry.state != "queued" else "",
        "" if left is None else _hours(left),
        _reason(entry, shown),
    )


def _slot(entry: Entry) -> str:
    """What it runs on, or needs."""
    count = entry.spec.gpus
    needs = "CPU" if not count else f"{count} GPU{'s' if count > 1 else ''}"
    if entry.spec.executor != "local":
        return " ".join(filter(None, [entry.spec.executor, entry.external, needs]))
    return f"GPU {','.join(map(str, entry.devices))}" if entry.devices else needs


def _reason(entry: Entry, shown: View) -> str:
    """Why it is in its state, or what it waits for."""
    said = entry.reason.replace("\n", " ")
    if entry.held:
        return said if said.startswith("held") else f"held: {said}"
    if entry.cancelling:
        return f"to be stopped: {said}"
    if entry.state == "running" and entry.runner is None and entry.spec.executor == "local":
        return "is being started"
    if waits := _waits_for(entry, shown):
        more = f" and {len(waits) - 2} more" if len(waits) > 2 else ""
        return "; ".join(filter(None, [f"after {', '.join(waits[:2])}{more}", said]))
    return said


def _waits_for(entry: Entry, shown: View) -> list[str]:
    """What it comes after that is not done."""
    return [name for name in entry.spec.after if entry.state == "queued" and shown.states.get(name) != "done"]


def _left(entry: Entry, shown: View) -> float | None:
    """Seconds that it still trains."""
    return traces.eta(entry, shown.now) if entry.state == "running" else None


def _hours(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))
