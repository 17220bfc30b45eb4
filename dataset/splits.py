"""Folds that keep both hands of a subject together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from config import ConfigProblem
from dataset.readers import Record


def fold_split(records: Sequence[Record], n_folds: int, fold: int, seed: int) -> tuple[list[Record], list[Record]]:
    """Training and validation records of fold `fold`: subjects are shuffled by `seed` and dealt out in turn.

    Raises:
        ConfigProblem: fewer subjects than folds.
    """
    subjects = sorted({record.subject for record in records})
    if len(subjects) < n_folds:
        raise ConfigProblem(f"n_folds is {n_folds}, but there are {len(subjects)} subjects: lower --n_folds.")
    order = np.random.default_rng(seed).permutation(len(subjects))
    held_out = {subjects[i] for i in order[fold::n_folds]}
    train = [record for record in records if record.subject not in held_out]
    val = [record for record in records if record.subject in held_out]
    check_disjoint(train, val)
    return train, val


def check_disjoint(train: Sequence[Record], val: Sequence[Record]) -> None:
    """Raise ConfigProblem where a subject is on both sides: its validation Dice would be a memory, not a test."""
    shared = {record.subject for record in train} & {record.subject for record in val}
    if shared:
        raise ConfigProblem(
            f"subjects {', '.join(sorted(shared)[:5])} ({len(shared)} in all) are in training and validation: "
            f"split by subject."
        )
