"""Label files -> polygons or runs -> packed words (see engine/bits.py for the convention)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from config import suggest
from dataset.images import image_shape
from dataset.masks import read_mask_runs
from dataset.readers import Record
from dataset.runs import Runs, read_runs
from engine.bits import n_words
from engine.files import FileProblem

Polygons = Mapping[str, Sequence[NDArray[np.int32]]]
"""Class name -> polygons, each (n, 2) int32 as x, y in pixels of the full-size image."""

Shapes = Polygons | Runs
"""What a label shows: as people drew it, or as a network predicted it."""

FARTHEST = 1e6
"""Coordinates beyond are no pixels; OpenCV's fixed-point arithmetic would wrap them around."""


def read_label(record: Record, classes: Sequence[str], height: int, width: int) -> NDArray[np.int32]:
    """Packed label of a record at the image's own size, (words, H, W) int32: the truth, so never a predicted one."""
    assert record.pseudo is None
    return rasterise(read_shapes(record, classes), classes, height, width, str(record.label))


def read_shapes(record: Record, classes: Sequence[str]) -> Shapes:
    """What the label of a record shows, drawn by people or predicted.

    Raises:
        FileProblem: the label can't be used; names it.
    """
    assert record.label is not None
    if record.pseudo and not record.masks:
        return read_runs(record, classes)
    if record.kind == "masks":
        return read_mask_runs(record, classes)
    if record.kind == "labelme":
        return read_labelme(record, classes)
    return read_polygons(record.label, classes)


def read_polygons(path: Path, classes: Sequence[str]) -> dict[str, list[NDArray[np.int32]]]:
    """Polygons of a competition JSON; points may be nested one level deeper, a label may have several polygons.

    Raises:
        FileProblem: not JSON, not this format, an unknown label, or fewer than three points; names file and label.
    """
    content = read_json(path)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list):
        raise FileProblem(f"{path} has no list 'annotations': it is not a competition label; exclude the image.")
    polygons: dict[str, list[NDArray[np.int32]]] = {}
    for entry in annotations:
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(label, str) or label not in classes:
            raise FileProblem(
                f"{path}: label {label!r} is no class{suggest(str(label), classes)}. Correct it or set --classes."
            )
        for points in _point_lists(entry.get("points")):
            polygons.setdefault(label, []).append(_polygon(points, f"{path}: {label}"))
    return polygons


def read_labelme(record: Record, classes: Sequence[str]) -> dict[str, list[NDArray[np.int32]]]:
    """Polygons and rectangles of a labelme JSON; a vertex is the pixel that it lies in. An image in it is not used.

    Raises:
        FileProblem: not JSON, not this format, an unknown label, a shape without area, or of an image of another size.
    """
    path = record.label
    assert path is not None
    content = read_json(path)
    found: dict[str, list[NDArray[np.int32]]] = {}
    for label, kind, points in labelme_shapes(content, path):
        if label not in classes:
            raise FileProblem(
                f"{path}: label {label!r} is no class{suggest(label, classes)}. Correct it or set --classes."
            )
        if kind not in ("polygon", "rectangle"):
            raise FileProblem(
                f"{path}: {label} is a {kind}, but must be a polygon or a rectangle: draw it as a polygon in labelme, "
                f"or exclude the image."
            )
        corners = _rectangle(points) if kind == "rectangle" else points
        found.setdefault(label, []).append(_polygon(corners, f"{path}: {label}"))
    drawn_on = content.get("imageHeight"), content.get("imageWidth")
    if None not in drawn_on and drawn_on != (shape := image_shape(record.image)):
        raise FileProblem(
            f"{path} was drawn on an image of {drawn_on[1]} x {drawn_on[0]} px, but {record.image.name} is "
            f"{shape[1]} x {shape[0]}: give the image that was labelled."
        )
    return found


def labelme_shapes(content: Any, path: Path) -> list[tuple[str, str, Any]]:
    """Label, type and points of each shape.

    Raises:
        FileProblem: the JSON is no labelme file.
    """
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        raise FileProblem(f"{path} has no list 'shapes': it is no labelme file; label the image anew or exclude it.")
    found = []
    for entry in shapes:
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(label, str) or not label:
            raise FileProblem(f"{path}: label {label!r} is no name. Correct it in labelme.")
        found.append((label, str(entry.get("shape_type") or "polygon"), entry.get("points")))
    return found


