"""One plan per sample: every random choice, drawn from (seed, epoch, record, window) alone.

So a sample does not depend on rank, worker count, batch size or loader, and resuming at (epoch, step) needs no loader
state. All affine geometry is one 2 x 3 matrix from output pixels to frame pixels, the crop included; what lies between
frame and file is the frame's (dataset/frame.py).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from config import Augment, Window
from dataset.frame import Frame, Matrix, window_starts
from engine.settings import AUGMENTATIONS

DISTORTIONS = ("elastic", "grid_distortion")
"""Augmentations that move pixels of image and labels, after the matrix."""
FILTERS = (
    "clahe",
    "retinex",
    "edges",
    "sharpen",
    "low_resolution",
    "blur",
    "motion_blur",
    "noise",
    "coarse_dropout",
)
"""Augmentations of the image alone, in the order in which they are applied."""
MIXERS = ("copy_paste", "mixup", "cutmix")
"""Augmentations that take from another image's sample, in their order."""

Boxes = NDArray[np.float64]
"""(n, 4): x0, y0, x1, y1 of each class that an image shows, frame px."""


@dataclass(frozen=True)
class Effect:
    """One augmentation of one sample."""

    name: str
    value: float
    seed: int
    """Of everything that it draws itself."""


@dataclass(frozen=True)
class Tone:
    """The curve of grey values g in [0, 1]: (g ** gamma - 0.5) * contrast + 0.5 + brightness, clipped."""

    gamma: float = 1.0
    contrast: float = 1.0
    brightness: float = 0.0

    def table(self) -> NDArray[np.uint8]:
        """Grey value 0..255 -> grey value, (256,) uint8."""
        levels = (np.linspace(0, 1, 256) ** self.gamma - 0.5) * self.contrast + 0.5 + self.brightness
        return np.asarray(np.clip(np.rint(levels * 255), 0, 255), dtype=np.uint8)


@dataclass(frozen=True)
class Plan:
    """What happens to one sample: the matrix, then the tone, then the effects in their order."""

    matrix: Matrix
    """From output pixels to frame pixels."""
    size: int
    """Height and width of the output, px."""
    tone: Tone = Tone()
    effects: tuple[Effect, ...] = ()
    """Distortions, then filters, then mixers."""


@dataclass(frozen=True)
class Cell:
    """One window of the training grid."""

    number: int
    """Row by row."""
    side: int
    """Windows along each side of the grid."""
    stride: int
    """Between windows of the inference grid, px."""

    def start(self, which: int, room: int, size: int) -> float:
        """First pixel along an axis with `room` px beyond the window: the inference grid's, where that has `side`
        windows there too; else the windows spread evenly."""
        starts = window_starts(room + size, size, self.stride)
        return float(starts[which] if len(starts) == self.side else round(which * room / max(self.side - 1, 1)))


class Draws:
    """The random numbers of one sample: a row of five for each augmentation, drawn whether it is on or off.

    So turning one off, or changing its range, changes no other.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.place = rng.random(3)
        self.rows = dict(zip(AUGMENTATIONS, rng.random((len(AUGMENTATIONS), 5)), strict=True))

    def value(self, augment: Augment, name: str, off: float = 0.0) -> float:
        """The value of an augmentation in this sample, `off` where it doesn't happen."""
        low, high, _ = getattr(augment, name)
        return low + (high - low) * float(self.rows[name][1]) if self.happens(augment, name) else off

    def happens(self, augment: Augment, name: str) -> bool:
        """Whether an augmentation happens in this sample."""
        return bool(self.rows[name][0] < getattr(augment, name)[2])

    def second(self, augment: Augment, name: str) -> float:
        """Another value of the same range, for the other axis; 0 where the augmentation doesn't happen."""
        low, high, _ = getattr(augment, name)
        return low + (high - low) * float(self.rows[name][2]) if self.happens(augment, name) else 0.0

    def effects(self, augment: Augment) -> tuple[Effect, ...]:
        """Those that happen in this sample."""
        return tuple(
            Effect(name, self.value(augment, name), int(self.rows[name][3] * 2**53))
            for name in (*DISTORTIONS, *FILTERS, *MIXERS)
            if self.happens(augment, name)
        )


def generator(seed: int, epoch: int, key: str, window: int) -> np.random.Generator:
    """The random numbers of one sample. Keyed by name, so that a changed set changes no other sample."""
    return np.random.default_rng([seed, epoch, zlib.crc32(key.encode()), window])


