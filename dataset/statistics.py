"""What images and labels look like, as numbers: measured one image at a time, added up over a data set.

Pixels are in memory only while an image is measured. What is kept of one is its names and three numbers a class.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from config import HAND_BONES, Config
from dataset.findings import below
from dataset.hand import SMALLEST, find_hand
from dataset.images import read_image
from dataset.labels import read_label
from dataset.layouts import SPLITS, has_split, pair_split
from dataset.readers import Record
from engine.files import FileProblem
from engine.progress import progress

GRID = 64
"""Cells of a position map along each side of the image, whatever its aspect."""

AHEAD = 4
"""Images a worker has waiting: more would keep results in memory that nobody has asked for yet."""


@dataclass(frozen=True)
class Item:
    """An image of a split."""

    split: str
    path: str
    """Of the image, below the data set."""
    record: Record


@dataclass(frozen=True)
class Label:
    """What the label of one image shows, K classes."""

    areas: NDArray[np.int64]
    """(K,) px."""
    centres: NDArray[np.float32]
    """(K, 2) centre of mass as y, x in shares of the image's height and width; NaN where a class is not shown."""
    greys: NDArray[np.float32]
    """(K,) mean of the image, 0 to 255, below each class; NaN where it is not shown."""
    pairs: NDArray[np.int64]
    """(K, K) px that carry both classes; 0 on the diagonal."""
    labelled: int
    """Px that carry any class."""
    several: int
    """Px that carry two classes or more."""
    coarse: NDArray[np.int32]
    """(words, GRID, GRID) the label at the middle of each cell, packed as engine/bits.py says."""


@dataclass(frozen=True)
class Measured:
    """Numbers of one image."""

    item: Item
    height: int
    width: int
    levels: NDArray[np.int64]
    """(256,) px of each grey value."""
    side: str
    """"L" or "R", which hand the picture shows; empty where none is recognised or the classes are no hand's."""
    label: Label | None
    """None where there is no label, or it can't be read."""


def items_of(cfg: Config) -> list[Item]:
    """The images of all splits of data_root, but for those that `exclude` names, by split and path.

    Raises:
        FileProblem: there are none, or no layout fits.
    """
    root, excluded = Path(cfg.data.data_root), {*cfg.data.exclude}
    found = [
        Item(split, below(root, record.image), record)
        for split in SPLITS
        if has_split(cfg, split)
        for record in pair_split(cfg, split).records
        if record.key not in excluded
    ]
    if not found:
        raise FileProblem(f"{root} holds no images: point --data_root at the data, or give --phantom.")
    return found


def measure(item: Item, classes: Sequence[str]) -> Measured | None:
    """The numbers of one image; None where it can't be read, which dataset/check.py tells."""
    record = item.record
    try:
        image = read_image(record.image)
    except FileProblem:
        return None
    label = None
    if record.label is not None:
        try:
            label = measure_label(read_label(record, classes, *image.shape), image, len(classes))
        except FileProblem:
            label = None
    (height, width), levels = image.shape, np.bincount(image.ravel(), minlength=256)
    side = side_shown(image) if set(HAND_BONES) <= set(classes) else ""
    return Measured(item, height, width, levels, side, label)


def side_shown(image: NDArray[np.uint8]) -> str:
    """"L" or "R" where a hand is recognised in the picture, else empty."""
    height, width = image.shape
    if min(height, width) < SMALLEST:
        return ""
    hand = find_hand(image)
    return "" if hand.box == (0, 0, width, height) else hand.side[0].upper()


def measure_label(bits: NDArray[np.int32], image: NDArray[np.uint8], n_classes: int) -> Label:
    """The numbers of a packed label, (words, H, W), on its image, (H, W)."""
    height, width = image.shape
    areas, sums = np.zeros(n_classes, np.int64), np.zeros((n_classes, 3))
    pairs = np.zeros((n_classes, n_classes), np.int64)
    labelled, several = _count(bits.view(np.uint32), image, areas, sums, pairs)
    with np.errstate(invalid="ignore"):  # 0 / 0 of what is not shown
        y, x, grey = sums.T / areas
    centres = np.stack([(y + 0.5) / height, (x + 0.5) / width], 1).astype(np.float32)
    rows, columns = (((np.arange(GRID) + 0.5) * side / GRID).astype(np.int64) for side in (height, width))
    coarse = np.ascontiguousarray(bits[:, rows[:, None], columns])
    return Label(areas, centres, grey.astype(np.float32), pairs + pairs.T, labelled, several, coarse)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _count(
    words: NDArray[np.uint32],
    image: NDArray[np.uint8],
    areas: NDArray[np.int64],
    sums: NDArray[np.float64],
    pairs: NDArray[np.int64],
) -> tuple[int, int]:
    """Add up px, (y, x, grey) and common px (above the diagonal) of the classes; returns px with any, with several."""
    labelled = several = 0
    here = np.zeros(len(areas), np.int64)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            n = 0
            for w in range(len(words)):
                word, k = words[w, y, x], 32 * w
                while word:
                    if word & 1:
                        here[n] = k
                        n += 1
                    word >>= 1
                    k += 1
            for i in range(n):
                k = here[i]
                areas[k] += 1
                sums[k, 0] += y
                sums[k, 1] += x
                sums[k, 2] += image[y, x]
                for j in range(i + 1, n):
                    pairs[k, here[j]] += 1
            labelled += n > 0
            several += n > 1
    return labelled, several


