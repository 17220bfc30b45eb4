"""Before times are compared: do all sides read the same image and the same labels?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.case import Case
from benchmarks.our_way import ours
from dataset.readers import Record
from engine.bits import unpack


class Different(AssertionError):
    """Two sides don't make the same samples, so their times say nothing."""


def check(name: str, image: Tensor, masks: Tensor, records: Sequence[Record], case: Case) -> None:
    """Compare a peer's whole first image, unaugmented, with ours, and a window of ours with a part of it.

    Args:
        image: (channels, H, W), all channels equal, uint8 or floats in 0..1.
        masks: (classes, H, W) of 0 and 1, any type.

    Raises:
        Different: a grey value or a label bit differs.
    """
    grey = image if image.dtype == torch.uint8 else (image.double() * 255).round().to(torch.uint8)
    our_grey, our_masks = first_sample(records, replace(case, window=case.size))
    if not (torch.equal(grey, our_grey.expand_as(grey)) and torch.equal(masks.bool(), our_masks)):
        raise Different(f"{name}: the whole unaugmented image or its labels differ from ours.")
    window, labels = first_sample(records, case)
    top, left = _place(window[0].numpy(), our_grey[0].numpy())
    part = (..., slice(top, top + case.window), slice(left, left + case.window))
    if not (torch.equal(grey[part], window.expand_as(grey[part])) and torch.equal(masks.bool()[part], labels)):
        raise Different(f"{name}: an unaugmented window or its labels differ from ours.")


def first_sample(records: Sequence[Record], case: Case) -> tuple[Tensor, Tensor]:
    """An unaugmented sample of the first image from our loader: (1, H, W) uint8 and (classes, H, W) bool."""
    image, bits = next(iter(ours("PNG", records[:1], replace(case, batch=1, workers=0), augment=False)(0)))
    return image[0], unpack(bits, len(case.classes))[0]


def _place(window: NDArray[np.uint8], whole: NDArray[np.uint8]) -> tuple[int, int]:
    """Row and column of the whole at which the window lies."""
    distance = cv2.matchTemplate(whole, window, cv2.TM_SQDIFF)
    top, left = np.unravel_index(np.argmin(distance), distance.shape)
    return int(top), int(left)
