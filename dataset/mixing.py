"""Augmentations that take from another image's sample, the donor: copy-paste, mixup, cutmix.

Labels are packed words, so whatever is pasted brings all its classes along. Donor and sample are windows of one size.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from dataset.plan import Effect

Grey = NDArray[np.uint8]
Bits = NDArray[np.int32]

COARSE = 4
"""Pixels between those that are counted to compare the sizes of bones."""
FEATHER = 2.0
"""Standard deviation of the soft edge around a pasted bone, px; its labels end sharply."""


def mix(grey: Grey, bits: Bits, donor_grey: Grey, donor_bits: Bits, effect: Effect) -> tuple[Grey, Bits]:
    """Apply one mixer: (size, size) uint8 and (words, size, size) int32 of the sample and of its donor."""
    rng = np.random.default_rng(effect.seed)
    if effect.name == "mixup":
        # A radiograph is a sum along the ray and bones overlap in it: a pixel of both hands shows both ("hard" labels
        # in sound event detection's mixup, for the same reason).
        grey = np.asarray(cv2.addWeighted(grey, 1 - effect.value, donor_grey, effect.value, 0), dtype=np.uint8)
        return grey, bits | donor_bits
    grey, bits = grey.copy(), bits.copy()
    if effect.name == "cutmix":
        _paste_box(grey, bits, donor_grey, donor_bits, effect.value, rng)
    else:
        count = math.floor(effect.value + rng.random())  # 2.3 is three with probability 0.3
        _paste_bones(grey, bits, donor_grey, donor_bits, count, rng)
    return grey, bits


def _paste_box(
    grey: Grey, bits: Bits, donor_grey: Grey, donor_bits: Bits, area: float, rng: np.random.Generator
) -> None:
    size = len(grey)
    side = round(math.sqrt(area) * size)
    top, left = rng.integers(0, size - side + 1, 2)
    box = slice(top, top + side), slice(left, left + side)
    grey[box] = donor_grey[box]
    bits[:, *box] = donor_bits[:, *box]


def _paste_bones(
    grey: Grey, bits: Bits, donor_grey: Grey, donor_bits: Bits, count: int, rng: np.random.Generator
) -> None:
    """Paste up to `count` of the donor's smaller bones onto their namesakes, or where they lie in the donor."""
    small = smaller_bones(donor_bits)
    for k in rng.permutation(small)[:count]:
        mask, there = _mask(donor_bits, k), _mask(bits, k)
        move = (_centre(there) - _centre(mask)) if there.any() else np.zeros(2)
        shift = np.array([[1.0, 0, round(move[0])], [0, 1.0, round(move[1])]])
        size = grey.shape[::-1]
        here = cv2.warpAffine(mask, shift, size, flags=cv2.INTER_NEAREST) > 0
        soft = cv2.GaussianBlur(here.astype(np.float32), (0, 0), FEATHER)
        moved = cv2.warpAffine(donor_grey, shift, size, flags=cv2.INTER_NEAREST)
        grey[:] = np.rint(grey + soft * (moved.astype(np.float32) - grey))
        for word, donor in zip(bits, donor_bits, strict=True):
            words = cv2.warpAffine(donor.view(np.float32), shift, size, flags=cv2.INTER_NEAREST).view(np.int32)
            word[here] = words[here]


def smaller_bones(bits: Bits) -> NDArray[np.int64]:
    """Class numbers of the smaller half of the bones in packed words, by area."""
    sparse = bits[:, ::COARSE, ::COARSE]
    areas = np.array([np.count_nonzero((sparse[k // 32] >> (k % 32)) & 1) for k in range(32 * len(bits))])
    shown = np.flatnonzero(areas)
    return np.sort(shown[np.argsort(areas[shown], kind="stable")][: (len(shown) + 1) // 2])


def _mask(bits: Bits, k: int) -> Grey:
    return np.asarray((bits[k // 32] >> (k % 32)) & 1, dtype=np.uint8)


def _centre(mask: Grey) -> NDArray[np.float64]:
    """Middle of a mask's box, (x, y) px."""
    x, y, width, height = cv2.boundingRect(mask)
    return np.array([x + width / 2, y + height / 2])
