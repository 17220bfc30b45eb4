"""Search: the space's checks, and the loop over trials with a runner that trains nothing but obeys the same rules."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
import pytest
from optuna.trial import TrialState

from config import Config, ConfigProblem
from engine import settings
from engine.files import FileProblem
from engine.search import FAILURES, MARK, Search, read_dice
from engine.space import Choice, Range, Space, read_space
from engine.study import Options, importances, latest, open_study, read_study, report
from scripts import search as command

ROOT = Path(command.__file__).parents[1]

RUNNER = '''
import csv, json, os, pathlib, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
argv = sys.argv[1:]
record = json.loads(pathlib.Path(argv[argv.index("--config") + 1]).read_text())
folder = pathlib.Path(argv[argv.index("--output_dir") + 1]) / argv[argv.index("--exp_name") + 1]
resumed = "--resume" in argv
slot = int(folder.name[-4:])
with open("calls.jsonl", "a") as calls:
    calls.write(json.dumps({"slot": slot, "argv": argv, "lr": record["train"]["lr"]}) + "\\n")
folder.mkdir(parents=True, exist_ok="--overwrite" in argv or resumed)

def reach(*dice):
    rows = [["epoch", "val_dice"], *enumerate(dice)]
    with open(folder / "part", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    os.replace(folder / "part", folder / "metrics.csv")

def until_told():
    signal.sigwait([signal.SIGTERM])
    (folder / "last.pt").touch()
    sys.exit(75)

def dice():
    return 0.9 - abs(record["train"]["lr"] - 3e-3) * 50

'''


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def space(**more: Any) -> Space:
    base = settings.replace(Config(), {"exp_name": "s", "epoch": 5, "min_lr": 0.0, "warmup_min_lr": 0.0})
    fields = {"lr": Range(1e-4, 1e-2, log=True), "loss": Choice(["Combined_BCE_Dice", "Dice"])}
    return Space("s", base, {**fields, **more})


def runner(body: str) -> list[str]:
    """Command of a runner whose last lines are `body`."""
    Path("runner.py").write_text(RUNNER + body)
    return [sys.executable, "-S", "runner.py"]


def checked(cfg: Config) -> Config:
    settings.check(cfg)
    return cfg


def search(
    body: str,
    trials: int,
    jobs: int = 1,
    resume: bool = False,
    what: Space | None = None,
    options: Options | None = None,
) -> int:
    what = what or space()
    with open_study(what, resume, vars(options) if options else {}) as (study, chosen):
        return Search(study, what, chosen, runner(body), checked, poll=0.01).run(trials, jobs)


def calls() -> list[dict[str, Any]]:
    path = Path("calls.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def newest() -> dict[int, optuna.trial.FrozenTrial]:
    return latest(read_study(space()))


def outcomes() -> list[tuple[TrialState, str]]:
    return [(trial.state, trial.user_attrs["outcome"]) for trial in newest().values()]


def table(name: str) -> list[dict[str, str]]:
    with open(Path("checkpoints/s") / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- the space


GOOD = """
from engine.space import Choice, Range
base = {"preset": "smoke", "epoch": 4, "train": {"workers": 0}}
space = {
    "lr": Range(1e-4, 1e-2, log=True),
    "base_channels": Range(8, 32, step=8),
    "optimizer": Choice(["adamw", "SGD"]),
    "momentum": Range(0.8, 0.99, when={"optimizer": ["SGD"]}),
    "rotate": Choice([[-15, 15, 1], [-30.0, 30.0, 1.0]]),
    "loss": Choice(["bce_dice", "Combined_Focal_Dice"]),
}
"""


def read(text: str) -> Space:
    Path("wide.py").write_text(text)
    return read_space(Path("wide.py"), command.complete)


def test_a_file_becomes_settings_and_ranges() -> None:
    found = read(GOOD)
    assert (found.study, found.base.run.exp_name, found.folder) == ("wide", "wide", Path("checkpoints/wide"))
    assert (found.base.train.epoch, found.base.train.workers, found.base.phantom.phantom) == (4, 0, True)
    assert list(found.fields) == ["lr", "base_channels", "optimizer", "momentum", "rotate", "loss"]
    assert read(GOOD.replace('"epoch": 4', '"exp_name": "named"')).study == "named"


def test_samples_have_the_fields_types_and_keep_to_their_ranges() -> None:
    found = read(GOOD)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    samples = [found.sample(study.ask()) for _ in range(60)]
    for values in samples:
        cfg = settings.replace(found.base, values)  # raises where a value is of another type
        assert 1e-4 <= cfg.train.lr <= 1e-2
        assert cfg.model.base_channels in (8, 16, 24, 32)
        assert cfg.augment.rotate in ((-15, 15, 1), (-30, 30, 1))
        assert ("momentum" in values) == (values["optimizer"] == "SGD")
    assert {values["optimizer"] for values in samples} == {"adamw", "SGD"}
    assert 0.3 < np.mean([values["lr"] < 1e-3 for values in samples]) < 0.7  # logarithmic: else 9 in 100


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"base_channels":', '"base_chanels":', "did you mean base_channels"),
        ('"lr":', '"output_dir":', "can't be searched"),
        ("Range(1e-4, 1e-2, log=True)", "3", "neither a Range nor a Choice"),
        ("Range(1e-4, 1e-2, log=True)", "Range(1e-2, 1e-4)", "smaller one"),
        ("Range(1e-4, 1e-2, log=True)", "Range(1e-4, 99)", "between 1e-09 and 10"),
        ("Range(1e-4, 1e-2, log=True)", "Range('a', 1)", "not of type float"),
        ("Range(8, 32, step=8)", "Range(8, 32, step=7)", "do not reach 32"),
        ("Range(8, 32, step=8)", "Range(8, 32, step=0)", "do not reach 32"),
        ("Range(8, 32, step=8)", "Range(8, 32, log=True, step=8)", "has no step"),
        ("Range(8, 32, step=8)", "Range(8.5, 32)", "not of type int"),
        ("Range(0.8, 0.99,", "Range(0, 0.99, log=True,", "above 0"),
        ('"rotate": Choice([[-15, 15, 1], [-30.0, 30.0, 1.0]])', '"rotate": Range(1, 2)', "give a Choice"),
        ("[-30.0, 30.0, 1.0]", "[30, -30, 1]", "must not exceed"),
        ("[-30.0, 30.0, 1.0]", "[30, -30]", "not a list of 3"),
        ('Choice(["bce_dice", "Combined_Focal_Dice"])', 'Choice(["bce_dice"])', "at least two"),
        ('Choice(["bce_dice", "Combined_Focal_Dice"])', 'Choice("bce_dice")', "at least two"),
        ('"Combined_Focal_Dice"', '"focl_dice"', "Focal"),
        ('"Combined_Focal_Dice"', '"bce_dice"', "twice"),
        ('"adamw"', '"adammw"', "adamw"),
        ('["SGD"]}', '["adam"]}', "out of"),
        ('["SGD"]}', '"SGD"}', "no list"),
        ('when={"optimizer"', 'when={"loss"', "no Choice that stands before"),
        ('"epoch": 4', '"epoch": 4, "max_hours": 1.0', "max_hours is the search's own"),
        ('"epoch": 4', '"epoch": 4, "fold": "all"', "one fold"),
        ('"epoch": 4', '"epoch": "4"', "not of type int"),
        ('"epoch": 4', '"window_size": 4096', "window_size"),
        ('"epoch": 4', '"exp_name": "a/b"', "exp_name"),
        ('"smoke"', '"smoek"', "did you mean smoke"),
        ("space =", "spaces =", "must set space"),
        ('"epoch": 4', '"epoch": missing', "line 3: NameError"),
        ("base =", "base = = ", "line 3: SyntaxError"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_trial(old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigProblem) as problem:
        read(GOOD.replace(old, new, 1))
    assert said in str(problem.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigProblem) as problem:
        read(GOOD.replace('"lr":', '"lrr":').replace("step=8", "step=7").replace('"adamw"', '"adammw"'))
    assert len(str(problem.value).splitlines()) == 3


# --- the loop


def test_trials_are_experiments_with_a_file_of_settings_and_a_log() -> None:
    assert search('reach(0.1, dice(), 0.2)\nprint("said")', 3) == 0
    found = newest()
    for slot, call in enumerate(calls()):
        name = f"s-000{slot}"
        path = f"checkpoints/s/trials/{name}.json"
        assert call["argv"] == ["--config", path, "--exp_name", name, "--output_dir", "checkpoints"]
        cfg, names = settings.from_record(json.loads(Path(path).read_text()), path)
        assert names == set(settings.SECTION_OF)
        assert (cfg.run.exp_name, cfg.train.lr, cfg.loss.loss) == (name, *found[slot].params.values())
        assert "said" in Path(f"log/{name}.log").read_text()
        assert found[slot].value == pytest.approx(max(0.2, 0.9 - abs(cfg.train.lr - 3e-3) * 50))
        assert found[slot].intermediate_values.keys() == {0, 1, 2}
    assert len(calls()) == 3


def sampled(folder: str, trials: int, options: Options | None = None) -> list[dict[str, Any]]:
    what = Space("s", settings.replace(space().base, {"output_dir": folder}), space().fields)
    assert search("reach(dice())", trials, what=what, options=options) == 0
    return [trial.params for trial in read_study(what).trials]


def test_sampling_follows_the_seed_and_touches_no_global_generator() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    one, same = (sampled(name, 11, Options(seed=1)) for name in "ab")
    assert one == same  # the last is TPE's own, the first ten are random
    assert len({values["lr"] for values in one}) == 11
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    assert sampled("c", 2, Options(seed=2)) != one[:2]
    assert sampled("d", 2, Options(seed=1, sampler="random")) == one[:2]


def test_a_broken_rule_between_fields_is_an_impossible_trial_and_says_why() -> None:
    what = space(warmup_epochs=Range(1.0, 9.0))
    assert search("reach(dice())", 8, what=what) == 0
    wrong = {slot for slot, trial in newest().items() if trial.params["warmup_epochs"] > 5}
    assert 0 < len(wrong) < 8
    for slot, (state, outcome) in enumerate(outcomes()):
        assert state == (TrialState.PRUNED if slot in wrong else TrialState.COMPLETE)
        assert ("lower --warmup_epochs" in outcome) == (slot in wrong)
    assert {call["slot"] for call in calls()} == set(range(8)) - wrong


def test_exit_codes_and_last_words() -> None:
    body = """
