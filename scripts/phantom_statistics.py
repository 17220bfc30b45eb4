"""How like a real radiograph the phantoms are: tones, noise, cortex, texture and spectrum, style by style.

python scripts/phantom_statistics.py hand.png --base 659 1138 --head 677 683 --radius 630 1480
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from engine.flags import run_command

DESCRIPTION = """A table (Markdown) of measures: the radiograph's, and median and 5 to 95 % range of phantoms of each
style, bold where the radiograph lies in it. Three places in the radiograph, px from the top left corner, say where the
metacarpal of its middle finger begins and ends, taken as 65 mm, and where the spongy bone of the distal radius is,
10 to 15 mm below the joint. The hand is bright on a dark ground. Exit codes: 0 done, 1 a file is wrong, 2 a flag is
wrong."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    radiograph: tyro.conf.Positional[Path]
    """Image file of one hand."""
    base: tuple[float, float]
    """Middle of the third metacarpal's base, x and y."""
    head: tuple[float, float]
    """End of its head."""
    radius: tuple[float, float]
    """In the distal radius."""
    styles: tuple[str, ...] = ()
    """Styles of phantoms; empty takes all."""
    count: int = 24
    """Phantoms of each style."""
    size: int = 1536
    """Side of the phantoms, px (128 to 2048)."""
    seed: int = 1
    """Seed of the phantoms."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    import numpy as np

    from config import ConfigProblem
    from dataset.images import read_image
    from dataset.phantom_statistics import Landmarks, measure, measure_phantoms, table
    from dataset.phantom_styles import STYLES, check_styles

    if not 128 <= chosen.size <= 2048:
        raise ConfigProblem(f"size is {chosen.size}: phantoms are drawn from 128 to 2048 pixels.")
    if chosen.count < 1:
        raise ConfigProblem(f"count is {chosen.count}: give 1 or more.")
    styles = check_styles(chosen.styles or tuple(STYLES))
    places = Landmarks(*(np.array(place) for place in (chosen.base, chosen.head, chosen.radius)))
    radiograph = measure(read_image(chosen.radiograph), places)
    phantoms = {style: measure_phantoms(style, chosen.count, chosen.size, chosen.seed) for style in styles}
    print(table(radiograph, phantoms))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
