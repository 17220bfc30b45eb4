"""A list of experiments as users write it, in Python or YAML, and the queue's entries that it stands for."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_origin

from config import SHORT_FLAGS, Config, ConfigProblem, suggest
from engine import settings
from engine.flags import Source, known_flags
from engine.jobs.entry import Spec
from engine.jobs.executor import NAMES
from engine.progress import progress
from engine.space import run_file

MOST = 1_000_000
"""Largest priority and number of retries."""

OWN: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "exp_name": ("a name", lambda value: isinstance(value, str) and bool(value)),
    "gpus": ("a number of GPUs", lambda value: _is_whole(value, 0, MOST)),
    "priority": (f"a whole number up to {MOST}", lambda value: _is_whole(value, -MOST, MOST)),
    "after": ("a name or a list of names", lambda value: _names(value) is not None),
    "retries": (f"a whole number, 0 to {MOST}", lambda value: _is_whole(value, 0, MOST)),
    "hours": ("a number of hours, 0 or more", lambda value: type(value) in (int, float) and value >= 0),
    "executor": (f"one of {', '.join(NAMES)}", lambda value: value in NAMES),
    "grid": ("a table of lists", lambda value: _is_table(value) and all(map(_is_list, value.values()))),
    "folds": ("2 to 100, or a list of folds", lambda value: _is_list(value) or _is_whole(value, 2, 100)),
}
"""Keys that are no settings, or mean more here -> what their value must be, in words and as a test."""
SPELLINGS = known_flags(Source)
"""Every spelling of a setting, and of `preset` and `config` -> (name, type)."""

YAML_TYPES = (
    ("merge", "<<", "<"),
    ("null", "~|null|Null|NULL|", "~nN"),
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", "[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
)
"""What a plain scalar may be but text -> how it is written, and its first characters."""

Check = Callable[[list[str], bool], Config]
"""Flags of run_exp.py, and whether files may be missing, as other entries will write them -> the settings that they
mean. Raises ConfigProblem where a run with them would be refused."""


@dataclass
class Draft:
    """An entry before it is checked."""

    number: int
    """Of the experiment in the list, from 1."""
    name: str
    values: dict[str, Any]
    """Settings, `preset` and `config`, as they were written."""
    own: dict[str, Any]
    """Other keys."""


@dataclass
class Faults:
    """What is wrong, by experiment: all of a grid are mostly wrong in the same way."""

    where: str
    found: dict[tuple[int, str], list[str]] = field(default_factory=dict)
    """(number, sentence) -> names."""

    def add(self, number: int, name: str, sentence: str) -> None:
        """Note a fault of an experiment."""
        self.found.setdefault((number, " ".join(sentence.split())), []).append(name)

    def report(self) -> None:
        """Raise ConfigProblem, one line each, where there are any."""
        lines = []
        for (number, sentence), names in self.found.items():
            who = f" ({names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''})" if names[0] else ""
            lines.append(f"{self.where}, experiment {number}{who}: {sentence}")
        if lines:
            raise ConfigProblem("\n".join(lines))


def read_experiments(path: Path) -> list[Any]:
    """The list `experiments` of a Python or YAML file, as it is written there.

    Raises:
        ConfigProblem: the file can't be read or run, or has no such list.
    """
    if not path.is_file():
        raise ConfigProblem(f"{path} is no file: give one with `experiments = [...]`, as in docs/queue.md.")
    kind = path.suffix.casefold()
    if kind not in (".py", ".yaml", ".yml"):
        raise ConfigProblem(f"{path} is neither Python (.py) nor YAML (.yaml): give it that ending.")
    found = run_file(path) if kind == ".py" else _yaml(path)
    experiments = found.get("experiments") if isinstance(found, dict) else found
    if not isinstance(experiments, list) or not experiments:
        raise ConfigProblem(f"{path} has no list `experiments`, or an empty one: see docs/queue.md.")
    return experiments


def plan(
    experiments: Sequence[Any],
    where: str,
    check: Check,
    machine: int,
    executor: str,
    known: Mapping[str, tuple[str, ...]],
) -> list[Spec]:
    """Entries for a list of experiments, in its order; grids and folds are several.

    Args:
        where: what errors begin with.
        machine: GPUs of this machine.
        executor: of entries that name none.
        known: name -> flags of entries to leave out.

    Raises:
        ConfigProblem: with all that is wrong, one line for each experiment and fault.
    """
    faults, drafts = Faults(where), list[Draft]()
    for number, written in enumerate(experiments, 1):
        name = str(written.get("exp_name", "")) if isinstance(written, dict) else ""
        if wrong := list(_faults(written)):
            faults.add(number, name, f"{'; '.join(wrong)}.")
        else:
            drafts += _expanded(number, written)
    groups: dict[str, list[str]] = {}
    for draft in drafts:
        groups.setdefault(str(draft.own["exp_name"]), []).append(draft.name)
    names = Counter(draft.name for draft in drafts)
    for draft in drafts:
        if names[draft.name] > 1:
            faults.add(draft.number, draft.name, "another one has this name: give each its own exp_name.")
    faults.report()
    specs = []
    fresh = [draft for draft in drafts if known.get(draft.name) != _argv(draft)]
    for draft in progress(fresh, "checking", unit="experiments"):
        try:
            specs.append(_spec(draft, groups, check, machine, executor))
        except ConfigProblem as problem:
            faults.add(draft.number, draft.name, str(problem))
    faults.report()
    return specs


def _faults(written: Any) -> Iterator[str]:
    """What is wrong with an experiment, as far as it alone and the types of its values tell."""
    if not _is_table(written):
        yield f"{written!r} is no table of settings"
        return
    if "exp_name" not in written:
        yield "exp_name is missing"
    grid = written.get("grid", {})
    for key, value in written.items():
        if key in OWN:
            if not OWN[key][1](value):
                yield f"{key} is {value!r}, but must be {OWN[key][0]}"
        else:
            yield from _faults_of_setting(key, value)
    for key, values in grid.items() if OWN["grid"][1](grid) else ():
        if key in written or key in ("exp_name", "after", "grid", "folds"):
            yield f"grid has {key}, which {'stands beside it, too' if key in written else 'can not vary'}"
        for value in values:
            if key not in OWN:
                yield from _faults_of_setting(key, value)
            elif not OWN[key][1](value):
                yield f"grid: {key} is {value!r}, but must be {OWN[key][0]}"
    names = [SPELLINGS[key][0] for key in (*written, *grid) if key in SPELLINGS and key not in OWN]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        yield f"{', '.join(twice)} comes twice, in different spellings"
    if "folds" in written and "fold" in names:
        yield "fold and folds contradict each other: leave out one of them"


def _faults_of_setting(key: str, value: Any) -> Iterator[str]:
    if key in SHORT_FLAGS:
        if type(value) is not bool:
            yield f"{key} is {value!r}, but must be true or false"
        return
    if key == "max_hours":
        yield "max_hours stops a run that the queue would then go on with: give hours"
        return
    if key not in SPELLINGS:
        yield f"unknown key {key!r}{suggest(key, [*OWN, *SPELLINGS])}"
        return
    name = SPELLINGS[key][0]
    try:
        plain = settings.coerce(name, value) if name in settings.TYPE_OF else value
    except ValueError as error:
        yield str(error)
        return
    parts = plain if isinstance(plain, tuple) else (plain,)
    if name not in settings.TYPE_OF and not isinstance(value, str):
        yield f"{key}: {value!r} is no name"
    elif any(isinstance(part, str) and part.startswith("-") for part in parts):
        yield f"{key}: {value!r} begins with '-', as a flag does"


def _expanded(number: int, written: Mapping[str, Any]) -> Iterator[Draft]:
    """The experiment once for each combination of its grid and folds."""
    grid, folds = written.get("grid", {}), written.get("folds")
    plain = {key: value for key, value in written.items() if key not in ("grid", "folds")}
    if type(folds) is int:
        plain = {"n_folds": folds, **plain}
    turns: list[Any] = [None] if folds is None else list(range(folds)) if type(folds) is int else folds
    for chosen in itertools.product(*grid.values()):
        varied = dict(zip(grid, chosen, strict=True))
        for fold in turns:
            name = "-".join([written["exp_name"], *(_label(key, value, grid[key]) for key, value in varied.items())])
            whole = plain | varied if fold is None else plain | varied | {"fold": fold}
            own = {key: value for key, value in whole.items() if key in OWN}
            values = {key: value for key, value in whole.items() if key not in OWN}
            yield Draft(number, name if fold is None else f"{name}-fold{fold}", values, own)


def _label(key: str, value: Any, values: Sequence[Any]) -> str:
    """What a value of a grid adds to the name."""
    if isinstance(value, bool):
        return key if value else f"no_{key}"
    if isinstance(value, str):
        text = value.partition(".")[2] if value.startswith(("model.", "dataset.", "inference.")) else value
    elif isinstance(value, (int, float)):
        text = f"{key}{value}"
    else:
        text = f"{key}{values.index(value)}"
    return re.sub(r'[/\\:*?"<>|\s\0]+', "_", text)


def _spec(draft: Draft, groups: Mapping[str, Sequence[str]], check: Check, machine: int, executor: str) -> Spec:
    """The entry, checked."""
    own, argv = draft.own, _argv(draft)
    asked, where = own.get("gpus"), own.get("executor", executor)
    after = [name for parent in _names(own.get("after", [])) or [] for name in groups.get(parent, [parent])]
    cfg = check([*argv, "--exp_name", draft.name], bool(after))
    gpus = cfg.run.gpus if asked is None else asked
    if cfg.run.device == "cpu" or (asked is None and where == "local" and not machine and cfg.run.device == "auto"):
        gpus = 0
    if cfg.run.device == "cuda" and not gpus:
        raise ConfigProblem("device is cuda, but gpus is 0: leave out one of them.")
    if where == "local" and gpus > machine:
        raise ConfigProblem(f"needs {gpus} GPUs, but the queue may use {machine} here: lower gpus, or give device cpu.")
    plain = {key: own[key] for key in ("priority", "retries", "hours") if key in own}
    return Spec(draft.name, argv, gpus, after=tuple(dict.fromkeys(after)), executor=where, **plain)


def _argv(draft: Draft) -> tuple[str, ...]:
    """The flags of run_exp.py, without the name."""
    argv = [part for key, value in draft.values.items() for part in _flag(key, value)]
    return (*argv, *(("--gpus", str(draft.own["gpus"])) if draft.own.get("gpus") else ()))


def _flag(key: str, value: Any) -> Iterator[str]:
    """A setting as a flag."""
    if key in SHORT_FLAGS:
        yield from [f"--{key}"] if value else []
        return
    name, kind = SPELLINGS[key]
    if kind is bool:
        yield f"--{name}" if value else f"--no_{name}"
    elif name in settings.JSON_FIELDS:
        yield from (f"--{name}", json.dumps(value))
    elif get_origin(kind) is tuple:
        yield from (f"--{name}", *map(str, value))
    else:
        yield from (f"--{name}", str(value))


def _names(value: Any) -> list[str] | None:
    """One name or several, as a list; None where it is neither."""
    found = [value] if isinstance(value, str) else value
    return list(found) if isinstance(found, (list, tuple)) and all(isinstance(n, str) and n for n in found) else None


def _is_whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0


def _yaml(path: Path) -> Any:
    """A YAML file, by the rules of YAML 1.2: 1e-4 is a number, and off, no and 1:30 are text.

    Raises:
        ConfigProblem: it is no YAML, or has a key twice.
    """
    import yaml  # here: only files of this kind need it

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """PyYAML's, which follows YAML 1.1, with the types of YAML 1.2's core schema (yaml.org/spec/1.2.2, 10.3.2)."""

        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            keys = [key.value for key, _ in node.value]
            for key, _ in node.value:
                if keys.count(key.value) > 1:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} comes twice", problem_mark=key.start_mark)
            return node

    for tag, pattern, first in YAML_TYPES:
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), [*first, ""])
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigProblem(f"{path}{line}: {getattr(error, 'problem', None) or error}.") from None
