"""Masks as run-length text, straight from packed words: one pass over the pixels encodes all classes of an image.

A run-length text is the competition's: `start length start length …`, start 1-based, row-major over the whole H x W
image, so that a run goes on over the end of a row; an empty mask is the empty text.

Packed words ("bits") hold K classes of an H x W image as int32 of shape (W32, H, W), W32 = ceil(K / 32): class k is bit
k % 32 of word k // 32. Bit 31 is the sign bit, so all arithmetic here is on the uint32 view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from engine.bits import n_words

WORD_BITS = 32

# What parse_runs takes for the last pixel of an image of unknown size; small enough that ten times it fits in int64.
_NO_LAST_PIXEL = 1 << 53

_BLOCK = 128  # pixels that are looked at for a boundary in one go

_GOOD, _NO_NUMBER, _NO_LENGTH, _OUT_OF_ORDER, _BEYOND = range(5)


def encode_bits(bits: NDArray[np.int32], n_classes: int) -> list[str]:
    """Run-length text of every class, in class order.

    Byte-identical to the competition's function on each mask:
    `pixels = concatenate([[0], mask.flatten(), [0]]); runs = where(pixels[1:] != pixels[:-1])[0] + 1;
    runs[1::2] -= runs[::2]; " ".join(str(x) for x in runs)`.

    Args:
        bits: int32 (ceil(n_classes / 32), H, W).

    Raises:
        ValueError: `bits` has another dtype or shape, or a bit above the last class is set.
    """
    texts: list[str] = []
    for ends, offsets, n_pixels in _runs_by_word(bits, n_classes):
        text, text_offsets = _text(ends, offsets, len(str(n_pixels)))
        whole = text.tobytes().decode("ascii")
        texts.extend(whole[a:b] for a, b in pairwise(text_offsets.tolist()))
    return texts


def runs_of_bits(bits: NDArray[np.int32], n_classes: int) -> list[NDArray[np.int64]]:
    """The runs of every class of packed words, in class order, as `parse_runs` gives them; see `encode_bits`."""
    runs: list[NDArray[np.int64]] = []
    for ends, offsets, _ in _runs_by_word(bits, n_classes):
        runs.extend(ends[a:b].reshape(-1, 2) for a, b in pairwise(offsets.tolist()))
    return runs


def parse_runs(rle: str, n_pixels: int | None = None) -> NDArray[np.int64]:
    """The runs of one text as int64 (R, 2): first pixel, and the one after the last, 0-based in the flattened image.

    Touching runs (`1 2 3 2`) are legal; `n_pixels` None means that the size is unknown, and runs may end anywhere.

    Raises:
        ValueError: something else than whole numbers from 1 up and blanks, a start without a length, runs that are not
            sorted and disjoint, or a run that ends after pixel `n_pixels`.
    """
    data = rle.encode("utf-8", errors="replace")
    last = _NO_LAST_PIXEL if n_pixels is None else n_pixels
    runs, fault, at = _parse(np.frombuffer(data, np.uint8), last)
    if fault == _GOOD:
        return np.asarray(runs, np.int64)
    # 60 bytes hold two numbers of any real image and keep the message short where the text is something else.
    value, *more = [x for x in data[at : at + 60].decode("utf-8", errors="replace").split(" ") if x]
    if fault == _NO_NUMBER:
        raise ValueError(f"RLE holds {value!r}, but starts and lengths must be whole numbers from 1 up.")
    if fault == _NO_LENGTH:
        raise ValueError(f"RLE ends with the start {value}, but every start must be followed by a length.")
    if fault == _OUT_OF_ORDER:
        raise ValueError(
            f"RLE holds a run from pixel {value} after one to pixel {runs[-1, 1]}, but runs must be "
            "sorted and must not overlap."
        )
    run = " ".join((value, *more[:1]))
    raise ValueError(f"RLE holds the run {run!r}, but runs must end at the last pixel, {last}, or before.")


def runs_to_text(runs: NDArray[np.int64]) -> str:
    """The text of one class from its runs, int64 (R, 2) as `parse_runs` gives them; the same pixels, run by run.

    The runs are not checked: they must be sorted, disjoint and not empty, and text is as `encode_bits` writes it only
    where none touch.
    """
    last = int(runs[-1, 1]) if len(runs) else 0
    text, _ = _text(np.ascontiguousarray(runs).reshape(-1), np.array([0, runs.size]), len(str(last)))
    return text.tobytes().decode("ascii")


def decode_rle(rle: str, height: int, width: int) -> NDArray[np.bool_]:
    """The mask of one text as bool (height, width); strict, see `parse_runs` for its errors."""
    mask = np.zeros(height * width, np.uint8)
    _paint(parse_runs(rle, mask.size), mask, np.uint8(1))
    return mask.view(np.bool_).reshape(height, width)


def decode_bits(rles: Sequence[str], height: int, width: int) -> NDArray[np.int32]:
    """The masks of K texts, in class order, as packed words int32 (ceil(K / 32), height, width).

    Raises:
        ValueError: as `parse_runs`, and names the class by its index.
    """
    words = np.zeros((n_words(len(rles)), height * width), np.uint32)
    for k, rle in enumerate(rles):
        try:
            runs = parse_runs(rle, height * width)
        except ValueError as error:
            raise ValueError(f"Class {k}: {error}") from error
        _paint(runs, words[k // WORD_BITS], np.uint32(1 << k % WORD_BITS))
    return words.view(np.int32).reshape(len(words), height, width)


def flat_words(bits: NDArray[np.int32], n_classes: int) -> NDArray[np.uint32]:
    """`bits`, int32 (W32, H, W), as uint32 (W32, H * W) in row-major order; a view where `bits` is contiguous.

    Raises:
        ValueError: another dtype, another number of dimensions, or not ceil(n_classes / 32) words.
    """
    if n_classes < 1:
        raise ValueError(f"n_classes is {n_classes}, but must be 1 or more.")
    if bits.dtype != np.int32 or bits.ndim != 3 or len(bits) != n_words(n_classes):
        raise ValueError(
            f"bits is {bits.dtype} of shape {bits.shape}, but for {n_classes} classes it must be int32 of "
            f"shape ({n_words(n_classes)}, H, W)."
        )
    return np.ascontiguousarray(bits).view(np.uint32).reshape(len(bits), bits.shape[1] * bits.shape[2])


def _runs_by_word(
    bits: NDArray[np.int32], n_classes: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], int]]:
    """Of each word: `_boundaries` of the classes that it holds, and how many pixels there are."""
    for first, words in zip(range(0, n_classes, WORD_BITS), flat_words(bits, n_classes), strict=True):
        used = min(WORD_BITS, n_classes - first)
        ends, offsets = _boundaries(words)
        if offsets[used] != offsets[WORD_BITS]:
            raise ValueError(
                f"bits holds pixels of a class above the last: with {n_classes} classes, bits from "
                f"{used} up of word {first // WORD_BITS} must be 0."
            )
        yield ends, offsets[: used + 1], words.size


@njit(cache=True, nogil=True)
def _boundaries(words: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels (0-based) before which a bit of (P,) words flips, grouped by bit: bit k has ends[offsets[k]:offsets[k+1]].

    Every group has an even length: a run that reaches the last pixel ends at P.
    """
    at = np.empty(1 << 16, np.int64)
    flips = np.empty(1 << 16, np.uint32)
    count = 0
    if words.size and words[0]:
        at[0], flips[0], count = 0, words[0], 1
    # A branch a pixel takes 17 ms for an empty 2048 image, this 0.5: most blocks hold no boundary, and a loop without
    # branches over two slices (an index of i - 1 would be checked for wrapping) compiles to vector instructions.
    for begin in range(1, words.size, _BLOCK):
        here = words[begin : begin + _BLOCK]
        before = words[begin - 1 : begin - 1 + here.size]
        any_flip = np.uint32(0)
        for j in range(here.size):
            any_flip |= here[j] ^ before[j]
        if any_flip == 0:
            continue
        if count + _BLOCK >= at.size:  # one place is kept for the end of the image
            at = np.append(at, np.empty_like(at))
            flips = np.append(flips, np.empty_like(flips))
        for j in range(here.size):
            flip = here[j] ^ before[j]
            if flip:
                at[count] = begin + j
                flips[count] = flip
                count += 1
    if words.size and words[-1]:
        at[count] = words.size
        flips[count] = words[-1]
        count += 1
    offsets = np.zeros(33, np.int64)
    for c in range(count):
        flip = flips[c]
        k = 0
        while flip:
            offsets[k + 1] += flip & 1
            flip >>= 1
            k += 1
    for k in range(32):
        offsets[k + 1] += offsets[k]
    ends = np.empty(offsets[32], np.int64)
    fill = offsets[:32].copy()
    for c in range(count):
        flip = flips[c]
        k = 0
        while flip:
            if flip & 1:
                ends[fill[k]] = at[c]
                fill[k] += 1
            flip >>= 1
            k += 1
    return ends, offsets


