"""Hands of any place, size, turn, side and polarity, found by a network that reads bones off their grey values."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from config import HAND_BONES, Config, ConfigProblem
from dataset.layouts import read_split
from dataset.phantom_draw import draw_phantom
from dataset.readers import Record
from engine import settings
from engine.bits import n_words
from inference.build import single
from inference.find_hands import Placement, _different, average_places, find_hands
from inference.forward import Forward
from inference.hands import Hand, describe_hands, hand_rows, hands_header
from inference.metrics import count_bits, dice_from_counts
from inference.pipeline import predict, validate

GREYS = np.arange(60, 60 + 6 * len(HAND_BONES), 6)
"""Of the bones: no inverted one is another."""
K = len(HAND_BONES)
SIZE = 512


class Oracle(nn.Module):
    """Bones from their grey values, but for what lies between two of them at edges."""

    def forward(self, grey: Tensor) -> Tensor:
        near = (grey * 255 - torch.from_numpy(GREYS)[:, None, None]).abs() < 2
        return torch.where(near, 4.0, -4.0)


@pytest.fixture(scope="module")
def hand() -> dict[str, list[NDArray[np.int32]]]:
    return draw_phantom(3, 1, "R", SIZE, bent=False).polygons


def painted(
    hands: Sequence[tuple[dict[str, list[NDArray[np.int32]]], NDArray[np.float64]]],
    shape: tuple[int, int],
    inverted: bool,
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """An image of hands that 2 x 3 matrices put there, and their packed masks; bones cover each other in the image."""
    image = np.zeros(shape, np.uint8)
    bits = np.zeros((n_words(K), *shape), np.int32)
    for polygons, matrix in hands:
        for k, name in enumerate(HAND_BONES):
            moved = [np.rint(p @ matrix[:, :2].T + matrix[:, 2]).astype(np.int32) for p in polygons[name]]
            cv2.fillPoly(image, moved, int(GREYS[k]))
            mask = cv2.fillPoly(np.zeros(shape, np.uint8), moved, 1)
            bits[0] |= mask.astype(np.int32) << k
    return (255 - image if inverted else image), bits


def placed(
    degrees: float, scale: float, centre: tuple[float, float], mirrored: bool = False
) -> NDArray[np.float64]:
    """From pixels of the phantom to an image, turned clockwise about its middle."""
    angle = np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = turn @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    middle = np.array([SIZE / 2, SIZE / 2])
    return np.column_stack([turn, np.array(centre) - turn @ middle])


def config(**changes: object) -> Config:
    base = {"model_file": "model.model_simple_unet", "inference_file": "inference.inference", "image_size": 384}
    return settings.replace(Config(), {**base, "window_size": 384, "stride": 384, "find_hands": True, **changes})


def dice(bits: NDArray[np.int32], truth: NDArray[np.int32]) -> NDArray[np.float64]:
    return np.asarray(dice_from_counts(count_bits(bits, truth, K)))


@pytest.mark.parametrize(
    ("degrees", "scale", "shape", "mirrored", "inverted"),
    [
        (0, 1.0, (512, 512), False, False),
        (97, 0.8, (700, 640), True, False),
        (-160, 2.1, (1500, 1200), True, True),
        (-75, 0.6, (500, 900), False, True),
    ],
)
def test_a_hand_is_found_however_it_lies(
    hand: dict[str, list[NDArray[np.int32]]],
    degrees: float, scale: float, shape: tuple[int, int], mirrored: bool, inverted: bool,
) -> None:  # fmt: skip
    centre = (shape[1] * 0.52, shape[0] * 0.47)
    image, _ = painted([(hand, placed(degrees, scale, centre, mirrored))], shape, inverted)
    (found,) = find_hands(Forward(Oracle()), HAND_BONES, image, "cpu")
    assert found.side == ("left" if mirrored else "right")
    assert found.inverted == inverted
    assert abs((found.turned - degrees - own_turn(hand, mirrored) + 180) % 360 - 180) < 6
    assert found.score > 0.8


def own_turn(polygons: dict[str, list[NDArray[np.int32]]], mirrored: bool) -> float:
    """How the phantom itself is turned: from its wrist to the base of its middle finger."""
    wrist, base = (np.concatenate(polygons[name]).mean(axis=0) for name in ("Lunate", "finger-10"))
    right, down = base - wrist
    turn = float(np.rad2deg(np.arctan2(right, -down)))
    return -turn if mirrored else turn


def record(folder: Path, name: str, image: NDArray[np.uint8]) -> Record:
    cv2.imwrite(str(folder / name), image)
    return Record(folder / name, None, "x")


def test_masks_come_back_to_their_place_in_the_file(
    hand: dict[str, list[NDArray[np.int32]]], tmp_path: Path
) -> None:
    """Through the same way as any inference: two hands, one of them mirrored, and a picture without one."""
    both = [(hand, placed(20, 0.6, (200, 190))), (hand, placed(-30, 0.55, (530, 220), mirrored=True))]
    image, truth = painted(both, (420, 720), False)
    noise = np.random.default_rng(0).integers(0, 255, (300, 400)).astype(np.uint8)
    records = [record(tmp_path, "two.png", image), record(tmp_path, "none.png", noise)]
    cfg = config()
    two, none = predict(single(cfg, Oracle()), records, cfg, "cpu")
    assert sorted(found.side for found in two.hands) == ["left", "right"]
    seen = dice(two.bits, truth)
    assert np.nanmin(seen) > 0.4 and np.nanmean(seen) > 0.75, "hidden parts and blurred edges are missed"
    assert (none.hands, none.bits.any(), none.bits.shape) == ((), False, (1, 300, 400))
    confidence = np.array([found.confidence for found in two.hands])
    assert confidence.shape == (2, K) and (confidence > 0.8).all()


def test_what_is_cut_out_goes_back_to_where_it_was(hand: dict[str, list[NDArray[np.int32]]]) -> None:
    """Also where the square reaches beyond the file."""
    image, truth = painted([(hand, placed(35, 1.2, (330, 300), mirrored=True))], (640, 600), False)
    (found,) = find_hands(Forward(Oracle()), HAND_BONES, image, "cpu")
    size, matrix = found.natural_size(2048), found.square(found.natural_size(2048))
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    upright = cv2.warpAffine(truth[0].astype(np.float64), matrix, (size, size), flags=flags).astype(np.int32)
    back = np.zeros_like(truth)
    found.paste(upright[None], back)
    assert np.nanmin(dice(back, truth)) > 0.95
    found.paste(upright[None], back)
    assert np.nanmin(dice(back, truth)) > 0.95, "pasting adds, and again is no more"
    assert found.cut(255 - image, size).shape == (size, size)
    assert Placement(found.matrix, True, 1.0, image.shape).cut(255 - image, size).max() == found.cut(image, size).max()


def test_one_hand_seen_in_two_ways_is_the_surer_one() -> None:
    """A network names some bones of a hand upside down and mirrored, too."""
    middle = average_places()[0].mean()
    upright = np.array([[2.0, 0.0, 300.0], [0.0, 2.0, 400.0]])
    ghost = np.array([[2.0, 0.0, 310.0], [0.0, -2.0, 400.0 + 4 * middle.imag + 20]])
    beside = upright + np.array([[0.0, 0.0, 220.0], [0.0, 0.0, 0.0]])
    seen = ((upright, 0.9), (ghost, 0.6), (beside, 0.55))
    hands = [Placement(matrix, False, score, (900, 900)) for matrix, score in seen]
    assert _different(hands) == [hands[0], hands[2]]


def test_a_hand_is_cut_out_no_larger_than_its_file() -> None:
    """What lies beyond the file would only make the hand smaller for the network."""
    def frame(matrix: NDArray[np.float64], file: tuple[int, int]) -> tuple[list[float], float]:
        middle, side = Placement(matrix, False, 1.0, file).frame()
        return middle.tolist(), side

    there = np.array([[2.0, 0.0, 300.0], [0.0, 2.0, 400.0]])  # the base of the third metacarpal at (300, 400)
    assert frame(there + np.array([[0, 0, 800.0], [0, 0, 800.0]]), (4000, 4000)) == ([0, -10], 330)
    assert frame(there, (2000, 2000)) == ([7.5, -10], 330), "the left end of the file is 150 mm away"
    assert frame(there, (560, 600)) == ([0, -47.5], 300), "sides 150 mm away, the top more than 175 mm, the bottom 80"
    assert frame(np.array([[5.0, 0.0, 300.0], [0.0, 5.0, 400.0]]), (560, 600))[1] == 200, "no hand fits into less"
    upside_down = np.array([[-2.0, 0.0, 300.0], [0.0, -2.0, 160.0]])
    assert frame(upside_down, (560, 600)) == ([0, -47.5], 300)


def test_average_places_are_those_of_the_phantom() -> None:
    places, reach = average_places()
    inside = np.zeros(K)
    for subject in range(8):
        polygons = draw_phantom(9, subject, "R", 256, bent=False).polygons
        masks = [cv2.fillPoly(np.zeros((256, 256), np.uint8), polygons[name], 1) for name in HAND_BONES]
        moments = [cv2.moments(mask, binaryImage=True) for mask in masks]
        seen = np.array([complex(m["m10"], m["m01"]) / m["m00"] for m in moments])
        middle, target = places[:27].mean(), seen[:27].mean()
        turns = (seen - target)[:27] @ (places - middle)[:27].conj() / (np.abs(places - middle)[:27] ** 2).sum()
        inside += np.abs((seen - target) / turns - (places - middle)) < reach
    assert inside.min() >= 7, "but for one, all hands have each bone in its place; forearms are cut anywhere"


def test_other_classes_and_probabilities_are_refused() -> None:
    image = np.zeros((64, 64), np.uint8)
    with pytest.raises(ConfigProblem, match="find_hands finds the 29 bones of a hand, not hand, …: leave it out"):
        find_hands(Forward(Oracle()), ("hand",), image, "cpu")
    with pytest.raises(ConfigProblem, match="find_hands predicts hands upright, so save_probs has no image"):
        settings.check(config(save_probs=True))


def test_what_is_said_of_hands(tmp_path: Path) -> None:
    classes = ("Radius", "Ulna")
    sure = Hand("right", 3.4, False, 0.91, (0.95, 0.6))
    dark = Hand("left", -88.0, True, 0.5, (0.9, 0.0))
    down = Hand("left", 178.0, False, 0.5, (0.9, 0.9))
    rows = [
        *hand_rows("a.png", (sure,), classes),
        *hand_rows("b.png", (dark, down), classes),
        *hand_rows("chest.png", (), classes),
    ]
    path = tmp_path / "hands.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([hands_header(classes), *rows])
    assert [len(row) for row in rows] == [len(hands_header(classes))] * 4
    assert describe_hands(path) == [
        "a.png: a right hand (if seen from its back), upright, turned by 3 degrees, 2 of 2 bones, least sure of Ulna "
        "(0.60)",
        "b.png: a left hand (if seen from its back), on its side, fingers to the left, dark on light, 1 of 2 bones, "
        "missing Ulna and a left hand (if seen from its back), upside down, 2 of 2 bones",
        "chest.png: not a hand",
    ]
    with open(path, "a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(row for n in range(30) for row in hand_rows(f"{n}.png", (), classes))
    assert describe_hands(path) == ["hands: none in 31 of 33 images (chest.png, 0.png, 1.png, …), several in 1"]


def test_validation_takes_hands_as_they_lie(phantom_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.pipeline.find_hands", lambda *asked: pytest.fail("hands were looked for"))
    cfg = config(data_root=str(phantom_root))
    table = validate(single(cfg, Oracle()), read_split(cfg, "train")[:1], cfg, "cpu")
    assert table.mean() < 0.1
