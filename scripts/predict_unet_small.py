"""Pseudo-labels of a folder of unlabelled images, and which of them may train:

python scripts/predict_unet_small.py --exp_name ultrasound_small [--data_root ../data] [--plausible 0.015 0.13]
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from engine.flags import run_command
from inference.raw_folder import PseudoFlags, predict_pseudo

DESCRIPTION = """Predict all images of raw_unlabelled/ with a trained network of one class. Writes
masks_pseudo_small/<stem>.png (0 and 255), overlays_pseudo_small/<stem>.png and pseudo_stats_small.csv (filename,
area_frac, cy_rel, cx_rel, plausible) into data_root, at each image's own size; run_exp.py --pseudo takes the CSV.

Existing files are never overwritten. Exit codes: 0 done, 1 a file is wrong, 2 a flag is wrong."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(PseudoFlags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: predict_pseudo(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
