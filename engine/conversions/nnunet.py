"""nnU-Net v2: `imagesTr/CASE_0000.png`, `labelsTr/CASE.png`, `dataset.json`; test cases in imagesTs and labelsTs.

A label map has one number a pixel, but classes overlap. So every set of classes that is seen together in a pixel gets a
number of its own, and a class is the region of all numbers whose sets hold it: nnU-Net trains such regions with one
sigmoid each. Nothing is lost so. github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md, region_based_training.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from config import ConfigProblem
from engine.conversions.labelled import (
    ImageFiles,
    Labelled,
    Losses,
    checked_classes,
    checked_name,
    in_order,
    no_file,
    read_json,
)
from engine.conversions.shapes import Box, box_of, ends_of, runs_of
from engine.files import FileProblem, atomic_path, write_json

FOLDERS = {"train": "Tr", "test": "Ts"}
"""Split -> what nnU-Net calls it."""
NAMES = "image_names"
"""Our own entry of dataset.json, which nnU-Net does not look at: case -> path of the image."""
OWN_LABELS = {"background", "ignore"}
"""Entries of `labels` that are no classes."""
MOST = 2**16 - 1
"""Numbers that a PNG can hold."""
CHANNEL = "radiograph"
"""A name that nnU-Net has no rule for, so that it normalises each image by itself (z-score)."""

ReadGrey = Callable[[Path], NDArray[np.uint8]]
"""Decodes an image file, (H, W) uint8; raises FileProblem."""


class NnunetSource:
    """An nnU-Net data set with labels as PNG, BMP or TIFF; of images, the first channel.

    Args:
        root: the folder of dataset.json.
        splits: train, test.
        classes: order of the classes; empty takes that of dataset.json.

    Raises:
        FileProblem: dataset.json is none such, or a split has no labels.
    """

    def __init__(self, root: Path, splits: Sequence[str], classes: Sequence[str], losses: Losses) -> None:
        path = root / "dataset.json"
        content = read_json(path, "nnU-Net data set")
        self._root, self._losses = root, losses
        self._ending, labels = str(content.get("file_ending")), content.get("labels")
        if self._ending not in (".png", ".bmp", ".tif", ".tiff") or not isinstance(labels, dict):
            raise FileProblem(f"{path} has no labels, or its file_ending {self._ending!r} is none of 2D images.")
        self._ignored = labels.pop("ignore", None)
        labels.pop("background", None)
        self._numbers = {name: _numbers(value, name, path) for name, value in labels.items()}
        self.classes = in_order(checked_classes(list(labels), path), classes, path)
        names = content.get(NAMES, {})
        self._cases: list[tuple[str, Path, str]] = []
        for split in splits:
            folder = root / f"labels{folder_of(split)}"
            found = sorted(folder.glob(f"*{self._ending}"))
            if not found:
                raise FileProblem(f"{folder} holds no label maps ({self._ending}): give other --splits.")
            for label in found:
                name = names.get(label.name.removesuffix(self._ending), label.name)
                self._cases.append((split, label, checked_name(name, path)))
        self.names = tuple(name for _, _, name in self._cases)

    def __iter__(self) -> Iterator[Labelled]:
        """See Source."""
        known = {number for numbers in self._numbers.values() for number in numbers}
        for split, label, name in self._cases:
            numbers = _read_map(label)
            if self._ignored is not None and (numbers == self._ignored).any():
                self._losses.add("pixels that nnU-Net is to ignore become background", str(label))
            seen = set(np.unique(numbers).tolist())
            if strange := seen - known - {0, self._ignored}:
                raise FileProblem(f"{label} holds the number {min(strange)}, which is no class in dataset.json.")
            height, width = numbers.shape
            shapes = {}
            for known_class, own in self._numbers.items():
                if present := own & seen:
                    plane = np.isin(numbers, sorted(present)).astype(np.uint8)
                    shapes[known_class] = ends_of(Box(plane, 0, 0), width).reshape(-1, 2)
            case = label.name.removesuffix(self._ending)
            image = self._root / f"images{folder_of(split)}" / f"{case}_0000{self._ending}"
            yield Labelled(name, split, height, width, shapes, image)


def folder_of(split: str) -> str:
    """Tr or Ts.

    Raises:
        ConfigProblem: nnU-Net has no such split.
    """
    if split not in FOLDERS:
        raise ConfigProblem(f"splits holds {split!r}, but nnU-Net knows train and test only: it makes folds by itself.")
    return FOLDERS[split]


def _numbers(value: Any, name: str, path: Path) -> set[int]:
    found = value if isinstance(value, list) else [value]
    if not found or not all(type(number) is int and number > 0 for number in found):
        raise FileProblem(f"{path}: class {name!r} must be a number from 1 up or a list of such, but is {value!r}.")
    return set(found)


def _read_map(path: Path) -> NDArray[np.integer[Any]]:
    numbers = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if numbers is None or numbers.ndim != 2 or not np.issubdtype(numbers.dtype, np.integer):
        raise FileProblem(f"{path} is no label map, one whole number a pixel: write it again.")
    return np.asarray(numbers)


class NnunetTarget:
    """An nnU-Net data set of 8-bit grey PNGs, which are decoded and written anew: three equal channels become one.

    Args:
        folder: to write into.
        name: of the data set's folder, as nnU-Net wants it.
        read_grey: decodes an image as networks here see it.

    Raises:
        ConfigProblem: nnU-Net would not find a folder of this name, or images were to be linked.
        FileProblem: a class has a name that nnU-Net keeps for itself.
    """

    def __init__(
        self, folder: Path, name: str, classes: Sequence[str], how: ImageFiles, read_grey: ReadGrey, losses: Losses
    ) -> None:
        if not re.fullmatch(r"Dataset\d{3}_\w[\w-]*", name):
            raise ConfigProblem(f"nnU-Net wants a folder called like Dataset101_Hand, not {name!r}: call it so.")
        if how == "link":
            raise ConfigProblem("image_files is link, but images are written anew for nnU-Net: give copy or none.")
        if taken := OWN_LABELS & set(classes):
            raise FileProblem(f"class {min(taken)!r} has a name that nnU-Net keeps for itself: rename it.")
        self._folder, self._classes, self._how = folder, classes, how
        self._read_grey, self._losses = read_grey, losses
        self._sets: dict[tuple[int, ...], int] = {(k,): k + 1 for k in range(len(classes))}
        self._cases: dict[str, str] = {}
        self._training = 0

    def add(self, image: Labelled) -> None:
        """See Target. Images without a label are written where they are for testing."""
        kind = folder_of(image.split)
        case = PurePosixPath(image.name).with_suffix("").as_posix().replace("/", "__")
        if other := self._cases.get(case):
            raise FileProblem(f"{other!r} and {image.name!r} would both be case {case!r} of nnU-Net: rename one.")
        self._cases[case] = image.name
        if image.shapes is not None or image.split == "train":
            _write_png(self._folder / f"labels{kind}" / f"{case}.png", self._label_map(image))
        self._training += image.split == "train"
        if self._how == "copy":
            _write_png(self._folder / f"images{kind}" / f"{case}_0000.png", self._grey(image))

    def finish(self) -> None:
        """See Target."""
        regions: list[list[int]] = [[] for _ in self._classes]
        for members, number in self._sets.items():
            for k in members:
                regions[k].append(number)
        # Numbers that stand alone are no lists: nnU-Net's own filter would drop a list of one.
        labels = {name: own if len(own) > 1 else own[0] for name, own in zip(self._classes, regions, strict=True)}
        content = {
            "channel_names": {"0": CHANNEL},
            "labels": {"background": 0, **labels},
            "numTraining": self._training,
            "file_ending": ".png",
            NAMES: self._cases,
        }
        if len(self._sets) > len(self._classes):
            content["regions_class_order"] = list(range(1, len(self._classes) + 1))
        write_json(self._folder / "dataset.json", content)

    def _label_map(self, image: Labelled) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """(H, W) numbers; sets that were not seen before get the next ones."""
        sets: list[tuple[int, ...]] = [()]
        of_pixel = np.zeros((image.height, image.width), np.int32)
        for k, label in enumerate(self._classes):
            plane, top, left = box_of(runs_of(image.seen.get(label, ()), image.height, image.width), image.width)
            view = of_pixel[top : top + plane.shape[0], left : left + plane.shape[1]]
            before, places = np.unique(view[plane > 0], return_inverse=True)
            view[plane > 0] = len(sets) + places
            sets += [(*sets[number], k) for number in before.tolist()]
        table = np.zeros(len(sets), np.uint16)
        for i in np.flatnonzero(np.bincount(of_pixel.reshape(-1))).tolist():
            if sets[i]:
                number = self._sets.setdefault(sets[i], len(self._sets) + 1)
                if number > MOST:
                    raise FileProblem(f"{image.name!r}: classes overlap in more than {MOST} ways: leave some out.")
                table[i] = number
        return table[of_pixel] if table.max() > 255 else table.astype(np.uint8)[of_pixel]

    def _grey(self, image: Labelled) -> NDArray[np.uint8]:
        if image.image is None:
            raise no_file(image)
        grey = self._read_grey(image.image)
        stored = cv2.imread(str(image.image), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
        if stored is None or stored.dtype != np.uint8 or (np.atleast_3d(stored) != grey[..., None]).any():
            self._losses.add("colours or more than 8 bits become 8-bit grey for nnU-Net", str(image.image))
        return grey


def _write_png(path: Path, picture: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    data = cv2.imencode(".png", picture)[1]
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())
