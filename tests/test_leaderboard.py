"""The record of all experiments: what is read, how it is ordered and filtered, what is said of what is missing."""

from __future__ import annotations

import csv
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import Config, ConfigProblem
from engine import background, leaderboard
from engine import settings as mechanics
from engine.files import FileProblem
from engine.jobs.entry import Spec
from engine.jobs.store import Store
from engine.leaderboard import Row, Word
from inference.metrics import DiceTable

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The experiments of whoever runs the tests are none of theirs."""
    monkeypatch.setattr(background, "LOG", tmp_path / "log")


def experiment(folder: Path, exit_code: int | None = 0, dice: list[list[float]] | None = None, **changes: Any) -> Path:
    """An experiment's folder as run_exp.py leaves it; `dice`, images x 2 classes, goes through the real tables."""
    folder.mkdir(parents=True)
    cfg = mechanics.replace(Config(), {"classes": ("Radius", "Ulna"), "epoch": 3, "exp_name": folder.name, **changes})
    (folder / "config.json").write_text(json.dumps(mechanics.to_record(cfg)))
    (folder / "metrics.csv").write_text("epoch,val_dice,seconds\n0,,1800\n1,0.5,1800\n")
    if exit_code is not None:
        (folder / "result.json").write_text(json.dumps({"exit_code": exit_code}))
    if dice:
        table = DiceTable(("Radius", "Ulna"))
        for number, row in enumerate(dice):
            table.add(f"ID{number}/image", np.array(row))
        table.to_csv(folder / "per_class.csv")
        table.images_to_csv(folder / "val_dice.csv")
    return folder


def rows(folder: Path, **words: list[Word]) -> dict[str, Row]:
    return {row.experiment: row for row in leaderboard.read_rows(folder, words)}


def test_a_row_says_what_was_reached_and_how_sure_that_is(tmp_path: Path) -> None:
    folder = experiment(tmp_path / "a", dice=[[0.9, 0.8], [0.7, 0.6], [1.0, 0.5]], lr=1e-3)
    results = folder / "inference" / "test"
    results.mkdir(parents=True)
    (results / "submission.csv").write_text("")
    (results / "per_class.csv").write_text("class,mean,std,min,worst_image\nRadius,0.75,0,0,x\nUlna,0.25,0,0,x\n")
    row = rows(tmp_path)["a"]
    assert row.dice == pytest.approx(0.75) and row.images == 3
    assert row.sd == pytest.approx(statistics.pstdev([0.85, 0.65, 0.75]))
    assert row.worst == "Ulna" and row.test == 0.5 and row.csv == str(results / "submission.csv")
    assert (row.state, row.epoch, row.epochs, row.hours) == ("done", 2, 3, 1.0)
    assert row.changed == {"lr": 1e-3, "classes": ["Radius", "Ulna"], "epoch": 3}


def test_all_folds_are_one_experiment(tmp_path: Path) -> None:
    folder = experiment(tmp_path / "k", None, fold="all", n_folds=2)
    (folder / "metrics.csv").unlink()
    assert rows(tmp_path)["k"].state == "died"
    experiment(folder / "fold0")
    assert (rows(tmp_path)["k"].state, rows(tmp_path)["k"].epoch) == ("died", 2), "one of two folds is done"
    experiment(folder / "fold1", 75)
    assert rows(tmp_path)["k"].state == "stopped"
    (folder / "fold1" / "result.json").write_text('{"exit_code": 0}')
    (folder / "folds.csv").write_text("fold,images,val_dice\nfold0,2,0.8\nfold1,2,0.9\nall,4,0.85\n")
    (folder / "oof.csv").write_text("class,mean,std,min,worst_image\nRadius,0.9,0,0,x\nUlna,0.8,0,0,x\n")
    row = rows(tmp_path)["k"]
    assert (row.state, row.folds, row.worst) == ("done", "0.8000-0.9000", "Ulna")
    assert (row.epoch, row.epochs, row.hours) == (4, 6, 2.0)
    assert row.dice == pytest.approx(0.85) and list(rows(tmp_path)) == ["k"]


def test_an_ensemble_that_trains_nothing_is_an_experiment_too(tmp_path: Path) -> None:
    results = experiment(tmp_path / "both" / "inference" / "test", None, model_file="model.model_unet")
    (results / "metrics.csv").unlink()
    (results / "submission.csv").write_text("")
    (results / "per_class.csv").write_text("class,mean,std,min,worst_image\nRadius,0.5,0,0,x\n")
    row = rows(tmp_path)["both"]
    assert (row.state, row.test, row.changed["model_file"]) == ("done", 0.5, "model.model_unet")
    assert math.isnan(row.dice) and row.epochs == 0 and row.csv == str(results / "submission.csv")


