"""inference/thresholds.py: Dice at all levels equals brute force, which level is best, the table and the plot."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from inference.metrics import dice_from_counts
from inference.thresholds import (
    HALF,
    LEVELS,
    best_global_level,
    best_levels,
    curve_table,
    curve_text,
    dice_at_levels,
    level,
    plot_curves,
    probability,
    write_curves_csv,
)


def histograms(q: NDArray[np.uint8], mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(K, 256) of (K, P) values, and of those in the label."""
    both = [(np.bincount(a, minlength=256), np.bincount(a[m], minlength=256)) for a, m in zip(q, mask, strict=True)]
    return np.stack([a for a, _ in both]), np.stack([b for _, b in both])


def peaks(*tops: float, images: int = 2) -> NDArray[np.float64]:
    """Curves (images, K, 255) that fall from 1 by 0.01 a level on both sides of each top."""
    distance = np.abs(np.arange(1, 256) - np.array(tops)[:, None])
    return np.stack([1 - 0.01 * distance] * images)


@given(st.integers(0, 2**32 - 1))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_dice_at_all_levels_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 256, (2, 60)).astype(np.uint8) * rng.integers(0, 2, (2, 1)).astype(np.uint8)
    mask = rng.random((2, 60)) < rng.choice([0, 0.3, 1], (2, 1))
    found = dice_at_levels(*histograms(q, mask))
    assert found.shape == (2, LEVELS) and found.dtype == np.float64
    for j in range(1, 256):
        pred = q >= j
        counts = np.array([(pred & mask).sum(1), pred.sum(1), mask.sum(1)])
        assert np.array_equal(found[:, j - 1], dice_from_counts(counts))


def test_images_are_one_more_axis_and_two_empty_masks_are_1() -> None:
    q, mask = np.zeros((1, 9), np.uint8), np.zeros((1, 9), np.bool_)
    counts, true_counts = (np.stack([h, h]) for h in histograms(q, mask))
    assert np.array_equal(dice_at_levels(counts, true_counts), np.ones((2, 1, 255)))


def test_levels_and_probabilities() -> None:
    assert probability(HALF) == 0.5 and level(0.5) == HALF
    assert [level(probability(j)) for j in range(1, 256)] == list(range(1, 256))
    assert (level(0.0), level(1.0)) == (1, 255)


@given(st.floats(0, 1))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_level_is_the_nearest(threshold: float) -> None:
    nearest = min(abs(probability(j) - threshold) for j in range(1, 256))
    assert abs(probability(level(threshold)) - threshold) == pytest.approx(nearest, abs=1e-12)


def test_best_levels_are_those_of_the_mean_over_images() -> None:
    assert best_levels(peaks(1, 90, 255)).tolist() == [1, 90, 255]
    one_sided = np.zeros((2, 1, 255))
    one_sided[0, 0, 9], one_sided[1, 0, 19], one_sided[:, 0, 29] = 1.0, 1.0, 0.6
    assert best_levels(one_sided).tolist() == [30]
    assert best_global_level(peaks(90, 90, 200)) == 90


def test_of_equal_levels_the_nearest_to_a_half_is_taken() -> None:
    curves = np.zeros((1, 4, 255))
    curves[0, 1, [99, 139]] = 1  # levels 100 and 140
    curves[0, 2, [99, 155]] = 1  # levels 100 and 156: equally near
    curves[0, 3, 199:] = 1
    assert best_levels(curves).tolist() == [128, 140, 100, 200]
    assert best_global_level(np.ones((1, 2, 255))) == 128


def test_the_table() -> None:
    curves = peaks(100, 128)
    curves[:, 1] = np.maximum(curves[:, 1], 0.9997)  # flat: all thresholds are good
    curves[:, 0, 199] = 0.9996  # good as well, but a valley lies between
    first, second, everything = curve_table(("a", "b"), curves)
    assert first.label == "a" and first.dice_at_half == pytest.approx(0.72) and first.dice == 1
    assert first.threshold == first.low == first.high == probability(100)
    assert (second.low, second.threshold, second.high) == (probability(1), 0.5, probability(255))
    assert everything.label == "all classes" and everything.dice == pytest.approx(0.99985)
    lines = curve_text((first, second)).splitlines()
    assert " ".join(lines[0].split()) == "class Dice at 0.5 best threshold Dice within 0.0005 of it"
    assert lines[1].split() == ["a", "0.7200", "0.390", "1.0000", "0.390", "to", "0.390"]
    assert len({len(line) for line in lines[1:]}) == 1


def test_the_csv_has_every_level(tmp_path: Path) -> None:
    curves = np.random.default_rng(0).random((3, 2, 255))
    for _ in range(2):  # an older file is replaced
        write_curves_csv(tmp_path / "curves.csv", ("a", "b"), curves)
    header, *rows = csv.reader((tmp_path / "curves.csv").read_text().splitlines())
    assert header == ["threshold", "a", "b"] and len(rows) == 255
    assert rows[127][0] == "0.500000"
    assert np.allclose(np.array(rows, float)[:, 1:], curves.mean(0).T, atol=1e-6)


def test_the_plot_marks_what_was_chosen(tmp_path: Path) -> None:
    curves, path = peaks(*range(60, 130, 10)), tmp_path / "curves.png"
    pictures = []
    for chosen in ([128] * 7, best_levels(curves).tolist()):
        plot_curves(path, [f"bone-{k}" for k in range(7)], curves, chosen)
        pictures.append(cv2.imread(str(path)))
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any()
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_the_plot_wants_a_level_for_every_class(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        plot_curves(tmp_path / "curves.png", ["a", "b"], peaks(10, 20), [10])
    assert list(tmp_path.iterdir()) == []
