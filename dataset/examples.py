"""Small drawn data sets in the layouts of docs/data.md, so that every preset can be tried without data.

The hand of `dataset.phantom_draw` with other labels: `write_example` writes one set, EXAMPLES has the kinds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from config import HAND_BONES, ConfigProblem, suggest
from dataset.phantom_draw import SIDES, Phantom, draw_phantom
from dataset.ultrasound import write_ultrasound
from engine.files import FileProblem

Mask = NDArray[np.uint8]

HELD_OUT = 0.15
"""Share of the subjects in val, and as many in test; one at least."""

LEAST = 6
"""Images: two each for train, val and test."""

BENT_SHARE = 0.25
"""Probability of a bent wrist."""

REACH, BESIDE, THINNEST = 0.08, 0.012, 0.006
"""Shares of the picture's side: flesh lies at most so far from a bone, all that lies so near to one is flesh, and lines
that are thinner (of collimation) are none."""

SKIN = 0.3
"""Brightness of the skin from the ground (0) to the flesh beside the bones (1)."""

OVERLAPPING = ("Trapezium", "Trapezoid", "Capitate", "Lunate", "Triquetrum", "Pisiform", "Radius", "Ulna")
"""Classes of kind multi_mask: two of the pairs that overlap most, and others."""

KNUCKLES = ("finger-3", "finger-7", "finger-11", "finger-15", "finger-19")

GROUPS = {
    name: "forearm"
    if name in ("Radius", "Ulna")
    else "metacarpal"
    if name in KNUCKLES
    else "phalanx"
    if name.startswith("finger-")
    else "carpal"
    for name in HAND_BONES
}
"""Bone -> class of kind labelme, several polygons each."""


def write_example(kind: str, root: Path, *, count: int, size: int, seed: int) -> None:
    """Write a drawn data set; the same arguments give the same bytes.

    Args:
        kind: of EXAMPLES.
        root: new or empty folder.
        count: images in all splits together, 6 or more.
        size: of the square images, px, 128 to 2048.
        seed: of everything that is drawn.

    Raises:
        ConfigProblem: an unknown kind, or `count` or `size` out of range.
        FileProblem: `root` holds files.
    """
    if kind not in EXAMPLES:
        raise ConfigProblem(f"kind {kind!r} is none of {', '.join(EXAMPLES)}{suggest(kind, EXAMPLES)}")
    if count < LEAST:
        raise ConfigProblem(f"count is {count}, but must be {LEAST} or more: train, val and test need two images each.")
    if not 128 <= size <= 2048:
        raise ConfigProblem(f"size is {size}, but must be 128 to 2048 px.")
    if root.exists() and any(root.iterdir()):
        raise FileProblem(f"{root} exists and is never overwritten: remove it or choose another folder.")
    EXAMPLES[kind](root, count, size, seed)


def _hand_mask(root: Path, count: int, size: int, seed: int) -> None:
    """The hand's silhouette: train/, val/ and test/, each with images/1_L.png and masks/1_L_mask.png."""
    for split, subject, side in _in_splits(count):
        phantom = _draw(seed, subject, side, size)
        stem = f"{subject}_{side}"
        _save(root / split / "images" / f"{stem}.png", phantom.image)
        _save(root / split / "masks" / f"{stem}_mask.png", silhouette(phantom))


def _bone_binary(root: Path, count: int, size: int, seed: int) -> None:
    """All bones as one class: images/p001_1.png and masks/p001_1.png. Folds validate, so there are no splits."""
    for subject, side in _hands(count):
        phantom = _draw(seed, subject, side, size)
        name = f"p{subject:03d}_{1 + SIDES.index(side)}.png"
        _save(root / "images" / name, phantom.image)
        _save(root / "masks" / name, _filled(phantom, HAND_BONES))


def _multi_mask(root: Path, count: int, size: int, seed: int) -> None:
    """A mask for each class: train/, val/ and test/, each with images/1_L.png and masks/1_L-Radius.png."""
    for split, subject, side in _in_splits(count):
        phantom = _draw(seed, subject, side, size)
        stem = f"{subject}_{side}"
        _save(root / split / "images" / f"{stem}.png", phantom.image)
        for name in OVERLAPPING:
            _save(root / split / "masks" / f"{stem}-{name}.png", _filled(phantom, (name,)))


