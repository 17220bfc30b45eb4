"""dataset/frame.py: views and frames, there and back; matrices that say where a frame's pixel comes from."""

from __future__ import annotations

import numpy as np
import pytest
from drawn import random_words, texture
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dataset.frame import Frame, View, compose, fit_frame, fit_image, reduce_image

FEW = settings(derandomize=True, max_examples=100, deadline=None)

CASES = [
    (View.whole((64, 64)), 64, 64),
    (View.whole((40, 64)), 96, 128),
    (View.whole((97, 131)), 96, 128),
    (View.whole((300, 200)), 75, 100),
    (View.whole((301, 199)), 75, 32),
    (View((150, 100), 20, 10, 90, 60), 80, 48),
    (View((150, 100), 20, 10, 90, 60, True), 80, 48),
    (View((97, 131), 0, 0, 97, 131, True), 64, 100),
    (View((260, 310), 31, 17, 200, 240, True), 60, 64),
]
"""View, image_size and window: enlarged, as they are, reduced by 2 to 5; square or not, even or odd."""


@st.composite
def views(draw: st.DrawFn) -> View:
    """Any part of any image, mirrored or not."""
    file = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    top, left = draw(st.integers(0, file[0] - 1)), draw(st.integers(0, file[1] - 1))
    height, width = draw(st.integers(1, file[0] - top)), draw(st.integers(1, file[1] - left))
    return View(file, top, left, height, width, draw(st.booleans()))


def cut(view: View, file: NDArray[np.generic]) -> NDArray[np.generic]:
    """The view of a (..., height, width) array, by hand."""
    part = file[..., view.top : view.top + view.height, view.left : view.left + view.width]
    return part[..., ::-1] if view.mirrored else part


def inside(frame: Frame, framed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return framed[frame.top :, frame.left :][: frame.fitted_height, : frame.fitted_width]


def places(matrix: NDArray[np.float64], frame: Frame) -> NDArray[np.float64]:
    """Where every pixel of the frame comes from: (2, height, width), x and y."""
    rows, columns = np.mgrid[: frame.frame_height, : frame.frame_width]
    return np.tensordot(matrix, np.stack([columns, rows, np.ones_like(rows)]), 1)


@FEW
@given(views(), st.integers(32, 256), st.integers(32, 256))
def test_sizes(view: View, image_size: int, window: int) -> None:
    frame = fit_frame(view, image_size, window)
    assert max(frame.fitted_height, frame.fitted_width) == image_size
    scale = image_size / max(view.height, view.width)
    assert abs(frame.fitted_height - view.height * scale) <= 0.5 or frame.fitted_height == 1
    assert abs(frame.fitted_width - view.width * scale) <= 0.5 or frame.fitted_width == 1
    assert frame.frame_height == max(window, frame.fitted_height)
    assert frame.frame_width == max(window, frame.fitted_width)
    assert abs(2 * frame.top + frame.fitted_height - frame.frame_height) <= 1, "centred"
    assert abs(2 * frame.left + frame.fitted_width - frame.frame_width) <= 1


@FEW
@given(views(), st.integers(32, 256), st.integers(32, 256))
def test_the_view_fills_the_fitted_part_of_the_frame(view: View, image_size: int, window: int) -> None:
    """The fitted part's edges are the view's edges in the file."""
    frame = fit_frame(view, image_size, window)
    matrix = frame.to_file()
    low = matrix @ (frame.left - 0.5, frame.top - 0.5, 1)
    high = matrix @ (frame.left + frame.fitted_width - 0.5, frame.top + frame.fitted_height - 0.5, 1)
    x = [view.left - 0.5, view.left + view.width - 0.5]
    first, last = reversed(x) if view.mirrored else x
    np.testing.assert_allclose(low, (first, view.top - 0.5), atol=1e-9)
    np.testing.assert_allclose(high, (last, view.top + view.height - 0.5), atol=1e-9)


@FEW
@given(views(), st.integers(32, 256), st.integers(32, 256))
def test_a_flat_image_stays_flat_and_ends_in_black(view: View, image_size: int, window: int) -> None:
    frame = fit_frame(view, image_size, window)
    stored = reduce_image(np.full(view.file, 200, np.uint8), frame.reduction)
    framed = fit_image(stored, frame)
    assert framed.shape == (frame.frame_height, frame.frame_width) and framed.dtype == np.uint8
    x, y = places(frame.to_stored(), frame)
    height, width = stored.shape
    slack = 1 / 16  # OpenCV counts places in steps of 1/32 px
    within = (x >= slack) & (x <= width - 1 - slack) & (y >= slack) & (y <= height - 1 - slack)
    beyond = (x < -1 - slack) | (x > width + slack) | (y < -1 - slack) | (y > height + slack)
    assert (framed[within] == 200).all() and not framed[beyond].any() and framed.max() <= 200


@FEW
@given(views(), st.integers(32, 256), st.integers(32, 256))
def test_reductions(view: View, image_size: int, window: int) -> None:
    """As many pixels as fit, so that at least a stored pixel is left for each of the frame."""
    frame = fit_frame(view, image_size, window)
    longest = max(view.height, view.width)
    assert frame.reduction == 1 or frame.reduction * image_size <= longest
    assert (frame.reduction + 1) * image_size > longest


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_reduced_images_are_averages_of_squares(factor: int) -> None:
    """Where the image ends inside a square its last row and column are repeated: no dark rim, nothing lost."""
    image = np.random.default_rng(factor).integers(0, 256, (61, 47)).astype(np.uint8)
    height, width = -(-61 // factor), -(-47 // factor)
    filled = np.pad(image, ((0, height * factor - 61), (0, width * factor - 47)), mode="edge")
    squares = filled.reshape(height, factor, width, factor)
    reduced = reduce_image(image, factor)
    assert reduced.dtype == np.uint8 and reduced.shape == (height, width)
    assert np.abs(reduced - squares.mean((1, 3))).max() <= 0.51


@FEW
@given(st.integers(32, 300), st.integers(32, 300), st.integers(32, 256))
def test_images_that_are_not_enlarged_have_no_dark_rim(height: int, width: int, image_size: int) -> None:
    frame = fit_frame(View.whole((height, width)), min(image_size, height, width), 32)
    stored = reduce_image(np.full((height, width), 200, np.uint8), frame.reduction)
    assert inside(frame, fit_image(stored, frame)).min() >= 190


@pytest.mark.parametrize(("view", "image_size", "window"), CASES)
def test_stored_pixels_lie_in_the_middle_of_their_squares(view: View, image_size: int, window: int) -> None:
    frame = fit_frame(view, image_size, window)
    factor = frame.reduction
    expected = frame.to_stored() * factor
    expected[:, 2] += (factor - 1) / 2
    np.testing.assert_allclose(expected, frame.to_file())


@pytest.mark.parametrize(("view", "image_size", "window"), CASES)
def test_fit_image_takes_every_pixel_from_its_place(view: View, image_size: int, window: int) -> None:
    """On ramps, whose value tells the place in the file that a pixel of the frame was taken from."""
    frame = fit_frame(view, image_size, window)
    y, x = np.mgrid[: view.file[0], : view.file[1]]
    for ramp, expected in zip((x, y), places(frame.to_file(), frame), strict=True):
        last = ramp.max()
        # Dithered: levels rounded alike would be a shift themselves.
        levels = (ramp * (254 / last) + np.random.default_rng(0).random(ramp.shape)).astype(np.uint8)
        seen = inside(frame, fit_image(reduce_image(levels, frame.reduction), frame)) * (last / 254)
        off = (seen - inside(frame, expected))[2:-2, 2:-2]
        assert np.abs(off).max() <= 1.6 * last / 254 + 1 / 32, "places are told by grey levels, rounded twice"
        assert abs(off.mean()) < 0.25 * last / 254, "a quarter of a level; corners for centres would be off by far more"


@pytest.mark.parametrize(("view", "image_size", "window"), CASES)
def test_fit_image_equals_warping_by_hand(view: View, image_size: int, window: int) -> None:
    """Bilinear, black beyond the file, in plain NumPy."""
    frame = fit_frame(view, image_size, window)
    stored = reduce_image(texture(*view.file), frame.reduction)
    padded = np.pad(stored.astype(np.float64), 2)
    x, y = (
        p.clip(-1.5, n + 0.5) + 2 for p, n in zip(places(frame.to_stored(), frame), stored.shape[::-1], strict=True)
    )
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    right, down = x - column, y - row
    upper = padded[row, column] * (1 - right) + padded[row, column + 1] * right
    lower = padded[row + 1, column] * (1 - right) + padded[row + 1, column + 1] * right
    off = np.abs(fit_image(stored, frame) - (upper * (1 - down) + lower * down))
    assert off.max() <= 1 + 255 / 32 and off.mean() < 0.4, "OpenCV counts places in steps of 1/32 px"


def test_fit_image_leaves_a_fitting_image_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 48)).astype(np.uint8)
    assert fit_image(image, fit_frame(View.whole(image.shape), 64, 48)) is image


