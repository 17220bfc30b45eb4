"""Dice between two submissions, by image and class:

python scripts/compare_csv.py A.csv B.csv [--worst 10] [--output FOLDER or FILE.csv] [--common]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import ConfigProblem
from engine.flags import run_command

DESCRIPTION = """Dice between two submissions: of each class over the images, and the images in which they differ most.

Dice is the competition's: 1 where both masks are empty. Rows are paired by image and class, whatever their order; the
images themselves are not needed. Exit codes: 0 done, 1 a file is wrong, 2 a flag is wrong."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    first: tyro.conf.Positional[Path]
    """A submission CSV."""
    second: tyro.conf.Positional[Path]
    """Another of the same images and classes."""
    worst: int = 10
    """Images to list, the most different first."""
    common: bool = False
    """Compare the images that are in both; else an image that is in one only is an error."""
    output: str = ""
    """Also write Dice per image to this .csv, or per_class.csv and images.csv to this new folder."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    if chosen.worst < 0:
        raise ConfigProblem(f"worst is {chosen.worst}, but must be 0 or more.")
    from inference import csv_scores as scores  # after --help, which must not wait for numba
    from inference.csv_masks import CsvMasks, paired

    scores.check_new_table(chosen.output)
    first = CsvMasks(chosen.first)
    second = CsvMasks(chosen.second, first.classes)
    table = scores.dice_table(first, second, {name: name for name in paired(first, second, chosen.common)})
    print(scores.class_text(table))
    print(f"Dice {table.mean():.4f} between {chosen.first} and {chosen.second} over {len(table)} images")
    if chosen.worst:
        print(f"most different images (mean, lowest class):\n{scores.worst_text(table, chosen.worst)}")
    if chosen.output:
        print(scores.save_table(table, chosen.output))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
