"""Find the hands in a radiograph of any size, orientation, side and polarity, with the network that segments them.

The network knows one way of seeing a hand: upright, a right one, bright bones on a dark ground. So it looks at the
reduced image in every quarter turn, mirrored or not, inverted or not, and the answer tells which of these is right:
only there do the bones that it names lie to each other as in a hand. Their places are compared with an average hand's
by the similarity (turn, scale, shift) that most of them agree on, found as in RANSAC (Fischler, Bolles 1981,
doi:10.1145/358669.358692) but over all pairs of bones, so without chance. What agrees on no hand is none.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from config import HAND_BONES, ConfigProblem
from dataset.frame import Matrix, compose, reduce_image
from dataset.warp import nearest_steps, warp_bits
from inference.forward import Forward

Complex = NDArray[np.complex128]
"""Places x + iy, y downwards."""

LOOK = 384
"""Side of the square that the network looks at to find hands, px."""
LEAST_AREA = 6
"""Px of the look: smaller components are noise."""
PARTS = 3
"""Components of a bone that may be it: two hands have two."""
NEAR, FAR = 7.0, 0.17
"""A bone is in its place within so many mm, and this share of its distance from the wrist more: fingers spread."""
APART = 25.0
"""Bones nearer to each other than this, mm, say too little of turn and scale to begin with."""
SCALES = (0.15, 3.0)
"""Px of the look per mm: from a hand that fills a tenth of the picture to one that is cut by its edges."""
RECOGNISED = 0.5
"""Confidence of the bones in their places, summed up and divided by 29, from which on it is a hand. On a real
hand 0.76 to 0.94, upside down and mirrored up to 0.46."""
SAME = 80.0
"""Hands whose middles are nearer to each other than this, mm, are one, seen in two ways: a palm is as wide."""
MOST = 4
"""Hands in a picture that are looked at again."""
FRAME = (330.0, 10.0)
"""Side of the upright square and its middle's height above the base of the third metacarpal, mm: fingertips of large
hands reach 165 mm above that middle, and 75 mm of forearm as far below it."""
SMALLEST = 200.0
"""Side of that square, mm, in a file that shows less."""


@cache
def average_places() -> tuple[Complex, NDArray[np.float64]]:
    """The 29 bones' centres in a right hand seen from its back, upright: (29,) mm, from the base of the third
    metacarpal; and how far from there they may lie, (29,) mm.

    hand_places.csv has the means over 64 right hands of the competition's look (draw_phantom with seed 7, 512 px): the
    centres of their masks, each hand turned, scaled and shifted onto the others by all bones but the cut forearm.
    """
    with open(Path(__file__).with_name("hand_places.csv"), encoding="ascii", newline="") as file:
        rows = {row["class"]: complex(float(row["x"]), float(row["y"])) for row in csv.DictReader(file)}
    places = np.array([rows[name] for name in HAND_BONES])
    return places, NEAR + FAR * np.abs(places - rows["Capitate"])


@dataclass(frozen=True)
class Placement:
    """Where a hand lies in an image file, and how it is seen upright."""

    matrix: Matrix
    """From mm of the average hand to pixels of the file."""
    inverted: bool
    """Bones are dark on a light ground in the file."""
    score: float
    """Of the match with the average hand: the mean over all bones of their confidence, 0 for those out of place."""
    file: tuple[int, int]
    """Height and width of the image file, px."""

    @property
    def side(self) -> Literal["left", "right"]:
        """Anatomical side, if the picture is seen from the back of the hand (PA, as usual)."""
        return "right" if np.linalg.det(self.matrix[:, :2]) > 0 else "left"

    @property
    def turned(self) -> float:
        """By how many degrees, clockwise, the hand is turned in the file: 0 has the fingers up, 90 to the right."""
        right, down = self.matrix[:, :2] @ (0, -1)
        return float(np.rad2deg(np.arctan2(right, -down)))

    @property
    def scale(self) -> float:
        """Pixels of the file per mm."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:, :2]))))

    def natural_size(self, largest: int) -> int:
        """Side, px, of the upright square that is as large as in the file, but not larger than that."""
        return max(1, min(largest, round(self.frame()[1] * self.scale)))

    def centre(self) -> NDArray[np.float64]:
        """Middle of all bones: (x, y) in the file, px."""
        place = average_places()[0].mean()
        return np.asarray(self.matrix @ (place.real, place.imag, 1))

    def frame(self) -> tuple[NDArray[np.float64], float]:
        """The upright square: its middle (x, y) and its side, mm. Smaller than FRAME where the file ends before."""
        inverse = np.asarray(cv2.invertAffineTransform(self.matrix), np.float64)
        height, width = self.file
        ends = np.array(list(product((0, width), (0, height), (1,)))) @ inverse.T
        middle = np.array([0.0, -FRAME[1]])
        low = np.maximum(ends.min(axis=0), middle - FRAME[0] / 2)
        high = np.minimum(ends.max(axis=0), middle + FRAME[0] / 2)
        return (low + high) / 2, float(np.clip((high - low).max(), SMALLEST, FRAME[0]))

    def square(self, size: int) -> Matrix:
        """From pixels of the upright square, `size` px a side, to pixels of the file."""
        middle, side = self.frame()
        step = side / size
        corner = middle + (step - side) / 2
        return compose(self.matrix, np.column_stack([np.diag([step, step]), corner]))

    def cut(self, pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        """The hand upright, a right one, bright on dark: (H, W) uint8 -> (size, size) uint8; black beyond the file."""
        return _warped(pixels, self.square(size), size, self.inverted)

    def paste(self, bits: NDArray[np.int32], out: NDArray[np.int32]) -> None:
        """Add packed words of the upright square, (words, size, size), to those of the file, (words, H, W)."""
        size, (height, width) = bits.shape[-1], out.shape[1:]
        matrix = self.square(size)
        corners = np.array(list(product((0, size), (0, size), (1,)))) @ matrix.T
        left, top = np.clip(np.floor(corners.min(axis=0)), 0, (width, height)).astype(int)
        right, bottom = np.clip(np.ceil(corners.max(axis=0)) + 1, 0, (width, height)).astype(int)
        if left >= right or top >= bottom:
            return
        height, width = bottom - top, right - left
        inverse = np.asarray(cv2.invertAffineTransform(matrix), np.float64)
        back = compose(inverse, np.array([[1.0, 0, left], [0, 1.0, top]]))
        seen = warp_bits(bits, (0, size, 0, size), nearest_steps(back, int(max(height, width))))
        out[:, top:bottom, left:right] |= seen[:, :height, :width]


@dataclass(frozen=True)
class _Bones:
    """What the network takes for bones in one look: components, sorted by class."""

    classes: NDArray[np.intp]
    places: Complex
    confidence: NDArray[np.float64]

    def without(self, used: NDArray[np.bool_]) -> _Bones:
        return _Bones(self.classes[~used], self.places[~used], self.confidence[~used])


def find_hands(
    forward: Forward, classes: Sequence[str], pixels: NDArray[np.uint8], device: str
) -> list[Placement]:
    """The hands of an image, the surest first; none where it shows none.

    Args:
        forward: a network on `device` that knows upright right hands, blended in logits.
        classes: of the network.
        pixels: (H, W) uint8.

    Raises:
        ConfigProblem: the classes are not the 29 bones.
        torch.OutOfMemoryError: a single look does not fit into memory.
    """
    if tuple(classes) != HAND_BONES:
        raise ConfigProblem(f"find_hands finds the 29 bones of a hand, not {', '.join(classes[:3])}, …: leave it out.")
    looks = [(_first(pixels.shape, turns, mirrored), inverted) for turns, mirrored, inverted in product(
        range(4), (False, True), (False, True)
    )]  # fmt: skip
    candidates = sorted(_look(forward, pixels, looks, device), key=lambda hand: -hand.score)
    found: list[Placement] = []
    for hand in _different(candidates)[:MOST]:
        again = _look(forward, pixels, [(hand.square(LOOK), hand.inverted)], device)
        found += sorted(again, key=lambda hand: -hand.score)[:1]
    sure = [hand for hand in sorted(found, key=lambda hand: -hand.score) if hand.score >= RECOGNISED]
    return _different(sure)


def _different(hands: Sequence[Placement]) -> list[Placement]:
    """Without those that lie where a surer one, which comes first, lies."""
    kept: list[Placement] = []
    for hand in hands:
        centre = hand.centre()
        if all(np.hypot(*(centre - other.centre())) > SAME * max(hand.scale, other.scale) for other in kept):
            kept.append(hand)
    return kept


def _first(shape: tuple[int, ...], turns: int, mirrored: bool) -> Matrix:
    """From pixels of a look at the whole image, turned back by quarter turns and mirrored, to pixels of the file."""
    height, width = shape
    step = max(height, width) / LOOK
    turn = step * np.linalg.matrix_power(np.array([[0.0, -1.0], [1.0, 0.0]]), turns)
    turn[:, 0] *= -1 if mirrored else 1
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    return np.concatenate([turn, (middle - turn @ np.full(2, (LOOK - 1) / 2))[:, None]], axis=1)


def _look(
    forward: Forward, pixels: NDArray[np.uint8], looks: Sequence[tuple[Matrix, bool]], device: str
) -> Iterator[Placement]:
    """The hands that the network sees in looks: each from its pixels to the file's, and whether it inverts grey."""
    squares = (torch.from_numpy(_warped(pixels, matrix, LOOK, inverted)) for matrix, inverted in looks)
    windows = [square.to(device)[None, None].float() / 255 for square in squares]
    for (matrix, inverted), logits in zip(looks, forward(windows), strict=True):
        for fit, score in _fits(_bones(logits.cpu().numpy())):
            yield Placement(compose(matrix, fit), inverted, score, pixels.shape)


def _warped(pixels: NDArray[np.uint8], matrix: Matrix, size: int, inverted: bool) -> NDArray[np.uint8]:
    """(H, W) uint8 -> (size, size) uint8, of which `matrix` leads to the file's pixels; black beyond the file."""
    factor = max(1, int(np.sqrt(abs(np.linalg.det(matrix[:, :2])))))  # by averages first: nothing aliases
    small = reduce_image(pixels, factor)
    there = matrix / factor
    there[:, 2] += 0.5 / factor - 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(255 - small if inverted else small, there, (size, size), flags=flags), np.uint8)


