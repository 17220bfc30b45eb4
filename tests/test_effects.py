"""dataset/effects.py: what each effect does, and that image and labels stay together under every augmentation."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from drawn import STRONG, VIEWS, dice, offset, random_words, samples_of, texture
from numpy.typing import NDArray

from config import Range
from dataset.effects import DISTORTION, FILTER, apply_effects
from dataset.frame import View
from dataset.order import Key
from dataset.plan import DISTORTIONS, FILTERS, Effect
from dataset.samples import DONOR, Sample, Samples
from dataset.warp import warp_image
from engine.settings import AUGMENTATIONS

Grey = NDArray[np.uint8]

NOTHING_AT: dict[str, float] = {
    "retinex": 0,
    "edges": 0,
    "sharpen": 0,
    "low_resolution": 1,
    "blur": 0,
    "motion_blur": 1,
    "noise": 0,
    "elastic": 0,
    "grid_distortion": 0,
}
"""Values at which an effect does nothing."""


def effect(name: str, grey: Grey, value: float, seed: int = 0) -> Grey:
    """One effect on a window without labels."""
    return apply_effects(grey, np.zeros((1, *grey.shape), np.int32), (Effect(name, value, seed),))[0]


def make(samples: Samples, key: Key) -> Sample:
    sample = samples.sample(key)
    assert sample.grey.shape == (samples.side,) * 2 and sample.grey.dtype == np.uint8
    assert sample.bits.shape == (1, *sample.grey.shape) and sample.bits.dtype == np.int32
    return sample


# All augmentations, from the file to the sample


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_image_and_labels_stay_together(name: str) -> None:
    """The scenes are drawn from their labels: wherever the label has a bone the picture is brighter, and nowhere else.

    Of whole, cropped and mirrored views. Where bones are cut off, labels of whole pixels scatter by half a pixel, on
    average they don't.
    """
    views = VIEWS[:1] if name == "edges" else VIEWS  # the edge of the file is an edge too
    # A bone that one of two images has shows by half.
    ranges: dict[str, Range] = {name: (0.5, 0.5, 1.0) if name == "mixup" else STRONG[name]}
    samples, offsets = samples_of(ranges, views), []
    for key in ((epoch, index, 0) for epoch in range(4) for index in range(len(views))):
        sample = make(samples, key)
        truth = sample.bits[0] != 0
        level = (np.median(sample.grey[truth]) + np.median(sample.grey[~truth])) / 2
        level = 95 if name == "mixup" else level
        shown = (cv2.medianBlur(sample.grey, 3) if name == "noise" else sample.grey) > level
        seen = clear(name, sample)
        assert truth.mean() > 0.05
        assert dice(shown & seen, truth & seen) > 0.95
        offsets.append(offset(shown & seen, truth & seen))
    assert np.abs(offsets).max() < 0.6 and np.abs(np.mean(offsets, 0)).max() < 0.15


def clear(name: str, sample: Sample) -> NDArray[np.bool_]:
    """Where the picture can be compared with the label."""
    if name == "coarse_dropout":
        return np.asarray(sample.grey > 0)
    if name == "edges":  # its bright rims lie on both sides
        rims = cv2.morphologyEx((sample.bits[0] != 0).astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((5, 5)))
        return np.asarray(rims == 0)
    return np.ones_like(sample.grey, dtype=bool)


@pytest.mark.parametrize("mode", ["random", "grid", "balanced"])
def test_image_and_labels_stay_together_with_everything_at_once(mode: str) -> None:
    """As far as noise, black boxes and the like leave anything to see."""
    quiet = {name: values for name, values in STRONG.items() if name not in ("noise", "coarse_dropout", "mixup")}
    samples = samples_of(quiet, side=96, mode=mode)
    for key in ((0, index, window) for index in range(3) for window in range(3)):
        sample = make(samples, key)
        truth = sample.bits[0] != 0
        if truth.mean() > 0.05:
            inner = cv2.erode(truth.astype(np.uint8), np.ones((5, 5))) > 0
            outer = cv2.dilate(truth.astype(np.uint8), np.ones((9, 9))) == 0
            assert sample.grey[inner].mean() > sample.grey[outer].mean() + 15


@pytest.mark.parametrize("name", [*DISTORTIONS, *FILTERS])
def test_filters_leave_labels_alone_and_distortions_move_both(name: str) -> None:
    plain, changed = (make(samples_of(ranges), (1, 2, 0)) for ranges in ({}, {name: STRONG[name]}))
    assert not np.array_equal(plain.grey, changed.grey)
    assert np.array_equal(plain.bits, changed.bits) == (name in FILTERS)


def test_without_augmentation_a_sample_is_the_warped_file() -> None:
    """All at once turned off: bit for bit; the same where ranges are wide but probabilities 0."""
    never: dict[str, Range] = {name: (low, high, 0.0) for name, (low, high, _) in STRONG.items()}
    views = [View.whole((160, 160)), View((160, 160), 0, 0, 160, 160, True)]
    off, wide = samples_of({}, views), samples_of(never, views)
    for index in (0, 1):
        a, b = make(off, (0, index, 0)), make(wide, (0, index, 0))
        image = off.source.load(index)[1]
        np.testing.assert_array_equal(a.grey, image[:, :: -1 if index else 1])
        np.testing.assert_array_equal(a.grey, b.grey)
        np.testing.assert_array_equal(a.bits, b.bits)
        np.testing.assert_array_equal(a.grey == 200, a.bits[0] != 0)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_samples_are_repeatable_and_differ_from_epoch_to_epoch(name: str) -> None:
    samples, again = samples_of({name: STRONG[name]}), samples_of({name: STRONG[name]})
    a, b = make(samples, (0, 1, 0)), make(again, (0, 1, 0))
    np.testing.assert_array_equal(a.grey, b.grey)
    np.testing.assert_array_equal(a.bits, b.bits)
    if name not in ("hflip", "vflip"):
        assert any(not np.array_equal(make(samples, (epoch, 1, 0)).grey, a.grey) for epoch in (1, 2, 3))


def test_turning_the_others_off_leaves_a_filters_result() -> None:
    """Filters come in their order, each by its own seed: one that is left gives what it gives alone."""
    both, alone = samples_of({"noise": STRONG["noise"], "blur": STRONG["blur"]}), samples_of({"noise": STRONG["noise"]})
    key = (0, 0, 0)
    frame, image = both.source.load(0)
    plans = [samples.plan(key, frame) for samples in (both, alone)]
    assert [e.name for e in plans[0].effects] == ["blur", "noise"] and plans[0].effects[1:] == plans[1].effects
    blurred = effect("blur", warp_image(image, plans[0], frame), plans[0].effects[0].value)
    expected = apply_effects(blurred, np.zeros((1, 160, 160), np.int32), plans[1].effects)[0]
    np.testing.assert_array_equal(make(both, key).grey, expected)


# Every effect by itself


def test_every_effect_has_its_function() -> None:
    assert tuple(FILTER) == FILTERS and tuple(DISTORTION) == DISTORTIONS


@pytest.mark.parametrize("name", [*DISTORTIONS, *FILTERS])
@pytest.mark.parametrize("size", [96, 131])
def test_values_and_seeds(name: str, size: int) -> None:
    """Repeatable, stronger or weaker by the value, and the input stays as it was."""
    grey, before = texture(size, size), texture(size, size)
    low, high, _ = STRONG[name]
    weak, strong = effect(name, grey, low), effect(name, grey, high)
    assert strong.shape == grey.shape and strong.dtype == np.uint8
    np.testing.assert_array_equal(grey, before)
    np.testing.assert_array_equal(strong, effect(name, grey, high))
    assert not np.array_equal(weak, strong) and not np.array_equal(strong, grey)
    drawn = [effect(name, grey, high, seed).tobytes() for seed in range(4)]
    random = name in ("elastic", "grid_distortion", "motion_blur", "noise", "coarse_dropout")
    assert len(set(drawn)) == (4 if random else 1)


@pytest.mark.parametrize("name", NOTHING_AT)
def test_values_that_do_nothing(name: str) -> None:
    grey, bits = texture(64, 64), random_words(2, 64, 64)
    out = apply_effects(grey, bits, (Effect(name, NOTHING_AT[name], 1),))
    assert np.abs(out[0].astype(int) - grey).max() <= (name == "noise")
    np.testing.assert_array_equal(out[1], bits)


@pytest.mark.parametrize("name", ["sharpen", "edges", "blur", "motion_blur", "retinex"])
def test_filters_do_not_shift_the_picture(name: str) -> None:
    """Turned by half a turn before or after: a shift would go the other way."""
    grey, value = texture(64, 64), STRONG[name][1]
    for seed in range(4):
        after = effect(name, grey, value, seed)[::-1, ::-1]
        before = effect(name, np.ascontiguousarray(grey[::-1, ::-1]), value, seed)
        assert np.abs(after.astype(int) - before).mean() < 2.5


@pytest.mark.parametrize("share", [0.3, 0.4, 0.55, 0.77])
@pytest.mark.parametrize("size", [96, 127, 160])
def test_low_resolution_does_not_shift_the_picture(size: int, share: float) -> None:
    """Nor stretch it: a bar near either end stays where it is."""
    for start in (8, size - 24):
        grey = np.zeros((size, size), np.uint8)
        grey[:, start : start + 16] = 200
        row = effect("low_resolution", grey, share)[size // 2].astype(float)
        assert abs((row * np.arange(size)).sum() / row.sum() - (start + 7.5)) < 0.2


# Distortions


@pytest.mark.parametrize("name", DISTORTIONS)
def test_distortions_copy_words_as_they_are(name: str) -> None:
    """Any bits, also those that would be NaN as floats: nothing is blended or changed."""
    bits = random_words(2, 64, 64)
    moved = apply_effects(texture(64, 64), bits, (Effect(name, STRONG[name][1], 3),))[1]
    assert moved.dtype == np.int32 and not np.array_equal(moved, bits)
    for word in (0, 1):
        assert np.isin(moved[word], bits[word]).all()


def field(name: str, size: int, value: float, seed: int) -> NDArray[np.float64]:
    """Displacements of a distortion, (2, size, size), x and y, px."""
    columns, rows = DISTORTION[name](size, value, np.random.default_rng(seed))
    y, x = np.mgrid[:size, :size]
    return np.stack([columns - x, rows - y]).astype(np.float64)


@pytest.mark.parametrize("strength", [0.005, 0.02])
@pytest.mark.parametrize("size", [128, 200])
def test_elastic_strength_is_its_rms_displacement(size: int, strength: float) -> None:
    for seed in range(4):
        moves = field("elastic", size, strength, seed)
        rms = np.sqrt((moves**2).sum(0).mean()) / size
        assert rms == pytest.approx(strength, rel=0.05)
        assert np.diff(moves[0], axis=1).min() > -1 and np.diff(moves[1], axis=0).min() > -1, "no folds"


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.45])
def test_grid_distortion_moves_lines_by_its_share_of_a_cell_at_most(strength: float) -> None:
    size = 100
    moves = np.array([field("grid_distortion", size, strength, seed) for seed in range(60)])
    assert np.ptp(moves[:, 0], axis=1).max() == 0 and np.ptp(moves[:, 1], axis=2).max() == 0, "straight lines"
    largest = np.abs(moves).max() / (size / 5)
    assert 0.9 * strength < largest <= strength + 1e-5
    assert (np.diff(moves[:, 0]) > -1).all(), "no folds"


# Filters


def test_clahe_is_opencvs() -> None:
    grey = texture(64, 64)
    expected = cv2.createCLAHE(3.0, (8, 8)).apply(grey)
    np.testing.assert_array_equal(effect("clahe", grey, 3.0), expected)


def test_edges_are_the_sobel_gradients_magnitude() -> None:
    grey = texture(64, 64) // 4
    x, y = (cv2.Sobel(grey.astype(np.float64), cv2.CV_64F, *axis) for axis in ((1, 0), (0, 1)))
    expected = np.minimum(np.hypot(x, y), 255)
    assert np.abs(effect("edges", grey, 1.0) - expected).max() <= 1
    assert np.abs(effect("edges", grey, 0.3) - (0.7 * grey + 0.3 * expected)).max() <= 1
    assert not effect("edges", np.full((64, 64), 90, np.uint8), 1.0).any(), "flat"


def test_retinex_evens_out_the_light() -> None:
    """A picture under light that falls off to one side."""
    details = 40 * (np.indices((96, 96)).sum(0) // 6 % 2)
    light = np.linspace(0.3, 1.0, 96)
    lit = ((100 + details) * light).astype(np.uint8)

    def slope(grey: Grey) -> float:
        return float((grey[:, -32:].mean() - grey[:, :32].mean()) / grey.std())

    assert slope(effect("retinex", lit, 1.0)) < 0.4 * slope(lit)
    mixed = effect("retinex", lit, 0.25).astype(float)
    assert np.abs(mixed - (0.75 * lit + 0.25 * effect("retinex", lit, 1.0))).max() <= 1


def test_sharpen_is_the_sum_with_an_unsharp_mask() -> None:
    grey = texture(64, 64).astype(np.float64)
    sharp = 2 * grey - cv2.GaussianBlur(grey, (5, 5), 1.0)
    for share in (0.2, 1.0):
        expected = ((1 - share) * grey + share * sharp).clip(0, 255)
        assert np.abs(effect("sharpen", grey.astype(np.uint8), share) - expected).max() <= 0.51


def test_sharpen_does_not_wrap_around() -> None:
    step = np.zeros((32, 32), np.uint8)
    step[:, 16:] = 250
    row = effect("sharpen", step, 1.0)[16]
    assert row[15] == 0 and row[16] == 255


def test_low_resolution_leaves_what_its_pixels_hold() -> None:
    checker = (np.indices((64, 64)).sum(0) % 2 * 200).astype(np.uint8)
    assert np.abs(effect("low_resolution", checker, 0.5).astype(int) - 100).max() <= 1
    wide = np.repeat(np.repeat(checker[:4, :4], 16, 0), 16, 1)
    assert np.abs(effect("low_resolution", wide, 0.5)[4:12, 4:12].astype(int) - wide[8, 8]).max() == 0


@pytest.mark.parametrize("sigma", [1.0, 1.7, 2.5, 4.0])
def test_blur_has_its_standard_deviation(sigma: float) -> None:
    step = np.zeros((65, 65), np.uint8)
    step[:, 33:] = 250
    profile = np.diff(effect("blur", step, sigma)[32].astype(float))
    at = np.arange(64) + 0.5
    middle = (profile * at).sum() / profile.sum()
    assert middle == pytest.approx(32.5, abs=0.02)
    assert np.sqrt((profile * (at - middle) ** 2).sum() / profile.sum()) == pytest.approx(sigma, rel=0.03)


@pytest.mark.parametrize("length", [3, 5, 11, 21])
def test_motion_blur_is_a_line_of_its_length_around_the_pixel(length: int) -> None:
    point = np.zeros((65, 65), np.uint8)
    point[32, 32] = 255
    extents, angles = [], []
    for seed in range(40):
        line = effect("motion_blur", point, length, seed)
        places = np.argwhere(line) - 32
        np.testing.assert_array_equal(places.sum(0), 0)
        assert abs(int(line.sum()) - 255) <= length, "the sum of the light stays, but for rounding"
        extents.append(np.hypot(*np.ptp(places, axis=0)) + 1)
        angles.append(np.rad2deg(np.arctan2(*places[-1])) % 180)
    assert max(extents) <= length + 1.5 and min(extents) >= length - 1.5
    assert len(np.unique(np.array(angles) // 45)) == 4, "every direction"
    np.testing.assert_array_equal(effect("motion_blur", point, 2.9), effect("motion_blur", point, 3.9))


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1])
def test_noise_has_its_standard_deviation(sigma: float) -> None:
    """Grey values run from 0 to 1; it adds nothing on average."""
    flat = np.full((128, 128), 128, np.uint8)
    for seed in range(4):
        grain = effect("noise", flat, sigma, seed).astype(float) / 255
        spread = np.hypot(sigma, 12**-0.5 / 255)
        assert grain.std() == pytest.approx(spread, rel=0.04)
        assert abs(grain.mean() - 128 / 255) < 5 * sigma / 128
        assert abs(np.corrcoef(grain[:, 1:].ravel(), grain[:, :-1].ravel())[0, 1]) < 0.05
    dark = effect("noise", np.zeros((64, 64), np.uint8), sigma)
    assert (dark == 0).mean() > 0.4 and dark.max() < 8 * 255 * sigma, "clipped, not wrapped around"


@pytest.mark.parametrize("share", [0.05, 0.15, 1.0])
def test_coarse_dropout_blacks_out_up_to_eight_boxes_of_its_side(share: float) -> None:
    size, side = 64, round(share * 64)
    white, areas = np.full((size, size), 255, np.uint8), []
    for seed in range(60):
        out = effect("coarse_dropout", white, share, seed)
        assert set(np.unique(out)) <= {0, 255}
        holes = (out == 0).astype(np.uint8)
        # Whatever is black lies in a whole black box: opening, by corners as boxes of even sides have no middle.
        box = np.ones((side, side), np.uint8)
        corners = cv2.erode(np.pad(holes, side), box, anchor=(0, 0))
        whole = cv2.dilate(corners, box, anchor=(side - 1, side - 1))[side:-side, side:-side]
        np.testing.assert_array_equal(whole, holes)
        areas.append(int(holes.sum()))
    assert min(areas) == side**2 and max(areas) <= 8 * side**2
    if share < 0.1:
        assert max(areas) == 8 * side**2, "eight boxes apart"


def test_donors_have_random_numbers_of_their_own() -> None:
    """A donor is another sample of its image than any of the epoch."""
    samples = samples_of({"rotate": (-45, 45, 1)})
    frame, _ = samples.source.load(0)
    own, donor = samples.plan((0, 0, 0), frame), samples.plan((0, 0, DONOR), frame)
    assert not np.array_equal(own.matrix, donor.matrix)
