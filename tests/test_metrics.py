"""inference/metrics.py against float64 NumPy on whole masks."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import pack

from inference.metrics import DiceTable, count_bits, dice_from_counts

FEW = settings(derandomize=True, max_examples=50, deadline=None)


def formula(pred: NDArray[np.bool_], true: NDArray[np.bool_]) -> NDArray[np.float64]:
    a, b = pred.astype(np.float64).reshape(len(pred), -1), true.astype(np.float64).reshape(len(true), -1)
    return np.asarray((2 * (a * b).sum(1) + 1e-4) / (a.sum(1) + b.sum(1) + 1e-4))


@FEW
@given(
    st.sampled_from([1, 29, 31, 32, 33, 65]),
    st.integers(1, 12),
    st.sampled_from([1, 7, 61]),
    st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_counts_and_dice_equal_the_formula(k: int, h: int, w: int, p: float, t: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pred, true = rng.random((k, h, w)) < p, rng.random((k, h, w)) < t
    counts = count_bits(pack(pred), pack(true), k)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, [x.sum((1, 2)) for x in (pred & true, pred, true)])
    dice = dice_from_counts(counts)
    assert dice.dtype == np.float64
    np.testing.assert_allclose(dice, formula(pred, true), rtol=1e-15)


def test_large_smooth_masks() -> None:
    """Stretches of equal words longer than a row, and areas beyond float16's 65 504."""
    y, x = np.mgrid[:500, :500]
    true = np.stack([(y - 250) ** 2 + (x - 240 - 3 * k) ** 2 < 200**2 for k in range(33)])
    pred = np.roll(true, 4, axis=2)
    assert true[0].sum() > 65_504
    dice = dice_from_counts(count_bits(pack(pred), pack(true), 33))
    np.testing.assert_allclose(dice, formula(pred, true), rtol=1e-15)


def test_views_are_counted_like_copies() -> None:
    masks = np.random.default_rng(1).random((2, 29, 20, 30)) < 0.3
    pred, true = pack(masks[0]), pack(masks[1])
    counts = count_bits(pred[:, ::2, 3:], true[:, ::2, 3:], 29)
    np.testing.assert_array_equal(counts[0], (masks[0] & masks[1])[:, ::2, 3:].sum((1, 2)))


def test_both_empty_is_one_and_one_empty_is_almost_zero() -> None:
    counts = np.array([[0, 0, 0], [0, 10, 0], [0, 0, 10]])
    np.testing.assert_array_equal(dice_from_counts(counts), [1.0, 1e-4 / (10 + 1e-4), 1e-4 / (10 + 1e-4)])


def test_counts_of_many_images_at_once() -> None:
    counts = np.random.default_rng(2).integers(0, 100, (3, 4, 29))
    np.testing.assert_array_equal(dice_from_counts(counts)[2], dice_from_counts(counts[:, 2]))


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan")])
def test_refuses_eps_without_a_value_for_empty_masks(eps: float) -> None:
    with pytest.raises(ValueError, match=r"^eps is .*, but must be above 0"):
        dice_from_counts(np.zeros((3, 1), np.int64), eps)


