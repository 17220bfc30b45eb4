"""What one image and its label show by themselves, and a file that remembers it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from config import suggest
from dataset.images import image_shape, read_image
from dataset.labels import Polygons, labelme_shapes, rasterise, read_json, read_labelme, read_polygons
from dataset.masks import read_mask_runs
from dataset.readers import Record
from engine.files import FileProblem, write_json

VERSION = 1
"""Of the look at one file: raise it when the same file would give another finding."""

UNREADABLE = ("unreadable image", "unreadable label")
"""Kinds that aren't remembered: permissions or a missing package are put right without a change of the file."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong."""

    severity: Literal["error", "warning"]
    """An error makes training, validation or the CSV wrong; a warning is worth a look."""
    kind: str
    path: str
    """File or folder below the data set; of a fault that concerns several, the first."""
    detail: str
    """What is wrong, with the values, and what to do."""


@dataclass(frozen=True)
class Finding:
    """What one image and its label show by themselves."""

    stamp: list[int]
    """Bytes and time of change (ns) of the image, then of the label."""
    height: int
    width: int
    pixels: str
    """SHA-256 of the decoded pixels; empty where the image is unreadable, and its size 0 x 0."""
    classes: list[str] | None
    """Those that the label shows, polygons without area apart; None without a readable label."""
    side: str
    """"L", "R", or empty where the label doesn't tell."""
    faults: list[Fault]


def look_at(root: Path, record: Record, classes: Sequence[str], stamp: list[int]) -> Finding:
    """Decode an image strictly and read its label. Nothing is raised: what is wrong is in the finding.

    Args:
        root: of the data set, which the paths of the faults are below.
        stamp: `stamp_of` the record, taken before.
    """
    faults: list[Fault] = []
    height, width, pixels, shown, side = 0, 0, "", None, ""
    try:
        image = read_image(record.image)
        (height, width), pixels = image.shape, hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()
    except FileProblem as problem:
        faults.append(_problem("unreadable image", root, record.image, problem))
    try:
        if record.kind != "competition" and not height:
            pass  # they need the image's size
        elif record.masks:
            shown = [name for name, runs in read_mask_runs(record, classes).runs.items() if len(runs)]
            faults += _scaled(root, record, (height, width))
        elif record.label is not None:
            polygons = _polygons(root, record, record.label, classes, faults)
            faults += _polygon_faults(below(root, record.label), polygons, height, width)
            shown = [name for name, group in polygons.items() if any(map(_has_area, group))]
            side = side_drawn(polygons)
    except FileProblem as problem:
        faults.append(_problem("unreadable label", root, record.label_files[0], problem))
    return Finding(stamp, height, width, pixels, shown, side, faults)


def _polygons(root: Path, record: Record, label: Path, classes: Sequence[str], faults: list[Fault]) -> Polygons:
    """Those of the classes; names that are none go to the faults."""
    extra = _extra_labels(record, label, classes)
    for name in extra:
        detail = f"label {name!r} is no class{suggest(name, classes)}: correct it or set --classes."
        faults.append(Fault("error", "extra label", below(root, label), detail))
    every = (*classes, *extra)
    read = read_labelme(record, every) if record.kind == "labelme" else read_polygons(label, every)
    return {name: group for name, group in read.items() if name in classes}


def _scaled(root: Path, record: Record, shape: tuple[int, int]) -> Iterator[Fault]:
    """Masks that were drawn on a smaller or larger copy of the image."""
    for _, path in record.masks:
        own = image_shape(path)
        if own != shape:
            detail = f"is {own[1]} x {own[0]} px, and is resized to its image's {shape[1]} x {shape[0]}."
            yield Fault("warning", "mask of another size", below(root, path), detail)


def _extra_labels(record: Record, path: Path, classes: Sequence[str]) -> list[str]:
    """Names in the file that are no class; none where the file is not of the format, which the reader tells."""
    try:
        if record.kind == "labelme":
            return sorted({label for label, _, _ in labelme_shapes(read_json(path), path)} - set(classes))
        annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]
        return sorted({entry["label"] for entry in annotations if isinstance(entry["label"], str)} - set(classes))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, IndexError):
        return []


