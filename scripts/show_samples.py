"""One page with labelled images of a data set, with their outlines:

python scripts/show_samples.py DATA [--split train] [--count 12] [--seed 1] [--mask_dir masks_manual]
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from inference import show

DESCRIPTION = """Draw images of a data set with the outlines of their labels on one page, show_samples.png.

Exit codes: 0 done, 1 a file is wrong, 2 a flag is wrong."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    return show.main(argv, DESCRIPTION, "show_samples", ("overlay",), columns=4)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
