"""The leaderboard's CSV: written image by image, read image by image, checked before anyone uploads it.

Header `image_name,class,rle`, then one row per image and class, in order; `image_name` is a base name with its
extension, and an empty mask is an empty field. Files are byte-identical to pandas' `to_csv(index=False)` of the same
table.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from engine.files import FileProblem, atomic_path
from inference.rle import decode_bits, encode_bits, parse_runs

HEADER = ("image_name", "class", "rle")


class SubmissionWriter:
    """Context manager that streams a submission; the file appears whole at the end, or not at all.

    Memory does not grow with the number of images, apart from their names.

    Args:
        path: the CSV; never overwritten.
        names: base names with extension of all images, in the order in which they will be written.
        classes: names of the classes, in the order of their bits.

    Raises:
        FileProblem: no image or class, two of one name, or a name that is no base name or cannot be written; on
            entering, the file exists; on leaving, an image is missing.
    """

    def __init__(self, path: Path | str, names: Sequence[str], classes: Sequence[str]) -> None:
        self._path = Path(path)
        self._names = tuple(names)
        self._classes = tuple(classes)
        self._written = 0
        self._stack = ExitStack()
        self._file: TextIO | None = None
        check_names(self._path, self._names, self._classes)

    def __enter__(self) -> SubmissionWriter:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self._path, overwrite=False))
            self._file = stack.enter_context(open(temporary, "w", encoding="utf-8", newline=""))
            csv.writer(self._file, lineterminator="\n").writerow(HEADER)
            stack.push(self._check_complete)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file = None  # nothing is written any more; the stack closes it
        self._stack.__exit__(kind, error, trace)

    def write(self, name: str, bits: NDArray[np.int32]) -> None:
        """Write the rows of one image from its packed words, int32 (ceil(K / 32), H, W) at the image's own size.

        Raises:
            FileProblem: not the next image of `names`, or the text does not decode to the very same masks.
            ValueError: `bits` has another dtype or shape, or a bit above the last class is set.
        """
        self.write_rles(name, checked_rles(self._path, name, bits, len(self._classes)))

    def write_rles(self, name: str, rles: Sequence[str]) -> None:
        """Write the rows of one image from run-length texts, in the order of the classes; they are not parsed here.

        Raises:
            FileProblem: not the next image of `names`.
            ValueError: not one text a class.
        """
        if self._file is None:
            raise RuntimeError("SubmissionWriter writes inside `with SubmissionWriter(...) as writer:` only.")
        if self._names[self._written : self._written + 1] != (name,):
            done = self._written == len(self._names)
            expected = "the end" if done else repr(self._names[self._written])
            raise FileProblem(
                f"{self._path}: image {name!r} came where {expected} was expected: write every image "
                "once, in the order of the names given."
            )
        csv.writer(self._file, lineterminator="\n").writerows(
            (name, label, rle) for label, rle in zip(self._classes, rles, strict=True)
        )
        self._written += 1

    def _check_complete(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Raised as the first step of leaving, so that atomic_path sees the error and drops its file.
        if kind is None and self._written < len(self._names):
            raise FileProblem(
                f"{self._path}: {len(self._names) - self._written} of {len(self._names)} images are "
                f"missing, the first is {self._names[self._written]!r}: write all of them."
            )


def checked_rles(path: Path, name: str, bits: NDArray[np.int32], n_classes: int) -> list[str]:
    """Run-length texts of an image, which decode to the very same masks.

    Raises:
        FileProblem: they don't.
        ValueError: as `encode_bits`.
    """
    rles = encode_bits(bits, n_classes)
    # A round trip costs 4 ms an image of 2048; a wrong mask in an upload shows in nothing but a lower score.
    if not np.array_equal(decode_bits(rles, *bits.shape[1:]), bits):
        raise FileProblem(
            f"{path}: the RLE of image {name!r} does not decode to its masks, which is a bug of the encoder: report it "
            "and do not upload."
        )
    return rles


class Place(NamedTuple):
    """Where a row begins: its line (1 is the header), and the byte of the file."""

    line: int
    offset: int


_TOP = Place(1, 0)


@dataclass(frozen=True, slots=True)
class SubmissionImage:
    """The rows of one image. `rles` maps class to run-length text in the file's order; `place` is its first row's."""

    name: str
    rles: dict[str, str]
    place: Place

    @property
    def line(self) -> int:
        """Of its first row."""
        return self.place.line


def read_submission(
    path: Path | str, classes: Sequence[str] | None = None, start: Place = _TOP
) -> Iterator[SubmissionImage]:
    """Stream the images of a submission, one in memory at a time; run-length texts are not parsed here.

    Without `classes`, the first image's classes are every image's. With the `start` of an image that was read before,
    that one is the first. The file is opened at the first `next()`.

    Raises:
        FileProblem: a file that cannot be read, is not UTF-8 or not CSV, another header, a row without three fields, a
            class that is unknown, missing, repeated or out of order, or an image whose rows do not follow each other.
            Names the line.
    """
    path = Path(path)
    known: tuple[str, ...] | None = None
    if classes is not None:
        known = tuple(classes)
        _check_names(path, "class", known)
    seen: set[str] = set()
    image: SubmissionImage | None = None
    for place, row in read_rows(path, start):
        line = place.line
        if len(row) != 3:
            raise FileProblem(f"{path}, line {line}: " + fields_problem(row))
        name, label, rle = row
        if image is None or name != image.name:
            if image is not None:
                known = known or tuple(image.rles)
                _check_ended(path, image, known, line)
                yield image
            if name in seen:
                raise FileProblem(
                    f"{path}, line {line}: image {name!r} begins again, but the rows of an image must "
                    "follow each other: write the CSV again."
                )
            seen.add(name)
            image = SubmissionImage(name, {}, place)
        if label in image.rles:
            raise FileProblem(
                f"{path}, line {line}: class {label!r} of image {name!r} is there twice, but must be "
                "there once: drop a row, or rename one of two images of one name."
            )
        if known is not None and (len(image.rles) == len(known) or label != known[len(image.rles)]):
            raise FileProblem(f"{path}, line {line}: " + _class_problem(name, label, known, len(image.rles)))
        image.rles[label] = rle
    if image is not None:
        _check_ended(path, image, known or tuple(image.rles), image.line + len(image.rles))
        yield image


def parse_image(path: Path | str, image: SubmissionImage, n_pixels: int | None = None) -> dict[str, NDArray[np.int64]]:
    """Class -> the runs of its text, int64 (R, 2) as `parse_runs` gives them, in the file's order.

    Args:
        path: the file that the image is from.
        n_pixels: of the image; None where its size is unknown: then runs may end anywhere.

    Raises:
        FileProblem: a text that `parse_runs` refuses; names file, line, image and class.
    """
    runs: dict[str, NDArray[np.int64]] = {}
    for line, (label, rle) in enumerate(image.rles.items(), image.line):
        try:
            runs[label] = parse_runs(rle, n_pixels)
        except ValueError as error:
            raise FileProblem(f"{path}, line {line}, image {image.name!r}, class {label!r}: {error}") from error
    return runs


def read_rows(path: Path, start: Place = _TOP) -> Iterator[tuple[Place, list[str]]]:
    """Place and fields of every row from `start` on, however many fields there are.

    Raises:
        FileProblem: a file that cannot be read, is not UTF-8 or not CSV, or another header.
    """
    # The default of 128 KiB a field is too small for the RLE of a noisy mask. The limit is the whole process's: only
    # ever raise it.
    csv.field_size_limit(max(csv.field_size_limit(), min(sys.maxsize, 2**31 - 1)))
    try:
        with open(path, "rb") as file:  # a text file doesn't say where in it a line begins
            place = start
            file.seek(place.offset)
            if place == _TOP:
                row, lines = _fields(file.readline(), file)
                _check_header(path, row)
                place = Place(place.line + lines, file.tell())
            for raw in file:
                row, lines = _fields(raw, file)
                yield place, row
                place = Place(place.line + lines, file.tell())
    except OSError as error:
        raise FileProblem(f"{path} cannot be read ({error.strerror}): give the path of a submission CSV.") from error
    except UnicodeDecodeError as error:
        raise FileProblem(f"{path} is not UTF-8 text: it must be a CSV, not a spreadsheet or an archive.") from error
    except csv.Error as error:
        raise FileProblem(f"{path}, line {place.line}: {error}, so this is not CSV: write it again.") from error


def _fields(line: bytes, more: Iterator[bytes]) -> tuple[list[str], int]:
    """Fields of the row that begins with `line` and may go on in `more`, and how many lines it takes."""
    if b'"' not in line:  # nearly every one: a tenth of the time of reading it as CSV
        text = line.decode("utf-8").rstrip("\r\n")
        return text.split(",") if text else [], 1
    reader = csv.reader((part.decode("utf-8") for part in chain([line], more)), strict=True)
    return next(reader), reader.line_num


def _check_header(path: Path, header: Sequence[str]) -> None:
    if tuple(header) != HEADER:
        raise FileProblem(
            f"{path}, line 1: the header is {','.join(header)[:80]!r}, but must be {','.join(HEADER)!r}: write the CSV "
            "without an index and under these names."
        )


def fields_problem(row: Sequence[str]) -> str:
    """The sentence for a row that has not three fields."""
    return f"the row has {len(row)} fields, but must have 3 ({', '.join(HEADER)}): write the CSV again."


def _class_problem(name: str, label: str, known: Sequence[str], place: int) -> str:
    """The sentence for a row of class `label` that stands where the class number `place` of `known` should."""
    if label not in known:
        return (
            f"class {label!r} of image {name!r} is unknown, but must be one of {len(known)} from {known[0]!r} to "
            f"{known[-1]!r}: check the classes that the CSV was written for."
        )
    # Repeated classes were refused before, so a known class that is not the next one comes too early.
    return (
        f"class {label!r} of image {name!r} came where {known[place]!r} should, which is missing or out of order: "
        "write every class once, in order."
    )


def _check_ended(path: Path, image: SubmissionImage, known: Sequence[str], line: int) -> None:
    if len(image.rles) < len(known):
        raise FileProblem(
            f"{path}, line {line}: image {image.name!r} ends after {len(image.rles)} of {len(known)} "
            f"classes, {known[len(image.rles)]!r} is missing: write every class once, in order."
        )


def check_names(path: Path, names: Sequence[str], classes: Sequence[str]) -> None:
    """Raise FileProblem where a submission can't tell images or classes apart, or their names can't be written."""
    _check_names(path, "image", names)
    _check_names(path, "class", classes)
    for name in names:
        if "/" in name or "\\" in name:
            raise FileProblem(
                f"{path}: image_name {name!r} is a path, but the leaderboard wants base names: pass the name of the "
                "file only."
            )


def _check_names(path: Path, what: str, names: Sequence[str]) -> None:
    if not names:
        raise FileProblem(f"{path}: no {what} was given, but a submission needs one or more: check the {what} list.")
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if name in first:
            raise FileProblem(
                f"{path}: {what} {first[name]} and {what} {number} are both named {name!r}, but a "
                "submission tells them apart by name only: rename one."
            )
        first[name] = number
        # Surrogates are how Python spells file names that are not UTF-8, e.g. EUC-KR ones from a zip archive.
        if not name or any(c in "\r\n\0" or "\ud800" <= c <= "\udfff" for c in name):
            raise FileProblem(
                f"{path}: {what} {number} is named {name!r}, but a name must be one line of UTF-8 text: rename it."
            )
