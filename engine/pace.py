"""How fast training steps are, and how long they wait for data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


class Pace:
    """Counts steps and seconds of an epoch, and the seconds in which the step waited for its batch."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.steps = 0
        self.waited = 0.0
        self.start = time.monotonic()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def count(self, batches: Iterable[T]) -> Iterator[T]:
        """Hand the batches on."""
        before = time.monotonic()
        for batch in batches:
            self.waited += time.monotonic() - before
            self.steps += 1
            yield batch
            before = time.monotonic()

    def row(self, samples: int) -> dict[str, float | None]:
        """Columns of metrics.csv; a step has so many `samples`, those of all ranks."""
        seconds = time.monotonic() - self.start
        return {
            "seconds": seconds,
            "samples_per_second": self.steps * samples / seconds,
            "waiting": self.waited / seconds,
            "gpu_gib": torch.cuda.max_memory_allocated() / 2**30 if self.device == "cuda" else None,
        }


def duration(seconds: float) -> str:
    """For people: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