def draw_plan(
    rng: np.random.Generator,
    frame: Frame,
    size: int,
    augment: Augment,
    cell: Cell | None = None,
    boxes: Boxes | None = None,
) -> Plan:
    """Draw a window of `size` px inside `frame` and its augmentation.

    Where the frame is no larger than the window, the window is the frame and `shift` moves it; else it lies

    * with `cell`, there in the grid;
    * with `boxes`, around one of them, drawn evenly: the centre is anywhere in the box, moved in so that the window
      stays inside the frame;
    * else anywhere in the frame.
    """
    draws = Draws(rng)
    spare = np.array([frame.frame_width - size, frame.frame_height - size])
    place = _place(draws, spare, size, cell, boxes)
    turn = _turn(draws, augment)
    moved = np.array([draws.value(augment, "shift"), draws.second(augment, "shift")])
    middle = (size - 1) / 2
    reach = max(frame.fitted_height, frame.fitted_width)
    centre = place + middle - np.where(spare > 0, 0, moved * reach)
    if draws.happens(augment, "resized_crop"):
        # The crop lies inside the window: its centre moves by what the crop leaves free.
        crop, free = _resized_crop(draws, augment)
        centre = centre + (draws.rows["resized_crop"][3:5] - 0.5) * free * size
        turn = turn @ crop
    return Plan(
        matrix=np.column_stack([turn, centre - turn @ (middle, middle)]),
        size=size,
        tone=Tone(
            gamma=2 ** draws.value(augment, "gamma"),
            contrast=1 + draws.value(augment, "contrast"),
            brightness=draws.value(augment, "brightness"),
        ),
        effects=draws.effects(augment),
    )


def n_windows(window: Window) -> int:
    """Training windows of each image and epoch in a sliding loader."""
    return grid_side(window) ** 2 if window.window_mode == "grid" else window.windows_per_image


def grid_side(window: Window) -> int:
    """Windows along each side of the training grid: as many as inference has on a square image."""
    return len(window_starts(max(window.image_size, window.window_size), window.window_size, window.stride))


def _place(
    draws: Draws, spare: NDArray[np.int64], size: int, cell: Cell | None, boxes: Boxes | None
) -> NDArray[np.float64]:
    """Top left corner (x, y) of the window, whole frame px.

    At whole pixels: without augmentation a window is a crop, as at inference, and not blurred between pixels.
    """
    room = np.maximum(spare, 0)
    if cell is not None:
        where = (cell.number % cell.side, cell.number // cell.side)
        return np.array([cell.start(which, int(free), size) for which, free in zip(where, room, strict=True)])
    if boxes is not None and len(boxes):
        box = boxes[int(draws.place[2] * len(boxes))]
        centre = box[:2] + draws.place[:2] * (box[2:] - box[:2])
        return np.asarray(np.clip(np.rint(centre - (size - 1) / 2), 0, room), dtype=np.float64)
    return np.asarray(np.floor(draws.place[:2] * (room + 1)), dtype=np.float64)


def _turn(draws: Draws, augment: Augment) -> NDArray[np.float64]:
    """2 x 2 part of the matrix from output to frame: rotation, zoom, shear and flips."""
    angle = np.deg2rad(draws.value(augment, "rotate"))
    zoom = 1 / (1 + draws.value(augment, "scale"))
    slant = np.tan(np.deg2rad(draws.value(augment, "shear")))
    mirror = np.diag([-1.0 if draws.happens(augment, name) else 1.0 for name in ("hflip", "vflip")])
    # From output to frame: the inverse of what is seen, so the minus sign of a clockwise turn is below.
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.asarray(zoom * rotation @ np.array([[1.0, slant], [0.0, 1.0]]) @ mirror, dtype=np.float64)


def _resized_crop(draws: Draws, augment: Augment) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """2 x 2 matrix of a resized crop, and the share of the window's side that it leaves free, (x, y)."""
    area = max(draws.value(augment, "resized_crop"), 1e-4)
    widest = min(4 / 3, 1 / area)  # as far as the crop of this area fits into the window
    ratio = widest ** (2 * draws.rows["resized_crop"][2] - 1)
    sides = np.sqrt([area * ratio, area / ratio])
    return np.diag(sides), 1 - sides
