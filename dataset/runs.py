"""Predicted labels: the rows of a leaderboard CSV, a folder of masks or a file of packed masks -> runs of pixels.

A label is kept as runs and drawn only where a window looks: the runs of a hand of 2048 px are about 100 KB, its packed
words 16.8 MB.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from config import suggest
from dataset.images import image_shape, read_image
from dataset.readers import Record
from engine.bits import n_words
from engine.files import FileProblem
from engine.rle import parse_runs, runs_of_bits


@dataclass(frozen=True)
class Runs:
    """What a predicted label shows."""

    runs: Mapping[str, NDArray[np.int64]]
    """Class name -> first pixel and the one after the last of each run, (R, 2), counted from 0 along the rows."""
    height: int
    width: int

    def draw(self, classes: Sequence[str], region: tuple[int, int, int, int]) -> NDArray[np.int32]:
        """Packed words of a region (first row, end row, first column, end column): (words, rows, columns) int32."""
        top, bottom, left, right = region
        bits = np.zeros((n_words(len(classes)), max(bottom - top, 0), max(right - left, 0)), np.uint32)
        for k, name in enumerate(classes):
            _draw(self.runs[name], self.width, top, left, bits[k // 32], np.uint32(1 << k % 32))
        return bits.view(np.int32)

    def boxes(self) -> NDArray[np.float64]:
        """As dataset.labels.class_boxes."""
        shown = [self.runs[name] for name in sorted(self.runs) if len(self.runs[name])]
        return np.array([_box(runs, self.width) for runs in shown], np.float64).reshape(-1, 4)


def _box(runs: NDArray[np.int64], width: int) -> tuple[int, int, int, int]:
    top, left = np.divmod(runs[:, 0], width)
    bottom, right = np.divmod(runs[:, 1] - 1, width)
    if (top != bottom).any():  # a run that goes on in the next row
        return 0, int(top[0]), width - 1, int(bottom[-1])
    return int(left.min()), int(top[0]), int(right.max()), int(bottom[-1])


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _draw(
    runs: NDArray[np.int64], width: int, top: int, left: int, word: NDArray[np.uint32], bit: np.uint32
) -> None:
    rows, columns = word.shape
    for r in range(len(runs)):
        start, end = runs[r, 0], runs[r, 1]
        for y in range(max(start // width, top), min((end - 1) // width + 1, top + rows)):
            for x in range(max(start - y * width, left), min(end - y * width, left + columns)):
                word[y - top, x - left] |= bit


def read_runs(record: Record, classes: Sequence[str]) -> Runs:
    """The predicted label of a record, at its image's own size.

    Raises:
        FileProblem: the image or the label can't be read, or they don't fit each other or the classes; names them.
    """
    assert record.label is not None and record.pseudo is not None
    shape = image_shape(record.image)
    if record.pseudo.rows:
        runs = _read_rows(record, record.label, record.pseudo.rows, classes, shape[0] * shape[1])
    elif record.label.is_dir():
        runs = read_masks(record.label, classes, shape)
    else:
        runs = read_packed(record.label, classes, shape)
    return Runs(runs, *shape)


def split_rows(text: str) -> list[list[str]]:
    """The fields of each row of CSV text.

    Raises:
        csv.Error: this is not CSV.
    """
    # The default of 128 KiB a field is too small for the RLE of a noisy mask. The limit is the whole process's: only
    # ever raise it.
    csv.field_size_limit(max(csv.field_size_limit(), min(sys.maxsize, 2**31 - 1)))
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


def _read_rows(
    record: Record, path: Path, rows: tuple[int, int], classes: Sequence[str], n_pixels: int
) -> dict[str, NDArray[np.int64]]:
    """From the bytes of a CSV that hold an image's rows."""
    start, end = rows
    try:
        with open(path, "rb") as file:
            file.seek(start)
            fields = split_rows(file.read(end - start).decode("utf-8"))
        runs = {label: parse_runs(rle, n_pixels) for name, label, rle, *_ in fields if name == record.name}
    except OSError as error:
        raise FileProblem(f"{path} cannot be read ({error.strerror}): check the path and its permissions.") from None
    except (ValueError, csv.Error):
        runs = {}
    if runs.keys() != set(classes):  # it was checked when the records were made
        raise FileProblem(f"{path} has changed since the run began (image {record.name!r}): start the run again.")
    return runs