if slot == 0: print("error: stride 9 is too much."); sys.exit(2)
if slot == 1: print("loading"); print("error: the disk is full."); print("bye"); sys.exit(1)
if slot == 2: sys.exit(0)
if slot == 3: os.kill(os.getpid(), signal.SIGKILL)
reach(dice())
"""
    assert search(body, 5) == 0
    assert outcomes()[:4] == [
        (TrialState.PRUNED, "impossible: error: stride 9 is too much."),
        (TrialState.FAIL, "failed (exit code 1): error: the disk is full."),
        (TrialState.FAIL, "failed (exit code 0): no validation Dice in metrics.csv"),
        (TrialState.FAIL, "failed (exit code -9): no word"),
    ]
    assert outcomes()[4][0] == TrialState.COMPLETE


def test_trials_that_fail_one_after_another_stop_the_search() -> None:
    assert search("sys.exit(1)", 50) == 1
    assert len(calls()) == FAILURES
    assert search("reach(dice())", 7, resume=True) == 0
    assert len(newest()) == 7


BEHIND = """
if slot < 5: reach(0.5, 0.6, 0.7); sys.exit(0)
reach(0.1, 0.1)
until_told()
"""


def test_a_trial_that_falls_behind_is_told_to_stop() -> None:
    assert search(BEHIND, 6) == 0
    assert outcomes()[5] == (TrialState.PRUNED, "pruned after epoch 1")
    assert newest()[5].value == 0.1
    assert Path("checkpoints/s-0005/last.pt").exists()  # it saved, so it can be trained further by hand


def test_without_a_pruner_none_is() -> None:
    assert search(BEHIND.replace("until_told()", ""), 6, options=Options(pruner="none")) == 0
    assert [state for state, _ in outcomes()] == [TrialState.COMPLETE] * 6


def test_a_pruned_trial_that_has_just_ended_counts() -> None:
    body = BEHIND.replace("until_told()", "signal.sigwait([signal.SIGTERM]); reach(0.1, 0.1, 0.3); sys.exit(0)")
    assert search(body, 6) == 0
    assert outcomes()[5] == (TrialState.COMPLETE, "Dice 0.3000")


def test_jobs_run_at_once() -> None:
    """Each of two waits for the other: one after another they would never end."""
    os.mkfifo("meet")
    body = 'open("meet", "w" if slot % 2 else "r").close()\nreach(dice())'
    assert search(body, 4, jobs=2) == 0
    assert [state for state, _ in outcomes()] == [TrialState.COMPLETE] * 4


# --- stopping and going on


WAITS = """
if slot == 2 and not resumed:
    reach(0.3)
    {how}
    until_told()
