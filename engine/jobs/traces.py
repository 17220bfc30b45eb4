"""What an experiment has left in its folder: whether it can go on from there, how far it is, how long it will take."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from config import Run
from engine.jobs.entry import Entry, Spec

STATES = ("last.pt", "previous.pt")
"""engine.run_state has the same names, but imports torch."""
FOLDER_FLAGS = ("output_dir", "saved_dir")
EPOCHS = 5
"""The median of the last so many epochs is the pace: the first ones also build caches, and a machine's load changes."""


def folder_of(spec: Spec) -> Path:
    """Where run_exp.py writes the experiment: below the --output_dir of its flags, or the default one."""
    found, flags = Run().output_dir, iter(spec.argv)
    for token in flags:
        flag, equals, value = token.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") in FOLDER_FLAGS:
            found = value if equals else next(flags, found)
    return Path(found) / spec.name


def begun(spec: Spec, since: float) -> bool:
    """Whether there is something to go on with that was begun after `since` (unix time).

    What is older is another run's, or one that --overwrite was about to replace: to go on with that is not what was
    asked for.
    """
    folder = folder_of(spec)
    return any(_written(path) >= since for path in (folder / "config.json", *folder.glob("inference/*.partial")))


def newest_state(spec: Spec) -> float:
    """When the experiment last saved a state, also of a fold of it; unix time, 0 where it never has."""
    return max((_written(path) for path in _with_folds(folder_of(spec), STATES)), default=0.0)


def progress(entry: Entry) -> bool:
    """Whether the last attempt has left a newer state of the experiment."""
    return newest_state(entry.spec) > entry.started


def eta(entry: Entry, now: float | None = None) -> float | None:
    """Seconds until a running entry has trained its last epoch; None before its first epoch, and where it trains none.

    Prediction after the training comes on top: its time is not known before.

    Args:
        now: unix time.
    """
    folder = folder_of(entry.spec)
    epochs = _epochs(folder / "config.json")
    seconds: list[float] = []
    last = 0.0
    for path in _with_folds(folder, ("metrics.csv",)):
        seconds += _seconds(path)
        last = max(last, _written(path))
    if entry.state != "running" or not epochs or not seconds or not begun(entry.spec, entry.added):
        return None
    left = (epochs - len(seconds)) * median(seconds[-EPOCHS:])
    # An attempt that resumes an epoch begins now, not when the attempt before wrote its last one.
    return max(0.0, left - max(0.0, (time.time() if now is None else now) - max(last, entry.started)))


def _epochs(path: Path) -> int:
    """Epochs of all folds that are trained, by the settings in an experiment's config.json; 0 where there are none."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        folds = int(record["data"]["n_folds"]) if record["data"]["fold"] == "all" else 1
        return int(record["train"]["epoch"]) * folds
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _seconds(path: Path) -> list[float]:
    """Time that each epoch took, from a metrics.csv."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return [float(row["seconds"]) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _with_folds(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """Files of these names in an experiment and in its folds, those of the newest fold last."""
    for name in names:
        yield folder / name
        yield from sorted(folder.glob(f"fold[0-9]*/{name}"), key=_written)


def _written(path: Path) -> float:
    """When a file was written, unix time; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
