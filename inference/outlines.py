"""What moves the outline of a mask: opening, closing, contour smoothing, and its convex hull.

All but the hull work on the mask's bounding box with a margin, as OpenCV does on the whole plane.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from inference.components import Mask, Runs

Plane = NDArray[np.uint8]
"""A part of an image: 0 and 255."""


def opened(mask: Mask, radius: float) -> Mask:
    """Erosion, then dilation by a disc (the pixels whose centres are at most `radius` px away): drops what is thinner.

    Beyond the image's border erosion sees bone and dilation none: a bone that the border cuts keeps its outline there.
    """
    return _morphology(mask, radius, "open")


def closed(mask: Mask, radius: float) -> Mask:
    """Dilation, then erosion by the disc of `opened`, and as there at the image's border: closes gaps and bays."""
    return _morphology(mask, radius, "close")


def smoothed(mask: Mask, sigma: float) -> Mask:
    """Blurred by a Gaussian of `sigma` px, cut off at three, and thresholded at a half.

    Straight outlines stay where they are; corners sharper than `sigma` become round, and parts thinner than about 1.3
    sigma vanish. Beyond the image's border the mask goes on as it is at the border.
    """
    import cv2

    reach = int(np.ceil(3 * sigma))
    side = 2 * reach + 1

    def blur(plane: Plane) -> Plane:
        # OpenCV blurs bytes in fixed point, so the result does not depend on the box or the processor.
        grey = cv2.GaussianBlur(plane, (side, side), sigma, borderType=cv2.BORDER_REPLICATE)
        return np.asarray(grey > 127, np.uint8)

    return _on_box(mask, reach, blur)


def hull(mask: Mask) -> Mask:
    """The pixels whose centres lie in the convex hull of the mask's pixel centres, of all components together."""
    runs, width = mask.runs, mask.width
    if len(runs) == 0:
        return mask
    starts = np.flatnonzero(np.diff(runs[:, 0] // width, prepend=-1))
    rows = runs[starts, 0] // width
    left = runs[starts, 0] - rows * width
    right = np.append(runs[starts[1:] - 1, 1], runs[-1, 1]) - rows * width - 1
    y = np.arange(rows[0], rows[-1] + 1)
    # Between whole corners an edge meets a row at a fraction whose denominator is below the height: what is nearer to a
    # whole number than half of that is the number itself, rounded.
    near = 0.5 / mask.height
    low, high = _chain(rows, left), _chain(rows, -right)
    first = np.ceil(np.interp(y, rows[low], left[low]) - near).astype(np.int64)
    last = np.floor(np.interp(y, rows[high], right[high]) + near).astype(np.int64)
    filled = first <= last  # a hull of less than a pixel's width may miss all centres of a row
    return mask._replace(runs=(np.stack([first, last + 1], 1) + y[:, None] * width)[filled])


def disc(radius: float) -> Plane:
    """Structuring element: 1 where a pixel's centre is at most `radius` px from the middle one's."""
    reach = int(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(y * y + x * x <= radius * radius, np.uint8)


def _morphology(mask: Mask, radius: float, operation: Literal["open", "close"]) -> Mask:
    import cv2

    code = {"open": cv2.MORPH_OPEN, "close": cv2.MORPH_CLOSE}[operation]
    # Twice the reach: what the dilation of a closing adds in the margin must be seen by the erosion as OpenCV sees it.
    margin = 2 * int(radius)
    return _on_box(mask, margin, lambda plane: np.asarray(cv2.morphologyEx(plane, code, disc(radius)), np.uint8))


def _on_box(mask: Mask, margin: int, work: Callable[[Plane], Plane]) -> Mask:
    """What `work` makes of the mask in its bounding box with a margin, px, as far as the image goes."""
    runs, width = mask.runs, mask.width
    if len(runs) == 0:
        return mask
    columns = runs - (runs[:, :1] // width) * width
    top, left = max(int(runs[0, 0] // width) - margin, 0), max(int(columns[:, 0].min()) - margin, 0)
    bottom = min(int(runs[-1, 0] // width) + 1 + margin, mask.height)
    right = min(int(columns[:, 1].max()) + margin, width)
    plane = np.zeros((bottom - top, right - left), np.uint8)
    _draw(runs, width, top, left, plane)
    return mask._replace(runs=_runs(work(plane), width, top, left))


def _runs(plane: Plane, width: int, top: int, left: int) -> Runs:
    """Row runs of a part of an image that is `width` px wide."""
    walled = np.pad(plane != 0, ((0, 0), (1, 1))).ravel()  # no run leaves its row
    ends = np.flatnonzero(walled[1:] != walled[:-1])
    y, x = np.divmod(ends, plane.shape[1] + 2)
    return np.asarray((y + top) * width + x + left, np.int64).reshape(-1, 2)


@njit(cache=True, nogil=True)
def _draw(runs: Runs, width: int, top: int, left: int, plane: Plane) -> None:
    for r in range(len(runs)):
        row = runs[r, 0] // width
        plane[row - top, runs[r, 0] - row * width - left : runs[r, 1] - row * width - left] = 255


@njit(cache=True, nogil=True)
def _chain(y: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the convex hull's corners on the side of the smallest x; `y` rises (Andrew 1979, monotone chain)."""
    corners = np.empty(len(y), np.int64)
    count = 0
    for i in range(len(y)):
        while count >= 2:
            a, b = corners[count - 2], corners[count - 1]
            if (x[b] - x[a]) * (y[i] - y[a]) < (x[i] - x[a]) * (y[b] - y[a]):
                break
            count -= 1
        corners[count] = i
        count += 1
    return corners[:count].copy()
