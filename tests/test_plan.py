"""dataset/plan.py: frames, and one plan per sample that keeps image and labels together."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from config import Augment
from dataset.plan import Frame, Plan, compose, draw_plan, fit_frame, fit_image, generator, warp_bits, warp_image

FEW = settings(derandomize=True, max_examples=100, deadline=None)
STILL = Augment(rotate=0, scale=0, shift=0, flip=0, brightness=0, contrast=0, gamma=0, noise=0)
GEOMETRY = Augment(rotate=30, scale=0.3, shift=0.1, flip=0.5, brightness=0, contrast=0, gamma=0, noise=0)

SIZES = st.integers(1, 300)


def plan_of(seed: int, frame: Frame, size: int, augment: Augment) -> Plan:
    return draw_plan(np.random.default_rng(seed), frame, size, augment)


def disc(height: int, width: int, radius: float) -> NDArray[np.bool_]:
    y, x = np.mgrid[:height, :width]
    return (y - 0.45 * height) ** 2 + (x - 0.4 * width) ** 2 < radius**2


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@FEW
@given(SIZES, SIZES, st.integers(32, 256), st.integers(32, 256))
def test_frames(height: int, width: int, image_size: int, window: int) -> None:
    frame = fit_frame((height, width), image_size, window)
    assert max(frame.fitted_height, frame.fitted_width) == image_size
    scale = image_size / max(height, width)
    assert abs(frame.fitted_height - height * scale) <= 0.5 or frame.fitted_height == 1
    assert abs(frame.fitted_width - width * scale) <= 0.5 or frame.fitted_width == 1
    assert frame.frame_height == max(window, frame.fitted_height)
    assert frame.frame_width == max(window, frame.fitted_width)
    assert 0 <= frame.top <= frame.frame_height - frame.fitted_height
    assert 0 <= frame.left <= frame.frame_width - frame.fitted_width
    image = np.full((height, width), 200, np.uint8)
    framed = fit_image(image, frame)
    assert framed.shape == (frame.frame_height, frame.frame_width) and framed.dtype == np.uint8
    inside = framed[frame.top : frame.top + frame.fitted_height, frame.left : frame.left + frame.fitted_width]
    assert (inside == 200).all() and framed.sum(dtype=np.int64) == 200 * inside.size, "black around the image"


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (150, 100), (97, 131), (64, 64)])
def test_frame_to_source_agrees_with_the_resize(shape: tuple[int, int]) -> None:
    """On ramps, whose value is the place that a pixel of the frame was taken from."""
    height, width = shape
    frame = fit_frame(shape, 96, 128)
    to_source = frame.to_source()
    y, x = np.mgrid[:height, :width]
    rows, columns = np.mgrid[: frame.fitted_height, : frame.fitted_width]
    points = np.stack([columns + frame.left, rows + frame.top, np.ones_like(rows)])
    x_at, y_at = np.tensordot(to_source, points, 1)
    for ramp, expected, last in ((x, x_at, width - 1), (y, y_at, height - 1)):
        framed = fit_image((ramp * (255 / last)).round().astype(np.uint8), frame)
        seen = framed[frame.top :, frame.left :][: frame.fitted_height, : frame.fitted_width] * (last / 255)
        off = (seen - expected.clip(0, last))[2:-2, 2:-2]
        assert np.abs(off).max() <= 1.6 * last / 255, "places are told by grey levels, rounded twice"
        assert abs(off.mean()) < 0.05, "pixels; corners in place of centres would be off by up to 0.5"


def test_fit_image_leaves_a_fitting_image_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 48)).astype(np.uint8)
    np.testing.assert_array_equal(fit_image(image, fit_frame(image.shape, 64, 48)), image)


@FEW
@given(SIZES, SIZES, st.sampled_from([32, 64, 100]), st.integers(0, 2**32 - 1))
def test_windows_lie_inside_the_frame(height: int, width: int, window: int, seed: int) -> None:
    """Without augmentation the window's corners map into the frame, whatever its size."""
    frame = fit_frame((height, width), 128, window)
    plan = plan_of(seed, frame, window, STILL)
    low = plan.matrix @ (0, 0, 1)
    high = plan.matrix @ (window - 1, window - 1, 1)
    assert (low >= -1e-9).all()
    assert (high <= np.array([frame.frame_width, frame.frame_height]) - 1 + 1e-9).all()
    np.testing.assert_allclose(high - low, window - 1)


