"""inference/rle.py against the competition's own function, masks at the edges, and every text it must refuse."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from reference import competition_rle, pack

from inference.rle import decode_bits, decode_rle, encode_bits, flat_words, parse_runs

FEW = settings(derandomize=True, max_examples=60, deadline=None)


@st.composite
def mask_stacks(draw: st.DrawFn) -> NDArray[np.bool_]:
    """(K, H, W) up to three words, from nearly empty to noise, some wider than the encoder's block of 128 pixels."""
    k = draw(st.sampled_from([1, 2, 29, 31, 32, 33, 40, 64, 65]))
    h, w = draw(st.integers(1, 12)), draw(st.sampled_from([1, 2, 7, 16, 61]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    return rng.random((k, h, w)) < density


@FEW
@given(mask_stacks())
def test_equals_the_competition_and_comes_back(masks: NDArray[np.bool_]) -> None:
    bits = pack(masks)
    rles = encode_bits(bits, len(masks))
    assert rles == [competition_rle(mask) for mask in masks]
    np.testing.assert_array_equal(decode_bits(rles, *masks.shape[1:]), bits)
    for k in (0, len(masks) - 1):
        np.testing.assert_array_equal(decode_rle(rles[k], *masks.shape[1:]), masks[k])


@FEW
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)))
def test_any_small_mask_in_the_sign_bit(mask: NDArray[np.bool_]) -> None:
    masks = np.zeros((32, *mask.shape), bool)
    masks[31] = mask
    rles = encode_bits(pack(masks), 32)
    assert rles == [""] * 31 + [competition_rle(mask)]
    np.testing.assert_array_equal(decode_bits(rles, *mask.shape), pack(masks))


@pytest.mark.parametrize(
    ("pixels", "rle"),
    [
        ([], ""),
        (range(12), "1 12"),
        ([0], "1 1"),
        ([11], "12 1"),
        ([0, 11], "1 1 12 1"),
        ([3, 4], "4 2"),  # goes on over the end of the first row of four
        ([8, 9, 10, 11], "9 4"),
    ],
)
@pytest.mark.parametrize("k", [0, 28, 31, 32, 40])
def test_edges(pixels: list[int], rle: str, k: int) -> None:
    masks = np.zeros((41, 3, 4), bool)
    masks[k].flat[list(pixels)] = True
    rles = encode_bits(pack(masks), 41)
    assert rles[k] == rle
    assert [other for i, other in enumerate(rles) if i != k] == [""] * 40
    np.testing.assert_array_equal(decode_rle(rle, 3, 4), masks[k])


def test_more_boundaries_than_the_first_buffer_holds() -> None:
    masks = (
        np.random.default_rng(5).random((3, 400, 401)) < 0.5
    )  # 4 of 5 pixels begin or end a run, 65 536 fit at first
    masks[:, -1, -1] = True
    assert encode_bits(pack(masks), 3) == [competition_rle(mask) for mask in masks]


def test_views_and_read_only_words() -> None:
    masks = np.random.default_rng(6).random((29, 20, 30)) < 0.3
    bits = pack(masks)
    turned = bits.transpose(0, 2, 1)
    assert encode_bits(turned, 29) == [competition_rle(mask.T) for mask in masks]
    bits.flags.writeable = False
    assert encode_bits(bits, 29) == [competition_rle(mask) for mask in masks]
    assert flat_words(bits, 29).base is not None


def test_image_without_pixels() -> None:
    assert encode_bits(np.zeros((1, 0, 5), np.int32), 2) == ["", ""]
    assert decode_bits(["", ""], 0, 5).shape == (1, 0, 5)


