"""dataset/plan.py: every random choice of a sample, drawn from (seed, epoch, record, window) alone."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from drawn import STRONG, only
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from config import OFF, Augment, Range, Window
from dataset.frame import Frame, View, fit_frame, window_starts
from dataset.plan import (
    DISTORTIONS,
    FILTERS,
    MIXERS,
    Cell,
    Draws,
    Plan,
    Tone,
    draw_plan,
    generator,
    grid_side,
    n_windows,
)
from engine.settings import AUGMENTATIONS

FEW = settings(derandomize=True, max_examples=100, deadline=None)

OF_MATRIX = ("shift", "scale", "rotate", "shear", "resized_crop", "hflip", "vflip")
OF_TONE = ("brightness", "contrast", "gamma")
SIZES = st.integers(1, 300)


def frame_of(height: int, width: int, image_size: int, window: int) -> Frame:
    return fit_frame(View.whole((height, width)), image_size, window)


def plan_of(seed: int, frame: Frame, size: int, **ranges: Range) -> Plan:
    return draw_plan(np.random.default_rng(seed), frame, size, only(ranges))


def corner(plan: Plan) -> NDArray[np.float64]:
    """Where the window's first pixel lies in the frame, without augmentation: (x, y)."""
    return plan.matrix[:, 2]


def seen_at(plan: Plan, x: float, y: float) -> NDArray[np.float64]:
    """The output pixel that shows a place of the frame: the inverse of the plan's matrix."""
    place = np.linalg.solve(plan.matrix[:, :2], np.array([x, y]) - plan.matrix[:, 2])
    return np.asarray(place, dtype=np.float64)


def test_every_augmentation_has_its_place_in_a_plan() -> None:
    assert sorted((*OF_MATRIX, *OF_TONE, *DISTORTIONS, *FILTERS, *MIXERS)) == sorted(AUGMENTATIONS)
    assert set(STRONG) == set(AUGMENTATIONS), "every augmentation is tried out below"


# Windows


@FEW
@given(SIZES, SIZES, st.sampled_from([32, 64, 100]), st.integers(0, 2**32 - 1))
def test_windows_lie_inside_the_frame(height: int, width: int, window: int, seed: int) -> None:
    """Without augmentation the window's corners map into the frame, whatever its size, and it is a crop."""
    frame = frame_of(height, width, 128, window)
    plan = plan_of(seed, frame, window)
    high = plan.matrix @ (window - 1, window - 1, 1)
    assert (corner(plan) >= 0).all() and (corner(plan) == np.rint(corner(plan))).all()
    assert (high <= np.array([frame.frame_width, frame.frame_height]) - 1).all()
    np.testing.assert_array_equal(plan.matrix[:, :2], np.eye(2))
    assert plan.size == window and plan.tone == Tone() and not plan.effects


def test_random_windows_lie_evenly_over_the_frame() -> None:
    frame, spare = frame_of(300, 200, 300, 64), np.array([200 - 64, 300 - 64])
    places = np.array([corner(plan_of(seed, frame, 64)) for seed in range(1000)])
    for axis in (0, 1):
        counts = np.histogram(places[:, axis], bins=5, range=(0, spare[axis] + 1))[0]
        assert np.abs(counts - 200).max() < 55, "four standard deviations"
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.12
    assert (places.min(0) < 0.03 * spare).all() and (places.max(0) > 0.97 * spare).all()


def test_the_first_and_the_last_place_are_as_likely_as_others() -> None:
    frame = frame_of(35, 33, 35, 32)
    places = Counter(tuple(corner(plan_of(seed, frame, 32))) for seed in range(800))
    assert set(places) == set(itertools.product((0, 1), (0, 1, 2, 3)))
    assert min(places.values()) > 60 and max(places.values()) < 140