reach(0.3, dice())
"""


def uninterrupted() -> list[dict[str, Any]]:
    return sampled("whole", 4)


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 75)])
def test_a_signal_stops_the_trial_gracefully_and_resume_goes_on_with_it(sent: str, code: int) -> None:
    body = WAITS.format(how=f"os.kill(os.getppid(), signal.{sent})")
    whole = uninterrupted()
    assert search(body, 4) == code
    assert [call["slot"] for call in calls()[4:]] == [0, 1, 2]
    assert table_of_states() == ["finished", "finished", "stopped"]
    assert search(body, 4, resume=True) == 0
    assert [call["slot"] for call in calls()[7:]] == [2, 3]
    assert calls()[7]["argv"][-1] == "--resume"
    assert calls()[8]["argv"][-1] == "checkpoints"
    assert [trial.params for trial in newest().values()] == whole
    assert [state for state, _ in outcomes()] == [TrialState.COMPLETE] * 4


def table_of_states() -> list[str]:
    report(read_study(space()), space())
    return [row["state"] for row in table("trials.csv")]


def test_a_trial_stopped_from_outside_stops_the_search() -> None:
    body = WAITS.format(how="sys.exit(75)")
    assert search(body, 4) == 75
    assert table_of_states() == ["finished", "finished", "stopped"]
    assert search(body.replace("not resumed", "False"), 4, resume=True) == 0
    assert calls()[3]["argv"][-1] == "--overwrite"  # it had nothing saved
    assert [state for state, _ in outcomes()] == [TrialState.COMPLETE] * 4


DRIVER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import test_search
test_search.search(open("body").read(), 4)
"""


