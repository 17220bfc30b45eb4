"""Loss names -> a weighted sum of terms. `Combined_Focal_Dice` is parsed, no class exists for it.

A term is a file `term_<name>.py` of this package with `NAME` and `build(cfg) -> Term`. Adding a loss is adding a file.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from config import Config, ConfigProblem, loss_terms, suggest

if TYPE_CHECKING:
    from torch import Tensor

    from model.losses.by_class import Counts

Term = Callable[["Tensor", "Tensor", "Counts"], "Tensor"]
"""Logits and target (0 or 1) of one class, each (N, H, W) float32, and counts of the batch -> this class's share of the
loss. The shares of all classes are added."""

TERM_FILES = {path.stem.removeprefix("term_"): path for path in sorted(Path(__file__).parent.glob("term_*.py"))}


def term_names() -> list[str]:
    """Names of all terms as they are written."""
    return [_term_name(stem) for stem in TERM_FILES]


def _term_name(stem: str) -> str:
    """NAME of a term's file, read without importing it: that would wait for torch."""
    assignments = (node for node in ast.parse(TERM_FILES[stem].read_text("utf-8")).body if isinstance(node, ast.Assign))
    return next(str(ast.literal_eval(node.value)) for node in assignments if ast.unparse(node.targets[0]) == "NAME")


def canonical_name(name: str) -> str:
    """`bce_dice`, `Combined_bce_dice` -> Combined_BCE_Dice. Imports nothing slow: reads NAME off the files.

    Raises:
        ConfigProblem: a part of the name is no term; names the near ones.
    """
    terms = []
    for part in loss_terms(name):
        if part.casefold() not in TERM_FILES:
            known = term_names()
            raise ConfigProblem(
                f"loss {name!r}: {part!r} is no term; terms are {', '.join(known)}{suggest(part, known)}, combined as "
                f"in Combined_Focal_Dice."
            )
        terms.append(_term_name(part.casefold()))
    return terms[0] if len(terms) == 1 else "_".join(["Combined", *terms])


def build_loss(cfg: Config) -> Callable[[Tensor, Tensor], Tensor]:
    """The configured loss: logits (N, K, H, W) and packed targets (N, words, H, W) int32 -> scalar float32."""
    from model.losses.by_class import sum_by_class

    names = loss_terms(canonical_name(cfg.loss.loss))
    terms: list[Term] = [importlib.import_module(f"{__name__}.term_{n.casefold()}").build(cfg) for n in names]
    weights = cfg.loss.loss_weights or (1.0,) * len(terms)
    return lambda logits, bits: sum_by_class(logits, bits, terms, weights)