@pytest.mark.parametrize(
    ("image_size", "window", "stride"),
    [(2048, 1024, 512), (96, 48, 16), (100, 50, 50), (64, 64, 8), (96, 48, 48), (96, 48, 32), (101, 33, 20)],
)
def test_the_grid_of_a_square_image_is_that_of_inference(image_size: int, window: int, stride: int) -> None:
    cfg = Window(image_size=image_size, window_size=window, stride=stride, window_mode="grid")
    frame, side = frame_of(image_size, image_size, image_size, window), grid_side(cfg)
    assert n_windows(cfg) == side**2
    cells = [Cell(k, side, stride) for k in range(side**2)]
    plans = [draw_plan(np.random.default_rng(0), frame, window, only({}), cell) for cell in cells]
    starts = window_starts(image_size, window, stride)
    assert sorted(tuple(corner(plan)) for plan in plans) == sorted(itertools.product(starts, starts))


@FEW
@given(st.integers(40, 300), st.integers(40, 300), st.integers(32, 100), st.integers(8, 100))
def test_the_grid_covers_the_frame(height: int, width: int, window: int, stride: int) -> None:
    cfg = Window(image_size=max(128, window), window_size=window, stride=min(stride, window), window_mode="grid")
    frame, side = frame_of(height, width, cfg.image_size, window), grid_side(cfg)
    covered = np.zeros((frame.frame_height, frame.frame_width), bool)
    for k in range(side**2):
        plan = draw_plan(np.random.default_rng(0), frame, window, only({}), Cell(k, side, cfg.stride))
        x, y = corner(plan).astype(int)
        assert x >= 0 and y >= 0 and x + window <= frame.frame_width and y + window <= frame.frame_height
        covered[y : y + window, x : x + window] = True
    assert covered.all()


def test_the_number_of_windows() -> None:
    assert n_windows(Window(windows_per_image=7)) == 7
    assert n_windows(Window(windows_per_image=7, window_mode="balanced")) == 7
    assert n_windows(Window(windows_per_image=7, window_mode="grid")) == 9


@FEW
@given(
    st.tuples(st.integers(0, 180), st.integers(0, 280), st.integers(0, 60), st.integers(0, 60)), st.integers(0, 2**32)
)
def test_balanced_windows_show_the_bone(box: tuple[int, int, int, int], seed: int) -> None:
    """Its middle is inside whenever it fits, also at the frame's edge, and the window never leaves the frame."""
    frame = frame_of(300, 200, 300, 64)
    x0, y0 = box[0], box[1]
    x1, y1 = min(x0 + box[2], 199), min(y0 + box[3], 299)
    boxes = np.array([[x0, y0, x1, y1]], np.float64)
    low = corner(draw_plan(np.random.default_rng(seed), frame, 64, only({}), boxes=boxes))
    assert (low >= 0).all() and (low + 64 <= (200, 300)).all() and (low == np.rint(low)).all()
    middle = np.array([x0 + x1, y0 + y1]) / 2
    assert (low <= middle + 0.5).all() and (middle <= low + 63.5).all()


def test_balanced_windows_move_over_the_bone() -> None:
    """So that a bone isn't always in the middle of its window."""
    frame, boxes = frame_of(300, 300, 300, 64), np.array([[100.0, 120, 160, 200]])
    plans = [draw_plan(np.random.default_rng(seed), frame, 64, only({}), boxes=boxes) for seed in range(300)]
    middles = np.array([corner(plan) for plan in plans]) + 31.5
    assert (np.abs(middles.min(0) - boxes[0, :2]) < 4).all() and (np.abs(middles.max(0) - boxes[0, 2:]) < 4).all()
    assert (np.abs(middles.mean(0) - (130, 160)) < 4).all()


def test_balanced_windows_give_every_bone_its_turn() -> None:
    """Whatever its size."""
    frame = frame_of(400, 400, 400, 32)
    corners = np.array([(x, y) for x in (50, 150, 250) for y in (50, 150, 250, 350)])
    sides = np.linspace(1, 40, len(corners))[:, None]
    boxes = np.hstack([corners - sides / 2, corners + sides / 2])
    counts: Counter[int] = Counter()
    for seed in range(1200):
        middle = corner(draw_plan(np.random.default_rng(seed), frame, 32, only({}), boxes=boxes)) + 15.5
        counts[int(np.abs(corners - middle).sum(1).argmin())] += 1
    assert len(counts) == 12 and min(counts.values()) > 60 and max(counts.values()) < 140