def _polygon_faults(path: str, polygons: Polygons, height: int, width: int) -> Iterator[Fault]:
    for name, group in polygons.items():
        for polygon in group:
            (x0, y0), (x1, y1) = polygon.min(0), polygon.max(0)
            box = f"a polygon of {name} (x {x0} to {x1}, y {y0} to {y1})"
            if not _has_area(polygon):
                detail = f"{box} has no area: correct or remove it."
                yield Fault("warning", "degenerate polygon", path, detail)
            if not height or (min(x0, y0) >= 0 and x1 < width and y1 < height):
                continue
            try:
                rasterise({name: [polygon]}, [name], height, width, path, (0, 0, 0, 0))
                detail = f"{box} reaches out of the {width} x {height} image and is cut off: is it of another image?"
                yield Fault("warning", "polygon reaches outside", path, detail)
            except FileProblem as problem:
                yield Fault("error", "polygon outside", path, str(problem).removeprefix(f"{path}: "))


def _has_area(polygon: NDArray[np.int32]) -> bool:
    return cv2.contourArea(polygon) > 0


def side_drawn(polygons: Polygons) -> str:
    """Which hand a label shows: seen from its back, a right hand has its thumb left of the fingers, at any rotation."""
    try:
        thumb, little = (_middle(polygons, range(*numbers)) for numbers in ((1, 4), (16, 20)))
        palm, tip = (_middle(polygons, [number]) for number in (11, 8))  # of the middle finger
    except KeyError:
        return ""
    (x, y), (dx, dy) = tip - palm, little - thumb
    return "R" if x * dy - y * dx > 0 else "L"


def _middle(polygons: Polygons, numbers: Iterable[int]) -> NDArray[np.float64]:
    points = np.concatenate([polygon for number in numbers for polygon in polygons[f"finger-{number}"]])
    return np.asarray(points.mean(0), dtype=np.float64)


def _problem(kind: str, root: Path, path: Path, problem: FileProblem) -> Fault:
    """An error from what a reader says, without the file's own path in front."""
    return Fault("error", kind, below(root, path), str(problem).removeprefix(str(path)).lstrip(": "))


def below(root: Path, path: Path) -> str:
    """`path` as the faults have it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def stamp_of(record: Record) -> list[int]:
    """See Finding.stamp; shorter where a file is missing."""
    stamp: list[int] = []
    for path in (record.image, *record.label_files):
        try:
            status = path.stat()
            stamp += [status.st_size, status.st_mtime_ns]
        except OSError:  # the look itself says why
            continue
    return stamp


def recall(cache: Path, classes: Sequence[str]) -> dict[str, Finding]:
    """Findings by the image's path below the data set; none where the file is missing, damaged or of other classes."""
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        if (content["version"], content["classes"]) != (VERSION, list(classes)):
            return {}
        return {str(path): _finding(entry) for path, entry in content["images"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _finding(entry: dict[str, Any]) -> Finding:
    """A finding from its JSON."""
    return Finding(**entry | {"faults": [Fault(**fault) for fault in entry["faults"]]})


def remember(cache: Path, classes: Sequence[str], found: Mapping[str, Finding]) -> None:
    """Write findings for `recall`, but for those of unreadable files; where that fails, say so on stderr.

    Raises:
        FileProblem: the disk is full.
    """
    whole = {p: finding for p, finding in found.items() if not any(f.kind in UNREADABLE for f in finding.faults)}
    kept = {path: asdict(finding) for path, finding in sorted(whole.items())}
    try:
        write_json(cache, {"version": VERSION, "classes": list(classes), "images": kept})
    except OSError as error:
        print(f"check: {cache} can't be written ({error.strerror}): all is looked at again next time", file=sys.stderr)
