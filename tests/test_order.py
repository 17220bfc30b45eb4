"""dataset/order.py: which samples come when, and which rank makes them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.order import ALONE, Key, Order, Shard

FEW = settings(derandomize=True, max_examples=60, deadline=None)


def steps(order: Order, epoch: int = 0, first_step: int = 0) -> list[list[Key]]:
    order.epoch, order.first_step = epoch, first_step
    return list(order)


def flat(batches: list[list[Key]]) -> list[Key]:
    return [key for batch in batches for key in batch]


@FEW
@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 7), st.integers(1, 4), st.integers(0, 2**63 - 1))
def test_ranks_share_what_one_process_would_do(n: int, windows: int, batch: int, ranks: int, seed: int) -> None:
    """Equally many steps; the samples of a step are those of one rank with as many times the batch, in its order."""
    together = steps(Order(n, windows, batch * ranks, seed), epoch=3)
    shares = [steps(Order(n, windows, batch, seed, Shard(rank, ranks)), epoch=3) for rank in range(ranks)]
    assert {len(share) for share in shares} == {len(together)} == {n * windows // (batch * ranks)}
    for whole, *parts in zip(together, *shares, strict=True):
        assert all(len(part) == batch for part in parts) and flat(parts) == whole


@FEW
@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**32))
def test_an_epoch_has_every_sample_at_most_once(n: int, windows: int, batch: int, seed: int) -> None:
    """What is left at its end is dropped, fewer than a batch."""
    order = Order(n, windows, batch, seed)
    keys = flat(steps(order, epoch=7))
    assert len(order) == n * windows // batch and len(keys) == len(order) * batch
    assert len(set(keys)) == len(keys) and n * windows - len(keys) < batch
    assert set(keys) <= {(7, i, w) for i in range(n) for w in range(windows)}


def test_an_epoch_without_a_rest_is_complete() -> None:
    assert sorted(flat(steps(Order(6, 4, 8, 0), epoch=2))) == [(2, i, w) for i in range(6) for w in range(4)]


@pytest.mark.parametrize("shard", [ALONE, Shard(1, 3)])
def test_resuming_goes_on_where_the_epoch_was(shard: Shard) -> None:
    whole = steps(Order(20, 2, 3, 5, shard), epoch=4)
    for first in range(len(whole) + 1):
        assert steps(Order(20, 2, 3, 5, shard), epoch=4, first_step=first) == whole[first:]


def test_seed_and_epoch_matter() -> None:
    def places(seed: int, epoch: int) -> list[tuple[int, int]]:
        return [key[1:] for key in flat(steps(Order(20, 2, 4, seed), epoch))]

    assert places(1, 0) == places(1, 0)
    assert len({tuple(places(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6
    assert places(0, 0) != sorted(places(0, 0)), "shuffled"


def test_a_batch_that_is_larger_than_an_epoch_gives_no_step() -> None:
    assert len(Order(3, 1, 4, 0)) == 0 and steps(Order(3, 1, 4, 0)) == []
    assert len(Order(5, 1, 2, 0, Shard(0, 3))) == 0


@FEW
@given(st.integers(0, 40), st.integers(1, 9))
def test_validation_counts_every_image_once(n: int, ranks: int) -> None:
    shares = [Shard(rank, ranks).padded(n) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1, "no rank waits for another"
    assert sorted(i for share in shares for i, counts in share if counts) == list(range(n))
    rounds = -(-n // ranks)
    assert len(shares[0]) == rounds and all(0 <= i < n for share in shares for i, _ in share)
    assert ALONE.padded(n) == [(i, True) for i in range(n)]
