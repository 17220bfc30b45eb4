"""COCO: `annotations/instances_<split>.json` beside `images/<split>/`. cocodataset.org/#format-data

A class of an image is one annotation: bones in pieces are one instance, and overlapping classes overlap. Masks are run
lengths by default; polygons along the pixels' edges are as exact where the COCO API draws them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.conversions.coco_masks import compress, decompress, fill, from_counts, to_counts
from engine.conversions.labelled import (
    ImageFiles,
    Labelled,
    Losses,
    checked_classes,
    checked_name,
    in_order,
    put_image,
    read_json,
)
from engine.conversions.shapes import Runs, box_of, edges, runs_of, union
from engine.files import FileProblem, write_text

FARTHEST = 1e6
"""Coordinates beyond are no pixels."""


class CocoSource:
    """A COCO file of instances. It is in memory as a whole, as the COCO API has it.

    Instances of one class in one image become one mask.

    Args:
        path: the JSON.
        images: folder that its file names lie below; None where only the labels are wanted.
        split: what the images are called.
        classes: order of the classes; empty takes the file's categories by their ids.

    Raises:
        FileProblem: the file is none such, or holds other classes.
    """

    def __init__(self, path: Path, images: Path | None, split: str, classes: Sequence[str], losses: Losses) -> None:
        self._path, self._folder, self._split, self._losses = path, images, split, losses
        content = read_json(path, "COCO file")
        categories = sorted(self._list(content, "categories"), key=lambda entry: int(entry["id"]))
        names = checked_classes([entry.get("name") for entry in categories], path)
        self.classes = in_order(names, classes, path)
        self._class_of = {entry["id"]: name for entry, name in zip(categories, names, strict=True)}
        self._images = self._list(content, "images")
        self.names = tuple(checked_name(entry.get("file_name"), path) for entry in self._images)
        if len(set(self.names)) < len(self.names):
            raise FileProblem(f"{path} holds two images of one file_name: correct it.")
        self._of_image: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        known = {entry["id"] for entry in self._images}
        for entry in self._list(content, "annotations"):
            if entry.get("image_id") not in known or entry.get("category_id") not in self._class_of:
                raise FileProblem(f"{path}: annotation {entry['id']} is of an unknown image or category: correct it.")
            self._of_image[entry["image_id"]].append(entry)

    def __iter__(self) -> Iterator[Labelled]:
        """See Source."""
        for entry, name in zip(self._images, self.names, strict=True):
            height, width = entry.get("height"), entry.get("width")
            if type(height) is not int or type(width) is not int or min(height, width) < 1:
                raise FileProblem(f"{self._path}: image {name!r} has no height and width in px: correct it.")
            parts: defaultdict[str, list[Runs]] = defaultdict(list)
            for annotation in self._of_image[entry["id"]]:
                where = f"{self._path}: annotation {annotation['id']}"
                if annotation.get("iscrowd"):
                    self._losses.add("a crowd, which means that nobody knows, is left out", where)
                    continue
                runs = _runs(annotation.get("segmentation"), height, width, where)
                parts[self._class_of[annotation["category_id"]]].append(runs)
            shapes = {}
            for label, instances in parts.items():
                shapes[label], apart = union(instances, width)
                if not apart:
                    self._losses.add("instances of one class touch and become one", f"{self._path}: {name!r}, {label}")
            yield Labelled(name, self._split, height, width, shapes, self._folder / name if self._folder else None)

    def _list(self, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
        """Entries with ids, each of which is there once."""
        entries = content.get(key)
        if not isinstance(entries, list):
            raise FileProblem(f"{self._path} has no list {key!r}, so it is no COCO file of instances: give another.")
        seen = set()
        for entry in entries:
            number = entry.get("id") if isinstance(entry, dict) else None
            if type(number) is not int or number in seen:
                raise FileProblem(f"{self._path}: {key} hold the id {number!r}, which is no number or there twice.")
            seen.add(number)
        return entries


def _runs(segmentation: Any, height: int, width: int, where: str) -> Runs:
    try:
        if isinstance(segmentation, dict):
            size, counts = segmentation.get("size"), segmentation.get("counts")
            if size != [height, width]:
                raise ValueError(f"its mask is of size {size}, but the image of {[height, width]}")
            if not isinstance(counts, str | list):
                raise ValueError("its mask has no counts")
            return from_counts(decompress(counts) if isinstance(counts, str) else counts, height, width)
        if not isinstance(segmentation, list) or not segmentation:
            raise ValueError("it has no segmentation, only a box")
        polygons = [np.array(polygon, np.float64) for polygon in segmentation]
        for numbers in polygons:
            if numbers.ndim != 1 or len(numbers) < 6 or len(numbers) % 2 or not (np.abs(numbers) < FARTHEST).all():
                raise ValueError("a polygon must be x y x y …, three points or more")
        return union([fill(numbers.reshape(-1, 2), height, width) for numbers in polygons], width)[0]
    except (TypeError, ValueError) as error:
        raise FileProblem(f"{where}: {error}. Correct the file, or remove the annotation.") from None


class CocoTarget:
    """A COCO data set. The annotations of a split stay in memory, as text, until it is complete.

    Args:
        polygons: write polygons along the pixels' edges instead of run lengths.
    """

    def __init__(self, folder: Path, classes: Sequence[str], how: ImageFiles, polygons: bool) -> None:
        self._folder, self._classes, self._how, self._polygons = folder, classes, how, polygons
        self._images: defaultdict[str, list[str]] = defaultdict(list)
        self._annotations: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, image: Labelled) -> None:
        """See Target."""
        number = len(self._images[image.split]) + 1
        annotations, entry = self._annotations[image.split], dict[str, Any]()
        for category, label in enumerate(self._classes, 1):
            runs = runs_of(image.seen.get(label, ()), image.height, image.width)
            if len(runs):
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "iscrowd": 0}
                annotations.append(json.dumps({**entry, **self._mask(runs, image.height, image.width)}))
        entry = {"id": number, "file_name": image.name, "height": image.height, "width": image.width}
        self._images[image.split].append(json.dumps(entry, ensure_ascii=False))
        put_image(image, self._folder / "images" / image.split / image.name, self._how)

    def finish(self) -> None:
        """See Target."""
        categories = [json.dumps({"id": i, "name": n}, ensure_ascii=False) for i, n in enumerate(self._classes, 1)]
        for split, images in self._images.items():
            parts = {"images": images, "categories": categories, "annotations": self._annotations[split]}
            text = ",\n".join(f'"{key}": [\n' + ",\n".join(lines) + "\n]" for key, lines in parts.items())
            write_text(self._folder / "annotations" / f"instances_{split}.json", "{" + text + "}\n")

    def _mask(self, runs: Runs, height: int, width: int) -> dict[str, Any]:
        plane, top, left = box_of(runs, width)
        segmentation: Any = {"size": [height, width], "counts": compress(to_counts(runs, height, width))}
        if self._polygons:
            segmentation = [polygon.reshape(-1).tolist() for polygon in edges(runs, width)]
        box = [left, top, plane.shape[1], plane.shape[0]]
        return {"segmentation": segmentation, "area": int(plane.sum(dtype=np.int64)), "bbox": box}
