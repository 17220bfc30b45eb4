"""A queue whose processes are killed with -9 in every phase, one or all at once: what is lost, what runs twice."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.queue_kills import PHASES, Found, Harness
from benchmarks.rows import Row

DESCRIPTION = "A queue killed with -9 in every phase: entries lost, runs that ran twice, processes left over"

KILLS = 200
QUICK = 20
SHOWN = 9
"""Faults of a kind that are written out."""
UNINTERRUPTED = "uninterrupted"


def run(quick: bool) -> list[Row]:
    """All rows; `quick` kills 20 times."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="queue-", ignore_cleanup_errors=True) as root:
        found = Harness(Path(root), seed=7).kill(QUICK if quick else KILLS)
    return rows_of(found, time.monotonic() - start)


def rows_of(found: Found, seconds: float) -> list[Row]:
    """Kills by phase, and how often something was wrong afterwards."""
    wrong = {"entries lost": found.lost, "runs that ran twice": found.doubled, "processes left over": found.orphans}
    how = (
        f"{found.entries} entries, {found.starts} starts of runs, {found.released} entries held as crash loops and "
        f"released; {found.missed.total()} aims that nobody came to; {seconds:.0f} s."
    )
    counts = {**{f"in {phase}": found.kills[phase] for phase in PHASES}, "in all": found.kills.total()}
    kills = [Row(f"killed {where}", UNINTERRUPTED, "kills", (float(n),), note=how) for where, n in counts.items()]
    return kills + [
        Row(what, UNINTERRUPTED, "faults", (float(len(faults)),), note="\n".join(faults[:SHOWN]))
        for what, faults in wrong.items()
    ]
