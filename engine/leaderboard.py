"""The record of all experiments: what each changed, what it reached and how sure that is, how long it took, its state.

Everything is read from the experiments' folders, what runs or waits also from the queue and from log/. Nothing is kept
beside them that could be wrong. No torch, no numpy: a thousand experiments in a second or two.
"""

from __future__ import annotations

import csv
import io
import json
import math
import operator
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from config import Config, ConfigProblem, suggest
from engine import background, settings
from engine.files import FileProblem, write_text
from engine.jobs import database
from engine.jobs.entry import ENDED
from engine.jobs.store import Store

NOT_COMPARED = (
    *("exp_name", "output_dir", "resume", "force_resume", "overwrite", "eval_only", "device", "gpus", "max_hours"),
    *("wandb", "wandb_project", "notify", "workers", "cache", "cache_dir", "input", "output", "shard"),
)
"""Settings that change where and how fast an experiment runs, and not what it reaches."""
ENDINGS = {75: "stopped", 130: "stopped"}
"""Exit code of run_exp.py -> state; all others but 0 are failed."""
COLUMNS = (
    *("experiment", "state", "dice", "sd", "images", "worst", "folds", "test", "epoch", "epochs", "hours", "ended"),
    *("csv", "reason"),
)
"""Of the table, before those of the settings that differ; fields of Row."""
AT_THE_END = ("reason", "csv")
"""Columns that are long."""
FALLING = ("dice", "images", "test", "epoch", "hours", "ended")
"""Columns that are sorted from the highest."""
VAL_DICE, PER_CLASS = "val_dice.csv", "per_class.csv"
"""Dice of each image, and of each class over the images."""
WIDEST = 32
"""Characters of a setting's value in the text; the CSV has all."""

MEANS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Word(NamedTuple):
    """What someone says about an experiment's state: its result.json, its record in log/, the queue."""

    time: float
    """Unix time; the newest word counts."""
    state: str
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One experiment; numbers are NaN where there are none yet."""

    experiment: str
    state: str = ""
    """queued, running, done, stopped (resumable), failed, died (no result and no process), or another of the queue."""
    dice: float = math.nan
    """Validation Dice of the best weights, mean over images and classes; out of fold where all folds were trained."""
    sd: float = math.nan
    """Standard deviation over images of their mean Dice; that of `dice` itself is about sd / sqrt(images)."""
    images: int = 0
    worst: str = ""
    """The class with the lowest Dice."""
    folds: str = ""
    """Lowest and highest Dice of a fold, where all were trained."""
    test: float = math.nan
    """Dice of the CSV, where the predicted images have labels."""
    epoch: int = 0
    """Epochs done, of all folds."""
    epochs: int = 0
    """Epochs to do."""
    hours: float = 0.0
    """In training epochs, validation not counted; of all folds."""
    ended: float = math.nan
    """Unix time of the last epoch."""
    csv: str = ""
    """The newest submission."""
    reason: str = ""
    """Why it is in its state."""
    changed: dict[str, Any] = field(default_factory=dict)
    """Setting -> value, as in config.json, of all that differ from config.py's defaults."""

    def value(self, name: str) -> Any:
        """A column's or a setting's value; a setting that was not changed has its default."""
        return getattr(self, name) if name in COLUMNS else self.changed.get(name, defaults().get(name))


@cache
def defaults() -> dict[str, Any]:
    """Setting -> default, as JSON values."""
    return {name: value for section in settings.to_record(Config()).values() for name, value in section.items()}


def read_rows(output_dir: Path, words: Mapping[str, Sequence[Word]]) -> list[Row]:
    """Every experiment in a folder, by name. Files that are missing or damaged leave their columns empty.

    Args:
        words: experiment -> what is known about its state beside its own files.

    Raises:
        FileProblem: there is no such folder.
    """
    if not output_dir.is_dir():
        raise FileProblem(f"{output_dir} is no folder: give the experiments' one with --output_dir.")
    plain = defaults()
    found = []
    for folder in sorted(path for path in output_dir.iterdir() if not path.name.startswith(".")):
        record = _record(folder)
        if record is not None:
            found.append(_row(folder, record, plain, words.get(folder.name, ())))
    return found


def said_elsewhere(queue: Path) -> dict[str, list[Word]]:
    """What the queue and log/ know about experiments: experiment -> words on its state. What lives is newest.

    Args:
        queue: folder of the queue, which need not exist.
    """
    found: dict[str, list[Word]] = {}
    if (queue / database.NAME).exists():
        with Store(queue) as store:
            for name, entry in store.newest().items():
                when = entry.ended if entry.state in ENDED else math.inf
                state = "held" if entry.held else entry.state
                found.setdefault(name, []).append(Word(when, state, entry.reason))
    for path in background.LOG.glob("*.json"):
        with suppress(FileProblem):  # a damaged one: `run_exp.py --status` says so
            if record := background.read_record(path.stem):
                found.setdefault(path.stem, []).insert(0, _of_record(record))
    return found


