"""Fit on some subjects, score on the others, and how sure the gain is.

Subjects never part: both hands of one are fitted on together or scored together, and drawn together by the bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from config import ConfigProblem
from engine.files import FileProblem

T = TypeVar("T")

RESAMPLES = 2000
LEVEL = 0.95
LEAST_SUBJECTS = 5
"""Below it nothing clears its noise: four subjects all gain by chance once in sixteen times."""


@dataclass(frozen=True)
class Gain:
    """A paired difference of mean Dice and its interval."""

    gain: float
    low: float
    high: float
    clears: bool
    """The interval lies above 0, and there are subjects enough to say so."""


class CrossFit:
    """Folds of subjects, and fits that belong to them.

    Args:
        keys: subject/stem of every image, in the order of all tables.
        n_folds: of subjects, dealt out in turn after shuffling.
        seed: of the folds and of the bootstrap.

    Raises:
        FileProblem: one subject, or no image.
        ConfigProblem: fewer than 2 folds, or fewer subjects than folds.
    """

    def __init__(self, keys: Sequence[str], n_folds: int, seed: int) -> None:
        subjects, self.subject_of = np.unique([key.split("/")[0] for key in keys], return_inverse=True)
        self.n_subjects = len(subjects)
        if self.n_subjects < 2:
            raise FileProblem(
                "A fit is scored on other subjects than it was fitted on, so it takes two or more, but there are "
                f"{len(keys)} images and {self.n_subjects} subjects: infer more labelled images with --save_probs."
            )
        if not 2 <= n_folds <= self.n_subjects:
            raise ConfigProblem(
                f"The fit has {n_folds} folds, but with {self.n_subjects} subjects it must have 2 to "
                f"{self.n_subjects}: give another number."
            )
        self.n_folds = n_folds
        rng = np.random.default_rng(seed)
        order = rng.permutation(self.n_subjects)
        fold_of_subject = np.empty(self.n_subjects, np.int64)
        fold_of_subject[order] = np.arange(self.n_subjects) % n_folds
        self.fold_of: NDArray[np.int64] = fold_of_subject[self.subject_of]
        """Fold of every image, (images,)."""
        # How often each subject is in each resample: the same for all choices, so that their intervals compare.
        self._drawn = rng.multinomial(self.n_subjects, np.full(self.n_subjects, 1 / self.n_subjects), RESAMPLES)

    def fit(self, fit: Callable[[int, NDArray[np.int64]], T], workers: int = 1) -> tuple[T, ...]:
        """`fit(number, images)` for every fold on the images of the others, then once more on all images (the last)."""
        trains = [np.flatnonzero(self.fold_of != fold) for fold in range(self.n_folds)]
        trains.append(np.arange(len(self.fold_of)))
        with ThreadPoolExecutor(workers) as pool:
            return tuple(pool.map(fit, range(len(trains)), trains))

    def held_out(self, dice: Callable[[int, NDArray[np.int64]], NDArray[np.float64]]) -> NDArray[np.float64]:
        """Dice (images, K), each fold's images from `dice(fold, images)`, (n, K) by what was fitted for that fold."""
        parts = [np.flatnonzero(self.fold_of == fold) for fold in range(self.n_folds)]
        tables = [dice(fold, images) for fold, images in enumerate(parts)]
        return np.concatenate(tables)[np.argsort(np.concatenate(parts))]

    def gain(self, dice: NDArray[np.float64], simple: NDArray[np.float64]) -> Gain:
        """Mean difference of two tables (images, K) and its 95 % interval.

        Bootstrap over subjects, expanded percentile (Hesterberg, "What teachers should know about the bootstrap", The
        American Statistician 69, 2015): quantiles as far out as Student's t asks for with so few subjects.
        """
        n = self.n_subjects
        difference = (dice - simple).mean(1)
        sums = np.bincount(self.subject_of, difference, n)
        images = np.bincount(self.subject_of, minlength=n)
        means = (self._drawn @ sums) / (self._drawn @ images)
        tail = ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - LEVEL) / 2))
        low, high = np.quantile(means, (tail, 1 - tail)).tolist()
        return Gain(float(difference.mean()), low, high, n >= LEAST_SUBJECTS and low > 0)