def test_without_bones_balanced_windows_are_random() -> None:
    frame, none = frame_of(300, 200, 300, 64), np.zeros((0, 4))
    for seed in range(20):
        balanced = draw_plan(np.random.default_rng(seed), frame, 64, only({}), boxes=none)
        np.testing.assert_array_equal(balanced.matrix, plan_of(seed, frame, 64).matrix)


# Geometry

SQUARE = frame_of(101, 101, 101, 101)


def test_rotation_is_clockwise() -> None:
    plan = plan_of(0, SQUARE, 101, rotate=(90, 90, 1))
    np.testing.assert_allclose(seen_at(plan, 80, 50), (50, 80), atol=1e-9)
    plan = plan_of(0, SQUARE, 101, rotate=(30, 30, 1))
    np.testing.assert_allclose(seen_at(plan, 50, 20), (50 + 30 * 0.5, 50 - 30 * np.sqrt(0.75)), atol=1e-9)


def test_scale_enlarges() -> None:
    plan = plan_of(0, SQUARE, 101, scale=(0.5, 0.5, 1))
    np.testing.assert_allclose(seen_at(plan, 60, 30), (65, 20), atol=1e-9)


def test_shift_is_a_share_of_the_images_long_side() -> None:
    """To the right and down, whatever part of the frame the image fills."""
    for frame in (SQUARE, frame_of(50, 25, 101, 101), frame_of(25, 50, 101, 101)):
        plan = plan_of(0, frame, 101, shift=(0.1, 0.1, 1))
        np.testing.assert_allclose(seen_at(plan, 50, 50), (60.1, 60.1), atol=1e-9)
    moves = np.array([seen_at(plan_of(seed, SQUARE, 101, shift=(-0.1, 0.1, 1)), 50, 50) - 50 for seed in range(300)])
    assert np.abs(moves).max() <= 10.1 + 1e-9 and (moves.min(0) < -9).all() and (moves.max(0) > 9).all()
    assert abs(np.corrcoef(moves.T)[0, 1]) < 0.2, "each axis has its own"


def test_shift_leaves_windows_where_they_are() -> None:
    """Where a window has room in the frame its place is random anyway; shift is for whole images."""
    frame = frame_of(300, 200, 300, 64)
    for seed in range(20):
        shifted = plan_of(seed, frame, 64, shift=(1, 1, 1))
        np.testing.assert_array_equal(shifted.matrix, plan_of(seed, frame, 64).matrix)


def test_shear_slants_vertical_edges_by_its_angle() -> None:
    plan = plan_of(0, SQUARE, 101, shear=(20, 20, 1))
    top, foot = seen_at(plan, 70, 10), seen_at(plan, 70, 90)
    assert abs(np.rad2deg(np.arctan2(*(top - foot) * (1, -1))) - 20) < 1e-9
    assert seen_at(plan, 10, 30)[1] == pytest.approx(30), "rows stay rows"


@pytest.mark.parametrize(("name", "expected"), [("hflip", (20, 30)), ("vflip", (80, 70))])
def test_flips(name: str, expected: tuple[int, int]) -> None:
    for values in ((1, 1), (0, 0)):
        plan = plan_of(0, SQUARE, 101, **{name: (*values, 1)})
        np.testing.assert_allclose(seen_at(plan, 80, 30), expected, atol=1e-9)
    flips = sum(np.linalg.det(plan_of(s, SQUARE, 101, **{name: (1, 1, 0.3)}).matrix[:, :2]) < 0 for s in range(300))
    assert 58 < flips < 122, "four standard deviations around 90"


