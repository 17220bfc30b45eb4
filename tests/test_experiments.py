"""engine/jobs/experiments.py: lists of experiments, their grids and folds, and what may be wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import hypothesis
import pytest
from hypothesis import strategies as st

from config import Config, ConfigProblem
from engine import flags, settings
from engine.jobs.entry import Spec
from engine.jobs.experiments import plan, read_experiments

fixed = hypothesis.settings(derandomize=True, max_examples=30, deadline=None)  # each parses, which takes 60 ms


@dataclass(frozen=True)
class NoCommands:
    """Flags that are no settings: none."""


class Checked:
    """Stands in for run_exp.py's own checks: the settings are parsed, and what it is asked is kept."""

    def __init__(self) -> None:
        self.asked: dict[str, tuple[Config, bool]] = {}

    def __call__(self, argv: list[str], waits: bool) -> Config:
        cfg = flags.parse(argv, NoCommands, "")[0].cfg
        settings.check(cfg)
        self.asked[cfg.run.exp_name] = cfg, waits
        return cfg


def planned(
    *experiments: Any, machine: int = 8, executor: str = "local", known: Mapping[str, tuple[str, ...]] | None = None
) -> list[Spec]:
    return plan(experiments, "list", Checked(), machine, executor, known or {})


def refused(*experiments: Any, machine: int = 8, executor: str = "local") -> list[str]:
    with pytest.raises(ConfigProblem) as caught:
        planned(*experiments, machine=machine, executor=executor)
    return str(caught.value).splitlines()


def names(specs: Sequence[Spec]) -> list[str]:
    return [spec.name for spec in specs]


# What is written and what is run


TEXT = st.text("abz019 =.,_/é:", min_size=1, max_size=12).filter(lambda text: text == text.strip())
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-(10**6), 10**6),
    float: st.floats(allow_nan=False, allow_infinity=False) | st.integers(-5, 5),
    str: TEXT,
}


def values_of(name: str) -> st.SearchStrategy[Any]:
    kind = settings.TYPE_OF[name]
    if name == "ensemble_models":
        return st.lists(st.fixed_dictionaries({"path": TEXT}, optional={"weight": st.floats(0, 9)}), max_size=2)
    if get_origin(kind) is dict:
        return st.dictionaries(TEXT, st.floats(0, 1), max_size=2)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if parts[-1] is Ellipsis:
            return st.lists(BY_TYPE[parts[0]], max_size=3)
        return st.tuples(*(BY_TYPE[part] for part in parts))
    return BY_TYPE[kind]


def experiments() -> st.SearchStrategy[dict[str, Any]]:
    free = sorted(set(settings.TYPE_OF) - {"exp_name", "gpus", "max_hours"})
    return st.sets(st.sampled_from(free), max_size=15).flatmap(
        lambda chosen: st.fixed_dictionaries({name: values_of(name) for name in sorted(chosen)})
    )


@fixed
@hypothesis.given(experiments())
def test_flags_mean_what_the_experiment_says(values: dict[str, Any]) -> None:
    seen: list[Config] = []

    def check(argv: list[str], waits: bool) -> Config:
        seen.append(flags.parse(argv, NoCommands, "")[0].cfg)
        return Config()

    plan([{"exp_name": "x", **values}], "list", check, 1, "local", {})
    assert seen == [settings.replace(Config(), {**values, "exp_name": "x"})]


def test_flags_are_plain() -> None:
    values = {"exp_name": "x", "model": "nnunet", "lr": 1e-4, "amp": False, "rotate": [-15, 15, 1], "cpu": True}
    (spec,) = planned(values)
    plain = ("--model_file", "nnunet", "--lr", "0.0001", "--no_amp", "--rotate", "-15", "15", "1", "--cpu")
    assert spec == Spec("x", plain)


def test_own_keys_make_the_entry() -> None:
    own = {"priority": -3, "retries": 0, "hours": 1.5, "gpus": 2, "executor": "slurm", "after": "a"}
    (spec,) = planned({"exp_name": "x", **own})
    assert spec == Spec("x", ("--gpus", "2"), 2, -3, ("a",), 0, 1.5, "slurm")


def test_presets_and_saved_settings_are_taken(tmp_path: Path) -> None:
    saved = tmp_path / "config.json"
    saved.write_text('{"lr": 0.5, "epoch": 7}')
    check = Checked()
    plan([{"exp_name": "x", "config": str(saved), "preset": "smoke", "epochs": 3}], "list", check, 1, "local", {})
    cfg, waits = check.asked["x"]
    assert (cfg.train.lr, cfg.train.epoch, cfg.data.data_root, waits) == (4e-3, 3, "data/phantom_smoke", False)


