"""Timing that is fair to both sides: they take turns, so what disturbs the machine disturbs all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from benchmarks.rows import Repeats
from engine.progress import progress


def in_turn(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Repeats]:
    """Let every side measure itself `repeats` times, one after the other in each round; its numbers by its name."""
    numbers: dict[str, list[float]] = {name: [] for name in sides}
    for _ in progress(range(repeats), "measuring in turn", unit="round"):
        for name, measure in sides.items():
            numbers[name].append(measure())
    return {name: tuple(values) for name, values in numbers.items()}


def milliseconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)
