"""The plain ways of doing things, to compare with: slow, short and beyond doubt."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def competition_rle(mask: NDArray[np.bool_]) -> str:
    """The competition's own run-length encoding of one mask."""
    pixels = mask.flatten()
    pixels = np.concatenate([[0], pixels, [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(x) for x in runs)


def pack(masks: NDArray[np.bool_]) -> NDArray[np.int32]:
    """(K, H, W) masks -> packed words (ceil(K / 32), H, W)."""
    words = np.zeros((-(-len(masks) // 32), *masks.shape[1:]), np.uint32)
    for k, mask in enumerate(masks):
        words[k // 32] |= mask.astype(np.uint32) << np.uint32(k % 32)
    return words.view(np.int32)


SMALL_LOADER: dict[str, Any] = {
    "image_size": 96,
    "window_size": 48,
    "stride": 32,
    "windows_per_image": 3,
    "batch_size": 4,
    "workers": 0,
    "device": "cpu",
    "n_folds": 3,
}
"""Settings of a loader on the phantoms of conftest.py."""