# GPUs


@pytest.mark.parametrize(
    ("written", "machine", "executor", "gpus"),
    [
        ({}, 8, "local", 1),
        ({}, 0, "local", 0),
        ({}, 0, "slurm", 1),
        ({"gpus": 4}, 8, "local", 4),
        ({"gpus": 0}, 8, "local", 0),
        ({"device": "cpu"}, 8, "local", 0),
        ({"cpu": True, "gpus": 2}, 0, "local", 0),
        ({"device": "cuda"}, 1, "local", 1),
        ({"gpus": 16}, 0, "ray", 16),
    ],
)
def test_gpus_that_an_entry_needs(written: dict[str, Any], machine: int, executor: str, gpus: int) -> None:
    (spec,) = planned({"exp_name": "x", **written}, machine=machine, executor=executor)
    assert spec.gpus == gpus
    assert ("--gpus" in spec.argv) == (written.get("gpus", 0) > 0)


def test_more_gpus_than_there_are() -> None:
    assert refused({"exp_name": "x", "gpus": 9}) == [
        "list, experiment 1 (x): needs 9 GPUs, but the queue may use 8 here: lower gpus, or give device cpu."
    ]
    assert "needs 1 GPUs, but the queue may use 0 here" in refused({"exp_name": "x", "device": "cuda"}, machine=0)[0]
    assert "device is cuda, but gpus is 0" in refused({"exp_name": "x", "device": "cuda", "gpus": 0})[0]


# Grids and folds


def test_a_grid_is_every_combination() -> None:
    grid = {"lr": [1e-3, 1e-4], "model": ["model.model_nnunet", "unet_resnet34"], "compile": [True, False]}
    specs = planned({"exp_name": "g", "epochs": 5, "grid": grid})
    assert names(specs)[:3] == ["g-lr0.001-model_nnunet-compile", "g-lr0.001-model_nnunet-no_compile",
                                "g-lr0.001-unet_resnet34-compile"]  # fmt: skip
    assert len({spec.argv for spec in specs}) == len(set(names(specs))) == 8
    assert specs[0].argv == ("--epoch", "5", "--lr", "0.001", "--model_file", "model.model_nnunet", "--compile")


def test_what_a_grid_varies_may_be_any_key() -> None:
    grid = {"rotate": [[-15, 15, 1], [-30, 30, 1]], "gpus": [1, 2], "init_from": ["a/b c.pt"]}
    specs = planned({"exp_name": "g", "grid": grid})
    assert names(specs) == [f"g-rotate{k}-gpus{n}-a_b_c.pt" for k in (0, 1) for n in (1, 2)]
    assert [spec.gpus for spec in specs] == [1, 2, 1, 2]


def test_folds_are_entries_of_their_own() -> None:
    assert [spec.argv for spec in planned({"exp_name": "f", "folds": 3})] == [
        ("--n_folds", "3", "--fold", str(k)) for k in range(3)
    ]
    specs = planned({"exp_name": "f", "folds": [0, 4], "grid": {"seed": [1, 2]}})
    assert names(specs) == ["f-seed1-fold0", "f-seed1-fold4", "f-seed2-fold0", "f-seed2-fold4"]


def test_what_comes_after_a_grid_comes_after_all_of_it() -> None:
    specs = planned(
        {"exp_name": "g", "folds": 2},
        {"exp_name": "one"},
        {"exp_name": "all", "after": ["g", "one", "elsewhere", "one"]},
        {"exp_name": "some", "after": "g-fold1"},
    )
    assert specs[-2].after == ("g-fold0", "g-fold1", "one", "elsewhere")
    assert specs[-1].after == ("g-fold1",)


def test_what_comes_after_others_may_miss_files() -> None:
    check = Checked()
    plan([{"exp_name": "a"}, {"exp_name": "b", "after": "a"}], "list", check, 1, "local", {})
    assert {name: waits for name, (_, waits) in check.asked.items()} == {"a": False, "b": True}


def test_what_the_queue_has_is_left_out_and_not_checked_again() -> None:
    check = Checked()
    listed = [{"exp_name": "f", "folds": 2}, {"exp_name": "changed", "lr": 1}, {"exp_name": "end", "after": "f"}]
    known = {"f-fold0": ("--n_folds", "2", "--fold", "0"), "changed": ("--lr", "0.5")}
    specs = plan(listed, "list", check, 1, "local", known)
    assert names(specs) == list(check.asked) == ["f-fold1", "changed", "end"]
    assert specs[-1].after == ("f-fold0", "f-fold1")


