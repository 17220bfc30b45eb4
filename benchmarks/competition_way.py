"""What the competition's teams do between a network's masks and the CSV, and its Dice: one plane a class.

Written anew from the formulas in the competition's baseline; engine/rle.py states that of the run-length text.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.bits import unpack
from inference.submission import HEADER

Plane = NDArray[np.bool_] | NDArray[np.uint8]
"""A mask, (H, W)."""


def planes(bits: NDArray[np.int32], n_classes: int) -> NDArray[np.bool_]:
    """Packed words (words, H, W) -> (classes, H, W)."""
    found = np.empty((n_classes, *bits.shape[1:]), np.bool_)
    for k in range(n_classes):  # one plane at a time: all together would be int32 first
        found[k] = unpack(torch.from_numpy(bits[k // 32] >> (k % 32))[None, None], 1)[0, 0].numpy()
    return found


def encode(mask: Plane) -> str:
    """The run-length text of one mask. The list makes NumPy widen the mask to int64, as it does in the baseline."""
    pixels: NDArray[Any] = np.concatenate([[0], mask.flatten(), [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(x) for x in runs)


def encode_all(masks: Sequence[Plane] | NDArray[Any]) -> list[str]:
    """The texts of masks (classes, H, W)."""
    return [encode(mask) for mask in masks]


def decode(rle: str, height: int, width: int) -> NDArray[np.uint8]:
    """The mask of one text, (height, width) of 0 and 1."""
    numbers = np.array(rle.split(), np.int64)
    mask = np.zeros(height * width, np.uint8)
    for start, length in zip(numbers[::2] - 1, numbers[1::2], strict=True):
        mask[start : start + length] = 1
    return mask.reshape(height, width)


def decode_all(rles: Sequence[str], height: int, width: int) -> list[NDArray[np.uint8]]:
    """The masks of the texts."""
    return [decode(rle, height, width) for rle in rles]


def dice(truth: Tensor, predicted: Tensor) -> Tensor:
    """Dice of masks (N, K, H, W) of 0 and 1 -> (N, K)."""
    true, pred = truth.flatten(2), predicted.flatten(2)
    both = torch.sum(true * pred, -1)
    return (2.0 * both + 1e-4) / (torch.sum(true, -1) + torch.sum(pred, -1) + 1e-4)


def write_rows(path: Path, images: Iterable[tuple[str, NDArray[np.bool_]]], classes: Sequence[str]) -> None:
    """Write the CSV of images, each a name and masks (classes, H, W)."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for name, masks in images:
            writer.writerows((name, label, rle) for label, rle in zip(classes, encode_all(masks), strict=True))
