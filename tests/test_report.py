"""What a report holds: cases of at most 1 MB that decode to the same masks, the summary, and what is left alone."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from report_data import SIZE, write_experiment, write_predictions

from config import Config, ConfigProblem
from dataset.readers import Record, read_competition, read_folder
from engine import settings
from engine.files import FileProblem, write_json
from engine.rle import runs_of_bits
from report import case, page
from report import leaderboard as report_leaderboard
from report.case import MOST_BYTES, MOST_RUNS, pack_case, pack_layer, script
from report.page import check_output, worst_images, write_report
from report.sources import Source, csvs, experiments, newest_csv
from report.summary import MOST_POINTS, Scores, curves, differences, thinned, thresholds
from scripts import report as command

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ("Radius", "Ulna", "Capitate")


def value_of(text: str) -> Any:
    """The JSON of a script."""
    start = text.index("(") + 1
    return json.loads(text[start : text.rindex(");")])


def decode(layer: dict[str, Any], n_classes: int) -> list[NDArray[np.int64]]:
    numbers = np.frombuffer(zlib.decompress(base64.b64decode(layer["data"])), "<i4").astype(np.int64)
    counts, rest = numbers[:n_classes], numbers[n_classes:]
    cuts = np.split(rest, 2 * np.cumsum(counts)[:-1])
    return [np.cumsum(part).reshape(-1, 2) for part in cuts]


@pytest.fixture(scope="module")
def experiment(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("runs") / "K", phantom_root)


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 12), st.integers(1, 20))
@hypothesis_settings(derandomize=True, max_examples=60, deadline=None)
def test_layers_decode_to_the_same_runs(seed: int, n_classes: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    words = -(-n_classes // 32)
    planes = rng.random((n_classes, height, width)) < rng.random()
    bits = np.zeros((words, height, width), np.uint32)
    for k, plane in enumerate(planes):
        bits[k // 32] |= plane.astype(np.uint32) << np.uint32(k % 32)
    runs = runs_of_bits(bits.view(np.int32), n_classes)
    layer = pack_layer(runs, height, width)
    assert layer["step"] == 1
    for found, wanted in zip(decode(layer, n_classes), runs, strict=True):
        assert (found == wanted).all()


def test_a_case_of_pure_noise_still_has_at_most_a_megabyte() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (512, 512)).astype(np.uint8)
    noise = rng.integers(0, 2**29, (1, 512, 512)).astype(np.int32)
    runs = runs_of_bits(noise, 29)
    text = pack_case("noise.png", image, [runs, runs, runs])
    assert len(text) <= MOST_BYTES
    packed = value_of(text)
    step = packed["layers"][0]["step"]
    assert step > 1
    shown = decode(packed["layers"][0], 29)
    assert sum(map(len, shown)) <= MOST_RUNS
    wanted = runs_of_bits(np.ascontiguousarray(noise[:, ::step, ::step]), 29)
    assert all((a == b).all() for a, b in zip(shown, wanted, strict=True))


def test_more_layers_than_a_case_holds_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case, "MOST_BYTES", 10_000)
    noise = runs_of_bits(np.random.default_rng(0).integers(0, 2**29, (1, 64, 64)).astype(np.int32), 29)
    with pytest.raises(FileProblem, match=r"the masks of a\.png alone have more than 10000 bytes: compare fewer"):
        pack_case("a.png", np.zeros((64, 64), np.uint8), [noise] * 2)


def test_scripts_are_ascii_and_hold_no_nan() -> None:
    text = script("f", {"name": "\u2028</script>é"})
    assert text.isascii()
    assert value_of(text) == {"name": "\u2028</script>é"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        script("f", float("nan"))


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=12), st.integers(1, 12))
@hypothesis_settings(derandomize=True, max_examples=60, deadline=None)
def test_the_worst_image_and_the_worst_bone_are_always_held(rows: list[list[float]], n: int) -> None:
    names = [f"{k}.png" for k in range(len(rows))]
    table = Scores(CLASSES, tuple(names), tuple(map(tuple, rows)))
    held = worst_images(names, [table], n)
    assert len(held) == min(n, len(names)) == len(set(held))
    means = dict(zip(names, (sum(row) / 3 for row in rows), strict=True))
    assert [round(means[name], 9) for name in held] == sorted(round(means[name], 9) for name in held)
    assert min(means.values()) == pytest.approx(means[held[0]])
    if n > 1:
        assert min(min(row) for row in rows) == min(min(rows[names.index(name)]) for name in held)
    assert len(worst_images(names, [table], None)) == len(names)


def test_images_without_scores_keep_their_order() -> None:
    assert worst_images(["b", "a", "c"], [], 2) == ["b", "a"]


def test_a_report_of_an_experiment(experiment: Path, phantom_root: Path, tmp_path: Path) -> None:
    index = write_report(tmp_path / "out", experiments([experiment]), worst=2)
    summary = value_of((index.parent / "summary.js").read_text("utf-8"))
    assert index == tmp_path / "out" / "index.html"
    assert summary["title"] == "K"
    assert summary["labelled"]
    (source,) = summary["sources"]
    records = read_competition(phantom_root, "test")
    assert source["scores"]["images"] == [record.name for record in records]
    assert source["split"] == "test"
    assert np.mean(source["validation"]["values"]) == pytest.approx(0.6)
    assert source["costs"]["hours"] == pytest.approx(5 / 3600)
    assert source["curves"][0]["columns"]["val_dice"] == [None, 0.6]
    assert "gpu_gib" not in source["curves"][0]["columns"]  # an empty column is no curve
    assert len(summary["cases"]) == 2
    for entry in summary["cases"]:
        text = (index.parent / entry["file"]).read_text("utf-8")
        assert len(text) <= MOST_BYTES
        held = value_of(text)
        assert (held["name"], held["height"], held["width"]) == (entry["name"], SIZE, SIZE)
        truth, prediction = (decode(layer, 29) for layer in held["layers"])
        assert sum(map(len, truth)) and sum(map(len, prediction))
    # The images were moved by more and more, so the last is the worst.
    assert summary["cases"][0]["name"] == records[-1].name


def test_every_script_of_the_page_is_there(experiment: Path, tmp_path: Path) -> None:
    folder = write_report(tmp_path / "out", experiments([experiment]), worst=1).parent
    html = (folder / "index.html").read_text("utf-8")
    for path in page.PAGE.iterdir():
        assert path.name == "index.html" or f'"{path.name}"' in html, path
    assert "http" not in html


def test_two_experiments_are_compared(experiment: Path, phantom_root: Path, tmp_path: Path) -> None:
    other = write_experiment(tmp_path / "L", phantom_root, shift=4, lr=0.5, epoch=7)
    shutil.copytree(experiment, tmp_path / "K")
    sources = experiments([tmp_path / "K", other])
    rows = {row["name"]: row["values"] for row in differences(sources)}
    assert rows["lr"][1] == "0.5"
    assert list(rows)[:2] == ["epoch", "lr"] or set(list(rows)[:2]) == {"epoch", "lr"}  # what differs comes first
    summary = value_of((write_report(tmp_path / "out", sources, 1).parent / "summary.js").read_text("utf-8"))
    first, second = (np.mean(source["scores"]["values"]) for source in summary["sources"])
    assert first > second


def test_predictions_without_labels_open_too(phantom_root: Path, tmp_path: Path) -> None:
    records = read_competition(phantom_root, "test")
    a = write_predictions(tmp_path / "a.csv", records, 1)
    b = write_predictions(tmp_path / "b.csv", records, 5)
    images = read_folder(phantom_root / "test" / "DCM")
    one = value_of((write_report(tmp_path / "one", csvs([a], images), 2).parent / "summary.js").read_text("utf-8"))
    assert not one["labelled"]
    assert one["sources"][0]["scores"] is None
    assert [entry["name"] for entry in one["cases"]] == [record.name for record in records[:2]]
    both = write_report(tmp_path / "both", csvs([a, b], images), 2).parent
    two = value_of((both / "summary.js").read_text("utf-8"))
    assert two["sources"][0]["scores"] is None
    assert 0 < np.mean(two["sources"][1]["scores"]["values"]) < 1  # what they agree in
    assert value_of((both / two["cases"][0]["file"]).read_text("utf-8"))["layers"][0] is None


def test_an_experiment_that_has_predicted_nothing_has_a_summary(experiment: Path, tmp_path: Path) -> None:
    shutil.copytree(experiment, tmp_path / "K", ignore=shutil.ignore_patterns("inference"))
    folder = write_report(tmp_path / "out", experiments([tmp_path / "K"])).parent
    summary = value_of((folder / "summary.js").read_text())
    assert summary["cases"] == []
    assert summary["sources"][0]["validation"]


def test_validation_is_shown_where_all_have_it(experiment: Path, phantom_root: Path, tmp_path: Path) -> None:
    shutil.copytree(experiment, tmp_path / "K")
    train = read_competition(phantom_root, "train")[:2]
    folder = tmp_path / "K" / "inference" / "oof-1"
    write_predictions(folder / "submission.csv", train, 1)
    record = json.loads((experiment / "config.json").read_text())
    record["inference"]["split"] = "val"
    (folder / "config.json").write_text(json.dumps(record))
    assert newest_csv(tmp_path / "K", "val") == folder / "submission.csv"
    (source,) = experiments([tmp_path / "K"])
    assert (source.split, list(source.records)) == ("val", [one.name for one in train])
    assert [s.split for s in experiments([tmp_path / "K", experiment])] == ["test", "test"]
    with pytest.raises(ConfigProblem, match=r"split val: .*K holds no such predictions: run python inference/inf"):
        experiments([tmp_path / "K", experiment], "val")


def test_images_that_moved_away_are_an_error(experiment: Path, tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="holds no images"):
        experiments([experiment], data_root=str(tmp_path))


def test_no_common_image_is_an_error(phantom_root: Path, tmp_path: Path) -> None:
    records = read_competition(phantom_root, "test")
    sources = [
        *csvs([write_predictions(tmp_path / "a.csv", records[:1], 1)], records),
        *csvs([write_predictions(tmp_path / "b.csv", records[1:2], 1)], records),
    ]
    with pytest.raises(FileProblem, match=r"a\.csv and b\.csv have predicted no image in common"):
        write_report(tmp_path / "out", sources)
    with pytest.raises(FileProblem, match=r"none of the 1 images of .*a\.csv is among the images given"):
        csvs([tmp_path / "a.csv"], records[1:])


def test_only_reports_are_replaced(experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(FileProblem, match="exists and is no report, so it is left alone"):
        write_report(tmp_path / "mine", experiments([experiment]))
    assert (tmp_path / "mine" / "notes.txt").read_text() == "kept"
    out = tmp_path / "out"
    write_report(out, experiments([experiment]), worst=3)
    write_report(out, experiments([experiment]), worst=1)
    assert len(list((out / "cases").iterdir())) == 1
    check_output(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_a_failed_report_leaves_the_old_one(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_report(out, experiments([experiment]), worst=1)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def fails(record: Record, sources: list[Source]) -> str:
        raise FileProblem("broken.png is not a readable image")

    monkeypatch.setattr(page, "case_of", fails)
    with pytest.raises(FileProblem, match=r"broken\.png"):
        write_report(out, experiments([experiment]))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    rows: list[Mapping[str, str]] = [{"epoch": str(k)} for k in range(3001)]
    kept = thinned(rows)
    assert len(kept) <= MOST_POINTS + 1
    assert kept[-1] == rows[-1]
    assert thinned(rows[:5]) == rows[:5]


def test_folds_have_a_curve_each(experiment: Path, tmp_path: Path) -> None:
    for k in (0, 1, 10, 2):
        (tmp_path / f"fold{k}").mkdir()
        shutil.copy(experiment / "metrics.csv", tmp_path / f"fold{k}")
    assert [curve["title"] for curve in curves(tmp_path)] == ["fold0", "fold1", "fold2", "fold10"]
    assert thresholds(tmp_path) is None


def run(*arguments: object) -> int:
    try:
        return command.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_the_command(experiment: Path, phantom_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("K", "--output_dir", experiment.parent, "--worst", 1) == 0
    assert str(experiment / "report" / "index.html") in capsys.readouterr().out
    csv = experiment / "inference" / "test" / "submission.csv"
    out = tmp_path / "csv"
    assert run("--csv", csv, csv, "--data_root", phantom_root, "--all", "--output", out) == 0
    summary = value_of((out / "summary.js").read_text())
    assert len(summary["cases"]) == len(read_competition(phantom_root, "test"))
    assert {source["title"] for source in summary["sources"]} == {str(csv)}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "a report is about experiments or about csv, but neither is given: give one of them."),
        (["K", "--csv", "a.csv"], 2, "but both are given: give one of them."),
        (["K", "--worst", "0"], 2, "worst is 0, but must be 1 or more"),
        (["nowhere"], 1, "nowhere/config.json cannot be read (No such file or directory): give the folder of an exp"),
        (["K", "--images", "x"], 2, "split train and images are for csv"),
        (["--csv", "a.csv"], 2, "images come from data_root or from images, but none is given"),
        (["K", "--output", str(ROOT / "docs")], 1, "docs exists and is no report, so it is left alone"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str], experiment: Path
) -> None:
    assert run(*arguments, "--output_dir", experiment.parent) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_report_needs_no_torch() -> None:
    text = "import sys, report.page, scripts.report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", text], cwd=ROOT, check=True)


def written(folder: Path, name: str, dice: float, **changed: object) -> Path:
    """A folder as a run leaves it, in small."""
    record = settings.to_record(settings.replace(Config(), {"exp_name": name, **changed}))
    write_json(folder / name / "config.json", record)
    (folder / name / "val_dice.csv").write_text(f"image,Radius\na,{dice}\n")
    return folder / name


def source(folder: Path) -> Source:
    return Source(folder.name, folder, Config())


def test_a_page_has_the_best_of_a_thousand_experiments_and_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_leaderboard, "MOST_ROWS", 3)
    monkeypatch.setattr(report_leaderboard, "MOST_SETTINGS", 1)
    for k in range(5):
        written(tmp_path, f"run{k}", 0.9 + k / 100, lr=1e-3 if k % 2 else 1e-4, seed=k, epoch=7)
    own = written(tmp_path, "own", 0.1, epoch=7)
    (tmp_path / "run4" / "report").mkdir()
    (tmp_path / "run4" / "report" / "index.html").touch()
    found = report_leaderboard.record([source(own)], own / "report")
    assert found is not None
    rows = [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
    assert [(row["experiment"], row["dice"]) for row in rows] == [("run4", 0.94), ("run3", 0.93), ("own", 0.1)]
    assert (found["own"], found["total"], found["left_out"]) == ([2], 6, 1)
    assert found["links"] == {0: "../../run4/report/index.html"}
    assert "seed" in rows[0] and "lr" not in rows[0] and found["columns"].count("epoch") == 1
    assert "null" in script("f", found) and str(tmp_path) not in script("f", found["links"])


def test_alone_there_is_no_table_of_others(tmp_path: Path) -> None:
    own = written(tmp_path, "own", 0.1)
    assert report_leaderboard.record([source(own)], tmp_path / "out") is None
    assert report_leaderboard.record([Source("a.csv")], tmp_path / "out") is None
    assert report_leaderboard.record([source(own), source(written(tmp_path, "b", 1))], tmp_path / "out") is None


def test_a_damaged_queue_costs_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = tmp_path / "queue"
    queue.mkdir()
    (queue / "queue.db").write_bytes(b"no database" * 1000)
    monkeypatch.setattr(report_leaderboard, "QUEUE", queue)
    written(tmp_path / "x", "b", 0.5)
    found = report_leaderboard.record([source(written(tmp_path / "x", "a", 0.2))], tmp_path / "out")
    assert found is not None and [row[0] for row in found["rows"]] == ["b", "a"]
