"""Masks and overlays of a folder of unlabelled images:

python scripts/predict_all_raw.py --exp_name ultrasound [--data_root ../data] [--band 0.1 0.9] [--min_area_frac 0.001]
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from engine.flags import run_command
from inference.raw_folder import RawFlags, predict_all

DESCRIPTION = """Predict all images of raw_unlabelled/ with a trained network of one class. Writes masks_pred/<stem>.png
(0 and 255) and overlays_pred/<stem>.png into data_root, at each image's own size.

Existing folders are never overwritten. Exit codes: 0 done, 1 a file is wrong, 2 a flag is wrong."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(RawFlags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: predict_all(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
