"""YOLO-seg: `images/<split>/a.png`, `labels/<split>/a.txt`, `data.yaml`. docs.ultralytics.com/datasets/segment

A line is a class's number and a polygon, x y x y … as shares of the width and height. Ultralytics cuts x · width off to
whole pixels and fills by `cv2.fillPoly`, so vertices are written as the middles of their pixels: cut off, they are
exact whatever the rounding. A component is a line; its holes are joined to its outline. An image without a text file
shows nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from engine.conversions.labelled import (
    ImageFiles,
    Labelled,
    Losses,
    ShapeOf,
    checked_classes,
    in_order,
    put_image,
)
from engine.conversions.shapes import Points, Shape, draw, outline, polygons_of, runs_of, union
from engine.files import FileProblem, write_text

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Of what Ultralytics and this framework both read."""
DIGITS = 9
"""After the point: a ten-thousandth of a pixel at 65536."""


class YoloSource:
    """A YOLO-seg data set; lines of one class in one image become one shape.

    Args:
        root: the folder of data.yaml, images and labels.
        splits: folders in images and labels.
        classes: order of the classes; empty takes that of data.yaml.
        shape_of: tells the size of an image file.

    Raises:
        FileProblem: data.yaml has no names, a split has no images, or a label has none.
    """

    def __init__(
        self, root: Path, splits: Sequence[str], classes: Sequence[str], shape_of: ShapeOf, losses: Losses
    ) -> None:
        self._root, self._shape_of, self._losses = root, shape_of, losses
        self._names = _read_names(root / "data.yaml")
        self.classes = in_order(self._names, classes, root / "data.yaml")
        self._images: list[tuple[str, PurePosixPath]] = []
        for split in splits:
            folder = root / "images" / split
            found = sorted(
                PurePosixPath(path.relative_to(folder).as_posix())
                for path in folder.rglob("*")
                if path.suffix.casefold() in IMAGE_SUFFIXES and path.is_file()
            )
            if not found:
                raise FileProblem(f"{folder} holds no images: give the folder of data.yaml, and other --splits.")
            known = {name.with_suffix("") for name in found}
            labels = root / "labels" / split
            for path in sorted(labels.rglob("*.txt")):
                if PurePosixPath(path.relative_to(labels).with_suffix("").as_posix()) not in known:
                    raise FileProblem(f"{path} has no image in {folder}: add it, or remove the label.")
            self._images += [(split, name) for name in found]
        self.names = tuple(str(name) for _, name in self._images)

    def __iter__(self) -> Iterator[Labelled]:
        """See Source."""
        for split, name in self._images:
            image = self._root / "images" / split / name
            height, width = self._shape_of(image)
            label = self._root / "labels" / split / name.with_suffix(".txt")
            shapes = _read_lines(label, self._names, height, width) if label.exists() else {}
            for known, polygons in shapes.items():
                if not _apart(polygons, height, width):
                    self._losses.add("instances of one class touch and become one", f"{label}: {known}")
            yield Labelled(str(name), split, height, width, shapes, image)


def _read_names(path: Path) -> tuple[str, ...]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileProblem(f"{path} cannot be read ({error.strerror}): give the folder that holds it.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise FileProblem(f"{path} is not YAML: correct it.") from None
    names: Any = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list):
        raise FileProblem(f"{path} has no names of classes, numbered from 0: add them.")
    return checked_classes(names, path)


def _read_lines(path: Path, names: Sequence[str], height: int, width: int) -> dict[str, list[Points]]:
    """Class -> its polygons.

    Raises:
        FileProblem: a line is no class and polygon; names it.
    """
    found: dict[str, list[Points]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise FileProblem(f"{path} cannot be read as text: write it again, or remove it with its image.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            label, *numbers = map(float, line.split())
        except ValueError:
            label, numbers = -1.0, []
        if label not in range(len(names)):
            raise FileProblem(f"{where}: a line must be the number of a class, 0 to {len(names) - 1}, and a polygon.")
        if len(numbers) == 4:
            raise FileProblem(f"{where} is a box and no outline: give labels of YOLO-seg, not of YOLO detection.")
        shares = np.array(numbers)
        if len(shares) < 6 or len(shares) % 2 or not ((shares >= 0) & (shares <= 1)).all():
            raise FileProblem(f"{where}: a polygon must be x y x y … between 0 and 1, three points or more.")
        points = np.floor(shares.reshape(-1, 2) * (width, height) + 10.0**-DIGITS).astype(np.int32)
        found.setdefault(names[int(label)], []).append(points)
    return found


def _apart(polygons: Sequence[Points], height: int, width: int) -> bool:
    return len(polygons) < 2 or union([draw([polygon], height, width) for polygon in polygons], width)[1]


class YoloTarget:
    """A YOLO-seg data set of the splits that are converted; Ultralytics wants train and val."""

    def __init__(self, folder: Path, classes: Sequence[str], how: ImageFiles) -> None:
        self._folder, self._classes, self._how = folder, classes, how
        self._splits: dict[str, None] = {}

    def add(self, image: Labelled) -> None:
        """See Target."""
        self._splits[image.split] = None
        name, lines = PurePosixPath(image.name), []
        if name.suffix.casefold() not in IMAGE_SUFFIXES:
            raise FileProblem(f"{image.image or name} is no image that Ultralytics reads: convert it to PNG first.")
        for number, label in enumerate(self._classes):
            for points in _inside(image.seen.get(label, ()), image.height, image.width):
                shares = (points + 0.5) / (image.width, image.height)
                lines.append(" ".join([str(number), *(f"{share:.{DIGITS}f}" for share in shares.reshape(-1).tolist())]))
        text = "".join(f"{line}\n" for line in lines)
        write_text(self._folder / "labels" / image.split / name.with_suffix(".txt"), text)
        put_image(image, self._folder / "images" / image.split / name, self._how)

    def finish(self) -> None:
        """See Target."""
        lines = [f"{split}: images/{split}" for split in self._splits]
        names = [f"  {i}: {json.dumps(name, ensure_ascii=False)}" for i, name in enumerate(self._classes)]
        write_text(self._folder / "data.yaml", "\n".join([*lines, "names:", *names, ""]))


def _inside(shape: Shape, height: int, width: int) -> list[Points]:
    """Polygons whose vertices all lie in the image and which don't meet: each is an instance."""
    polygons = polygons_of(shape, width)
    inside = all((points >= 0).all() and (points < (width, height)).all() for points in polygons)
    if inside and _apart(polygons, height, width):
        return polygons
    return outline(runs_of(shape, height, width), width)
