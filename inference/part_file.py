"""One part of an inference on disk: a CSV that grows image by image, survives a kill, and goes on where it was.

The rows of an image are appended in one write, when everything else that belongs to it is on the disk. So what a kill
leaves is whole images and perhaps a torn tail, which the next process cuts off.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engine.files import FileProblem, atomic_path, locked, write_text
from inference.rle import parse_runs
from inference.submission import HEADER, checked_rles


@dataclass(frozen=True)
class Part:
    """One of several equal parts of a list of images: `index` counts from 0."""

    index: int = 0
    count: int = 1

    @classmethod
    def of(cls, shard: str) -> Self:
        """The part that `--shard i/n` means, which counts from 1; all images where it is empty."""
        if not shard:
            return cls()
        index, _, count = shard.partition("/")
        return cls(int(index) - 1, int(count))

    def shared(self, rank: int, ranks: int) -> Part:
        """What one of several processes, from 0, does of it."""
        return Part(self.index * ranks + rank, self.count * ranks)

    def __str__(self) -> str:
        return f"part {self.index + 1} of {self.count}"

    def of_list(self, n: int) -> range:
        """Its share of `n` images: parts follow each other, are equally long, and the first ones take what is left."""
        least, more = divmod(n, self.count)
        first = self.index * least + min(self.index, more)
        return range(first, first + least + (self.index < more))

    def csv(self, folder: Path) -> Path:
        """Its rows of the submission, under the submission's header."""
        return folder / f"part-{self._suffix}.csv"

    def list_of(self, folder: Path, name: str) -> Path:
        """What it has found of a kind, such as missing and split bones."""
        return folder / f"{name}-{self._suffix}.csv"

    def done(self, folder: Path) -> Path:
        """There once all its images are."""
        return folder / f"part-{self._suffix}.done"

    @property
    def _suffix(self) -> str:
        return f"{self.index + 1:04}-of-{self.count:04}"


ALL = Part()
"""One part for all images."""


class PartFile:
    """Context manager that writes a part, by one process at a time; the kernel ends its lock when it dies.

    Args:
        folder: where the part lies, or will lie.
        names: base names of its images, in the order in which they are written.
        classes: names of the classes, in the order of their bits.
        lists: of findings that are written too: name -> header, of which the first column is the image's name.

    Raises:
        FileProblem: on entering, another process holds the part.
    """

    def __init__(
        self,
        folder: Path,
        part: Part,
        names: Sequence[str],
        classes: Sequence[str],
        lists: Mapping[str, Sequence[str]],
    ) -> None:
        self._folder, self._part = folder, part
        self._names, self._classes = tuple(names), tuple(classes)
        self._lists = lists
        self._stack = ExitStack()
        self.written = 0
        """Images that are whole."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            path = self._part.csv(self._folder)
            try:
                stack.enter_context(locked(path))
            except BlockingIOError:
                raise FileProblem(
                    f"Another process writes {self._part} of {self._folder}: wait for it, or give each process a "
                    "--shard of its own."
                ) from None
            self.written, end = whole_images(path, self._names, self._classes)
            self._rows = stack.enter_context(_Growing(path, end, HEADER))
            self._found: dict[str, _Growing] = {}
            for kind, header in self._lists.items():
                path = self._part.list_of(self._folder, kind)
                end = whole_findings(path, header, self._names[: self.written])
                self._found[kind] = stack.enter_context(_Growing(path, end, header))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def append(self, name: str, bits: NDArray[np.int32], found: Mapping[str, Sequence[Sequence[str]]]) -> None:
        """Write the rows of the next image from its packed words, int32 (ceil(K / 32), H, W) at its own size.

        Args:
            found: rows for each of the lists, of this image.

        Raises:
            FileProblem: not the next image, or the text does not decode to the very same masks.
            ValueError: `bits` has another dtype or shape, or a bit above the last class is set.
        """
        path = self._part.csv(self._folder)
        if self._names[self.written : self.written + 1] != (name,):
            raise FileProblem(
                f"{path}: image {name!r} is not the next after {self.written}: write every image once, in order."
            )
        rles = checked_rles(path, name, bits, len(self._classes))
        for kind, growing in self._found.items():
            if found[kind]:
                growing.append(found[kind])
                growing.flush()  # before the rows of the CSV, which tell that the findings are there
        self._rows.append((name, label, rle) for label, rle in zip(self._classes, rles, strict=True))
        self.written += 1

    def end(self) -> None:
        """Mark the part as done.

        Raises:
            RuntimeError: an image is missing.
        """
        if self.written < len(self._names):
            raise RuntimeError(f"{self._part} has {self.written} of {len(self._names)} images: write all of them.")
        self._rows.flush()
        write_text(self._part.done(self._folder), "")


def whole_images(path: Path, names: Iterable[str], classes: Sequence[str]) -> tuple[int, int]:
    """How many of the images `names` a part's CSV holds whole and in this order from its top, and where they end.

    Returns:
        Images, and bytes of the file up to the end of the last one; 0 bytes where there is no whole header.
    """
    with open(path, "rb") as file:
        if file.readline() != _text([HEADER]):
            return 0, 0
        count, end = 0, file.tell()
        for name in names:
            if not all(_is_row(file.readline(), name, label) for label in classes):
                break
            count, end = count + 1, file.tell()
    return count, end


def whole_findings(path: Path, header: Sequence[str], names: Iterable[str]) -> int:
    """Up to where, in bytes, a list of findings is whole and about `names`, in this order."""
    known = {name: place for place, name in enumerate(names)}
    end = last = 0
    try:
        with open(path, "rb") as file:
            if (head := file.readline()) != _text([header]):
                return 0
            end = len(head)
            for line in file:
                name, *rest = next(csv.reader([line.decode("utf-8", errors="replace")]))
                place = known.get(name, -1)
                if not line.endswith(b"\n") or len(rest) != len(header) - 1 or place < last:
                    break
                last, end = place, end + len(line)
    except FileNotFoundError:
        pass
    return end


def join_findings(paths: Iterable[Path], header: Sequence[str], output: Path) -> None:
    """Write the lists of several parts as one; atomic, replaces an older file."""
    with atomic_path(output) as temporary, open(temporary, "wb") as joined:
        joined.write(_text([header]))
        for path in paths:
            with open(path, "rb") as file:
                file.readline()
                shutil.copyfileobj(file, joined)


class _Growing:
    """A CSV that keeps its first `size` bytes and then grows by whole rows."""

    def __init__(self, path: Path, size: int, header: Sequence[str]) -> None:
        # Unbuffered: a buffer would try to write again, on closing, what a full disk has refused.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by __exit__)
        self._file.truncate(size)
        if not size:
            self.append([header])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, rows: Iterable[Sequence[object]]) -> None:
        left = memoryview(_text(rows))
        while left:
            left = left[self._file.write(left) :]

    def flush(self) -> None:
        """To the disk."""
        os.fsync(self._file.fileno())


def _is_row(line: bytes, name: str, label: str) -> bool:
    head = _text([(name, label, "")])[:-1]  # a name with a comma has quotes, a run-length text never has
    if not (line.startswith(head) and line.endswith(b"\n")):
        return False
    try:
        parse_runs(line[len(head) : -1].decode("ascii"))
    except ValueError:
        return False
    return True


def _text(rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8")
