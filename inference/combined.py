"""Several members' stored probabilities of an image, combined class by class inside the boxes that they fill.

Soft voting: p = sum of w_m p_m, w >= 0 with sum 1. On the store's scale of 0 to 255 the combined value is
v = sum of w_m q_m, its level floor(v + 0.5), and the mask of threshold t is v >= 255 t: values on the threshold itself
(127 and 128, averaged, at 0.5) are in. Weights are float64 and their sums rounded, so a value within TOLERANCE below a
threshold lies on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from engine.bits import n_words
from engine.files import FileProblem
from engine.progress import progress
from inference.probs import ImageProbs, ProbsFolder
from inference.thresholds import dice_at_levels

T = TypeVar("T")

TOLERANCE = 1e-9
"""On the scale of 0 to 255: far above the rounding of a sum of weights, far below any real difference."""


class Source(NamedTuple):
    """A member of an ensemble and its stored probabilities."""

    name: str
    """What messages call it, such as its path."""
    store: ProbsFolder


@dataclass(frozen=True)
class Region:
    """One class of one image in the box that holds all members' boxes."""

    top: int
    left: int
    values: NDArray[np.uint8]
    """(M, h, w), 0 outside of a member's own box."""
    truth: NDArray[np.uint8]
    """(h, w), 0 or 1."""


