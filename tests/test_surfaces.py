"""inference/surfaces.py against MONAI and all pairs of boundary pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray
from reference import pack
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from inference.surfaces import SurfaceDistances, hausdorff, surface_dice, surface_distances

FEW = settings(derandomize=True, max_examples=50, deadline=None)
Masks = NDArray[np.bool_]


def distances(pred: Masks, true: Masks) -> list[SurfaceDistances]:
    return surface_distances(pack(pred), pack(true), len(pred))


def scores(pred: Masks, true: Masks, tolerance: float = 1) -> tuple[float, float, float]:
    """Hausdorff, Hausdorff 95 and surface Dice of two (H, W) masks."""
    found = distances(pred[None], true[None])[0]
    return hausdorff(found, 100, 99.0), hausdorff(found, 95, 99.0), surface_dice(found, tolerance)


def blobs(seed: int, k: int, height: int, width: int) -> Masks:
    """Ellipses, of which some reach over the image's border and some are empty."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    centre, radius = rng.random((2, k)), rng.uniform(0, 0.6, (2, k))
    masks = [
        ((y - height * centre[0, i]) / (height * radius[0, i])) ** 2
        + ((x - width * centre[1, i]) / (width * radius[1, i])) ** 2
        < 1
        for i in range(k)
    ]
    return np.stack(masks)


@FEW
@given(
    st.sampled_from([1, 29, 32, 33, 65]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_distances_equal_all_pairs(k: int, h: int, w: int, p: float, t: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pred, true = rng.random((k, h, w)) < p, rng.random((k, h, w)) < t
    found = distances(pred, true)
    assert len(found) == k
    for i in range(k):
        a, b = (np.argwhere(m & ~binary_erosion(m)) for m in (pred[i], true[i]))
        pairs = cdist(a, b)
        np.testing.assert_array_equal(found[i].to_truth, pairs.min(axis=1, initial=np.inf))
        np.testing.assert_array_equal(found[i].to_prediction, pairs.min(axis=0, initial=np.inf))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.filterwarnings("ignore:the (ground truth|prediction) of class", "ignore::FutureWarning")
def test_scores_equal_monai(seed: int) -> None:
    k = 33
    pred, true = blobs(seed, k, 50, 70), blobs(seed + 100, k, 50, 70)
    pred[:8] = np.roll(true[:8], (1, -2), axis=(1, 2))
    pred[8] = True
    pred[9] = true[10] = pred[11] = true[11] = False
    a, b = torch.from_numpy(pred[None]), torch.from_numpy(true[None])
    found = distances(pred, true)
    both = np.array([d.to_truth.size > 0 and d.to_prediction.size > 0 for d in found])
    assert 20 < both.sum() < k
    for percentile in (100, 95):
        monai = compute_hausdorff_distance(a, b, include_background=True, percentile=percentile)[0].numpy()
        ours = np.array([hausdorff(d, percentile, 99.0) for d in found])
        np.testing.assert_allclose(ours[both], monai[both], rtol=1e-5)  # MONAI interpolates in float32
    for tolerance in (0.0, 1.0, 2.5):
        monai = compute_surface_dice(a, b, [tolerance] * k, include_background=True)[0].numpy()
        np.testing.assert_allclose([surface_dice(d, tolerance) for d in found], monai, rtol=1e-6)


@FEW
@given(st.integers(0, 2**32 - 1), st.integers(0, 3), st.integers(0, 3))
def test_swapping_shifting_and_turning_change_nothing(seed: int, down: int, right: int) -> None:
    rng = np.random.default_rng(seed)
    pred, true = np.zeros((2, 16, 20), bool)
    pred[1:12, 1:16], true[1:12, 1:16] = rng.random((2, 11, 15)) < 0.5
    before = scores(pred, true)
    assert scores(true, pred) == before
    assert scores(pred.T, true.T) == pytest.approx(before, rel=1e-12)
    assert scores(*np.roll((pred, true), (down, right), axis=(1, 2))) == pytest.approx(before, rel=1e-12)


@FEW
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.5, 1.0]))
def test_identical_masks(seed: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((9, 11)) < density
    mask[0, 0] = True
    assert scores(mask, mask, tolerance=0) == (0, 0, 1)


@FEW
@given(*[st.tuples(st.integers(0, 6), st.integers(0, 8))] * 2)
def test_single_pixels(a: tuple[int, int], b: tuple[int, int]) -> None:
    pred, true = np.zeros((2, 7, 9), bool)
    pred[a] = true[b] = True
    apart = math.dist(a, b)
    assert scores(pred, true, tolerance=apart) == (apart, apart, 1)
    assert scores(pred, true, tolerance=apart - 1e-9)[2] == 0


def test_the_tolerance_is_a_distance_in_pixels() -> None:
    y, x = np.mgrid[:60, :60]
    true = (y - 30) ** 2 + (x - 30) ** 2 < 20**2
    assert scores(np.roll(true, 2, axis=1), true, tolerance=2) == (2, 2, 1)
    assert 0.2 < scores(np.roll(true, 2, axis=1), true, tolerance=1)[2] < 0.8


def test_a_mask_that_ends_at_the_border_has_its_boundary_there() -> None:
    """As the forearm's bones in every radiograph: a mask that stops one pixel earlier is one pixel off."""
    true = np.zeros((12, 8), bool)
    true[4:, 2:6] = True
    pred = true.copy()
    pred[-1] = False
    assert scores(true, true, 0) == (0, 0, 1)
    assert scores(pred, true, 0)[0] == 1
    whole = np.ones((5, 7), bool)
    assert distances(whole[None], whole[None])[0].to_truth.size == 2 * (5 + 7) - 4


def test_one_far_pixel_is_the_hausdorff_distance_but_not_hausdorff_95() -> None:
    true = np.zeros((80, 80), bool)
    true[:40, :40] = True
    pred = true.copy()
    pred[79, 39] = True
    assert scores(pred, true) == (40, 0, pytest.approx(1 - 1 / (2 * 156 + 1)))


def test_the_worse_direction_counts() -> None:
    """9 % of the prediction's boundary are far off; pooled with the truth's they are 5 %, which a percentile hides."""
    pred, true = np.zeros((2, 60, 300), bool)
    true[0] = pred[0] = True
    pred[50, :60:2] = True
    assert scores(pred, true)[1] == scores(true, pred)[1] == 50
    assert np.percentile(np.concatenate(distances(pred[None], true[None])[0]), 95) == 0


def test_empty_masks() -> None:
    """Nothing to score, or the worst value."""
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    assert all(math.isnan(value) for value in scores(empty, empty))
    assert scores(empty, full) == scores(full, empty) == (99, 99, 0)


@pytest.mark.parametrize(
    ("pred", "true", "n_classes", "sentence"),
    [
        (np.zeros((1, 2, 2), np.int32), np.zeros((1, 2, 3), np.int32), 29, "resize the prediction first"),
        (np.zeros((1, 2, 2), np.uint8), np.zeros((1, 2, 2), np.int32), 29, "bits is uint8"),
        (np.full((1, 2, 2), 1 << 29, np.int32), np.zeros((1, 2, 2), np.int32), 29, "class above the last"),
        (np.zeros((2, 2, 2), np.int32), np.full((2, 2, 2), -1, np.int32), 40, "class above the last"),
    ],
)
def test_refuses_words_that_do_not_fit(
    pred: NDArray[np.int32], true: NDArray[np.int32], n_classes: int, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        surface_distances(pred, true, n_classes)