def measure_all(items: Sequence[Item], classes: Sequence[str], workers: int) -> Iterator[Measured]:
    """The numbers of readable images in their order, measured in `workers` processes, or in this one for 0."""
    found = (measure(item, classes) for item in items) if not workers else _in_processes(items, classes, workers)
    yield from (one for one in progress(found, "measuring", len(items), "images") if one is not None)


def _in_processes(items: Sequence[Item], classes: Sequence[str], workers: int) -> Iterator[Measured | None]:
    # spawn: OpenCV and numba don't survive a fork. Not Pool, which waits for ever for a worker that was killed.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    waiting: deque[Future[Measured | None]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(measure, item, classes))
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    cv2.setNumThreads(1)  # one core a worker: OpenCV's own threads would fight over them
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent stops the workers


@dataclass(frozen=True)
class Table:
    """What is kept of each labelled image, N of them: for outliers and for distributions."""

    items: tuple[Item, ...]
    areas: NDArray[np.float32]
    """(N, K) share of the image."""
    pixels: NDArray[np.int64]
    """(N, K) px."""
    centres: NDArray[np.float32]
    """(N, K, 2) as in Label."""
    shapes: NDArray[np.int64]
    """(N, 2) height and width."""


class Statistics:
    """Sums over the images of a data set. `sum_up` makes one."""

    def __init__(self, classes: Sequence[str]) -> None:
        k = len(classes)
        self.classes = tuple(classes)
        self.images: Counter[str] = Counter()
        """Split -> readable images."""
        self.labels: Counter[str] = Counter()
        """Split -> readable labels."""
        self.subjects: dict[str, set[str]] = {}
        """Split -> subjects."""
        self.sizes: Counter[tuple[str, int, int]] = Counter()
        """Split, height and width -> images."""
        self.levels: dict[str, NDArray[np.int64]] = {}
        """Split -> (256,) px of each grey value."""
        self.means: dict[str, NDArray[np.int64]] = {}
        """Split -> (256,) images by their mean grey value."""
        self.sides: dict[str, str] = {}
        """Image -> the hand that its picture shows, see Measured."""
        self.shown = np.zeros(k, np.int64)
        """(K,) labels that show a class."""
        self.greys = np.zeros(k)
        """(K,) sum over these labels of the mean grey value below the class."""
        self.pairs = np.zeros((k, k), np.int64)
        """(K, K) px that carry both classes."""
        self.paired = np.zeros((k, k), np.int64)
        """(K, K) labels in which they do."""
        self.several = 0
        """Px that carry two classes or more."""
        self.labelled = 0
        """Px that carry any class."""
        self.heat = np.zeros((k, GRID, GRID), np.int64)
        """(K, GRID, GRID) labels that show a class in a cell."""
        self._items: list[Item] = []
        self._rows: list[tuple[NDArray[np.int64], NDArray[np.float32], tuple[int, int]]] = []

    def add(self, one: Measured) -> None:
        """Count an image in."""
        split, path = one.item.split, one.item.path
        self.images[split] += 1
        self.subjects.setdefault(split, set()).add(one.item.record.subject)
        self.sizes[split, one.height, one.width] += 1
        self.levels[split] = self.levels.get(split, np.zeros(256, np.int64)) + one.levels
        mean = round(float(np.arange(256) @ one.levels) / (one.height * one.width))
        self.means.setdefault(split, np.zeros(256, np.int64))[mean] += 1
        if one.side:
            self.sides[path] = one.side
        if one.label:
            self._add_label(one, one.label)

    def _add_label(self, one: Measured, label: Label) -> None:
        self.labels[one.item.split] += 1
        self.shown += label.areas > 0
        self.greys += np.nan_to_num(label.greys)
        self.pairs += label.pairs
        self.paired += label.pairs > 0
        self.several += label.several
        for k in range(len(self.classes)):
            self.heat[k] += label.coarse.view(np.uint32)[k // 32] >> np.uint32(k % 32) & 1
        self.labelled += label.labelled
        self._items.append(one.item)
        self._rows.append((label.areas, label.centres, (one.height, one.width)))

    def table(self) -> Table:
        """The labelled images."""
        n, k = len(self._rows), len(self.classes)
        pixels = np.array([areas for areas, _, _ in self._rows], np.int64).reshape(n, k)
        shapes = np.array([shape for _, _, shape in self._rows], np.int64).reshape(n, 2)
        centres = np.array([centres for _, centres, _ in self._rows], np.float32).reshape(n, k, 2)
        areas = (pixels / shapes.prod(1, keepdims=True)).astype(np.float32)
        return Table(tuple(self._items), areas, pixels, centres, shapes)


def sum_up(measured: Iterable[Measured], classes: Sequence[str]) -> Statistics:
    """Statistics of measured images."""
    statistics = Statistics(classes)
    for one in measured:
        statistics.add(one)
    return statistics
