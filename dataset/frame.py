"""Where an image lies: the part of its file that is used, and the frame that windows are cut from.

A *view* is the part of an image file that is used, mirrored or not. It is *fitted*: resized so that its long side is
`image_size`, aspect kept. Where it is narrower than the window it is centred on a larger *frame*. Training windows and
inference windows lie in that same frame.

An image is *stored* (in memory, in the cache) at its file's size divided by a whole number, by averages of squares: it
costs less than the file and no window of the frame aliases. One matrix leads from there to any window.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
"""2 x 3, from pixels of one grid to pixels of another; pixel centres lie at whole numbers."""


def compose(outer: Matrix, inner: Matrix) -> Matrix:
    """The 2 x 3 matrix that applies `inner` first, then `outer`."""
    full = np.vstack([inner, [0.0, 0.0, 1.0]])
    return np.asarray(outer @ full, dtype=np.float64)


@dataclass(frozen=True)
class View:
    """The part of an image file that is used, px of the file, and whether it is mirrored."""

    file: tuple[int, int]
    """Height and width of the image file."""
    top: int
    left: int
    height: int
    width: int
    mirrored: bool = False

    @staticmethod
    def whole(shape: tuple[int, ...]) -> View:
        """All of a (height, width) image."""
        height, width = shape
        return View((height, width), 0, 0, height, width)

    def paste(self, bits: NDArray[np.int32]) -> NDArray[np.int32]:
        """Packed words of the view, (words, height, width), back at their place in the file: (words, *file)."""
        bits = bits[..., ::-1] if self.mirrored else bits
        if bits.shape[1:] == self.file:
            return np.ascontiguousarray(bits)
        out = np.zeros((len(bits), *self.file), np.int32)
        out[:, self.top : self.top + self.height, self.left : self.left + self.width] = bits
        return out


@dataclass(frozen=True)
class Frame:
    """How a view lies in its frame: sizes in px."""

    view: View
    fitted_height: int
    fitted_width: int
    frame_height: int
    frame_width: int

    @property
    def top(self) -> int:
        """First row of the fitted view in the frame."""
        return (self.frame_height - self.fitted_height) // 2

    @property
    def left(self) -> int:
        """First column of the fitted view in the frame."""
        return (self.frame_width - self.fitted_width) // 2

    @property
    def reduction(self) -> int:
        """File pixels along the side of a stored pixel: as many as still fit into a pixel of the frame."""
        return max(1, max(self.view.height, self.view.width) // max(self.fitted_height, self.fitted_width))

    def to_file(self) -> Matrix:
        """From frame pixels to pixels of the image file."""
        view = self.view
        sx, sy = view.width / self.fitted_width, view.height / self.fitted_height
        x0, y0 = (0.5 - self.left) * sx - 0.5, (0.5 - self.top) * sy - 0.5
        if view.mirrored:
            sx, x0 = -sx, view.width - 1 - x0
        return np.array([[sx, 0, x0 + view.left], [0, sy, y0 + view.top]], dtype=np.float64)

    def to_stored(self) -> Matrix:
        """From frame pixels to pixels of the stored image."""
        factor = self.reduction
        matrix = self.to_file() / factor
        matrix[:, 2] += 0.5 / factor - 0.5
        return matrix


def fit_frame(view: View, image_size: int, window: int) -> Frame:
    """The frame of a view: long side resized to `image_size`, padded to at least `window` each way."""
    scale = image_size / max(view.height, view.width)
    height, width = max(1, round(view.height * scale)), max(1, round(view.width * scale))
    return Frame(view, height, width, max(height, window), max(width, window))


def reduce_image(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """(H, W) uint8 -> (ceil(H / factor), ceil(W / factor)) uint8: the averages of squares of `factor` px.

    The last row and column are repeated where they don't fill a square.
    """
    if factor == 1:
        return image
    down, right = -image.shape[0] % factor, -image.shape[1] % factor
    whole = cv2.copyMakeBorder(image, 0, down, 0, right, cv2.BORDER_REPLICATE) if down or right else image
    size = (whole.shape[1] // factor, whole.shape[0] // factor)
    return np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def fit_image(stored: NDArray[np.uint8], frame: Frame) -> NDArray[np.uint8]:
    """A stored image -> its frame, (frame_height, frame_width) uint8; black where the file ends."""
    matrix, size = frame.to_stored(), (frame.frame_width, frame.frame_height)
    if np.array_equal(matrix, np.eye(2, 3)) and size == stored.shape[::-1]:
        return stored
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(stored, matrix, size, flags=flags, borderValue=0), dtype=np.uint8)


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows on one axis; the last window ends with the image.

    Raises:
        ValueError: the window is larger than the axis (the frame of an image never is).
    """
    if window > size:
        raise ValueError(f"a window of {window} px does not fit {size} px: pad the image to the window first.")
    return [*range(0, size - window, stride), size - window]