@FEW
@given(views(), st.sampled_from([32, 301]))
def test_fitting_at_the_views_own_size_cuts_it_out(view: View, window: int) -> None:
    """And pasting what was cut out undoes it: bit for bit, mirrored or not."""
    image = np.random.default_rng(0).integers(0, 256, view.file).astype(np.uint8)
    frame = fit_frame(view, max(view.height, view.width), window)
    fitted = inside(frame, fit_image(image, frame))
    np.testing.assert_array_equal(fitted, cut(view, image))
    whole = view.paste(fitted[None].astype(np.int32))
    assert whole.shape == (1, *view.file)
    np.testing.assert_array_equal(cut(view, whole[0]), fitted)


@FEW
@given(views(), st.integers(1, 2))
def test_paste_puts_the_view_back_and_leaves_the_rest_empty(view: View, words: int) -> None:
    bits = random_words(words, view.height, view.width)
    whole = view.paste(bits)
    assert whole.shape == (words, *view.file) and whole.dtype == np.int32 and whole.flags.c_contiguous
    np.testing.assert_array_equal(cut(view, whole), bits)
    assert np.count_nonzero(whole) == np.count_nonzero(bits)


@pytest.mark.parametrize("image_size", [50, 100, 130])
def test_a_mirrored_view_is_the_fitted_view_mirrored(image_size: int) -> None:
    image = texture(200, 160)
    plain = fit_frame(View((200, 160), 20, 30, 150, 100), image_size, 32)
    mirrored = fit_frame(View((200, 160), 20, 30, 150, 100, True), image_size, 32)
    a, b = (fit_image(reduce_image(image, frame.reduction), frame) for frame in (plain, mirrored))
    assert np.abs(a[:, ::-1].astype(int) - b).max() <= 2


def test_compose() -> None:
    rng = np.random.default_rng(0)
    outer, inner, point = rng.random((2, 3)), rng.random((2, 3)), rng.random(2)
    expected = outer @ (*(inner @ (*point, 1)), 1)
    np.testing.assert_allclose(compose(outer, inner) @ (*point, 1), expected)
