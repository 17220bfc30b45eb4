"""Draw a small data set to try a preset on:

python scripts/make_example.py hand_mask --root data/hand_mask [--count 40] [--size 256] [--seed 1]
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

DESCRIPTION = """Draw a data set in the layout of a preset: hand_mask, bone_binary, multi_mask, labelme or ultrasound.

Images are drawn, nobody's. The same flags give the same files; a folder that holds files is never touched. Exit codes:
0 done, 1 a file is in the way, 2 a flag is wrong."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    kind: tyro.conf.Positional[str]
    """hand_mask, bone_binary, multi_mask, labelme or ultrasound."""
    root: Path
    """New folder for the data set."""
    count: int = 40
    """Images, in all splits together."""
    size: int = 256
    """Height and width, px (128 to 2048)."""
    seed: int = 1
    """Other seeds draw other hands."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    from dataset.examples import write_example  # after --help, which must not wait for OpenCV
    from inference.mask_files import whole_folder

    with whole_folder(chosen.root) as folder:
        write_example(chosen.kind, folder, count=chosen.count, size=chosen.size, seed=chosen.seed)
        files = sum(path.is_file() for path in folder.rglob("*"))
    print(f"{chosen.root}: {chosen.kind}, {files} files of {chosen.count} images of {chosen.size} px")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
