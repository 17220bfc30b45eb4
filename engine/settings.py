"""The mechanics of config.py: fields by their flat names, types, limits, rules between fields, the saved record."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from config import AUGMENT_SETS, OFF, VALUE_ALIASES, Augment, Config, ConfigProblem, loss_terms, suggest

SECTIONS: dict[str, type] = get_type_hints(Config)
SECTION_OF: dict[str, str] = {f.name: section for section, kind in SECTIONS.items() for f in fields(kind)}
"""Field name -> the section that holds it."""
TYPE_OF: dict[str, Any] = {
    name: hint for kind in SECTIONS.values() for name, hint in get_type_hints(kind, include_extras=False).items()
}
"""Field name -> its type, without the flag's other spellings."""
AUGMENTATIONS: tuple[str, ...] = tuple(f.name for f in fields(Augment) if f.name != "augment")
"""Every augmentation, in the order of config.py."""

LIMITS: dict[str, tuple[float, float]] = {
    "n_folds": (2, 100),
    "phantom_train": (2, 10000),
    "phantom_test": (1, 10000),
    "phantom_size": (128, 2048),
    "image_size": (32, 16384),
    "window_size": (32, 8192),
    "stride": (1, 8192),
    "gaussian_sigma": (0.01, 10),
    "window_batch": (1, 4096),
    "windows_per_image": (1, 4096),
    "clahe_clip": (0.01, 100),
    "clahe_tiles": (1, 64),
    "shift": (-1, 1),
    "scale": (-0.9, 9),
    "rotate": (-180, 180),
    "shear": (-60, 60),
    "resized_crop": (0.01, 1),
    "hflip": (0, 1),
    "vflip": (0, 1),
    "elastic": (0, 0.1),
    "grid_distortion": (0, 0.45),
    "brightness": (-1, 1),
    "contrast": (-1, 10),
    "gamma": (-3, 3),
    "clahe": (0.01, 100),
    "retinex": (0, 1),
    "edges": (0, 1),
    "sharpen": (0, 1),
    "low_resolution": (0.01, 1),
    "blur": (0, 50),
    "motion_blur": (0, 200),
    "noise": (0, 1),
    "coarse_dropout": (0, 1),
    "copy_paste": (1, 10),
    "mixup": (0, 1),
    "cutmix": (0, 1),
    "base_channels": (1, 1024),
    "dropout": (0, 0.95),
    "focal_alpha": (0, 1),
    "focal_gamma": (0, 10),
    "epoch": (1, 100000),
    "batch_size": (1, 4096),
    "accumulate": (1, 4096),
    "lr": (1e-9, 10),
    "weight_decay": (0, 10),
    "min_lr": (0, 10),
    "warmup_epochs": (0, 100000),
    "warmup_min_lr": (0, 10),
    "grad_clip": (0, 1e9),
    "workers": (0, 256),
    "val_interval": (1, 100000),
    "threshold": (0.001, 0.999),
    "resize_to": (0, 16384),
    "seed": (0, 2**63 - 1),
    "split_seed": (0, 2**32 - 1),
    "phantom_seed": (0, 2**32 - 1),
}
"""Field -> smallest and largest value; of the three numbers of an augmentation for the first two."""


def get(cfg: Config, name: str) -> Any:
    """The value of a field by its flat name."""
    return getattr(getattr(cfg, SECTION_OF[name]), name)


def replace(cfg: Config, values: Mapping[str, Any]) -> Config:
    """A copy with `values` (flat field name -> value); each is checked against the field's type.

    `augment` gives every augmentation that `values` does not name the value of its set.

    Raises:
        ConfigProblem: unknown names (with the nearest ones) and values of another type, all at once.
    """
    problems: list[str] = []
    changes: dict[str, dict[str, Any]] = {}
    for name, value in {**augment_set(values.get("augment")), **values}.items():
        if name not in SECTION_OF:
            problems.append(f"unknown field {name!r}{suggest(name, SECTION_OF)}")
            continue
        try:
            changes.setdefault(SECTION_OF[name], {})[name] = coerce(name, value)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ConfigProblem("; ".join(problems) + ".")
    sections = {section: dataclasses.replace(getattr(cfg, section), **c) for section, c in changes.items()}
    return dataclasses.replace(cfg, **sections)


def augment_set(name: Any) -> dict[str, tuple[float, float, float]]:
    """Every augmentation with the value that the set of this name gives it; nothing where no set has the name."""
    chosen = AUGMENT_SETS.get(name.casefold()) if isinstance(name, str) else None
    return {} if chosen is None else {entry: chosen.get(entry, OFF) for entry in AUGMENTATIONS}


def coerce(name: str, value: Any) -> Any:
    """`value` as the type of field `name`: JSON lists become tuples, whole numbers floats, values lose their case."""
    kind = TYPE_OF[name]
    if get_origin(kind) is tuple:
        items = get_args(kind)
        count = None if items[-1] is Ellipsis else len(items)
        fits = isinstance(value, (list, tuple)) and all(_is(v, items[0]) for v in value)
        if fits and count in (None, len(value)):
            return tuple(items[0](v) for v in value)
        raise ValueError(f"{name}: {value!r} is not a list of {f'{count} ' if count else ''}{items[0].__name__}")
    if get_origin(kind) is Literal:
        match = canonical(name, value) if isinstance(value, str) else value
        if match in get_args(kind):
            return match
        choices = ", ".join(map(str, get_args(kind)))
        raise ValueError(f"{name}: {value!r} is none of {choices}{suggest(str(value), get_args(kind))}")
    if not _is(value, kind):
        raise ValueError(f"{name}: {value!r} is not of type {kind.__name__}")
    return kind(value)


