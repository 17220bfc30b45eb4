"""Dice of a submission against labels:

python scripts/score_csv.py A.csv --data_root ../data [--split test] [--common] [--worst 10] [--output FOLDER]
python scripts/score_csv.py A.csv --labels LABELS.csv
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import HAND_BONES, ConfigProblem, also
from engine.flags import run_command

DESCRIPTION = """The competition's Dice of a submission against labels: of each class over the images, and on average.

Labels are the JSON files of a competition tree, drawn as the competition draws them, or a folder of masks, or a CSV.
The numbers are those that inference prints. Exit codes: 0 done, 1 a file is wrong, 2 a flag is wrong."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    csv: tyro.conf.Positional[Path]
    """The submission CSV."""
    data_root: Annotated[str, also("data_dir")] = ""
    """Folder of the competition tree, whose labels of --split count."""
    split: str = "test"
    """Split of data_root: test, train or another."""
    labels: str = ""
    """Labels from elsewhere: a CSV, or a folder of masks as save_masks and csv_to_masks.py write it."""
    classes: tuple[str, ...] = HAND_BONES
    """Classes that are scored; CSV and labels must hold just these."""
    worst: int = 10
    """Images to list, the worst first."""
    common: bool = False
    """Score the images that have both; else an image without a label or without rows is an error."""
    output: str = ""
    """Also write Dice per image to this .csv, or per_class.csv and images.csv to this new folder."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    if bool(chosen.data_root) == bool(chosen.labels):
        said = "both are given" if chosen.labels else "none is given"
        raise ConfigProblem(f"labels come from data_root or from labels, but {said}: give one of them.")
    if chosen.worst < 0:
        raise ConfigProblem(f"worst is {chosen.worst}, but must be 0 or more.")
    from inference import csv_scores as scores  # after --help, which must not wait for numba
    from inference.csv_masks import CsvMasks, open_masks, paired

    scores.check_new_table(chosen.output)
    masks = CsvMasks(chosen.csv, chosen.classes)
    labels = open_masks(Path(chosen.data_root or chosen.labels), chosen.split, chosen.classes, masks.names)
    table = scores.dice_table(masks, labels, {name: name for name in paired(masks, labels, chosen.common)})
    print(table.text())
    print(f"Dice {table.mean():.4f} of {chosen.csv} over {len(table)} images")
    if chosen.worst:
        print(f"worst images (mean, lowest class):\n{scores.worst_text(table, chosen.worst)}")
    if chosen.output:
        print(scores.save_table(table, chosen.output))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
