"""dataset/warp.py: images and labels go the same way, and labels by one formula, bit for bit."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from drawn import STRONG, dice, disc, offset, only, polygons, random_words, texture
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from config import HAND_BONES, Range
from dataset.frame import Frame, View, compose, fit_frame, fit_image, reduce_image
from dataset.labels import rasterise
from dataset.plan import Plan, Tone, draw_plan
from dataset.warp import label_region, label_steps, warp_bits, warp_image

FEW = settings(derandomize=True, max_examples=60, deadline=None)

GEOMETRY = {name: STRONG[name] for name in ("shift", "scale", "rotate", "shear", "resized_crop", "hflip", "vflip")}


def plan_of(seed: int, frame: Frame, size: int, **ranges: Range) -> Plan:
    return draw_plan(np.random.default_rng(seed), frame, size, only(ranges))


def warp_labels(bits: NDArray[np.int32], plan: Plan, frame: Frame) -> NDArray[np.int32]:
    """Labels of the whole file, warped."""
    return warp_bits(bits, (0, frame.view.file[0], 0, frame.view.file[1]), label_steps(plan, frame))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Plan, Frame]:
    """Any plan of geometry on any view of any file."""
    file = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    top, left = draw(st.integers(0, file[0] - 1)), draw(st.integers(0, file[1] - 1))
    height, width = draw(st.integers(1, file[0] - top)), draw(st.integers(1, file[1] - left))
    view = View(file, top, left, height, width, draw(st.booleans()))
    size = draw(st.sampled_from([32, 45]))
    frame = fit_frame(view, draw(st.sampled_from([32, 64, 100])), size)
    chosen = draw(st.sampled_from([{}, GEOMETRY]))
    return plan_of(draw(st.integers(0, 2**32)), frame, size, **chosen), frame


# Without augmentation


@pytest.mark.parametrize("size", [32, 65, 128])
def test_identity_gives_back_the_image_and_the_labels(size: int) -> None:
    image, bits = texture(size, size), random_words(2, size, size)
    frame = fit_frame(View.whole(image.shape), size, size)
    plan = plan_of(3, frame, size)
    np.testing.assert_array_equal(warp_image(image, plan, frame), image)
    np.testing.assert_array_equal(warp_labels(bits, plan, frame), bits)


def test_identity_of_a_padded_image() -> None:
    image, bits = texture(64, 40), random_words(1, 64, 40)
    frame = fit_frame(View.whole(image.shape), 64, 64)
    plan = plan_of(0, frame, 64)
    np.testing.assert_array_equal(warp_image(image, plan, frame)[:, 12:52], image)
    warped = warp_labels(bits, plan, frame)
    np.testing.assert_array_equal(warped[:, :, 12:52], bits)
    assert not warped[:, :, :12].any() and not warped[:, :, 52:].any()


def test_a_whole_place_cuts_the_window_out() -> None:
    """Without augmentation a window at whole pixels is a crop, bit for bit; of a mirrored view a mirrored one."""
    image, bits = texture(90, 70), random_words(1, 90, 70)
    plan = Plan(np.array([[1.0, 0, 17], [0, 1.0, 41]]), 32)
    for mirrored in (False, True):
        frame = fit_frame(View((90, 70), 0, 0, 90, 70, mirrored), 90, 32)
        seen, labels = (image[:, ::-1], bits[..., ::-1]) if mirrored else (image, bits)
        np.testing.assert_array_equal(warp_image(image, plan, frame), seen[41:73, 17:49])
        np.testing.assert_array_equal(warp_labels(bits, plan, frame), labels[:, 41:73, 17:49])


@pytest.mark.parametrize("image_size", [50, 70, 120, 200])
@pytest.mark.parametrize("mirrored", [False, True])
def test_training_windows_are_cut_from_the_frame_that_inference_sees(image_size: int, mirrored: bool) -> None:
    view = View((160, 150), 10, 6, 140, 120, mirrored)
    frame = fit_frame(view, image_size, 40)
    stored = reduce_image(texture(160, 150), frame.reduction)
    framed = fit_image(stored, frame).astype(int)
    for seed in range(4):
        plan = plan_of(seed, frame, 40)
        x, y = plan.matrix[:, 2].astype(int)
        off = np.abs(warp_image(stored, plan, frame) - framed[y : y + 40, x : x + 40])
        assert off.max() <= 255 / 32 + 1 and off.mean() < 0.3, "OpenCV counts places in steps of 1/32 px"


# Image and labels together

SHAPES = [(200, 200), (260, 150), (120, 300), (512, 400)]
ONE_BY_ONE: dict[str, dict[str, Range]] = {
    "still": {},
    "rotate": {"rotate": (-180, 180, 1)},
    "scale": {"scale": (-0.5, 0.5, 1)},
    "shift": {"shift": (-0.2, 0.2, 1)},
    "shear": {"shear": (-30, 30, 1)},
    "resized_crop": {"resized_crop": (0.4, 1, 1)},
    "hflip": {"hflip": (1, 1, 1)},
    "vflip": {"vflip": (1, 1, 1)},
    "all": GEOMETRY,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [0, 96])
@pytest.mark.parametrize("augmentation", ONE_BY_ONE)
def test_image_and_labels_stay_together(shape: tuple[int, int], window: int, augmentation: str) -> None:
    """A disc as image and as label, warped both: they cover each other. Whole, cropped and mirrored views."""
    height, width = shape
    mask = disc(height, width, 0.3 * min(shape))
    bits = np.stack([np.zeros(shape, np.int32), np.where(mask, np.int32(-(2**31)), 0).astype(np.int32)])
    size, seen = window or 160, 0
    part = View(shape, height // 9, width // 11, height - height // 5, width - width // 4, True)
    for view in (View.whole(shape), part):
        frame = fit_frame(view, 160, size)
        stored = reduce_image(mask.astype(np.uint8) * 255, frame.reduction)
        for seed in range(4):
            plan = plan_of(seed, frame, size, **ONE_BY_ONE[augmentation])
            grey, label = warp_image(stored, plan, frame), warp_labels(bits, plan, frame)
            assert grey.shape == (size, size) and label.shape == (2, size, size)
            assert set(np.unique(label[1])) <= {0, -(2**31)} and not label[0].any()
            shown, truth = grey > 127, label[1] != 0
            if truth.sum() > 600:
                assert dice(shown, truth) > 0.97
                assert np.abs(offset(shown, truth)).max() < 0.35, "half a pixel off would be 0.5"
                seen += 1
    assert seen >= 2


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_labels_follow_reduced_images(factor: int) -> None:
    """A quarter of a pixel at most: corners for centres would be off by half a stored pixel."""
    shape = (64 * factor, 64 * factor)
    mask = disc(*shape, 20.0 * factor)
    frame = fit_frame(View.whole(shape), 64, 64)
    stored = reduce_image(mask.astype(np.uint8) * 255, frame.reduction)
    assert frame.reduction == factor and stored.shape == (64, 64)
    for seed in range(6):
        plan = plan_of(seed, frame, 64, rotate=(-180, 180, 1), shift=(-0.1, 0.1, 1))
        shown = warp_image(stored, plan, frame) > 127
        truth = warp_labels(mask[None].astype(np.int32), plan, frame)[0] != 0
        assert np.abs(offset(shown, truth)).max() < 0.25


def test_labels_are_warped_from_full_size() -> None:
    """A bone two pixels wide at full size: shrunk labels would lose it or double it."""
    image = np.zeros((400, 400), np.uint8)
    cv2.line(image, (20, 20), (380, 300), 255, 2)
    bits = (image > 0).astype(np.int32)[None]
    frame = fit_frame(View.whole(image.shape), 100, 100)
    warped = warp_labels(bits, plan_of(0, frame, 100), frame)
    rows, columns = np.mgrid[:100, :100]
    # Output pixel centres fall between four source pixels at (4 k + 1.5); halves go upwards.
    np.testing.assert_array_equal(warped[0], bits[0, 4 * rows + 2, 4 * columns + 2])


# The formula


def by_hand(bits: NDArray[np.int32], plan: Plan, frame: Frame) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Nearest neighbour in fixed point, one pixel after the other; and where plain rounding must give the same."""
    matrix = compose(frame.to_file(), plan.matrix)
    out, sure = np.zeros((len(bits), plan.size, plan.size), np.int32), np.zeros((plan.size, plan.size), bool)
    height, width = bits.shape[1:]
    for i in range(plan.size):
        for j in range(plan.size):
            source = []
            for axis in (0, 1):
                across = round(matrix[axis, 0] * j * 2**14)
                down = round((matrix[axis, 1] * i + matrix[axis, 2] + 0.5) * 2**14)
                source.append((across + down) // 2**14)
            exact = matrix @ (j, i, 1) + 0.5
            sure[i, j] = (np.abs(exact - np.rint(exact)) > 2**-13).all()
            assert not sure[i, j] or tuple(source) == tuple(np.floor(exact))
            if 0 <= source[0] < width and 0 <= source[1] < height:
                out[:, i, j] = bits[:, source[1], source[0]]
    return out, sure


@settings(FEW, max_examples=25)
@given(cases())
def test_labels_follow_their_formula_bit_for_bit(case: tuple[Plan, Frame]) -> None:
    plan, frame = case
    bits = random_words(2, *frame.view.file)
    expected, _ = by_hand(bits, plan, frame)
    np.testing.assert_array_equal(warp_labels(bits, plan, frame), expected)


def test_the_formula_is_nearest_neighbour() -> None:
    frame = fit_frame(View((90, 70), 3, 5, 80, 60, True), 64, 48)
    plan = plan_of(1, frame, 48, **GEOMETRY)
    assert by_hand(random_words(1, 90, 70), plan, frame)[1].mean() > 0.99, "all but a few pixels lie off the ties"


@FEW
@given(cases())
def test_a_region_gives_what_the_full_canvas_gives(case: tuple[Plan, Frame]) -> None:
    plan, frame = case
    height, width = frame.view.file
    bits, steps = random_words(1, height, width), label_steps(plan, frame)
    top, bottom, left, right = region = label_region(steps, height, width)
    assert min(top, left) >= 0 and bottom <= height and right <= width
    part = np.ascontiguousarray(bits[:, top : max(bottom, top), left : max(right, left)])
    np.testing.assert_array_equal(warp_bits(part, region, steps), warp_bits(bits, (0, height, 0, width), steps))


@pytest.mark.parametrize("seed", range(6))
def test_a_rasterised_region_is_cut_from_the_full_raster(seed: int) -> None:
    shapes = polygons(120, 90, seed)
    full = rasterise(shapes, HAND_BONES, 120, 90, "here")
    rng = np.random.default_rng(seed)
    top, bottom = sorted(rng.integers(0, 121, 2).tolist())
    left, right = sorted(rng.integers(0, 91, 2).tolist())
    part = rasterise(shapes, HAND_BONES, 120, 90, "here", (top, bottom, left, right))
    np.testing.assert_array_equal(part, full[:, top:bottom, left:right])


def test_a_region_is_no_larger_than_the_window_needs() -> None:
    frame = fit_frame(View.whole((300, 300)), 300, 64)
    plan = Plan(np.array([[1.0, 0, 17], [0, 1.0, 41]]), 64)
    assert label_region(label_steps(plan, frame), 300, 300) == (41, 105, 17, 81)


@pytest.mark.parametrize("place", [(-500.0, 0.0), (500.0, 0.0), (0.0, -500.0), (0.0, 500.0), (500.0, 500.0)])
def test_a_window_beside_the_file_is_empty(place: tuple[float, float]) -> None:
    frame = fit_frame(View.whole((60, 50)), 60, 60)
    plan = Plan(np.array([[1.0, 0, place[0]], [0, 1.0, place[1]]]), 32)
    steps = label_steps(plan, frame)
    region = label_region(steps, 60, 50)
    bits = rasterise(polygons(60, 50, 0), HAND_BONES, 60, 50, "here", region)
    assert bits.size == 0 and not warp_bits(bits, region, steps).any()
    assert not warp_image(texture(60, 50), plan, frame).any()


@pytest.mark.parametrize(
    "matrix", [[[5000.0, 0, 0], [0, 1, 0]], [[1.0, 0, 0], [0, 1, 2e5]], [[1.0, -9000, 0], [0, 1, 0]]]
)
def test_places_that_32_bits_cannot_hold_are_refused(matrix: list[list[float]]) -> None:
    frame = fit_frame(View.whole((60, 50)), 60, 32)
    with pytest.raises(ValueError, match="lower image_size or scale"):
        label_steps(Plan(np.array(matrix), 32), frame)
    steps = label_steps(Plan(np.array([[2000.0, 0, 0], [0, 2000.0, 0]]), 32), frame)
    assert warp_bits(random_words(1, 60, 50), (0, 60, 0, 50), steps)[0, 0, 0] == random_words(1, 60, 50)[0, 0, 0]


# Tone


def test_tone_changes_grey_values_alone() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    frame, tone = fit_frame(View.whole((16, 16)), 16, 16), Tone(1.7, 0.8, 0.1)
    np.testing.assert_array_equal(warp_image(levels, Plan(np.eye(2, 3), 16, tone), frame), tone.table()[levels])