@pytest.mark.parametrize(
    ("pred", "true", "n_classes", "sentence"),
    [
        (np.zeros((1, 2, 2), np.int32), np.zeros((1, 2, 3), np.int32), 29, "pred_bits has shape (1, 2, 2) and true_"),
        (np.zeros((1, 2, 3), np.int32), np.zeros((1, 3, 2), np.int32), 29, "resize the prediction first."),
        (np.zeros((1, 2, 2), np.uint8), np.zeros((1, 2, 2), np.int32), 29, "bits is uint8 of shape (1, 2, 2), but for"),
        (np.zeros((1, 2, 2), np.int32), np.zeros((2, 2, 2), np.int32), 29, "must be int32 of shape (1, H, W)."),
        (np.zeros((1, 2, 2), np.int32), np.full((1, 2, 2), 1 << 29, np.int32), 29, "bits from 29 up of word 0 must be"),
        (np.full((2, 2, 2), -1, np.int32), np.zeros((2, 2, 2), np.int32), 40, "bits from 8 up of word 1 must be 0."),
    ],
)
def test_refuses_words_that_do_not_fit(
    pred: NDArray[np.int32], true: NDArray[np.int32], n_classes: int, sentence: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        count_bits(pred, true, n_classes)


@pytest.fixture
def table() -> DiceTable:
    table = DiceTable(["Radius", "a, b"])
    table.add("one.png", np.array([0.9, 0.5]))
    table.add("two.png", np.array([0.8, 1.0]))
    table.add("three.png", np.array([0.1, 0.6]))
    return table


def test_table_means_and_worst(table: DiceTable) -> None:
    assert len(table) == 3
    mean, std = table.per_class()
    np.testing.assert_allclose(mean, [0.6, 0.7], rtol=1e-15)
    np.testing.assert_allclose(std, [np.std([0.9, 0.8, 0.1]), np.std([0.5, 1.0, 0.6])], rtol=1e-15)
    assert table.mean() == pytest.approx(0.65, rel=1e-15)
    assert [tuple(row) for row in table.worst(2)] == [
        ("three.png", 0.35, "Radius", 0.1),
        ("one.png", 0.7, "a, b", 0.5),
    ]
    assert len(table.worst(10)) == 3


def test_equal_images_stay_in_order() -> None:
    table = DiceTable(["a"])
    names = [str(i) for i in range(100)]
    for i, name in enumerate(names):
        table.add(name, np.array([0.5 if i % 3 else 0.25]))
    assert [row.image_name for row in table.worst(100)] == names[::3] + [n for i, n in enumerate(names) if i % 3]


def test_table_keeps_its_own_copy() -> None:
    table, dice = DiceTable(["a"]), np.array([0.5])
    table.add("one.png", dice)
    dice[0] = 0
    assert table.mean() == 0.5


def test_table_to_csv(table: DiceTable, tmp_path: Path) -> None:
    path = tmp_path / "per_class.csv"
    path.write_text("older")
    table.to_csv(path)
    frame = pd.read_csv(path)
    assert list(frame.columns) == ["class", "mean", "std", "min", "worst_image"]
    assert frame.values.tolist() == [
        ["Radius", 0.6, pytest.approx(np.std([0.9, 0.8, 0.1]), abs=1e-6), 0.1, "three.png"],
        ["a, b", 0.7, pytest.approx(np.std([0.5, 1.0, 0.6]), abs=1e-6), 0.5, "one.png"],
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["per_class.csv"]


def test_table_as_text(table: DiceTable) -> None:
    assert table.text().splitlines() == [
        "class     mean     std     min",
        "Radius  0.6000  0.3559  0.1000",
        "a, b    0.7000  0.2160  0.5000",
    ]


def test_median_image(table: DiceTable) -> None:
    assert table.median_image() == "one.png"  # 0.35, 0.7, 0.9
    table.add("four.png", np.array([0.8, 0.8]))
    assert table.median_image() == "one.png"  # 0.35, 0.7, 0.8, 0.9
    table.add("five.png", np.array([1.0, 1.0]))
    assert table.median_image() == "four.png"


@pytest.mark.parametrize(
    ("name", "dice", "sentence"),
    [
        ("one.png", [0.5, 0.5], "Image 'one.png' is in the table already, but every image counts once."),
        ("new.png", [0.5], "Dice of image 'new.png' has shape (1,), but must have (2,), one value a class."),
        ("new.png", [[0.5, 0.5]], "has shape (1, 2), but must have (2,)"),
        ("new.png", [0.5, 1.01], "Dice of image 'new.png', class 'a, b', is 1.01, but must be in [0, 1]."),
        ("new.png", [-0.1, 0.5], "class 'Radius', is -0.1, but must be in [0, 1]."),
        ("new.png", [0.5, float("nan")], "class 'a, b', is nan, but must be in [0, 1]."),
    ],
)
def test_table_refuses(table: DiceTable, name: str, dice: list[float], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        table.add(name, np.array(dice))
    assert len(table) == 3


def test_empty_table_has_no_score(tmp_path: Path) -> None:
    table = DiceTable(["a"])
    for ask in (
        table.per_class,
        table.mean,
        table.text,
        table.median_image,
        lambda: table.worst(1),
        lambda: table.to_csv(tmp_path / "x.csv"),
    ):
        with pytest.raises(ValueError, match="No image was added, so there is no Dice"):
            ask()
    assert list(tmp_path.iterdir()) == []
