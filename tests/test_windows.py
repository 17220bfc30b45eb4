"""inference/windows.py: windows cover the axis, and their weights sum to one at every pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.frame import window_starts
from inference.windows import axis_weights

FEW = settings(derandomize=True, max_examples=150, deadline=None)


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int]:
    """Size, window and stride of an axis."""
    window = draw(st.integers(1, 64))
    return draw(st.integers(window, 200)), window, draw(st.integers(1, window))


SIGMAS = st.sampled_from([None, 0.01, 0.05, 0.125, 0.3, 1.0, 10.0])


@FEW
@given(axes())
def test_windows_cover_the_axis(axis: tuple[int, int, int]) -> None:
    size, window, stride = axis
    starts = window_starts(size, window, stride)
    assert starts[0] == 0 and starts[-1] == size - window
    steps = np.diff(starts)
    assert (steps > 0).all() and (steps <= stride).all() and (steps[:-1] == stride).all()


@FEW
@given(axes(), SIGMAS)
def test_weights_sum_to_one(axis: tuple[int, int, int], sigma: float | None) -> None:
    size, window, stride = axis
    weights = axis_weights(size, window, stride, sigma)
    starts = window_starts(size, window, stride)
    assert weights.shape == (len(starts), window) and weights.dtype == np.float32
    assert (weights >= 0).all()
    total = np.zeros(size)
    for start, row in zip(starts, weights, strict=True):
        total[start : start + window] += row
    np.testing.assert_allclose(total, 1, atol=1e-6)


@FEW
@given(axes(), axes(), SIGMAS)
def test_products_sum_to_one(rows: tuple[int, int, int], columns: tuple[int, int, int], sigma: float | None) -> None:
    down, across = axis_weights(*rows, sigma), axis_weights(*columns, sigma)
    total = np.zeros((rows[0], columns[0]), np.float32)
    for top, y in zip(window_starts(*rows), down, strict=True):
        for left, x in zip(window_starts(*columns), across, strict=True):
            total[top : top + rows[1], left : left + columns[1]] += y[:, None] * x[None, :]
    np.testing.assert_allclose(total, 1, atol=3e-6)


def test_gaussian_favours_the_middle_of_a_window() -> None:
    weights = axis_weights(96, 32, 16, 0.3)
    middle = weights[2]
    assert middle[15] == middle.max() and middle[0] < 0.5 * middle[15]
    np.testing.assert_allclose(middle, middle[::-1], rtol=1e-5)
    # Where two windows overlap, shares are as the Gaussians' heights.
    offset = np.arange(32) - 15.5
    height = np.exp(-0.5 * (offset / (0.3 * 32)) ** 2)
    np.testing.assert_allclose(weights[2][:16], height[:16] / (height[:16] + height[16:]), rtol=1e-5)
    np.testing.assert_allclose(axis_weights(96, 32, 16, None)[2], 0.5)


def test_a_window_larger_than_the_axis() -> None:
    assert window_starts(7, 7, 3) == [0]
    with pytest.raises(ValueError, match="a window of 8 px does not fit 7 px"):
        window_starts(7, 8, 3)
