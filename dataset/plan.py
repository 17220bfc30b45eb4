"""One plan per sample: every random choice, drawn from (seed, epoch, record, window) alone.

So a sample does not depend on rank, worker count, batch size or loader, and resuming at (epoch, step) needs no loader
state. All geometry is one 2 x 3 matrix from output pixels to pixels of the fitted image, the crop included.

Frames. An image is *fitted*: resized so that its long side is `image_size`, aspect kept. Where it is narrower than the
window it is centred on a black *frame*. Training windows and inference windows lie in that same frame.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from config import Augment

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Frame:
    """How an image of (height, width) lies in the frame: sizes in px, offsets of the fitted image in the frame."""

    height: int
    width: int
    fitted_height: int
    fitted_width: int
    frame_height: int
    frame_width: int

    @property
    def top(self) -> int:
        return (self.frame_height - self.fitted_height) // 2

    @property
    def left(self) -> int:
        return (self.frame_width - self.fitted_width) // 2

    def to_source(self) -> Matrix:
        """2 x 3 matrix from frame pixels to pixels of the image file (pixel centres at whole numbers)."""
        sx, sy = self.width / self.fitted_width, self.height / self.fitted_height
        return np.array(
            [[sx, 0, (0.5 - self.left) * sx - 0.5], [0, sy, (0.5 - self.top) * sy - 0.5]], dtype=np.float64
        )


def fit_frame(shape: tuple[int, ...], image_size: int, window: int) -> Frame:
    """The frame of a (height, width) image: long side resized to `image_size`, padded to at least `window` each way."""
    height, width = shape
    scale = image_size / max(height, width)
    fitted_h, fitted_w = max(1, round(height * scale)), max(1, round(width * scale))
    return Frame(height, width, fitted_h, fitted_w, max(fitted_h, window), max(fitted_w, window))


def fit_image(image: NDArray[np.uint8], frame: Frame) -> NDArray[np.uint8]:
    """(H, W) uint8 -> the frame (frame_height, frame_width) uint8; area-averaged where it shrinks."""
    if (frame.fitted_height, frame.fitted_width) != image.shape:
        shrinks = frame.fitted_height < image.shape[0]
        size = (frame.fitted_width, frame.fitted_height)
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(image, size, interpolation=method), dtype=np.uint8)
    if (frame.frame_height, frame.frame_width) == image.shape:
        return image
    out = np.zeros((frame.frame_height, frame.frame_width), np.uint8)
    out[frame.top : frame.top + frame.fitted_height, frame.left : frame.left + frame.fitted_width] = image
    return out


@dataclass(frozen=True)
class Plan:
    """What happens to one sample."""

    matrix: Matrix
    """2 x 3, from output pixels to frame pixels."""
    size: int
    """Height and width of the output, px."""
    contrast: float
    """Factor around mid grey."""
    brightness: float
    """Addition, in units of the full range."""
    gamma: float
    noise: float
    """Standard deviation of added noise, in units of the full range."""
    noise_seed: int


def generator(seed: int, epoch: int, key: str, window: int) -> np.random.Generator:
    """The random numbers of one sample. Keyed by name, so that a changed set changes no other sample."""
    return np.random.default_rng([seed, epoch, zlib.crc32(key.encode()), window])


def draw_plan(rng: np.random.Generator, frame: Frame, size: int, augment: Augment) -> Plan:
    """Draw a window of `size` px inside `frame` and its augmentation.

    Where the frame is no larger than the window, the window is the frame and `shift` moves it; else its place is
    uniform over the frame and needs no shift.
    """
    spare = np.array([frame.frame_width - size, frame.frame_height - size])
    # At whole pixels: without augmentation a window is a crop, as at inference, and not blurred between pixels.
    place = np.floor(rng.random(2) * (np.maximum(spare, 0) + 1))
    shift = rng.uniform(-augment.shift, augment.shift, 2) * max(frame.fitted_height, frame.fitted_width)
    middle = (size - 1) / 2
    centre = place + middle + np.where(spare > 0, 0, shift)
    angle = np.deg2rad(rng.uniform(-augment.rotate, augment.rotate))
    zoom = 1 / (1 + rng.uniform(-augment.scale, augment.scale))
    mirror = -1.0 if rng.random() < augment.flip else 1.0
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([mirror, 1.0])
    return Plan(
        matrix=np.column_stack([turn, centre - turn @ (middle, middle)]),
        size=size,
        contrast=1 + rng.uniform(-augment.contrast, augment.contrast),
        brightness=rng.uniform(-augment.brightness, augment.brightness),
        gamma=2 ** rng.uniform(-augment.gamma, augment.gamma),
        noise=rng.uniform(0, augment.noise),
        noise_seed=int(rng.integers(2**63)),
    )


def compose(outer: Matrix, inner: Matrix) -> Matrix:
    """The 2 x 3 matrix that applies `inner` first, then `outer`."""
    full = np.vstack([inner, [0.0, 0.0, 1.0]])
    return np.asarray(outer @ full, dtype=np.float64)


def warp_image(image: NDArray[np.uint8], plan: Plan) -> NDArray[np.uint8]:
    """Apply the plan to a framed image: (H, W) uint8 -> (size, size) uint8."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    out = cv2.warpAffine(image, plan.matrix, (plan.size, plan.size), flags=flags, borderValue=0)
    levels = np.linspace(0, 1, 256) ** plan.gamma
    levels = (levels - 0.5) * plan.contrast + 0.5 + plan.brightness
    if plan.noise == 0:
        return np.asarray(cv2.LUT(out, np.clip(np.rint(levels * 255), 0, 255).astype(np.uint8)), dtype=np.uint8)
    grain = np.random.default_rng(plan.noise_seed).standard_normal(out.shape, np.float32)
    grey = np.asarray(cv2.LUT(out, (levels * 255).astype(np.float32))) + grain * np.float32(plan.noise * 255)
    return np.asarray(np.clip(np.rint(grey), 0, 255), dtype=np.uint8)


def warp_bits(bits: NDArray[np.int32], plan: Plan, frame: Frame) -> NDArray[np.int32]:
    """Apply the plan's geometry to packed words of the image file's size: (words, H, W) -> (words, size, size).

    From full size straight to the output, nearest neighbour: rasterising at another scale would give another mask.
    """
    matrix = compose(frame.to_source(), plan.matrix)
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    # Nearest copies the 32 bits of a float as they are; as integers OpenCV refuses them or is slower.
    warped = [
        cv2.warpAffine(word.view(np.float32), matrix, (plan.size, plan.size), flags=flags, borderValue=0)
        for word in bits
    ]
    return np.stack(warped).view(np.int32)
