"""Weights of an ensemble's members, fitted to labels: by soft Dice, or by the competition's Dice of the masks at 0.5.

Soft Dice is a function of the weights and three sums of each image and class: those of p_m t, of p_m and of t. So it
needs no pixels. The masks' Dice changes with convex weights only in disputed pixels, where some members are above
0.5 and some below; only these are kept, and the Dice found from them is exact.

Both are maximised one weight at a time: along a line on which one member's weight goes from 0 to 1 and the others keep
their proportions, a pixel enters or leaves the mask once, so one pass gives the Dice at all steps of the line. That is
the line search of minimum error rate training (Och, "Minimum error rate training in statistical machine translation",
ACL 2003).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from inference.combined import TOLERANCE, Source, Together, each_image
from inference.metrics import EPS

STEPS = 100
"""A line's weights are 0, 1 / STEPS, …, 1."""
ROUNDS = 20
"""Turns over all members at most; two or three are usual."""
LEAST_GAIN = 1e-9
"""Dice that a step must add; less is rounding."""
ALL_SUBSETS = 8
"""Up to so many members all their subsets are tried, above them backward elimination."""


class Objective(Protocol):
    """What weights are fitted to. `weights` is (M,) of sum 1, `images` the int64 indices of n images."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images, classes, members."""

    def dice(self, k: int, weights: NDArray[np.float64], images: NDArray[np.int64]) -> NDArray[np.float64]:
        """Class k's Dice of each image, float64 (n,)."""

    def line(
        self, k: int, others: NDArray[np.float64], member: int, images: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Class k's mean Dice, float64 (STEPS + 1,), as the weight of `member` goes from 0 (`others`) to 1."""


@dataclass(frozen=True)
class SoftDice:
    """(2 sum p t + eps) / (sum p + sum t + eps), p the combined probability."""

    overlaps: NDArray[np.float64]
    """Sum of p_m over the label's pixels, (images, K, M)."""
    areas: NDArray[np.float64]
    """Sum of p_m, (images, K, M)."""
    truth: NDArray[np.int64]
    """Pixels of the label, (images, K)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        images, classes, members = self.areas.shape
        return images, classes, members

    def dice(self, k: int, weights: NDArray[np.float64], images: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._dice(k, weights[:, None], images)[:, 0]

    def line(
        self, k: int, others: NDArray[np.float64], member: int, images: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        share = np.linspace(0, 1, STEPS + 1)
        points = np.outer(others, 1 - share) + np.outer(_one(member, len(others)), share)
        return np.asarray(self._dice(k, points, images).mean(0))

    def _dice(self, k: int, weights: NDArray[np.float64], images: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, points) of weights (M, points)."""
        sums = self.areas[images, k] @ weights + self.truth[images, k, None]
        return np.asarray((2 * self.overlaps[images, k] @ weights + EPS) / (sums + EPS))


@dataclass(frozen=True)
class MaskDice:
    """The competition's Dice of the combined masks at 0.5."""

    certain: NDArray[np.int64]
    """Pixels that every member has in its mask: in the label, and in all; (images, K, 2)."""
    truth: NDArray[np.int64]
    """Pixels of the label, (images, K)."""
    values: tuple[NDArray[np.uint8], ...]
    """Of each class the disputed pixels of all images, image by image, (N, M)."""
    labels: tuple[NDArray[np.uint8], ...]
    """Whether they are in the label, 0 or 1, (N,)."""
    offsets: NDArray[np.int64]
    """Where in them each image begins, (K, images + 1)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return *self.truth.shape, self.values[0].shape[1]

    @property
    def nbytes(self) -> int:
        """Memory of the disputed pixels."""
        return sum(array.nbytes for array in (*self.values, *self.labels))

    def dice(self, k: int, weights: NDArray[np.float64], images: NDArray[np.int64]) -> NDArray[np.float64]:
        counts = self.certain[images, k] + _count(self.values[k], self.labels[k], self.offsets[k], images, weights)
        return np.asarray((2 * counts[:, 0] + EPS) / (counts[:, 1] + self.truth[images, k] + EPS))

    def line(
        self, k: int, others: NDArray[np.float64], member: int, images: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        found = _count_line(self.values[k], self.labels[k], self.offsets[k], images, others, member)
        both, mask = (found + self.certain[images, k, :, None]).transpose(1, 0, 2)
        return np.asarray(((2 * both + EPS) / (mask + self.truth[images, k, None] + EPS)).mean(0))


def collect(sources: Sequence[Source], keys: Sequence[str]) -> tuple[SoftDice, MaskDice]:
    """Both objectives from one pass over the images.

    Memory: M + 1 bytes a disputed pixel.

    Raises:
        FileProblem: as `read_together`.
    """
    images = each_image(sources, keys, _sums_of_image, "sums for weights")
    truth = np.stack([image.truth for image in images])
    overlaps, areas = (np.stack(x) / 255 for x in zip(*((i.overlaps, i.areas) for i in images), strict=True))
    values, labels, lengths = [], [], []
    for k in range(truth.shape[1]):
        values.append(np.concatenate([image.values[k] for image in images]))
        labels.append(np.concatenate([image.labels[k] for image in images]))
        lengths.append([0, *(len(image.labels[k]) for image in images)])
        for image in images:  # not both the parts and the whole of all classes at once
            image.values[k], image.labels[k] = values[k][:0], labels[k][:0]
    hard = MaskDice(
        np.stack([image.certain for image in images]), truth, tuple(values), tuple(labels), np.cumsum(lengths, axis=1)
    )
    return SoftDice(overlaps, areas, truth), hard


def fit_global(objective: Objective, images: NDArray[np.int64], start: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same weights for all classes, (M, K); `start` (M,) is improved on, members of weight 0 stay there."""
    n_classes = objective.shape[1]
    return np.tile(_ascend(objective, range(n_classes), images, start)[:, None], n_classes)


def fit_classes(objective: Objective, images: NDArray[np.int64], start: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each class's own weights, (M, K); `start` as for `fit_global`."""
    return np.stack([_ascend(objective, (k,), images, start) for k in range(objective.shape[1])], axis=1)


def fit_best(objective: Objective, images: NDArray[np.int64], start: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weight 1 for the best member of each class, (M, K), of equal ones the first; members of weight 0 stay there."""
    _, n_classes, n_members = objective.shape
    singles = [_one(int(m), n_members) for m in np.flatnonzero(start)]
    columns = []
    for k in range(n_classes):
        scores = [objective.dice(k, single, images).mean() for single in singles]
        columns.append(singles[int(np.argmax(scores))])
    return np.stack(columns, axis=1)


class Members:
    """Which members to drop; the rest weigh the same."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._known: dict[tuple[int, ...], NDArray[np.float64]] = {}

    def fit(self, images: NDArray[np.int64]) -> NDArray[np.float64]:
        """Weights (M,) of the best members: of all subsets, or above ALL_SUBSETS by dropping one after the other, down
        to one. Of equal ones the larger, then the first."""
        n_members = self._objective.shape[2]
        if n_members <= ALL_SUBSETS:
            sizes = range(n_members, 0, -1)
            return self._best([c for size in sizes for c in combinations(range(n_members), size)], images)[0]
        kept = tuple(range(n_members))
        path = [kept]
        while len(kept) > 1:
            kept = self._best(list(combinations(kept, len(kept) - 1)), images)[1]
            path.append(kept)
        return self._best(path, images)[0]

    def _best(
        self, subsets: Sequence[tuple[int, ...]], images: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], tuple[int, ...]]:
        best = subsets[int(np.argmax([self._dice(subset)[images].mean() for subset in subsets]))]
        return self._weights(best), best

    def _dice(self, subset: tuple[int, ...]) -> NDArray[np.float64]:
        """Mean over classes of every image; it depends on no fold, so it is found once."""
        if subset not in self._known:
            n_images, n_classes, _ = self._objective.shape
            weights, images = self._weights(subset), np.arange(n_images)
            self._known[subset] = np.mean([self._objective.dice(k, weights, images) for k in range(n_classes)], axis=0)
        return self._known[subset]

    def _weights(self, subset: tuple[int, ...]) -> NDArray[np.float64]:
        weights = np.zeros(self._objective.shape[2])
        weights[list(subset)] = 1 / len(subset)
        return weights


@dataclass(frozen=True)
class _Sums:
    """One image's part of both objectives."""

    overlaps: NDArray[np.int64]
    areas: NDArray[np.int64]
    certain: NDArray[np.int64]
    truth: NDArray[np.int64]
    values: list[NDArray[np.uint8]]
    labels: list[NDArray[np.uint8]]


def _sums_of_image(image: Together) -> _Sums:
    found = []
    for k in range(len(image.truth)):
        region = image.region(k)
        found.append(_sort_out(region.values.reshape(len(region.values), -1), region.truth.reshape(-1)))
    sums, certain, values, labels = zip(*found, strict=True)
    overlaps, areas = np.stack(sums, axis=1)
    return _Sums(overlaps, areas, np.stack(certain), image.true_areas, list(values), list(labels))


def _ascend(
    objective: Objective, classes: Sequence[int], images: NDArray[np.int64], start: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights (M,) that no single weight's change makes better for the mean over `classes`."""
    weights = start
    members = np.flatnonzero(start)
    best = float(np.mean([objective.dice(k, weights, images).mean() for k in classes]))
    for _ in range(ROUNDS if len(members) > 1 else 0):
        before = best
        for member in members.tolist():
            others = _without(weights, member, members)
            curve = np.mean([objective.line(k, others, member, images) for k in classes], axis=0)
            step = int(curve.argmax())
            if curve[step] > best + LEAST_GAIN:
                share = step / STEPS
                weights, best = (1 - share) * others + share * _one(member, len(weights)), float(curve[step])
        if best == before:
            break
    return weights


def _without(weights: NDArray[np.float64], member: int, members: NDArray[np.int64]) -> NDArray[np.float64]:
    """The others' weights in their proportions, of sum 1; equal where `member` has all."""
    others = weights.copy()
    others[member] = 0
    if others.sum() < LEAST_GAIN:
        others[members] = 1
        others[member] = 0
    return np.asarray(others / others.sum())


def _one(member: int, n_members: int) -> NDArray[np.float64]:
    weights = np.zeros(n_members)
    weights[member] = 1
    return weights


@njit(cache=True, nogil=True)
def _sort_out(
    values: NDArray[np.uint8], truth: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8]]:
    """Of (M, P) values and (P,) labels: int64 (2, M) sums of q in the label and in all, int64 (2,) pixels in every
    member's mask (in the label, in all), and the disputed pixels' values (N, M) and labels (N,)."""
    members, pixels = values.shape
    sums = np.zeros((2, members), np.int64)
    certain = np.zeros(2, np.int64)
    disputed = np.empty((pixels, members), np.uint8)
    labels = np.empty(pixels, np.uint8)
    count = 0
    for p in range(pixels):
        t = truth[p]
        low, high = np.uint8(255), np.uint8(0)
        for m in range(members):
            q = values[m, p]
            low, high = min(low, q), max(high, q)
            sums[0, m] += q * t
            sums[1, m] += q
        if low >= 128:
            certain[0] += t
            certain[1] += 1
        elif high >= 128:
            for m in range(members):
                disputed[count, m] = values[m, p]
            labels[count] = t
            count += 1
    return sums, certain, disputed[:count].copy(), labels[:count].copy()


@njit(cache=True, nogil=True)
def _count(
    values: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    images: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Disputed pixels in the mask of `weights`: int64 (n, 2), in the label and in all."""
    counts = np.zeros((images.size, 2), np.int64)
    for n in range(images.size):
        for p in range(offsets[images[n]], offsets[images[n] + 1]):
            value = TOLERANCE
            for m in range(weights.size):
                value += weights[m] * values[p, m]
            if value >= 127.5:
                counts[n, 0] += labels[p]
                counts[n, 1] += 1
    return counts


@njit(cache=True, nogil=True)
def _count_line(
    values: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    images: NDArray[np.int64],
    others: NDArray[np.float64],
    member: int,
) -> NDArray[np.int64]:
    """`_count` at every step of the line from `others` to `member`: int64 (n, 2, STEPS + 1)."""
    counts = np.zeros((images.size, 2, STEPS + 1), np.int64)
    for n in range(images.size):
        changes = np.zeros((2, STEPS + 2), np.int64)
        for p in range(offsets[images[n]], offsets[images[n] + 1]):
            rest = 0.0
            for m in range(others.size):
                rest += others[m] * values[p, m]
            own = values[p, member]
            begins_in, ends_in = rest + TOLERANCE >= 127.5, own >= 128
            if begins_in:
                changes[0, 0] += labels[p]
                changes[1, 0] += 1
            if begins_in != ends_in:
                crossing = STEPS * (127.5 - rest) / (own - rest)
                # On the threshold is in: entered at the crossing, left behind it.
                step = int(np.ceil(crossing - 1e-6)) if ends_in else int(np.floor(crossing + 1e-6)) + 1
                sign = 1 if ends_in else -1
                changes[0, step] += sign * labels[p]
                changes[1, step] += sign
        for j in range(2):
            total = 0
            for step in range(STEPS + 1):
                total += changes[j, step]
                counts[n, j, step] = total
    return counts