# What is wrong


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        (["x"], "['x'] is no table of settings."),
        ({1: 2}, "{1: 2} is no table of settings."),
        ({"lr": 1}, "exp_name is missing."),
        ({"exp_name": 3}, "exp_name is 3, but must be a name."),
        ({"exp_name": "x", "learning_rat": 1}, "unknown key 'learning_rat' (did you mean learning_rate"),
        ({"exp_name": "x", "priorty": 1}, "unknown key 'priorty' (did you mean priority"),
        ({"exp_name": "x", "bg": True}, "unknown key 'bg'"),
        ({"exp_name": "x", "lr": "1e-4"}, "lr: '1e-4' is not of type float."),
        ({"exp_name": "x", "scheduler": "cosin"}, "scheduler: 'cosin' is none of CosineAnnealingLR"),
        ({"exp_name": "x", "lr": 1, "epoch": "a"}, "epoch: 'a' is not of type int."),
        ({"exp_name": "x", "lr": "a", "epoch": "b"}, "lr: 'a' is not of type float; epoch: 'b' is not of type int."),
        ({"exp_name": "x", "model": "a", "model_file": "b"}, "model_file comes twice, in different spellings."),
        ({"exp_name": "x", "cpu": 1}, "cpu is 1, but must be true or false."),
        ({"exp_name": "x", "preset": 1}, "preset: 1 is no name."),
        ({"exp_name": "x", "notify": "--overwrite"}, "notify: '--overwrite' begins with '-', as a flag does."),
        ({"exp_name": "x", "exclude": ["a", "-b"]}, "exclude: ['a', '-b'] begins with '-', as a flag does."),
        ({"exp_name": "x", "gpus": -1}, "gpus is -1, but must be a number of GPUs."),
        ({"exp_name": "x", "gpus": True}, "gpus is True, but must be a number of GPUs."),
        ({"exp_name": "x", "priority": 1.5}, "priority is 1.5, but must be a whole number up to 1000000."),
        ({"exp_name": "x", "retries": -1}, "retries is -1, but must be a whole number, 0 to 1000000."),
        ({"exp_name": "x", "hours": "2"}, "hours is '2', but must be a number of hours, 0 or more."),
        ({"exp_name": "x", "executor": "slrum"}, "executor is 'slrum', but must be one of local, slurm, ray."),
        ({"exp_name": "x", "after": 3}, "after is 3, but must be a name or a list of names."),
        ({"exp_name": "x", "after": ["a", ""]}, "after is ['a', ''], but must be a name or a list of names."),
        ({"exp_name": "x", "grid": [1]}, "grid is [1], but must be a table of lists."),
        ({"exp_name": "x", "grid": {"lr": 1}}, "grid is {'lr': 1}, but must be a table of lists."),
        ({"exp_name": "x", "grid": {"lr": []}}, "grid is {'lr': []}, but must be a table of lists."),
        ({"exp_name": "x", "grid": {"lr": [1, "a"]}}, "lr: 'a' is not of type float."),
        ({"exp_name": "x", "grid": {"gpus": [1, "a"]}}, "grid: gpus is 'a', but must be a number of GPUs."),
        ({"exp_name": "x", "grid": {"lrr": [1]}}, "unknown key 'lrr' (did you mean lr"),
        ({"exp_name": "x", "lr": 1, "grid": {"lr": [1]}}, "grid has lr, which stands beside it, too"),
        ({"exp_name": "x", "grid": {"after": ["a"]}}, "grid has after, which can not vary."),
        ({"exp_name": "x", "folds": "all"}, "folds is 'all', but must be 2 to 100, or a list of folds."),
        ({"exp_name": "x", "folds": 10**9}, "folds is 1000000000, but must be 2 to 100, or a list of folds."),
        ({"exp_name": "x", "folds": 2.0}, "folds is 2.0, but must be 2 to 100, or a list of folds."),
        ({"exp_name": "x", "folds": True}, "folds is True, but must be 2 to 100, or a list of folds."),
        ({"exp_name": "x", "priority": 10**30}, "but must be a whole number up to 1000000."),
        ({"exp_name": "x", "grid": {1: [1]}}, "grid is {1: [1]}, but must be a table of lists."),
        ({"exp_name": "x", "max_hours": 1}, "max_hours stops a run that the queue would then go on with: give hours."),
        ({"exp_name": "x", "folds": 3, "fold": 1}, "fold and folds contradict each other: leave out one of them."),
        ({"exp_name": "x", "folds": [7]}, "fold is 7, but n_folds 5 has folds 0 to 4"),
        ({"exp_name": "x", "folds": ["a"]}, "fold is a, but n_folds 5 has folds 0 to 4"),
        ({"exp_name": "a/b"}, "exp_name is 'a/b', but names a folder"),
        ({"exp_name": "x", "window_size": 9000}, "window_size is 9000, but must lie between 32 and 8192."),
    ],
)
def test_a_bad_experiment_is_one_sentence(written: Any, fault: str) -> None:
    lines = refused({"exp_name": "good"}, written)
    assert len(lines) == 1
    assert lines[0].startswith("list, experiment 2") and fault in lines[0]