@pytest.mark.parametrize(
    ("code", "state"), [(0, "done"), (1, "failed"), (2, "failed"), (75, "stopped"), (130, "stopped"), (None, "died")]
)
def test_the_state_by_what_the_experiment_left(tmp_path: Path, code: int | None, state: str) -> None:
    experiment(tmp_path / "a", code)
    assert rows(tmp_path)["a"].state == state


def test_the_newest_word_on_a_state_counts(tmp_path: Path) -> None:
    experiment(tmp_path / "a", 75)
    os.utime(tmp_path / "a" / "result.json", (1000, 1000))
    os.utime(tmp_path / "a" / "config.json", (900, 900))
    assert rows(tmp_path, a=[Word(999, "failed")])["a"].state == "stopped"
    assert rows(tmp_path, a=[Word(1001, "failed", "why")])["a"].reason == "why"
    assert rows(tmp_path, a=[Word(math.inf, "running"), Word(math.inf, "queued")])["a"].state == "running"


def test_the_queue_and_the_background_have_their_say(tmp_path: Path) -> None:
    queue, log = tmp_path / "queue", tmp_path / "log"
    assert leaderboard.said_elsewhere(queue) == {} and not queue.exists(), "looking begins no queue"
    with Store(queue) as store:
        store.add([Spec("a"), Spec("b"), Spec("c")])
        store.hold([2])
        store.cancel([3], "by hand")
    log.mkdir()
    alive = background.Record("d", background.Identity.me(), "t", "background", "x", (), 5.0)
    before = background.Identity(1, 0.5, "an old boot", alive.identity.host)
    gone = background.Record("e", before, "t", "background", "x", (), 5.0)
    for record in (alive, gone):
        found = {**record.__dict__, "identity": record.identity.__dict__}
        found.pop("name")
        (log / f"{record.name}.json").write_text(json.dumps(found))
    (log / "damaged.json").write_text("{")
    said = leaderboard.said_elsewhere(queue)
    assert {name: words[0].state for name, words in said.items()} == {
        "a": "queued", "b": "held", "c": "cancelled", "d": "running", "e": "died",
    }  # fmt: skip
    assert said["c"][0].reason == "by hand" and said["a"][0].time == math.inf > said["c"][0].time