def test_windows_reach_every_part_of_the_frame() -> None:
    frame = fit_frame((300, 200), 300, 64)
    places = np.array([plan_of(seed, frame, 64, STILL).matrix[:, 2] for seed in range(400)])
    spare = np.array([200 - 64, 300 - 64])
    assert (places.min(0) < 0.03 * spare).all() and (places.max(0) > 0.97 * spare).all()
    assert np.abs(places.mean(0) / spare - 0.5).max() < 0.05


@pytest.mark.parametrize("size", [32, 65, 128])
def test_identity_gives_back_the_image_and_the_labels(size: int) -> None:
    rng = np.random.default_rng(size)
    image = rng.integers(0, 256, (size, size)).astype(np.uint8)
    bits = rng.integers(-(2**31), 2**31, (2, size, size)).astype(np.int32)
    frame = fit_frame(image.shape, size, size)
    plan = plan_of(3, frame, size, STILL)
    np.testing.assert_array_equal(warp_image(fit_image(image, frame), plan), image)
    np.testing.assert_array_equal(warp_bits(bits, plan, frame), bits)


def test_identity_of_a_padded_image() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (64, 40)).astype(np.uint8)
    bits = rng.integers(-(2**31), 2**31, (1, 64, 40)).astype(np.int32)
    frame = fit_frame(image.shape, 64, 64)
    plan = plan_of(0, frame, 64, STILL)
    np.testing.assert_array_equal(warp_image(fit_image(image, frame), plan)[:, 12:52], image)
    warped = warp_bits(bits, plan, frame)
    np.testing.assert_array_equal(warped[:, :, 12:52], bits)
    assert not warped[:, :, :12].any() and not warped[:, :, 52:].any()


def test_a_whole_place_cuts_the_window_out() -> None:
    """Without augmentation a window at whole pixels is a crop, bit for bit."""
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (90, 70)).astype(np.uint8)
    bits = rng.integers(-(2**31), 2**31, (1, 90, 70)).astype(np.int32)
    frame = fit_frame(image.shape, 90, 32)
    still = plan_of(0, frame, 32, STILL)
    plan = Plan(np.array([[1.0, 0, 17], [0, 1.0, 41]]), 32, still.contrast, still.brightness, still.gamma, 0.0, 0)
    np.testing.assert_array_equal(warp_image(image, plan), image[41:73, 17:49])
    np.testing.assert_array_equal(warp_bits(bits, plan, frame), bits[:, 41:73, 17:49])


@pytest.mark.parametrize("shape", [(200, 200), (260, 150), (120, 300), (512, 400)])
@pytest.mark.parametrize("window", [0, 96])
@pytest.mark.parametrize(
    "augment",
    [
        STILL,
        Augment(rotate=180, scale=0, shift=0, flip=0, brightness=0, contrast=0, gamma=0, noise=0),
        Augment(rotate=0, scale=0.5, shift=0, flip=0, brightness=0, contrast=0, gamma=0, noise=0),
        Augment(rotate=0, scale=0, shift=0.2, flip=0, brightness=0, contrast=0, gamma=0, noise=0),
        Augment(rotate=0, scale=0, shift=0, flip=1, brightness=0, contrast=0, gamma=0, noise=0),
        GEOMETRY,
    ],
    ids=["still", "rotate", "scale", "shift", "flip", "all"],
)
def test_image_and_labels_stay_together(shape: tuple[int, int], window: int, augment: Augment) -> None:
    """A disc as image and as label, warped both: they cover each other."""
    height, width = shape
    mask = disc(height, width, 0.3 * min(shape))
    bits = np.stack([np.zeros(shape, np.int32), np.where(mask, np.int32(-(2**31)), 0).astype(np.int32)])
    image = mask.astype(np.uint8) * 255
    frame = fit_frame(shape, 160, window or 160)
    framed, size, seen = fit_image(image, frame), window or 160, 0
    for seed in range(6):
        plan = plan_of(seed, frame, size, augment)
        grey, label = warp_image(framed, plan), warp_bits(bits, plan, frame)
        assert grey.shape == (size, size) and label.shape == (2, size, size)
        assert set(np.unique(label[1])) <= {0, -(2**31)} and not label[0].any()
        shown, truth = grey > 127, label[1] != 0
        if truth.sum() > 600:
            assert dice(shown, truth) > 0.97
            offset = np.argwhere(shown).mean(0) - np.argwhere(truth).mean(0)
            assert np.abs(offset).max() < 0.35, "half a pixel off would be 0.5"
            seen += 1
    assert seen >= 2


