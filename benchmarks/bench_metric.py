"""The leaderboard's Dice of one image, against MONAI's DiceMetric, NumPy and the competition's function.

Each side begins with what it has after thresholding: ours with packed words, the others with one plane a class. The
values are compared before the times are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import competition_way
from benchmarks.case import FULL, QUICK, draw
from benchmarks.fastest import fastest
from benchmarks.measure import in_turn, milliseconds
from benchmarks.rows import Row
from benchmarks.same import Different
from dataset.labels import read_label
from inference.metrics import EPS, count_bits, dice_from_counts

DESCRIPTION = "Dice of one image's masks, against MONAI's DiceMetric, NumPy and the competition's function"

OURS, MONAI, NUMPY, COMPETITION = "ours", "MONAI DiceMetric", "NumPy, count_nonzero", "competition's function"
REPEATS = 5

Work = Callable[[], NDArray[np.float64]]
"""Dice of the classes, (classes,)."""


def run(quick: bool) -> list[Row]:
    """All rows; `quick` takes 256 px instead of 2048. The prediction is the label, 3 px down and 2 px to the left."""
    case = QUICK if quick else FULL
    truth = read_label(draw(case)[0], case.classes, case.size, case.size)
    return rows(np.roll(truth, (3, -2), (1, 2)), truth, len(case.classes))


def rows(predicted: NDArray[np.int32], truth: NDArray[np.int32], n_classes: int) -> list[Row]:
    """A row for each peer on one pair of packed words, (words, H, W)."""
    pred, true = (competition_way.planes(bits, n_classes) for bits in (predicted, truth))
    tensors = torch.from_numpy(pred)[None], torch.from_numpy(true)[None]
    works: dict[str, Work] = {
        OURS: lambda: dice_from_counts(count_bits(predicted, truth, n_classes)),
        NUMPY: partial(numpy_dice, pred, true),
    }
    notes = {}
    for name, function in ((MONAI, monai_dice()), (COMPETITION, competition_way.dice)):
        works[name], tried = at_its_best(function, *tensors)
        notes[name] = f"{name}: {tried}."
    for name, work in works.items():
        agree(name, work(), works[OURS]())
    times = in_turn({name: partial(milliseconds, work) for name, work in works.items()}, REPEATS)
    case = f"Dice of {n_classes} x {truth.shape[1]} x {truth.shape[2]}"
    return [
        Row(case, peer, "ms", times[OURS], times[peer], notes.get(peer, ""))
        for peer in (MONAI, NUMPY, COMPETITION)
    ]


def numpy_dice(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The formula a class; count_nonzero takes a fifth of the time of sum() over bools."""
    return np.array(
        [
            (2 * np.count_nonzero(pred & true) + EPS) / (np.count_nonzero(pred) + np.count_nonzero(true) + EPS)
            for pred, true in zip(predicted, truth, strict=True)
        ]
    )


def monai_dice() -> Callable[[Tensor, Tensor], Tensor]:
    """DiceMetric of masks (1, K, H, W) -> (1, K); 1 where both are empty, as in the competition."""
    from monai.metrics import DiceMetric  # here: listing the benchmarks must not wait for it

    metric = DiceMetric(reduction="none", ignore_empty=False)

    def values(predicted: Tensor, truth: Tensor) -> Tensor:
        metric.reset()
        found: Tensor = metric(predicted, truth)
        return found

    return values


def at_its_best(function: Callable[[Tensor, Tensor], Tensor], predicted: Tensor, truth: Tensor) -> tuple[Work, str]:
    """A function on the fastest of the types that masks of (1, K, H, W) come in, and what was tried."""
    ways = {
        str(kind).removeprefix("torch."): partial(_values, function, predicted.to(kind), truth.to(kind))
        for kind in (torch.bool, torch.uint8, torch.float32)
    }
    best, tried = fastest(ways)
    return ways[best], tried


def _values(function: Callable[[Tensor, Tensor], Tensor], predicted: Tensor, truth: Tensor) -> NDArray[np.float64]:
    return function(predicted, truth)[0].double().numpy()


def agree(name: str, theirs: NDArray[np.float64], ours: NDArray[np.float64]) -> None:
    """Compare Dice.

    Raises:
        Different: some differ by more than float32's rounding and the formula's 1e-4, which MONAI leaves out.
    """
    difference = float(np.abs(theirs - ours).max())
    if not difference <= 1e-5:
        raise Different(f"{name}: Dice differs from ours by {difference:.2g}, not rounding.")