@pytest.fixture
def killed() -> Iterator[Callable[[str], int]]:
    """Run a search in another process and kill it with -9 when its trial opens the pipe `here`; pid of that trial."""
    left: list[psutil.Process] = []

    def kill(body: str) -> int:
        os.mkfifo("here")
        Path("body").write_text(body)
        Path("driver.py").write_text(DRIVER.format(root=str(ROOT), tests=str(Path(__file__).parent)))
        process = subprocess.Popen([sys.executable, "driver.py"], stdout=subprocess.DEVNULL)
        with open("here") as pipe:
            pid = int(pipe.read())
        left.append(psutil.Process(pid))
        process.kill()
        process.wait()
        return pid

    yield kill
    for orphan in left:
        if orphan.is_running():
            orphan.kill()


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_killed_with_9_its_trial_is_found_stopped_and_gone_on_with(killed: Callable[[str], int]) -> None:
    whole = uninterrupted()
    body = WAITS.format(how='open("here", "w").write(str(os.getpid()))')
    pid = killed(body)
    assert alive(pid)
    assert psutil.Process(pid).environ()[MARK] == str(Path("checkpoints/s-0002").resolve())
    assert table_of_states() == ["finished", "finished", "running"]
    assert search(body, 4, resume=True) == 0
    assert not alive(pid)
    assert [(call["slot"], call["argv"][-1]) for call in calls()[7:]] == [(2, "--resume"), (3, "checkpoints")]
    assert [trial.params for trial in newest().values()] == whole
    states = [trial.state for trial in read_study(space()).trials]
    assert states == [*[TrialState.COMPLETE] * 2, TrialState.FAIL, *[TrialState.COMPLETE] * 2]
    assert read_study(space()).trials[3].user_attrs["continues"] == 2