@njit(cache=True, nogil=True)
def _text(
    ends: NDArray[np.int64], offsets: NDArray[np.int64], most_digits: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """ASCII of all groups of `_boundaries`, one after the other, and where in it each group begins and ends.

    `most_digits` is the number of digits of the last pixel's number.
    """
    # Digits written here take a tenth of the time of str() and join over Python integers.
    out = np.empty((most_digits + 1) * ends.size, np.uint8)
    cuts = np.zeros_like(offsets)
    digits = np.empty(most_digits, np.uint8)
    size = 0
    for k in range(offsets.size - 1):
        for e in range(offsets[k], offsets[k + 1]):
            # Even positions of a group are starts, odd ones the pixel after the run; groups have even lengths.
            value = ends[e] + 1 if (e - offsets[k]) % 2 == 0 else ends[e] - ends[e - 1]
            if e > offsets[k]:
                out[size] = 32
                size += 1
            n = 0
            while value:
                digits[n] = 48 + value % 10
                value //= 10
                n += 1
            while n:
                n -= 1
                out[size] = digits[n]
                size += 1
        cuts[k + 1] = size
    return out[:size], cuts


@njit(cache=True, nogil=True)
def _parse(text: NDArray[np.uint8], last: int) -> tuple[NDArray[np.int64], int, int]:
    """Runs (R, 2) of a text before its first fault, the fault (or _GOOD), and the byte where the faulty part begins."""
    runs = np.empty((text.size // 4 + 1, 2), np.int64)
    count = 0
    start = 0  # 0 while the next number is a start: a start itself is 1 or more
    start_at = 0
    i = 0
    while True:
        while i < text.size and text[i] == 32:
            i += 1
        if i == text.size:
            break
        at = i
        value = 0
        while i < text.size and text[i] != 32:
            digit = int(np.int64(text[i])) - 48  # int() of the byte itself would be unsigned
            if digit < 0 or digit > 9:
                return runs[:count], _NO_NUMBER, at
            value = 10 * value + digit
            if value > last:
                value = last + 1  # beyond the last pixel, however many digits follow: never overflows
            i += 1
        if value == 0:
            return runs[:count], _NO_NUMBER, at
        if start == 0:
            if count and value <= runs[count - 1, 1]:
                return runs[:count], _OUT_OF_ORDER, at
            start, start_at = value, at
            continue
        if start + value - 1 > last:
            return runs[:count], _BEYOND, start_at
        runs[count, 0] = start - 1
        runs[count, 1] = start - 1 + value
        count += 1
        start = 0
    if start:
        return runs[:count], _NO_LENGTH, start_at
    return runs[:count], _GOOD, 0


@njit(cache=True, nogil=True)
def _paint(runs: NDArray[np.int64], pixels: NDArray[np.unsignedinteger[Any]], bit: np.unsignedinteger[Any]) -> None:
    """Set `bit` in (P,) pixels (uint32 words, or uint8 for one mask) along the runs."""
    for r in range(len(runs)):
        for i in range(runs[r, 0], runs[r, 1]):
            pixels[i] |= bit
