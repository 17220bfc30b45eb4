"""Everything that is wrong with a submission, before it is uploaded:

python scripts/check_csv.py A.csv --data_root ../data [--split test] [--areas ../data]
python scripts/check_csv.py A.csv --like sample_submission.csv --height 2048 --width 2048
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import HAND_BONES, ConfigProblem
from engine.flags import run_command
from inference.csv_images import ImageFlags

if TYPE_CHECKING:
    from inference.csv_check import Report, Rules

DESCRIPTION = """List all that is wrong with a submission: each finding with its line, image and class.

Faults: images or classes that are missing, unknown, repeated or out of order, and runs that are not sorted, overlap or
end outside of the image. Warnings: empty masks, runs that look like those of an image of another width, and with
--areas, areas far from the training labels': beyond 3 interquartile ranges of their logarithm from the quartiles
(Tukey's outer fence), and by a factor of 2 at least. Where the images are given, they say which must be there, in which
order, and their sizes. Exit codes: 0 no faults, 1 faults or a file is wrong, 2 a flag is wrong."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    csv: tyro.conf.Positional[Path]
    """The submission CSV."""
    image: tyro.conf.OmitArgPrefixes[ImageFlags] = field(default_factory=ImageFlags)
    """The images that the CSV is for."""
    like: str = ""
    """A CSV with the expected images in their order, such as the sample submission, where there are no images."""
    height: int = 0
    """Height of all images, px, where there are none; 0: runs may end anywhere."""
    width: int = 0
    """Width of all images, px."""
    classes: tuple[str, ...] = HAND_BONES
    """The classes that must be there, in order."""
    areas: str = ""
    """Labels whose areas are usual: a competition tree (its training labels), a CSV, or a folder of masks."""
    json: bool = False
    """Print the findings as JSON."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    if chosen.image.given and (chosen.like or chosen.height or chosen.width):
        raise ConfigProblem("the images say names and sizes already: leave --like, --height and --width out.")
    if min(chosen.height, chosen.width) < 0 or (chosen.height > 0) != (chosen.width > 0):
        raise ConfigProblem(f"the size is {chosen.width} x {chosen.height} px: give both --height and --width.")
    from inference.csv_check import check_submission  # after --help, which must not wait for numba

    report = check_submission(chosen.csv, _rules(chosen))
    if chosen.json:
        print(json.dumps(dataclasses.asdict(report), ensure_ascii=False, indent=2))
    else:
        _print(chosen.csv, report)
    return 1 if report.faults else 0


def _rules(chosen: Flags) -> Rules:
    from dataset.images import image_shape
    from inference.csv_check import Rules, usual_areas
    from inference.csv_masks import by_name, open_masks
    from inference.submission_file import SubmissionFile

    areas = usual_areas(open_masks(Path(chosen.areas), "train", chosen.classes)) if chosen.areas else None
    if chosen.image.given:
        sizes = {name: image_shape(record.image) for name, record in by_name(chosen.image.records()).items()}
        return Rules(chosen.classes, tuple(sizes), sizes, areas)
    names = SubmissionFile(chosen.like).names if chosen.like else None
    return Rules(chosen.classes, names, (chosen.height, chosen.width) if chosen.height else None, areas)


def _print(path: Path, report: Report) -> None:
    for finding in report.findings:
        print(f"{finding.severity}: {finding}")
    faults = len(report.faults)
    print(
        f"{path}: {report.images} images, {report.rows} rows ({report.empty} empty masks), {report.runs} runs; "
        f"{faults} faults, {len(report.findings) - faults} warnings"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
