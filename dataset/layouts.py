"""Where the images and labels of a data set's splits lie, in each of the layouts of docs/data.md -> records."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from config import HAND_BONES, Config, ConfigProblem, suggest
from dataset.match import Files, classes_named, layout_told, pair_labelme, pair_masks, pair_per_class, without_masks
from dataset.readers import Pairs, Record, images_below, pair_competition, path_key, read_competition
from dataset.splits import listed_in
from engine import settings
from engine.files import FileProblem

SPLITS = ("train", "val", "test")

AUTO = ("auto",)
"""`classes` that are taken from the data."""

OURS = ("cache", "jpeg")
"""Folders that runs leave in data_root."""


def read_split(cfg: Config, split: str) -> list[Record]:
    """Records of a split of data_root, whatever its layout, sorted by path, each with its label.

    Args:
        split: train, val, test, or the name of another split's folder or file. Only test may have no labels at all.

    Raises:
        ConfigProblem: the classes don't fit the layout.
        FileProblem: no images, something without its one partner, no layout that fits; names files and remedy.
    """
    root = Path(cfg.data.data_root)
    if find_layout(cfg) == "competition":
        return read_competition(root, split)
    pairs = pair_split(cfg, split)
    if not pairs.records:
        texts = files.texts if (files := _files(cfg, split)) else []
        beside = f" beside its {len(texts)} JSON files (an image inside of one, imageData, is not read)"
        raise FileProblem(
            f"{root} has no images of the split {split}{beside * bool(texts)}: point --data_root at the folder that "
            f"holds them, or name folders by --image_dir, --mask_dir and --split_dir."
        )
    return pairs.complete()


def pair_split(cfg: Config, split: str) -> Pairs:
    """The same with whatever lacks its partner; empty where there is no such split.

    Raises:
        ConfigProblem: the classes don't fit the layout.
        FileProblem: no layout fits, a split file names no image, or `subject_pattern` finds none in a name.
    """
    layout = find_layout(cfg)
    if layout == "competition":
        return pair_competition(Path(cfg.data.data_root), split)
    files = _files(cfg, split)
    if files is None or not files.images:
        return Pairs([], [], [], {})
    if layout == "labelme":
        return pair_labelme(files)
    classes = with_classes(cfg).data.classes
    if layout == "mask_per_class":
        return pair_per_class(files, classes)
    if len(classes) > 1:
        raise ConfigProblem(
            f"classes has {len(classes)} names, but the layout pairs has one mask an image: give one, --classes bone, "
            f"or --layout mask_per_class."
        )
    return pair_masks(files, classes[0])


def has_split(cfg: Config, split: str) -> bool:
    """Whether data_root has a split of this name, with or without labels."""
    root = Path(cfg.data.data_root)
    if find_layout(cfg) == "competition":
        return (root / split / "DCM").is_dir()
    return _files(cfg, split) is not None


def every_image(cfg: Config) -> list[Path]:
    """The images of all splits in a layout beside the competition's, with or without labels, sorted."""
    return sorted({image for split in SPLITS if (files := _files(cfg, split)) for image in files.images})


def with_classes(cfg: Config) -> Config:
    """The settings with the names that `--classes auto` stands for: those of the training labels, in natural order.

    Raises:
        FileProblem: there are none.
    """
    if cfg.data.classes != AUTO:
        return cfg
    layout = find_layout(cfg)
    names = {"competition": list(HAND_BONES), "pairs": ["foreground"]}.get(layout, [])
    if not names and (files := _files(cfg, "train")):
        names = classes_named(files, layout)
    if not names:
        raise FileProblem(f"{cfg.data.data_root} has no training labels to take classes from: set --classes.")
    return settings.replace(cfg, {"classes": names})


