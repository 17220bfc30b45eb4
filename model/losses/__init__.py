"""Loss names -> a weighted sum of terms. `Combined_Focal_Dice` is parsed, no class exists for it.

A term is a file `term_<name in small letters>.py` of this package with `NAME`, `OPTIONS` (the fields of the section
Loss that it follows), perhaps `ALIASES`, and `build(cfg) -> block.Term`. Adding a loss is adding a file.
`docs/losses.md` has all formulas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from config import Config
from model.losses.names import (
    TERM_FILES,
    canonical_name,
    canonical_schedule,
    check,
    class_weights,
    loss_at,
    losses_of,
    term_names,
    unused_options,
)

if TYPE_CHECKING:
    from engine.distributed import World
    from model.losses.stream import Loss

__all__ = [
    "TERM_FILES",
    "build_loss",
    "canonical_name",
    "canonical_schedule",
    "check",
    "class_weights",
    "loss_at",
    "losses_of",
    "term_names",
    "unused_options",
]


def build_loss(cfg: Config, epoch: int = 0, world: World | None = None) -> Loss:
    """The loss of an epoch, which counts from 0, over the samples of all processes of `world`.

    Raises:
        ConfigProblem: an unknown name, a schedule or weights that can't be read, a term that can't do what is asked.
    """
    from engine.distributed import ALONE  # here: names must not wait for torch
    from model.losses.stream import Loss

    entry = loss_at(cfg, epoch)
    weights = entry.weights or (1.0,) * len(entry.terms)
    # A term of weight 0 costs nothing.
    used = [(w, term) for w, term in zip(weights, entry.terms, strict=True) if w]
    terms = [importlib.import_module(f"{__name__}.term_{term.casefold()}").build(cfg) for _, term in used]
    return Loss(terms, [w for w, _ in used], len(cfg.data.classes), world or ALONE)
