"""config.py: fields, types, limits, rules between fields, presets and the saved record."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import config
from config import Config, ConfigProblem
from engine import settings
from engine.presets import PRESETS

FIELDS = sorted(settings.SECTION_OF)
FEW = hypothesis_settings(derandomize=True, max_examples=60, deadline=None)


def field_docstrings() -> dict[str, str]:
    """Field -> the string under it in config.py, which is its help."""
    found = {}
    for node in ast.parse(Path(config.__file__).read_text("utf-8")).body:
        if not isinstance(node, ast.ClassDef) or node.name.casefold() not in settings.SECTIONS:
            continue
        for entry, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(entry, ast.AnnAssign) and isinstance(after, ast.Expr):
                assert isinstance(entry.target, ast.Name)
                found[entry.target.id] = ast.literal_eval(after.value)
    return found


def another_value(name: str) -> Any:
    """A legal value of field `name` that is not its default."""
    kind, default = settings.TYPE_OF[name], settings.get(Config(), name)
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != default)
    if kind == config.Range:
        return (0.125, 0.25, 0.875)
    if get_origin(kind) is dict:
        return {"Radius": 0.25}
    if get_args(kind)[:1] == (config.EnsembleMember,):
        return (config.EnsembleMember("a"), config.EnsembleMember("b", 2.5, {"Ulna": 0.5}))
    if get_origin(kind) is tuple:
        return (*default, get_args(kind)[0](7))
    if kind is bool:
        return not default
    return kind(1 + default) if kind in (int, float) else f"{default}2"


def test_field_names_are_unique_over_all_sections() -> None:
    assert len(settings.SECTION_OF) == sum(len(dataclasses.fields(kind)) for kind in settings.SECTIONS.values())


def test_every_setting_is_read_somewhere() -> None:
    """One that nothing reads does nothing, whatever its help says."""
    root = Path(config.__file__).parent
    places = [root, *(root / name for name in ("engine", "dataset", "model", "model/losses", "inference"))]
    files = [path for place in places for path in place.glob("*.py")]
    text = "".join(p.read_text("utf-8") for p in files if p.name not in ("config.py", "settings.py"))
    assert [name for name in FIELDS if not re.search(rf'\.{name}\b|"{name}"', text)] == []


def test_sections_cannot_be_changed_in_place() -> None:
    for section in (Config(), *(getattr(Config(), name) for name in settings.SECTIONS)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            section.anything = 1


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_help(name: str) -> None:
    assert len(field_docstrings()[name]) >= 15


@pytest.mark.parametrize("name", FIELDS)
def test_every_number_has_limits_and_the_default_obeys_them(name: str) -> None:
    if settings.TYPE_OF[name] in (int, float) and name != "fold":  # fold has a rule of its own
        low, high = settings.LIMITS[name]
        assert low <= settings.get(Config(), name) <= high


def test_limits_name_fields_only() -> None:
    assert set(settings.LIMITS) <= set(settings.SECTION_OF)


def test_the_defaults_are_fit_to_run() -> None:
    settings.check(Config())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_passes_the_checks_and_changes_something(preset: str) -> None:
    cfg = settings.replace(Config(), PRESETS[preset])
    settings.check(cfg)
    assert cfg != Config()
    assert preset == preset.casefold()


def test_demo_and_smoke_presets_exist_and_need_no_data() -> None:
    for preset in ("demo", "smoke"):
        cfg = settings.replace(Config(), PRESETS[preset])
        assert cfg.phantom.phantom
        assert not cfg.model.pretrained


# --- the saved record


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_survives_record_and_json(name: str) -> None:
    cfg = settings.replace(Config(), {name: another_value(name)})
    assert cfg != Config()
    record = settings.to_record(cfg)
    for saved in (record, json.loads(json.dumps(record))):
        back, names = settings.from_record(saved, "saved.json")
        assert back == cfg
        assert back.hash() == cfg.hash()
        assert names == set(FIELDS)
        assert [type(settings.get(back, f)) for f in FIELDS] == [type(settings.get(cfg, f)) for f in FIELDS]


@FEW
@given(st.floats(1e-9, 10), st.integers(0, 2**63 - 1), st.lists(st.text(max_size=5), max_size=4), st.text(max_size=9))
def test_awkward_values_survive_json(lr: float, seed: int, exclude: list[str], exp_name: str) -> None:
    cfg = settings.replace(Config(), {"lr": lr, "seed": seed, "exclude": exclude, "exp_name": exp_name})
    assert settings.from_record(json.loads(json.dumps(settings.to_record(cfg))), "x")[0] == cfg


def test_the_hash_follows_every_field() -> None:
    hashes = {settings.replace(Config(), {name: another_value(name)}).hash() for name in FIELDS}
    assert len(hashes | {Config().hash()}) == len(FIELDS) + 1


def test_a_record_may_be_flat_or_partial_and_keeps_the_rest_of_its_base() -> None:
    base = settings.replace(Config(), {"epoch": 7, "stride": 100})
    flat, names = settings.from_record({"stride": 64}, "x", base)
    nested, _ = settings.from_record({"window": {"stride": 64}}, "x", base)
    assert flat == nested == settings.replace(base, {"stride": 64})
    assert names == {"stride"}


@pytest.mark.parametrize(
    ("record", "near"),
    [
        ({"window": {"strid": 3}}, "stride"),
        ({"windw": {"stride": 3}}, "window"),
        ({"Batch_Sise": 3}, "batch_size"),
    ],
)
def test_unknown_keys_are_errors_with_a_suggestion(record: dict[str, Any], near: str) -> None:
    with pytest.raises(ConfigProblem, match=rf"^saved\.json: .*unknown .*did you mean .*{near}") as problem:
        settings.from_record(record, "saved.json")
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("record", [[], "text", None, 3, {"train": 5}, {"train": None}, {"nonsense-key": 1}])
def test_what_is_no_record_is_an_error_that_names_the_file(record: Any) -> None:
    with pytest.raises(ConfigProblem, match=r"^saved\.json: "):
        settings.from_record(record, "saved.json")


def test_all_bad_keys_and_types_of_a_file_are_reported_at_once() -> None:
    record = {"strde": 1, "train": {"lr": "fast", "epoc": 3}, "run": {"resume": 1}}
    with pytest.raises(ConfigProblem) as problem:
        settings.from_record(record, "saved.json")
    for part in ("'strde' (did you mean stride", "lr: 'fast'", "'epoc' (did you mean epoch", "resume: 1"):
        assert part in str(problem.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epoch", 2.5),
        ("epoch", True),
        ("epoch", "3"),
        ("epoch", None),
        ("lr", True),
        ("lr", "1e-3"),
        ("resume", 1),
        ("resume", "true"),
        ("exp_name", 3),
        ("classes", "abc"),
        ("classes", [1, 2]),
        ("loss_weights", ["1"]),
        ("scheduler", "Cosin"),
        ("optimizer", 3),
    ],
)
def test_values_of_another_type_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigProblem, match=f"{name}: .*{value!r}".replace("[", r"\[").replace("]", r"\]")):
        settings.replace(Config(), {name: value})


def test_near_values_are_suggested() -> None:
    with pytest.raises(ConfigProblem, match=r"none of .*StepLR.* \(did you mean StepLR"):
        settings.replace(Config(), {"scheduler": "stepplr"})


def test_whole_numbers_and_lists_become_floats_and_tuples() -> None:
    cfg = settings.replace(Config(), {"lr": 1, "loss_weights": [1, 2], "classes": ["a", "b"]})
    assert (cfg.train.lr, cfg.loss.loss_weights, cfg.data.classes) == (1.0, (1.0, 2.0), ("a", "b"))
    assert all(isinstance(w, float) for w in (cfg.train.lr, *cfg.loss.loss_weights))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("scheduler", "cosine", "CosineAnnealingLR"),
        ("scheduler", "Cosine", "CosineAnnealingLR"),
        ("scheduler", "cosineannealinglr", "CosineAnnealingLR"),
        ("scheduler", "none", "None"),
        ("wandb", "1", "online"),
        ("wandb", "OFF", "off"),
        ("device", "CPU", "cpu"),
        ("save_masks", "Packed", "packed"),
    ],
)
def test_closed_sets_lose_their_case(name: str, text: str, value: str) -> None:
    assert settings.get(settings.replace(Config(), {name: text}), name) == value


def test_replace_leaves_the_original_alone() -> None:
    before = Config()
    assert settings.replace(before, {"stride": 5}) is not before
    assert before == Config()


# --- rules


@pytest.mark.parametrize("name", sorted(set(settings.LIMITS) - set(settings.AUGMENTATIONS)))
def test_a_value_outside_its_limits_is_named_with_both(name: str) -> None:
    low, high = settings.LIMITS[name]
    for value in (low - 1, high * 2 + 1):
        wrong = settings.replace(Config(), {name: settings.TYPE_OF[name](value)})
        with pytest.raises(ConfigProblem, match=f"(?m)^{name} is .*between {low:g} and .*") as problem:
            settings.check(wrong)
        assert f"{high:g}" in str(problem.value)


@pytest.mark.parametrize("name", sorted(n for n in settings.LIMITS if settings.TYPE_OF[n] is float))
def test_nan_and_infinity_are_no_numbers_to_run_with(name: str) -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ConfigProblem, match=f"(?m)^{name} is {value}"):
            settings.check(settings.replace(Config(), {name: value}))


@pytest.mark.parametrize("name", settings.AUGMENTATIONS)
def test_the_three_numbers_of_an_augmentation(name: str) -> None:
    low, high = settings.LIMITS[name]
    settings.check(settings.replace(Config(), {name: (low, high, 1.0)}))
    wrong = {
        (low - 1, high, 0.5): f"between {low:g} and {high:g}",
        (low, 2 * high + 1, 0.5): f"between {low:g} and {high:g}",
        (high, low, 0.5): "first number must not exceed its second",
        (low, high, 1.5): "last number is a probability",
        (low, high, math.nan): "last number is a probability",
        (math.nan, high, 0.5): "must not exceed",
        (low, math.inf, 0.5): "between",
    }
    for numbers, said in wrong.items():
        with pytest.raises(ConfigProblem, match=f"(?m)^{name} is .*{said}"):
            settings.check(settings.replace(Config(), {name: numbers}))


@pytest.mark.parametrize("value", [(1.0, 2.0), (1.0, 2.0, 3.0, 4.0), 3.0, "abc", (1.0, "a", 2.0)])
def test_an_augmentation_has_three_numbers(value: Any) -> None:
    with pytest.raises(ConfigProblem, match=r"rotate: .* is not a list of 3 float"):
        settings.replace(Config(), {"rotate": value})


@pytest.mark.parametrize("name", config.AUGMENT_SETS)
def test_a_set_gives_every_augmentation_its_value(name: str) -> None:
    busy = settings.replace(Config(), dict.fromkeys(settings.AUGMENTATIONS, (0.0, 0.1, 1.0)))
    cfg = settings.replace(busy, {"augment": name.upper(), "hflip": (1.0, 1.0, 0.25)})
    settings.check(cfg)
    assert cfg.augment.augment == name and cfg.augment.hflip == (1.0, 1.0, 0.25), "what is named beside it wins"
    for entry in set(settings.AUGMENTATIONS) - {"hflip"}:
        assert settings.get(cfg, entry) == config.AUGMENT_SETS[name].get(entry, config.OFF)
    assert set(config.AUGMENT_SETS[name]) <= set(settings.AUGMENTATIONS)


def test_other_fields_leave_the_augmentations_alone() -> None:
    before = settings.replace(Config(), {"augment": "heavy"})
    after = settings.replace(before, {"stride": 5, "rotate": (0.0, 1.0, 1.0)})
    assert after.augment == dataclasses.replace(before.augment, rotate=(0.0, 1.0, 1.0))


def test_the_defaults_are_the_set_that_they_name() -> None:
    assert settings.replace(Config(), {"augment": Config().augment.augment}) == Config()


def test_mixing_and_mirroring_are_off_where_hands_are_meant() -> None:
    for name in config.AUGMENT_SETS:
        cfg = settings.replace(Config(), {"augment": name})
        assert {settings.get(cfg, mixer)[2] for mixer in ("copy_paste", "mixup", "cutmix")} == {0}
    hand = settings.replace(Config(), {"augment": "hand"})
    assert hand.augment.hflip[2] == hand.augment.vflip[2] == 0


RULES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"exp_name": ""}, ("exp_name",)),
    ({"exp_name": ".."}, ("exp_name", "'..'")),
    ({"exp_name": "a/b"}, ("exp_name", "'a/b'")),
    ({"exp_name": "a\\b"}, ("exp_name",)),
    ({"resume": True, "overwrite": True}, ("resume", "overwrite")),
    ({"fold": 5}, ("fold is 5", "n_folds 5", "0 to 4")),
    ({"fold": -1}, ("fold is -1",)),
    ({"n_folds": 3, "fold": 3}, ("fold is 3", "n_folds 3")),
    ({"classes": []}, ("classes",)),
    ({"classes": ["a", "b", "a"]}, ("classes", "twice")),
    ({"stride": 1025}, ("stride 1025", "window_size 1024", "--stride", "--window_size")),
    ({"image_size": 512}, ("window_size 1024", "image_size 512", "--window_size", "--image_size")),
    ({"loss_weights": [1.0]}, ("loss_weights has 1", "Combined_Focal_Dice has 2 terms", "Focal, Dice")),
    ({"loss": "bce_dice", "loss_weights": [1.0, 2.0, 3.0]}, ("loss_weights has 3", "has 2 terms")),
    ({"loss": "BCE", "loss_weights": [1.0, 2.0]}, ("loss_weights has 2", "has 1 terms")),
    ({"loss_weights": [-1.0, 2.0]}, ("loss_weights", "negative")),
    ({"loss_weights": [0.0, 0.0]}, ("loss_weights", "all 0")),
    ({"loss_weights": [math.nan, 1.0]}, ("loss_weights", "nan")),
    ({"loss_weights": [math.inf, 1.0]}, ("loss_weights", "inf")),
    ({"loss_weights": [1.0, math.nan]}, ("loss_weights", "nan")),
    ({"loss": "Focal__Dice"}, ("loss", "Focal__Dice")),
    ({"loss": "Combined"}, ("loss", "'Combined'", "Combined_Focal_Dice")),
    ({"loss": ""}, ("loss", "''")),
    ({"epoch": 2, "warmup_epochs": 3.0}, ("warmup_epochs 3", "2 epochs", "--warmup_epochs")),
    ({"lr": 1e-7}, ("min_lr 1e-06", "warmup_min_lr 1e-06", "lr 1e-07")),
    ({"min_lr": 1e-3}, ("min_lr 0.001", "lr 0.0001")),
]


@pytest.mark.parametrize(("values", "said"), RULES)
def test_a_broken_rule_names_field_value_and_remedy(values: dict[str, Any], said: tuple[str, ...]) -> None:
    with pytest.raises(ConfigProblem) as problem:
        settings.check(settings.replace(Config(), values))
    for part in said:
        assert part in str(problem.value)


@pytest.mark.parametrize(
    "values",
    [
        {"stride": 1024},
        {"window_size": 2048},
        {"exp_name": "My_First-Exp.2"},
        {"exp_name": "手のひら"},
        {"fold": 4},
        {"loss": "BCE", "loss_weights": [2.0]},
        {"loss_weights": [0.0, 1.0]},
        {"epoch": 1, "warmup_epochs": 1.0},
        {"lr": 1e-6},
        {"warmup_epochs": 0.0, "weight_decay": 0.0, "grad_clip": 0.0, "workers": 0},
    ],
)
def test_the_edge_of_a_rule_is_allowed(values: dict[str, Any]) -> None:
    settings.check(settings.replace(Config(), values))


def test_all_broken_rules_come_in_one_message_a_line_each() -> None:
    wrong = {"stride": 4096, "fold": 9, "epoch": 0, "lr": 100.0, "exp_name": "a/b", "resume": True, "overwrite": True}
    with pytest.raises(ConfigProblem) as problem:
        settings.check(settings.replace(Config(), wrong))
    lines = str(problem.value).splitlines()
    assert len(lines) == 7  # epoch 0 leaves none for SWA; resume and overwrite break one together
    for start in ("stride", "fold", "epoch", "lr", "exp_name", "resume and overwrite", "swa_epochs"):
        assert sum(line.startswith(f"{start} ") for line in lines) == 1, start
    assert all(line.endswith(".") for line in lines)


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("BCE", ["BCE"]),
        ("bce_dice", ["bce", "dice"]),
        ("Combined_Focal_Dice", ["Focal", "Dice"]),
        ("COMBINED_BCE", ["BCE"]),
    ],
)
def test_terms_of_a_loss_name(name: str, terms: list[str]) -> None:
    assert config.loss_terms(name) == terms


def test_the_hand_has_29_bones_with_names_of_their_own() -> None:
    assert len(set(config.HAND_BONES)) == 29
    assert config.HAND_BONES[0] == "finger-1"
    assert config.HAND_BONES[-2:] == ("Radius", "Ulna")