def test_all_that_is_wrong_is_said_at_once() -> None:
    assert refused({"exp_name": "a", "lrr": 1}, {"exp_name": "b"}, {"exp_name": "c", "grid": {"lr": [0, 20]}}) == [
        "list, experiment 1 (a): unknown key 'lrr' (did you mean lr?)."
    ]
    lines = refused(
        {"exp_name": "a", "lr": 20}, {"exp_name": "b"}, {"exp_name": "c", "lr": 20, "grid": {"seed": [1, 2, 3]}}
    )
    low = "lr is 20.0, but must lie between 1e-09 and 10."
    assert lines == [f"list, experiment 1 (a): {low}", f"list, experiment 3 (c-seed1 and 2 more): {low}"]


def test_a_name_comes_once() -> None:
    same = "another one has this name: give each its own exp_name."
    assert refused({"exp_name": "a"}, {"exp_name": "b"}, {"exp_name": "a"}) == [
        f"list, experiment 1 (a): {same}", f"list, experiment 3 (a): {same}",
    ]  # fmt: skip
    assert refused({"exp_name": "a", "grid": {"notify": ["x y", "x_y"]}}) == [
        f"list, experiment 1 (a-x_y and 1 more): {same}"
    ]
    assert refused({"exp_name": "a", "folds": 2}, {"exp_name": "a-fold1"})[1].endswith(same)


# Files


def written(tmp_path: Path, text: str, name: str = "exp.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_python_and_yaml_say_the_same(tmp_path: Path) -> None:
    python = 'experiments = [dict(exp_name="a", lr=10 ** -4, rotate=(-15, 15, 1))]'
    yaml = "experiments:\n  - {exp_name: a, lr: 1e-4, rotate: [-15, 15, 1]}"
    found = [read_experiments(written(tmp_path, text, name)) for text, name in ((python, "a.py"), (yaml, "a.yml"))]
    assert planned(*found[0]) == planned(*found[1])
    assert read_experiments(written(tmp_path, "- {exp_name: a}")) == [{"exp_name": "a"}], "a list alone will do"


def test_yaml_is_of_version_1_2(tmp_path: Path) -> None:
    text = """
    base: &base {wandb: off, lr: 1e-4, amp: true, seed: 7}
    experiments:
      - <<: *base
        exp_name: no
        seed: 8
        notify: ~
        stride: 1:30
        min_lr: -.5
        input: 2026-01-01
    """
    (found,) = read_experiments(written(tmp_path, text))
    assert found == {
        "wandb": "off", "lr": 1e-4, "amp": True, "seed": 8, "exp_name": "no", "notify": None, "stride": "1:30",
        "min_lr": -0.5, "input": "2026-01-01",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a.json", "[]", "is neither Python (.py) nor YAML (.yaml): give it that ending."),
        ("a.py", "experiment = []", "has no list `experiments`, or an empty one"),
        ("a.py", "experiments = []", "has no list `experiments`, or an empty one"),
        ("a.py", "experiments = {}", "has no list `experiments`, or an empty one"),
        ("a.py", "x = 1\nexperiments = [1 / 0]", "a.py, line 2: ZeroDivisionError: division by zero."),
        ("a.py", "experiments = [", "a.py, line 1: SyntaxError: '[' was never closed"),
        ("a.yaml", "", "has no list `experiments`, or an empty one"),
        ("a.yaml", "experiments:\n  - {exp_name: a, lr: 1, lr: 2}", "a.yaml, line 2: lr comes twice."),
        ("a.yaml", "experiments:\n  - {exp_name: a\n  - b", "a.yaml, line 3: expected ',' or '}', but got"),
        ("a.yaml", "experiments: !!python/object/apply:os.getpid []", "a.yaml, line 1: could not determine a"),
    ],
)
def test_a_malformed_file_is_one_sentence(name: str, text: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem) as caught:
        read_experiments(written(tmp_path, text, name))
    assert fault in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem, match=r"none\.py is no file: give one with `experiments = \[\.\.\.\]`"):
        read_experiments(tmp_path / "none.py")
    (tmp_path / "latin.yaml").write_bytes(b"experiments: [\xe9]")
    with pytest.raises(ConfigProblem, match=r"latin\.yaml: .*utf-8"):
        read_experiments(tmp_path / "latin.yaml")