def find_layout(cfg: Config) -> str:
    """The layout that the settings name, or that fits data_root.

    Raises:
        FileProblem: none fits; says what was looked for and what is there.
    """
    if layout := _told(cfg):
        return layout
    data, root = cfg.data, Path(cfg.data.data_root)
    there = sorted(map(_content, root.iterdir())) if root.is_dir() else []
    shown = ", ".join(there[:5]) + (f" and {len(there) - 5} more" if len(there) > 5 else "")
    raise FileProblem(
        f"{root / 'train' / 'DCM'} holds no images, and no other layout fits: looked for {data.image_dir}/ and "
        f"{data.mask_dir}/ (1.png with 1.png, 1_mask.png or 1-0.png) and for a.jpg beside a.json, in it or in its "
        f"train/, val/ and test/; found {shown or 'nothing'}. Point --data_root at the folder above, set --image_dir "
        f"and --mask_dir, or give --phantom to draw a data set."
    )


def _content(path: Path) -> str:
    """A file's name, or that of a folder and what it holds: 'masks/ (40 .gif)'."""
    if not path.is_dir():
        return path.name
    kinds = Counter(file.suffix.casefold() or "files" for file in path.rglob("*") if file.is_file())
    held = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3))
    return f"{path.name}/ ({held or 'empty'})"


def is_data(cfg: Config) -> bool:
    """Whether data_root is a data set in one of the layouts."""
    return bool(_told(cfg))


def _told(cfg: Config) -> str:
    """The layout of data_root; "" where none fits."""
    if cfg.data.layout != "auto":
        return cfg.data.layout
    if cfg.phantom.phantom or next(Path(cfg.data.data_root).glob("*/DCM"), None):
        return "competition"
    seen = [files for split in SPLITS if (files := _files(cfg, split)) and files.images]
    unlabelled = "pairs" if [files.split for files in seen] == ["test"] else ""  # only to be predicted
    return next(filter(None, map(layout_told, seen)), unlabelled)


def _files(cfg: Config, split: str) -> Files | None:
    """The files of a split; None where there is no such split."""
    data, root = cfg.data, Path(cfg.data.data_root)
    if any((root / data.split_dir).glob("*.txt")):
        listing = root / data.split_dir / f"{split}.txt"
        return _in_folder(cfg, root, split, listing) if listing.is_file() else None
    if (root / split).is_dir():
        return _in_folder(cfg, root / split, split)
    return _in_folder(cfg, root, split) if split == "train" and root.is_dir() else None


def _in_folder(cfg: Config, folder: Path, split: str, listing: Path | None = None) -> Files:
    data, root = cfg.data, Path(cfg.data.data_root)
    image_root, label_root = folder / data.image_dir, folder / data.mask_dir
    image_root = image_root if image_root.is_dir() else folder
    label_root = label_root if label_root.is_dir() else image_root
    strange = {root / name for name in (*OURS, data.split_dir, *SPLITS)} - {folder, image_root, label_root}
    below = [path for path in images_below(image_root) if not strange.intersection(path.parents)]
    if label_root == image_root:
        images = without_masks(below, image_root)
        masks = sorted({*below} - {*images})
    else:
        images = [path for path in below if label_root not in path.parents]
        masks = images_below(label_root)
    texts = {p for top in (image_root, label_root) for p in top.rglob("*.json") if not strange.intersection(p.parents)}
    files = Files(split, image_root, label_root, images, masks, sorted(texts), data.subject_pattern)
    return files if listing is None else _listed(files, listing)


def _listed(files: Files, listing: Path) -> Files:
    """The files with what a split file names: images by their path below their folder, or by name or stem alone."""
    known: dict[str, list[Path]] = {}
    for image in files.images:
        key = path_key(image, files.image_root)
        for name in {key, key + image.suffix, Path(key).name, Path(key).name + image.suffix}:
            known.setdefault(name, []).append(image)
    chosen = set()
    for entry in listed_in(listing):
        found = known.get(entry) or known.get(Path(entry).name) or []
        if len(found) > 1:
            several = " and ".join(str(image) for image in found[:2])
            raise FileProblem(f"{listing}: {entry!r} may mean {several}: write the path below the folder.")
        if not found:
            near = suggest(entry, known)
            raise FileProblem(f"{listing}: {entry!r} is no image in {files.image_root}{near}: correct or remove it.")
        chosen.add(found[0])
    return replace(files, listed=frozenset(chosen))
