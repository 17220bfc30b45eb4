"""Hard votes: masks of several submissions put together pixel by pixel, on their runs, without decoding them.

Between two neighbouring boundaries of any of the masks every pixel has the same votes, so one sweep over the sorted
boundaries finds all pixels whose votes weigh enough. Averaging the members' probabilities with weights (soft voting)
needs the maps; this is its counterpart where only masks are at hand, and both are to masks what weighted boxes fusion
is to boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from config import ConfigProblem, suggest
from engine.rle import runs_to_text
from inference.submission import SubmissionWriter, parse_image
from inference.submission_file import SubmissionFile, check_alike

UNITS = 10**9
"""Weights are counted in whole billionths, so that their sums are exact: 0.1 + 0.2 ties with 0.3."""
HEAVIEST = 1000
"""Largest weight: the billionths of a thousand members are whole numbers in float64 all the same."""


def vote_runs(runs: Sequence[NDArray[np.int64]], weights: NDArray[np.float64], needed: float) -> NDArray[np.int64]:
    """The pixels at which the masks that hold them weigh `needed` or more, as runs of which no two touch.

    Weights and `needed` are rounded to nine decimals, then added and compared as whole numbers: a sum that equals
    `needed` is enough, whatever float64 makes of it. `needed_weight` gives the number for a majority.

    Args:
        runs: N masks of one class and image, int64 (R, 2) each as `parse_runs` gives them; runs may touch.
        weights: float64 (N,), each in [0, HEAVIEST].
        needed: above 0, also after rounding.

    Returns:
        int64 (R, 2), sorted; none empty.

    Raises:
        ValueError: not one weight a mask, a weight out of range, or `needed` not above 0, where all pixels of an image
            of unknown size would win.
    """
    units = _units(weights)
    if len(units) != len(runs):
        raise ValueError(f"There are {len(runs)} masks and {len(units)} weights, but every mask needs one.")
    enough = round(needed * UNITS)
    if enough <= 0:
        raise ValueError(f"needed is {needed}, but must be above 0, or pixels without any vote would win.")
    offsets = np.zeros(len(runs) + 1, np.int64)
    np.cumsum([one.size for one in runs], out=offsets[1:])
    return np.asarray(_sweep(np.concatenate([one.reshape(-1) for one in runs]), offsets, units, enough))


def needed_weight(weights: NDArray[np.float64], share: float | None = None) -> float:
    """What the votes for a pixel must weigh, for `vote_runs`.

    Args:
        weights: float64 (N,), each in [0, HEAVIEST], as `vote_runs` takes them.
        share: of the sum of all weights, in (0, 1]; just that much is enough, to within a billionth of the sum, so that
            k / n asks for k of n equal votes. None wants more than half: a tie gives no pixel.

    Raises:
        ValueError: a weight is out of range, or all are 0.
        ConfigProblem: `share` is out of range.
    """
    total = int(_units(weights).sum())
    if total == 0:
        raise ValueError(f"All {len(weights)} are 0, but one or more must be above.")
    if share is None:
        return (total // 2 + 1) / UNITS
    if not 0 < share <= 1:
        raise ConfigProblem(f"vote_threshold is {share}, but must be above 0 and at most 1: give a share of the votes.")
    return max(-(-(round(share * UNITS) - 1) * total // UNITS), 1) / UNITS


def vote_weights(
    classes: Sequence[str], members: int, weights: Sequence[float], by_class: Mapping[str, Sequence[float]]
) -> NDArray[np.float64]:
    """The weight of every member in every class, float64 (len(classes), members).

    Args:
        weights: of the members; empty for equal ones.
        by_class: class -> weights of the members, instead of `weights`.

    Raises:
        ConfigProblem: an unknown class, not one weight a member, a weight out of [0, HEAVIEST], or only zeros.
    """
    for label in by_class:
        if label not in classes:
            raise ConfigProblem(
                f"class_weights: {label!r} is no class{suggest(label, classes)}. The CSVs have {', '.join(classes)}."
            )
    everywhere = _checked("weights", weights or (1.0,) * members, members)
    rows = {label: _checked(f"class_weights of {label!r}", given, members) for label, given in by_class.items()}
    return np.stack([rows.get(label, everywhere) for label in classes])


def vote_submissions(
    files: Sequence[SubmissionFile], output: Path, weights: NDArray[np.float64], share: float | None = None
) -> int:
    """Vote over whole CSVs by image and class, and write the result in the first file's order; streams.

    Args:
        files: of the same images and classes, each in any order.
        output: the CSV to write; never overwritten.
        weights: float64 (classes of the first file, files), as `vote_weights` gives them.
        share: as `needed_weight` takes it.

    Returns:
        The number of images.

    Raises:
        FileProblem: an image or class that not all files have, a text that is no run-length text, or an `output` that
            exists.
    """
    first = files[0]
    for other in files[1:]:
        check_alike(first, other)
    needed = [needed_weight(row, share) for row in weights]
    with SubmissionWriter(output, first.names, first.classes) as writer:
        for name in first.names:
            votes = [parse_image(file.path, file.read(name)) for file in files]
            writer.write_rles(
                name,
                [
                    runs_to_text(vote_runs([vote[label] for vote in votes], row, enough))
                    for label, row, enough in zip(first.classes, weights, needed, strict=True)
                ],
            )
    return len(first.names)


def _checked(name: str, given: Sequence[float], members: int) -> NDArray[np.float64]:
    """The weights float64 (members,), or a ConfigProblem that begins with their name."""
    if len(given) != members:
        raise ConfigProblem(f"{name}: {len(given)} were given for {members} CSVs, but every CSV needs one.")
    weights = np.array(given, np.float64)
    try:
        needed_weight(weights)
    except ValueError as error:
        raise ConfigProblem(f"{name}: {error}") from None
    return weights


def _units(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Weights in whole units.

    Raises:
        ValueError: one is out of range.
    """
    good = (weights >= 0) & (weights <= HEAVIEST)  # False for NaN
    if not good.all():
        raise ValueError(f"{weights[~good][0]:g} is out of range, every weight must lie between 0 and {HEAVIEST}.")
    return np.rint(weights * UNITS).astype(np.int64)


@njit(cache=True, nogil=True)
def _sweep(
    ends: NDArray[np.int64], offsets: NDArray[np.int64], weights: NDArray[np.int64], needed: int
) -> NDArray[np.int64]:
    """Runs (R, 2) of pixels that weigh `needed` or more; mask i has the boundaries ends[offsets[i]:offsets[i + 1]]."""
    runs = np.empty((ends.size // 2 + 1, 2), np.int64)
    count = 0
    at = offsets[:-1].copy()
    inside = False
    votes = 0
    while True:
        # Few masks, so looking at all of them costs less than a heap.
        pixel = np.int64(-1)
        for i in range(at.size):
            if at[i] < offsets[i + 1] and (pixel < 0 or ends[at[i]] < pixel):
                pixel = ends[at[i]]
        if pixel < 0:
            return runs[:count]
        for i in range(at.size):
            while at[i] < offsets[i + 1] and ends[at[i]] == pixel:  # twice where two runs touch
                votes += weights[i] if (at[i] - offsets[i]) % 2 == 0 else -weights[i]
                at[i] += 1
        if (votes >= needed) != inside:
            runs[count, 1 if inside else 0] = pixel
            count += inside
            inside = not inside
