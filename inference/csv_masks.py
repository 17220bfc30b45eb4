"""Masks by image and class as run lists, from whatever holds them: a CSV, a folder of masks, the labels of people.

What is compared, scored or drawn is paired by these names, never by rows. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from config import Config
from dataset.images import image_shape
from dataset.labels import read_label
from dataset.layouts import has_split, is_data, read_split
from dataset.pseudo import CONFIDENCE_FILE
from dataset.readers import Record, read_competition
from dataset.runs import DAMAGES, Runs, check_names, damaged, read_masks, read_packed
from engine import settings
from engine.files import FileProblem
from engine.rle import runs_of_bits
from inference.submission import parse_image, read_submission
from inference.submission_file import SubmissionFile

ImageRuns = list[NDArray[np.int64]]
"""One image: for each class int64 (R, 2), first pixel and the one after the last of each run, as `parse_runs`."""


class MaskSource(Protocol):
    """Masks of many images; one image is in memory at a time."""

    path: Path
    """What errors name."""
    title: str
    """What pictures call it."""
    classes: tuple[str, ...]
    names: tuple[str, ...]
    """Base names of the images."""

    def shape(self, name: str) -> tuple[int, int] | None:
        """Height and width of an image; None where the source doesn't know them."""
        ...

    def runs(self, name: str, n_pixels: int | None = None) -> ImageRuns:
        """The runs of an image, in the order of `classes`; `n_pixels` is what the image has, where that is known.

        Raises:
            FileProblem: they can't be read, or don't fit the image; names the file.
        """
        ...


class CsvMasks:
    """A submission, or labels in its form.

    Args:
        path: the CSV.
        classes: what it must hold, for all images in one order, whichever; None takes its own.

    Raises:
        FileProblem: as `SubmissionFile`.
    """

    def __init__(self, path: Path, classes: Sequence[str] | None = None) -> None:
        self.path, self.title = path, path.name
        order = classes
        if classes is not None and (image := next(read_submission(path), None)) and set(image.rles) == set(classes):
            order = tuple(image.rles)
        self._file = SubmissionFile(path, order)
        self.classes = self._file.classes if classes is None else tuple(classes)
        self.names = self._file.names

    def shape(self, name: str) -> None:
        """See MaskSource."""

    def runs(self, name: str, n_pixels: int | None = None) -> ImageRuns:
        """See MaskSource."""
        found = parse_image(self.path, self._file.read(name), n_pixels)
        return [found[label] for label in self.classes]


