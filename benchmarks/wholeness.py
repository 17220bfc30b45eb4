"""Whether an experiment's folder holds whole files only, and the same results as another's."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import torch

from config import BEST
from engine.files import FileProblem
from engine.run_state import LAST, read_state
from inference.folds import VAL_DICE
from model.checkpoint import read_checkpoint

TIMINGS = ("seconds", "samples_per_second", "waiting", "gpu_gib")
"""Columns of metrics.csv that differ from run to run."""


def unreadable(folder: Path) -> list[str]:
    """What is wrong with each file that is not whole; temporary files of writes that were killed don't count."""
    faults = []
    for path in sorted(folder.rglob("*")):
        reader = READERS.get(path.suffix)
        if reader is None or ".part" in "".join(part for part in path.parts if part.startswith(".")):
            continue
        try:
            reader(path)
        except (FileProblem, ValueError, OSError) as problem:
            faults.append(f"{path}: {problem}")
    return faults


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders of writes that were killed."""
    return [str(path) for path in sorted(folder.rglob(".*.part"))]


def differences(folder: Path, other: Path) -> list[str]:
    """What is not the same, bit by bit: last state, best and kept weights, metrics, validation, first submission."""
    ours, theirs = results(folder), results(other)
    names = sorted(ours.keys() | theirs.keys())
    return [f"{folder}: {name}" for name in names if not _same(ours.get(name), theirs.get(name))]


def results(folder: Path) -> dict[str, Any]:
    """Everything that must not depend on whether the run was interrupted, by a name for it."""
    state = read_state(folder / LAST)
    parts = ("position", "kept", "plateau", "network", "optimizer", "scaler", "ema", "swa", "generators")
    found: dict[str, Any] = {f"{LAST} {part}": state[part] for part in parts}
    for path in folder.glob("*.safetensors"):
        checkpoint = read_checkpoint(path)
        found[path.name] = checkpoint.weights, checkpoint.epoch, repr(checkpoint.score)
    for row in _table(folder / "metrics.csv"):
        found[f"metrics.csv epoch {row['epoch']}"] = {k: v for k, v in row.items() if k not in TIMINGS}
    for name in (VAL_DICE, "per_class.csv", "kept.csv"):
        found[name] = (folder / name).read_bytes()
    for path in folder.glob("inference/*/submission.csv"):  # of each time that the run came so far
        found.setdefault("submission.csv", path.read_bytes())
        if found["submission.csv"] != path.read_bytes():
            found["submission.csv"] = b"not always the same"
    assert BEST in found, f"{folder} has no {BEST}"
    return found


def _same(a: Any, b: Any) -> bool:
    """Equal in type and value down to the bits of tensors; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return repr(a) == repr(b)


def _table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV.

    Raises:
        ValueError: it is empty or cut within a row.
    """
    text = path.read_text(encoding="utf-8")
    rows = list(csv.reader(text.splitlines()))
    if not rows or not text.endswith("\n") or any(len(row) != len(rows[0]) for row in rows):
        raise ValueError(f"{path} is empty or cut")
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def _picture(path: Path) -> None:
    if cv2.imread(str(path)) is None:
        raise ValueError(f"{path} is no picture")


READERS: dict[str, Callable[[Path], Any]] = {
    ".pt": read_state,
    ".safetensors": read_checkpoint,
    ".csv": _table,
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".png": _picture,
}
"""Ending of a file -> what raises FileProblem, ValueError or OSError where it is not whole."""
