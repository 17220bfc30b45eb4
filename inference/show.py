"""The commands that draw labelled images of a data set on one page: scripts/show_samples.py and show_pairs.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from config import Config, ConfigProblem
from engine import settings
from engine.files import FileProblem
from engine.flags import run_command
from inference.layout_flags import LayoutFlags

if TYPE_CHECKING:
    from dataset.readers import Record
    from inference.panels import Picture

View = Literal["image", "mask", "overlay"]

MOST = 400
"""Images on a page."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    data_root: tyro.conf.Positional[Path]
    """Folder of the data set, in any layout (docs/data.md)."""
    split: str = "train"
    """Split of it."""
    count: int = 12
    """Images to show, drawn by chance."""
    seed: int = 0
    """Of the choice: another number shows other images."""
    names: tuple[str, ...] = ()
    """Show these images instead, by their file names, with or without extension."""
    classes: tuple[str, ...] = ()
    """All classes; empty takes those of the labels."""
    size: int = 320
    """Side of a picture, px (64 to 2048)."""
    output: str = ""
    """PNG to write; one that is there is replaced. Empty is the command's name.png."""
    data: tyro.conf.OmitArgPrefixes[LayoutFlags] = field(default_factory=LayoutFlags)
    """How files lie."""


def main(argv: list[str], description: str, name: str, views: Sequence[View], columns: int) -> int:
    """Run the command line; returns the exit code.

    Args:
        name: of the PNG, without extension.
        views: what is drawn of each image, one picture each, side by side.
        columns: images beside each other.
    """
    chosen = tyro.cli(Flags, args=argv, description=description, use_underscores=True)
    return run_command(lambda: _command(chosen, Path(chosen.output or f"{name}.png"), views, columns))


def _command(chosen: Flags, output: Path, views: Sequence[View], columns: int) -> int:
    if not 1 <= chosen.count <= MOST:
        raise ConfigProblem(f"count is {chosen.count}, but must lie between 1 and {MOST}.")
    if not 64 <= chosen.size <= 2048:
        raise ConfigProblem(f"size is {chosen.size}, but must lie between 64 and 2048.")
    import numpy as np  # after --help, which must not wait for it

    from dataset.layouts import AUTO, with_classes
    from inference import panels
    from inference.mask_files import write_png

    cfg = with_classes(settings.replace(chosen.data.config(chosen.data_root), {"classes": chosen.classes or AUTO}))
    records, classes = _records(cfg, chosen.split), cfg.data.classes
    shown = panels.chosen([record.name for record in records], chosen.names, chosen.count, chosen.seed)
    pictures = [panel for i in shown for panel in _pictures(records[i], classes, views, chosen.size)]
    page = panels.page(pictures, min(columns, len(shown)) * len(views))
    if len(classes) > 1:
        page = np.vstack([page, panels.legend(classes, page.shape[1])])
    write_png(output, page)
    print(f"{output}: {len(shown)} of {len(records)} images of {chosen.split}, {page.shape[1]} x {page.shape[0]} px")
    return 0


def _records(cfg: Config, split: str) -> list[Record]:
    """The images of a split, also those without label; what does not pair is told of."""
    from dataset.layouts import has_split, pair_split, read_split

    if not has_split(cfg, split):
        raise FileProblem(f"{cfg.data.data_root} has no split {split}: give another --split.")
    pairs = pair_split(cfg, split)
    if not pairs.records:
        return read_split(cfg, split)  # raises: says what was looked for
    lacking = (len(pairs.unlabelled), len(pairs.lone_labels), len(pairs.faults))
    if any(lacking):
        print(
            "{} images without label, {} labels without image, {} labels in doubt: scripts/check_pairs.py lists "
            "them.".format(*lacking),
            file=sys.stderr,
        )
    return pairs.records


def _pictures(record: Record, classes: Sequence[str], views: Sequence[View], size: int) -> list[Picture]:
    """The views of one image; without a label the image alone, and empty ones."""
    from dataset.images import read_image
    from dataset.labels import read_label
    from inference.overlay import draw_overlay
    from inference.panels import draw_masks, framed

    image = read_image(record.image)
    if record.label is None:
        return [framed(image if i == 0 else image * 0, size, f"{record.name}: no label") for i in range(len(views))]
    bits = read_label(record, classes, *image.shape)
    first, *others = record.label_files
    title = record.name if len(views) == 1 else first.name + (f" and {len(others)} more" if others else "")
    drawn = {
        "image": lambda: framed(image, size, record.name),
        "mask": lambda: framed(draw_masks(bits, len(classes)), size, title),
        "overlay": lambda: framed(draw_overlay(image, bits, classes), size, title if len(views) == 1 else ""),
    }
    return [drawn[view]() for view in views]
