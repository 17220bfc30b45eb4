"""inference/confusion.py against the definition pixel by pixel, pandas and MONAI."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import get_confusion_matrix
from numpy.typing import NDArray
from reference import pack

from inference.confusion import ConfusionTable, count_confusion

FEW = settings(derandomize=True, max_examples=50, deadline=None)
Masks = NDArray[np.bool_]


def confusion(pred: Masks, true: Masks) -> NDArray[np.int64]:
    return count_confusion(pack(pred), pack(true), len(pred))


def by_pixel(pred: Masks, true: Masks) -> NDArray[np.int64]:
    """The definition (Heydarian 2022) with Python's sets."""
    k, height, width = pred.shape
    matrix = np.zeros((k + 1, k + 1), np.int64)
    for y, x in np.ndindex(height, width):
        p, t = (set(np.flatnonzero(m[:, y, x]).tolist()) for m in (pred, true))
        for c in p & t:
            matrix[c, c] += 1
        if not p and not t:
            matrix[k, k] += 1
        elif t - p:
            for row in t - p:
                for column in p - t or {k}:
                    matrix[row, column] += 1
        else:
            for row in t or {k}:
                for column in p - t:
                    matrix[row, column] += 1
    return matrix


@FEW
@given(
    st.sampled_from([1, 2, 29, 31, 32, 33, 65]),
    st.integers(1, 6),
    st.sampled_from([1, 2, 9]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_equals_the_definition(k: int, h: int, w: int, p: float, t: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pred, true = rng.random((k, h, w)) < p, rng.random((k, h, w)) < t
    matrix = confusion(pred, true)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, by_pixel(pred, true))
    np.testing.assert_array_equal(confusion(true, true), by_pixel(true, true))


@pytest.mark.parametrize(
    ("true", "pred", "cells"),
    [
        ([], [], {(3, 3): 1}),
        ([0], [0], {(0, 0): 1}),
        ([0], [], {(0, 3): 1}),
        ([], [1], {(3, 1): 1}),
        ([0], [1], {(0, 1): 1}),
        ([0, 1], [0, 1], {(0, 0): 1, (1, 1): 1}),
        ([0, 1], [0], {(0, 0): 1, (1, 3): 1}),
        ([0], [0, 1], {(0, 0): 1, (0, 1): 1}),
        ([0, 1], [0, 2], {(0, 0): 1, (1, 2): 1}),
        ([0, 1], [0, 1, 2], {(0, 0): 1, (1, 1): 1, (0, 2): 1, (1, 2): 1}),
        ([], [0, 1], {(3, 0): 1, (3, 1): 1}),
    ],
)
def test_one_pixel(true: list[int], pred: list[int], cells: dict[tuple[int, int], int]) -> None:
    masks = np.zeros((2, 3, 1, 1), bool)
    masks[0, pred] = masks[1, true] = True
    expected = np.zeros((4, 4), np.int64)
    for cell, count in cells.items():
        expected[cell] = count
    np.testing.assert_array_equal(confusion(masks[0], masks[1]), expected)


def test_without_overlaps_it_is_the_ordinary_confusion_matrix() -> None:
    k = 40
    rng = np.random.default_rng(5)
    true = np.repeat(rng.integers(0, k + 1, (30, 8)), 5, axis=1)
    pred = np.where(rng.random(true.shape) < 0.5, true, rng.integers(0, k + 1, true.shape))
    classes = np.arange(k)[:, None, None]
    table = pd.crosstab(true.ravel(), pred.ravel()).reindex(index=range(k + 1), columns=range(k + 1), fill_value=0)
    matrix = confusion(pred == classes, true == classes)
    np.testing.assert_array_equal(matrix, table.to_numpy())
    np.testing.assert_array_equal(confusion(true == classes, pred == classes), matrix.T)


def test_the_diagonal_holds_true_positives_and_the_last_column_what_nothing_was_predicted_for() -> None:
    rng = np.random.default_rng(6)
    pred, true = rng.random((2, 29, 20, 20)) < 0.05
    a, b = (torch.from_numpy(m[None]).float() for m in (pred, true))  # of bool masks MONAI finds no true positives
    monai = get_confusion_matrix(a, b, include_background=True)
    matrix = confusion(pred, true)
    np.testing.assert_array_equal(matrix.diagonal()[:-1], monai[0, :, 0])
    missed_without_another = (true & ~pred & ~(pred & ~true).any(axis=0)).sum((1, 2))
    np.testing.assert_array_equal(matrix[:-1, -1], missed_without_another)


def test_long_stretches_count_every_pixel() -> None:
    true = np.zeros((29, 300, 400), bool)
    true[3, 50:, 20:] = True
    pred = np.roll(true, 2, axis=0)
    matrix = confusion(pred, true)
    assert matrix[3, 5] == 250 * 380
    assert matrix[29, 29] == 300 * 400 - 250 * 380
    assert matrix.sum() == 300 * 400


@pytest.mark.parametrize(
    ("pred", "true", "n_classes", "sentence"),
    [
        (np.zeros((1, 2, 2), np.int32), np.zeros((1, 2, 3), np.int32), 29, "resize the prediction first"),
        (np.zeros((1, 2, 2), np.int64), np.zeros((1, 2, 2), np.int32), 29, "bits is int64"),
        (np.full((1, 2, 2), 1 << 29, np.int32), np.zeros((1, 2, 2), np.int32), 29, "class above the last"),
        (np.zeros((2, 2, 2), np.int32), np.full((2, 2, 2), -1, np.int32), 40, "class above the last"),
    ],
)
def test_refuses_words_that_do_not_fit(
    pred: NDArray[np.int32], true: NDArray[np.int32], n_classes: int, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        count_confusion(pred, true, n_classes)


def test_table(tmp_path: Path) -> None:
    table = ConfusionTable(["Radius", "a, b"])
    with pytest.raises(ValueError, match="No image was added, so there is no confusion matrix"):
        table.total()
    first = np.arange(9).reshape(3, 3)
    table.add("one.png", first)
    other = ConfusionTable(["Radius", "a, b"])
    other.add("two.png", 10 * first)
    table.merge([other], ["one.png", "two.png"])
    np.testing.assert_array_equal(table.total(), 11 * first)
    table.to_csv(tmp_path / "confusion.csv")
    with open(tmp_path / "confusion.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["truth \\ prediction", "Radius", "a, b", "background"],
            ["Radius", "0", "11", "22"],
            ["a, b", "33", "44", "55"],
            ["background", "66", "77", "88"],
        ]
    with pytest.raises(ValueError, match=r"^Image 'one.png' is in the table already"):
        table.add("one.png", first)
    with pytest.raises(ValueError, match=r"has shape \(2, 2\), but must have \(3, 3\): 2 classes and the background"):
        table.add("new.png", first[:2, :2])