@pytest.mark.parametrize(
    ("bits", "n_classes", "sentence"),
    [
        (np.zeros((1, 2, 2), np.int64), 29, "bits is int64 of shape (1, 2, 2), but for 29 classes it must be int32 of"),
        (np.zeros((1, 2, 2), np.int32), 33, "for 33 classes it must be int32 of shape (2, H, W)."),
        (np.zeros((2, 2), np.int32), 29, "shape (1, H, W)."),
        (np.zeros((0, 2, 2), np.int32), 0, "n_classes is 0, but must be 1 or more."),
        (np.full((1, 2, 2), 1 << 29, np.int32), 29, "with 29 classes, bits from 29 up of word 0 must be 0."),
        (np.full((2, 2, 2), -1, np.int32), 63, "with 63 classes, bits from 31 up of word 1 must be 0."),
    ],
)
def test_refuses_words_that_do_not_fit_the_classes(bits: NDArray[np.int32], n_classes: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        encode_bits(bits, n_classes)


@pytest.mark.parametrize(
    ("rle", "sentence"),
    [
        ("1 2 5", "RLE ends with the start 5, but every start must be followed by a length."),
        ("7", "RLE ends with the start 7, but"),
        ("1.0 2", "RLE holds '1.0', but starts and lengths must be whole numbers from 1 up."),
        ("1 two", "RLE holds 'two', but"),
        ("nan", "RLE holds 'nan', but"),
        ("1 2\n", "RLE holds '2\\n', but"),
        ("1\t2", "RLE holds '1\\t2', but"),
        ("１ 2", "RLE holds '１', but"),
        ("\ud800 2", "RLE holds '?', but"),
        ("0 2", "RLE holds '0', but"),
        ("-3 2", "RLE holds '-3', but"),
        ("1 0", "RLE holds '0', but"),
        ("1 -1", "RLE holds '-1', but"),
        ("x" * 10_000, f"RLE holds '{'x' * 60}', but"),
        ("5 2 1 2", "RLE holds a run from pixel 1 after one to pixel 6, but runs must be sorted and must not overlap."),
        ("1 3 3 2", "RLE holds a run from pixel 3 after one to pixel 3, but"),
        ("1 3 1 3", "RLE holds a run from pixel 1 after one to pixel 3, but"),
        ("12 2", "RLE holds the run '12 2', but runs must end at the last pixel, 12, or before."),
        ("1 13", "RLE holds the run '1 13', but"),
        ("13 1", "RLE holds the run '13 1', but"),
        ("18446744073709551617 1", "RLE holds the run '18446744073709551617 1', but"),  # 2^64 + 1
        ("1 18446744073709551617", "RLE holds the run '1 18446744073709551617', but"),
        ("9" * 100 + " 1", f"RLE holds the run '{'9' * 60}', but"),
    ],
)
def test_refuses_bad_text(rle: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        decode_rle(rle, 3, 4)
    with pytest.raises(ValueError, match=re.escape("Class 1: " + sentence)):
        decode_bits(["1 1", rle], 3, 4)


def test_legal_text_that_the_encoder_does_not_write() -> None:
    np.testing.assert_array_equal(parse_runs("1 2 3 2", 12), [[0, 2], [2, 4]])  # touching
    np.testing.assert_array_equal(parse_runs("  1  2   12 1 ", 12), [[0, 2], [11, 12]])
    assert parse_runs(" ", 12).shape == (0, 2)
    np.testing.assert_array_equal(parse_runs("4194304 100"), [[4194303, 4194403]])  # size unknown


@FEW
@given(st.text(alphabet="0123 -.x", max_size=12))
def test_every_text_is_read_as_python_reads_it_or_refused(rle: str) -> None:
    """Against a second parser that is slow and obvious."""
    last, runs, good = 0, [], True
    tokens = [token for token in rle.split(" ") if token]
    good = len(tokens) % 2 == 0 and all(token.isdigit() and int(token) > 0 for token in tokens)
    for start, length in zip(tokens[::2], tokens[1::2], strict=False) if good else ():
        good = good and int(start) > last and int(start) + int(length) - 1 <= 30
        last = int(start) + int(length) - 1
        runs.append([int(start) - 1, last])
    if good:
        assert parse_runs(rle, 30).tolist() == runs
    else:
        with pytest.raises(ValueError, match=r"^RLE .*\.$"):
            parse_runs(rle, 30)