def _bones(logits: NDArray[np.float32]) -> _Bones:
    """Components of (29, h, w) logits above 0, the largest ones of each class."""
    found: list[tuple[int, complex, float]] = []
    for k, plane in enumerate(logits):
        mask = (plane > 0).astype(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        if not width:
            continue
        inside = slice(top, top + height), slice(left, left + width)
        _, labels, stats, centres = cv2.connectedComponentsWithStats(mask[inside], connectivity=8)
        areas = stats[:, cv2.CC_STAT_AREA]
        total = np.bincount(labels.ravel(), 1 / (1 + np.exp(-plane[inside].ravel())))
        largest = sorted(range(1, len(areas)), key=lambda c: -areas[c])[:PARTS]
        centres += (left, top)
        found += [(k, complex(*centres[c]), total[c] / areas[c]) for c in largest if areas[c] >= LEAST_AREA]
    classes, places, confidence = zip(*found, strict=True) if found else ((), (), ())
    return _Bones(np.array(classes, np.intp), np.array(places, np.complex128), np.array(confidence, np.float64))


def _fits(bones: _Bones) -> Iterator[tuple[Matrix, float]]:
    """Hands that the bones make: from mm of the average hand to pixels of the look, and the score of the match."""
    while (found := _best(bones)) and found[2] >= RECOGNISED / 2:
        turn, shift, score, used = found
        yield np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]]), score
        bones = bones.without(used)