def test_killed_while_it_samples_the_trial_is_sampled_again() -> None:
    whole = sampled("whole", 3)
    search("reach(dice())", 2)
    with open_study(space(), True, {}) as (study, _):
        study.ask().suggest_float("lr", 1e-4, 1e-2, log=True)  # another value than the sampler of its number gives
    assert search("reach(dice())", 3, resume=True) == 0
    assert [trial.params for trial in newest().values()] == whole


def test_killed_between_the_two_halves_of_handing_on_nothing_is_done_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    search("reach(dice())", 1)
    with open_study(space(), True, {}) as (study, options):
        study.ask()
        with monkeypatch.context() as patch:
            patch.setattr(optuna.Study, "tell", lambda *_, **__: exit(9))
            with pytest.raises(SystemExit):
                Search(study, space(), options, [], checked).run(2, 1)
    assert search("reach(dice())", 3, resume=True) == 0
    assert [trial.state for trial in newest().values()] == [TrialState.COMPLETE] * 3
    assert [call["slot"] for call in calls()] == [0, 1, 2]


def test_an_error_of_our_own_leaves_no_trial_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> dict[int, float]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.search.read_dice", full)
    with pytest.raises(OSError, match="No space"):
        search("until_told()", 1)
    marks = [(process.info["environ"] or {}).get(MARK) for process in psutil.process_iter(["environ"])]
    assert str(Path("checkpoints/s-0000").resolve()) not in marks
    assert newest()[0].state == TrialState.WAITING


# --- the study's folder


