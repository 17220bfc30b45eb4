"""The probability store: the probabilities of each image as bytes, of each class's box only, with their histograms.

A probability p is kept as q = floor(255 p + 0.5). Level j, 1 to 255, is the mask q >= j, which is p >= (j - 0.5) / 255;
level 128 is p >= 0.5. A class's box is the smallest that holds its values above 1, and outside of it q counts as 0:
of all levels, only the first (p >= 0.002) can lose pixels. A dense dump of 29 x 2048 x 2048 half-precision numbers is
243 MB; bone-like probabilities take about 0.5 MB so, and a threshold can still be chosen as finely as 1 / 255.

One file an image, `<folder>/<subject>/<stem>.probs`: a line with the format, its version and the SHA-256 of the rest; a
line of JSON; and one zlib stream of arrays, little-endian: histograms, the labels' histograms and runs, boxes' values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from isal import isal_zlib
from numba import njit
from numpy.typing import NDArray

from engine.files import FileProblem, atomic_path
from engine.rle import runs_of_bits

if TYPE_CHECKING:  # what reads stores need not wait for torch
    from torch import Tensor

VALUES = 256
"""Values of a byte."""
SUFFIX = ".probs"

_FORMAT, _VERSION = "bone-probs", 1
_LEVEL = 1  # of ISA-L, which takes 2 ms where zlib's takes 10 at a size that is 2 % smaller; its higher ones gain 1 %
_PATTERN = f"*/*{SUFFIX}"
_AGAIN = "delete it and run inference with --save_probs again"


@dataclass(frozen=True, eq=False)
class ImageProbs:
    """The probabilities of one image at its own size."""

    key: str
    """subject/stem."""
    name: str
    """Base name of the image file."""
    height: int
    width: int
    classes: tuple[str, ...]
    boxes: NDArray[np.int32]
    """(K, 4) top, left, height, width of each class's box, px; zeros where a class has no value above 1."""
    values: tuple[NDArray[np.uint8], ...]
    """Of each class, (height, width) of its box: q, which is 0 outside."""
    truth_runs: tuple[NDArray[np.int64], ...] | None
    """Of each class, the label's runs, (R, 2), as engine.rle.parse_runs gives them; None where there is no label."""
    histograms: NDArray[np.int64]
    """(K, 256) pixels of the image that have each q."""
    true_histograms: NDArray[np.int64] | None
    """(K, 256) pixels of the label that have each q; None where there is no label."""


class Origin(NamedTuple):
    """What the probabilities were made with: one and the same for all files of a folder."""

    classes: tuple[str, ...]
    members: tuple[str, ...]
    """SHA-256 of each checkpoint."""
    scale: str
    """On which members and windows were blended: probabilities or logits."""


def quantise(probabilities: Tensor) -> Tensor:
    """(K, H, W) probabilities in [0, 1], any float type and device -> q, (K, H, W) uint8.

    One class at a time: a float32 copy of all is 487 MB, and half precision would round other values than q.
    """
    import torch

    q = torch.empty(probabilities.shape, dtype=torch.uint8, device=probabilities.device)
    for k, plane in enumerate(probabilities):
        q[k] = plane.to(torch.float32, copy=True).mul_(255).add_(0.5)  # positive, so uint8 is the floor
    return q


def from_dense(
    key: str, name: str, values: Tensor, classes: Sequence[str], truth_bits: NDArray[np.int32] | None
) -> ImageProbs:
    """Cut out the boxes and count the histograms. Only the boxes leave the device.

    Args:
        key: subject/stem.
        name: base name of the image file.
        values: q, uint8 (K, H, W) on any device; see `quantise`.
        truth_bits: packed labels, int32 (ceil(K / 32), H, W), or None.

    Raises:
        ValueError: another dtype or shape.
    """
    import torch

    if values.dtype != torch.uint8 or values.ndim != 3 or len(values) != len(classes):
        raise ValueError(
            f"values is {values.dtype} of shape {tuple(values.shape)}, but for {len(classes)} classes it must be "
            f"uint8 of shape ({len(classes)}, H, W)."
        )
    height, width = values.shape[1:]
    if truth_bits is not None and truth_bits.shape[1:] != (height, width):
        raise ValueError(
            f"truth_bits is {truth_bits.shape[1:]} px and values is {(height, width)}, but both must have the image's "
            "own size."
        )
    boxes = _boxes(values.amax(2).cpu().numpy(), values.amax(1).cpu().numpy())
    parts = [values[k, t : t + h, x : x + w].reshape(-1) for k, (t, x, h, w) in enumerate(boxes.tolist())]
    found = _cut(torch.cat(parts).cpu().numpy(), boxes)  # all boxes in one transfer
    runs = None if truth_bits is None else tuple(runs_of_bits(truth_bits, len(classes)))
    counts = np.stack([_histogram(box, height * width) for box in found])
    true_counts = None if runs is None else _true_histograms(found, boxes, runs, width)
    return ImageProbs(key, name, height, width, tuple(classes), boxes, found, runs, counts, true_counts)


