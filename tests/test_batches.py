"""dataset/batches.py: workers outlive a SIGTERM that is not for them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from config import Config
from dataset.batches import Workers
from dataset.order import Key, Order
from engine import settings

STEPS = 40
"""More than a worker makes ahead."""


def make(key: Key) -> int:
    return key[1]


@pytest.fixture
def workers() -> Iterator[Workers[int, list[int]]]:
    cfg = settings.replace(Config(), {"workers": 1, "device": "cpu"})
    loading = Workers(make, list, Order(STEPS, 1, 1, 0), cfg)
    yield loading
    loading.close()


def test_a_sigterm_of_others_leaves_workers_at_work_and_the_loaders_own_ends_them(
    workers: Workers[int, list[int]],
) -> None:
    batches = workers.epoch(0)
    first = next(batches)
    assert workers.loader is not None
    (process,) = workers.loader._iterator._workers  # type: ignore[union-attr]
    subprocess.run(["kill", "-TERM", str(process.pid)], check=True)
    rest = list(batches)
    assert sorted(i for batch in [first, *rest] for i in batch) == list(range(STEPS))
    assert process.is_alive()
    process.terminate()
    process.join(10)
    assert process.exitcode == 0
