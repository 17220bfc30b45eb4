"""Mask files that people drew, one for each class -> runs of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dataset.images import image_shape, is_dicom, read_encoded
from dataset.png import SIGNATURE, decode_gray
from dataset.readers import Record
from dataset.runs import Runs
from engine.files import FileProblem
from engine.rle import runs_of_bits

OTHER_COLOUR = 0.05
"""Share of the foreground from which on a second colour is another class and not the edge of the first."""


def read_mask_runs(record: Record, classes: Sequence[str]) -> Runs:
    """The masks of a record at its image's size; classes without a file are not shown.

    Raises:
        FileProblem: a file is no mask, or has another shape than the image; names it.
    """
    height, width = image_shape(record.image)
    nothing = np.zeros((0, 2), np.int64)
    runs = dict.fromkeys(classes, nothing)
    for name, path in record.masks:
        mask = fit_mask(read_mask(path), (height, width), path)
        (runs[name],) = runs_of_bits(mask.astype(np.int32)[None], 1)
    return Runs(runs, height, width)


def fit_mask(mask: NDArray[np.bool_], shape: tuple[int, int], path: Path) -> NDArray[np.bool_]:
    """A mask at the size of its image, by nearest neighbour where it was drawn on a smaller or larger copy.

    Raises:
        FileProblem: the two have different aspects, so the mask is no copy's; names the file.
    """
    if mask.shape == shape:
        return mask
    (height, width), (rows, columns) = shape, mask.shape
    if abs(rows * width - height * columns) > max(width, columns, height, rows):  # more than rounding makes
        raise FileProblem(
            f"{path} is {columns} x {rows} px, but its image is {width} x {height}, which is no enlargement of it: "
            f"pair the image with its own mask, or exclude it."
        )
    fitted = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(fitted > 0)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """The foreground of a mask file of one class, (H, W).

    Foreground is what is above half of the type's range (above 127 in 8 bits), so soft edges and JPEGs are cut in the
    middle. A darker mask must have one value beside 0 (0 and 1). A colour counts by its brightest channel, on black
    where the file is transparent.

    Raises:
        FileProblem: it can't be read, or shows several classes (a label map, several colours); names the file.
    """
    grey = _brightness(_decode(path), path)
    top = float(grey.max(initial=0))
    half = _range(grey.dtype, top) / 2
    if top > half:
        return np.asarray(grey > half)
    if ((grey > 0) & (grey < top)).any():
        raise FileProblem(
            f"{path} has several values beside 0 and none above {half:g} (the highest is {top:g}), so it is no mask of "
            f"one class: write 0 and 255, one file for each class."
        )
    return np.asarray(grey > 0)


def _decode(path: Path) -> NDArray[Any]:
    """(H, W) or (H, W, 3), of any depth, on black where it is transparent."""
    data = read_encoded(path)
    image: NDArray[Any] | None = None
    try:
        if not is_dicom(path, data):
            image = decode_gray(data) if data.startswith(SIGNATURE) else None
            if image is None:
                image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (cv2.error, ValueError):
        image = None
    if image is None:
        raise FileProblem(f"{path} is not a readable mask: fetch the file again, or exclude the image.")
    if not np.isfinite(image).all() or image.min(initial=0) < 0:
        raise FileProblem(f"{path} has values below 0 or that are no numbers: write 0 and 255.")
    if image.ndim == 2 or image.shape[2] == 3:
        return image
    alpha = image[..., -1:].astype(np.float64)
    shown = image[..., :-1] * (alpha / _range(image.dtype, float(alpha.max(initial=0))))
    if not shown.any() and alpha.any() and (alpha == 0).any():
        raise FileProblem(f"{path} is black and only its transparency shows something: write 0 and 255 without it.")
    return np.asarray(np.rint(shown) if image.dtype.kind == "u" else shown).astype(image.dtype)


def _brightness(image: NDArray[Any], path: Path) -> NDArray[Any]:
    """The brightest channel, where all foreground has one colour."""
    if image.ndim == 2:
        return image
    grey = image.max(-1)
    colours = image[grey > 0]
    if (colours == colours[:, :1]).all():
        return np.asarray(grey)
    # Ratios of the channels in quarters: the same along a soft edge, and nearly the same in a JPEG.
    strong = colours[colours.max(-1) > colours.max() / 2].astype(np.float64)
    kinds = np.rint(3 * strong / strong.max(-1, keepdims=True)).astype(np.int64) @ (1, 4, 16)
    _, counts = np.unique(kinds, return_counts=True)
    if np.sort(counts)[:-1].sum() > OTHER_COLOUR * counts.sum():
        raise FileProblem(
            f"{path} shows {len(counts)} colours beside black, so it is no mask of one class: write 0 and 255, one "
            f"file for each class."
        )
    return np.asarray(grey)


def _range(kind: np.dtype[Any], top: float) -> float:
    """Highest value of a type; of floating-point files 1, or what 8 or 16 bits would have."""
    if kind.kind in "ui":
        return float(np.iinfo(kind).max)
    return 1.0 if top <= 1 else 255.0 if top <= 255 else 65535.0
