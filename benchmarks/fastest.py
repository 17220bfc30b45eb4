"""The fastest of several ways to do the same: a peer is measured at its best."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.measure import milliseconds


def fastest(ways: Mapping[str, Callable[[], object]]) -> tuple[str, str]:
    """Try every way once after a call that warms it: the fastest one's name, and all times in words."""
    times = {}
    for name, work in ways.items():
        work()
        times[name] = milliseconds(work)
    return min(times, key=times.__getitem__), "; ".join(f"{name}: {ms:.3g} ms" for name, ms in times.items())
