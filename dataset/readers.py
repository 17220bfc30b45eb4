"""Layouts of files on disk -> records. Everything after this is shared by all layouts (docs/data.md lists them)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from config import ConfigProblem, suggest
from dataset.images import IMAGE_SUFFIXES
from engine.files import FileProblem

KNOWN_BAD_LABELS = (
    "ID058/image1661392103627",
    "ID325/image1664846270124",
    "ID547/image1667353928376",
    "ID363/image1664935962797",
    "ID089/image1661821711879",
)
"""Mirrored or otherwise wrong labels that teams of the competition left out of training."""


@dataclass(frozen=True)
class Record:
    """One image."""

    image: Path
    label: Path | None
    """Its label file; None where there is none."""
    subject: str
    """Both hands of one person share it: they never part between training and validation."""

    @property
    def name(self) -> str:
        """Base name with extension, as the CSV has it."""
        return self.image.name

    @property
    def key(self) -> str:
        """subject/stem, as the exclusion list has it."""
        return f"{self.subject}/{self.image.stem}"


def read_competition(root: Path, split: Literal["train", "test"]) -> list[Record]:
    """Records of `root/<split>/DCM/IDxxx/*.png`, sorted by `IDxxx/file`, with labels from `outputs_json`.

    Images and labels are paired by relative path without the extension. The test split may have no labels at all.

    Raises:
        FileProblem: no images, or an image or label without its partner; names the files and the remedy.
    """
    images_root, labels_root = root / split / "DCM", root / split / "outputs_json"
    images = _images_below(images_root) if images_root.is_dir() else []
    if not images:
        raise FileProblem(
            f"{images_root} holds no images: point --data_root at the folder that holds {split}/DCM, or give --phantom "
            f"to draw a data set."
        )
    if split == "test" and not labels_root.is_dir():
        return [_record(image, None, images_root) for image in images]
    labels = {path.relative_to(labels_root).with_suffix("").as_posix(): path for path in labels_root.rglob("*.json")}
    records = []
    for image in images:
        key = image.relative_to(images_root).with_suffix("").as_posix()
        if key not in labels:
            raise FileProblem(
                f"{image} has no label {labels_root / key}.json: add it, or remove the image from the training set."
            )
        records.append(_record(image, labels.pop(key), images_root))
    if labels:
        key, path = next(iter(sorted(labels.items())))
        more = f" (and {len(labels) - 1} more)" if len(labels) > 1 else ""
        raise FileProblem(f"{path}{more} has no image {images_root / key}.png: add it, or remove the label.")
    return records


def read_folder(path: Path) -> list[Record]:
    """Unlabelled records of one image file, or of all images below a folder, sorted by relative path.

    Raises:
        FileProblem: the path does not exist or holds no image of a supported type.
    """
    if path.is_file():
        return [Record(path, None, path.stem)]
    if not path.is_dir():
        raise FileProblem(f"{path} does not exist: give an image file or a folder of images.")
    images = _images_below(path)
    if not images:
        raise FileProblem(f"{path} holds no image: supported are {', '.join(IMAGE_SUFFIXES)}.")
    return [_record(image, None, path) for image in images]


def leave_out(records: Sequence[Record], exclude: Sequence[str], known_bad: bool) -> list[Record]:
    """Drop the records that `exclude` names as subject/stem, and with `known_bad` the competition's bad labels.

    Raises:
        ConfigProblem: an entry of `exclude` matches nothing; names near ones.
    """
    keys = {record.key for record in records}
    for entry in exclude:
        if entry not in keys:
            raise ConfigProblem(f"exclude: no training image is called {entry!r}{suggest(entry, keys)}.")
    dropped = {*exclude, *(KNOWN_BAD_LABELS if known_bad else ())}
    return [record for record in records if record.key not in dropped]


def _images_below(folder: Path) -> list[Path]:
    # Sorted by text and not by Path, whose order puts '/' before everything.
    found = (p for p in folder.rglob("*") if p.suffix.casefold() in IMAGE_SUFFIXES and p.is_file())
    return sorted((p for p in found if not p.name.startswith(".")), key=lambda p: p.relative_to(folder).as_posix())


def _record(image: Path, label: Path | None, root: Path) -> Record:
    relative = image.relative_to(root)
    return Record(image, label, relative.parts[0] if len(relative.parts) > 1 else image.stem)
