"""The mechanics of config.py: fields by their flat names, types, limits, rules between fields, the saved record."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from config import AUGMENT_SETS, OFF, VALUE_ALIASES, Augment, Config, ConfigProblem, Train, loss_terms, suggest

SECTIONS: dict[str, type] = get_type_hints(Config)
SECTION_OF: dict[str, str] = {f.name: section for section, kind in SECTIONS.items() for f in fields(kind)}
"""Field name -> the section that holds it."""
TYPE_OF: dict[str, Any] = {
    name: hint for kind in SECTIONS.values() for name, hint in get_type_hints(kind, include_extras=False).items()
}
"""Field name -> its type, without the flag's other spellings."""
JSON_FIELDS: tuple[str, ...] = ("optimal_thresholds", "ensemble_models")
"""Fields whose flag takes JSON."""
AUGMENTATIONS: tuple[str, ...] = tuple(f.name for f in fields(Augment) if f.name != "augment")
"""Every augmentation, in the order of config.py."""

LIMITS: dict[str, tuple[float, float]] = {
    "gpus": (1, 64),
    "max_hours": (0, 1e5),
    "profile": (0, 100000),
    "limit_train": (0, 10**9),
    "limit_val": (0, 10**9),
    "overfit_batches": (0, 10**6),
    "pseudo_weight": (0, 100),
    "pseudo_confidence": (0, 1),
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
    "in_channels": (1, 3),
    "first_size": (32, 16384),
    "second_share": (0.05, 1),
    "second_size": (32, 4096),
    "focal_alpha": (0, 1),
    "focal_gamma": (0, 10),
    "pos_weight": (1e-3, 1e3),
    "label_smoothing": (0, 0.5),
    "pixel_weight_gain": (0, 1e3),
    "pixel_weight_sigma": (0.1, 1e3),
    "tversky_alpha": (0, 10),
    "tversky_beta": (0, 10),
    "focal_tversky_gamma": (0.1, 10),
    "epoch": (1, 100000),
    "batch_size": (1, 4096),
    "accumulate": (1, 4096),
    "lr": (1e-9, 10),
    "encoder_lr": (0, 100),
    "freeze_encoder": (0, 100000),
    "momentum": (0, 0.9999),
    "scheduler_t_max": (0, 100000),
    "scheduler_t_mult": (1, 100),
    "step_size": (0.01, 100000),
    "lr_gamma": (1e-6, 1),
    "plateau_patience": (0, 100000),
    "poly_power": (0.01, 100),
    "onecycle_share": (0.01, 0.99),
    "ema_decay": (0, 0.999999),
    "swa_epochs": (0, 100000),
    "swa_lr": (1e-9, 10),
    "bad_steps": (1, 10**6),
    "patience": (0, 100000),
    "save_interval": (0, 100000),
    "save_minutes": (0.01, 1e5),
    "keep_top": (0, 1000),
    "surface_tolerance": (0, 1000),
    "weight_decay": (0, 10),
    "min_lr": (0, 10),
    "warmup_epochs": (0, 100000),
    "warmup_min_lr": (0, 10),
    "grad_clip": (0, 1e9),
    "workers": (0, 256),
    "val_interval": (1, 100000),
    "threshold": (0.001, 0.999),
    "resize_to": (0, 16384),
    "mixed_size": (0, 16384),
    "mixed_share": (0, 1),
    "n_tta": (0, 1000),
    "vote_threshold": (0, 1),
    "seed": (0, 2**63 - 1),
    "split_seed": (0, 2**32 - 1),
    "phantom_seed": (0, 2**32 - 1),
}
"""Field -> smallest and largest value; of the three numbers of an augmentation for the first two."""


OF_SCHEDULER: dict[str, tuple[str, ...]] = {
    "scheduler_t_max": ("CosineAnnealingLR", "CosineAnnealingWarmRestarts"),
    "scheduler_t_mult": ("CosineAnnealingWarmRestarts",),
    "step_size": ("StepLR",),
    "milestones": ("MultiStepLR",),
    "lr_gamma": ("StepLR", "MultiStepLR", "ReduceLROnPlateau"),
    "plateau_patience": ("ReduceLROnPlateau",),
    "poly_power": ("PolynomialLR",),
    "onecycle_share": ("OneCycleLR",),
}
"""Setting -> the schedulers that follow it; with others it must keep its default."""


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
    if get_origin(kind) is dict:
        return _table_of_numbers(name, value)
    if get_origin(kind) is tuple and dataclasses.is_dataclass(get_args(kind)[0]):
        return _entries(name, get_args(kind)[0], value)
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
    if name == "fold" and _is(value, int):
        return str(value)  # of files and presets, where a number need not be quoted
    if not _is(value, kind):
        raise ValueError(f"{name}: {value!r} is not of type {kind.__name__}")
    return kind(value)