def _of_record(record: background.Record) -> Word:
    if record.lives:
        return Word(math.inf, "running")
    if record.ended is None or record.exit_code is None:
        return Word(record.started, "died", "no result and no process")
    state = ENDINGS.get(record.exit_code, "failed") if record.exit_code else "done"
    return Word(record.ended, state, record.error or (f"exit code {record.exit_code}" if record.exit_code else ""))


def _record(folder: Path) -> dict[str, Any] | None:
    """An experiment's settings, flat; None where the folder is of something else.

    What only predicts, an ensemble of others' networks, has them with its predictions.
    """
    for path in (folder / "config.json", *sorted(folder.glob("inference/*/config.json"), key=_written, reverse=True)):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return {name: value for section in record.values() for name, value in section.items()}
        except (OSError, ValueError, AttributeError):
            continue
    return None


def _row(folder: Path, record: Mapping[str, Any], plain: Mapping[str, Any], words: Sequence[Word]) -> Row:
    every = record.get("fold") == "all"
    trained = sorted(folder.glob("fold[0-9]*")) if every else [folder]
    metrics = [row for one in trained for row in read_csv(one / "metrics.csv")]
    means = image_means(folder / VAL_DICE)
    classes = read_csv(folder / ("oof.csv" if every else PER_CLASS))
    folds = [_number(row.get("val_dice")) for row in read_csv(folder / "folds.csv") if row.get("fold") != "all"]
    submission = max(folder.glob("inference/*/submission.csv"), key=_written, default=None)
    alone = not (folder / "config.json").exists()
    """It only predicts."""
    trainings = 0 if alone else _whole(record.get("n_folds")) if every else 1
    own = Word(_written(submission), "done") if alone else _word(folder, trained, trainings)
    word = max([*words, own], key=lambda word: word.time)
    return Row(
        experiment=folder.name,
        state=word.state,
        dice=statistics.fmean(means) if means else _mean(row.get("mean") for row in classes),
        sd=statistics.pstdev(means) if means else math.nan,
        images=len(means),
        worst=min(classes, key=lambda row: _number(row.get("mean")), default={}).get("class", ""),
        folds=f"{min(folds):.4f}-{max(folds):.4f}" if folds else "",
        test=class_mean(submission.parent / PER_CLASS) if submission else math.nan,
        epoch=len(metrics),
        epochs=_whole(record.get("epoch")) * trainings,
        hours=sum(_number(row.get("seconds")) for row in metrics) / 3600,
        ended=max(_written(one / "metrics.csv") for one in [folder, *trained]) or math.nan,
        csv=str(submission or ""),
        reason=word.reason,
        changed={
            name: value
            for name, value in record.items()
            if name in plain and name not in NOT_COMPARED and value != plain[name]
        },
    )


def _word(folder: Path, trained: Sequence[Path], trainings: int) -> Word:
    """What the experiment's own files say about its state."""
    results = [path for one in trained if (path := one / "result.json").exists()]
    newest = max([*results, folder / "config.json"], key=_written)
    try:
        codes = [int(json.loads(path.read_text(encoding="utf-8"))["exit_code"]) for path in results]
    except (OSError, ValueError, KeyError, TypeError):
        return Word(_written(newest), "died", "its result.json is damaged")
    if ends := [code for code in codes if code]:
        return Word(_written(newest), ENDINGS.get(ends[0], "failed"), f"exit code {ends[0]}")
    if len(codes) < trainings:
        return Word(_written(newest), "died", "no result and no process")
    return Word(_written(newest), "done")


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV with a header; none where it is missing."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return [row for row in csv.DictReader(file) if None not in row.values()]
    except (OSError, ValueError):
        return []


def image_means(path: Path) -> list[float]:
    """Mean Dice of each image, from `image,<class>,…`; none where the file is missing or something else."""
    try:
        with open(path, encoding="utf-8") as file:
            classes = next(file, "").count(",")
            rows = [[*map(float, line.rsplit(",", classes)[1:])] for line in file]  # twice as fast as csv's reader
    except (OSError, ValueError):
        return []
    return [sum(row) / len(row) for row in rows if row]


def class_mean(path: Path) -> float:
    """Mean Dice over the classes of a per_class.csv; NaN where there is none."""
    return _mean(row.get("mean") for row in read_csv(path))


def _mean(values: Iterable[str | None]) -> float:
    numbers = [_number(value) for value in values]
    return statistics.fmean(numbers) if numbers else math.nan


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _written(path: Path | None) -> float:
    """When a file was written, unix time; 0 where there is none."""
    try:
        return path.stat().st_mtime if path else 0.0
    except OSError:
        return 0.0


