"""Names, schedules and weights of losses as settings have them. Imports nothing slow: reads constants off the files."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import config
from config import Config, ConfigProblem, loss_terms, suggest

TERM_FILES = {path.stem.removeprefix("term_"): path for path in sorted(Path(__file__).parent.glob("term_*.py"))}
"""Name of a term in small letters -> its file."""


@dataclass(frozen=True)
class Scheduled:
    """A loss and the epoch that it begins with."""

    epoch: int
    name: str
    """Canonical."""
    weights: tuple[float, ...] = ()
    """One for each term; empty weighs all by 1."""

    def __str__(self) -> str:
        text = f"{self.epoch}:{self.name}"
        return f"{text}:{','.join(map(repr, self.weights))}" if self.weights else text

    @property
    def terms(self) -> list[str]:
        return loss_terms(self.name)


def term_names() -> list[str]:
    """Names of all terms as they are written."""
    return [_constants(stem)["NAME"] for stem in TERM_FILES]


@cache
def _constants(stem: str) -> dict[str, Any]:
    """NAME, ALIASES and OPTIONS of a term's file, read without importing it: that would wait for torch."""
    found = {"ALIASES": (), "OPTIONS": ()}
    for node in ast.parse(TERM_FILES[stem].read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and (name := ast.unparse(node.targets[0])) in ("NAME", "ALIASES", "OPTIONS"):
            found[name] = ast.literal_eval(node.value)
    return found


@cache
def _spellings() -> dict[str, str]:
    """Name or alias in small letters -> name."""
    constants = [_constants(stem) for stem in TERM_FILES]
    return {text.casefold(): c["NAME"] for c in constants for text in (c["NAME"], *c["ALIASES"])}


def canonical_name(name: str) -> str:
    """`bce_dice`, `Combined_bce_dice` -> Combined_BCE_Dice; `bce_iou` -> Combined_BCE_Jaccard.

    Raises:
        ConfigProblem: a part of the name is no term; names the near ones.
    """
    known = _spellings()
    parts = loss_terms(name)
    for part in parts:
        if part.casefold() not in known:
            near = suggest(part, [*term_names(), *(a for stem in TERM_FILES for a in _constants(stem)["ALIASES"])])
            raise ConfigProblem(
                f"loss {name!r}: {part!r} is no term; terms are {', '.join(term_names())}{near}, combined as in "
                f"Combined_Focal_Dice."
            )
    if not parts:
        raise ConfigProblem(f"loss {name!r} names no term: combine terms as in Combined_Focal_Dice.")
    terms = [known[part.casefold()] for part in parts]
    return terms[0] if len(terms) == 1 else "_".join(["Combined", *terms])


def canonical_schedule(entries: tuple[str, ...]) -> tuple[str, ...]:
    """`20:combined_bce_dice:0.1,.9` -> 20:Combined_BCE_Dice:0.1,0.9, in the order of the epochs.

    Raises:
        ConfigProblem: an entry can't be read, its weights do not fit its terms, or two begin with the same epoch.
    """
    return tuple(str(entry) for entry in _schedule(entries))


def _schedule(entries: tuple[str, ...]) -> list[Scheduled]:
    parsed = sorted((_entry(text) for text in entries), key=lambda entry: entry.epoch)
    for one, other in pairwise(parsed):
        if one.epoch == other.epoch:
            raise ConfigProblem(
                f"loss_schedule has {one} and {other}, which begin with the same epoch: leave one of them out."
            )
    return parsed


def _entry(text: str) -> Scheduled:
    epoch, *rest = text.split(":")
    if not (epoch.isascii() and epoch.isdecimal()) or len(rest) not in (1, 2):
        raise ConfigProblem(
            f"loss_schedule {text!r} must be EPOCH:LOSS or EPOCH:LOSS:WEIGHT,WEIGHT with an epoch from 0 on, such as "
            f"20:Combined_BCE_Dice:0.1,0.9."
        )
    name = canonical_name(rest[0])
    weights = tuple(_number(one, f"loss_schedule {text!r}") for one in rest[1].split(",")) if rest[1:] else ()
    count = len(loss_terms(name))
    if weights and len(weights) != count:
        raise ConfigProblem(
            f"loss_schedule {text!r} has {len(weights)} weights, but {name} has {count} terms: give one for each."
        )
    if weights and not sum(weights):
        raise ConfigProblem(f"loss_schedule {text!r}: the weights must not all be 0.")
    return Scheduled(int(epoch), name, weights)


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ConfigProblem(f"{where}: {text!r} is no weight: give a finite number that is not negative.")
    return number


def class_weights(cfg: Config) -> tuple[float, ...]:
    """The weight of each class, in the order of `classes`.

    Raises:
        ConfigProblem: an entry is no CLASS=NUMBER, its class is unknown or named twice, or all weights are 0.
    """
    known, given = cfg.data.classes, dict[str, float]()
    for entry in cfg.loss.class_weights:
        name, equals, number = entry.rpartition("=")
        if not equals:
            raise ConfigProblem(f"class_weights {entry!r} must be CLASS=NUMBER, such as Pisiform=2.")
        if name not in known:
            raise ConfigProblem(
                f"class_weights {entry!r}: {name!r} is no class{suggest(name, known)}; classes are {', '.join(known)}."
            )
        if name in given:
            raise ConfigProblem(f"class_weights has {name} twice: leave one of the entries out.")
        given[name] = _number(number, f"class_weights {entry!r}")
    weights = tuple(given.get(name, 1.0) for name in known)
    if not sum(weights):
        raise ConfigProblem("class_weights: the weights must not all be 0.")
    return weights


def losses_of(cfg: Config) -> list[Scheduled]:
    """All losses of a run, in the order of their epochs; the first begins with epoch 0.

    Raises:
        ConfigProblem: see canonical_name, canonical_schedule.
    """
    later = _schedule(cfg.loss.loss_schedule)
    first = Scheduled(0, canonical_name(cfg.loss.loss), cfg.loss.loss_weights)
    return later if later and later[0].epoch == 0 else [first, *later]


def loss_at(cfg: Config, epoch: int) -> Scheduled:
    """The loss of an epoch, which counts from 0."""
    return [entry for entry in losses_of(cfg) if entry.epoch <= epoch][-1]


def unused_options(cfg: Config) -> list[str]:
    """Fields of the section Loss that are set, but that no loss of the run follows."""
    followed = {"loss", "loss_weights", "loss_schedule", "class_weights"}
    for entry in losses_of(cfg):
        for term in entry.terms:
            followed |= set(_constants(term.casefold())["OPTIONS"])
    if cfg.loss.pixel_weight == "none":
        followed.discard("pixel_weight_gain")
    if cfg.loss.pixel_weight != "distance":
        followed.discard("pixel_weight_sigma")
    changed = [name for name, value in vars(cfg.loss).items() if value != getattr(config.Loss(), name)]
    return [name for name in changed if name not in followed]


def check(cfg: Config) -> None:
    """Check everything that the losses of a run are told.

    Raises:
        ConfigProblem: names, weights or a schedule that can't be read; an option that no term follows; a loss that
            begins after the last epoch.
    """
    class_weights(cfg)
    losses = losses_of(cfg)
    never = [str(entry) for entry in losses if entry.epoch >= cfg.train.epoch]
    if never:
        raise ConfigProblem(
            f"loss_schedule {', '.join(never)} never begins, as the last epoch is {cfg.train.epoch - 1} (the first is "
            f"0): leave it out or raise --epoch."
        )
    if losses[0].name != canonical_name(cfg.loss.loss) and cfg.loss.loss_weights:
        raise ConfigProblem(
            f"loss_weights {cfg.loss.loss_weights} belong to {cfg.loss.loss}, which loss_schedule {losses[0]} replaces "
            f"from epoch 0 on: write the weights there."
        )
    if unused := unused_options(cfg):
        raise ConfigProblem("\n".join(_unused(name, cfg, losses) for name in unused))


def _unused(name: str, cfg: Config, losses: list[Scheduled]) -> str:
    terms = [_constants(stem)["NAME"] for stem in TERM_FILES if name in _constants(stem)["OPTIONS"]]
    needed = " or ".join(terms)
    if any(term in terms for entry in losses for term in entry.terms):
        kinds = "distance" if name == "pixel_weight_sigma" else "distance or overlap"
        needed = f"--pixel_weight {kinds}"
    used = ", ".join(entry.name for entry in losses)
    return f"{name} is {getattr(cfg.loss, name)}, but nothing in the loss ({used}) follows it: it needs {needed}."
