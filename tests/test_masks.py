"""inference/masks.py and engine/bits.py: logits of a frame -> packed masks at the image's own size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from dataset.frame import Frame, View, fit_frame, fit_image, reduce_image
from engine.bits import n_words, pack, unpack
from inference.forward import Forward
from inference.masks import SUREST, Packed, limits_of, logit, on_file
from inference.predictor import Sliding, Whole
from inference.rows import AT_ONCE

FEW = settings(derandomize=True, max_examples=60, deadline=None)

SHAPES = {
    "equal": (64, 64),
    "smaller": (40, 40),
    "larger": (200, 200),
    "portrait": (90, 50),
    "landscape": (50, 90),
    "tall and small": (40, 9),
    "wide and large": (130, 300),
    "line": (1, 70),
    "pixel": (1, 1),
}


def logits_of(frame: Frame, n_classes: int, seed: int = 0) -> Tensor:
    size = (n_classes, frame.frame_height, frame.frame_width)
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    # Beyond the fitted image anything may come: it must not leak in.
    inside = torch.zeros_like(values, dtype=torch.bool)
    inside[:, frame.top : frame.top + frame.fitted_height, frame.left : frame.left + frame.fitted_width] = True
    return torch.where(inside, values, torch.tensor(1e6))


def resized(logits: Tensor, frame: Frame) -> Tensor:
    fitted = logits[:, frame.top : frame.top + frame.fitted_height, frame.left : frame.left + frame.fitted_width]
    size = frame.view.file
    return F.interpolate(fitted[None], size=size, mode="bilinear", align_corners=False)[0]


def unfitted(frame: Frame, logits: Tensor, threshold: float, cuts: list[int]) -> NDArray[np.int32]:
    bands = [logits[:, a:b] for a, b in zip([0, *cuts], [*cuts, frame.frame_height], strict=True)]
    target = Packed(*frame.view.file, limits_of([threshold] * len(logits), "logits"))
    for band in on_file(bands, frame, "logits"):
        target.add(band)
    return target.result()


def masks_of(bits: NDArray[np.int32], n_classes: int) -> Tensor:
    return unpack(torch.from_numpy(bits)[None], n_classes)[0]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("window", [32, 64, 100])
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_equals_interpolating_the_whole(name: str, window: int, threshold: float) -> None:
    frame = fit_frame(View.whole(SHAPES[name]), 64, window)
    logits = logits_of(frame, 33)
    bits = unfitted(frame, logits, threshold, [])
    assert bits.shape == (2, *SHAPES[name]) and bits.dtype == np.int32
    expected = resized(logits, frame)
    differ = masks_of(bits, 33) != (expected > logit(threshold))
    assert not (differ & ((expected - logit(threshold)).abs() > 1e-4)).any()
    if SHAPES[name] == (64, 64):
        assert not differ.any(), "an image of the frame's size is not interpolated at all"


@FEW
@given(
    st.sampled_from(sorted(SHAPES)),
    st.sampled_from([32, 64, 100]),
    st.lists(st.integers(0, 100), max_size=12),
    st.integers(0, 99),
)
def test_cuts_into_bands_change_nothing(name: str, window: int, cuts: list[int], seed: int) -> None:
    """However the rows come: singly, none at all, only black margin at first."""
    frame = fit_frame(View.whole(SHAPES[name]), 64, window)
    logits = logits_of(frame, 3, seed)
    whole = unfitted(frame, logits, 0.5, [])
    rows = sorted(min(cut, frame.frame_height) for cut in cuts)
    np.testing.assert_array_equal(unfitted(frame, logits, 0.5, rows), whole)
    singly = unfitted(frame, logits, 0.5, list(range(1, frame.frame_height)))
    np.testing.assert_array_equal(singly, whole)


def test_little_exists_at_once() -> None:
    """Of an image much larger than its frame, a few rows; of the frame, what the next rows need."""
    frame = fit_frame(View.whole((900, 900)), 64, 64)
    logits = logits_of(frame, 2)
    rows = [band.shape[1] for band in on_file([logits], frame, "logits")]
    assert max(rows) <= AT_ONCE and sum(rows) == 900
    taken = []

    def singly() -> Iterator[Tensor]:
        for row in range(64):
            taken.append(row)
            yield logits[:, row : row + 1]

    made = 0
    for band in on_file(singly(), frame, "logits"):
        made += band.shape[1]
        assert made >= (taken[-1] - 1) * 900 // 64, "rows leave as soon as the next frame row is there"


@pytest.mark.parametrize("rows", [1, 7, 64, 10_000])
def test_the_height_of_bands_changes_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in SHAPES.values():
        frame = fit_frame(View.whole(shape), 64, 64)
        logits = logits_of(frame, 3)
        expected = torch.cat(list(on_file([logits], frame, "logits")), 1)
        with monkeypatch.context() as patch:
            patch.setattr("inference.rows.AT_ONCE", rows)
            found = list(on_file([logits], frame, "logits"))
        assert max(band.shape[1] for band in found) <= rows
        assert torch.equal(torch.cat(found, 1), expected)


def test_missing_rows_are_noticed() -> None:
    frame = fit_frame(View.whole((64, 64)), 64, 64)
    with pytest.raises(AssertionError, match=r"6\d of 64 rows"):
        list(on_file([logits_of(frame, 2)[:, :63]], frame, "logits"))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 40, 50), (7, 3, 21, 30), (39, 49, 1, 1), (0, 5, 40, 45), (4, 0, 36, 50)])
@pytest.mark.parametrize("blend", ["logits", "probs"])
def test_a_view_lies_at_its_place_in_the_file(
    box: tuple[int, int, int, int], mirrored: bool, blend: Literal["logits", "probs"]
) -> None:
    top, left, height, width = box
    view = View((40, 50), top, left, height, width, mirrored)
    frame = fit_frame(view, 64, 32)
    values = logits_of(frame, 2).clamp(-5, 5)
    values = values.sigmoid() if blend == "probs" else values
    pasted = torch.cat(list(on_file([values], frame, blend)), 1)
    plain = torch.cat(list(on_file([values], fit_frame(View.whole((height, width)), 64, 32), blend)), 1)
    inside = pasted[:, top : top + height, left : left + width]
    torch.testing.assert_close(inside, plain.flip(-1) if mirrored else plain)
    outside = torch.ones(40, 50, dtype=torch.bool)
    outside[top : top + height, left : left + width] = False
    assert pasted.shape == (2, 40, 50)
    assert (pasted[:, outside] == (0 if blend == "probs" else logit(SUREST))).all()
    limits = limits_of([0.5, 0.5], blend)
    target = Packed(40, 50, limits)
    target.add(pasted)
    expected = view.paste(pack(plain, limits).numpy())
    np.testing.assert_array_equal(target.result(), expected)


@FEW
@given(st.sampled_from([1, 5, 29, 31, 32, 33, 64, 70]), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_pack_and_unpack(n_classes: int, height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand((n_classes, height, width), generator=generator) < 0.4
    bits = pack(masks.float(), 0.5)
    assert bits.dtype == torch.int32 and bits.shape == (n_words(n_classes), height, width)
    assert torch.equal(unpack(bits[None], n_classes)[0], masks)
    two = torch.stack([bits, bits.flip(1)])
    assert torch.equal(unpack(two, n_classes), torch.stack([masks, masks.flip(1)]))
    for k in range(n_classes):
        word = bits[k // 32].numpy().view(np.uint32)
        np.testing.assert_array_equal((word >> np.uint32(k % 32)) & 1, masks[k].numpy())


def test_the_sign_bit() -> None:
    masks = torch.zeros(64, 1, 1)
    masks[31] = masks[63] = 1
    bits = pack(masks, 0.5)
    assert bits.flatten().tolist() == [-(2**31), -(2**31)]
    assert unpack(bits[None], 64).flatten().nonzero().flatten().tolist() == [31, 63]


def test_pack_with_a_threshold_for_each_class() -> None:
    maps = torch.linspace(-1, 1, 9).view(1, 1, 9).expand(3, 1, 9)
    limits = torch.tensor([-0.6, 0.0, 0.6])
    assert torch.equal(unpack(pack(maps, limits)[None], 3)[0], maps > limits.view(3, 1, 1))
    assert not unpack(pack(torch.full((1, 2, 2), math.nan), 0.0)[None], 1).any()


@pytest.mark.parametrize("threshold", [0.001, 0.1, 0.35, 0.5, 0.65, 0.9, 0.999])
def test_a_threshold_on_logits_is_one_on_probabilities(threshold: float) -> None:
    logits = torch.randn(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    assert torch.equal(logits > logit(threshold), logits.sigmoid() > threshold)
    assert math.isclose(1 / (1 + math.exp(-logit(threshold))), threshold)


class Bright(nn.Module):
    """Two classes: bright pixels, dark pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x - 0.5, 0.5 - x], 1) * 20


