"""What a search varies: a Python file of the user's with `base`, the settings of every trial, and `space`."""

from __future__ import annotations

import json
import math
import runpy
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from config import Config, ConfigProblem, suggest
from engine import settings
from engine.presets import PRESETS

OWN = ("exp_name", "output_dir", "resume", "force_resume", "overwrite", "eval_only", "profile", "max_hours")
"""Fields that the search sets itself, or that leave a trial without an end of its own."""
NAMES = ("model_file", "first_model", "second_model", "dataset_file", "inference_file", "loss")
"""Fields whose values are names of files or terms."""


class Suggests(Protocol):
    """What of an Optuna trial is used here."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; of a whole-number field whole numbers.

    Args:
        log: as many between 1e-4 and 1e-3 as between 1e-3 and 1e-2.
        step: only low, low + step, low + 2 step, …
        when: fields of the space that are a Choice and stand before this one -> values for which this one is sampled;
            else it keeps the value of `base`.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    when: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def suggest(self, name: str, trial: Suggests) -> float:
        """The value that the trial gets."""
        if settings.TYPE_OF[name] is int:
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def faults(self, name: str) -> Iterator[str]:
        """What is wrong with it for the field `name`."""
        kind = settings.TYPE_OF[name]
        if kind not in (int, float):
            yield f"{name} is no number: give a Choice of its values"
            return
        for value in (self.low, self.high, *([] if self.step is None else [self.step])):
            try:
                settings.coerce(name, value)
            except ValueError as error:
                yield str(error)
                return
        yield from (fault for end in (self.low, self.high) for fault in _beyond(name, end))
        if not self.low < self.high:
            yield f"{name}: {self.low:g} to {self.high:g} is no range: the first number must be the smaller one"
        if self.log and (self.low <= 0 or self.step is not None):
            yield f"{name}: a logarithmic range begins above 0 and has no step"
        elif self.step is not None and not _fits((self.high - self.low), self.step):
            yield f"{name}: steps of {self.step:g} from {self.low:g} do not reach {self.high:g}"


@dataclass(frozen=True)
class Choice:
    """One of `values`, which have no order; `when` as of a Range."""

    values: Sequence[Any]
    when: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def suggest(self, name: str, trial: Suggests) -> Any:
        """The value that the trial gets."""
        # Optuna keeps plain values only, so lists travel as text.
        return self.values[self.labels().index(trial.suggest_categorical(name, self.labels()))]

    def labels(self) -> list[Any]:
        """The values as Optuna keeps them."""
        return [v if isinstance(v, bool | int | float | str) else json.dumps(v) for v in self.values]

    def faults(self, name: str) -> Iterator[str]:
        """What is wrong with it for the field `name`."""
        if isinstance(self.values, str) or len(self.values) < 2:
            yield f"{name}: {self.values!r} is no list of at least two values"
            return
        fine = True
        for value in self.values:
            try:
                settings.coerce(name, value)
            except ValueError as error:
                fine = False
                yield str(error)
            else:
                yield from _beyond(name, value)
        if fine and len(set(map(str, self.labels()))) < len(self.values):
            yield f"{name} has a value twice: {self.values!r}"


@dataclass(frozen=True)
class Space:
    """A search: its name, the settings that its trials share, and what differs."""

    study: str
    base: Config
    fields: Mapping[str, Range | Choice]

    @property
    def folder(self) -> Path:
        """Everything lies here that is not of one trial."""
        return Path(self.base.run.output_dir) / self.study

    def sample(self, trial: Suggests) -> dict[str, Any]:
        """Field -> value of one trial; fields whose `when` is not met are left out."""
        values: dict[str, Any] = {}
        for name, part in self.fields.items():
            if all(key in values and values[key] in wanted for key, wanted in part.when.items()):
                values[name] = part.suggest(name, trial)
        return values


def read_space(path: Path, complete: Callable[[Config], Config]) -> Space:
    """Run the user's file and check every name and value in it.

    The file has `space`, field -> Range or Choice, and perhaps `base`, field -> value; a `preset` in `base` comes
    before its other fields, and an `exp_name` names the study (else the file's name does).

    Args:
        complete: settings -> the same with full names; raises ConfigProblem for names that don't exist.

    Raises:
        ConfigProblem: the file can't be read or run, or with all that is wrong in it, one line each.
    """
    found = run_file(path)
    given, fields = found.get("base", {}), found.get("space")
    if not isinstance(given, dict) or not isinstance(fields, dict) or not fields:
        raise ConfigProblem(
            f"{path} must set space = {{field: Range(...) or Choice(...)}}, and may set base = {{field: value}}."
        )
    preset = given.get("preset", "")
    if preset and preset not in PRESETS:
        raise ConfigProblem(
            f"{path}: preset {preset!r} is none of {', '.join(PRESETS)}{suggest(str(preset), PRESETS)}."
        )
    start = settings.replace(Config(), PRESETS[preset] if preset else {})
    own = {name: value for name, value in given.items() if name != "preset"}
    base, set_here = settings.from_record(own, f"{path}: base", start)
    study = base.run.exp_name if "exp_name" in set_here else path.stem
    base = settings.replace(base, {"exp_name": study})
    faults = [fault for name, part in fields.items() for fault in _faults(name, part, fields, complete)]
    faults += [
        f"{name} is the search's own: leave it out of base"
        for name in OWN[2:]
        if settings.get(base, name) != settings.get(Config(), name)
    ]
    if base.data.fold in ("all", "none"):
        faults.append(f"fold is {base.data.fold}, but trials are compared on one fold: give its number")
    if faults:
        raise ConfigProblem("\n".join(f"{path}: {fault}." for fault in faults))
    settings.check(base)
    return Space(study, complete(base), fields)


def run_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigProblem(f"{path} is no file: give the Python file that describes the search (docs/search.md).")
    try:
        return runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        raise ConfigProblem(f"{path}, line {line}: {type(error).__name__}: {error}.") from error


def _faults(
    name: str, part: Any, fields: Mapping[str, Any], complete: Callable[[Config], Config]
) -> Iterator[str]:
    if name not in settings.SECTION_OF:
        yield f"unknown field {name!r}{suggest(name, settings.SECTION_OF)}"
    elif name in OWN:
        yield f"{name} can't be searched"
    elif not isinstance(part, Range | Choice):
        yield f"{name}: {part!r} is neither a Range nor a Choice"
    else:
        faults = [*part.faults(name), *_faults_of_when(name, part.when, fields)]
        yield from faults or (_faults_of_names(name, part.values, complete) if isinstance(part, Choice) else ())


def _faults_of_when(name: str, when: Mapping[str, Sequence[Any]], fields: Mapping[str, Any]) -> Iterator[str]:
    before = list(fields)[: list(fields).index(name)]
    for key, wanted in when.items():
        other = fields.get(key)
        if key not in before or not isinstance(other, Choice):
            yield f"{name}: when names {key!r}, which is no Choice that stands before it"
        elif isinstance(wanted, str) or not wanted or any(value not in other.values for value in wanted):
            yield f"{name}: when asks for {key} {wanted!r}, which is no list of values out of {list(other.values)!r}"


def _faults_of_names(name: str, values: Sequence[Any], complete: Callable[[Config], Config]) -> Iterator[str]:
    """Names that don't exist. On top of the defaults: whether they fit the others is a matter of each trial."""
    if name == "fold":
        yield from (f"fold: {value!r} is no single fold" for value in values if value in ("all", "none"))
    if name == "optimizer":
        from engine.optim import LOOKAHEAD, optimizer_names  # here: it waits for torch

        known = optimizer_names()
        for value in values:
            if value.casefold().removeprefix(LOOKAHEAD) not in known:
                yield f"optimizer {value!r} is unknown{suggest(value, known)}"
    if name in NAMES:
        for value in values:
            try:
                complete(settings.replace(Config(), {name: value}))
            except ConfigProblem as problem:
                yield str(problem).removesuffix(".")


def _beyond(name: str, value: Any) -> Iterator[str]:
    """Where the value lies outside of its field's limits."""
    if name in settings.AUGMENTATIONS:
        try:
            settings.check(settings.replace(Config(), {name: value}))
        except ConfigProblem as problem:
            yield str(problem).removesuffix(".")
    elif name in settings.LIMITS:
        low, high = settings.LIMITS[name]
        if not low <= value <= high:
            yield f"{name} {value:g} must lie between {low:g} and {high:g}"


def _fits(length: float, step: float) -> bool:
    return step > 0 and math.isclose(length / step, round(length / step), rel_tol=1e-9)
