"""dataset/hand.py: no bone is lost, the thumb tells the side, and what is no hand gives the whole image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from config import HAND_BONES
from dataset.hand import Hand, find_hand
from dataset.images import read_image, scale_to_uint8
from dataset.labels import read_polygons
from dataset.phantom import Phantom, draw_phantom

Image = NDArray[np.uint8]

SIZE = 192
PHANTOMS = [draw_phantom(5, subject, side, SIZE, bent=subject % 2 == 1) for subject in range(8) for side in "LR"]
SIDES = {"L": "left", "R": "right"}


def bones(drawn: Phantom) -> tuple[int, int, int, int]:
    points = np.concatenate([polygon for polygons in drawn.polygons.values() for polygon in polygons])
    points = np.clip(points, 0, SIZE - 1)
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0) + 1
    return int(x0), int(y0), int(x1), int(y1)


def area(box: tuple[int, int, int, int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def far(box: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Largest difference of an edge, share of the picture."""
    return float(np.abs(np.subtract(box, other)).max() / SIZE)


def whole(image: Image) -> tuple[int, int, int, int]:
    return 0, 0, image.shape[1], image.shape[0]


@pytest.mark.parametrize("drawn", PHANTOMS)
def test_no_bone_is_lost_and_the_side_is_right(drawn: Phantom) -> None:
    hand, own = find_hand(drawn.image), bones(drawn)
    assert hand.side == SIDES[drawn.side]
    assert all(a <= b for a, b in zip(hand.box[:2], own[:2], strict=True))
    assert all(a >= b for a, b in zip(hand.box[2:], own[2:], strict=True))
    assert area(hand.box) < 1.6 * area(own)


def test_files_of_a_set(phantom_root: Path) -> None:
    """With the labels as read from disk, and 128 px."""
    files = sorted((phantom_root / "train" / "DCM").rglob("*.png"))
    assert files
    for file in files:
        label = phantom_root / "train" / "outputs_json" / file.relative_to(phantom_root / "train" / "DCM")
        polygons = read_polygons(label.with_suffix(".json"), HAND_BONES)
        thumb, little = (np.concatenate(polygons[name])[:, 0].mean() for name in ("finger-1", "finger-16"))
        assert find_hand(read_image(file)).side == ("right" if thumb < little else "left")


@pytest.mark.parametrize("drawn", PHANTOMS[:6])
def test_a_mirrored_picture_is_the_other_hand(drawn: Phantom) -> None:
    hand, other = find_hand(drawn.image), find_hand(drawn.image[:, ::-1])
    x0, y0, x1, y1 = hand.box
    assert other.box == (SIZE - x1, y0, SIZE - x0, y1)
    assert {hand.side, other.side} == {"left", "right"}


CONTRASTS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "weak": lambda grey: 0.2 * grey,
    "veiled": lambda grey: 0.5 * grey + 80,
    "gamma 0.6": lambda grey: 255 * (grey / 255) ** 0.6,
    "gamma 1.6": lambda grey: 255 * (grey / 255) ** 1.6,
}


@pytest.mark.parametrize("name", CONTRASTS)
def test_contrast_does_not_matter(name: str) -> None:
    for drawn in PHANTOMS[:6]:
        hand = find_hand(drawn.image)
        changed = find_hand(np.rint(CONTRASTS[name](drawn.image.astype(np.float64))).astype(np.uint8))
        assert changed.side == hand.side
        assert far(changed.box, hand.box) < 0.015


@pytest.mark.parametrize("size", [48, 100, 384, 1000])
def test_another_size_gives_the_same_place(size: int) -> None:
    method = cv2.INTER_AREA if size < SIZE else cv2.INTER_LINEAR
    for drawn in PHANTOMS[:4]:
        hand = find_hand(drawn.image)
        other = find_hand(np.asarray(cv2.resize(drawn.image, (size, size), interpolation=method), np.uint8))
        assert other.side == hand.side
        assert far(tuple(c * SIZE / size for c in other.box), hand.box) < 0.03


def framed(image: Image) -> Image:
    """A white frame that joins the forearm."""
    out = image.copy()
    out[:4] = out[-4:] = out[:, :4] = out[:, -4:] = 255
    return out


def side_by_side(image: Image) -> Image:
    """Black and white plate edges left and right."""
    return np.pad(np.pad(image, ((0, 0), (9, 5)), constant_values=255), ((0, 0), (12, 30)))


def noisy(image: Image) -> Image:
    return np.clip(image + np.random.default_rng(0).normal(0, 20, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("change", "left"), [(framed, 0), (side_by_side, 21), (noisy, 0)])
def test_edges_and_noise_do_not_matter(change: Callable[[Image], Image], left: int) -> None:
    for drawn in PHANTOMS[:8]:
        hand, own = find_hand(change(drawn.image)), bones(drawn)
        assert hand.side == SIDES[drawn.side]
        assert hand.box[0] <= own[0] + left and hand.box[1] <= own[1]
        assert hand.box[2] >= own[2] + left and hand.box[3] >= own[3]
        assert area(hand.box) < 1.7 * area(own)


@pytest.mark.parametrize("degrees", [-50, -25, 25, 50])
def test_a_turned_hand_keeps_its_side(degrees: float) -> None:
    turn = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), degrees, 1.0)
    for drawn in PHANTOMS[:8]:
        turned = np.asarray(cv2.warpAffine(drawn.image, turn, (SIZE, SIZE)), np.uint8)
        assert find_hand(turned).side == SIDES[drawn.side]


def chest() -> Image:
    """A trunk with shoulders and neck, two dark lungs and a spine."""
    image = np.zeros((256, 256), np.uint8)
    cv2.ellipse(image, (128, 150), (105, 140), 0, 0, 360, 120, cv2.FILLED)
    image[60:90] = image[:90, 100:156] = 120
    for x in (80, 176):
        cv2.ellipse(image, (x, 125), (30, 70), 0, 0, 360, 35, cv2.FILLED)
    image[:, 118:138] = 190
    return image


def blobs() -> Image:
    noise = cv2.GaussianBlur(np.random.default_rng(2).standard_normal((256, 256)), (0, 0), 4)
    return scale_to_uint8(noise.astype(np.float32))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 64), np.uint8),
        np.full((300, 200), 255, np.uint8),
        np.full((32, 2048), 9, np.uint8),
        np.random.default_rng(1).integers(0, 256, (200, 260), dtype=np.uint8),
        np.random.default_rng(1).integers(0, 256, (32, 900), dtype=np.uint8),
        np.tile(np.arange(256, dtype=np.uint8), (256, 1)),
        np.eye(128, dtype=np.uint8) * 255,
        blobs(),
        chest(),
    ],
)
def test_no_hand_gives_the_whole_image(image: Image) -> None:
    assert find_hand(image) == Hand(whole(image), "right")


def test_the_image_stays_as_it_is() -> None:
    image = PHANTOMS[0].image.copy()
    assert find_hand(image) == find_hand(image)
    assert np.array_equal(image, PHANTOMS[0].image)


@pytest.mark.parametrize(
    "image", [np.zeros((31, 64), np.uint8), np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.float32)]
)
def test_what_is_no_image_is_refused(image: Image) -> None:
    with pytest.raises(ValueError, match="read_image"):
        find_hand(image)
