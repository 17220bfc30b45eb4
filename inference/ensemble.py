"""Soft voting: the mean of several predictors' probabilities, band by band."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from inference.predictor import Predictor

SUREST = 1e-6
"""Probabilities nearer to 0 or 1 than this count as this far: their logits are finite."""


class Ensemble:
    """The mean of the members' probabilities, as logits again, so that thresholds stay where they are.

    Members give the same bands: folds of one experiment do.
    """

    def __init__(self, members: Sequence[Predictor]) -> None:
        self.members = members
        self.window = max(member.window for member in members)

    def bands(self, grey: Tensor) -> Iterator[Tensor]:
        """See Predictor. One band of each member is held at a time."""
        for parts in zip(*(member.bands(grey) for member in self.members), strict=True):
            total = parts[0].sigmoid()
            for part in parts[1:]:
                total += part.sigmoid()
            yield torch.logit(total / len(parts), eps=SUREST)
