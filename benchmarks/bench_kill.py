"""Runs killed with -9 in every phase and resumed until they end: nothing unreadable, and the results of a whole run."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from benchmarks.killed_runs import Found, Killer
from benchmarks.phases import PHASES
from benchmarks.rows import Row

DESCRIPTION = "Runs killed with -9 in every phase and resumed: files that are not whole, results that differ"

DALI = "DALI, 2 workers"
LOADERS = {
    "OpenCV, no worker": ["--dataset_file", "dataset.dataset_sliding", "--workers", "0"],
    "OpenCV, 2 workers": ["--dataset_file", "dataset.dataset_sliding", "--workers", "2"],
    DALI: ["--dataset_file", "dataset.dataset_dali_sliding", "--workers", "2"],
}
SHORT = ["--epoch", "2"]
"""Of quick runs."""
KILLS = 34
"""For each loader, so 102 in all."""
SHOWN = 9
"""Faults of a kind that are written out."""
UNINTERRUPTED = "uninterrupted"


def run(quick: bool) -> list[Row]:
    """All rows; `quick` kills once in every phase, with the first loader only."""
    rows: list[Row] = []
    for loader, flags in list(LOADERS.items())[: 1 if quick else None]:
        if loader == DALI and find_spec("nvidia.dali") is None:
            rows.append(Row(f"{loader}: killed", UNINTERRUPTED, "kills", note="DALI is not installed."))
            continue
        start = time.monotonic()
        # A process of its own, without threads: a fork would take over the locks that they hold, but not them.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as apart:
            asked = ([*flags, *SHORT], len(PHASES)) if quick else (flags, KILLS)
            found = apart.submit(kill, *asked).result()
        rows += rows_of(loader, found, time.monotonic() - start)
    return rows


def kill(flags: list[str], kills: int) -> Found:
    """Kill runs in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="kill-", ignore_cleanup_errors=True) as root:
        return Killer(Path(root), flags, seed=kills).kill(kills)


def rows_of(loader: str, found: Found, seconds: float) -> list[Row]:
    """Kills by phase, and how often something was wrong afterwards."""
    wrong = {
        "files not whole after a kill": found.unreadable,
        "runs that could not be continued": found.stuck,
        "temporary files left at the end": found.leftovers,
        "results not those of the uninterrupted run": found.different,
    }
    how = (
        f"{loader}: {found.runs} runs killed {found.kills.total()} times, {found.timed} of them at random times, in "
        f"{seconds:.0f} s; uninterrupted, one takes {found.seconds:.1f} s."
    )
    counts = {**{f"in {phase}": found.kills[phase] for phase in PHASES}, "in all": found.kills.total()}
    kills = [
        Row(f"{loader}: killed {where}", UNINTERRUPTED, "kills", (float(count),), note=how)
        for where, count in counts.items()
    ]
    return kills + [
        Row(f"{loader}: {what}", UNINTERRUPTED, "faults", (float(len(faults)),), note="\n".join(faults[:SHOWN]))
        for what, faults in wrong.items()
    ]
