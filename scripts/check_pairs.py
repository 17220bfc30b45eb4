"""Look at every image and label of a data set and list all that is wrong: missing partners, unreadable, empty masks:

python scripts/check_pairs.py --data_root DATA [--layout pairs] [--mask_dir masks_manual] [--csv faults.csv]
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from config import Config
from engine import flags, settings
from engine.files import FileProblem

DESCRIPTION = """List images without label and labels without image, files that can't be read, masks that are empty, of
another size or of several classes, double images, and subjects in two splits: of all splits, in any layout.

Takes every setting of run_exp.py; without --classes they are those of the labels. run_exp.py looks in the same way
before it trains. Exit codes: 0 nothing is wrong that training can't take, 1 something is, 2 a flag is wrong."""


@dataclass(frozen=True)
class Commands:
    """Flags that are no settings."""

    csv: str = ""
    """New CSV for the list, severity,kind,path,detail."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    parsed, commands = flags.parse(argv, Commands, DESCRIPTION)
    cfg = parsed.cfg if "classes" in parsed.sources else settings.replace(parsed.cfg, {"classes": ("auto",)})
    return flags.run_command(lambda: _command(cfg, commands.csv))


def _command(cfg: Config, csv: str) -> int:
    from dataset.check import check_data, table, write_bad_files  # after --help, which must not wait for numba
    from dataset.layouts import SPLITS, find_layout, has_split, pair_split, with_classes

    if csv and Path(csv).exists():
        raise FileProblem(f"{csv} exists and is never overwritten: move it away or choose another --csv.")
    cfg = with_classes(cfg)
    data, root = cfg.data, Path(cfg.data.data_root)
    splits = [split for split in SPLITS if has_split(cfg, split)]
    pairs = {split: pair_split(cfg, split) for split in splits}
    alike = find_layout(cfg) == "competition"
    verdict = check_data(
        root, data.classes, None, None, os.cpu_count() or 1, pairs=pairs, exclude=data.exclude, alike=alike
    )
    print(table(verdict, len(verdict.faults)))
    if csv:
        write_bad_files(Path(csv), verdict)
        print(f"list: {csv}")
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
