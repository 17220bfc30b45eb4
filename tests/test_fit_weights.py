from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.files import FileProblem
from inference.combined import Source, Together, common_keys, each_image, read_together
from inference.fit_weights import (
    STEPS,
    MaskDice,
    Members,
    Objective,
    SoftDice,
    collect,
    fit_best,
    fit_classes,
    fit_global,
)
from inference.metrics import count_bits, dice_from_counts
from inference.probs import ImageProbs, from_dense
from inference.thresholds import probability

EPS = 1e-4


class Store:
    """A ProbsFolder in memory."""

    def __init__(self, images: Sequence[ImageProbs], sha: str = "0" * 64) -> None:
        self._images = {image.key: image for image in images}
        self.classes, self.members = images[0].classes, (sha,)

    def keys(self) -> tuple[str, ...]:
        return tuple(sorted(self._images))

    def read(self, key: str) -> ImageProbs:
        return self._images[key]


def pack(masks: NDArray[np.bool_]) -> NDArray[np.int32]:
    """(K, H, W) -> (W32, H, W)."""
    words = np.zeros((-(-len(masks) // 32), *masks.shape[1:]), np.uint32)
    for k, mask in enumerate(masks):
        words[k // 32] |= mask.astype(np.uint32) << np.uint32(k % 32)
    return words.view(np.int32)


def image(key: str, values: NDArray[np.uint8], truth: NDArray[np.bool_] | None) -> ImageProbs:
    """Of q (K, H, W) and masks (K, H, W)."""
    classes = [f"bone{k}" for k in range(len(values))]
    bits = None if truth is None else pack(truth)
    return from_dense(key, f"{key.split('/')[1]}.png", torch.from_numpy(values), classes, bits)


def sources(values: NDArray[np.uint8], truth: NDArray[np.bool_]) -> list[Source]:
    """Stores of (M, I, K, H, W) values and (I, K, H, W) masks; two images a subject."""
    return [
        Source(f"run{m}", Store([image(f"ID{i // 2:03}/{i}", of[i], truth[i]) for i in range(len(truth))]))
        for m, of in enumerate(values)
    ]


def example(seed: int, members: int = 3, images: int = 4) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Blocks of random values, with empty borders, empty classes, and values that lie on the threshold together."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (members, images, 2, 9, 7)).astype(np.uint8)
    near = rng.random(values.shape) < 0.5
    values[near] = rng.integers(125, 131, int(near.sum()))
    values[..., :2, :] = 0
    values[rng.random(values.shape[:3]) < 0.15] = 0
    truth = rng.random((images, 2, 9, 7)) < 0.4
    truth[0, 0] = False
    return values, truth


def brute(values: NDArray[np.uint8], truth: NDArray[np.bool_], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Masks' Dice (I, K) of (M, I, K, H, W) values and (M, K) weights."""
    mask = np.einsum("mk,mikhw->ikhw", weights, values) >= 127.5 - 1e-9
    both, a, b = (x.sum((2, 3)) for x in (mask & truth, mask, truth))
    return np.asarray((2 * both + EPS) / (a + b + EPS))


def brute_soft(
    values: NDArray[np.uint8], truth: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Soft Dice of the same."""
    p = np.einsum("mk,mikhw->ikhw", weights, values / 255)
    return np.asarray((2 * (p * truth).sum((2, 3)) + EPS) / (p.sum((2, 3)) + truth.sum((2, 3)) + EPS))


def dice(objective: Objective, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    images = np.arange(objective.shape[0])
    return np.stack([objective.dice(k, weights[:, k], images) for k in range(objective.shape[1])], 1)


weightings = st.sampled_from([(1, 1, 1), (1, 1, 0), (0, 0, 1), (2, 1, 1), (1, 3, 2), (5, 3, 1)])


@given(seed=st.integers(0, 10**6), parts=st.tuples(weightings, weightings))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_disputed_pixels_and_sums_give_the_dice_of_all_pixels(seed: int, parts: tuple[Sequence[int], ...]) -> None:
    values, truth = example(seed)
    weights = np.array(parts, np.float64).T
    weights /= weights.sum(0)
    soft, hard = collect(sources(values, truth), common_keys(sources(values, truth)))
    assert np.array_equal(dice(hard, weights), brute(values, truth, weights))
    np.testing.assert_allclose(dice(soft, weights), brute_soft(values, truth, weights), atol=1e-12)


@given(seed=st.integers(0, 10**6), member=st.integers(0, 2), others=weightings)
@settings(derandomize=True, max_examples=40, deadline=None)
def test_a_line_equals_brute_force_at_every_step(seed: int, member: int, others: Sequence[int]) -> None:
    values, truth = example(seed)
    start = np.array(others, np.float64)
    start[member] = 0
    start = start / start.sum() if start.any() else np.eye(3)[(member + 1) % 3]
    soft, hard = collect(sources(values, truth), common_keys(sources(values, truth)))
    chosen = np.array([0, 3])
    for k in range(2):
        expected = []
        for step in range(STEPS + 1):
            weights = (1 - step / STEPS) * start + step / STEPS * np.eye(3)[member]
            expected.append(brute(values, truth, np.tile(weights[:, None], 2))[chosen, k].mean())
        np.testing.assert_allclose(hard.line(k, start, member, chosen), expected, atol=1e-12)
        points = np.linspace(0, 1, STEPS + 1)[::25]
        mixed = [np.tile(((1 - u) * start + u * np.eye(3)[member])[:, None], 2) for u in points]
        slow = [brute_soft(values, truth, w)[chosen, k].mean() for w in mixed]
        np.testing.assert_allclose(soft.line(k, start, member, chosen)[::25], slow, atol=1e-12)


@given(seed=st.integers(0, 10**6), parts=st.tuples(weightings, weightings))
@settings(derandomize=True, max_examples=40, deadline=None)
def test_curves_and_masks_of_combined_values_equal_brute_force(seed: int, parts: tuple[Sequence[int], ...]) -> None:
    values, truth = example(seed)
    weights = np.array(parts, np.float64).T
    weights /= weights.sum(0)
    stores = sources(values, truth)
    for i, key in enumerate(common_keys(stores)):
        together = read_together(stores, key)
        assert np.array_equal(together.true_bits(), pack(truth[i]))
        curves = together.curves([weights, np.full_like(weights, 1 / 3)])
        combined = np.einsum("mk,mkhw->khw", weights, values[:, i])
        for level in (2, 77, 128, 129, 250):  # a store drops values of 1 outside of a class's box
            mask = combined >= level - 0.5 - 1e-9
            expected = dice_from_counts(count_bits(pack(mask), pack(truth[i]), 2))
            assert np.array_equal(curves[0, :, level - 1], expected)
            assert np.array_equal(together.bits(weights, np.full(2, probability(level))), pack(mask))


def test_more_than_32_classes_and_runs_over_the_end_of_a_row() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (2, 1, 34, 5, 6)).astype(np.uint8)
    truth = rng.random((1, 34, 5, 6)) < 0.9
    together = read_together(sources(values, truth), "ID000/0")
    assert np.array_equal(together.true_bits(), pack(truth[0]))
    half = np.full((2, 34), 0.5)
    mask = values[:, 0].astype(int).sum(0) >= 255
    assert np.array_equal(together.bits(half, np.full(34, 0.5)), pack(mask))


def bones(seed: int, noises: Sequence[float], images: int = 12, classes: int = 2) -> list[Source]:
    """Discs whose outlines wander by the member's noise, px."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:24, :24]
    centre = rng.uniform(9, 15, (2, images, classes, 1, 1))
    distance = 6.5 - np.hypot(y - centre[0], x - centre[1])
    values = []
    for noise in noises:
        level = np.array(noise).reshape(-1, 1, 1)
        knots = level * rng.standard_normal((images, classes, 6, 6))
        logits = distance + np.kron(knots, np.ones((4, 4)))
        values.append(np.floor(255 / (1 + np.exp(-logits)) + 0.5).astype(np.uint8))
    return sources(np.stack(values), distance > 0)


def objectives(stores: list[Source]) -> list[Objective]:
    return list(collect(stores, common_keys(stores)))


@pytest.mark.parametrize("metric", [0, 1], ids=["soft_dice", "dice"])
def test_a_known_best_member_gets_the_weight(metric: int) -> None:
    stores = bones(0, [(1.5, 0.2), (0.2, 1.5), (1.5, 1.5)])  # run1 is best at bone0, run0 at bone1
    objective = objectives(stores)[metric]
    images, equal = np.arange(12), np.full(3, 1 / 3)
    assert fit_best(objective, images, equal).T.tolist() == [[0, 1, 0], [1, 0, 0]]
    weights = fit_classes(objective, images, equal)
    np.testing.assert_allclose(weights.sum(0), 1)
    assert (weights >= 0).all() and weights[1, 0] > 0.7 and weights[0, 1] > 0.7
    better = dice(objective, weights).mean(0)
    assert (better >= dice(objective, np.full((3, 2), 1 / 3)).mean(0)).all()


@pytest.mark.parametrize("metric", [0, 1], ids=["soft_dice", "dice"])
def test_global_weights_are_those_of_no_class_alone(metric: int) -> None:
    stores = bones(1, [0.3, 1.5, 1.5])
    objective = objectives(stores)[metric]
    weights = fit_global(objective, np.arange(12), np.full(3, 1 / 3))
    assert np.array_equal(weights[:, 0], weights[:, 1])
    assert weights[0, 0] == weights[:, 0].max() > 0.6
    # No point of a grid over the simplex is better by more than a trifle.
    best = dice(objective, weights).mean()
    for a, b in product(range(11), range(11)):
        if a + b <= 10:
            point = np.tile(np.array([a, b, 10 - a - b])[:, None] / 10, 2)
            assert dice(objective, point).mean() <= best + 5e-4


def test_weights_that_are_0_at_the_start_stay_there() -> None:
    objective = objectives(bones(2, [1.0, 0.2, 1.0]))[1]
    start = np.array([0.5, 0, 0.5])
    for fit in (fit_global, fit_classes, fit_best):
        weights = fit(objective, np.arange(12), start)
        assert (weights[1] == 0).all()
        np.testing.assert_allclose(weights.sum(0), 1)


def test_a_member_that_spoils_the_mean_is_dropped() -> None:
    objective = objectives(bones(3, [0.4, 0.4, 6.0]))[1]
    assert Members(objective).fit(np.arange(12)).tolist() == [0.5, 0.5, 0]


def test_elimination_ends_at_the_subset_that_trying_all_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = objectives(bones(4, [0.4, 6.0, 0.4, 8.0]))[1]
    everything = Members(objective).fit(np.arange(12)).tolist()
    monkeypatch.setattr("inference.fit_weights.ALL_SUBSETS", 3)
    assert Members(objective).fit(np.arange(12)).tolist() == everything == [0.5, 0, 0.5, 0]


def test_equal_members_are_all_kept_and_keep_equal_weights() -> None:
    values, truth = example(5, members=1)
    objective = objectives(sources(np.repeat(values, 3, 0), truth))[0]
    equal = np.full(3, 1 / 3)
    assert Members(objective).fit(np.arange(4)).tolist() == equal.tolist()
    assert fit_classes(objective, np.arange(4), equal).tolist() == [[1 / 3] * 2] * 3


def test_the_order_of_reading_does_not_matter() -> None:
    stores = bones(6, [0.5, 0.8])
    keys = common_keys(stores)
    order = np.random.default_rng(0).permutation(len(keys))
    weights = np.array([[0.3, 0.8], [0.7, 0.2]])
    for one, other in zip(collect(stores, keys), collect(stores, [keys[i] for i in order]), strict=True):
        assert isinstance(one, SoftDice | MaskDice)
        assert np.array_equal(dice(one, weights)[order], dice(other, weights))
    fits = [fit_classes(objective, np.arange(12), np.full(2, 0.5)) for objective in collect(stores, keys)]
    again = [fit_classes(o, np.arange(12), np.full(2, 0.5)) for o in collect(stores, [keys[i] for i in order])]
    np.testing.assert_allclose(fits, again)


def test_images_come_back_in_the_order_of_the_keys() -> None:
    stores = bones(7, [0.5])
    keys = common_keys(stores)[::-1]

    def name(image: Together) -> str:
        return image.key

    assert each_image(stores, keys, name, "test") == list(keys)


def test_stores_that_do_not_fit_together() -> None:
    values, truth = example(8)
    first, second, third = sources(values, truth)
    with pytest.raises(FileProblem, match="no stored probabilities to fit on: infer labelled"):
        common_keys([])
    fewer = Source("fewer", Store([second.store.read(key) for key in second.store.keys()[1:]]))
    with pytest.raises(FileProblem, match=r"Image ID000/0 \(1 in all\) has .* only one of run0 and fewer"):
        common_keys([first, fewer])
    other = sources(values[:, :, :1], truth[:, :1])[0]
    with pytest.raises(FileProblem, match="probabilities of run0 and run2 are of other classes"):
        common_keys([third, other])
    small = Source("small", Store([image("ID000/0", values[0, 0, :, :4], truth[0, :, :4])]))
    with pytest.raises(FileProblem, match="Image ID000/0 has 4 x 7 pixels for small and 9 x 7 for run0"):
        read_together([first, small], "ID000/0")
    blind = Source("blind", Store([image("ID000/0", values[0, 0], None)]))
    with pytest.raises(FileProblem, match="Image ID000/0 has no labels in the probabilities of blind"):
        collect([blind], ["ID000/0"])