class FolderMasks:
    """A folder that holds `<stem>/<class>.png` or `<stem>.npz` for each image, as `save_masks` writes it.

    Args:
        called: images that the stems may stand for; a stem without one is taken for `<stem>.png`.

    Raises:
        FileProblem: something else lies there too, nothing does, or two images share a stem.
    """

    def __init__(self, path: Path, classes: Sequence[str], called: Iterable[str] = ()) -> None:
        self.path, self.title, self.classes = path, path.name, tuple(classes)
        full = unique_stems(called, path)
        self._paths: dict[str, Path] = {}
        for entry in sorted(path.iterdir()) if path.is_dir() else ():
            if entry.name.startswith(".") or entry.name == CONFIDENCE_FILE:
                continue
            if not entry.is_dir() and entry.suffix != ".npz":
                raise FileProblem(f"{entry} is neither a folder of class PNGs nor a packed .npz: move it away.")
            stem = entry.name if entry.is_dir() else entry.stem
            name = full.get(stem, f"{stem}.png")
            if name in self._paths:
                raise FileProblem(f"{self._paths[name]} and {entry} are both masks of {name!r}: remove one.")
            self._paths[name] = entry
        if not self._paths:
            raise FileProblem(f"{path} holds no masks: give a folder as --save_masks or csv_to_masks.py write it.")
        self.names = tuple(self._paths)

    def shape(self, name: str) -> tuple[int, int]:
        """See MaskSource. Of a folder of PNGs: after a look at the names and sizes of all."""
        path = self._paths[name]
        if path.is_dir():
            return self._shape_of_pngs(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                _, height, width = file["bits"].shape
        except DAMAGES as error:
            raise damaged(path, error) from None
        return height, width

    def runs(self, name: str, n_pixels: int | None = None) -> ImageRuns:
        """See MaskSource."""
        path, shape = self._paths[name], self.shape(name)
        _check_pixels(path, shape, n_pixels)
        found = (read_masks if path.is_dir() else read_packed)(path, self.classes, shape)
        return [found[label] for label in self.classes]

    def _shape_of_pngs(self, folder: Path) -> tuple[int, int]:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        if strange := [path for path in paths if path.suffix != ".png"]:
            raise FileProblem(f"{strange[0]} is no PNG of a class: move it away.")
        check_names([path.stem for path in paths], self.classes, str(folder))
        shapes = {path: image_shape(path) for path in paths}
        first, shape = next(iter(shapes.items()))
        for path, (height, width) in shapes.items():
            if (height, width) != shape:
                raise FileProblem(
                    f"{path} is {width} x {height} px, but {first.name} beside it {shape[1]} x {shape[0]}: masks of "
                    f"one image must have its size, write them again."
                )
        return shape


class LabelMasks:
    """Labels of people, drawn at their images' size.

    Raises:
        FileProblem: an image without a label, or two of one name.
    """

    def __init__(self, path: Path, records: Sequence[Record], classes: Sequence[str]) -> None:
        self.path, self.title, self.classes = path, "labels", tuple(classes)
        if bare := [record for record in records if record.label is None]:
            raise FileProblem(f"{bare[0].image} has no label ({len(bare)} images in all), so it has no Dice: add it.")
        self._records = by_name(records)
        self.names = tuple(self._records)

    def shape(self, name: str) -> tuple[int, int]:
        """See MaskSource."""
        return image_shape(self._records[name].image)

    def runs(self, name: str, n_pixels: int | None = None) -> ImageRuns:
        """See MaskSource."""
        label, shape = self._records[name].label, self.shape(name)
        assert label is not None
        _check_pixels(label, shape, n_pixels)
        bits = read_label(self._records[name], self.classes, *shape)
        return runs_of_bits(bits, len(self.classes))


def _check_pixels(path: Path, shape: tuple[int, int], n_pixels: int | None) -> None:
    height, width = shape
    if n_pixels is not None and height * width != n_pixels:
        raise FileProblem(
            f"{path} is for {width} x {height} px, but the image has {n_pixels} px in all: give masks of its size."
        )


def by_name(records: Sequence[Record]) -> dict[str, Record]:
    """Base name -> record, in their order.

    Raises:
        FileProblem: two images of one name, which a CSV can't tell apart.
    """
    found: dict[str, Record] = {}
    for record in records:
        other = found.setdefault(record.name, record)
        if other is not record:
            raise FileProblem(
                f"{other.image} and {record.image} have one name, and a CSV tells images by their names: rename one."
            )
    return found


def unique_stems(names: Iterable[str], where: Path) -> dict[str, str]:
    """Stem -> name of each image, in their order: what masks and pictures are called.

    Raises:
        FileProblem: two images share a stem; names `where`.
    """
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(Path(name).stem, name)
        if other != name:
            raise FileProblem(f"{where}: {other!r} and {name!r} would share files of one name: rename one of them.")
    return found


def open_masks(path: Path, split: str, classes: Sequence[str], called: Iterable[str] = ()) -> MaskSource:
    """A CSV, the labels of a split of a data set (in a layout of docs/data.md), or else a folder of masks.

    Args:
        called: see FolderMasks.

    Raises:
        FileProblem: it does not exist, or is none of these.
    """
    if not path.exists():
        raise FileProblem(f"{path} does not exist: give a CSV, a folder of masks, or the folder of a competition tree.")
    if path.is_file():
        return CsvMasks(path, classes)
    if (path / split / "DCM").is_dir():
        return LabelMasks(path, read_competition(path, split), classes)
    if next(path.glob("*/DCM"), None):
        raise FileProblem(f"{path} is a competition tree without {split}/DCM: give another --split or another folder.")
    cfg = settings.replace(Config(), {"data_root": str(path), "classes": tuple(classes)})
    if is_data(cfg):
        if not has_split(cfg, split):
            raise FileProblem(f"{path} is a data set without the split {split}: give another --split or folder.")
        return LabelMasks(path, read_split(cfg, split), classes)
    return FolderMasks(path, classes, called)


def paired(first: MaskSource, second: MaskSource, common: bool) -> tuple[str, ...]:
    """Names of the images that are in both, in the order of the first.

    Raises:
        FileProblem: an image is in one of them only and `common` is False, or none is in both.
    """
    for own, other in ((first, second), (second, first)):
        known = set(other.names)
        lacking = [name for name in own.names if name not in known]
        if lacking and not common:
            raise FileProblem(
                f"{other.path} has no image {lacking[0]!r} of {own.path} ({len(lacking)} of {len(own.names)} in all): "
                f"add what is missing, or give --common for the images that are in both."
            )
        if len(lacking) == len(own.names):
            raise FileProblem(f"{first.path} and {second.path} have no image in common: give files of one data set.")
    known = set(second.names)
    return tuple(name for name in first.names if name in known)


def draw_runs(runs: ImageRuns, classes: Sequence[str], height: int, width: int) -> NDArray[np.int32]:
    """An image's masks, in the order of the classes, as packed words int32 (ceil(K / 32), height, width)."""
    return Runs(dict(zip(classes, runs, strict=True)), height, width).draw(classes, (0, height, 0, width))
