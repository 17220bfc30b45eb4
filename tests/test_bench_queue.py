"""The queue's benchmark measures what it says: all that was added is there, what ran is left alone."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from benchmarks import bench_queue
from benchmarks.rows import Row
from engine.jobs.store import Store


def complete(rows: list[Row]) -> bool:
    return all(row.ours and row.theirs and min(row.ours) >= 0 for row in rows)


def test_adding_and_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_queue, "ENTRIES", 9)
    rows = [*bench_queue.adding(tmp_path / "add", 3), *bench_queue.listing(tmp_path / "list", 1)]
    assert complete(rows)
    with Store(tmp_path / "list") as store:
        states = [entry.state for entry in store.entries()]
    assert states == ["cancelled", "done", "queued", "cancelled", "failed", "queued", "cancelled", "done", "queued"]


def test_adoption_leaves_no_process(tmp_path: Path) -> None:
    rows = bench_queue.scheduling(tmp_path, 1, 0.01)
    assert complete(rows)
    with Store(tmp_path / bench_queue.QUEUE) as store:
        assert [(entry.spec.name, entry.attempt) for entry in store.entries()] == [("runs", 1), ("next0", 1)]
        assert store.get(1).runner is not None
        assert not store.get(1).runner.alive()
    assert not [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(tmp_path)]
