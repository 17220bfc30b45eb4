"""Label files -> polygons -> packed words (see engine/bits.py for the convention)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from config import suggest
from engine.bits import n_words
from engine.files import FileProblem

Polygons = Mapping[str, Sequence[NDArray[np.int32]]]
"""Class name -> polygons, each (n, 2) int32 as x, y in pixels of the full-size image."""

FARTHEST = 1e6
"""Coordinates beyond are no pixels; OpenCV's fixed-point arithmetic would wrap them around."""


def read_polygons(path: Path, classes: Sequence[str]) -> dict[str, list[NDArray[np.int32]]]:
    """Polygons of a competition JSON; points may be nested one level deeper, a label may have several polygons.

    Raises:
        FileProblem: not JSON, not this format, an unknown label, or fewer than three points; names file and label.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileProblem(f"{path} cannot be read ({error.strerror}): check the path and its permissions.") from None
    except (ValueError, RecursionError) as error:
        raise FileProblem(f"{path} is not JSON ({error}): fetch the file again or exclude the image.") from None
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


def rasterise(polygons: Polygons, classes: Sequence[str], height: int, width: int, where: str) -> NDArray[np.int32]:
    """Fill polygons into packed words, bit-equal to one `cv2.fillPoly` per class on the full canvas.

    `where` names the label file in errors. Vertices a little outside are clipped as fillPoly clips them.

    Returns:
        (words, H, W) int32.

    Raises:
        FileProblem: a polygon lies wholly outside the image.
    """
    bits = np.zeros((n_words(len(classes)), height, width), np.int32)
    for k, name in enumerate(classes):
        group = polygons.get(name)
        if not group:
            continue
        for polygon in group:
            if _misses(polygon, height, width):
                low, high = polygon.min(0), polygon.max(0)
                raise FileProblem(
                    f"{where}: a polygon of {name} (x {low[0]} to {high[0]}, y {low[1]} to {high[1]}) lies outside the "
                    f"{width} x {height} image; correct the file or exclude the image."
                )
        # The whole box of the polygons, clipped to the image, with the polygon shifted: clipping the polygon itself
        # would move its edges (up to 33 px differ at 2048).
        points = np.concatenate(list(group))
        x0, y0 = np.clip(points.min(0), 0, (width - 1, height - 1))
        x1, y1 = np.clip(points.max(0), 0, (width - 1, height - 1))
        mask = np.zeros((int(y1 - y0) + 1, int(x1 - x0) + 1), np.uint8)
        for polygon in group:  # one by one: fillPoly of several cuts out where they overlap
            cv2.fillPoly(mask, [polygon], 1, offset=(-int(x0), -int(y0)))
        view = bits[k // 32, y0 : y1 + 1, x0 : x1 + 1]
        view |= mask.astype(np.int32) << np.int32(k % 32)
    return bits


def _misses(polygon: NDArray[np.int32], height: int, width: int) -> bool:
    """Whether no pixel of the polygon lies in the image; its box may all the same, across a corner."""
    inside = (polygon >= 0).all(1) & (polygon < (width, height)).all(1)
    return not inside.any() and not cv2.fillPoly(np.zeros((height, width), np.uint8), [polygon], 1).any()