@pytest.mark.parametrize("area", [0.1, 0.5, 0.75, 0.9, 1.0])
def test_resized_crops_have_their_share_of_the_area(area: float) -> None:
    """And lie inside the window, 3:4 to 4:3 in shape; where the place is free, they reach every side."""
    frame, size = frame_of(300, 200, 300, 64), 64
    ratios, lows, highs = [], [], []
    for seed in range(200):
        matrix = plan_of(seed, frame, size, resized_crop=(area, area, 1)).matrix
        still = corner(plan_of(seed, frame, size))
        width, height = np.diag(matrix)
        assert matrix[0, 1] == matrix[1, 0] == 0
        assert width * height == pytest.approx(area)
        assert 3 / 4 - 1e-9 <= width / height <= 4 / 3 + 1e-9
        lows.append(matrix @ (-0.5, -0.5, 1) - (still - 0.5))
        highs.append(size - (matrix @ (size - 0.5, size - 0.5, 1) - (still - 0.5)))
        ratios.append(width / height)
    assert np.min(lows) > -1e-9 and np.min(highs) > -1e-9
    if area <= 0.5:
        assert min(ratios) < 0.78 and max(ratios) > 1.28
        assert np.min(lows) < 1 and np.min(highs) < 1


def test_all_of_geometry_together() -> None:
    """Ranges hold when everything happens at once."""
    ranges: dict[str, Range] = {
        "rotate": (-30, 30, 1),
        "scale": (-0.3, 0.3, 1),
        "shift": (-0.1, 0.1, 1),
        "hflip": (1, 1, 0.5),
    }
    middle = np.array([50.0, 50.0, 1.0])
    for seed in range(100):
        plan = plan_of(seed, SQUARE, 101, **ranges)
        linear = plan.matrix[:, :2]
        turn = linear @ np.diag([np.sign(np.linalg.det(linear)), 1.0])
        zoom = np.sqrt(np.linalg.det(turn))
        assert 1 / 1.3 - 1e-9 <= zoom <= 1 / 0.7 + 1e-9
        assert abs(np.rad2deg(np.arctan2(turn[1, 0], turn[0, 0]))) <= 30 + 1e-9
        assert np.abs(plan.matrix @ middle - middle[:2]).max() <= 0.1 * 101 + 1e-9


# Draws


def test_a_sample_depends_on_seed_epoch_record_and_window_alone() -> None:
    def first(*key: int | str) -> float:
        return float(generator(*key).random())  # type: ignore[arg-type]

    assert first(1, 2, "ID001/a", 3) == first(1, 2, "ID001/a", 3)
    others = [(0, 2, "ID001/a", 3), (1, 3, "ID001/a", 3), (1, 2, "ID001/b", 3), (1, 2, "ID001/a", 0)]
    assert len({first(*key) for key in [(1, 2, "ID001/a", 3), *others]}) == 5
    assert first(2**63 - 1, 0, "한", 0) >= 0


def test_plans_are_repeatable_and_seeds_differ() -> None:
    frame, augment = frame_of(300, 200, 128, 64), only(STRONG)
    plans = [draw_plan(np.random.default_rng(seed % 8), frame, 64, augment) for seed in range(16)]
    for a, b in zip(plans[:8], plans[8:], strict=True):
        np.testing.assert_array_equal(a.matrix, b.matrix)
        assert a.tone == b.tone and a.effects == b.effects
    assert len({plan.matrix.tobytes() for plan in plans}) == 8
    assert len({plan.tone for plan in plans}) == 8 and len({plan.effects for plan in plans}) == 8


