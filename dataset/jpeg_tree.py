"""The JPEG tree: a data set's images once more as gray baseline JPEGs, which decode faster than PNG, also on GPUs.

`<tree>/<split>/DCM/IDxxx/<stem>.jpg` (in any layout) stands for the image of the same place and stem in the data set.
`jpeg_tree.json` beside the splits says with which settings and from which state of each image they were made.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import cv2
import numpy as np
from numpy.typing import NDArray

from config import Config, ConfigProblem
from dataset.clahe import Clahe
from dataset.images import read_image
from dataset.layouts import every_image
from dataset.readers import Record, read_folder
from engine import settings
from engine.files import FileProblem, atomic_path, locked, write_json
from engine.progress import progress

VERSION = 1
"""Of what is written: raise it when the same image and settings would give other pixels."""

INDEX = "jpeg_tree.json"

SECONDS_BETWEEN_SAVES = 2.0
"""Of the index: so much work at most is done twice after a kill."""


@dataclass(frozen=True)
class Entry:
    """One converted image."""

    size: int
    """Bytes of the original."""
    mtime_ns: int
    """When the original was last changed."""
    jpeg_size: int
    """Bytes of the JPEG."""
    mean_error: float
    """Mean absolute difference between what was encoded (after CLAHE) and what decodes, grey levels."""
    max_error: int
    """Largest such difference, grey levels."""

    def is_of(self, status: os.stat_result) -> bool:
        """Whether the original is still the one that was converted."""
        return (self.size, self.mtime_ns) == (status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Report:
    """What `write_tree` did."""

    images: Mapping[str, Entry]
    """Path below the data set -> entry, of all images that the tree now has."""
    failed: Mapping[str, str]
    """Path below the data set -> what is wrong with the image, which therefore has no JPEG."""
    written: int
    """JPEGs written by this call; the others were up to date."""
    seconds: float

    @property
    def mean_error(self) -> float:
        """Grey levels, mean over the images; 0 without any."""
        return fmean(entry.mean_error for entry in self.images.values()) if self.images else 0.0

    @property
    def max_error(self) -> int:
        """Grey levels, over all pixels of all images."""
        return max((entry.max_error for entry in self.images.values()), default=0)

    @property
    def bytes_before(self) -> int:
        """Of the originals of `images`."""
        return sum(entry.size for entry in self.images.values())

    @property
    def bytes_after(self) -> int:
        """Of the JPEGs."""
        return sum(entry.jpeg_size for entry in self.images.values())


@dataclass(frozen=True)
class _Settings:
    """What decides the pixels of a tree."""

    version: int
    quality: int
    clahe: Clahe | None

    def __str__(self) -> str:
        return f"{self.flags} (version {self.version})"

    @property
    def flags(self) -> str:
        """As the command takes them."""
        clahe = self.clahe
        baked = f" --clahe --clahe_clip {clahe.clip} --clahe_tiles {clahe.tiles}" if clahe else ""
        return f"--quality {self.quality}{baked}"


@dataclass
class _Index:
    settings: _Settings
    complete: bool
    images: dict[str, Entry]
    failed: dict[str, str]

    @staticmethod
    def read(tree: Path) -> _Index:
        """FileProblem where it is missing or damaged."""
        path = tree / INDEX
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            images = {str(name): Entry(**entry) for name, entry in found["images"].items()}
            clahe = Clahe(**found["clahe"]) if found["clahe"] else None
            settings = _Settings(found["version"], found["quality"], clahe)
            return _Index(settings, bool(found["complete"]), images, dict(found["failed"]))
        except OSError as error:
            raise FileProblem(f"{path} cannot be read ({error.strerror}): run {_command('DATA', tree)}.") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise FileProblem(f"{path} is damaged: run {_command('DATA', tree)} --overwrite.") from None

    def save(self, tree: Path) -> None:
        content = {
            **asdict(self.settings),
            "complete": self.complete,
            "failed": dict(sorted(self.failed.items())),
            "images": {name: asdict(entry) for name, entry in sorted(self.images.items())},
        }
        write_json(tree / INDEX, content)


@dataclass(frozen=True)
class Tree:
    """A finished JPEG tree."""

    folder: Path
    _index: _Index

    @property
    def clahe(self) -> Clahe | None:
        """What is baked into its images."""
        return self._index.settings.clahe

    def image(self, record: Record, root: Path) -> Path:
        """The JPEG that stands for `record.image`, which lies below the data set `root`.

        Raises:
            FileProblem: there is none, or the original has changed since; says what to run.
        """
        try:
            name = record.image.relative_to(root).as_posix()
            status = record.image.stat()
        except ValueError:
            raise FileProblem(f"{record.image} is not below {root}: the JPEG tree has no image for it.") from None
        except OSError as error:
            raise FileProblem(f"{record.image} cannot be read ({error.strerror}): check the path.") from None
        command = _command(root, self.folder, self._index.settings)
        if name in self._index.failed:
            raise FileProblem(f"{self._index.failed[name]} Then run {command}.")
        path, entry = _target(self.folder, name), self._index.images.get(name)
        if entry is None or not path.is_file():
            raise FileProblem(f"{path}, the JPEG of {record.image}, is missing: run {command}.")
        if not entry.is_of(status):
            raise FileProblem(f"{record.image} has changed since {path} was made from it: run {command}.")
        return path


def open_tree(tree: Path) -> Tree:
    """The JPEG tree at `tree`.

    Raises:
        FileProblem: it is missing, damaged or unfinished; says what to run.
    """
    index = _Index.read(tree)
    command = _command("DATA", tree, index.settings)
    if index.settings.version != VERSION:
        raise FileProblem(f"{tree} was written by another version of this program: run {command} --overwrite.")
    if not index.complete:
        raise FileProblem(f"{tree} is unfinished: run {command}, which goes on where it was.")
    return Tree(tree, index)


def write_tree(
    records_root: Path, output: Path, quality: int, clahe: Clahe | None, workers: int, overwrite: bool
) -> Report:
    """Write the JPEG tree of all images of the data set at `records_root`, or finish one that was begun.

    Every JPEG has the size of its original, one component and the sequential baseline mode (ITU T.81, SOF0), and is
    decoded once it is written. Images whose JPEG is there and whose size and time have not changed are left alone.
    Killed at any moment, no JPEG is half written, and the next call goes on.

    Args:
        quality: of the JPEGs, 1 to 100 (libjpeg's scale).
        clahe: baked into the JPEGs, or None.
        workers: threads (OpenCV decodes and encodes without the GIL).
        overwrite: replace a tree of other settings. One of the same settings is continued with or without it.

    Raises:
        ConfigProblem: `output` holds a tree of other settings, something else, or lies among the originals.
        FileProblem: no images, two of them with one JPEG, another call is writing, a damaged index, a full disk. What
            is wrong with a single original only goes into the report.
    """
    start = time.monotonic()
    names = _originals(records_root)
    _check_output(records_root, output)
    settings = _Settings(VERSION, quality, clahe)
    try:
        # Two calls would delete each other's temporary files.
        with locked(output / ".lock"):
            index, todo = _write(records_root, output, settings, names, workers, overwrite)
    except BlockingIOError:
        raise FileProblem(f"{output} is being written by another process: wait until it is done.") from None
    return Report(index.images, index.failed, todo - len(index.failed), time.monotonic() - start)


def _write(
    root: Path, output: Path, settings: _Settings, names: Sequence[str], workers: int, overwrite: bool
) -> tuple[_Index, int]:
    """The index of the finished tree, and how many images were still to be converted."""
    for part in output.rglob(".*.part"):
        part.unlink()  # of a call that was killed
    index = _begun(output, settings, overwrite)
    index.images = {name: index.images[name] for name in names if _is_done(index.images.get(name), root, output, name)}
    todo = [name for name in names if name not in index.images]
    convert = partial(_convert, root, output, settings.quality, settings.clahe)
    if todo:
        index.save(output)  # before any JPEG: none may lie beside an index that means its predecessor
    saved = time.monotonic()
    try:
        for name, result in progress(_in_threads(convert, todo, workers), "converting", len(todo), "images"):
            if isinstance(result, Entry):
                index.images[name] = result
            else:
                index.failed[name] = result
            if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                index.save(output)
                saved = time.monotonic()
        index.complete = True
    finally:
        index.save(output)
    return index, len(todo)


def _originals(root: Path) -> list[str]:
    """Paths below `root` of the images of all splits."""
    folders = sorted(folder for folder in root.glob("*/DCM") if folder.is_dir())
    images = [record.image for folder in folders for record in read_folder(folder)]
    images = images or every_image(settings.replace(Config(), {"data_root": str(root)}))
    if not images:
        raise FileProblem(f"{root} holds no images: point --data_root at the folder that holds train/DCM or images.")
    names = [image.relative_to(root).as_posix() for image in images]
    stems: dict[Path, str] = {}
    for name in names:
        twin = stems.setdefault(Path(name).with_suffix(""), name)
        if twin != name:
            raise FileProblem(f"{root / twin} and {root / name} would have the same JPEG: rename or remove one.")
    return names


def _check_output(root: Path, output: Path) -> None:
    for folder in root.glob("*/DCM"):
        if output.resolve().is_relative_to(folder.resolve()):
            raise ConfigProblem(f"{output} lies among the originals in {folder}: choose another --output.")
    if not output.is_dir() or (output / INDEX).exists():
        return
    if any(not path.name.startswith(".") for path in output.iterdir()):
        raise ConfigProblem(f"{output} is not empty and no JPEG tree (no {INDEX} in it): choose another --output.")


def _begun(output: Path, settings: _Settings, overwrite: bool) -> _Index:
    """The index to go on with: of a tree that was begun with the same settings, else an empty one."""
    index = _Index(settings, False, {}, {})
    if not (output / INDEX).exists():
        return index
    try:
        found = _Index.read(output)
    except FileProblem:
        if overwrite:
            return index
        raise
    if found.settings == settings:
        index.images = found.images
    elif not overwrite:
        raise ConfigProblem(
            f"{output} was written with {found.settings}, not with {settings}: give --overwrite to write it again, or "
            f"another --output."
        )
    return index


def _is_done(entry: Entry | None, root: Path, output: Path, name: str) -> bool:
    if entry is None or not entry.is_of((root / name).stat()):
        return False
    path = _target(output, name)
    return path.is_file() and path.stat().st_size == entry.jpeg_size


def _in_threads(convert: partial[Entry | str], names: Sequence[str], workers: int) -> Iterator[tuple[str, Entry | str]]:
    executor = ThreadPoolExecutor(max(workers, 1))
    try:
        futures = {executor.submit(convert, name): name for name in names}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _convert(root: Path, output: Path, quality: int, clahe: Clahe | None, name: str) -> Entry | str:
    """Write and check one JPEG; returns what is wrong with the original where it can't be."""
    source, target = root / name, _target(output, name)
    status = source.stat()  # before it is read: a later change must show
    try:
        image = read_image(source)
        if clahe:
            image = clahe.apply(image)
        data = _encode(image, quality, source)
    except FileProblem as problem:
        return str(problem)
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)
    difference = cv2.absdiff(image, _decode(target, image.shape))
    return Entry(status.st_size, status.st_mtime_ns, len(data), float(cv2.mean(difference)[0]), int(difference.max()))


def _encode(image: NDArray[np.uint8], quality: int, source: Path) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, 0]
    done, data = cv2.imencode(".jpg", image, options)
    if not done:
        height, width = image.shape
        raise FileProblem(f"{source} is {width} x {height} px and cannot be a JPEG (65500 at most): make it smaller.")
    return bytes(data)


def _decode(target: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    decoded = read_image(target)
    if decoded.shape != shape:
        raise FileProblem(f"{target} decodes as {decoded.shape} instead of {shape}: check the disk and run again.")
    return decoded


def _target(tree: Path, name: str) -> Path:
    return (tree / name).with_suffix(".jpg")


def _command(root: Path | str, tree: Path, settings: _Settings | None = None) -> str:
    """What writes the tree, or finishes it with its own settings."""
    flags = f" {settings.flags}" if settings else ""
    return f"python scripts/preprocess_to_jpeg.py --data_root {root} --output {tree}{flags}"
