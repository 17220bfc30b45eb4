"""A page about experiments, or about CSVs, that opens from the file system:

python scripts/report.py EXP [EXP2 …] [--split val] [--worst 20 | --all] [--output FOLDER]
python scripts/report.py --csv A.csv [B.csv] --data_root ../data
python scripts/report.py --csv A.csv --images FOLDER
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import ConfigProblem, Run, also
from engine.flags import run_command
from inference.csv_images import ImageFlags

if TYPE_CHECKING:
    from report.sources import Source

DESCRIPTION = """Write one folder with an index.html: settings, curves, Dice per class, thresholds, time, and a viewer
of the worst images with all overlapping masks. Several experiments or CSVs are shown side by side.

It needs no server, account or network. A report that lies at --output is replaced, anything else never is. Exit codes:
0 done, 1 a file is wrong, 2 a flag is wrong."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    experiments: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of experiments, or their folders."""
    output_dir: Path = Path(Run().output_dir)
    """Folder of the experiments."""
    csv: tuple[Path, ...] = ()
    """Submission CSVs instead of experiments; labels of data_root are shown where there are some."""
    split: Literal["auto", "train", "val", "test"] = "auto"
    """Which predictions of experiments: val (out of fold) or test; auto is val where all have predicted it. Of CSVs the
    split of data_root that they predict; auto is test."""
    data_root: Annotated[str, also("data_dir")] = ""
    """Folder of the competition tree, where experiments don't know it or it was moved."""
    images: str = ""
    """Images of the CSVs, instead of data_root: a file or a folder."""
    worst: int = 20
    """Images to hold, those with the lowest Dice first; the first ones where there are no labels."""
    all: bool = False
    """Hold all images."""
    serve: bool = False
    """Then serve it on this machine (127.0.0.1), where the page also predicts new images with the experiments given, or
    else all of output_dir; until Ctrl-C."""
    port: int = 8000
    """Of --serve; 0 takes a free one."""
    output: str = ""
    """Folder to write; empty is EXP/report, EXP/report-EXP2, or of CSVs A-report, A-B-report here."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    if chosen.worst < 1:
        raise ConfigProblem(f"worst is {chosen.worst}, but must be 1 or more; --all holds all images.")
    if not 0 <= chosen.port <= 65535:
        raise ConfigProblem(f"port is {chosen.port}, but must lie between 0 and 65535.")
    if bool(chosen.experiments) == bool(chosen.csv):
        said = "both are given" if chosen.csv else "neither is given"
        raise ConfigProblem(f"a report is about experiments or about csv, but {said}: give one of them.")
    from report.page import check_output, write_report  # after --help, which must not wait for numba

    folders = [_folder(name, chosen.output_dir) for name in chosen.experiments]
    output = Path(chosen.output) if chosen.output else _default_output(folders, chosen.csv)
    check_output(output)
    sources = _of_experiments(folders, chosen) if folders else _of_csvs(chosen)
    index = write_report(output, sources, None if chosen.all else chosen.worst)
    print(f"report:     {index}")
    return _serve(output, folders, chosen) if chosen.serve else 0


def _serve(output: Path, folders: list[Path], chosen: Flags) -> int:
    from report.serve import Server, checkpoints

    everyone = sorted(path for path in chosen.output_dir.glob("*") if path.is_dir())
    with Server(output, chosen.port, checkpoints(folders or everyone)) as server:
        tunnel = f"ssh -L {server.server_port}:127.0.0.1:{server.server_port} HOST"
        print(f"serving:    {server.address} (from another machine: {tunnel})", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def _folder(name: str, output_dir: Path) -> Path:
    return Path(name) if (Path(name) / "config.json").exists() else output_dir / name


def _default_output(folders: list[Path], csvs: tuple[Path, ...]) -> Path:
    if folders:
        return folders[0] / "-".join(["report", *(folder.name for folder in folders[1:])])
    return Path("-".join([*(csv.stem for csv in csvs), "report"]))


def _of_experiments(folders: list[Path], chosen: Flags) -> list[Source]:
    from report.sources import experiments

    if chosen.split == "train" or chosen.images:
        raise ConfigProblem("split train and images are for csv: experiments have predicted val or test.")
    return experiments(folders, chosen.split, chosen.data_root)


def _of_csvs(chosen: Flags) -> list[Source]:
    from report.sources import csvs

    split = "test" if chosen.split == "auto" else chosen.split
    return csvs(chosen.csv, ImageFlags(chosen.data_root, split, chosen.images).records())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
