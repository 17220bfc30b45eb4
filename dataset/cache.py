"""Stored images kept as uint8: in memory, or in one file that workers, ranks and later runs map.

One file for each size and preparation: all images one after the other, as they are stored (dataset/frame.py). A JSON
beside it says where each lies and what it was made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from config import Config
from dataset.frame import Frame, View, fit_frame
from dataset.images import image_shape
from dataset.layouts import has_split, read_split
from dataset.pseudo import pseudo_images
from dataset.readers import Record
from dataset.sources import Files, Source
from dataset.switches import Switches
from engine.files import FileProblem, atomic_path, locked, write_json
from engine.progress import progress

T = TypeVar("T")

VERSION = 1
"""Of what is stored: raise it when the same inputs would give other pixels."""


@dataclass(frozen=True)
class Entry:
    """One stored image."""

    offset: int
    """First byte."""
    height: int
    width: int
    view: View | None
    problem: str = ""
    """Why there is none."""


class Cached:
    """Stored images in one array of bytes; see dataset.sources.Source.

    Args:
        pixels: opens the array, (bytes,) uint8. A function, so that a worker that was not forked maps the file itself.
    """

    def __init__(self, entries: Sequence[Entry], pixels: Callable[[], NDArray[np.uint8]], cfg: Config, side: int):
        self.entries = list(entries)
        self.open = pixels
        self.pixels: NDArray[np.uint8] | None = None
        self.image_size = cfg.window.image_size
        self.side = side

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"pixels": None}

    def load(self, index: int) -> tuple[Frame, NDArray[np.uint8]]:
        """See Source."""
        entry = self.entries[index]
        if entry.view is None:
            raise FileProblem(entry.problem)
        if self.pixels is None:
            self.pixels = self.open()
        flat = self.pixels[entry.offset : entry.offset + entry.height * entry.width]
        return fit_frame(entry.view, self.image_size, self.side), flat.reshape(entry.height, entry.width)


def open_source(records: Sequence[Record], cfg: Config, switches: Switches, side: int) -> Source:
    """Where the training images of `records` come from, as `cache` asks; builds the cache where there is none.

    Raises:
        FileProblem: too little disk or memory (says how much is needed), no permission, a missing JPEG tree.
    """
    files = Files(records, cfg, switches, side)
    if cfg.data.cache == "none":
        return files
    if cfg.data.cache == "ram":
        return _in_memory(files)
    return _on_disk(files, switches)


def _in_memory(files: Files) -> Cached:
    need, free = _bytes_needed(files), _free_shared_memory()
    if need > free:
        raise FileProblem(
            f"cache ram needs {gigabytes(need)} of shared memory, free are {gigabytes(free)}: enlarge it (docker run "
            f"--shm-size), or give --cache disk or --cache none."
        )
    # Of torch: shared with workers however they start, and gone with the last process, also after kill -9.
    pixels = torch.empty(need, dtype=torch.uint8).share_memory_()
    array, entries = pixels.numpy(), []
    for entry, image in _stored(files):
        array[entry.offset : entry.offset + image.size] = image.ravel()
        entries.append(entry)
    return Cached(entries, pixels.numpy, files.cfg, files.side)


def _on_disk(files: Files, switches: Switches) -> Cached:
    cfg = files.cfg
    root = Path(cfg.data.data_root)
    wanted = files.records
    # Of all images that may train, whatever the fold: the folds of one experiment share the file.
    everything = read_split(cfg, "train") if has_split(cfg, "train") else []
    everything += pseudo_images(cfg) if cfg.data.pseudo else []
    if {r.image for r in wanted} <= {r.image for r in everything}:
        files = Files(everything, cfg, switches, files.side)
    folder = Path(cfg.data.cache_dir or root / "cache")
    name = f"{cfg.window.image_size}-{_hash(_settings(files))[:10]}"
    inputs = _hash([_stamp(files, i, root) for i in range(len(files.records))])
    try:
        # Of two runs that want one cache, the second waits and then finds it.
        with locked(folder / f"{name}.lock", f"cache: another run is building {folder / name}, waiting for it"):
            table = _read_table(folder / f"{name}.json", inputs)
            if table is None:
                table = _build(files, folder, name, inputs)
    except OSError as error:
        reason = error.strerror
        raise FileProblem(f"{folder} can't hold the cache ({reason}): give --cache_dir, or --cache none.") from None
    place = {record.image: entry for record, entry in zip(files.records, table, strict=True)}
    path = folder / f"{name}-{inputs[:10]}.u8"

    return Cached([place[record.image] for record in wanted], _Mapped(path), cfg, files.side)


@dataclass(frozen=True)
class _Mapped:
    """Maps a file of bytes when called."""

    path: Path

    def __call__(self) -> NDArray[np.uint8]:
        # As a plain array: np.memmap's own class costs more than the window that is cut out of it.
        return np.asarray(np.memmap(self.path, np.uint8, "r"))


def _build(files: Files, folder: Path, name: str, inputs: str) -> list[Entry]:
    need, free = _bytes_needed(files), shutil.disk_usage(folder).free
    path = folder / f"{name}-{inputs[:10]}.u8"
    if need > free:
        raise FileProblem(
            f"cache disk needs {gigabytes(need)} in {folder}, free are {gigabytes(free)}: free some space, give "
            f"--cache_dir on another disk, or --cache none."
        )
    print(f"cache: {path}, up to {gigabytes(need)} for {len(files.records)} images", file=sys.stderr, flush=True)
    for old in folder.glob(f".{name}-*.part"):
        old.unlink(missing_ok=True)  # of a build that was killed: whoever holds the lock is alone here
    entries = []
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        for entry, image in _stored(files):
            file.write(image.data)
            entries.append(entry)
        file.write(b"\0")  # an empty file cannot be mapped
    write_json(folder / f"{name}.json", {"inputs": inputs, "entries": [asdict(entry) for entry in entries]})
    for old in folder.glob(f"{name}-*.u8"):
        if old != path:
            old.unlink(missing_ok=True)  # made from inputs that have changed; runs that map it keep it until they end
    return entries


def _stored(files: Files) -> Iterator[tuple[Entry, NDArray[np.uint8]]]:
    """Every image as it is stored, in order."""

    def load(index: int) -> tuple[View | None, NDArray[np.uint8], str]:
        try:
            frame, image = files.load(index)
            return frame.view, np.ascontiguousarray(image), ""
        except FileProblem as problem:
            return None, np.zeros((0, 0), np.uint8), str(problem)

    offset = 0
    for view, image, problem in in_order(load, len(files.records), "cache"):
        yield Entry(offset, image.shape[0], image.shape[1], view, problem), image
        offset += image.size


def in_order(load: Callable[[int], T], count: int, what: str) -> Iterator[T]:
    """load(0), load(1), … of `count` images, by a thread for each core (OpenCV works without the GIL), with a bar."""
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[T]] = deque()
        for index in progress(range(count + 2 * threads), what, unit="images"):
            if index < count:
                ahead.append(pool.submit(load, index))
            if index >= 2 * threads and ahead:
                yield ahead.popleft().result()


def _read_table(path: Path, inputs: str) -> list[Entry] | None:
    """The entries, where the table is whole, made from these inputs and its pixels are there."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        entries = [_entry(**entry) for entry in table["entries"]]
        pixels = path.with_name(f"{path.stem}-{inputs[:10]}.u8")
        end = entries[-1].offset + entries[-1].height * entries[-1].width
        return entries if table["inputs"] == inputs and pixels.stat().st_size == end + 1 else None
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _entry(offset: int, height: int, width: int, view: dict[str, Any] | None, problem: str) -> Entry:
    """An entry from its JSON."""
    seen = None if view is None else View(**view | {"file": tuple(view["file"])})
    return Entry(offset, height, width, seen, problem)


