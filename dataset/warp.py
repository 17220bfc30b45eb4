"""A plan's geometry and tone, applied: images by OpenCV, labels by our own nearest-neighbour kernel.

Labels go through one formula that every executor follows, on any machine and device, so their bits are equal. OpenCV's
own nearest warp differs between versions and machines by single pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from dataset.frame import Frame, Matrix, compose
from dataset.plan import Plan

FRACTION = 14
"""Binary digits behind the point of the label warp: 32 bits then reach 131 072 px either way, at 1/16 384 px."""
FARTHEST = 2**31 / 2**FRACTION
"""Coordinates must stay below it, px."""

Region = tuple[int, int, int, int]
"""First row, end row, first column, end column, px of the file."""


def warp_image(stored: NDArray[np.uint8], plan: Plan, frame: Frame) -> NDArray[np.uint8]:
    """The plan's matrix and tone on a stored image: (h, w) uint8 -> (size, size) uint8, black where the file ends."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    matrix = compose(frame.to_stored(), plan.matrix)
    grey = cv2.warpAffine(stored, matrix, (plan.size, plan.size), flags=flags, borderValue=0)
    return np.asarray(cv2.LUT(grey, plan.tone.table()), dtype=np.uint8)


def label_steps(plan: Plan, frame: Frame) -> NDArray[np.int32]:
    """Fixed-point source coordinates of a plan: (4, size) int32.

    Output pixel (row i, column j) takes the file's pixel at column `(steps[0, j] + steps[2, i]) >> FRACTION` and row
    `(steps[1, j] + steps[3, i]) >> FRACTION`: nearest neighbour, halves upwards.

    Raises:
        ValueError: coordinates that 32 bits can't hold (a window of more than 100 000 px of the file).
    """
    return nearest_steps(compose(frame.to_file(), plan.matrix), plan.size)


def nearest_steps(matrix: Matrix, size: int) -> NDArray[np.int32]:
    """The same for any 2 x 3 matrix from output pixels to source pixels."""
    along = np.arange(size)
    across = matrix[:, :1] * along
    down = matrix[:, 1:2] * along + matrix[:, 2:] + 0.5
    if np.abs(across).max() + np.abs(down).max() >= FARTHEST:
        raise ValueError(f"A window that reaches {FARTHEST:.0f} px or more is too far: lower image_size or scale.")
    return np.asarray(np.rint(np.concatenate([across, down]) * 2**FRACTION), dtype=np.int32)


def label_region(steps: NDArray[np.int32], height: int, width: int) -> Region:
    """The part of a (height, width) file that label_steps reach into; empty (ends before it begins) where none."""
    x, y = ((steps[a, [0, -1]][:, None] + steps[b, [0, -1]][None, :]) >> FRACTION for a, b in ((0, 2), (1, 3)))
    return (
        max(int(y.min()), 0),
        min(int(y.max()) + 1, height),
        max(int(x.min()), 0),
        min(int(x.max()) + 1, width),
    )


def warp_bits(bits: NDArray[np.int32], region: Region, steps: NDArray[np.int32]) -> NDArray[np.int32]:
    """Packed words of a region of the file, (words, rows, columns) -> (words, size, size); 0 outside of the region.

    From full size straight to the output: rasterising at another scale would give another mask.
    """
    size = steps.shape[1]
    out = np.zeros((len(bits), size, size), np.int32)
    if bits.size:
        _gather(bits, np.int32(region[0]), np.int32(region[2]), steps, out)
    return out


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _gather(
    bits: NDArray[np.int32], top: np.int32, left: np.int32, steps: NDArray[np.int32], out: NDArray[np.int32]
) -> None:
    words, height, width = bits.shape
    for word in range(words):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                x = ((steps[0, j] + steps[2, i]) >> FRACTION) - left
                y = ((steps[1, j] + steps[3, i]) >> FRACTION) - top
                if x >= 0 and x < width and y >= 0 and y < height:
                    out[word, i, j] = bits[word, y, x]
