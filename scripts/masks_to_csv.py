"""A folder of masks as a submission:

python scripts/masks_to_csv.py MASKS --output A.csv [--like SAMPLE.csv | --images FOLDER | --data_root ../data]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import HAND_BONES, ConfigProblem
from engine.files import FileProblem
from engine.flags import run_command
from engine.progress import progress
from inference.csv_images import ImageFlags

DESCRIPTION = """Write a submission from masks, <stem>/<class>.png or <stem>.npz for each image, as save_masks and
csv_to_masks.py write them.

Names and order of the images are those of --like or of the images; else every stem is <stem>.png, sorted. Exit codes: 0
done, 1 a file is wrong, 2 a flag is wrong."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    masks: tyro.conf.Positional[Path]
    """The folder of masks."""
    output: str = "submission.csv"
    """CSV to write; one that is there is never overwritten."""
    like: str = ""
    """A CSV of the same images, such as the sample submission: theirs are the names and the order."""
    image: tyro.conf.OmitArgPrefixes[ImageFlags] = field(default_factory=ImageFlags)
    """The images, whose names, order and sizes count."""
    classes: tuple[str, ...] = HAND_BONES
    """All classes, in the order of the rows."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    if chosen.like and chosen.image.given:
        raise ConfigProblem("like and the images both say which masks are written: give one of them.")
    from dataset.images import image_shape  # after --help, which must not wait for numba
    from inference.csv_masks import FolderMasks, by_name, draw_runs
    from inference.submission import SubmissionWriter
    from inference.submission_file import SubmissionFile

    records = by_name(chosen.image.records()) if chosen.image.given else {}
    names = SubmissionFile(chosen.like).names if chosen.like else tuple(records)
    source = FolderMasks(chosen.masks, chosen.classes, names)
    names = names or source.names
    for lacking, sentence in (
        (set(names) - set(source.names), "has no masks of image {!r} ({} in all): add them."),
        (set(source.names) - set(names), "has masks of {!r} ({} in all), which is no image here: remove them."),
    ):
        if lacking:
            raise FileProblem(f"{chosen.masks} {sentence.format(min(lacking), len(lacking))}")
    with SubmissionWriter(chosen.output, names, chosen.classes) as writer:
        for name in progress(names, "CSV", len(names), "images"):
            height, width = image_shape(records[name].image) if records else source.shape(name)
            writer.write(name, draw_runs(source.runs(name, height * width), chosen.classes, height, width))
    print(f"{chosen.output}: {len(names)} images, {len(names) * len(chosen.classes)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