def kept(rows: Iterable[Row], conditions: Sequence[str]) -> list[Row]:
    """The rows that fulfil all conditions such as `dice>=0.9`, `state=done`, `model_file~unet` (~: contains).

    A row without the value fulfils only `!=`.

    Raises:
        ConfigProblem: a condition has no operator, names neither a column nor a setting, or compares with no number.
    """
    parsed = [_condition(text) for text in conditions]
    return [row for row in rows if all(_fulfils(row.value(name), sign, wanted) for name, sign, wanted in parsed)]


def _condition(text: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"\s*(\w+)\s*(<=|>=|!=|=|<|>|~)\s*(.*?)\s*", text)
    if not match:
        raise ConfigProblem(f"filter {text!r} is no condition: write name, one of = != < <= > >= ~, and a value.")
    name, sign, wanted = match.groups()
    _check_name(name)
    if sign in ("<", "<=", ">", ">=") and math.isnan(_number(wanted)):
        raise ConfigProblem(f"filter {text!r}: {wanted!r} is no number, which {sign} needs.")
    return name, sign, wanted


def _check_name(name: str) -> None:
    if name not in (known := (*COLUMNS, *defaults())):
        raise ConfigProblem(f"{name!r} is neither a column nor a setting{suggest(name, known)}.")


def _fulfils(value: Any, sign: str, wanted: str) -> bool:
    if sign == "~":
        return wanted.casefold() in shown(value).casefold()
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and not math.isnan(_number(wanted)):
        return MEANS[sign](value, float(wanted))
    if sign in ("=", "!="):
        return MEANS[sign](shown(value).casefold(), wanted.casefold())
    return False


def ordered(rows: Iterable[Row], name: str, reverse: bool = False) -> list[Row]:
    """Rows by a column or setting: scores, times and the like from the highest, text from A; without a value last.

    Raises:
        ConfigProblem: there is neither a column nor a setting of this name.
    """
    _check_name(name)
    falling = name in FALLING
    known = [row for row in rows if not _missing(row.value(name))]
    known.sort(key=lambda row: _sort_key(row.value(name)), reverse=falling != reverse)
    return [*known, *(row for row in rows if _missing(row.value(name)))]


def _sort_key(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, (int, float))
    return not number, value if number else 0, "" if number else shown(value).casefold()


def _missing(value: Any) -> bool:
    return value in (None, "") or (isinstance(value, float) and math.isnan(value))


def differing(rows: Sequence[Row]) -> tuple[list[str], dict[str, Any]]:
    """Settings in which these rows differ, and those that all have changed in the same way with their values."""
    changed = _changed(rows)
    first = {name: rows[0].value(name) for name in changed}
    same = {name: value for name, value in first.items() if all(row.value(name) == value for row in rows)}
    return [name for name in changed if name not in same], same


def _changed(rows: Sequence[Row]) -> list[str]:
    """Settings that a row has changed, in config.py's order; the epochs to do are a column of their own already."""
    names = {name for row in rows for name in row.changed if name not in COLUMNS}
    return sorted(names, key=list(defaults()).index)


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the whole table: all columns, and every setting that a row has changed; floats unrounded."""
    names = _changed(rows)
    return [*COLUMNS, *names], [[shown(row.value(name)) for name in (*COLUMNS, *names)] for row in rows]


def text(rows: Sequence[Row]) -> str:
    """The table for people: settings that all have changed alike stand above it, empty columns are left out."""
    names, same = differing(rows)
    shown_columns = [name for name in COLUMNS if name not in AT_THE_END] + names + list(AT_THE_END)
    columns = [name for name in shown_columns if any(_cell(row, name) for row in rows)]
    cells = [columns] + [[_cell(row, name) for name in columns] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    above = [f"in all: {'  '.join(f'{name} {_short(shown(value))}' for name, value in same.items())}"] if same else []
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([*above, *lines])


def _cell(row: Row, name: str) -> str:
    """A value as people like to read it; nothing where it says nothing."""
    value = row.value(name)
    if name in ("dice", "sd", "test") and not _missing(value):
        return f"{value:.4f}"
    if name == "hours" and value:
        return f"{value:.2f}"
    if name == "ended" and not _missing(value):
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
    if name == "epoch" and row.epochs:
        return f"{row.epoch}/{row.epochs}"
    if name == "epochs" or (name in COLUMNS and value == 0):
        return ""
    return shown(value) if name in COLUMNS else _short(shown(value))


def _short(text: str) -> str:
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"


def shown(value: Any) -> str:
    """A value as in the CSV: nothing for what is not there, JSON for lists and tables."""
    if _missing(value):
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write the whole table as CSV; an existing file is never overwritten.

    Raises:
        FileProblem: the file exists, or the disk is full.
    """
    header, cells = table(rows)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *cells])
    write_text(path, out.getvalue(), overwrite=False)