def test_other_folders_and_damaged_files_harm_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "study").mkdir()
    for number, text in enumerate(("{", "[]", '{"run": 3}', "\udcff")):
        (tmp_path / f"odd{number}").mkdir()
        (tmp_path / f"odd{number}" / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    folder = experiment(tmp_path / "a", dice=[[0.5, 0.5]])
    for name in ("metrics.csv", "val_dice.csv", "result.json"):
        (folder / name).write_text("image,a\nx,what")
    row = rows(tmp_path)["a"]
    assert list(rows(tmp_path)) == ["a"] and row.state == "died" and "damaged" in row.reason
    assert row.dice == 0.5 and row.images == 0, "per_class.csv is still there"
    with pytest.raises(FileProblem, match="missing is no folder: give the experiments' one with --output_dir"):
        leaderboard.read_rows(tmp_path / "missing", {})


CHANGED = {"lr": st.sampled_from((1e-3, 1e-2)), "model_file": st.just("unet")}
ROWS = st.lists(
    st.builds(
        Row,
        experiment=st.sampled_from("abcd"),
        state=st.sampled_from(("done", "failed")),
        dice=st.one_of(st.just(math.nan), st.floats(0, 1)),
        changed=st.fixed_dictionaries({}, optional=CHANGED),
    )
)


@given(ROWS, st.sampled_from(("dice", "experiment", "lr", "model_file", "state", "loss_weights")), st.booleans())
@settings(derandomize=True, max_examples=60, deadline=None)
def test_sorting_loses_nothing_and_puts_what_is_missing_last(found: list[Row], name: str, reverse: bool) -> None:
    done = leaderboard.ordered(found, name, reverse)
    assert sorted(map(id, done)) == sorted(map(id, found))
    values = [row.value(name) for row in done]
    known = [value for value in values if not leaderboard._missing(value)]
    assert all(leaderboard._missing(value) for value in values[len(known) :])
    if name != "loss_weights":
        assert known == sorted(known, reverse=(name == "dice") != reverse)


@given(ROWS, st.floats(0, 1))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_a_condition_and_its_opposite_share_the_rows_out(found: list[Row], limit: float) -> None:
    for one, other in ((">=", "<"), ("<=", ">")):
        parts = [leaderboard.kept(found, [f"dice{sign}{limit!r}"]) for sign in (one, other)]
        missing = [row for row in found if math.isnan(row.dice)]
        assert sorted(map(id, [*parts[0], *parts[1], *missing])) == sorted(map(id, found))
    parts = [leaderboard.kept(found, [f"state{sign}DONE"]) for sign in ("=", "!=")]
    assert sorted(map(id, [*parts[0], *parts[1]])) == sorted(map(id, found))


def test_conditions_look_at_defaults_too(tmp_path: Path) -> None:
    found = [Row("a"), Row("b", changed={"lr": 1e-2, "model_file": "model.model_unet_resnet34"})]
    for condition, names in (
        ("lr>1e-3", "b"),
        ("lr = 1e-4", "a"),
        ("model_file~ResNet", "b"),
        ("model_file!=model.model_unet_resnet34", "a"),
        ("dice<1", ""),
        ("experiment=a", "a"),
    ):
        assert "".join(row.experiment for row in leaderboard.kept(found, [condition])) == names, condition
    assert leaderboard.kept(found, ["lr>1e-3", "experiment=a"]) == []


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("dice", "filter 'dice' is no condition: write name, one of"),
        ("dicce>1", "'dicce' is neither a column nor a setting (did you mean dice or device?)."),
        ("lr<fast", "'fast' is no number, which < needs"),
    ],
)
def test_a_condition_that_says_nothing(condition: str, message: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        leaderboard.kept([], [condition])
    assert message in str(caught.value)
    with pytest.raises(ConfigProblem, match="'speed' is neither a column nor a setting"):
        leaderboard.ordered([], "speed")


def test_what_all_have_in_common_stands_above_the_table() -> None:
    found = [Row("a", "done", 0.9, changed={"seed": 1, "lr": 1e-3}), Row("b", "done", changed={"seed": 1})]
    head, columns, *lines = leaderboard.text(found).splitlines()
    assert head == "in all: seed 1"
    assert columns.split() == ["experiment", "state", "dice", "lr"]
    assert [line.split() for line in lines] == [["a", "done", "0.9000", "0.001"], ["b", "done", "0.0001"]]


def test_a_setting_with_a_columns_name_is_no_second_column() -> None:
    found = [Row("a", epoch=1, epochs=3, changed={"epoch": 3}), Row("b", epoch=2, epochs=9, changed={"epoch": 9})]
    assert leaderboard.text(found).splitlines()[0].split() == ["experiment", "epoch"]
    assert leaderboard.table(found)[0].count("epoch") == 1


def test_the_command_prints_and_writes_and_never_overwrites(tmp_path: Path) -> None:
    experiment(tmp_path / "x" / "low", dice=[[0.5, 0.5]])
    experiment(tmp_path / "x" / "high", dice=[[0.9, 0.9], [0.8, 0.8]], lr=1e-3)
    command = [sys.executable, str(ROOT / "scripts" / "leaderboard.py"), "--output_dir", "x"]

    def run(*flags: str) -> tuple[int, str]:
        done = subprocess.run([*command, *flags], cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    code, out = run("--csv", "table.csv")
    assert code == 0 and out.index("high") < out.index("low") and out.endswith("table: table.csv\n")
    with open(tmp_path / "table.csv", newline="") as file:
        table = {row["experiment"]: row for row in csv.DictReader(file)}
    assert list(table) == ["high", "low"] and float(table["high"]["dice"]) == pytest.approx(0.85)
    assert table["high"]["lr"] == "0.001" and table["low"]["lr"] == "0.0001"
    code, out = run("--csv", "table.csv")
    assert code == 1 and "table.csv exists and is never overwritten" in out
    assert run("--filter", "dice>0.95") == (0, "none of the 2 experiments in x\n")
    assert run("--sort", "speed")[0] == 2
    assert not (tmp_path / "log").exists(), "looking writes nothing"


def test_it_needs_neither_torch_nor_numpy() -> None:
    code = "import sys; import scripts.leaderboard; assert not {'torch', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
