"""Layouts of files on disk -> records. Everything after this is shared by all layouts (docs/data.md lists them)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """Its label file; None where there is none."""
    subject: str
    """Both hands of one person share it: they never part between training and validation."""
    pseudo: Pseudo | None = None
    """None where people drew the label, or there is none."""

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
    """Images and labels of one split of a competition tree, and those without a partner."""

    records: list[Record]
    """Sorted by `IDxxx/file`, with their labels; those in `unlabelled` have None."""
    unlabelled: list[Record]
    """Images that lack a label though the split must have it."""
    lone_labels: list[Path]
    """Labels without an image, sorted."""


def pair_competition(root: Path, split: str) -> Pairs:
    """Pair `root/<split>/DCM` with `root/<split>/outputs_json` by relative path without the extension.

    Nothing is raised: missing folders are empty ones. The test split may have no labels at all.
    """
    images_root, labels_root = root / split / "DCM", root / split / "outputs_json"
    images = _images_below(images_root) if images_root.is_dir() else []
    found = {path.relative_to(labels_root).with_suffix("").as_posix(): path for path in labels_root.rglob("*.json")}
    labels = [found.pop(image.relative_to(images_root).with_suffix("").as_posix(), None) for image in images]
    records = [_record(image, label, images_root) for image, label in zip(images, labels, strict=True)]
    needs_labels = split != "test" or labels_root.is_dir()
    unlabelled = [record for record in records if needs_labels and record.label is None]
    return Pairs(records, unlabelled, [found[key] for key in sorted(found)])


def label_of(image: Path, root: Path, split: str) -> Path:
    """Where the label of an image below `root/<split>/DCM` belongs."""
    return root / split / "outputs_json" / image.relative_to(root / split / "DCM").with_suffix(".json")


def image_of(label: Path, root: Path, split: str) -> Path:
    """Where the image of a label below `root/<split>/outputs_json` belongs, if it is a PNG."""
    return root / split / "DCM" / label.relative_to(root / split / "outputs_json").with_suffix(".png")


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
    if pairs.unlabelled:
        image = pairs.unlabelled[0].image
        raise FileProblem(
            f"{image} has no label {label_of(image, root, split)}: add it, or remove the image from the training set."
        )
    if pairs.lone_labels:
        path, count = pairs.lone_labels[0], len(pairs.lone_labels)
        more = f" (and {count - 1} more)" if count > 1 else ""
        raise FileProblem(f"{path}{more} has no image {image_of(path, root, split)}: add it, or remove the label.")
    return pairs.records


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
