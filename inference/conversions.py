"""What the project itself reads and writes, as sources and targets of engine/conversions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from config import HAND_BONES, Config, ConfigProblem
from dataset.images import image_shape
from dataset.labels import rasterise, read_shapes
from dataset.layouts import AUTO, read_split, with_classes
from dataset.readers import Record, read_folder
from dataset.runs import Runs
from engine import settings
from engine.conversions.labelled import Labelled
from engine.conversions.shapes import Shape, runs_of
from engine.files import FileProblem
from inference.csv_masks import CsvMasks, FolderMasks, MaskSource, by_name, draw_runs
from inference.mask_files import write_masks


class DataSource:
    """Splits of a data set in any layout that dataset/ reads.

    Args:
        cfg: where it lies.
        splits: in their order.
        classes: order of the classes; empty takes those of the labels.

    Raises:
        FileProblem: as `read_split`.
    """

    def __init__(self, cfg: Config, splits: Sequence[str], classes: Sequence[str]) -> None:
        cfg = with_classes(settings.replace(cfg, {"classes": classes or AUTO}))
        self.classes = cfg.data.classes
        root = Path(cfg.data.data_root)
        self._images = [
            (_below(record.image, root, (split, "DCM", cfg.data.image_dir)), split, record)
            for split in splits
            for record in read_split(cfg, split)
        ]
        self.names = tuple(name for name, _, _ in self._images)

    def __iter__(self) -> Iterator[Labelled]:
        """See Source."""
        for name, split, record in self._images:
            height, width = image_shape(record.image)
            shapes = self._shapes(record, height, width) if record.label else None
            yield Labelled(name, split, height, width, shapes, record.image)

    def _shapes(self, record: Record, height: int, width: int) -> Mapping[str, Shape]:
        shapes = read_shapes(record, self.classes)
        rasterise(shapes, self.classes, height, width, str(record.label), (0, 1, 0, 1))  # refuses what lies outside
        return shapes.runs if isinstance(shapes, Runs) else shapes


def _below(image: Path, root: Path, folders: Sequence[str]) -> str:
    """The path of an image without what only tells its split and that it is an image."""
    parts = list(image.relative_to(root).parts)
    for folder in folders:
        if len(parts) > 1 and parts[0] == folder:
            parts.pop(0)
    return "/".join(parts)


class MaskedSource:
    """Masks and the images that they are of.

    Args:
        path: a CSV, or a folder as save_masks writes it.
        folder: of the images; None where the masks know their sizes, which a CSV doesn't.
        split: what the images are called.
        classes: order of the classes; empty takes those of the CSV, of a folder those of the hand.

    Raises:
        ConfigProblem: a CSV without images.
        FileProblem: masks of no image there, or two images of one name.
    """

    def __init__(self, path: Path, folder: Path | None, split: str, classes: Sequence[str]) -> None:
        if path.is_file() and not folder:
            raise ConfigProblem("a CSV does not know the sizes of its images: give --images.")
        records = by_name(read_folder(folder)) if folder else {}
        self._paths = {name: record.image for name, record in records.items()}
        self._folder, self._split = folder, split
        self._masks: MaskSource = (
            CsvMasks(path, classes or None) if path.is_file() else FolderMasks(path, classes or HAND_BONES, self._paths)
        )
        if folder and (lone := [name for name in self._masks.names if name not in self._paths]):
            raise FileProblem(
                f"{self._masks.path} holds {lone[0]!r} ({len(lone)} in all), which is no image in {folder}: give the "
                f"folder of all images."
            )
        self.classes = self._masks.classes
        self.names = tuple(map(self._name, self._masks.names))

    def __iter__(self) -> Iterator[Labelled]:
        """See Source."""
        for own, name in zip(self._masks.names, self.names, strict=True):
            image = self._paths.get(own)
            shape = image_shape(image) if image else self._masks.shape(own)
            assert shape
            runs = self._masks.runs(own, shape[0] * shape[1])
            yield Labelled(name, self._split, *shape, dict(zip(self.classes, runs, strict=True)), image)

    def _name(self, own: str) -> str:
        return self._paths[own].relative_to(self._folder).as_posix() if self._folder else own


class MaskTarget:
    """`<stem>/<class>.png` for each image, as save_masks writes them."""

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self._folder, self._classes = folder, classes

    def add(self, image: Labelled) -> None:
        """See Target."""
        write_masks(self._folder, PurePosixPath(image.name).stem, bits_of(image, self._classes), self._classes, "class")

    def finish(self) -> None:
        """See Target."""


def bits_of(image: Labelled, classes: Sequence[str]) -> NDArray[np.int32]:
    """The masks of an image as packed words, int32 (ceil(K / 32), H, W).

    Raises:
        FileProblem: nobody has labelled it.
    """
    runs = [runs_of(image.seen.get(label, ()), image.height, image.width) for label in classes]
    return draw_runs(runs, classes, image.height, image.width)