def test_angle_scale_shift_and_flip_do_what_they_say() -> None:
    frame = fit_frame((100, 100), 100, 100)
    middle = np.array([49.5, 49.5, 1.0])
    for seed in range(50):
        plan = plan_of(seed, frame, 100, GEOMETRY)
        linear = plan.matrix[:, :2]
        mirrored = np.linalg.det(linear) < 0
        turn = linear @ np.diag([-1.0 if mirrored else 1.0, 1.0])
        zoom = np.sqrt(np.linalg.det(turn))
        assert 1 / 1.3 - 1e-9 <= zoom <= 1 / 0.7 + 1e-9
        assert abs(np.rad2deg(np.arctan2(turn[1, 0], turn[0, 0]))) <= 30 + 1e-9
        assert np.abs(plan.matrix @ middle - middle[:2]).max() <= 0.1 * 100 + 1e-9
    flips = sum(np.linalg.det(plan_of(s, frame, 100, GEOMETRY).matrix[:, :2]) < 0 for s in range(200))
    assert 70 < flips < 130
    assert not any(np.linalg.det(plan_of(s, frame, 100, Augment()).matrix[:, :2]) < 0 for s in range(50))


def test_shift_leaves_windows_inside() -> None:
    """Where a window has room in the frame its place is random anyway; shift is for whole images."""
    frame = fit_frame((300, 200), 300, 64)
    shifting = Augment(rotate=0, scale=0, shift=1, flip=0, brightness=0, contrast=0, gamma=0, noise=0)
    for seed in range(50):
        place = plan_of(seed, frame, 64, shifting).matrix[:, 2]
        assert (place >= 0).all() and (place <= (200 - 64, 300 - 64)).all()


def test_a_sample_depends_on_seed_epoch_record_and_window_alone() -> None:
    def first(*key: int | str) -> float:
        return float(generator(*key).random())  # type: ignore[arg-type]

    assert first(1, 2, "ID001/a", 3) == first(1, 2, "ID001/a", 3)
    others = [(0, 2, "ID001/a", 3), (1, 3, "ID001/a", 3), (1, 2, "ID001/b", 3), (1, 2, "ID001/a", 0)]
    assert len({first(*key) for key in [(1, 2, "ID001/a", 3), *others]}) == 5
    assert first(2**63 - 1, 0, "한", 0) >= 0


def test_intensity() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    frame = fit_frame((16, 16), 16, 16)
    x = levels / 255
    for seed in range(20):
        plan = plan_of(seed, frame, 16, Augment(rotate=0, scale=0, shift=0, flip=0, noise=0))
        assert 0.9 <= plan.contrast <= 1.1 and -0.1 <= plan.brightness <= 0.1 and 2**-0.2 <= plan.gamma <= 2**0.2
        expected = ((x**plan.gamma - 0.5) * plan.contrast + 0.5 + plan.brightness).clip(0, 1) * 255
        assert np.abs(warp_image(levels, plan) - expected).max() <= 0.51


def test_noise_is_seeded_and_as_strong_as_planned() -> None:
    frame = fit_frame((128, 128), 128, 128)
    noisy = Augment(rotate=0, scale=0, shift=0, flip=0, brightness=0, contrast=0, gamma=0, noise=0.05)
    image = np.full((128, 128), 128, np.uint8)
    for seed in range(5):
        plan = plan_of(seed, frame, 128, noisy)
        assert 0 <= plan.noise <= 0.05
        once = warp_image(image, plan)
        np.testing.assert_array_equal(warp_image(image, plan), once)
        spread = np.hypot(plan.noise * 255, 12**-0.5)
        assert abs(once.std() - spread) < 0.03 * spread + 0.05
    different = warp_image(image, plan_of(6, frame, 128, noisy)) != warp_image(image, plan_of(7, frame, 128, noisy))
    assert different.mean() > 0.3


def test_compose() -> None:
    rng = np.random.default_rng(0)
    outer, inner, point = rng.random((2, 3)), rng.random((2, 3)), rng.random(2)
    expected = outer @ (*(inner @ (*point, 1)), 1)
    np.testing.assert_allclose(compose(outer, inner) @ (*point, 1), expected)


def test_labels_are_warped_from_full_size() -> None:
    """A bone two pixels wide at full size: shrunk labels would lose it or double it."""
    image = np.zeros((400, 400), np.uint8)
    cv2.line(image, (20, 20), (380, 300), 255, 2)
    bits = (image > 0).astype(np.int32)[None]
    frame = fit_frame((400, 400), 100, 100)
    warped = warp_bits(bits, plan_of(0, frame, 100, STILL), frame)
    rows, columns = np.mgrid[:100, :100]
    # Output pixel centres fall between four source pixels at (4 k + 1.5); either neighbour is a nearest one.
    near = [bits[0, 4 * rows + a, 4 * columns + b] for a in (1, 2) for b in (1, 2)]
    assert np.any([warped[0] == n for n in near], axis=0).all()
