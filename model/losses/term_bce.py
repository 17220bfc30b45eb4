"""Binary cross-entropy: one independent decision per class and pixel, since bones overlap."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from config import Config
from model.losses import Term
from model.losses.by_class import Counts

NAME = "BCE"


def build(cfg: Config) -> Term:
    """Mean over all pixels and classes of -log of the probability given to the truth."""

    def bce(logits: Tensor, target: Tensor, counts: Counts) -> Tensor:
        return (F.softplus(logits) - logits * target).mean() / counts.classes

    return bce
