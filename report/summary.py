"""What the first page shows, as plain values for JSON: settings, curves, scores, thresholds, time and memory.

Everything is read from an experiment's files, and what is not there is left out. Numbers that are none become None.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from config import BEST, Config
from engine import settings
from engine.files import FileProblem
from inference.fitted import read_fitted
from inference.folds import VAL_DICE
from report.sources import Source

PLACES = ("exp_name", "output_dir", "resume", "force_resume", "overwrite", "eval_only", "notify", "output", "shard")
"""Settings of a command and not of an experiment."""
OPTIMAL = "optimal.json"
"""What inference/optimize.py has fitted."""
DIGITS = 5
"""Of a Dice: more than any interval of it."""
MOST_POINTS = 500
"""Of a curve: more than a chart has pixels for."""
COUNTED = ("seconds", "samples_per_second", "waiting", "gpu_gib")
"""Columns of metrics.csv that say what training costs."""


@dataclass(frozen=True)
class Scores:
    """Dice of images and classes."""

    classes: tuple[str, ...]
    images: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    """Of each image, of each class."""

    def record(self) -> dict[str, Any]:
        """{classes, images, values}."""
        rounded = [[round(value, DIGITS) for value in row] for row in self.values]
        return {"classes": self.classes, "images": self.images, "values": rounded}


def describe(source: Source, scored: Scores | None) -> dict[str, Any]:
    """One experiment or CSV.

    Args:
        scored: Dice of its predictions, where there is something to compare them with.
    """
    folder = source.folder
    validated = validation(folder) if folder else None
    return {
        "title": source.title,
        "experiment": source.cfg is not None,
        "csv": str(source.masks.path) if source.masks else None,
        "split": source.split,
        "scores": scored.record() if scored else None,
        "validation": validated.record() if validated else None,
        "curves": curves(folder) if folder else [],
        "thresholds": thresholds(folder) if folder else None,
        "costs": costs(folder) if folder else None,
    }


def differences(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Settings in which an experiment differs from the defaults or from another: {name, default, values}, as JSON text.

    Those in which they differ from one another come first.
    """
    cfgs = (Config(), *(source.cfg for source in sources if source.cfg))
    records = [settings.to_record(cfg) for cfg in cfgs]
    rows = []
    for name, section in settings.SECTION_OF.items():
        default, *values = (json.dumps(record[section][name]) for record in records)
        if name not in PLACES and any(value != default for value in values):
            rows.append({"name": name, "default": default, "values": values})
    return sorted(rows, key=lambda row: len(set(row["values"])) == 1)


def validation(folder: Path) -> Scores | None:
    """val_dice.csv, of the best weights or out of fold; None where there is none."""
    path = folder / VAL_DICE
    rows = _read_csv(path)
    if not rows:
        return None
    names = list(rows[0])
    try:
        values = tuple(tuple(float(row[name]) for name in names[1:]) for row in rows)
    except (ValueError, TypeError) as error:
        raise FileProblem(f"{path} holds no Dice of images ({error}): validate the experiment again.") from None
    return Scores(tuple(names[1:]), tuple(row[names[0]] for row in rows), values)


def curves(folder: Path) -> list[dict[str, Any]]:
    """metrics.csv of each training in an experiment's folder: {title, epochs, columns: name -> values}."""
    found = []
    for path in _metrics(folder):
        rows = thinned(_read_csv(path))
        names = [name for name in (rows[0] if rows else ()) if name not in ("epoch", "step")]
        columns = {name: [_number(row[name]) for row in rows] for name in names}
        title = "" if path.parent == folder else path.parent.name
        found.append({
            "title": title,
            "epochs": [_number(row.get("epoch", "")) for row in rows],
            "columns": {name: values for name, values in columns.items() if any(v is not None for v in values)},
        })
    return found


def thresholds(folder: Path) -> dict[str, Any] | None:
    """thresholds.csv: {levels, classes, dice (a class a row), chosen}; None where there is none."""
    rows = thinned(_read_csv(folder / "thresholds.csv"))
    if not rows:
        return None
    classes = [name for name in rows[0] if name != "threshold"]
    fitted = read_fitted(folder / OPTIMAL) if (folder / OPTIMAL).exists() else None
    chosen = dict(zip(fitted.classes, fitted.thresholds, strict=True)) if fitted and fitted.thresholds else {}
    return {
        "levels": [_number(row["threshold"]) for row in rows],
        "classes": classes,
        "dice": [[_number(row[name]) for row in rows] for name in classes],
        "chosen": [chosen.get(name) for name in classes],
    }


def costs(folder: Path) -> dict[str, Any] | None:
    """What training took, all folds together: hours, the medians of an epoch, the most GPU memory, the machine."""
    paths = _metrics(folder)
    rows = [row for path in paths for row in _read_csv(path)]
    if not rows:
        return None
    of = {name: [v for row in rows if (v := _number(row.get(name, ""))) is not None] for name in COUNTED}
    return {
        "trainings": len(paths),
        "epochs": len(rows),
        "hours": sum(of["seconds"]) / 3600,
        "seconds": median(of["seconds"]) if of["seconds"] else None,
        "samples_per_second": median(of["samples_per_second"]) if of["samples_per_second"] else None,
        "waiting": median(of["waiting"]) if of["waiting"] else None,
        "gpu_gib": max(of["gpu_gib"], default=None),
        "checkpoint_mb": _megabytes(path.parent / BEST for path in paths),
    }


def thinned(rows: list[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Every so manieth row, the last always: at most MOST_POINTS and one."""
    every = max(1, math.ceil(len(rows) / MOST_POINTS))
    return rows[:: -every][::-1]


def _metrics(folder: Path) -> list[Path]:
    own = folder / "metrics.csv"
    return [own] if own.exists() else sorted(folder.glob("fold*/metrics.csv"), key=lambda path: (len(str(path)), path))


def _read_csv(path: Path) -> list[Mapping[str, str]]:
    if not path.exists():
        return []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise FileProblem(f"{path} is no table ({error}): remove it, and what it holds is left out.") from None


def _megabytes(paths: Iterable[Path]) -> float | None:
    sizes = [path.stat().st_size for path in paths if path.exists()]
    return sum(sizes) / 1e6 if sizes else None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
