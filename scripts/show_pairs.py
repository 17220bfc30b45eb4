"""One page with images, their masks, and both together, to see whether they belong together:

python scripts/show_pairs.py DATA [--split train] [--count 6] [--names 12.jpg] [--mask_dir masks_manual]
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from inference import show

DESCRIPTION = """Draw image, mask and overlay side by side, with the names of their files, on one page, show_pairs.png.
scripts/check_pairs.py lists what has no partner or can't be read.

Exit codes: 0 done, 1 a file is wrong, 2 a flag is wrong."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    return show.main(argv, DESCRIPTION, "show_pairs", ("image", "mask", "overlay"), columns=2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
