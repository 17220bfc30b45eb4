"""Command line -> settings: precedence, sources, suggestions; one flag for every field of config.py."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import tyro

import config
from config import Config, ConfigProblem
from engine import settings
from engine.files import FileProblem, is_disk_full
from engine.presets import PRESETS
from engine.stop import EXIT_INTERRUPTED

C = TypeVar("C")

TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


@dataclass(frozen=True)
class Source:
    """Flags that choose where settings come from."""

    preset: str = ""
    """Set of settings by name: see engine/presets.py (demo, smoke, hand_mask, …)."""
    config: str = ""
    """Saved settings, such as checkpoints/<exp_name>/config.json."""


@dataclass(frozen=True)
class Parsed(Generic[C]):
    """What a command line means."""

    cfg: Config
    sources: dict[str, str] = field(default_factory=dict)
    """Field name -> "file", "preset" or "flag"; fields that are not here have their default."""
    commands: C | None = None


def usage_error(message: str) -> NoReturn:
    """Print one clear message and leave with exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def run_command(command: Callable[[], int]) -> int:
    """Run a command's body; returns its exit code, and turns what users can mend into one sentence on stderr."""
    try:
        return command()
    except ConfigProblem as error:
        usage_error(str(error))
    except FileProblem as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has read enough; what is left in the buffer must not be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if is_disk_full(error):
            print("error: The disk is full: free some space and run again.", file=sys.stderr)
        elif error.filename is None:
            raise
        else:
            print(f"error: {error.filename}: {error.strerror}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def parse(argv: list[str], commands: type[C], description: str, base: Config | None = None) -> tuple[Parsed[C], C]:
    """Settings and commands from `argv`, by precedence: `base` (the defaults) < --config < --preset < flags.

    `commands` is a dataclass of further flags that are no settings. Values of closed sets may be written in any case,
    booleans as `--amp`, `--no_amp` or `--amp False`, flags with '-' or '_'.

    Raises:
        SystemExit: code 2 after a message for anything that is wrong, code 0 after --help.
    """
    known = known_flags(commands)
    argv, given = _normalise(argv, known)
    sources: dict[str, str] = {}
    cfg = base or Config()
    try:
        if path := given.get("config"):
            cfg, names = settings.from_record(_read_json(Path(path)), path, cfg)
            sources |= dict.fromkeys(names, "file")
        if preset := given.get("preset"):
            preset = preset.casefold()
            if preset not in PRESETS:
                near = config.suggest(preset, PRESETS)
                usage_error(f"preset {preset!r} is none of {', '.join(PRESETS)}{near}")
            cfg = settings.replace(cfg, PRESETS[preset])
            of_its_set = settings.augment_set(PRESETS[preset].get("augment"))
            sources |= dict.fromkeys([*of_its_set, *PRESETS[preset]], "preset")
        if chosen := settings.augment_set(given.get("augment")):
            cfg = settings.replace(cfg, chosen)
            sources |= dict.fromkeys(chosen, f"augment {given['augment'].casefold()}")
    except ConfigProblem as error:
        usage_error(str(error))
    line: Any = dataclasses.make_dataclass(
        "Settings", [("commands", commands), ("source", Source), ("cfg", Config)], frozen=True
    )
    parsed: Any = tyro.cli(
        line,
        args=argv,
        default=line(commands=commands(), source=Source(), cfg=cfg),
        description=description,
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    sources |= {name: "flag" for name in given if name in settings.SECTION_OF}
    try:
        # What came as JSON has its plain types until now.
        written = {name: settings.get(parsed.cfg, name) for name in given if name in settings.JSON_FIELDS}
        cfg = settings.replace(parsed.cfg, written)
    except ConfigProblem as error:
        usage_error(str(error))
    return Parsed(cfg, sources, parsed.commands), parsed.commands


def describe(cfg: Config, sources: Mapping[str, str]) -> str:
    """All settings, one a line, each with its source."""
    lines = []
    for section, kind in settings.SECTIONS.items():
        lines.append(f"[{section}]")
        for f in dataclasses.fields(kind):
            value = json.dumps(settings.to_record(cfg)[section][f.name], ensure_ascii=False)
            lines.append(f"  {f.name} = {value}  ({sources.get(f.name, 'default')})")
    return "\n".join(lines)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigProblem(f"{path} cannot be read ({error.strerror}): give a saved config.json.") from None
    except ValueError as error:
        raise ConfigProblem(f"{path} is not JSON ({error}): give a saved config.json.") from None


def known_flags(commands: type) -> dict[str, tuple[str, Any]]:
    """Every spelling of a flag -> (field name, type)."""
    known: dict[str, tuple[str, Any]] = {}
    for kind in (commands, Source, *settings.SECTIONS.values()):
        plain, annotated = get_type_hints(kind), get_type_hints(kind, include_extras=True)
        for f in dataclasses.fields(kind):
            known[f.name] = (f.name, plain[f.name])
            for extra in getattr(annotated[f.name], "__metadata__", ()):
                known |= {a.lstrip("-"): (f.name, plain[f.name]) for a in getattr(extra, "aliases", None) or ()}
    return known


def _normalise(argv: list[str], known: dict[str, tuple[str, Any]]) -> tuple[list[str], dict[str, str]]:
    """`argv` as tyro expects it, and the fields that it sets (name -> first value, or "")."""
    out: list[str] = []
    given: dict[str, str] = {}
    tokens = _spelt_out([part for token in argv for part in _split_equals(token)])
    i = 0
    while i < len(tokens):
        token = tokens[i]
        i += 1
        flag = token[2:].replace("-", "_") if token.startswith("--") else ""
        negated = flag.startswith("no_") and flag not in known
        name, kind = known.get(flag[3:] if negated else flag, ("", None))
        if not name:
            out.append(token)
            continue
        value = tokens[i] if i < len(tokens) and not tokens[i].startswith("--") else None
        given[name] = value or ""
        if kind is bool:
            if value is not None and value.casefold() in TRUE + FALSE:
                i += 1
                negated ^= value.casefold() in FALSE
            out.append(f"--no_{name}" if negated else f"--{name}")
            continue
        out.append(token)
        if value is None:
            out += [config.BARE_VALUES[name]] if name in config.BARE_VALUES else []
        elif get_origin(kind) is Literal:
            i += 1
            out.append(settings.canonical(name, value) if name in settings.SECTION_OF else value)
            if out[-1] not in get_args(kind):
                near = config.suggest(value, get_args(kind))
                usage_error(f"{name}: {value!r} is none of {', '.join(map(str, get_args(kind)))}{near}")
    return out, given


def _spelt_out(tokens: list[str]) -> list[str]:
    """`tokens` with what short forms stand for, which comes first: --use_tta --tta_mode full is full."""
    short: list[str] = []
    rest: list[str] = []
    i = 0
    while i < len(tokens):
        name = tokens[i][2:].replace("-", "_") if tokens[i].startswith("--") else ""
        i += 1
        if name not in config.SHORT_FLAGS:
            rest.append(tokens[i - 1])
            continue
        value = tokens[i].casefold() if i < len(tokens) else ""
        i += value in TRUE + FALSE  # some frameworks' users write --use_tta True
        short += () if value in FALSE else config.SHORT_FLAGS[name]
    return short + rest


def _split_equals(token: str) -> list[str]:
    flag, equals, value = token.partition("=")
    return [flag, value] if equals and token.startswith("--") else [token]
