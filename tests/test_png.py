"""dataset/png.py: equal to OpenCV on every filter, and OpenCV's where it is not ours to decode."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dataset.images import read_image
from dataset.png import SIGNATURE, decode_gray
from engine.files import FileProblem

FEW = hypothesis_settings(derandomize=True, max_examples=80, deadline=None)
KINDS = {1: 0, 2: 4, 3: 2, 4: 6}
"""Channels -> colour type."""


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def encode(image: NDArray[np.uint8], filters: list[int], cut: int = 1000, extra: bytes = b"") -> bytes:
    """A PNG of (H, W) or (H, W, channels) whose rows have these filters in turn, written from the specification."""
    height, width = image.shape[:2]
    channels = image.size // (height * width)
    rows = image.reshape(height, -1).astype(int)
    zero = np.zeros((height, channels), int)
    up = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    left, corner = np.hstack([zero, rows[:, :-channels]]), np.hstack([zero, up[:, :-channels]])
    first = left + up - corner
    a, b, c = abs(first - left), abs(first - up), abs(first - corner)
    paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, up, corner))
    guesses = [0 * rows, left, up, (left + up) // 2, paeth]
    kinds = [filters[i % len(filters)] for i in range(height)]
    rests = [((rows[i] - guesses[kind][i]) % 256).astype(np.uint8).tobytes() for i, kind in enumerate(kinds)]
    lines = [bytes([kind]) + rest for kind, rest in zip(kinds, rests, strict=True)]
    packed = zlib.compress(b"".join(lines) + extra)
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, KINDS[channels], 0, 0, 0])
    parts = [chunk(b"IDAT", packed[i : i + cut]) for i in range(0, len(packed), cut)]
    return SIGNATURE + chunk(b"IHDR", header) + b"".join(parts) + chunk(b"IEND", b"")


def opencv(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE), dtype=np.uint8)


@FEW
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([(), (1,), (3,)]),
    st.lists(st.integers(0, 4), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_every_filter(height: int, width: int, channels: tuple[int, ...], filters: list[int], seed: int) -> None:
    grey = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)
    image = np.repeat(grey[..., None], channels[0], 2) if channels else grey
    data = encode(image, filters, cut=37)
    decoded = decode_gray(data)
    assert decoded is not None and decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, grey)
    np.testing.assert_array_equal(opencv(data), grey)


def test_phantoms(phantom_root: Path) -> None:
    for path in sorted(phantom_root.rglob("*.png"))[:4]:
        np.testing.assert_array_equal(decode_gray(path.read_bytes()), opencv(path.read_bytes()))


def pil(tmp_path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(tmp_path / "x.png", **options)
    return tmp_path / "x.png"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I;16", "1", "transparent"])
def test_what_is_left_to_opencv(mode: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    colours = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    if mode == "I;16":
        path = pil(tmp_path, Image.fromarray(rng.integers(0, 65536, (20, 30)).astype(np.uint16)))
    elif mode == "transparent":
        path = pil(tmp_path, Image.fromarray(colours[..., 0]), transparency=7)
    else:
        path = pil(tmp_path, Image.fromarray(colours).convert(mode))
    assert decode_gray(path.read_bytes()) is None
    assert read_image(path).shape == (20, 30)


def test_one_pixel_of_colour_is_enough(tmp_path: Path) -> None:
    image = np.repeat(np.full((9, 9, 1), 100, np.uint8), 3, 2)
    image[8, 8, 1] = 101
    data = encode(image, [4])
    assert decode_gray(data) is None
    (tmp_path / "x.png").write_bytes(data)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), opencv(data))


@pytest.mark.parametrize("what", ["cut", "flipped", "filter", "short"])
def test_damage(what: str, tmp_path: Path) -> None:
    """With right checksums of the chunks, so that only the pixels can tell."""
    grey = np.random.default_rng(2).integers(0, 256, (30, 30)).astype(np.uint8)
    whole = encode(grey, [0], cut=10**6)
    start = whole.index(b"IDAT")
    length = int.from_bytes(whole[start - 4 : start], "big")
    body = whole[start + 4 : start + 4 + length]
    if what == "cut":
        body = body[: length // 2]
    elif what == "flipped":
        body = body[: length // 2] + bytes([body[length // 2] ^ 255]) + body[length // 2 + 1 :]
    else:
        raw = bytearray(zlib.decompress(body))
        raw[31] = 9 if what == "filter" else 0
        body = zlib.compress(bytes(raw) if what == "filter" else bytes(raw[:-5]))
    path = tmp_path / "x.png"
    path.write_bytes(whole[: start - 4] + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    with pytest.raises(ValueError, match=r"."):
        decode_gray(path.read_bytes())
    with pytest.raises(FileProblem, match=r"x\.png is not a readable image"):
        read_image(path)


def test_pixels_to_spare_are_for_opencv_to_judge() -> None:
    grey = np.random.default_rng(3).integers(0, 256, (8, 8)).astype(np.uint8)
    assert decode_gray(encode(grey, [1], extra=b"more")) is None
