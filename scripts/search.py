"""Search for better settings: python scripts/search.py SPACE.py [--trials N] [--jobs 1] [--resume] [--report]."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import Config, ConfigProblem
from engine import settings
from engine.flags import run_command
from engine.space import read_space
from inference.settings import full_names

DESCRIPTION = """Search for better settings with Optuna; docs/search.md describes SPACE.py.

Every trial is an ordinary experiment, <study>-0000 and on, with its log in log/. Trials that fall behind are stopped.
Exit codes: 0 done, 1 a file is wrong or trials fail one after another, 2 a setting is wrong, 75 and 130 stopped and
resumable."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    space: tyro.conf.Positional[Path]
    """Python file with `space` and `base`."""
    trials: int = 50
    """Trials of the study in all; give more with --resume to go on."""
    jobs: int = 1
    """Trials at once."""
    seed: int | None = None
    """Of the sampling; 0 unless the study was begun with another."""
    sampler: Literal["tpe", "random"] | None = None
    """tpe unless the study was begun with another."""
    pruner: Literal["median", "halving", "none"] | None = None
    """What stops a trial: a best Dice below the others' median at that epoch (the default), successive halving, or
    nothing."""
    resume: bool = False
    """Go on with the study, and with the experiments that were running when it stopped."""
    report: bool = False
    """Show how the study stands, also while it runs."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    _check(chosen)
    space = read_space(chosen.space, complete)
    from engine import study as journal  # here: Optuna takes a second, which --help need not wait for

    if chosen.report:
        print(journal.report(journal.read_study(space), space))
        return 0
    from dataset.prepare import prepare_data
    from engine.search import Search

    given = {"seed": chosen.seed, "sampler": chosen.sampler, "pruner": chosen.pruner}
    with journal.open_study(space, chosen.resume, given) as (study, options):
        prepare_data(space.base)  # once: trials that run at the same time must not draw the same phantoms
        command = [sys.executable, "-u", str(Path(__file__).resolve().parent.parent / "run_exp.py")]
        code = Search(study, space, options, command, complete).run(chosen.trials, chosen.jobs)
        print(journal.report(study, space))
    return code


def _check(chosen: Flags) -> None:
    limits = {"trials": (1, 10000), "jobs": (1, 256), "seed": (0, 2**32 - 1)}
    values = {"trials": chosen.trials, "jobs": chosen.jobs, "seed": chosen.seed or 0}
    broken = [
        f"{name} is {values[name]}, but must lie between {low} and {high}."
        for name, (low, high) in limits.items()
        if not low <= values[name] <= high
    ]
    if broken:
        raise ConfigProblem("\n".join(broken))


def complete(cfg: Config) -> Config:
    """Settings with full names, checked.

    Raises:
        ConfigProblem: what a run would refuse before it reads any file.
    """
    settings.check(cfg)
    return full_names(cfg)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