def check_names(found: Sequence[str], classes: Sequence[str], where: str) -> None:
    """Raise FileProblem unless the names are the classes, in any order."""
    for name, count in Counter(found).items():
        if name not in classes:
            raise FileProblem(
                f"{where}: {name!r} is no class{suggest(name, classes)}. Correct it or set --classes."
            )
        if count > 1:
            raise FileProblem(f"{where}: class {name!r} is there {count} times, but must be there once: remove one.")
    if lacking := [name for name in classes if name not in found]:
        raise FileProblem(
            f"{where}: class {lacking[0]!r} ({len(lacking)} in all) is missing, but an empty mask must be there too: "
            f"write it, or set --classes."
        )


def check_masks(label: Path, classes: Sequence[str], image: Path) -> None:
    """Look at names and sizes of masks without decoding them, before training starts.

    Raises:
        FileProblem: other classes, or another size than the image's; names the file.
    """
    shape = image_shape(image)
    if label.is_dir():
        paths = sorted(label.glob("*.png"))
        check_names([path.stem for path in paths], classes, str(label))
        for path in paths:
            _check_size(path, image_shape(path), shape)
        return
    try:
        with np.load(label, allow_pickle=False) as file, file.zip.open("bits.npy") as member:
            np.lib.format.read_magic(member)
            (_, *found), _, _ = np.lib.format.read_array_header_1_0(member)
            names = _names(file)
    except DAMAGES as error:
        raise damaged(label, error) from None
    check_names(names, classes, str(label))
    _check_size(label, tuple(found), shape)


DAMAGES = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading a .npz file that is none, or only half of one, raises."""


def _names(file: np.lib.npyio.NpzFile) -> list[str]:
    return [str(name) for name in json.loads(str(file["classes"]))]


def damaged(path: Path, error: BaseException) -> FileProblem:
    return FileProblem(
        f"{path} holds no packed masks ({str(error) or type(error).__name__}): write it again with --save_masks packed."
    )


def _check_size(path: Path, found: tuple[int, ...], shape: tuple[int, int]) -> None:
    if found != shape:
        sizes = [" x ".join(map(str, reversed(size))) for size in (found, shape)]
        raise FileProblem(
            f"{path} is {sizes[0]} px, but its image is {sizes[1]}: give the folder of the images that were predicted."
        )


def read_masks(folder: Path, classes: Sequence[str], shape: tuple[int, int]) -> dict[str, NDArray[np.int64]]:
    """From one PNG per class."""
    bits = np.zeros((n_words(len(classes)), *shape), np.uint32)
    for k, name in enumerate(classes):
        path = folder / f"{name}.png"
        mask = read_image(path)
        _check_size(path, mask.shape, shape)
        shown = mask > 0
        if (mask[shown] != mask.max()).any():
            raise FileProblem(f"{path} has more than two grey values, so it is no mask: write 0 and 255 only.")
        bits[k // 32] |= shown.astype(np.uint32) << np.uint32(k % 32)
    return dict(zip(classes, runs_of_bits(bits.view(np.int32), len(classes)), strict=True))


def read_packed(path: Path, classes: Sequence[str], shape: tuple[int, int]) -> dict[str, NDArray[np.int64]]:
    """From packed words."""
    try:
        with np.load(path, allow_pickle=False) as file:
            bits, names = file["bits"], _names(file)
        runs = runs_of_bits(bits, len(names))
    except DAMAGES as error:
        raise damaged(path, error) from None
    check_names(names, classes, str(path))
    _check_size(path, bits.shape[1:], shape)
    return dict(zip(names, runs, strict=True))
