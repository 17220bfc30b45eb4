"""inference/fold_scores.py: what the folds of an experiment reach, as table, CSV and plot."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_run_exp import read_csv

from inference.fold_scores import FILES, FoldScores, fold_scores
from inference.folds import VAL_DICE, out_of_fold
from inference.metrics import DiceTable, write_csv

DICE = {"fold0": [[0.8, 0.6], [0.9, 0.7]], "fold1": [[0.5, 0.3]], "fold2": [[1.0, 0.8]]}
"""Fold -> images -> classes."""
MEANS = [0.75, 0.4, 0.9]
HEAD = ("metric", "class", "mean", "std", "worst", "worst_image", "left_out")


@pytest.fixture
def folds(tmp_path: Path) -> list[Path]:
    """Three validated folds of two classes, with distances in scores.csv; Ulna is in no image of fold2."""
    for number, (name, rows) in enumerate(DICE.items()):
        table = DiceTable(("Radius", "Ulna"))
        for image, row in enumerate(rows):
            table.add(f"{name}-{image}", np.array(row))
        (tmp_path / name).mkdir()
        table.images_to_csv(tmp_path / name / VAL_DICE)
        ulna = ("", "", "", "", 1) if number == 2 else (f"{10 * number + 4}", "3", "9", "x", 0)
        lines = [("hausdorff", "Radius", f"{10 * number + 2}", "1", "9", "x", 0), ("hausdorff", "Ulna", *ulna)]
        write_csv(tmp_path / name / "scores.csv", [HEAD, *lines])
    return [tmp_path / name for name in DICE]


def tables(folds: list[Path]) -> list[DiceTable]:
    return [DiceTable.from_images_csv(fold / VAL_DICE) for fold in folds]


def test_means_over_images_classes_and_folds(folds: list[Path]) -> None:
    found = fold_scores(folds, tables(folds))
    assert found.folds == tuple(DICE) and found.images == (2, 1, 1)
    assert list(found.metrics) == ["dice", "hausdorff"]
    assert [score.mean for score in found.metrics["dice"]] == pytest.approx(MEANS)
    assert [score.sd for score in found.metrics["dice"]] == pytest.approx([0.05, 0, 0])
    assert [(score.mean, score.sd) for score in found.metrics["hausdorff"]] == [(3, 2), (13, 2), (22, 1)]
    assert found.over_folds("dice") == pytest.approx((np.mean(MEANS), statistics.stdev(MEANS)))
    assert found.over_folds("hausdorff") == pytest.approx((38 / 3, statistics.stdev([3, 13, 22])))


def test_the_csv_and_the_printed_table_say_the_same(folds: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = folds[0].parent
    out_of_fold(folder, folds)
    out = capsys.readouterr().out
    rows = read_csv(folder / FILES[0])
    assert [row["fold"] for row in rows] == [*DICE, "mean", "sd"]
    assert [row["images"] for row in rows] == ["2", "1", "1", "4", "4"]
    assert float(rows[3]["dice"]) == pytest.approx(np.mean(MEANS), abs=1e-6)
    assert out.splitlines() == [
        "fold   images    dice  hausdorff",
        "fold0       2  0.7500       3.00",
        "fold1       1  0.4000      13.00",
        "fold2       1  0.9000      22.00",
        "mean           0.6833      12.67",
        "sd             0.2566       9.50",
        f"folds: {folder / FILES[0]}, {folder / FILES[1]}",
    ]


def test_the_plot_has_a_panel_for_each_metric(folds: list[Path], tmp_path: Path) -> None:
    found = fold_scores(folds, tables(folds))
    found.write(tmp_path)
    both = cv2.imread(str(tmp_path / FILES[1]))
    FoldScores(found.folds, found.images, {"dice": found.metrics["dice"]}).write(tmp_path)
    one = cv2.imread(str(tmp_path / FILES[1]))
    assert both is not None and one is not None
    assert both.shape[0] == one.shape[0] and both.shape[1] > 1.5 * one.shape[1]
    blue = (both[..., 0].astype(int) - both[..., 2] > 20).any(0)
    assert np.diff(blue.astype(int)).clip(0).sum() == 2, "a band in each panel"


def test_only_metrics_of_all_folds_count(folds: list[Path]) -> None:
    (folds[1] / "scores.csv").unlink()
    assert list(fold_scores(folds, tables(folds)).metrics) == ["dice"]


def test_one_fold_has_no_deviation_and_a_class_that_is_nowhere_no_score(folds: list[Path], tmp_path: Path) -> None:
    write_csv(folds[0] / "scores.csv", [HEAD, ("iou", "Radius", "", "", "", "", 2), ("iou", "Ulna", "", "", "", "", 2)])
    found = fold_scores(folds[:1], tables(folds[:1]))
    assert math.isnan(found.over_folds("dice")[1]) and math.isnan(found.metrics["iou"][0].mean)
    found.write(tmp_path)
    rows = [(row["dice"], row["iou"]) for row in read_csv(tmp_path / FILES[0])]
    assert rows == [("0.750000", ""), ("0.750000", ""), ("", "")]
