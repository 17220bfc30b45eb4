"""inference/scores.py and the tables of inference/metrics.py, against MONAI and by hand."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_confusion_matrix_metric, get_confusion_matrix
from numpy.typing import NDArray
from reference import pack

from config import ConfigProblem
from dataset.order import Shard
from inference.metric_names import METRICS, chosen_metrics
from inference.metrics import DiceTable, Metric, ScoreTable, count_bits
from inference.scores import Scores, scores_from_counts, scores_from_surfaces

FEW = settings(derandomize=True, max_examples=50, deadline=None)
NAN = math.nan
IN_MONAI = {"iou": "threat score", "precision": "precision", "recall": "sensitivity", "accuracy": "accuracy"}


@FEW
@given(
    st.sampled_from([1, 29, 32, 33, 65]),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_counted_scores_equal_monais(k: int, side: int, p: float, t: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pred, true = rng.random((k, side, side)) < p, rng.random((k, side, side)) < t
    found = scores_from_counts(count_bits(pack(pred), pack(true), k), side**2)
    assert found.keys() == IN_MONAI.keys()
    a, b = (torch.from_numpy(m[None]).float() for m in (pred, true))
    confusion = get_confusion_matrix(a, b, include_background=True)[0]
    in_both = pred.any((1, 2)) & true.any((1, 2))
    for name, theirs in IN_MONAI.items():
        monai = compute_confusion_matrix_metric(theirs, confusion).numpy()
        compared = in_both if name != "accuracy" else np.ones(k, bool)
        np.testing.assert_allclose(found[name][compared], monai[compared], rtol=1e-6, atol=1e-7)


def test_empty_masks_are_left_out_or_worst() -> None:
    """Classes: in both, in neither, in the truth only, in the prediction only."""
    pred, true = np.zeros((2, 4, 6, 8), bool)
    pred[[0, 3], :2], true[[0, 2], :2] = True, True
    found = scores_from_counts(count_bits(pack(pred), pack(true), 4), 48)
    for name in ("iou", "precision", "recall"):
        np.testing.assert_array_equal(found[name], [1, NAN, 0, 0])
    np.testing.assert_allclose(found["accuracy"], [1, 1, 2 / 3, 2 / 3])
    found = scores_from_surfaces(pack(pred), pack(true), 4, 2.0)
    np.testing.assert_array_equal(found["hausdorff"], [0, NAN, 10, 10])
    np.testing.assert_array_equal(found["hausdorff95"], [0, NAN, 10, 10])
    np.testing.assert_array_equal(found["surface_dice"], [1, NAN, 0, 0])


def test_no_distance_is_above_that_of_a_missing_mask() -> None:
    pred, true = np.zeros((2, 2, 6, 8), bool)
    pred[0, 0, 0] = true[0, 5, 7] = true[1, 0, 0] = True
    corners, missing = scores_from_surfaces(pack(pred), pack(true), 2, 2.0)["hausdorff"]
    assert corners < missing


def test_chosen_metrics() -> None:
    assert chosen_metrics([]) == ()
    assert chosen_metrics(["Confusion", "iou", "iou"]) == ("iou", "confusion")
    assert chosen_metrics(["all", "iou"]) == METRICS
    with pytest.raises(ConfigProblem, match=r"^metrics holds 'hausdorf' \(did you mean hausdorff"):
        chosen_metrics(["iou", "hausdorf"])


@pytest.mark.parametrize("tolerance", [-0.5, NAN])
def test_refuses_a_tolerance_below_zero(tolerance: float) -> None:
    with pytest.raises(ValueError, match=r"^The tolerance of surface_dice is .* px, but must be 0 or more"):
        Scores(["a"], ["all"], tolerance)


CLASSES = ["Radius", "a, b", "never"]


def two_images() -> list[tuple[str, NDArray[np.int32], NDArray[np.int32]]]:
    """One whose first class is half right, one where the second is missing; the third is in none."""
    true = np.zeros((2, 3, 10, 10), bool)
    true[0, 0, :4] = true[1, :2, 3:6] = True
    pred = true.copy()
    pred[0, 0, :2] = pred[1, 1] = False
    return [(f"{i}.png", pack(pred[i]), pack(true[i])) for i in range(2)]


def scored(metrics: list[str], images: list[tuple[str, NDArray[np.int32], NDArray[np.int32]]]) -> Scores:
    scores = Scores(CLASSES, metrics, 1.0)
    for image in images:
        scores.add(*image)
    return scores


def test_scores_to_csv(tmp_path: Path) -> None:
    scored(["all"], two_images()).to_csv(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"scores.csv", "confusion.csv"}
    frame = pd.read_csv(tmp_path / "scores.csv")
    assert list(frame.columns) == ["metric", "class", "mean", "std", "worst", "worst_image", "left_out"]
    assert frame["metric"].drop_duplicates().tolist() == [name for name in METRICS if name != "confusion"]
    rows = frame.set_index(["metric", "class"])
    assert rows.loc[("iou", "Radius")].tolist() == [0.75, 0.25, 0.5, "0.png", 0]
    assert rows.loc[("iou", "a, b")].tolist() == [0.0, 0.0, 0.0, "1.png", 1]
    assert rows.loc[("hausdorff", "Radius")].tolist() == [1.0, 1.0, 2.0, "0.png", 0]
    assert rows.loc[("hausdorff", "a, b"), "worst"] == pytest.approx(math.hypot(10, 10), abs=1e-6)
    assert rows.loc[("surface_dice", "never"), ["mean", "std", "worst", "worst_image"]].isna().all()
    assert rows.loc[("surface_dice", "never"), "left_out"] == 2
    assert rows.loc[("accuracy", "never")].tolist() == [1.0, 0.0, 1.0, "0.png", 0]
    confusion = pd.read_csv(tmp_path / "confusion.csv", index_col=0)
    assert confusion.loc["Radius"].tolist() == [50, 0, 0, 20]
    assert confusion.loc["a, b"].tolist() == [0, 0, 0, 30]


def test_only_what_was_asked_for(tmp_path: Path) -> None:
    scores = scored(["confusion"], two_images())
    assert scores.means() == {}
    assert scores.text() == ""
    scores.to_csv(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["confusion.csv"]
    scores = scored(["recall"], two_images())
    assert scores.confusion is None
    assert scores.means() == {"recall": 0.375}  # the class that is in no image is left out


def test_scores_as_text() -> None:
    assert scored(["iou", "hausdorff"], two_images()).text().splitlines() == [
        "class        iou  hausdorff",
        "Radius    0.7500     1.0000",
        "a, b      0.0000    14.1421",
        "never        nan        nan",
        "mean      0.3750     7.5711",
        "left out       3          3",
    ]


@pytest.mark.parametrize("metric", METRICS)
def test_every_image_counts_once(metric: str) -> None:
    image = two_images()[0]
    scores = scored([metric], [image])
    with pytest.raises(ValueError, match=r"^Image '0.png' is in the table already, but every image counts once"):
        scores.add(*image)


@pytest.mark.parametrize("ranks", [2, 3, 9])
def test_scores_of_ranks_equal_those_of_one(ranks: int, tmp_path: Path) -> None:
    """Bit by bit, with ranks that had nothing to do, too."""
    rng = np.random.default_rng(3)
    images = [(f"{i}.png", *(pack(m) for m in rng.random((2, 3, 9, 9)) < 0.3)) for i in range(7)]
    order = [name for name, _, _ in images]
    alone = scored(["all"], images)
    shards = [Shard(rank, ranks).padded(len(images)) for rank in range(ranks)]
    first, *others = [scored(["all"], [images[i] for i, counts in shard if counts]) for shard in shards]
    first.merge(others, order)
    assert first.means() == alone.means()
    assert first.text() == alone.text()
    for folder, scores in (("one", alone), ("many", first)):
        scores.to_csv(tmp_path / folder)
    for name in ("scores.csv", "confusion.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()


def test_refuses_to_merge_images_that_are_missing_or_there_twice() -> None:
    def table(*names: str) -> DiceTable:
        made = DiceTable(["a"])
        for name in names:
            made.add(name, np.array([0.5]))
        return made

    with pytest.raises(ValueError, match=r"^Image 'x' is in the table already"):
        table("x").merge([table("y", "x")], ["x", "y"])
    with pytest.raises(ValueError, match=r"^The tables hold 1 images and the list 2, and image 'y' is in one of them"):
        table("x").merge([], ["x", "y"])
    with pytest.raises(ValueError, match="image 'y' is in one of them only, but every image counts once"):
        table("x").merge([table("y")], ["x"])


def test_a_table_leaves_out_what_is_not_defined() -> None:
    table = ScoreTable(["a", "b", "c"], Metric("hausdorff", math.inf, high_is_good=False))
    table.add("one.png", np.array([1.0, NAN, NAN]))
    table.add("two.png", np.array([3.0, 8.0, NAN]))
    table.add("three.png", np.array([3.0, 5.0, NAN]))
    np.testing.assert_allclose(table.per_class(), [[7 / 3, 6.5, NAN], [np.std([1, 3, 3]), 1.5, NAN]])
    assert table.mean() == pytest.approx((7 / 3 + 6.5) / 2)
    summary = table.summary()
    assert [(c.worst_image, c.left_out) for c in summary] == [("two.png", 0), ("two.png", 1), ("", 3)]
    assert [c.worst for c in summary[:2]] == [3, 8]
    assert math.isnan(summary[2].worst)


@pytest.mark.parametrize(
    ("metric", "value", "sentence"),
    [
        (Metric("iou"), 1.5, "iou of image 'x', class 'a', is 1.5, but must be in [0, 1]."),
        (Metric("hausdorff", math.inf), -1.0, "is -1.0, but must be in [0, inf)."),
        (Metric("hausdorff", math.inf), math.inf, "is inf, but must be in [0, inf)."),
        (Metric("accuracy", always_defined=True), NAN, "is nan, but must be in [0, 1]."),
    ],
)
def test_a_table_refuses_what_cannot_be(metric: Metric, value: float, sentence: str) -> None:
    table = ScoreTable(["a"], metric)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        table.add("x", np.array([value]))
    with pytest.raises(ValueError, match=f"^No image was added, so there is no {metric.name}"):
        table.mean()
