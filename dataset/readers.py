"""Layouts of files on disk -> records. Everything after this is shared by all layouts (docs/data.md lists them)."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


Kind = Literal["competition", "labelme", "masks"]
"""What a label is: polygons in the competition's JSON or in labelme's, or one image file for each class."""


@dataclass(frozen=True)
class Pseudo:
    """What is known of a label that a network predicted. Such records train, and never validate."""

    weight: float
    """Of a sample of the image in the loss."""
    rows: tuple[int, int] | None = None
    """Where in the label file its rows begin and end, bytes; None where the label is a mask folder or file."""


@dataclass(frozen=True)
class Record:
    """One image."""

    image: Path
    label: Path | None
    """Its label file, of several masks the first; None where there is none."""
    subject: str
    """Both hands of one person share it: they never part between training and validation."""
    pseudo: Pseudo | None = None
    """None where people drew the label, or there is none."""
    kind: Kind = "competition"
    """Of a label that people drew."""
    masks: tuple[tuple[str, Path], ...] = ()
    """Class and file of each mask, of kind masks; a class without a file is not shown."""

    @property
    def label_files(self) -> tuple[Path, ...]:
        """All files of the label."""
        return tuple(path for _, path in self.masks) or ((self.label,) if self.label else ())

    @property
    def name(self) -> str:
        """Base name with extension, as the CSV has it."""
        return self.image.name

    @property
    def key(self) -> str:
        """subject/stem, as the exclusion list has it."""
        return f"{self.subject}/{self.image.stem}"

    @property
    def weight(self) -> float:
        """Of a sample of the image in the loss."""
        return self.pseudo.weight if self.pseudo else 1.0


@dataclass(frozen=True)
class Pairs:
    """Images and labels of one split, and what does not fit together."""

    records: list[Record]
    """Sorted by the path below their folder, with their labels; those in `unlabelled` have None."""
    unlabelled: list[Record]
    """Images that lack a label though the split must have it."""
    lone_labels: list[Path]
    """Labels without an image, sorted."""
    wanted: Mapping[Path, str]
    """Image without label, or label without image -> the partner that belongs to it."""
    faults: list[tuple[Path, str]] = field(default_factory=list)
    """Files that can't be told apart or belong to no class, and why."""

    def complete(self) -> list[Record]:
        """The records, where everything has its one partner.

        Raises:
            FileProblem: it has not; names the first file and the remedy.
        """
        for path, why in self.faults[:1]:
            raise FileProblem(f"{path} {why}")
        if self.unlabelled:
            image = self.unlabelled[0].image
            raise FileProblem(
                f"{image} has no label {self.wanted[image]}: add it, or remove the image from the training set."
            )
        if self.lone_labels:
            path, count = self.lone_labels[0], len(self.lone_labels)
            more = f" (and {count - 1} more)" if count > 1 else ""
            raise FileProblem(f"{path}{more} has no image {self.wanted[path]}: add it, or remove the label.")
        return self.records


def pair_competition(root: Path, split: str) -> Pairs:
    """Pair `root/<split>/DCM` with `root/<split>/outputs_json` by relative path without the extension.

    Nothing is raised: missing folders are empty ones. The test split may have no labels at all.
    """
    images_root, labels_root = root / split / "DCM", root / split / "outputs_json"
    images = images_below(images_root)
    found = {path_key(path, labels_root): path for path in labels_root.rglob("*.json")}
    labels = [found.pop(path_key(image, images_root), None) for image in images]
    records = [_record(image, label, images_root) for image, label in zip(images, labels, strict=True)]
    needs_labels = split != "test" or labels_root.is_dir()
    unlabelled = [record for record in records if needs_labels and record.label is None]
    lone = [found[key] for key in sorted(found)]
    wanted = {r.image: labels_root / r.image.relative_to(images_root).with_suffix(".json") for r in unlabelled}
    wanted |= {path: images_root / path.relative_to(labels_root).with_suffix(".png") for path in lone}
    return Pairs(records, unlabelled, lone, {path: str(partner) for path, partner in wanted.items()})


def read_competition(root: Path, split: str) -> list[Record]:
    """Records of `root/<split>/DCM/IDxxx/*.png`, sorted by `IDxxx/file`, with labels from `outputs_json`.

    Images and labels are paired by relative path without the extension.

    Args:
        split: train, test, or another split folder such as val. Only test may have no labels at all.

    Raises:
        FileProblem: no images, or an image or label without its partner; names the files and the remedy.
    """
    pairs = pair_competition(root, split)
    if not pairs.records:
        raise FileProblem(
            f"{root / split / 'DCM'} holds no images: point --data_root at the folder that holds {split}/DCM, or give "
            f"--phantom to draw a data set."
        )
    return pairs.complete()


def read_folder(path: Path) -> list[Record]:
    """Unlabelled records of one image file, or of all images below a folder, sorted by relative path.

    Raises:
        FileProblem: the path does not exist or holds no image of a supported type.
    """
    if path.is_file():
        return [Record(path, None, path.stem)]
    if not path.is_dir():
        raise FileProblem(f"{path} does not exist: give an image file or a folder of images.")
    images = images_below(path)
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


def images_below(folder: Path) -> list[Path]:
    """Image files at any depth, without hidden ones, sorted by relative path; none where there is no such folder."""
    # Sorted by text and not by Path, whose order puts '/' before everything.
    found = (p for p in folder.rglob("*") if p.suffix.casefold() in IMAGE_SUFFIXES and p.is_file())
    return sorted((p for p in found if not p.name.startswith(".")), key=lambda p: p.relative_to(folder).as_posix())


def path_key(path: Path, folder: Path) -> str:
    """What images and labels are paired by: the path below `folder`, without the extension, in composed form."""
    return composed(path.relative_to(folder).with_suffix("").as_posix())


def composed(name: str) -> str:
    """A name in Unicode's form NFC: macOS and its archives write an accent as a letter of its own, others don't."""
    return unicodedata.normalize("NFC", name)


def _record(image: Path, label: Path | None, root: Path) -> Record:
    relative = image.relative_to(root)
    return Record(image, label, relative.parts[0] if len(relative.parts) > 1 else image.stem)