def test_effects_come_in_their_order_with_seeds_of_their_own() -> None:
    effects = plan_of(0, SQUARE, 101, **STRONG).effects
    assert tuple(effect.name for effect in effects) == (*DISTORTIONS, *FILTERS, *MIXERS)
    assert len({effect.seed for effect in effects}) == len(effects)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_turning_one_off_changes_no_other(name: str) -> None:
    frame = frame_of(300, 200, 128, 128)
    for seed in range(3):
        on, off = plan_of(seed, frame, 128, **STRONG), plan_of(seed, frame, 128, **{**STRONG, name: OFF})
        assert off.effects == tuple(effect for effect in on.effects if effect.name != name)
        assert np.array_equal(on.matrix, off.matrix) == (name not in OF_MATRIX)
        assert (on.tone == off.tone) == (name not in OF_TONE)
        draws = Draws(np.random.default_rng(seed))
        for other in set(AUGMENTATIONS) - {name}:
            a, b = only(STRONG), only({**STRONG, name: OFF})
            assert draws.value(a, other) == draws.value(b, other)
            assert draws.second(a, other) == draws.second(b, other)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_values_fill_their_range_with_their_probability(name: str) -> None:
    augment = only({name: (0.2, 0.6, 0.25)})
    drawn = [Draws(np.random.default_rng(seed)) for seed in range(800)]
    values = np.array([d.value(augment, name, off=-1) for d in drawn if d.happens(augment, name)])
    assert 150 < len(values) < 250, "four standard deviations around 200"
    assert values.min() >= 0.2 and values.max() <= 0.6 and np.ptp(values) > 0.38
    assert abs(values.mean() - 0.4) < 0.04
    assert all(d.value(augment, name, off=-1) == -1 for d in drawn if not d.happens(augment, name))
    always, never = only({name: (0.2, 0.6, 1)}), only({name: (0.2, 0.6, 0)})
    assert all(d.happens(always, name) and not d.happens(never, name) for d in drawn)


@pytest.mark.parametrize("name", sorted({*AUGMENTATIONS} - {"hflip", "vflip"}))
def test_the_value_reaches_the_plan(name: str) -> None:
    """Two values of one augmentation give two plans; flips have none."""
    low, high, _ = STRONG[name]
    a, b = (plan_of(0, SQUARE, 101, **{name: (value, value, 1.0)}) for value in (low, high))
    assert not np.array_equal(a.matrix, b.matrix) or a.tone != b.tone or a.effects != b.effects


def test_the_default_augmentation_never_mirrors() -> None:
    plans = [draw_plan(np.random.default_rng(seed), SQUARE, 101, Augment()) for seed in range(50)]
    assert all(np.linalg.det(plan.matrix[:, :2]) > 0 for plan in plans)


# Tone


def test_tones_stay_in_their_ranges() -> None:
    for seed in range(50):
        ranges: dict[str, Range] = {"brightness": (-0.1, 0.2, 1), "contrast": (-0.3, 0.4, 1), "gamma": (-1, 2, 1)}
        tone = plan_of(seed, SQUARE, 101, **ranges).tone
        assert -0.1 <= tone.brightness <= 0.2 and 0.7 <= tone.contrast <= 1.4 and 0.5 <= tone.gamma <= 4


def test_tone_table() -> None:
    x = np.arange(256) / 255
    np.testing.assert_array_equal(Tone().table(), np.arange(256))
    for tone in (Tone(0.6, 1.3, 0.1), Tone(2, 0.5, -0.2), Tone(1, 11, 1)):
        expected = ((x**tone.gamma - 0.5) * tone.contrast + 0.5 + tone.brightness).clip(0, 1) * 255
        assert tone.table().dtype == np.uint8 and np.abs(tone.table() - expected).max() <= 0.501


@pytest.mark.parametrize(
    ("name", "value", "grey", "expected"),
    [
        ("brightness", 0.2, 102, 153),
        ("contrast", 0.5, 51, 12.75),
        ("contrast", -1.0, 51, 127.5),
        ("gamma", 1.0, 51, 10.2),
        ("gamma", -1.0, 51, 255 * 0.2**0.5),
    ],
)
def test_units_of_the_tone(name: str, value: float, grey: int, expected: float) -> None:
    """Grey values from 0 to 1; relative change of the distance from mid grey; binary logarithm of the exponent."""
    tone = plan_of(0, SQUARE, 101, **{name: (value, value, 1.0)}).tone
    assert abs(float(tone.table()[grey]) - expected) <= 0.501