def _best(bones: _Bones) -> tuple[complex, complex, float, NDArray[np.bool_]] | None:
    """The similarity z -> turn * z + shift on which the surest bones agree, its score, and these bones."""
    there = average_places()[0][bones.classes]
    i, j = np.nonzero(np.triu(np.abs(there[:, None] - there[None, :]) > APART))
    turns = (bones.places[j] - bones.places[i]) / (there[j] - there[i])
    possible = (np.abs(turns) > SCALES[0]) & (np.abs(turns) < SCALES[1])
    if not possible.any():
        return None
    turns, i = turns[possible], i[possible]
    shifts = bones.places[i] - turns * there[i]
    fitting = _fitting(bones, turns, shifts)
    starts = np.flatnonzero(np.diff(bones.classes, prepend=-1))
    score = np.maximum.reduceat(np.where(fitting, bones.confidence, 0), starts, axis=1).sum(axis=1)
    best = int(score.argmax())
    turn, shift, used = complex(turns[best]), complex(shifts[best]), fitting[best]
    for _ in range(3):  # least squares on those that agree, weighted by their confidence
        w, z, t = bones.confidence[used], bones.places[used], there[used]
        middle, target = np.average(t, weights=w), np.average(z, weights=w)
        turn = complex((w * (z - target) * (t - middle).conj()).sum() / (w * np.abs(t - middle) ** 2).sum())
        shift = complex(target - turn * middle)
        now = _fitting(bones, np.array([turn]), np.array([shift]))[0]
        if len(np.unique(bones.classes[now])) < 2:
            break
        used = now
    total = np.maximum.reduceat(np.where(used, bones.confidence, 0), starts).sum() / len(HAND_BONES)
    return turn, shift, float(total), used


def _fitting(bones: _Bones, turns: Complex, shifts: Complex) -> NDArray[np.bool_]:
    """Which bones, (n,), lie in their places under which similarities, (m,): (m, n)."""
    there, reach = (values[bones.classes] for values in average_places())
    off = np.abs(turns[:, None] * there + shifts[:, None] - bones.places)
    return np.asarray(off < np.abs(turns)[:, None] * reach)
