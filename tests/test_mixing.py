"""dataset/mixing.py: what comes from another image's sample brings its labels along."""

from __future__ import annotations

import numpy as np
import pytest
from drawn import STRONG, VIEWS, random_words, samples_of, texture
from numpy.typing import NDArray

from config import Range
from dataset.frame import View, fit_frame
from dataset.mixing import mix, smaller_bones
from dataset.plan import MIXERS, Effect, draw_plan

Grey = NDArray[np.uint8]
Bits = NDArray[np.int32]

SIZE = 96
REACH = 8
"""Pixels beyond which the soft edge of a pasted bone (standard deviation 2 px) is nothing."""


def boxes(places: dict[int, tuple[int, int, int]], words: int = 1) -> Bits:
    """Square bones: class -> first row, first column and side; packed (words, 96, 96)."""
    bits = np.zeros((words, SIZE, SIZE), np.uint32)
    for k, (row, column, side) in places.items():
        bits[k // 32, row : row + side, column : column + side] |= np.uint32(1) << np.uint32(k % 32)
    return bits.view(np.int32)


def shows(bits: Bits, k: int) -> NDArray[np.bool_]:
    return np.asarray((bits[k // 32] >> (k % 32)) & 1, dtype=bool)


def classes(bits: Bits) -> set[int]:
    return {k for k in range(32 * len(bits)) if shows(bits, k).any()}


def scenes() -> tuple[Grey, Bits, Grey, Bits]:
    """Picture and labels of a sample and of its donor."""
    return (
        texture(SIZE, SIZE, 0),
        random_words(2, SIZE, SIZE, 0),
        texture(SIZE, SIZE, 1),
        random_words(2, SIZE, SIZE, 1),
    )


@pytest.mark.parametrize("name", MIXERS)
def test_mixers_are_repeatable_and_leave_what_they_are_given(name: str) -> None:
    given, before = scenes(), scenes()
    effect = Effect(name, STRONG[name][1], 4)
    grey, bits = mix(*given, effect)
    assert grey.shape == (SIZE, SIZE) and grey.dtype == np.uint8
    assert bits.shape == (2, SIZE, SIZE) and bits.dtype == np.int32
    again = mix(*given, effect)
    np.testing.assert_array_equal(grey, again[0])
    np.testing.assert_array_equal(bits, again[1])
    for now, then in zip(given, before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert not np.array_equal(grey, given[0]) and not np.array_equal(bits, given[1])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_mixup_is_the_sum_and_keeps_the_labels_of_both(share: float) -> None:
    grey, bits, donor_grey, donor_bits = scenes()
    mixed, labels = mix(grey, bits, donor_grey, donor_bits, Effect("mixup", share, 0))
    expected = (1 - share) * grey.astype(float) + share * donor_grey
    assert np.abs(mixed - expected).max() <= 0.501
    np.testing.assert_array_equal(labels, bits | donor_bits)


@pytest.mark.parametrize("area", [0.0, 0.1, 0.5, 1.0])
def test_cutmix_takes_a_box_of_its_share_with_its_labels(area: float) -> None:
    grey, bits, donor_grey, donor_bits = scenes()
    places = set()
    for seed in range(30):
        mixed, labels = mix(grey, bits, donor_grey, donor_bits, Effect("cutmix", area, seed))
        taken = (labels == donor_bits).all(0)
        side = round(np.sqrt(area) * SIZE)
        rows, columns = np.flatnonzero(taken.any(1)), np.flatnonzero(taken.any(0))
        assert taken.sum() == side**2 == len(rows) * len(columns)
        assert not side or (np.ptp(rows) == np.ptp(columns) == side - 1)
        np.testing.assert_array_equal(mixed, np.where(taken, donor_grey, grey))
        np.testing.assert_array_equal(labels, np.where(taken, donor_bits, bits))
        places.add((*rows[:1], *columns[:1]))
    assert len(places) > 15 or area in (0.0, 1.0), "anywhere"


# Copy-paste


def test_smaller_bones_are_the_smaller_half() -> None:
    bits = boxes({3: (0, 0, 40), 9: (0, 48, 8), 31: (48, 0, 24), 32: (48, 48, 12), 40: (72, 72, 20)}, words=2)
    assert smaller_bones(bits).tolist() == [9, 32, 40]
    assert smaller_bones(boxes({5: (0, 0, 8)})).tolist() == [5]
    assert not len(smaller_bones(boxes({})))


def test_a_pasted_bone_lies_on_its_namesake() -> None:
    """The middles of both boxes meet; picture and labels go together, and all classes under the bone come along."""
    bits, donor_bits = boxes({2: (10, 12, 16)}), boxes({2: (60, 50, 12), 7: (66, 50, 40)})
    grey, donor_grey = texture(SIZE, SIZE, 0), texture(SIZE, SIZE, 1)
    mixed, labels = mix(grey, bits, donor_grey, donor_bits, Effect("copy_paste", 1.0, 0))
    here, there = (slice(12, 24), slice(14, 26)), (slice(60, 72), slice(50, 62))
    expected = bits.copy()
    expected[:, *here] = donor_bits[:, *there]
    np.testing.assert_array_equal(labels, expected)
    assert classes(labels) == {2, 7}
    np.testing.assert_allclose(mixed[17:19, 19:21], donor_grey[65:67, 55:57], atol=1)
    far = np.ones((SIZE, SIZE), bool)
    far[12 - REACH : 24 + REACH, 14 - REACH : 26 + REACH] = False
    np.testing.assert_array_equal(mixed[far], grey[far])


def test_a_bone_without_namesake_is_pasted_where_it_lies() -> None:
    grey, donor_grey = texture(SIZE, SIZE, 0), texture(SIZE, SIZE, 1)
    donor_bits = boxes({2: (60, 50, 12), 30: (0, 0, 40)})
    mixed, labels = mix(grey, boxes({}), donor_grey, donor_bits, Effect("copy_paste", 1.0, 0))
    np.testing.assert_array_equal(labels, boxes({2: (60, 50, 12)}))
    np.testing.assert_allclose(mixed[65:67, 55:57], donor_grey[65:67, 55:57], atol=1)


def test_a_pasted_bone_covers_what_lay_there() -> None:
    """Labels under it go; what sticks out of it stays."""
    bits, donor_bits = boxes({2: (10, 10, 20), 5: (0, 0, 40)}), boxes({2: (60, 60, 10), 9: (0, 0, 50)})
    labels = mix(texture(SIZE, SIZE), bits, texture(SIZE, SIZE), donor_bits, Effect("copy_paste", 1.0, 0))[1]
    assert (shows(labels, 2) == shows(bits, 2)).all() and shows(labels, 5).sum() == 40**2 - 10**2


def test_pasted_edges_are_soft_and_labels_sharp() -> None:
    """Half of each at the label's edge."""
    grey, donor_grey = np.full((SIZE, SIZE), 40, np.uint8), np.full((SIZE, SIZE), 200, np.uint8)
    donor_bits = boxes({2: (30, 30, 36), 3: (0, 0, 96)})
    mixed, labels = mix(grey, boxes({}), donor_grey, donor_bits, Effect("copy_paste", 1.0, 0))
    row = mixed[48].astype(int)
    assert row[30 - REACH] == 40 and row[30 + REACH] == 200 and (np.diff(row[: SIZE // 2]) >= 0).all()
    assert row[29] + row[30] == pytest.approx(240, abs=2)
    # Class 3 covers all of the donor, so it comes along under the bone.
    np.testing.assert_array_equal(labels, boxes({2: (30, 30, 36), 3: (30, 30, 36)}))


def test_a_donor_without_bones_gives_none() -> None:
    grey, bits = texture(SIZE, SIZE), random_words(1, SIZE, SIZE)
    mixed, labels = mix(grey, bits, texture(SIZE, SIZE, 1), boxes({}), Effect("copy_paste", 4.0, 0))
    np.testing.assert_array_equal(mixed, grey)
    np.testing.assert_array_equal(labels, bits)


DONOR = {k: (12 * (k // 8) * 4, 12 * (k % 8), 6 + k // 8) for k in range(16)}
"""Sixteen bones, eight of them small."""


@pytest.mark.parametrize("value", [1.0, 2.0, 3.0, 4.0])
def test_copy_paste_pastes_as_many_bones_as_its_value(value: float) -> None:
    seen = set()
    for seed in range(60):
        effect = Effect("copy_paste", value, seed)
        labels = mix(texture(SIZE, SIZE), boxes({}), texture(SIZE, SIZE, 1), boxes(DONOR), effect)[1]
        assert len(classes(labels)) == value and classes(labels) <= set(range(8)), "small ones alone"
        seen |= classes(labels)
    assert seen == set(range(8)), "each has its turn"


@pytest.mark.parametrize("low", [0, 1])
def test_every_number_of_bones_comes_about(low: int) -> None:
    """From the lowest to the highest value, both included."""
    frame = fit_frame(View.whole((SIZE, SIZE)), SIZE, SIZE)
    augment = samples_of({"copy_paste": (low, 4, 1.0)}).cfg.augment
    plans = [draw_plan(np.random.default_rng(seed), frame, SIZE, augment) for seed in range(200)]
    assert {pasted(plan.effects[0]) for plan in plans} == set(range(low, 5))


def test_a_value_between_two_numbers_is_either() -> None:
    """2.3 is three with probability 0.3."""
    counts = [pasted(Effect("copy_paste", 2.3, seed)) for seed in range(400)]
    assert set(counts) == {2, 3} and 80 < counts.count(3) < 160, "four standard deviations around 120"


def pasted(effect: Effect) -> int:
    """How many bones an effect pastes onto an empty window."""
    grey = np.zeros((SIZE, SIZE), np.uint8)
    return len(classes(mix(grey, boxes({}), grey, boxes(DONOR), effect)[1]))


# From donor to sample


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_labels_of_both_images_are_in_the_sample(name: str) -> None:
    """In every sample: the donor is another image where there is one."""
    plain, mixed = samples_of({}, VIEWS), samples_of({name: STRONG[name]}, VIEWS)
    for key in ((epoch, index, 0) for epoch in range(4) for index in range(3)):
        before, after = plain.sample(key), mixed.sample(key)
        assert after.key == before.key
        assert not np.array_equal(before.bits, after.bits) and not np.array_equal(before.grey, after.grey)


def test_an_image_alone_is_its_own_donor() -> None:
    samples = samples_of({"mixup": (0.5, 0.5, 1.0)}, VIEWS[:1])
    plain = samples_of({}, VIEWS[:1]).sample((0, 0, 0))
    np.testing.assert_array_equal(samples.sample((0, 0, 0)).bits, plain.bits)


def test_donors_are_augmented_and_take_from_nobody() -> None:
    """Else two images could hand their donors back and forth for ever."""
    turned: dict[str, Range] = {"mixup": (1.0, 1.0, 1.0), "hflip": (1, 1, 1.0)}
    mixed = samples_of(turned, VIEWS[:1]).sample((0, 0, 0))
    flipped = samples_of({"hflip": (1, 1, 1.0)}, VIEWS[:1]).sample((0, 0, 0))
    np.testing.assert_array_equal(mixed.grey, flipped.grey)


@pytest.mark.parametrize(("kept", "other"), [("mixup", "copy_paste"), ("cutmix", "copy_paste"), ("cutmix", "mixup")])
def test_turning_one_mixer_off_leaves_the_others_their_donors(kept: str, other: str) -> None:
    """With 1, mixup and cutmix give the whole donor; with 0 no mixer changes the picture."""
    views = [View.whole((64, 64))] * 12
    alone: dict[str, Range] = {kept: (1.0, 1.0, 1.0)}
    a, b = (samples_of(ranges, views, 64, 64) for ranges in (alone, {**alone, other: (0.0, 0.0, 1.0)}))
    for epoch in range(4):
        np.testing.assert_array_equal(a.sample((epoch, 0, 0)).grey, b.sample((epoch, 0, 0)).grey)
