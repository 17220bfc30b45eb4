"""What a dataset name switches on: `dataset.dataset_sliding_clahe` is module `dataset.dataset` with two switches.

Any of them may follow any executor's name, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from config import Config, ConfigProblem, suggest
from engine.names import Name, resolve


@dataclass(frozen=True)
class Switches:
    """The field names are the switches."""

    sliding: bool = False
    """Windows of window_size instead of whole images."""
    clahe: bool = False
    """Contrast-limited adaptive histogram equalisation of every image, at inference too."""
    exclude: bool = False
    """Leave out the competition's known bad labels."""
    flip: bool = False
    """Mirror left hands, so that all look like right ones; masks are mirrored back at inference."""
    crop: bool = False
    """Use the box of the hand instead of the whole image, at inference too."""
    preprocessed: bool = False
    """Train from the JPEG tree that scripts/preprocess_to_jpeg.py wrote."""


SWITCHES: tuple[str, ...] = tuple(f.name for f in fields(Switches))


def read_switches(name: Name) -> Switches:
    """The switches of a dataset's name.

    Raises:
        ConfigProblem: an unknown switch (names near ones), or one given twice.
    """
    words = name.variant.split("_") if name.variant else []
    for word in words:
        if word not in SWITCHES:
            raise ConfigProblem(
                f"{name}: {word!r} is no switch{suggest(word, SWITCHES)}: {name.package}.{name.stem} may be "
                f"followed by any of _{' _'.join(SWITCHES)}."
            )
        if words.count(word) > 1:
            raise ConfigProblem(f"{name}: _{word} is there twice: leave one out.")
    return Switches(**dict.fromkeys(words, True))


def switches_of(cfg: Config) -> Switches:
    """The switches that `dataset_file` names."""
    return read_switches(resolve("dataset", cfg.data.dataset_file))
