"""Pictures of a submission's masks on their images:

python scripts/visualize_csv.py A.csv --data_root ../data [--split test] [--output overlays] [--limit 20] [--names …]
python scripts/visualize_csv.py A.csv --images FOLDER --against B.csv
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import ConfigProblem, suggest
from engine.files import FileProblem
from engine.flags import run_command
from engine.progress import progress
from inference.csv_images import ImageFlags

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dataset.readers import Record
    from inference.csv_masks import MaskSource

DESCRIPTION = """Draw the outlines of a submission's masks on the images, one PNG for each; with --against, beside those
of another submission or of labels, with the Dice between the two.

The folder is there whole or not at all. Exit codes: 0 done, 1 a file is wrong, 2 a flag is wrong."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    csv: tyro.conf.Positional[Path]
    """The submission CSV."""
    image: tyro.conf.OmitArgPrefixes[ImageFlags] = field(default_factory=ImageFlags)
    """The images."""
    against: str = ""
    """Drawn to the left: a CSV, a folder of masks, or a competition tree, whose labels of --split are taken."""
    output: str = "overlays"
    """New folder."""
    names: tuple[str, ...] = ()
    """Images to draw, by their names in the CSV; none means all."""
    limit: int = 0
    """Draw the first so many; 0 draws all."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    if chosen.limit < 0:
        raise ConfigProblem(f"limit is {chosen.limit}, but must be 0 or more.")
    # After --help, which must not wait for OpenCV.
    from inference.csv_masks import CsvMasks, by_name, open_masks, unique_stems
    from inference.mask_files import whole_folder, write_png

    records = by_name(chosen.image.records())
    source = CsvMasks(chosen.csv)
    names = _chosen_names(chosen, source.names)
    sources: list[MaskSource] = [source]
    if chosen.against:
        sources.insert(0, open_masks(Path(chosen.against), chosen.image.split, source.classes, source.names))
    for names_there, where in (*((s.names, s.path) for s in sources), (tuple(records), "the images given")):
        if lacking := set(names).difference(names_there):
            raise FileProblem(f"{min(lacking)!r} ({len(lacking)} in all) is not in {where}: leave it out by --names.")
    stems = unique_stems(names, chosen.csv)
    with whole_folder(Path(chosen.output)) as folder:
        for stem, name in progress(stems.items(), "pictures", len(stems), "images"):
            write_png(folder / f"{stem}.png", _picture(records[name], sources))
    print(f"{chosen.output}: {len(stems)} pictures")
    return 0


def _chosen_names(chosen: Flags, known: Sequence[str]) -> tuple[str, ...]:
    for name in chosen.names:
        if name not in known:
            raise ConfigProblem(f"names: {name!r} is no image of {chosen.csv}{suggest(name, known)}.")
    return tuple(chosen.names or known)[: chosen.limit or None]


def _picture(record: Record, sources: Sequence[MaskSource]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 BGR: the image with the masks of each source, side by side; of two, with their Dice."""
    import numpy as np

    from dataset.images import read_image
    from inference.csv_masks import draw_runs
    from inference.csv_scores import count_runs
    from inference.metrics import dice_from_counts
    from inference.overlay import draw_overlay

    image = read_image(record.image)
    masks = [source.runs(record.name, image.size) for source in sources]
    classes, titles = sources[-1].classes, [source.title for source in sources]
    if len(masks) == 2:
        dice = dice_from_counts(count_runs(masks[1], masks[0]))
        titles[1] += f": Dice {dice.mean():.4f}, least {classes[int(dice.argmin())]} {dice.min():.4f}"
    drawn = [draw_runs(runs, classes, *image.shape) for runs in masks]
    return np.hstack([draw_overlay(image, bits, classes, title) for bits, title in zip(drawn, titles, strict=True)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
