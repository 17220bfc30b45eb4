"""A queue whose processes are killed with -9: nothing is lost, nothing runs twice. 200 kills: benchmarks queue_kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.bench_queue_kill import rows_of
from benchmarks.queue_kills import AIMED, PHASES, Found, Harness
from engine.jobs.entry import Spec

KILLS = 10


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return Harness(tmp_path_factory.mktemp("queue") / "root", seed=3).kill(KILLS)


def test_nothing_is_lost_and_nothing_runs_twice(found: Found) -> None:
    assert found.lost == [] and found.doubled == [] and found.orphans == []


def test_the_kills_were_in_so_many_phases_and_hit(found: Found) -> None:
    assert found.kills.total() == KILLS and max(found.kills.values()) == 1
    assert {phase.partition(":")[0] for phase in found.kills} >= {"scheduler", "runner", "run"}
    assert found.entries >= 8 and found.starts >= found.entries


def test_the_table_of_the_benchmark(found: Found) -> None:
    rows = {row.case: row.ours for row in rows_of(found, 1.0)}
    assert rows["killed in all"] == (float(KILLS),)
    assert sum(rows[f"killed in {phase}"] == (1.0,) for phase in PHASES) == KILLS
    assert rows["entries lost"] == rows["runs that ran twice"] == rows["processes left over"] == (0.0,)


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    """The look afterwards, at a queue that somebody has spoilt."""
    harness = Harness(tmp_path, seed=1)
    (tmp_path / "added").write_text("gone\n")
    (tmp_path / "notes/job0000").write_text("started a 1\nstarted b 2\noverlapped b\nrepeated b\nstarted b 3\n")
    harness.store.add([Spec("failed")])
    harness.store.cancel([1])
    found = harness.kill(0)
    assert found.lost == ["failed: cancelled", "gone: not in the queue"]
    assert found.doubled == [
        "job0000: overlapped, attempt b", "job0000: repeated, attempt b", "attempt b started 2 times"
    ]


def test_every_phase_is_named_once() -> None:
    assert len(set(PHASES)) == len(PHASES) > len(AIMED) > 20
