"""Pages of labelled images and of predictions: image, masks, outlines and differences side by side."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from config import ConfigProblem, suggest
from inference.overlay import class_colours

Picture = NDArray[np.uint8]
"""(H, W, 3) uint8 BGR."""

BACKGROUND = 40
"""Grey value of a page."""

FONT = cv2.FONT_HERSHEY_SIMPLEX

MISSED, EXTRA, MIXED = (0, 159, 230), (233, 180, 86), (255, 255, 255)
"""BGR: orange and sky blue, which colour-blind people tell apart (Okabe and Ito 2008), and white."""


def chosen(names: Sequence[str], wanted: Sequence[str], count: int, seed: int) -> list[int]:
    """Which of the images to show, in their order: those that are wanted, else `count` by chance; 0 takes all.

    Args:
        wanted: names of images, with or without extension.

    Raises:
        ConfigProblem: `count` is below 0, or no image has a wanted name; names near ones.
    """
    if count < 0:
        raise ConfigProblem(f"count is {count}, but must be 0 or more; 0 shows all images.")
    stems = [name.rpartition(".")[0] for name in names]
    for name in wanted:
        if name not in names and name not in stems:
            raise ConfigProblem(f"names: {name!r} is none of the {len(names)} images{suggest(name, names)}.")
    if wanted:
        return [i for i, (name, stem) in enumerate(zip(names, stems, strict=True)) if {name, stem} & set(wanted)]
    number = min(count or len(names), len(names))
    return sorted(np.random.default_rng(seed).permutation(len(names))[:number].tolist())


def draw_masks(bits: NDArray[np.int32], n_classes: int) -> Picture:
    """Packed masks (words, H, W) in the colours of their classes on black, their mean where they overlap; one class is
    white."""
    sums = np.zeros((*bits.shape[1:], 3), np.float32)
    count = np.zeros(bits.shape[1:], np.float32)
    for k, colour in enumerate(class_colours(n_classes) if n_classes > 1 else [(255, 255, 255)]):
        mask = (bits[k // 32] >> (k % 32)) & 1 > 0
        sums[mask] += colour
        count[mask] += 1
    return np.asarray(np.rint(sums / np.maximum(count, 1)[..., None]), np.uint8)


def draw_difference(image: NDArray[np.uint8], truth: NDArray[np.int32], found: NDArray[np.int32]) -> Picture:
    """The image, (H, W) uint8, darkened, with the pixels that differ: missed in some class, extra in some, or both.

    Args:
        truth, found: packed masks (words, H, W).
    """
    missed, extra = (truth & ~found).any(0), (found & ~truth).any(0)
    drawn = cv2.cvtColor((image * 0.6).astype(np.uint8), cv2.COLOR_GRAY2BGR)
    for mask, colour in ((missed, MISSED), (extra, EXTRA), (missed & extra, MIXED)):
        drawn[mask] = colour
    return np.asarray(drawn, np.uint8)


def framed(picture: NDArray[np.uint8], size: int, title: str) -> Picture:
    """A picture, (H, W) or (H, W, 3), in a square of `size` px under its title: (height, width, 3)."""
    line, margin = max(size // 16, 14), max(2, size // 80)
    factor = size / max(picture.shape[:2])
    width, height = (max(round(factor * side), 1) for side in (picture.shape[1], picture.shape[0]))
    shown = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST)
    panel = np.full((size + line + 2 * margin, size + 2 * margin, 3), BACKGROUND, np.uint8)
    top, left = line + margin + (size - height) // 2, margin + (size - width) // 2
    panel[top : top + height, left : left + width] = shown.reshape(height, width, -1)  # grey in all three channels
    _write(panel, title, (margin, line - line // 4), line / 42)
    return panel


def page(panels: Sequence[Picture], columns: int) -> Picture:
    """Panels of one size in rows."""
    blank = np.full_like(panels[0], BACKGROUND)
    filled = [*panels, *[blank] * (-len(panels) % columns)]
    return np.vstack([np.hstack(filled[i : i + columns]) for i in range(0, len(filled), columns)])


def legend(classes: Sequence[str], width: int) -> Picture:
    """The names of the classes in their colours, in as many rows as they need: (height, width, 3)."""
    line, rows = 20, [(4, 0)]
    for name in classes:
        left, row = rows[-1]
        ends = left + 18 + cv2.getTextSize(name, FONT, 0.5, 1)[0][0]
        at = (left, row) if ends <= width else (4, row + 1)
        rows[-1:] = [at, (at[0] + ends - left, at[1])]
    strip = np.full(((rows[-1][1] + 1) * line, width, 3), BACKGROUND, np.uint8)
    for name, colour, (left, row) in zip(classes, class_colours(len(classes)), rows, strict=False):
        cv2.putText(strip, name, (left, row * line + 14), FONT, 0.5, colour, 1, cv2.LINE_AA)
    return strip


def _write(panel: Picture, text: str, place: tuple[int, int], scale: float) -> None:
    """What is too long loses its beginning."""
    shown, width = text, panel.shape[1] - 2 * place[0]
    while len(shown) > 4 and cv2.getTextSize(shown, FONT, scale, 1)[0][0] > width:
        shown = "..." + shown.removeprefix("...")[1:]
    cv2.putText(panel, shown, place, FONT, scale, (235,) * 3, 1, cv2.LINE_AA)
