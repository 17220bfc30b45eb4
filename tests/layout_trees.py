"""The phantom set written once more in each layout of docs/data.md."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from config import HAND_BONES
from dataset.images import read_image
from dataset.labels import read_label
from dataset.readers import Record, read_competition

SOME = ("Capitate", "Radius", "Ulna")
"""Classes of the layouts that have several."""

Write = Callable[[Path, Record, str], None]
"""Writes one image below a folder, under a stem."""


def planes(record: Record) -> dict[str, NDArray[np.uint8]]:
    """0 and 255 by class."""
    bits = read_label(record, HAND_BONES, *read_image(record.image).shape)[0]
    return {name: (bits >> HAND_BONES.index(name) & 1).astype(np.uint8) * 255 for name in SOME}


def save(path: Path, picture: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)
    return path


def split_of(phantom: Path) -> dict[str, list[Record]]:
    """8 images train, 4 validate, 4 test."""
    train = read_competition(phantom, "train")
    return {"train": train[:8], "val": train[8:], "test": read_competition(phantom, "test")}


def stem(record: Record, number: int) -> str:
    return f"{record.subject}_{'RL'[number % 2]}"


def union(record: Record) -> NDArray[np.uint8]:
    return np.maximum.reduce(list(planes(record).values()))


def pair(folder: Path, record: Record, name: str) -> None:
    save(folder / "images" / f"{name}.png", read_image(record.image))
    save(folder / "masks" / f"{name}_mask.png", union(record))


def pair_beside(folder: Path, record: Record, name: str) -> None:
    save(folder / f"{name}.png", read_image(record.image))
    save(folder / f"{name}_mask.png", union(record))


def per_class(folder: Path, record: Record, name: str) -> None:
    save(folder / "images" / f"{name}.tif", read_image(record.image))
    for k, mask in enumerate(planes(record).values()):
        save(folder / "masks" / f"{name}-{k}.png", mask)


def labelme(folder: Path, record: Record, name: str) -> None:
    image = read_image(record.image)
    save(folder / f"{name}.jpg", image)
    assert record.label is not None
    shapes = [
        {"label": a["label"], "points": [[x + 0.5, y + 0.5] for x, y in a["points"]], "shape_type": "polygon"}
        for a in json.loads(record.label.read_text(encoding="utf-8"))["annotations"]
        if a["label"] in SOME
    ]
    content = {"shapes": shapes, "imagePath": f"{name}.jpg", "imageData": None}
    size = {"imageHeight": image.shape[0], "imageWidth": image.shape[1]}
    (folder / f"{name}.json").write_text(json.dumps(content | size), encoding="utf-8")


def in_folders(phantom: Path, root: Path, write: Write) -> Path:
    """train/, val/ and test/."""
    for split, records in split_of(phantom).items():
        for number, record in enumerate(records):
            write(root / split, record, stem(record, number))
    return root


def with_lists(phantom: Path, root: Path) -> Path:
    """One folder of pairs, JPEGs and plain names, and splits/*.txt."""
    for split, records in split_of(phantom).items():
        names = [f"{stem(record, number)}.jpg" for number, record in enumerate(records)]
        for name, record in zip(names, records, strict=True):
            save(root / "images" / name, read_image(record.image))
            save(root / "masks_manual" / Path(name).with_suffix(".png"), union(record))
        (root / "splits").mkdir(exist_ok=True)
        (root / "splits" / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return root


TREES: dict[str, tuple[str, tuple[str, ...], Callable[[Path, Path], Path], tuple[str, ...]]] = {
    "pairs": ("pairs", ("bone",), lambda phantom, root: in_folders(phantom, root, pair), ()),
    "pairs_beside": ("pairs", ("bone",), lambda phantom, root: in_folders(phantom, root, pair_beside), ()),
    "pairs_listed": ("pairs", ("bone",), with_lists, ("--mask_dir", "masks_manual")),
    "mask_per_class": ("mask_per_class", SOME, lambda phantom, root: in_folders(phantom, root, per_class), ()),
    "labelme": ("labelme", SOME, lambda phantom, root: in_folders(phantom, root, labelme), ()),
}
"""Name -> layout, classes, what writes the tree, flags that it needs."""