def predictors() -> Iterator[Sliding | Whole]:
    yield Whole(Forward(Bright()), 64)
    yield Sliding(Forward(Bright(), batch=3), 32, 16, 0.3)
    yield Sliding(Forward(Bright(), batch=1), 64, 64, None)


def bits_of(predictor: Sliding | Whole, image: NDArray[np.uint8]) -> NDArray[np.int32]:
    frame = fit_frame(View.whole(image.shape), 64, predictor.window)
    grey = fit_image(reduce_image(image, frame.reduction), frame)
    target = Packed(*image.shape, limits_of([0.5, 0.5], "logits"))
    for band in on_file(predictor.bands(torch.from_numpy(grey)[None, None].float() / 255), frame, "logits"):
        target.add(band)
    return target.result()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_images_of_any_size_come_back_at_their_own(shape: tuple[int, int]) -> None:
    """The left half bright, the right half dark; the border may move by the resampling's blur alone."""
    height, width = shape
    image = np.zeros(shape, np.uint8)
    image[:, : width // 2] = 255
    scale = max(shape) / 64
    for predictor in predictors():
        bits = bits_of(predictor, image)
        assert bits.shape == (1, height, width) and bits.dtype == np.int32
        masks = masks_of(bits, 2).numpy()
        assert not (masks[0] & masks[1]).any()
        margin = math.ceil(max(scale, 1))
        left, right = width // 2 - margin, width // 2 + margin
        if left > 0:
            assert masks[0, :, :left].all() and not masks[0, :, right:].any()
            assert masks[1, :, right:].all() and not masks[1, :, :left].any()


def test_an_image_of_the_frames_size_is_thresholded_pixel_by_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    image[np.abs(image.astype(int) - 127) < 3] = 0
    for predictor in predictors():
        masks = masks_of(bits_of(predictor, image), 2).numpy()
        np.testing.assert_array_equal(masks[0], image > 127)
        np.testing.assert_array_equal(masks[1], image < 128)
