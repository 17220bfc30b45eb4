"""Images and labels that belong together by their names, in the layouts beside the competition's -> records."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path

from config import suggest
from dataset.images import IMAGE_SUFFIXES
from dataset.labels import labelme_shapes, read_json
from dataset.readers import Kind, Pairs, Record, composed, path_key
from engine.files import FileProblem

ENDING = "_mask"
"""What the name of a mask may have behind that of its image."""

READ = (*IMAGE_SUFFIXES, ".json")
"""Types of images and labels."""

SIDE = re.compile(r"_[LR]$")
"""Ends the names of the two hands of one subject."""


@dataclass(frozen=True)
class Files:
    """The image and label files of a split, before they are paired."""

    split: str
    image_root: Path
    label_root: Path
    """The same folder where labels lie with the images."""
    images: list[Path]
    masks: list[Path]
    texts: list[Path]
    """JSON files."""
    subject_pattern: str
    listed: frozenset[Path] | None = None
    """Those images that a split file names; None where the split has a folder of its own, or is all there is."""

    @property
    def keys(self) -> dict[str, Path]:
        """Images by what labels are paired by; of those that share it, the last."""
        return {path_key(image, self.image_root): image for image in self.images}

    def key_of(self, label: Path) -> str:
        """Of a label, which lies in either folder."""
        return path_key(label, self.label_root if label.is_relative_to(self.label_root) else self.image_root)


@dataclass
class _Found:
    """Labels by the key of their image."""

    kind: Kind
    labels: dict[str, list[tuple[str, Path]]] = field(default_factory=dict)
    lone: dict[Path, str] = field(default_factory=dict)
    """Without an image -> the one that they want."""
    faults: list[tuple[Path, str]] = field(default_factory=list)


def pair_masks(files: Files, name: str) -> Pairs:
    """One mask an image, of class `name`, called as the image or with _mask behind it."""
    found, keys = _Found("masks"), files.keys
    for mask in files.masks:
        key = files.key_of(mask)
        if owner := mask_owner(key, keys):
            found.labels.setdefault(owner, []).append((name, mask))
        else:
            found.lone[mask] = f"{files.image_root / _bare(key)}.png{_unread(files.image_root, _bare(key))}"
    return _paired(files, found, f"{ENDING}.png")


def pair_per_class(files: Files, classes: Sequence[str]) -> Pairs:
    """A mask for each class, called as the image with -class behind it; a number counts the classes from 0."""
    found, keys = _Found("masks"), files.keys
    for mask in files.masks:
        owner, said = class_owner(files.key_of(mask), keys, classes)
        name = class_of(said, classes)
        if not owner:
            found.lone[mask] = f"that its name begins with in {files.image_root}"
        elif not name:
            why = f"is of class {said!r}, which is no class{suggest(said, classes)}: rename it or set --classes."
            found.faults.append((mask, why))
        else:
            found.labels.setdefault(owner, []).append((name, mask))
    return _paired(files, found, f"-{classes[0]}.png")


def pair_labelme(files: Files) -> Pairs:
    """a.jpg and a.json, which lie beside each other or in the folders of images and masks."""
    found, keys = _Found("labelme"), files.keys
    for text in files.texts:
        key = files.key_of(text)
        if key in keys:
            found.labels.setdefault(key, []).append(("", text))
        elif _is_labelme(text):  # a folder may hold other JSON files
            found.lone[text] = f"{text.stem}.jpg beside it (an image inside of the file, imageData, is not read)"
    return _paired(files, found, ".json")


def layout_told(files: Files) -> str:
    """The layout that the names of labels show; "" where they show none."""
    keys = files.keys
    if any(files.key_of(text) in keys for text in files.texts):
        return "labelme"
    drawn = [files.key_of(mask) for mask in files.masks]
    if any(mask_owner(key, keys) for key in drawn):
        return "pairs"
    return "mask_per_class" if any(class_owner(key, keys, ())[0] for key in drawn) else ""


def classes_named(files: Files, layout: str) -> list[str]:
    """The classes of labelme files, or in the names of masks, in natural order: 2 before 10.

    Raises:
        FileProblem: a file is no labelme file.
    """
    keys = files.keys
    if layout == "labelme":
        texts = [text for text in files.texts if files.key_of(text) in keys]
        names = {label for text in texts for label, _, _ in labelme_shapes(read_json(text), text)}
    else:
        owners = [class_owner(files.key_of(mask), keys, ()) for mask in files.masks]
        names = {name for owner, name in owners if owner and name}
    return sorted(names, key=lambda name: [(p.isdecimal(), int(p) if p.isdecimal() else p) for p in _parts(name)])


def mask_owner(key: str, images: Collection[str]) -> str:
    """The image that the mask `key` belongs to; "" where there is none."""
    return next((name for name in (key, _bare(key)) if name in images), "")


def class_owner(key: str, images: Collection[str], classes: Sequence[str]) -> tuple[str, str]:
    """Image and class that the mask `key` names, the longest image where several fit; empty where none does."""
    cuts = [at for at, letter in enumerate(key) if letter in "-_" and key[:at] in images]
    told = [(key[:at], key[at + 1 :]) for at in reversed(cuts)]
    known = [(image, name) for image, name in told if class_of(name, classes)]
    return next(iter(known or told), ("", ""))


def class_of(name: str, classes: Sequence[str]) -> str:
    """The class of this name or number; "" where there is none."""
    if name in classes:
        return name
    number = int(name) if name.isdecimal() else len(classes)
    return classes[number] if number < len(classes) else ""


def without_masks(images: Sequence[Path], folder: Path) -> list[Path]:
    """The images of a folder that also holds their masks."""
    keys = {path_key(image, folder) for image in images}
    return [p for p in images if (key := path_key(p, folder)) == _bare(key) or _bare(key) not in keys]


def _bare(key: str) -> str:
    return key[: -len(ENDING)] if key.casefold().endswith(ENDING) else key


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"(\d+)", name) if part]


def _is_labelme(path: Path) -> bool:
    try:
        content = read_json(path)
    except FileProblem:
        return False
    return isinstance(content, dict) and "shapes" in content


def _paired(files: Files, found: _Found, ending: str) -> Pairs:
    keys, own = files.keys, files.listed
    images = [image for image in files.images if own is None or image in own]
    faults, records = list(found.faults), []
    for image in images:
        key = path_key(image, files.image_root)
        labels = tuple(found.labels.get(key, ()))
        faults += _doubles(labels)
        if keys[key] != image:
            why = f"and {keys[key].name} have one name, so their labels can't be told apart: rename or remove one."
            faults.append((image, why))
        masks = labels if found.kind == "masks" else ()
        label = labels[0][1] if labels else None
        records.append(Record(image, label, _subject(files, image), None, found.kind, masks))
    needs_labels = files.split != "test" or any(record.label for record in records)
    unlabelled = [record for record in records if needs_labels and record.label is None]
    lone = found.lone if own is None or files.split == "train" else {}  # split files share a folder of labels
    called = {record.image: path_key(record.image, files.image_root) for record in unlabelled}
    wanted = {p: f"{files.label_root / key}{ending}{_unread(files.label_root, key)}" for p, key in called.items()}
    return Pairs(records, unlabelled, sorted(lone), wanted | lone, faults)


def _unread(folder: Path, key: str) -> str:
    """A remark on a file of this name whose type is none that is read; "" where there is none."""
    place = folder / key
    there = sorted(place.parent.glob(f"{escape(place.name)}*")) if place.parent.is_dir() else []
    other = [p.name for p in there if mask_owner(p.stem, [place.name]) and p.suffix.casefold() not in READ]
    return f" ({other[0]} is there, but of a type that is not read)" if other else ""


def _doubles(labels: Sequence[tuple[str, Path]]) -> Iterator[tuple[Path, str]]:
    first: dict[str, Path] = {}
    for name, path in labels:
        other = first.setdefault(name, path)
        if other != path:
            yield path, f"and {other.name} are both the label of one image{f' and {name}' * bool(name)}: remove one."


def _subject(files: Files, image: Path) -> str:
    """What the path says; where it says nothing the image itself, which in another folder is another one."""
    relative = composed(image.relative_to(files.image_root).as_posix())
    if files.subject_pattern:
        said = re.search(files.subject_pattern, relative)
        if not said or not said[1]:
            raise FileProblem(
                f"{image}: subject_pattern {files.subject_pattern!r} finds no subject in {relative!r}: change it, or "
                f"rename the file."
            )
        return said[1]
    folder, _, _ = relative.rpartition("/")
    stem = composed(image.stem)
    if folder or SIDE.search(stem):
        return folder.partition("/")[0] or SIDE.sub("", stem)
    return stem if files.split == "train" or files.listed is not None else f"{files.split}-{stem}"