def _labelme(root: Path, count: int, size: int, seed: int) -> None:
    """Polygons of four groups of bones: train/, val/ and test/, each with 1_L.jpg and 1_L.json."""
    for split, subject, side in _in_splits(count):
        phantom = _draw(seed, subject, side, size)
        stem = f"{subject}_{side}"
        _save(root / split / f"{stem}.jpg", phantom.image)
        text = json.dumps(_labelme_file(phantom, f"{stem}.jpg", size), indent=2)
        (root / split / f"{stem}.json").write_text(text + "\n", encoding="utf-8")


EXAMPLES: dict[str, Callable[[Path, int, int, int], None]] = {
    "hand_mask": _hand_mask,
    "bone_binary": _bone_binary,
    "multi_mask": _multi_mask,
    "labelme": _labelme,
    "ultrasound": write_ultrasound,
}
"""Kind -> what writes it: folder, images, px, seed."""


def silhouette(phantom: Phantom) -> Mask:
    """Flesh and bones of a phantom's hand, (size, size), 0 and 255.

    What is brighter than the dark ground within REACH of a bone and hangs together with the bones. Its Dice against the
    flesh that the picture is drawn from is 0.97 at 128 px and 0.98 from 256 px on.
    """
    bones = _filled(phantom, HAND_BONES)
    size = len(bones)
    far = cv2.distanceTransform(255 - bones, cv2.DIST_L2, 5) / size
    soft = cv2.GaussianBlur(phantom.image, (0, 0), max(size / 300, 0.7)).astype(np.float32)
    flesh = np.median(soft[(far > 0) & (far < BESIDE)])
    ground = np.median(soft[(far > REACH) & (far < 2 * REACH)])
    bright = (soft > ground + SKIN * (flesh - ground)) & (far < REACH)
    side = 2 * max(round(THINNEST * size), 1) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    opened = cv2.morphologyEx(np.where(bright, 255, 0).astype(np.uint8), cv2.MORPH_OPEN, disc)
    mask = cv2.bitwise_or(opened, bones)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hand = cv2.drawContours(np.zeros_like(mask), [max(contours, key=cv2.contourArea)], -1, 255, cv2.FILLED)
    return np.asarray(cv2.bitwise_or(hand, bones), np.uint8)


def _hands(count: int) -> Iterator[tuple[int, str]]:
    """Subject, from 1, and side of each image; an odd count leaves the last subject with one hand."""
    return ((1 + number // 2, SIDES[number % 2]) for number in range(count))


def _in_splits(count: int) -> Iterator[tuple[str, int, str]]:
    """The same with the split; both hands of a subject are in one."""
    subjects = (count + 1) // 2
    held = max(round(HELD_OUT * subjects), 1)
    for subject, side in _hands(count):
        split = "train" if subject <= subjects - 2 * held else "val" if subject <= subjects - held else "test"
        yield split, subject, side


def _draw(seed: int, subject: int, side: str, size: int) -> Phantom:
    bent = bool(np.random.default_rng((seed, subject, 0xBE)).random() < BENT_SHARE)
    return draw_phantom(seed, subject, side, size, bent)


def _filled(phantom: Phantom, names: tuple[str, ...]) -> Mask:
    """Union of these bones, 0 and 255."""
    mask = np.zeros_like(phantom.image)
    for polygon in (polygon for name in names for polygon in phantom.polygons[name]):
        cv2.fillPoly(mask, [polygon], 255)
    return mask


def _labelme_file(phantom: Phantom, image: str, size: int) -> dict[str, Any]:
    """As labelme 5 writes it, without the image in it."""
    shapes = [
        {
            "label": GROUPS[name],
            "points": (polygon + 0.5).tolist(),  # a vertex lies in the middle of its pixel
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
        }
        for name, polygons in phantom.polygons.items()
        for polygon in polygons
    ]
    head: dict[str, Any] = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None}
    return head | {"imageHeight": size, "imageWidth": size}


def _save(path: Path, picture: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), picture):
        raise FileProblem(f"{path} could not be written: is the disk full or read-only?")
