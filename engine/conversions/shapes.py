"""Masks as polygons and polygons as masks, so that what is drawn from the outlines of a mask is that very mask.

Two kinds of outlines, as programs fill polygons by two rules:

* through the pixels of the rim: `cv2.fillPoly` of whole-numbered vertices, which draws the rim too. The rule of the
  competition, of labelme and of Ultralytics.
* along the edges of the pixels, (0, 0) being the corner of the first one: the rule of the COCO API.

Both are found by border following (Suzuki and Abe 1985, doi 10.1016/0734-189X(85)90016-7), on the mask or on the mask
at twice its size. A hole is joined to the outline around it by a seam, which is walked in both directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.int32]
"""A polygon: (n, 2) x and y, px."""
Runs = NDArray[np.int64]
"""A mask: (R, 2) first pixel and the one after the last of each run, row-major from 0, sorted, as engine.rle has it."""
Shape = Sequence[Points] | Runs
"""One class in one image: polygons, which are filled one by one by `cv2.fillPoly` and joined; or a mask."""


class Box(NamedTuple):
    """A mask inside of its bounding box."""

    plane: NDArray[np.uint8]
    """(h, w), 0 and 1."""
    top: int
    left: int


def runs_of(shape: Shape, height: int, width: int) -> Runs:
    """The mask of a shape in an image of that size, px."""
    return shape if isinstance(shape, np.ndarray) else draw(shape, height, width)


def polygons_of(shape: Shape, width: int) -> list[Points]:
    """The polygons of a shape: its own, or those through the rim's pixels, one for each 8-connected component."""
    return outline(shape, width) if isinstance(shape, np.ndarray) else list(shape)


def draw(polygons: Sequence[Points], height: int, width: int) -> Runs:
    """What `cv2.fillPoly` draws of the polygons, one by one; what lies outside of the image is cut off."""
    if not polygons:
        return np.empty((0, 2), np.int64)
    points = np.concatenate(list(polygons))
    # The whole box of the polygons clipped to the image: clipping the polygons themselves would move their edges.
    left, top = (int(low) for low in points.min(0).clip(0, (width - 1, height - 1)))
    right, bottom = (int(high) for high in points.max(0).clip(0, (width - 1, height - 1)))
    plane = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    for polygon in polygons:  # one by one: fillPoly of several cuts out where they overlap
        cv2.fillPoly(plane, [polygon], 1, offset=(-left, -top))
    return ends_of(Box(plane, top, left), width).reshape(-1, 2)


def outline(runs: Runs, width: int) -> list[Points]:
    """Polygons through the rim's pixels, one for each 8-connected component: `draw` of them is the mask.

    Each has three vertices or more; those of a component of one or two pixels repeat.
    """
    plane, top, left = box_of(runs, width)
    found = []
    for ring in _rings(plane):
        corners = _corners(ring)
        found.append(_shifted(corners[[0, -1, -1]] if len(corners) < 3 else corners, top, left))
    return found


