"""Weights of sliding windows that sum to one at every pixel.

The weight of a window is a product of one factor for its rows and one for its columns. So each axis is normalised once
and no count map, division or infinity check is needed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataset.frame import window_starts


def axis_weights(size: int, window: int, stride: int, sigma: float | None) -> NDArray[np.float32]:
    """Weights of each window along one axis, (windows, window) float32; over all windows they sum to 1 at each pixel.

    Args:
        sigma: standard deviation of the Gaussian as a share of the window; None weighs all pixels alike.
    """
    starts = window_starts(size, window, stride)
    if sigma is None:
        profile = np.ones(window)
    else:
        offset = np.arange(window) - (window - 1) / 2
        # A narrow Gaussian underflows to 0 at its edges, which at the image's own edges would be 0 / 0.
        profile = np.maximum(np.exp(-0.5 * (offset / (sigma * window)) ** 2), 1e-30)
    total = np.zeros(size)
    for start in starts:
        total[start : start + window] += profile
    return np.stack([profile / total[start : start + window] for start in starts]).astype(np.float32)