def canonical(name: str, text: str) -> str:
    """The value of a closed set that `text` means, whatever its case; `text` itself where there is none."""
    known = {str(choice).casefold(): str(choice) for choice in get_args(TYPE_OF[name])}
    known |= VALUE_ALIASES.get(name, {})
    return known.get(text.casefold(), text)


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def to_record(cfg: Config) -> dict[str, dict[str, Any]]:
    """Plain JSON values by section, as config.json and every checkpoint hold them."""
    record: dict[str, dict[str, Any]] = json.loads(json.dumps(dataclasses.asdict(cfg)))
    return record


def from_record(record: Any, where: str, base: Config | None = None) -> tuple[Config, set[str]]:
    """Settings from a saved record (by section, or flat) on top of `base`, and the names of the fields it sets.

    Raises:
        ConfigProblem: not a JSON object, unknown keys, values of another type; the message begins with `where`.
    """
    if not isinstance(record, dict):
        raise ConfigProblem(f"{where}: expected a JSON object of settings, found {type(record).__name__}.")
    flat: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in record.items():
        if key in SECTIONS and isinstance(value, dict):
            flat |= value
        elif key in SECTION_OF:
            flat[key] = value
        elif key in SECTIONS:
            problems.append(f"{key}: {value!r} is no JSON object of settings")
        else:
            problems.append(f"unknown key {key!r}{suggest(key, [*SECTIONS, *SECTION_OF])}")
    try:
        cfg = replace(base or Config(), flat)
    except ConfigProblem as error:
        problems.append(str(error).removesuffix("."))
    if problems:
        raise ConfigProblem(f"{where}: {'; '.join(problems)}.")
    return cfg, set(flat)


def check(cfg: Config) -> None:
    """Check the limits of every field and the rules between them.

    Raises:
        ConfigProblem: one line for each broken rule, all at once.
    """
    broken = [
        f"{name} is {get(cfg, name)}, but must lie between {low:g} and {high:g}."
        for name, (low, high) in LIMITS.items()
        if name not in AUGMENTATIONS and not low <= get(cfg, name) <= high
    ]
    broken += [sentence for name in AUGMENTATIONS for sentence in _faults_of_range(name, *get(cfg, name))]
    run, data, window, loss, train = cfg.run, cfg.data, cfg.window, cfg.loss, cfg.train
    terms = loss_terms(loss.loss)
    rules = [
        (
            not run.exp_name or run.exp_name.startswith(".") or any(c in run.exp_name for c in '/\\:*?"<>|\0'),
            f"exp_name is {run.exp_name!r}, but names a folder: use letters, digits, '_', '-' and '.', not first '.'.",
        ),
        (run.resume and run.overwrite, "resume and overwrite contradict each other: give one of them."),
        (
            not 0 <= data.fold < data.n_folds,
            f"fold is {data.fold}, but n_folds {data.n_folds} has folds 0 to {data.n_folds - 1}.",
        ),
        (not data.classes, "classes is empty: name at least one class."),
        (len(set(data.classes)) < len(data.classes), f"classes has a name twice: {', '.join(data.classes)}."),
        (
            window.stride > window.window_size,
            f"stride {window.stride} is larger than window_size {window.window_size}, so pixels between windows would "
            f"have no prediction: lower --stride or raise --window_size.",
        ),
        (
            window.window_size > window.image_size,
            f"window_size {window.window_size} is larger than image_size {window.image_size}: lower --window_size or "
            f"raise --image_size.",
        ),
        (not all(terms) or not terms, f"loss {loss.loss!r} names no term: combine terms as in Combined_Focal_Dice."),
        (
            bool(loss.loss_weights) and len(loss.loss_weights) != len(terms),
            f"loss_weights has {len(loss.loss_weights)} values, but {loss.loss} has {len(terms)} terms "
            f"({', '.join(terms)}): give one weight for each.",
        ),
        (
            bool(loss.loss_weights) and not (min(loss.loss_weights) >= 0 and 0 < sum(loss.loss_weights) < math.inf),
            f"loss_weights {loss.loss_weights} must be finite numbers, not negative and not all 0.",
        ),
        (
            train.warmup_epochs > train.epoch,
            f"warmup_epochs {train.warmup_epochs:g} is more than epoch {train.epoch}: lower --warmup_epochs.",
        ),
        (
            train.min_lr > train.lr or train.warmup_min_lr > train.lr,
            f"min_lr {train.min_lr:g} and warmup_min_lr {train.warmup_min_lr:g} must not exceed lr {train.lr:g}.",
        ),
    ]
    broken += [sentence for wrong, sentence in rules if wrong]
    if broken:
        raise ConfigProblem("\n".join(broken))


def _faults_of_range(name: str, low: float, high: float, probability: float) -> list[str]:
    """What is wrong with the three numbers of an augmentation."""
    least, most = LIMITS[name]
    given = f"{name} is {low:g} {high:g} {probability:g}"
    beyond = probability > 0 and not (least <= low and high <= most)
    rules = [
        (not 0 <= probability <= 1, f"{given}, but its last number is a probability, 0 to 1."),
        (not low <= high, f"{given}, but its first number must not exceed its second."),
        (beyond, f"{given}, but its values must lie between {least:g} and {most:g}."),
    ]
    return [sentence for wrong, sentence in rules if wrong]
