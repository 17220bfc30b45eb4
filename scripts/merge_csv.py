"""Put the CSVs of shards together into one:

python scripts/merge_csv.py PART PART … --output OUT.csv [--like SAMPLE.csv]
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
from inference.submission_file import merge_submissions

DESCRIPTION = """Put the CSVs of shards together into one. The parts hold different images and the same classes; the
result is what one process would have written."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    parts: tyro.conf.Positional[tuple[Path, ...]]
    """CSVs of the shards, in order."""
    output: Path
    """CSV to write; one that is there is never replaced."""
    like: Path | None = None
    """CSV of the same images, such as the sample submission, whose order the result takes; else the order of the
    parts."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code: 0, 1 for a problem with files, 2 for a wrong command line."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    if not chosen.parts:
        raise ConfigProblem("No part was given: name the CSVs of the shards.")
    images = merge_submissions(chosen.parts, chosen.output, chosen.like)
    print(f"{chosen.output}: {images} images from {len(chosen.parts)} parts")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
