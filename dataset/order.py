"""In which order samples come, and which of them each rank makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int, int]
"""Epoch, record, window: all that a sample depends on."""


@dataclass(frozen=True)
class Shard:
    """One of several processes that share the work."""

    rank: int = 0
    ranks: int = 1

    def padded(self, n: int) -> list[tuple[int, bool]]:
        """This rank's part of `n` images, for validation: (index, whether it counts).

        All ranks get equally many, so that none waits in vain for another; what pads the last round doesn't count. So
        every image counts exactly once.
        """
        rounds = -(-n // self.ranks)
        mine = range(self.rank, rounds * self.ranks, self.ranks)
        return [(i % n, i < n) for i in mine]


ALONE = Shard()
"""The one process of a run that is not shared."""


class Order(Sampler[list[Key]]):
    """Batches of keys: a permutation of all samples by (seed, epoch), from a given step on.

    Every step takes `batch_size` samples for each rank from the permutation; what is left at its end is dropped. So all
    ranks have equally many steps, and two ranks see what one with twice the batch would.
    """

    def __init__(self, n_records: int, windows: int, batch_size: int, seed: int, shard: Shard = ALONE) -> None:
        self.samples = [(i, w) for i in range(n_records) for w in range(windows)]
        self.batch_size = batch_size
        self.seed = seed
        self.shard = shard
        self.epoch = self.first_step = 0

    def __len__(self) -> int:
        return len(self.samples) // (self.batch_size * self.shard.ranks)

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.samples))
        for step in range(self.first_step, len(self)):
            first = (step * self.shard.ranks + self.shard.rank) * self.batch_size
            yield [(self.epoch, *self.samples[i]) for i in order[first : first + self.batch_size]]
