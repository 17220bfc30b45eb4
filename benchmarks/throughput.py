"""Samples a second of whole loaders, taken in turn, with what their workers send and use."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, product

from benchmarks.case import Epochs
from benchmarks.measure import in_turn
from benchmarks.rows import Row
from benchmarks.workers import probe
from engine.progress import progress

OURS = "ours"

Build = Callable[[], Epochs]


@dataclass(frozen=True)
class Peer:
    """A loader to compare with."""

    name: str
    build: Build
    note: str = ""


def rate_of(epochs: Epochs, seconds: float) -> Callable[[], float]:
    """Measures samples a second over whole epochs that take at least `seconds` together. Nothing is done with them."""
    numbers = count(1)

    def rate() -> float:
        samples, start = 0, time.perf_counter()
        while not samples or time.perf_counter() - start < seconds:
            for images, _ in epochs(next(numbers)):
                samples += len(images)
        return samples / (time.perf_counter() - start)

    return rate


def fastest(ways: Mapping[str, Build], seconds: float) -> tuple[str, str]:
    """Try every way for `seconds` after one epoch that starts it; the fastest one's name, and all rates in words."""
    rates = {}
    for name, build in progress(ways.items(), "trying", unit="way"):
        epochs = build()
        probe(epochs)
        rates[name] = rate_of(epochs, seconds)()
        del epochs  # ends its workers before the next ones start
    return max(rates, key=rates.__getitem__), "; ".join(f"{name}: {rate:.3g}" for name, rate in rates.items())


def compare(ours: Mapping[str, Build], peers: Sequence[Peer], repeats: int, seconds: float) -> list[Row]:
    """Rows of each of ours, by the name that begins its cases, against every peer.

    All loaders' workers live while they are measured in turn.
    """
    builds = {**{OURS + what: build for what, build in ours.items()}, **{peer.name: peer.build for peer in peers}}
    # One after the other: pages that more processes share count less in each one's PSS.
    found = {name: probe(build()) for name, build in builds.items()}
    started = {name: build() for name, build in builds.items()}
    for epochs in started.values():
        probe(epochs)
    rates = in_turn({name: rate_of(epochs, seconds) for name, epochs in started.items()}, repeats)
    rows = []
    for what, peer in product(ours, peers):
        (our_peaks, our_sent), (their_peaks, their_sent) = found[OURS + what], found[peer.name]
        rows += [
            Row(f"{what}, loader", peer.name, "samples/s", rates[OURS + what], rates[peer.name], peer.note),
            Row(f"{what}, sent by a worker", peer.name, "MB/sample", (our_sent,), (their_sent,)),
            Row(f"{what}, worker's peak PSS", peer.name, "MB", (our_peaks.pss,), (their_peaks.pss,)),
            Row(f"{what}, worker's peak USS", peer.name, "MB", (our_peaks.uss,), (their_peaks.uss,)),
        ]
    return rows