def _settings(files: Files) -> list[Any]:
    """What decides how an image is stored, apart from the files."""
    data = files.cfg.data
    settings = [VERSION, files.cfg.window.image_size, repr(files.preparation), files.tree is not None]
    # Runs with pseudo-labels and without would replace each other's file in turn.
    return [*settings, data.pseudo_images] if data.pseudo else settings


def _stamp(files: Files, index: int, root: Path) -> list[Any]:
    """What tells that a file has changed."""
    try:
        path = files.path(index)
        status = path.stat()
    except (OSError, FileProblem) as problem:
        return [str(problem)]
    name = path.relative_to(root) if path.is_relative_to(root) else path
    return [str(name), status.st_size, status.st_mtime_ns]


def largest_shapes(files: Files) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Height and width of every readable file and, at most, of its stored image.

    At most, because the box of the hand decides how far an image is reduced, and nothing is decoded here.
    """
    for index in range(len(files.records)):
        try:
            view = View.whole(image_shape(files.path(index)))
        except FileProblem:
            continue
        factor = 1 if files.preparation.crop else fit_frame(view, files.cfg.window.image_size, 1).reduction
        yield view.file, (-(-view.height // factor), -(-view.width // factor))


def _bytes_needed(files: Files) -> int:
    """Bytes of all stored images, at most."""
    return sum(height * width for _, (height, width) in largest_shapes(files))


def _free_shared_memory() -> int:
    """Bytes that are left for shared memory: of containers often far less than of the machine."""
    shared = Path("/dev/shm")
    return shutil.disk_usage(shared).free if shared.is_dir() else sys.maxsize


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def gigabytes(count: int) -> str:
    """Bytes as text."""
    return f"{count / 1e9:.2f} GB"
