"""What hangs together in a mask: its connected components and its holes, in run space, without a plane of pixels.

Pixels are 8-connected, OpenCV's default: parts of a bone that meet at a corner are one. The background is 4-connected
then, or a diagonal line would not part its two sides (Rosenfeld 1970, doi 10.1145/321556.321570). Components are unions
of runs of neighbouring rows (He, Chao and Suzuki 2008, doi 10.1109/TIP.2008.919369), so that their cost follows the
outline and not the area.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Runs = NDArray[np.int64]


class Mask(NamedTuple):
    """One mask as the runs of its rows."""

    runs: Runs
    """(R, 2): first pixel and the one after the last, 0-based in the flattened image. Sorted; no run leaves its row,
    and those of one row don't touch."""
    height: int
    """Of the image, px."""
    width: int


def as_mask(runs: Runs, height: int, width: int) -> Mask:
    """A mask from runs as engine.rle gives them, which may go on over the end of a row and may touch."""
    return Mask(join(_by_rows(runs, width), width), height, width)


def component_areas(mask: Mask) -> NDArray[np.int64]:
    """Areas of the components, px, (C,), in the order of their first pixels."""
    return label_runs(mask.runs, mask.width, 1)[1]


def remove_small(mask: Mask, area: float) -> Mask:
    """Without the components of fewer than `area` px."""
    labels, areas = label_runs(mask.runs, mask.width, 1)
    small = areas < area
    return mask._replace(runs=mask.runs[~small[labels]]) if small.any() else mask


def remove_small_share(mask: Mask, share: float) -> Mask:
    """Without the components of less than `share` of the image's area."""
    return remove_small(mask, share * mask.height * mask.width)


def cut_top(mask: Mask, share: float) -> Mask:
    """Without the rows whose middle lies in the top `share` of the height."""
    return mask._replace(runs=mask.runs[_rows(mask) + 0.5 >= share * mask.height])


def cut_bottom(mask: Mask, share: float) -> Mask:
    """Without the rows whose middle lies in the bottom `share` of the height."""
    return mask._replace(runs=mask.runs[_rows(mask) + 0.5 <= (1 - share) * mask.height])


