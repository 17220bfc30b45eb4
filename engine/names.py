"""A name is a module plus a variant: `model.model_unet_resnet34` is variant `resnet34` of `model/model_unet.py`.

The longest file name that prefixes the request wins, and only that module is imported. Adding a model, a loss or an
inference style is adding a file, or a row to a file's table of variants.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from config import ConfigProblem, suggest

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Name:
    """A resolved name."""

    package: str
    stem: str
    """File name without .py, such as model_unet."""
    variant: str
    """What follows the stem, without the underscore; "" asks for the module's default."""

    def __str__(self) -> str:
        return f"{self.package}.{self.stem}" + (f"_{self.variant}" if self.variant else "")

    def load(self) -> ModuleType:
        """Import the module, and only this one."""
        return importlib.import_module(f"{self.package}.{self.stem}")


def stems(package: str) -> list[str]:
    """Names of the files in `package` that can be asked for: package/package*.py."""
    return sorted(path.stem for path in (ROOT / package).glob(f"{package}*.py"))


def resolve(package: str, request: str) -> Name:
    """The module and variant that `request` means, in any case, with or without the package and its prefix; `+`
    may be written for plus, as papers do (unet++).

    Whether the variant exists is for the module to say.

    Raises:
        ConfigProblem: no file's name begins the request; names the near ones.
    """
    text = request.casefold().removeprefix(f"{package}.").replace("++", "plusplus").replace("+", "plus")
    candidates = stems(package)
    for full in (text, f"{package}_{text}"):
        hits = [s for s in candidates if full == s or full.startswith(f"{s}_")]
        # dataset/dataset.py begins every name; a longer request must then really be one of its variants.
        if hits:
            stem = max(hits, key=len)
            return Name(package, stem, full[len(stem) + 1 :])
    near = suggest(f"{package}_{text.removeprefix(f'{package}_')}", candidates)
    raise ConfigProblem(f"{request!r} is no {package} here: known are {', '.join(candidates)}{near}.")


def all_names(package: str) -> list[str]:
    """Every name with its variants, for --list_models and its like. Imports all modules of the package."""
    names: list[str] = []
    for stem in stems(package):
        module = importlib.import_module(f"{package}.{stem}")
        variants: list[str] = list(module.VARIANTS)
        names += [str(Name(package, stem, variant)) for variant in variants]
    return names


def check_variant(name: Name, variants: Iterable[str]) -> None:
    """Raise ConfigProblem where the variant is not in the module's table; near names may be of other modules."""
    known = list(variants)
    if name.variant in known:
        return
    shown = [str(Name(name.package, name.stem, variant)) for variant in known]
    near = suggest(str(name), [*shown, *(str(Name(name.package, stem, "")) for stem in stems(name.package))])
    raise ConfigProblem(f"{name} is unknown: {name.stem} has {', '.join(shown)}{near}.")