class ProbsWriter:
    """Writes the images of one inference, each its own whole file; an image's older file is replaced.

    Several processes may write different images into one folder.

    Args:
        folder: of the store; made where it is missing.
        classes: names of the classes.
        members: SHA-256 of the checkpoints that the probabilities come from.
        scale: on which they were blended.

    Raises:
        FileProblem: the folder holds images of other classes, checkpoints or scale.
    """

    def __init__(self, folder: Path | str, classes: Sequence[str], members: Sequence[str], scale: str) -> None:
        self._folder = Path(folder)
        self._origin = Origin(tuple(classes), tuple(members), scale)
        if (older := next(self._folder.glob(_PATTERN), None)) is not None:
            _check_origin(older, _read_file(older)[0], self._origin)

    def write(self, image: ImageProbs) -> int:
        """Write one image atomically; returns the bytes of its file.

        Raises:
            FileProblem: the disk is full.
            ValueError: it has other classes than the store.
        """
        if image.classes != self._origin.classes:
            raise ValueError(f"Image {image.key!r} has other classes than the store, but they must be the same.")
        data = _pack(image, self._origin)
        with atomic_path(self._folder / f"{image.key}{SUFFIX}") as temporary:
            return temporary.write_bytes(data)


class ProbsFolder:
    """A store to read from; images are read one at a time, in any order.

    Raises:
        FileProblem: there is no store, or its first file is damaged, foreign or of another version.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)
        paths = self._folder.glob(_PATTERN)
        self._keys = tuple(sorted(path.relative_to(self._folder).as_posix().removesuffix(SUFFIX) for path in paths))
        if not self._keys:
            raise FileProblem(f"{folder} holds no probabilities: run inference with --save_probs, or give its folder.")
        self._origin = _origin(_read_file(self._path(self._keys[0]))[0])

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self._origin.classes

    @property
    def members(self) -> tuple[str, ...]:
        """SHA-256 of the checkpoints that the probabilities come from."""
        return self._origin.members

    @property
    def scale(self) -> str:
        """On which members and windows were blended."""
        return self._origin.scale

    def keys(self) -> tuple[str, ...]:
        """subject/stem of every image, sorted."""
        return self._keys

    def read(self, key: str) -> ImageProbs:
        """One image; its arrays can't be written to.

        Raises:
            FileProblem: it is not there, damaged, foreign, of another version, or of other classes, checkpoints or
                scale than the first image.
        """
        path = self._path(key)
        header, body = _read_file(path)
        _check_origin(path, header, self._origin)
        if header["key"] != key:
            raise FileProblem(f"{path} holds image {header['key']!r}, but must hold {key!r}: {_AGAIN}.")
        return _unpack(header, body)

    def bytes_per_image(self) -> float:
        """Mean size of a file, bytes."""
        return sum(self._path(key).stat().st_size for key in self._keys) / len(self._keys)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{SUFFIX}"


def _boxes(row_peaks: NDArray[np.uint8], column_peaks: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Boxes (K, 4) from the largest value of each row, (K, H), and of each column, (K, W)."""
    boxes = np.zeros((len(row_peaks), 4), np.int32)
    for box, rows, columns in zip(boxes, row_peaks, column_peaks, strict=True):
        ys, xs = np.flatnonzero(rows > 1), np.flatnonzero(columns > 1)
        if ys.size:
            box[:] = ys[0], xs[0], ys[-1] + 1 - ys[0], xs[-1] + 1 - xs[0]
    return boxes


def _cut(flat: NDArray[np.uint8], boxes: NDArray[np.int32]) -> tuple[NDArray[np.uint8], ...]:
    """The boxes' values, (h, w) each, out of one array that holds them one after the other."""
    ends = np.cumsum([0, *(h * w for _, _, h, w in boxes.tolist())]).tolist()
    return tuple(flat[a:b].reshape(box[2:]) for (a, b), box in zip(pairwise(ends), boxes, strict=True))


@njit(cache=True, nogil=True)
def _histogram(values: NDArray[np.uint8], n_pixels: int) -> NDArray[np.int64]:
    """(256,) of an image of `n_pixels` whose values are 0 outside of (h, w) `values`."""
    # Counted here and not on the device: in boxes that must come over anyway it takes 2 ms an image.
    counts = np.zeros(VALUES, np.int64)
    for value in values.flat:
        counts[value] += 1
    counts[0] += n_pixels - values.size
    return counts


def _true_histograms(
    values: Sequence[NDArray[np.uint8]], boxes: NDArray[np.int32], runs: Sequence[NDArray[np.int64]], width: int
) -> NDArray[np.int64]:
    return np.stack([_histogram_in_runs(*of_class, width) for of_class in zip(values, boxes, runs, strict=True)])


