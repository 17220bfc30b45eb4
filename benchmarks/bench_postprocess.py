"""Our post-processing of packed words against OpenCV on one full plane a class.

The masks are a phantom's with specks, and holes in the bones. OpenCV gets its fastest settings that were found: its
default labelling (Spaghetti) on 16-bit labels, only the boxes of what is removed touched, contours for the holes, byte
planes of 8 classes each for the way from words and back, and as many threads as it likes; ours has one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.case import FULL, QUICK, draw
from benchmarks.measure import in_turn, milliseconds
from benchmarks.rows import Row
from benchmarks.same import Different
from dataset.labels import read_label
from inference.post_process import apply, parse_steps

DESCRIPTION = "Small components, largest component, holes of 29 packed masks, against OpenCV on full planes"

OURS, PEER = "ours", "OpenCV"
SPECKS = 20
"""Of each class, and as many holes."""
SMALL = 50
"""Components of fewer px are removed."""
TINY = 5
"""As SMALL, in a mask of noise."""
NOISE = 0.3
"""Share of the pixels of a mask of noise."""

Bits = NDArray[np.int32]
Plane = NDArray[np.uint8]


def run(quick: bool) -> list[Row]:
    """All rows; `quick` takes 256 px instead of 2048."""
    case, repeats = (QUICK, 3) if quick else (FULL, 7)
    truth = read_label(draw(case)[0], case.classes, case.size, case.size)
    rng = np.random.default_rng(0)
    bits = with_specks(truth, len(case.classes), rng)
    noise = (rng.random((1, case.size, case.size)) < NOISE).astype(np.int32)
    what = f"{len(case.classes)} x {case.size} x {case.size}"
    noisy = f"min_area={TINY}"
    peers = {f"min_area={SMALL}": remove_small, "largest": keep_largest, "fill_holes": fill_holes}
    return [
        *(compare(f"{step}, {what}", step, peer, bits, case.classes, repeats) for step, peer in peers.items()),
        compare(f"{noisy}, {case.size} px of noise", noisy, remove_tiny, noise, ("noise",), repeats),
    ]


def compare(
    name: str, step: str, peer: Callable[[Plane], Plane], bits: Bits, classes: tuple[str, ...], repeats: int
) -> Row:
    """Both sides at one task.

    Raises:
        Different: their masks are not the same, or nothing has changed.
    """
    steps = parse_steps([step], classes)
    works: dict[str, Callable[[], Bits]] = {
        OURS: lambda: apply(bits, classes, steps)[0],
        PEER: partial(on_planes, bits, len(classes), peer),
    }
    results = {side: work() for side, work in works.items()}
    if not np.array_equal(results[OURS], results[PEER]) or np.array_equal(results[OURS], bits):
        raise Different(f"{name}: the masks are not those of {PEER}, or the step has changed nothing.")
    times = in_turn({side: partial(milliseconds, work) for side, work in works.items()}, repeats)
    return Row(name, PEER, "ms", times[OURS], times[PEER])


def with_specks(truth: Bits, n_classes: int, rng: np.random.Generator) -> Bits:
    """The masks with squares of up to 5 px added anywhere and cut out of the bones."""
    bits = truth.copy()
    for k in range(n_classes):
        bit = np.int32(1 << k)
        inside = np.argwhere(truth[0] & bit)
        for side in rng.integers(1, 6, SPECKS):
            y, x = rng.integers(0, truth.shape[1] - side, 2)
            bits[0, y : y + side, x : x + side] |= bit
            y, x = rng.choice(inside)
            bits[0, y : y + side, x : x + side] &= ~bit
    return bits


def on_planes(bits: Bits, n_classes: int, step: Callable[[Plane], Plane]) -> Bits:
    """The usual way: each class as a plane of bytes, its step, and back."""
    # Byte planes once for 8 classes each: a shift and a cast of the words for every class take ten times as long.
    planes = [np.asarray(plane) for plane in cv2.split(bits[0].view(np.uint8).reshape(*bits.shape[1:], 4))]
    for k in range(n_classes):
        plane = planes[k // 8] & np.uint8(1 << k % 8)
        planes[k // 8] ^= plane ^ step(plane)
    return np.asarray(cv2.merge(planes)).view(np.int32).reshape(bits.shape)


def remove_small(plane: Plane) -> Plane:
    labels, stats = components(plane, cv2.CV_16U)
    return cleared(plane, labels, stats, stats[:, cv2.CC_STAT_AREA] < SMALL)


def keep_largest(plane: Plane) -> Plane:
    labels, stats = components(plane, cv2.CV_16U)
    dropped = np.ones(len(stats), np.bool_)
    dropped[1 + stats[1:, cv2.CC_STAT_AREA].argmax()] = False
    return cleared(plane, labels, stats, dropped)


def components(plane: Plane, labels_type: int) -> tuple[NDArray[Any], NDArray[Any]]:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(plane, connectivity=8, ltype=labels_type)
    return np.asarray(labels), np.asarray(stats)


def cleared(plane: Plane, labels: NDArray[Any], stats: NDArray[Any], dropped: NDArray[np.bool_]) -> Plane:
    """Without some components; only their boxes are touched."""
    out = plane.copy()
    for label in 1 + np.flatnonzero(dropped[1:]):
        x, y, width, height, _ = stats[label]
        box = slice(y, y + height), slice(x, x + width)
        out[box][labels[box] == label] = 0
    return out


def remove_tiny(plane: Plane) -> Plane:
    # There are more components of noise than 16-bit labels, and too many for boxes.
    labels, stats = components(plane, cv2.CV_32S)
    kept = (stats[:, cv2.CC_STAT_AREA] >= TINY).astype(np.uint8)
    kept[0] = 0
    return np.asarray(kept[labels] * plane.max())


def fill_holes(plane: Plane) -> Plane:
    contours, _ = cv2.findContours(plane, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return np.asarray(cv2.drawContours(plane.copy(), contours, -1, int(plane.max()), cv2.FILLED))
