"""The record of all experiments:

python scripts/leaderboard.py [--sort dice] [--filter "dice>=0.9" state=done] [--csv TABLE.csv]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import Run
from engine import leaderboard
from engine.flags import run_command

DESCRIPTION = """All experiments, a line each: state, validation Dice with its spread over images, time, CSV, and the
settings that differ between them.

Validation Dice is that of the best weights; of an experiment with --fold all it is out of fold. sd is the standard
deviation over images: two experiments validated on n images differ by chance by about 1.4 sd / sqrt(n), less where
the images are the same. Any column and any setting can be sorted and filtered by. Exit codes: 0 done, 1 a file is
wrong, 2 a flag is wrong."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    output_dir: Path = Path(Run().output_dir)
    """Folder of the experiments."""
    queue: Path = Path("log/queue")
    """Folder of the queue, which knows what waits and runs."""
    sort: str = "dice"
    """Column or setting; scores, times and epochs from the highest."""
    reverse: bool = False
    """The other way round."""
    filter: tuple[str, ...] = ()
    """Conditions that must all hold: state=done dice>=0.9 lr<1e-3 model_file~unet; ~ is contains. Quote < and >."""
    csv: str = ""
    """Also write the table to this new file, with every setting that differs from its default."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    rows = leaderboard.read_rows(chosen.output_dir, leaderboard.said_elsewhere(chosen.queue))
    shown = leaderboard.ordered(leaderboard.kept(rows, chosen.filter), chosen.sort, chosen.reverse)
    print(leaderboard.text(shown) if shown else f"none of the {len(rows)} experiments in {chosen.output_dir}")
    if chosen.csv:
        leaderboard.write_table(shown, Path(chosen.csv))
        print(f"table: {chosen.csv}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
