"""What may start now, and on which GPUs. Pure: the same table gives the same answer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from engine.jobs.inventory import Gpu

if TYPE_CHECKING:
    from engine.jobs.entry import Entry

OVERDUE = 24 * 3600.0
"""Seconds in the queue after which an entry for several GPUs goes before all others, whatever their priority: these
GPUs are never free at the same time by chance while single ones are taken as soon as they are."""


def choose(
    waiting: Sequence[Entry],
    running: Sequence[Entry],
    gpus: Sequence[Gpu],
    cpu_slots: int,
    now: float,
    busy: Collection[str] = (),
) -> list[tuple[Entry, tuple[int, ...]]]:
    """The entries that shall start now on this machine, in order, each with the indices of its GPUs.

    They are taken in the order of `rank`, each that fits. The first one that lacks GPUs has those that are
    free kept for it: later ones get only what it would leave over, whichever running entries end first.

    Args:
        waiting: entries that may start (engine.jobs.entry.may_start).
        running: those that do; of both, other executors than "local" are not looked at.
        gpus: all of the machine that the queue may use. Foreign ones are not given away.
        cpu_slots: how many entries without a GPU may run at once.
        now: unix time.
        busy: names of experiments that run outside of the queue; an experiment never runs twice.
    """
    here = [entry for entry in running if entry.spec.executor == "local"]
    held = {index for entry in here for index in entry.devices}
    free = [gpu.index for gpu in gpus if not gpu.foreign and gpu.index not in held]
    sizes = [sum(gpu.index in entry.devices for gpu in gpus) for entry in here]
    slots = cpu_slots - sum(not entry.devices for entry in here)
    spare: int | None = None  # GPUs that the first entry which lacks some would leave over; None: there is none
    chosen: list[tuple[Entry, tuple[int, ...]]] = []
    for entry in sorted(waiting, key=lambda entry: rank(entry, now)):
        wanted, open_to = entry.spec.gpus, len(free) if spare is None else min(spare, len(free))
        if entry.spec.executor != "local" or entry.spec.name in busy:
            continue
        if wanted > open_to:
            spare = left_over(wanted, len(free), sizes) if spare is None else spare
        elif wanted or slots > 0:
            chosen.append((entry, tuple(free[:wanted])))
            free, sizes = free[wanted:], [*sizes, wanted]
            spare = spare if spare is None else spare - wanted
            slots -= not wanted
    return chosen


def rank(entry: Entry, now: float) -> tuple[bool, int, float, int]:
    """Sort key: what waits for several GPUs and is overdue first, then the highest priority, then the oldest."""
    overdue = entry.spec.gpus > 1 and now - entry.added > OVERDUE
    return not overdue, -entry.spec.priority, entry.added, entry.id


def left_over(wanted: int, free: int, sizes: Iterable[int]) -> int | None:
    """How many of the free GPUs an entry that lacks some can never need.

    Whichever running entries end, it starts with a sum of free GPUs and theirs that is enough. The least such sum is
    what is left over for sure: with 1 free and one entry that runs on 3, an entry for 2 leaves 2, so it does not need
    the free one.

    Returns:
        GPUs to give to others; None where even all together are too few, so that keeping any would help nobody.
    """
    sums = {free}
    for size in sizes:
        sums |= {total + size for total in sums}
    enough = [total for total in sums if total >= wanted]
    return min(enough) - wanted if enough else None