def _rectangle(points: Any) -> Any:
    """Its corners, from two that lie opposite; anything else as it is."""
    try:
        (x0, y0), (x1, y1) = points
    except (TypeError, ValueError):
        return points
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def read_json(path: Path) -> Any:
    """A label file's content.

    Raises:
        FileProblem: it can't be read or is not JSON; names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileProblem(f"{path} cannot be read ({error.strerror}): check the path and its permissions.") from None
    except (ValueError, RecursionError) as error:
        raise FileProblem(f"{path} is not JSON ({error}): fetch the file again or exclude the image.") from None


def _point_lists(points: Any) -> list[Any]:
    nested = isinstance(points, list) and points and isinstance(points[0], list) and points[0]
    return points if nested and isinstance(points[0][0], list) else [points]


def _polygon(points: Any, where: str) -> NDArray[np.int32]:
    try:
        array = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim != 2 or array.shape[1] != 2 or not (np.abs(array) < FARTHEST).all():  # False for NaN
        raise FileProblem(f"{where}: points must be a list of [x, y] in pixels; correct the file or exclude the image.")
    if len(array) < 3:
        raise FileProblem(
            f"{where}: a polygon has {len(array)} points and needs three; correct the file or exclude the image."
        )
    return array.astype(np.int32)


def rasterise(
    shapes: Shapes,
    classes: Sequence[str],
    height: int,
    width: int,
    where: str,
    region: tuple[int, int, int, int] | None = None,
) -> NDArray[np.int32]:
    """Draw a label into packed words; polygons are bit-equal to one `cv2.fillPoly` per class on the full canvas.

    `where` names the label file in errors. Vertices a little outside are clipped as fillPoly clips them. Of the full
    canvas only `region` is made (first row, end row, first column, end column), all of it by default.

    Returns:
        (words, H, W) int32, or of the region's size.

    Raises:
        FileProblem: a polygon lies wholly outside the image, or runs are of an image of another size.
    """
    top, bottom, left, right = region or (0, height, 0, width)
    if isinstance(shapes, Runs):
        if (shapes.height, shapes.width) != (height, width):
            raise FileProblem(
                f"{where} is of a {shapes.width} x {shapes.height} image, which is now {width} x {height}: start the "
                f"run again."
            )
        return shapes.draw(classes, (top, bottom, left, right))
    bits = np.zeros((n_words(len(classes)), max(bottom - top, 0), max(right - left, 0)), np.int32)
    for k, name in enumerate(classes):
        group = shapes.get(name)
        if not group:
            continue
        points = group[0] if len(group) == 1 else np.concatenate(list(group))
        low, high = points.min(0), points.max(0)
        inside = low.min() >= 0 and high[0] < width and high[1] < height
        for polygon in () if inside else group:
            if _misses(polygon, height, width):
                low, high = polygon.min(0), polygon.max(0)
                raise FileProblem(
                    f"{where}: a polygon of {name} (x {low[0]} to {high[0]}, y {low[1]} to {high[1]}) lies outside the "
                    f"{width} x {height} image; correct the file or exclude the image."
                )
        # The whole box of the polygons, clipped to the image, with the polygon shifted: clipping the polygon itself
        # would move its edges (up to 33 px differ at 2048).
        x0, x1 = (min(max(int(x), 0), width - 1) for x in (low[0], high[0]))
        y0, y1 = (min(max(int(y), 0), height - 1) for y in (low[1], high[1]))
        rows = slice(max(y0, top), min(y1 + 1, bottom))
        columns = slice(max(x0, left), min(x1 + 1, right))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        mask = np.zeros((y1 - y0 + 1, x1 - x0 + 1), np.uint8)
        for polygon in group:  # one by one: fillPoly of several cuts out where they overlap
            cv2.fillPoly(mask, [polygon], 1, offset=(-x0, -y0))
        seen = mask[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0]
        view = bits[k // 32, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        _set_bit(view, seen, np.int32(k % 32))
    return bits


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _set_bit(words: NDArray[np.int32], mask: NDArray[np.uint8], bit: np.int32) -> None:
    for i in range(mask.shape[0]):
        for j in range(mask.shape[1]):
            words[i, j] |= np.int32(mask[i, j]) << bit


def class_boxes(shapes: Shapes) -> NDArray[np.float64]:
    """Box of each class that is shown, (n, 4) as x0, y0, x1, y1 in pixels of the file, in the order of the names."""
    if isinstance(shapes, Runs):
        return shapes.boxes()
    points = [np.concatenate(list(shapes[name])) for name in sorted(shapes)]
    return np.array([[*p.min(0), *p.max(0)] for p in points], np.float64).reshape(-1, 4)


def _misses(polygon: NDArray[np.int32], height: int, width: int) -> bool:
    """Whether no pixel of the polygon lies in the image; its box may all the same, across a corner."""
    inside = (polygon >= 0).all(1) & (polygon < (width, height)).all(1)
    return not inside.any() and not cv2.fillPoly(np.zeros((height, width), np.uint8), [polygon], 1).any()
