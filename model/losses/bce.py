"""Binary cross-entropy, one independent decision per class and pixel, since bones overlap."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from config import Config
from model.losses import Term

NAME = "BCE"


def build(cfg: Config) -> Term:
    """Mean of softplus(z) - z t over all elements; equals binary_cross_entropy_with_logits without a float target."""
    return lambda logits, target: (F.softplus(logits) - torch.where(target, logits, 0.0)).mean()