@njit(cache=True, nogil=True)
def _histogram_in_runs(
    values: NDArray[np.uint8], box: NDArray[np.int32], runs: NDArray[np.int64], width: int
) -> NDArray[np.int64]:
    """(256,) of the pixels in runs (R, 2) of an image of `width`."""
    counts = np.zeros(VALUES, np.int64)
    top, left, high, wide = box
    for r in range(len(runs)):
        at, end = runs[r]
        while at < end:  # row by row: a run goes on over the end of a row
            y, x = at // width, at % width
            length = min(end - at, width - x)
            first, last = max(x, left), min(x + length, left + wide)
            if top <= y < top + high and first < last:
                for column in range(first, last):
                    counts[values[y - top, column - left]] += 1
                counts[0] += length - (last - first)
            else:
                counts[0] += length
            at += length
    return counts


def _pack(image: ImageProbs, origin: Origin) -> bytes:
    """The bytes of a file."""
    arrays: list[NDArray[Any]] = [image.histograms.astype("<i8")]
    header: dict[str, Any] = {
        "key": image.key,
        "name": image.name,
        "height": image.height,
        "width": image.width,
        **origin._asdict(),
        "boxes": image.boxes.tolist(),
        "runs": None,
    }
    if image.truth_runs is not None and image.true_histograms is not None:
        header["runs"] = [len(runs) for runs in image.truth_runs]
        # Differences: they are small and alike from row to row, so they compress to a third.
        ends = np.concatenate([runs.reshape(-1) for runs in image.truth_runs])
        arrays += [image.true_histograms.astype("<i8"), np.diff(ends, prepend=0).astype("<i8")]
    data = b"".join(array.tobytes() for array in (*arrays, *image.values))
    rest = json.dumps({**header, "bytes": len(data)}).encode("ascii") + b"\n" + isal_zlib.compress(data, _LEVEL)
    return f"{_FORMAT} {_VERSION} {hashlib.sha256(rest).hexdigest()}\n".encode("ascii") + rest


def _read_file(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and compressed arrays of a whole file.

    Raises:
        FileProblem: it can't be read, is foreign, of another version or damaged.
    """
    try:
        line, _, rest = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise FileProblem(
            f"{path} cannot be read ({error.strerror}): give an image of the store, or run inference with --save_probs."
        ) from error
    found = line[:200].decode("ascii", errors="replace").split(" ")
    if len(found) != 3 or found[0] != _FORMAT:
        raise FileProblem(f"{path} is no file of probabilities: {_AGAIN}.")
    if found[1] != str(_VERSION):
        raise FileProblem(f"{path} is of version {found[1]}, but must be of version {_VERSION}: {_AGAIN}.")
    if hashlib.sha256(rest).hexdigest() != found[2]:
        raise FileProblem(f"{path} is damaged, its bytes don't have the checksum that it states: {_AGAIN}.")
    header, _, body = rest.partition(b"\n")
    parsed: dict[str, Any] = json.loads(header)
    return parsed, body


def _unpack(header: dict[str, Any], body: bytes) -> ImageProbs:
    """The image of a file whose checksum is right."""
    data = np.frombuffer(isal_zlib.decompress(body, bufsize=header["bytes"]), np.uint8)
    boxes = np.array(header["boxes"], np.int32)
    table, at = (len(boxes), VALUES), len(boxes) * VALUES * 8
    histograms, true_histograms, runs = data[:at].view("<i8").reshape(table), None, None
    if header["runs"] is not None:
        true_histograms = data[at : 2 * at].view("<i8").reshape(table)
        n_runs = np.array(header["runs"])
        last = 2 * at + int(n_runs.sum()) * 16
        ends = np.cumsum(data[2 * at : last].view("<i8")).reshape(-1, 2)
        runs, at = tuple(np.split(ends, np.cumsum(n_runs)[:-1])), last
    boxes.flags.writeable = False
    return ImageProbs(
        header["key"],
        header["name"],
        header["height"],
        header["width"],
        tuple(header["classes"]),
        boxes,
        _cut(data[at:], boxes),
        runs,
        histograms,
        true_histograms,
    )


def _origin(header: dict[str, Any]) -> Origin:
    return Origin(tuple(header["classes"]), tuple(header["members"]), header["scale"])


def _check_origin(path: Path, header: dict[str, Any], expected: Origin) -> None:
    found = _origin(header)
    for what, other, ours in zip(("classes", "checkpoints", "scale"), found, expected, strict=True):
        if other != ours:
            raise FileProblem(
                f"{path} was made with other {what} ({_shown(other)}) than expected ({_shown(ours)}), but a store "
                "holds one inference: give each its own folder."
            )


def _shown(value: Sequence[str]) -> str:
    text = value if isinstance(value, str) else ", ".join(part[:16] for part in value)
    return text if len(text) <= 60 else f"{text[:60]}…"
