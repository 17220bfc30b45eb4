"""The mask formats of the COCO API: run lengths along the columns, plain or as text, and polygons.

Runs here and elsewhere in the project go along the rows. github.com/cocodataset/cocoapi, common/maskApi.h and .c.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from engine.conversions.shapes import Box, Runs, box_of, ends_of

FINE = 5
"""Steps a pixel that the COCO API rounds vertices to and walks along the edges in."""


def to_counts(runs: Runs, height: int, width: int) -> list[int]:
    """Lengths of runs of 0 and 1 in turn, beginning with 0, along the columns; they add up to height * width."""
    plane, top, left = box_of(runs, width)
    ends = ends_of(Box(plane.T, left, top), height)
    counts: list[int] = np.diff(ends, prepend=0, append=height * width).tolist()
    return counts if counts[-1] or len(counts) == 1 else counts[:-1]


def from_counts(counts: Sequence[int], height: int, width: int) -> Runs:
    """Runs along the rows.

    Raises:
        ValueError: a length is no whole number from 0 up, or they don't add up to height * width.
    """
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("counts must be whole numbers from 0 up")
    if sum(counts) != height * width:
        raise ValueError(f"counts add up to {sum(counts)}, but the image has {height * width} pixels")
    ends = np.cumsum(np.array(counts, np.int64))
    columns = ends[: len(ends) // 2 * 2].reshape(-1, 2)  # beginning with 0, so these are begin and end of each run of 1
    plane, left, top = box_of(columns, height)
    return ends_of(Box(plane.T, top, left), width).reshape(-1, 2)


def compress(counts: Sequence[int]) -> str:
    """Counts as the API's text: from the fourth on, differences to the one before the last; 5 bits a letter."""
    letters = bytearray()
    for i, count in enumerate(counts):
        value, more = count - (counts[i - 2] if i > 2 else 0), True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)  # until the sign is all that is left
            letters.append(48 + bits + 32 * more)
    return letters.decode("ascii")


def decompress(text: str) -> list[int]:
    """What `compress` has made a text of.

    Raises:
        ValueError: the text is none such.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"counts hold {letter!r}, so they are no run lengths of the COCO API")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("counts end within a number")
    return counts


def fill(polygon: NDArray[np.float64], height: int, width: int) -> Runs:
    """Runs along the rows of what the COCO API draws of a polygon (n, 2), x and y in px from the image's corner."""
    # The API rounds by truncation after adding a half, also below 0.
    fine = (FINE * polygon + 0.5).astype(np.int64)
    ends = np.sort(_crossings(fine, height, width))
    columns = ends[: len(ends) // 2 * 2].reshape(-1, 2)
    plane, left, top = box_of(columns, height)
    return ends_of(Box(plane.T, top, left), width).reshape(-1, 2)


@njit(cache=True, nogil=True)
def _crossings(fine: NDArray[np.int64], height: int, width: int) -> NDArray[np.int64]:
    """Pixels, counted along the columns, before which a column's middle goes into or out of the polygon; unsorted.

    An edge is walked in steps of one along its longer side. Where it passes the middle of a column of pixels, between
    the steps 2 and 3 of its 5, the pixels of which more than half lies below are on its far side.
    """
    found = np.empty(64, np.int64)
    count = 0
    for i in range(len(fine)):
        x0, y0 = fine[i - 1]
        x1, y1 = fine[i]
        steep = abs(x1 - x0) < abs(y1 - y0)
        if (y0 > y1) if steep else (x0 > x1):
            x0, y0, x1, y1 = x1, y1, x0, y0
        steps = y1 - y0 if steep else x1 - x0
        slope = ((x1 - x0) if steep else (y1 - y0)) / max(steps, 1)
        u0, v0 = x0, y0
        for t in range(1, steps + 1):
            u1 = int(x0 + slope * t + 0.5) if steep else x0 + t
            v1 = y0 + t if steep else int(y0 + slope * t + 0.5)
            column = min(u0, u1)
            if u0 != u1 and column % FINE == 2 and 0 <= column // FINE < width:
                row = min(max((min(v0, v1) + 2) // FINE, 0), height)
                if count == len(found):
                    found = np.append(found, np.empty_like(found))
                found[count] = column // FINE * height + row
                count += 1
            u0, v0 = u1, v1
    return found[:count].copy()
