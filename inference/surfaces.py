"""How far the outlines of predicted and true masks lie apart, from packed words at full size.

The boundary of a mask is its pixels with a 4-neighbour outside of it; beyond the image is outside. Distances are
Euclidean, in px between pixel centres. All classes' boundaries come out of one pass over the words: the four
neighbours' words, anded, are the pixels' inside, 32 classes at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import KDTree

from inference.metrics import class_above_last, flat_pair
from inference.rle import WORD_BITS


class SurfaceDistances(NamedTuple):
    """Distances of one class between two boundaries, px; inf where the other mask is empty."""

    to_truth: NDArray[np.float64]
    """(P,): from each boundary pixel of the prediction to the nearest one of the truth."""
    to_prediction: NDArray[np.float64]
    """(T,): from each boundary pixel of the truth to the nearest one of the prediction."""


def surface_distances(
    pred_bits: NDArray[np.int32], true_bits: NDArray[np.int32], n_classes: int
) -> list[SurfaceDistances]:
    """Distances between the boundaries of every class, in class order.

    Args:
        pred_bits, true_bits: packed words, int32 (ceil(n_classes / 32), H, W), of one size.

    Raises:
        ValueError: another dtype, shapes that differ, or a bit above the last class is set.
    """
    shape = pred_bits.shape[1:]
    pred, true = flat_pair(pred_bits, true_bits, n_classes)
    distances: list[SurfaceDistances] = []
    for w, (pred_word, true_word) in enumerate(zip(pred, true, strict=True)):
        used = min(WORD_BITS, n_classes - w * WORD_BITS)
        pred_points, pred_ends = _boundaries(pred_word.reshape(shape))
        true_points, true_ends = _boundaries(true_word.reshape(shape))
        if pred_ends[used] != pred_ends[WORD_BITS] or true_ends[used] != true_ends[WORD_BITS]:
            raise class_above_last(n_classes)
        for k in range(used):
            ours = pred_points[pred_ends[k] : pred_ends[k + 1]]
            theirs = true_points[true_ends[k] : true_ends[k + 1]]
            distances.append(SurfaceDistances(_nearest(ours, theirs), _nearest(theirs, ours)))
    return distances


def hausdorff(distances: SurfaceDistances, percentile: float, missing: float) -> float:
    """The larger of the two directed percentiles, px: of 100 the Hausdorff distance, of 95 Hausdorff 95.

    As in Metrics Reloaded (Maier-Hein 2024, doi 10.1038/s41592-023-02151-z) and MONAI, percentiles interpolated
    linearly. Others (medpy) pool both directions, which a long good boundary can make smaller.

    Returns:
        NaN where both masks are empty, `missing` where one is.
    """
    sizes = distances.to_truth.size, distances.to_prediction.size
    if not any(sizes):
        return float("nan")
    return max(float(np.percentile(d, percentile)) for d in distances) if all(sizes) else missing


def surface_dice(distances: SurfaceDistances, tolerance: float) -> float:
    """Share of both boundaries that is at most `tolerance` px from the other one, in [0, 1].

    Nikolov 2018 (arXiv:1809.04430), with boundaries measured by their number of pixels (Seidlitz 2022,
    arXiv:2111.05408; MONAI's default) instead of by their length.

    Returns:
        NaN where both masks are empty, 0 where one is.
    """
    near = sum(int(np.count_nonzero(d <= tolerance)) for d in distances)
    size = sum(d.size for d in distances)
    return near / size if size else float("nan")


def _nearest(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from each of (N, 2) points to the nearest of the others."""
    # A tree and no distance transform: it is exact, and never looks at the area between boundaries. One stray pixel far
    # away makes the masks' common box the whole image, of which transforms of 29 classes take seconds.
    if not len(points) or not len(others):
        return np.full(len(points), np.inf)
    return np.asarray(KDTree(others).query(points)[0], np.float64)


def _boundaries(words: NDArray[np.uint32]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Row and column of the boundary pixels of (H, W) words, (N, 2), bit k at ends[k]:ends[k+1]."""
    edges = words.copy()  # pixels at the image's border have a neighbour outside
    _erase_inside(words, edges)
    at = np.flatnonzero(edges != 0)  # of words themselves it takes ten times as long
    pixels, ends = _by_bit(at, edges.reshape(-1)[at])
    return np.stack(np.divmod(pixels, words.shape[1]), axis=1).astype(np.float64), ends


@njit(cache=True, nogil=True)
def _erase_inside(words: NDArray[np.uint32], edges: NDArray[np.uint32]) -> None:
    """Clear in edges, a copy of (H, W) words, the bits that all four neighbours have."""
    for y in range(1, words.shape[0] - 1):
        # Slices, whose indices can't be negative: with x - 1 the loop wouldn't become vector instructions.
        up, down, out = words[y - 1, 1:-1], words[y + 1, 1:-1], edges[y, 1:-1]
        left, right = words[y, :-2], words[y, 2:]
        for x in range(out.size):
            out[x] ^= out[x] & up[x] & down[x] & left[x] & right[x]


@njit(cache=True, nogil=True)
def _by_bit(at: NDArray[np.int64], words: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels (N,) of (N,) words sorted by bit: those of bit k at ends[k]:ends[k+1]."""
    ends = np.zeros(WORD_BITS + 1, np.int64)
    for word in words:
        for k in range(WORD_BITS):
            ends[k + 1] += (word >> k) & 1
    ends = np.cumsum(ends)
    pixels = np.empty(ends[-1], np.int64)
    fill = ends[:-1].copy()
    for i in range(at.size):
        for k in range(WORD_BITS):
            if (words[i] >> k) & 1:
                pixels[fill[k]] = at[i]
                fill[k] += 1
    return pixels, ends
