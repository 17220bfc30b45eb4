"""Where the time of training steps goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from torch.profiler import ProfilerActivity

from engine.pace import Pace

B = TypeVar("B")

WARM = 3
"""Steps before the clock starts: compilation, caches, workers."""
TRACED = 5
"""Steps in the trace, which is some MB a step."""


def profile_steps(
    step: Callable[[B], object], batches: Iterator[B], steps: int, samples: int, device: str, trace: Path
) -> str:
    """Take `steps` steps, then a few more under torch's profiler, and say how long they took.

    Args:
        batches: without end.
        samples: of a step.
        trace: file for the chrome trace (open it in https://ui.perfetto.dev or chrome://tracing).
    """
    for _ in range(WARM):
        step(next(batches))
    pace, stepping = Pace(device), 0.0
    for batch in pace.count(_first(batches, steps)):
        before = time.monotonic()
        step(batch)
        stepping += time.monotonic() - before
    row = pace.row(samples)
    gpu = row["gpu_gib"]
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with torch.profiler.profile(activities=activities) as traced:
        for batch in _first(batches, min(steps, TRACED)):
            step(batch)
    trace.parent.mkdir(parents=True, exist_ok=True)
    traced.export_chrome_trace(str(trace))
    memory = f"{gpu:.2f} GiB of GPU memory" if gpu is not None else f"{_resident():.2f} GiB resident"
    return (
        f"{steps} steps of {samples} samples: {row['samples_per_second']:.2f} images/s, {stepping / steps * 1000:.1f} "
        f"ms a step; waiting for data {100 * (row['waiting'] or 0):.1f} % of the time; peak memory {memory}\n"
        f"trace: {trace}"
    )


def _first(batches: Iterator[B], count: int) -> Iterator[B]:
    for _ in range(count):
        yield next(batches)


def _resident() -> float:
    return float(psutil.Process().memory_info().rss) / 2**30