def test_a_half_written_line_is_cut_off() -> None:
    search("reach(dice())", 2)
    journal = Path("checkpoints/s/journal.log")
    with open(journal, "a") as file:
        file.write('{"op_code":6,"worker')
    assert len(read_study(space()).trials) == 2
    assert search("reach(dice())", 3, resume=True) == 0
    assert [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(read_study(space()).trials) == 3


def test_one_search_at_a_time() -> None:
    with open_study(space(), False, {}), pytest.raises(FileProblem, match="runs already"):
        search("", 1, resume=True)
    assert calls() == []


def test_a_study_is_neither_begun_twice_nor_resumed_unbegun() -> None:
    with pytest.raises(ConfigProblem, match="leave out --resume"):
        search("", 1, resume=True)
    search("reach(dice())", 1)
    with pytest.raises(ConfigProblem, match="give --resume"):
        search("", 1)
    Path("checkpoints/s/journal.log").unlink()
    with pytest.raises(ConfigProblem, match="s-0000 is left of another study"):
        search("", 1)
    Path("checkpoints/s/config.json").touch()
    with pytest.raises(ConfigProblem, match="is an experiment"):
        search("", 1)


@pytest.mark.parametrize(
    ("base", "more", "said"),
    [
        ({"epoch": 9}, {}, "epoch is 9, was 5"),
        ({}, {"dropout": Range(0.0, 0.5)}, "dropout"),
        ({}, {"lr": Range(1e-5, 1e-2, log=True)}, "had Range"),
    ],
)
def test_another_space_is_refused(base: dict[str, Any], more: dict[str, Any], said: str) -> None:
    search("reach(dice())", 1)
    other = Space("s", settings.replace(space().base, base), {**space().fields, **more})
    with pytest.raises(ConfigProblem, match=said):
        search("", 2, resume=True, what=other)
    assert len(calls()) == 1


def test_what_changes_no_result_may_change_and_options_are_kept() -> None:
    search("reach(dice())", 1, options=Options(seed=7, pruner="none"))
    other = Space("s", settings.replace(space().base, {"workers": 0, "device": "cpu"}), space().fields)
    with open_study(other, True, {"seed": None, "pruner": "halving"}) as (study, options):
        assert options == Options(seed=7, sampler="tpe", pruner="halving")
        assert isinstance(study.pruner, optuna.pruners.SuccessiveHalvingPruner)


# --- the report


def test_the_report_finds_what_matters() -> None:
    search("reach(0.1, dice())", 16, what=space(label_smoothing=Range(0.0, 0.5)), options=Options(pruner="none"))
    what = space(label_smoothing=Range(0.0, 0.5))
    study = read_study(what)
    text, rows = report(study, what), table("trials.csv")
    best = max(rows, key=lambda row: float(row["dice"]))
    assert "16 finished" in text
    assert text.splitlines()[1].startswith(f"  {best['experiment']}  Dice {best['dice']} (epoch 1)")
    assert f"--config checkpoints/{best['experiment']}/config.json" in text
    assert [row["experiment"] for row in rows] == [f"s-{slot:04d}" for slot in range(16)]
    assert [float(row["lr"]) for row in rows] == [pytest.approx(call["lr"], rel=1e-3) for call in calls()]
    shares = importances(study)
    assert sum(shares.values()) == pytest.approx(1)
    assert next(iter(shares)) == "lr"  # the runner's Dice depends on nothing else
    assert [(row["field"], row["importance"]) for row in table("importances.csv")] == [
        (name, f"{share:.4g}") for name, share in shares.items()
    ]


def test_a_report_of_little_says_so() -> None:
    search("reach(0.5)", 5)
    assert importances(read_study(space())) == {}  # all equal
    assert "needs 4 finished trials that differ" in report(read_study(space()), space())
    assert table("importances.csv") == []


def test_metrics_without_a_number_are_left_out() -> None:
    Path("metrics.csv").write_text("epoch,lr,val_dice\n0,1,\n1,1,0.5\n2,1,nan\n3,1,0.25\n")
    assert read_dice(Path("metrics.csv")) == {1: 0.5, 3: 0.25}
    assert read_dice(Path("nowhere.csv")) == {}


# --- the command


TINY = """
from engine.space import Range
base = {{"preset": "smoke", "phantom_train": 6, "phantom_test": 2, "phantom_size": 128, "phantom_seed": 3,
    "n_folds": 3, "image_size": 64, "window_size": 64, "stride": 32, "batch_size": 2, "epoch": 1, "base_channels": 4,
    "val_interval": 1, "model_file": "simple_unet_quarter", "device": "cpu", "data_root": {root!r}}}
space = {{"lr": Range(1e-4, 1e-2, log=True)}}
"""


@pytest.mark.full  # the run's imports alone take seconds
def test_a_real_trial(phantom_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tiny.py").write_text(TINY.format(root=str(phantom_root)))
    assert command.main(["tiny.py", "--trials", "1", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "tiny-0000: Dice 0." in out
    assert "1 finished" in out
    for name in ("best.safetensors", "metrics.csv", "config.json"):
        assert Path("checkpoints/tiny-0000", name).stat().st_size > 0
    assert command.main(["tiny.py", "--report"]) == 0
    assert capsys.readouterr().out == out[out.index("study tiny:") :]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nowhere.py"], "nowhere.py is no file"),
        (["space.py", "--trials", "0"], "trials is 0"),
        (["space.py", "--jobs", "0"], "jobs is 0"),
        (["space.py", "--seed", "-1"], "seed is -1"),
        (["space.py", "--resume"], "nothing to resume"),
    ],
)
def test_wrong_commands_leave_with_2(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("space.py").write_text(GOOD)
    with pytest.raises(SystemExit) as left:
        command.main(argv)
    assert left.value.code == 2
    assert said in capsys.readouterr().err
    assert not Path("checkpoints").exists()


def test_a_report_of_no_study_leaves_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    Path("space.py").write_text(GOOD)
    assert command.main(["space.py", "--report"]) == 1
    assert "nothing to report" in capsys.readouterr().err
    Path("checkpoints/space").mkdir(parents=True)
    Path("checkpoints/space/journal.log").touch()  # killed before it had a study
    assert command.main(["space.py", "--report"]) == 1
    assert "holds no study space" in capsys.readouterr().err
