"""A page about a data set, that opens from the file system:

python scripts/eda.py --data_root ../data [--out eda_report] [--worst 20 | --all]
python scripts/eda.py --preset smoke
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from config import Config, ConfigProblem
from engine import flags, settings

DESCRIPTION = """Write one folder with an index.html about a data set in any layout: counts, sizes, grey values, areas,
overlaps and positions of the classes, the table of subjects, and what looks wrong, with a viewer of these images.

Takes every setting of run_exp.py; without --classes they are those of the labels. --workers processes measure, by
default one for each core. A page that lies at --out is replaced, anything else never is. Exit codes: 0 done, 1 a file
is wrong, 2 a flag is wrong."""


@dataclass(frozen=True)
class Commands:
    """Flags that are no settings."""

    out: str = "eda_report"
    """Folder to write."""
    worst: int = 20
    """Images that the viewer holds: the suspicious ones first, then those that are farthest from the usual."""
    all: bool = False
    """Hold all images."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    parsed, commands = flags.parse(argv, Commands, DESCRIPTION)
    cfg = parsed.cfg if "classes" in parsed.sources else settings.replace(parsed.cfg, {"classes": ("auto",)})
    workers = cfg.train.workers if parsed.sources.get("workers") == "flag" else os.cpu_count() or 1
    return flags.run_command(lambda: _command(cfg, commands, workers))


def _command(cfg: Config, commands: Commands, workers: int) -> int:
    settings.check(cfg)
    if commands.worst < 1:
        raise ConfigProblem(f"worst is {commands.worst}, but must be 1 or more; --all holds all images.")
    from dataset.prepare import prepare_data  # after --help, which must not wait for numba
    from report.eda import explore, write_eda
    from report.page import check_output

    check_output(Path(commands.out))
    prepare_data(cfg)
    found = explore(cfg, workers)
    index = write_eda(Path(commands.out), found, None if commands.all else commands.worst)
    images = {one.image for one in found.suspects if one.image}
    print(f"suspicious: {len(found.suspects)} findings in {len(images)} of {len(found.items)} images")
    print(f"page:       {index}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