def edges(runs: Runs, width: int) -> list[Points]:
    """Polygons along the pixels' edges, one for each 8-connected component; x and y run to the width and height."""
    plane, top, left = box_of(runs, width)
    # A pixel is 2 x 2 pixels there, whose rim lies inside of its edges by half a pixel: rounding up finds them.
    rings = _rings(plane.repeat(2, 0).repeat(2, 1))
    return [_shifted(_corners((ring + 1) // 2), top, left) for ring in rings]


def union(parts: Sequence[Runs], width: int) -> tuple[Runs, bool]:
    """All parts as one mask, and whether each can be told from it again: none meets another, not even at a corner."""
    shown = [runs for runs in parts if len(runs)]
    if len(shown) < 2:
        return (shown[0] if shown else np.empty((0, 2), np.int64)), True
    boxes = [box_of(runs, width) for runs in shown]
    top, left = min(box.top for box in boxes), min(box.left for box in boxes)
    bottom = max(box.top + box.plane.shape[0] for box in boxes)
    right = max(box.left + box.plane.shape[1] for box in boxes)
    plane = np.zeros((bottom - top, right - left), np.uint8)
    for box in boxes:
        height, wide = box.plane.shape
        plane[box.top - top : box.top - top + height, box.left - left : box.left - left + wide] |= box.plane
    apart = _components(plane) == sum(_components(box.plane) for box in boxes)
    return ends_of(Box(plane, top, left), width).reshape(-1, 2), apart


def box_of(runs: Runs, width: int) -> Box:
    """The mask of runs in an image of that width, px. Runs may touch, and may be empty."""
    ends = runs[runs[:, 0] < runs[:, 1]].reshape(-1)
    if not len(ends):
        return Box(np.zeros((0, 0), np.uint8), 0, 0)
    top, bottom = int(ends[0] // width), int((ends[-1] - 1) // width + 1)
    flips = np.zeros((bottom - top) * width + 1, np.uint8)
    np.bitwise_xor.at(flips, ends - top * width, np.uint8(1))
    rows = np.bitwise_xor.accumulate(flips[:-1]).reshape(-1, width)
    columns = np.flatnonzero(rows.any(0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    return Box(np.ascontiguousarray(rows[:, left:right]), top, left)


def ends_of(box: Box, width: int) -> NDArray[np.int64]:
    """Pixels before which the mask begins or ends, (2 R,), row-major in an image of that width, px; as runs are."""
    walled = np.pad(box.plane != 0, ((0, 0), (1, 1))).reshape(-1)
    y, x = np.divmod(np.flatnonzero(walled[1:] != walled[:-1]), box.plane.shape[1] + 2)
    ends = np.asarray((y + box.top) * width + x + box.left, np.int64)
    touch = ends[1:] == ends[:-1]  # from one row's end to the next one's begin
    return ends[np.append(True, ~touch) & np.append(~touch, True)] if len(ends) else ends


def _components(plane: NDArray[np.uint8]) -> int:
    return int(cv2.connectedComponents(plane, connectivity=8)[0]) - 1


def _rings(plane: NDArray[np.uint8]) -> list[Points]:
    """The rim of each component as a closed way from pixel to pixel, its holes' rims joined to it."""
    if not plane.any():
        return []
    contours, tree = cv2.findContours(plane, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rims: list[Points] = [np.asarray(contour, np.int32).reshape(-1, 2) for contour in contours]
    parents = np.asarray(tree).reshape(-1, 4)[:, 3].tolist()
    holes: dict[int, list[Points]] = {i: [] for i, parent in enumerate(parents) if parent < 0}
    for rim, parent in zip(rims, parents, strict=True):
        if parent >= 0:
            holes[parent].append(rim)
    return [_one_way([rims[i], *inside]) if inside else rims[i] for i, inside in holes.items()]


def _one_way(rims: Sequence[Points]) -> Points:
    """The first rim, with a detour to each other: along a row to the leftmost pixel, around and back, all over bone.

    To the left of that pixel comes bone up to a pixel of another rim, either the first or one that begins further left.
    """
    points = np.concatenate(rims)
    rim_of = np.repeat(np.arange(len(rims)), [len(rim) for rim in rims])
    place = np.concatenate([np.arange(len(rim)) for rim in rims])
    keys = points[:, 1].astype(np.int64) * (int(points[:, 0].max()) + 1) + points[:, 0]
    order = np.argsort(keys, kind="stable")
    ranked, firsts = keys[order], np.cumsum([0, *map(len, rims)])
    detours: list[list[tuple[int, Points]]] = [[] for _ in rims]
    # From the right: what starts from a rim is known when that one is joined.
    for i in sorted(range(1, len(rims)), key=lambda i: -int(rims[i][:, 0].min())):
        rim, start = rims[i], int(rims[i][:, 0].argmin())
        at = int(np.searchsorted(ranked, keys[firsts[i] + start], "right")) - 1
        while rim_of[order[at]] == i:
            at -= 1
        turned = [((j - start) % len(rim), way) for j, way in detours[i]]
        around = _with_detours(np.concatenate([rim[start:], rim[: start + 1]]), turned)
        detours[rim_of[order[at]]].append((int(place[order[at]]), around))
    return _with_detours(rims[0], detours[0])


def _with_detours(way: Points, detours: Sequence[tuple[int, Points]]) -> Points:
    """A way that leaves at these places, and goes on from there."""
    pieces, last = [], 0
    for at, detour in sorted(detours, key=lambda found: found[0]):
        pieces += [way[last : at + 1], detour]
        last = at
    return np.concatenate([*pieces, way[last:]])


def _corners(ring: Points) -> Points:
    """The points at which a closed way turns."""
    ring = ring[(ring != np.roll(ring, 1, 0)).any(1)] if len(ring) > 1 else ring
    before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    straight = (before[:, 0] * after[:, 1] == before[:, 1] * after[:, 0]) & ((before * after).sum(1) > 0)
    corners: Points = ring[~straight]
    return corners


def _shifted(points: Points, top: int, left: int) -> Points:
    return np.asarray(points + (left, top), np.int32)
