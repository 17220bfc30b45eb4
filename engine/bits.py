"""Packed masks: bit k % 32 of word k // 32 is class k, so up to 32 overlapping classes cost 4 bytes a pixel.

29 float masks of a 2048 x 2048 image are 487 MB, packed they are 16.8 MB. Words are int32, shape (words, H, W); bit 31
is the sign bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the CSV tools count words too and must not wait for torch
    from torch import Tensor


def n_words(n_classes: int) -> int:
    """int32 words that hold `n_classes` bits."""
    return -(-n_classes // 32)


def unpack(bits: Tensor, n_classes: int) -> Tensor:
    """(N, words, H, W) int32 -> (N, n_classes, H, W) bool, on the same device."""
    import torch

    shifts = torch.arange(32, dtype=torch.int32, device=bits.device).view(1, 32, 1, 1)
    parts = [
        (bits[:, w, None] >> shifts[:, : min(32, n_classes - 32 * w)]) & 1 for w in range(n_words(n_classes))
    ]  # an arithmetic shift of a negative word fills with ones from above; & 1 drops them
    return torch.cat(parts, 1).bool()


def pack(logits: Tensor, threshold: Tensor | float) -> Tensor:
    """(K, H, W) maps -> (words, H, W) int32 with bit k set where map k is above its threshold.

    `threshold` is one number or (K,), on the scale of the maps. One class at a time, so no (K, H, W) copy is made.
    """
    import torch

    k, h, w = logits.shape
    limits = torch.as_tensor(threshold, dtype=logits.dtype, device=logits.device).expand(k)
    bits = torch.zeros((n_words(k), h, w), dtype=torch.int32, device=logits.device)
    for c in range(k):
        bits[c // 32] |= (logits[c] > limits[c]).to(torch.int32) << (c % 32)
    return bits