def _table_of_numbers(name: str, value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) and _is(v, float) for k, v in value.items()):
        raise ValueError(f'{name}: {value!r} is no table of numbers by class, such as {{"Radius": 0.4}}')
    return {key: float(number) for key, number in value.items()}


def _entries(name: str, kind: Any, value: Any) -> tuple[Any, ...]:
    """A list of JSON objects as dataclasses; what has a default may be left out."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name}: {value!r} is not a list of objects")
    known, hints = {f.name: f for f in fields(kind)}, get_type_hints(kind)
    found = []
    for number, entry in enumerate(value, 1):
        given = dataclasses.asdict(entry) if isinstance(entry, kind) else entry
        if not isinstance(given, Mapping):
            raise ValueError(f"{name}: entry {number}, {entry!r}, is no object")
        where = f"{name}: entry {number}"
        for key in given:
            if key not in known:
                raise ValueError(f"{where} has the unknown key {key!r}{suggest(str(key), known)}")
        if missing := [f.name for f in known.values() if _required(f) and f.name not in given]:
            raise ValueError(f"{where} lacks {', '.join(missing)}")
        values = {}
        for key, part in given.items():
            if get_origin(hints[key]) is dict:
                values[key] = _table_of_numbers(f"{where}, {key}", part)
            elif _is(part, hints[key]):
                values[key] = hints[key](part)
            else:
                raise ValueError(f"{where}, {key}: {part!r} is not of type {hints[key].__name__}")
        found.append(kind(**values))
    return tuple(found)


def _required(entry: dataclasses.Field[Any]) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


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


def shortened(cfg: Config) -> Config:
    """What `debug` and `overfit_batches` mean for the other settings. Check them before: they make rules moot."""
    if cfg.data.overfit_batches:
        cfg = replace(cfg, {"augment": "none"})
    if not cfg.run.debug:
        return cfg
    steps = {"limit_train": 2 * cfg.train.batch_size * cfg.run.gpus, "windows_per_image": 1, "accumulate": 1}
    plain = {"scheduler": "None", "use_warmup": False, "swa_epochs": 0, "freeze_encoder": 0}
    return replace(cfg, {"epoch": 1, "limit_val": 2, **steps, **plain})


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
            data.fold not in ("all", "none", *map(str, range(data.n_folds))),
            f"fold is {data.fold}, but n_folds {data.n_folds} has folds 0 to {data.n_folds - 1}; or give all, or none.",
        ),
        (
            data.fold == "all" and bool(data.holdout or data.overfit_batches or run.profile),
            "fold all contradicts holdout, overfit_batches and profile: give one fold, or leave them out.",
        ),
        (not data.classes, "classes is empty: name at least one class."),
        (
            bool(data.subject_pattern) and not _has_group(data.subject_pattern),
            f"subject_pattern is {data.subject_pattern!r}, but must be a regular expression with a group: ^(p\\d+)_.",
        ),
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
        (
            not data.pseudo and bool(data.pseudo_images or data.pseudo_confidence),
            "pseudo_images and pseudo_confidence need --pseudo: give it, or leave them out.",
        ),
        (
            bool(data.pseudo) and loss.dice_over == "sample",
            "dice_over sample takes all samples alike, so pseudo_weight would be ignored: give --dice_over class.",
        ),
        (
            data.fold == "none" and (train.scheduler == "ReduceLROnPlateau" or bool(train.patience)),
            "fold none validates nothing, so ReduceLROnPlateau and patience can't work: choose another scheduler and "
            "leave out --patience.",
        ),
        (cfg.model.in_channels == 2, "in_channels is 2, but a network takes 1 (grey) or 3 (grey, repeated)."),
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
    ]
    broken += [sentence for wrong, sentence in rules if wrong] + _faults_of_schedule(train) + _faults_of_inference(cfg)
    if broken:
        raise ConfigProblem("\n".join(broken))


def _has_group(pattern: str) -> bool:
    try:
        return re.compile(pattern).groups > 0
    except re.error:
        return False


def _faults_of_schedule(train: Train) -> list[str]:
    """What is wrong with the course of the learning rate."""
    default, scheduled = Train(), train.epoch - train.swa_epochs
    cosines = train.scheduler in OF_SCHEDULER["scheduler_t_max"]
    floor = cosines or train.scheduler in ("PolynomialLR", "ReduceLROnPlateau")
    warmup = train.warmup_epochs if train.use_warmup and train.scheduler != "OneCycleLR" else 0.0
    stops = train.milestones
    faults = [
        f"{name} has no meaning for scheduler {train.scheduler}: leave it out, or take {' or '.join(known)}."
        for name, known in OF_SCHEDULER.items()
        if train.scheduler not in known and getattr(train, name) != getattr(default, name)
    ]
    rules = [
        (floor and train.min_lr > train.lr, f"min_lr {train.min_lr:g} is above lr {train.lr:g}: lower --min_lr."),
        (
            warmup > 0 and train.warmup_min_lr > train.lr,
            f"warmup_min_lr {train.warmup_min_lr:g} is above lr {train.lr:g}, so the warm-up would fall: lower "
            f"--warmup_min_lr.",
        ),
        (
            train.swa_epochs >= train.epoch,
            f"swa_epochs {train.swa_epochs} leaves none of the {train.epoch} epochs for training before: lower it.",
        ),
        (
            train.swa_epochs < train.epoch and warmup > scheduled,
            f"warmup_epochs {warmup:g} is more than the {scheduled} epochs (epoch - swa_epochs): lower "
            f"--warmup_epochs.",
        ),
        (
            not train.swa_epochs and train.swa_lr != default.swa_lr,
            "swa_lr has no meaning without swa_epochs: give --swa_epochs too.",
        ),
        (
            train.scheduler == "CosineAnnealingWarmRestarts" and not 0 < train.scheduler_t_max < scheduled - warmup,
            f"scheduler_t_max {train.scheduler_t_max:g} restarts never in the {scheduled - warmup:g} epochs after the "
            f"warm-up: give a shorter first period, --scheduler_t_max {max(1.0, (scheduled - warmup) // 3):g} say, or "
            f"--scheduler cosine.",
        ),
        (
            train.scheduler == "MultiStepLR" and not stops,
            "milestones is empty, so MultiStepLR never drops: give --milestones 30 40, say.",
        ),
        (
            list(stops) != sorted(set(stops)) or any(not warmup < stop < scheduled for stop in stops),
            f"milestones {' '.join(f'{stop:g}' for stop in stops)} must rise, and lie after the warm-up ({warmup:g}) "
            f"and before epoch {scheduled}.",
        ),
        (
            train.scheduler == "StepLR" and not warmup < train.step_size < scheduled,
            f"step_size {train.step_size:g} must lie between the warm-up ({warmup:g}) and the {scheduled} epochs.",
        ),
    ]
    return faults + [sentence for wrong, sentence in rules if wrong]


def _faults_of_inference(cfg: Config) -> list[str]:
    """What is wrong with how images are predicted, and with the members of an ensemble."""
    chosen, ensemble, classes = cfg.inference, cfg.ensemble, cfg.data.classes
    views = [("tta_scales", chosen.tta_scales, 0.25, 4.0), ("tta_intensities", chosen.tta_intensities, 0.1, 4.0)]
    faults = [
        f"{name} has {value:g}, but its values must lie between {low:g} and {high:g}, without 1."
        for name, values, low, high in views
        for value in values
        if not low <= value <= high or value == 1
    ]
    named = {"optimal_thresholds": chosen.optimal_thresholds}
    named |= {f"ensemble_models, {m.path}, class_weights": m.class_weights for m in ensemble.ensemble_models}
    faults += [
        f"{where}: {name!r} is none of the classes{suggest(name, classes)}."
        for where, table in named.items()
        for name in table
        if name not in classes
    ]
    faults += [
        f"optimal_thresholds: {name} is {value:g}, but must lie between 0.001 and 0.999."
        for name, value in chosen.optimal_thresholds.items()
        if not 0.001 <= value <= 0.999
    ]
    weights = [(m.path, w) for m in ensemble.ensemble_models for w in (m.weight, *m.class_weights.values())]
    faults += [
        f"ensemble_models, {path}: the weight {weight:g} must be a finite number, not negative."
        for path, weight in weights
        if not 0 <= weight < math.inf
    ]
    index, _, count = chosen.shard.partition("/")
    rules = [
        (
            bool(chosen.shard) and not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)),
            f"shard is {chosen.shard!r}, but must be a part and the number of parts, 1/4 to 4/4 for four.",
        ),
        (
            chosen.full_size and bool(chosen.resize_to),
            f"full_size takes images as they are, resize_to {chosen.resize_to} resizes them: leave out one of them.",
        ),
        (
            chosen.find_hands and chosen.save_probs,
            "find_hands predicts hands upright, so save_probs has no image to store them for: leave one of them out.",
        ),
        (
            bool(chosen.n_tta) and chosen.tta_mode == "none" and "tta" not in chosen.inference_file,
            f"n_tta {chosen.n_tta} limits the views, but tta_mode is none: give --tta_mode too.",
        ),
        (
            bool(chosen.input) and chosen.split == "val",
            "input names the images, split val others: leave out one of them.",
        ),
        (
            ensemble.vote != "hard" and bool(ensemble.vote_threshold),
            f"vote_threshold {ensemble.vote_threshold:g} has no meaning for vote {ensemble.vote}: give --threshold, or "
            f"--vote hard.",
        ),
    ]
    return faults + [sentence for wrong, sentence in rules if wrong]


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
