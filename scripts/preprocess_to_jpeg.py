"""Write the JPEG tree that loaders with _preprocessed read:

python scripts/preprocess_to_jpeg.py --data_root DATA [--output DIR] [--quality 95] [--clahe]
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import Config, ConfigProblem, Data, also
from engine import settings
from engine.flags import run_command

if TYPE_CHECKING:
    from dataset.jpeg_tree import Report

DESCRIPTION = """Write a data set's images once more as gray baseline JPEGs, which decode faster.

Killed at any moment, the same command goes on where it was; images that have not changed are left alone. Flags may be
written with '-' or '_'. Exit codes: 0 done, 1 a file is wrong (all others are written), 2 a flag is wrong."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    data_root: Annotated[str, also("data_dir")] = Data.data_root
    """Folder of the competition tree: train/DCM, test/DCM."""
    output: str = ""
    """Folder of the JPEG tree; empty takes <data_root>/jpeg, where loaders look for it."""
    quality: int = 95
    """Quality of the JPEGs, 1 to 100."""
    clahe: bool = False
    """Bake CLAHE into them (contrast-limited adaptive histogram equalisation, Zuiderveld 1994)."""
    clahe_clip: float = Data.clahe_clip
    """Clip limit of CLAHE, in OpenCV's unit: multiples of a flat histogram's bin. No effect without clahe."""
    clahe_tiles: int = Data.clahe_tiles
    """Tiles of CLAHE along each side. No effect without clahe."""
    workers: int = os.cpu_count() or 1
    """Threads."""
    overwrite: bool = False
    """Replace a tree of other settings."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    _check(chosen)
    from dataset.clahe import Clahe  # after --help, which must not wait for OpenCV
    from dataset.jpeg_tree import write_tree

    root = Path(chosen.data_root)
    output = Path(chosen.output) if chosen.output else root / "jpeg"
    clahe = Clahe(chosen.clahe_clip, chosen.clahe_tiles) if chosen.clahe else None
    report = write_tree(root, output, chosen.quality, clahe, chosen.workers, chosen.overwrite)
    _print(report, output, chosen)
    return 1 if report.failed else 0


def _check(chosen: Flags) -> None:
    broken = [
        f"{name} is {value}, but must lie between {low} and {high}."
        for name, value, low, high in (("quality", chosen.quality, 1, 100), ("workers", chosen.workers, 1, 1024))
        if not low <= value <= high
    ]
    if broken:
        raise ConfigProblem("\n".join(broken))
    settings.check(settings.replace(Config(), {"clahe_clip": chosen.clahe_clip, "clahe_tiles": chosen.clahe_tiles}))


def _print(report: Report, output: Path, chosen: Flags) -> None:
    speed = f", {report.written / report.seconds:.1f} a second" if report.written else ""
    print(f"{output}: {len(report.images)} images, {report.written} of them written now{speed}")
    if report.images:
        clahe = f"CLAHE {chosen.clahe_clip:g} in {chosen.clahe_tiles} x {chosen.clahe_tiles} tiles, " * chosen.clahe
        error = f"error {report.mean_error:.3f} grey levels on average, {report.max_error} at most"
        before, after = report.bytes_before, report.bytes_after
        print(f"{clahe}quality {chosen.quality}: {error}")
        print(f"{before / 1e6:.1f} MB of originals, {after / 1e6:.1f} MB of JPEGs ({after / before:.2f})")
    if report.failed:
        print(f"error: {len(report.failed)} images have no JPEG:", file=sys.stderr)
        for problem in report.failed.values():
            print(f"  {problem}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
