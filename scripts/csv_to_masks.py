"""A submission as a folder of masks:

python scripts/csv_to_masks.py A.csv --output masks [--format class|packed] [--images FOLDER | --data_root ../data]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import ConfigProblem
from engine.files import FileProblem
from engine.flags import run_command
from engine.progress import progress
from inference.csv_images import ImageFlags

DESCRIPTION = """Write the masks of a submission as a folder, as inference does with save_masks: for --pseudo, for other
programs, or to change them and go back with masks_to_csv.py.

The folder is there whole or not at all. Exit codes: 0 done, 1 a file is wrong, 2 a flag is wrong."""

SIZE = 2048
"""Height and width of the competition's images, px."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    csv: tyro.conf.Positional[Path]
    """The submission CSV."""
    output: str = "masks"
    """New folder."""
    format: Literal["class", "packed"] = "class"
    """class: <stem>/<class>.png, 0 and 255. packed: <stem>.npz with packed words, a tenth of the bytes."""
    image: tyro.conf.OmitArgPrefixes[ImageFlags] = field(default_factory=ImageFlags)
    """Images that tell their sizes, where they differ."""
    height: int = SIZE
    """Of all images, px, where none are given."""
    width: int = SIZE
    """Of all images, px, where none are given."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    if min(chosen.height, chosen.width) < 1:
        raise ConfigProblem(f"the size is {chosen.width} x {chosen.height} px: height and width must be above 0.")
    if chosen.image.given and (chosen.height, chosen.width) != (SIZE, SIZE):
        raise ConfigProblem("the images tell their sizes already: leave --height and --width out.")
    from inference.csv_masks import CsvMasks, draw_runs, unique_stems  # after --help, which must not wait for numba
    from inference.mask_files import whole_folder, write_masks

    output, source = Path(chosen.output), CsvMasks(chosen.csv)
    stems, shape_of = unique_stems(source.names, chosen.csv), _shapes(chosen)
    with whole_folder(output) as folder:
        for stem, name in progress(stems.items(), "masks", len(stems), "images"):
            height, width = shape_of(name)
            bits = draw_runs(source.runs(name, height * width), source.classes, height, width)
            write_masks(folder, stem, bits, source.classes, chosen.format)
    print(f"{output}: masks of {len(stems)} images, {len(source.classes)} classes")
    return 0


def _shapes(chosen: Flags) -> Callable[[str], tuple[int, int]]:
    """Height and width of an image by its name."""
    if not chosen.image.given:
        return lambda name: (chosen.height, chosen.width)
    from dataset.images import image_shape
    from inference.csv_masks import by_name

    records = by_name(chosen.image.records())

    def shape(name: str) -> tuple[int, int]:
        if name not in records:
            raise FileProblem(f"{chosen.csv} holds {name!r}, which is none of the images given: give all of them.")
        return image_shape(records[name].image)

    return shape


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