def _rows(mask: Mask) -> NDArray[np.int64]:
    return np.asarray(mask.runs[:, 0] // mask.width)


def keep_largest(mask: Mask) -> Mask:
    """The largest component; of equal ones, the one whose first pixel comes first."""
    labels, areas = label_runs(mask.runs, mask.width, 1)
    return mask._replace(runs=mask.runs[labels == areas.argmax()]) if len(areas) > 1 else mask


def fill_holes(mask: Mask) -> Mask:
    """With its holes filled: the background that no way of 4-neighbours leads out of to the image's border."""
    gaps, is_open = _gaps(mask.runs, mask.width)
    labels, areas = label_runs(gaps, mask.width, 0)
    closed = np.ones(len(areas), np.bool_)
    closed[labels[is_open]] = False
    return _union(mask, gaps[closed[labels]]) if closed.any() else mask


def grow_into(mask: Mask, low: Runs) -> Mask:
    """The components of `low`, runs as those of a mask, that hold a pixel of the mask; hysteresis of two thresholds.

    Canny 1986, doi 10.1109/TPAMI.1986.4767851. Pixels of the mask that are not low, as earlier steps may have added
    some, count as low, so nothing is ever lost.
    """
    both = _union(mask, low)
    labels, areas = label_runs(both.runs, mask.width, 1)
    held = np.zeros(len(areas), np.bool_)
    held[labels[np.searchsorted(both.runs[:, 0], mask.runs[:, 0], "right") - 1]] = True
    return both._replace(runs=both.runs[held[labels]])


def _union(mask: Mask, others: Runs) -> Mask:
    runs = np.concatenate([mask.runs, others])
    return mask._replace(runs=join(runs[np.argsort(runs[:, 0], kind="stable")], mask.width))


@njit(cache=True, nogil=True)
def label_runs(runs: Runs, width: int, reach: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The number of each run's component (R,), and the components' areas, px (C,), in the order of first pixels.

    Args:
        runs: as those of a mask.
        reach: 1 joins runs that meet at a corner (8-connectivity), 0 does not (4-connectivity).
    """
    labels = np.empty(len(runs), np.int32)  # until the end, an earlier run of the same component, or the run itself
    above = 0
    for i in range(len(runs)):
        labels[i] = i
        row = runs[i, 0] // width * width
        low = max(runs[i, 0] - width - reach, row - width)
        high = min(runs[i, 1] - width + reach, row)
        while runs[above, 1] <= low:
            above += 1
        j = above
        while runs[j, 0] < high:  # run i itself ends both loops
            a, b = i, j
            while labels[a] != a:
                labels[a] = labels[labels[a]]
                a = labels[a]
            while labels[b] != b:
                labels[b] = labels[labels[b]]
                b = labels[b]
            labels[max(a, b)] = min(a, b)
            j += 1
    areas = np.empty(len(runs), np.int64)
    count = 0
    for i in range(len(runs)):
        if labels[i] == i:
            areas[count] = 0
            labels[i] = count
            count += 1
        else:
            labels[i] = labels[labels[i]]  # of an earlier run, which has its number already
        areas[labels[i]] += runs[i, 1] - runs[i, 0]
    return labels, areas[:count].copy()


@njit(cache=True, nogil=True)
def _by_rows(runs: Runs, width: int) -> Runs:
    """The runs, cut where they go on in the next row."""
    count = 0
    for r in range(len(runs)):
        count += (runs[r, 1] - 1) // width - runs[r, 0] // width + 1
    if count == len(runs):
        return runs
    pieces = np.empty((count, 2), np.int64)
    count = 0
    for r in range(len(runs)):
        first = runs[r, 0]
        while first < runs[r, 1]:
            last = min(runs[r, 1], (first // width + 1) * width)
            pieces[count, 0], pieces[count, 1] = first, last
            count += 1
            first = last
    return pieces


@njit(cache=True, nogil=True)
def join(runs: Runs, width: int) -> Runs:
    """Runs sorted by their first pixel, none of which leaves its row; those of a row that touch or overlap as one."""
    joined = np.empty_like(runs)
    count = 0
    for r in range(len(runs)):
        if count and runs[r, 0] <= joined[count - 1, 1] and runs[r, 0] // width == joined[count - 1, 0] // width:
            joined[count - 1, 1] = max(joined[count - 1, 1], runs[r, 1])
        else:
            joined[count] = runs[r]
            count += 1
    return joined[:count].copy()


@njit(cache=True, nogil=True)
def _gaps(runs: Runs, width: int) -> tuple[Runs, NDArray[np.bool_]]:
    """Runs of the background inside the mask's bounding box, and which of them touch the box's border."""
    if len(runs) == 0:
        return runs, np.empty(0, np.bool_)
    top, bottom = runs[0, 0] // width, runs[-1, 0] // width
    left, right = width, 0
    for r in range(len(runs)):
        row = runs[r, 0] // width * width
        left, right = min(left, runs[r, 0] - row), max(right, runs[r, 1] - row)
    gaps = np.empty((len(runs) + bottom - top + 1, 2), np.int64)
    is_open = np.empty(len(gaps), np.bool_)
    count = r = 0
    for y in range(top, bottom + 1):
        first, end = y * width + left, y * width + right
        while first < end:
            more = r < len(runs) and runs[r, 0] < end
            last = runs[r, 0] if more else end
            if last > first:
                gaps[count, 0], gaps[count, 1] = first, last
                is_open[count] = y in (top, bottom) or first == y * width + left or last == end
                count += 1
            first = runs[r, 1] if more else end
            r += more
    return gaps[:count].copy(), is_open[:count].copy()