@dataclass(frozen=True)
class Together:
    """One image of all members."""

    key: str
    parts: tuple[ImageProbs, ...]
    truth: tuple[NDArray[np.int64], ...]
    """Runs of the labels, (R, 2) a class."""

    @property
    def true_areas(self) -> NDArray[np.int64]:
        """Pixels of each label, int64 (K,)."""
        return np.array([int((runs[:, 1] - runs[:, 0]).sum()) for runs in self.truth], np.int64)

    def region(self, k: int) -> Region:
        """Class `k`; height and width are 0 where all members are empty."""
        boxes = np.stack([part.boxes[k] for part in self.parts]).astype(np.int64)
        filled = boxes[boxes[:, 2] > 0]
        if not len(filled):
            return Region(0, 0, np.zeros((len(boxes), 0, 0), np.uint8), np.zeros((0, 0), np.uint8))
        top, left = (int(x) for x in filled[:, :2].min(0))
        height, width = (int(x) for x in (filled[:, :2] + filled[:, 2:]).max(0) - (top, left))
        values = np.zeros((len(boxes), height, width), np.uint8)
        for plane, (y, x, h, w), part in zip(values, boxes.tolist(), self.parts, strict=True):
            plane[y - top : y - top + h, x - left : x - left + w] = part.values[k]
        truth = np.zeros((height, width), np.uint8)
        _paint(self.truth[k], self.parts[0].width, top, left, truth, np.uint8(1))
        return Region(top, left, values, truth)

    def true_bits(self) -> NDArray[np.int32]:
        """The labels as packed words, int32 (W32, H, W)."""
        words = self._words()
        for k, runs in enumerate(self.truth):
            _paint(runs, words.shape[2], 0, 0, words[k // 32], np.uint32(1 << k % 32))
        return words.view(np.int32)

    def bits(self, weights: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.int32]:
        """Masks of the combined probabilities as packed words, int32 (W32, H, W).

        Args:
            weights: (M, K), each class's of sum 1.
            thresholds: probabilities, (K,).
        """
        words = self._words()
        for k in range(len(self.truth)):
            region = self.region(k)
            limit = 255 * float(thresholds[k]) - TOLERANCE
            bit = np.uint32(1 << k % 32)
            _threshold(region.values, np.ascontiguousarray(weights[:, k]), limit, region.top, region.left,
                       words[k // 32], bit)
        return words.view(np.int32)

    def curves(self, weights: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """The competition's Dice at all 255 levels for each of S weightings (M, K): float64 (S, K, 255)."""
        n_classes = len(self.truth)
        counts = np.zeros((len(weights), n_classes, 2, 256), np.int64)
        n_pixels, areas = self.parts[0].height * self.parts[0].width, self.true_areas
        for k in range(n_classes):
            region = self.region(k)
            of_class = np.stack([w[:, k] for w in weights])
            counts[:, k] = _histograms(region.values.reshape(len(self.parts), -1), region.truth.reshape(-1), of_class)
            counts[:, k, 0, 0] += n_pixels - region.truth.size
            counts[:, k, 1, 0] += areas[k] - int(np.count_nonzero(region.truth))
        return np.stack([dice_at_levels(count[:, 0], count[:, 1]) for count in counts])

    def _words(self) -> NDArray[np.uint32]:
        return np.zeros((n_words(len(self.truth)), self.parts[0].height, self.parts[0].width), np.uint32)


def common_keys(sources: Sequence[Source]) -> tuple[str, ...]:
    """The images of the members' stores, sorted.

    Raises:
        FileProblem: no member, other classes, or an image that is not in all stores.
    """
    if not sources:
        raise FileProblem("There are no stored probabilities to fit on: infer labelled images with --save_probs first.")
    first = sources[0]
    for name, store in sources[1:]:
        if store.classes != first.store.classes:
            raise FileProblem(
                f"The probabilities of {name} and {first.name} are of other classes or in another order, but members "
                "of an ensemble have the same: leave one of them out."
            )
        if odd := sorted(set(first.store.keys()) ^ set(store.keys())):
            raise FileProblem(
                f"Image {odd[0]} ({len(odd)} in all) has probabilities of only one of {first.name} and {name}, but a "
                "fit needs every member's of every image: infer what is missing with --save_probs."
            )
    return first.store.keys()


def read_together(sources: Sequence[Source], key: str) -> Together:
    """One image of all members.

    Raises:
        FileProblem: no labels, members of other sizes, or what `ProbsFolder.read` raises.
    """
    parts = tuple(store.read(key) for _, store in sources)
    first = parts[0]
    for source, part in zip(sources, parts, strict=True):
        if (part.height, part.width) != (first.height, first.width):
            raise FileProblem(
                f"Image {key} has {part.height} x {part.width} pixels for {source.name} and {first.height} x "
                f"{first.width} for {sources[0].name}, but must be one image: infer it again with --save_probs."
            )
    if first.truth_runs is None:
        raise FileProblem(
            f"Image {key} has no labels in the probabilities of {sources[0].name}, but a fit needs them: infer "
            "labelled images, such as the out-of-fold ones."
        )
    return Together(key, parts, first.truth_runs)


def each_image(
    sources: Sequence[Source], keys: Sequence[str], work: Callable[[Together], T], what: str
) -> list[T]:
    """`work` of every image, in the order of `keys`: read and done by a thread a core, one image each in memory."""
    with ThreadPoolExecutor(workers()) as pool:
        results = pool.map(lambda key: work(read_together(sources, key)), keys)
        return list(progress(results, what, len(keys), "images"))


def workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@njit(cache=True, nogil=True)
def _paint(
    runs: NDArray[np.int64], width: int, top: int, left: int, out: NDArray[Any], bit: np.unsignedinteger[Any]
) -> None:
    """Set `bit` in the box `out` (h, w), which begins at (top, left) of an image so wide, along the image's runs."""
    bottom, right = top + out.shape[0], left + out.shape[1]
    for r in range(len(runs)):
        at, end = runs[r, 0], runs[r, 1]
        while at < end:
            y = at // width
            row_end = min(end, (y + 1) * width)
            if top <= y < bottom:
                for x in range(max(at - y * width, left), min(row_end - y * width, right)):
                    out[y - top, x - left] |= bit
            at = row_end


@njit(cache=True, nogil=True)
def _threshold(
    values: NDArray[np.uint8],
    weights: NDArray[np.float64],
    limit: float,
    top: int,
    left: int,
    words: NDArray[np.uint32],
    bit: np.uint32,
) -> None:
    """Set `bit` in (H, W) words where the box of (M, h, w) values, combined, reaches `limit`."""
    members, height, width = values.shape
    for y in range(height):
        for x in range(width):
            value = 0.0
            for m in range(members):
                value += weights[m] * values[m, y, x]
            if value >= limit:
                words[top + y, left + x] |= bit


@njit(cache=True, nogil=True)
def _histograms(
    values: NDArray[np.uint8], truth: NDArray[np.uint8], weights: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Levels of (M, P) values combined by each of (S, M) weights: int64 (S, 2, 256), of all pixels and of the label."""
    members, pixels = values.shape
    counts = np.zeros((len(weights), 2, 256), np.int64)
    for p in range(pixels):
        any_value = np.uint8(0)
        for m in range(members):
            any_value |= values[m, p]
        for s in range(len(weights)):
            level = 0
            if any_value:  # most of a box lies outside of its bone
                value = 0.5 + TOLERANCE
                for m in range(members):
                    value += weights[s, m] * values[m, p]
                level = int(value)
            counts[s, 0, level] += 1
            counts[s, 1, level] += truth[p]
    return counts
