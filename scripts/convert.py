"""Labels from one format to another:

python scripts/convert.py ../data out/Dataset101_Hand --source_format data --target_format nnunet --splits train test
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import ConfigProblem
from engine.files import FileProblem
from engine.flags import run_command
from engine.progress import progress
from inference.layout_flags import LayoutFlags

if TYPE_CHECKING:
    from engine.conversions.labelled import Losses, Source, Target

DESCRIPTION = """Convert labels, with their images, into a new folder (or CSV), which is there whole or not at all.

Formats: data is any layout that trains here (competition, pairs, mask_per_class, labelme); masks is <stem>/<class>.png
or <stem>.npz as save_masks writes them; csv the leaderboard's; coco an instances JSON; yolo a YOLO-seg folder with
data.yaml; nnunet a folder DatasetXXX_Name. Masks come through exactly. What a format can't hold is an error, unless
--lossy. docs/convert.md says what that is. Exit codes: 0 done, 1 a file is wrong, 2 a flag is wrong."""

WITHOUT_SPLITS = ("masks", "csv", "coco")
"""Sources that are one split."""
IN_ONE_FOLDER = ("labelme", "masks", "csv")
"""Targets that can't tell splits apart."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    source: tyro.conf.Positional[Path]
    """Folder, JSON or CSV to convert."""
    target: tyro.conf.Positional[Path]
    """New folder, or CSV; one that is there is never overwritten."""
    source_format: Literal["data", "masks", "csv", "coco", "yolo", "nnunet"]
    """What the source is."""
    target_format: Literal["competition", "labelme", "masks", "csv", "coco", "yolo", "nnunet"]
    """What the target will be."""
    splits: tuple[str, ...] = ("train",)
    """Splits of the source; for masks, csv and coco, what the target calls the images."""
    classes: tuple[str, ...] = ()
    """All classes in their order; empty takes the source's own, of masks those of the hand."""
    images: str = ""
    """Folder of the images, for the sources masks, csv and coco."""
    image_files: Literal["copy", "link", "none"] = "copy"
    """What becomes of images: copied, linked to, or left out. masks and csv never hold any."""
    coco_polygons: bool = False
    """Write COCO polygons, along the pixels' edges, instead of run lengths."""
    lossy: bool = False
    """Go on where something can't be kept, and say what it was."""
    data: tyro.conf.OmitArgPrefixes[LayoutFlags] = field(default_factory=LayoutFlags)
    """Of the source format data."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    _check(chosen)
    from engine.conversions.labelled import Losses  # after --help, which must not wait for OpenCV
    from inference.mask_files import check_new

    check_new(chosen.target)
    losses = Losses(chosen.lossy)
    source = _source(chosen, losses)
    if chosen.target_format == "csv":
        _write_csv(chosen.target, source)
    else:
        _write_folder(chosen, source, losses)
    print(f"{chosen.target}: {len(source.names)} images, {len(source.classes)} classes")
    for what, count in losses.found.items():
        print(f"lost: {what} ({count} times)")
    return 0


def _check(chosen: Flags) -> None:
    if not chosen.splits or len(set(chosen.splits)) < len(chosen.splits):
        raise ConfigProblem(f"splits is {chosen.splits}, but must name one split or more, each once.")
    for name, formats in ((chosen.source_format, WITHOUT_SPLITS), (chosen.target_format, IN_ONE_FOLDER)):
        if name in formats and len(chosen.splits) > 1:
            raise ConfigProblem(f"splits names {len(chosen.splits)}, but {name} can't tell them apart: convert each.")
    if chosen.images and chosen.source_format not in WITHOUT_SPLITS:
        raise ConfigProblem(f"images is for masks, csv and coco; {chosen.source_format} holds its own: leave it out.")
    if chosen.source_format in ("masks", "csv") and chosen.source.is_file() != (chosen.source_format == "csv"):
        raise ConfigProblem(f"source is {chosen.source}, but masks must be a folder and csv a file: give the other.")
    if chosen.images and not Path(chosen.images).is_dir():
        raise ConfigProblem(f"images is {chosen.images}, but must be the folder of the images.")
    if chosen.coco_polygons and chosen.target_format != "coco":
        raise ConfigProblem(f"coco_polygons has no effect on {chosen.target_format}: leave it out.")


def _source(chosen: Flags, losses: Losses) -> Source:
    from dataset.images import image_shape
    from engine.conversions.coco import CocoSource
    from engine.conversions.nnunet import NnunetSource
    from engine.conversions.yolo import YoloSource
    from inference.conversions import DataSource, MaskedSource

    path, splits, classes = chosen.source, chosen.splits, chosen.classes
    images = Path(chosen.images) if chosen.images else None
    if chosen.source_format == "data":
        return DataSource(chosen.data.config(path), splits, classes)
    if chosen.source_format == "coco":
        return CocoSource(path, images, splits[0], classes, losses)
    if chosen.source_format == "yolo":
        return YoloSource(path, splits, classes, image_shape, losses)
    if chosen.source_format == "nnunet":
        return NnunetSource(path, splits, classes, losses)
    return MaskedSource(path, images, splits[0], classes)


def _target(chosen: Flags, folder: Path, classes: Sequence[str], losses: Losses) -> Target:
    from dataset.images import read_image
    from engine.conversions.coco import CocoTarget
    from engine.conversions.competition import CompetitionTarget
    from engine.conversions.labelme import LabelmeTarget
    from engine.conversions.nnunet import NnunetTarget
    from engine.conversions.yolo import YoloTarget
    from inference.conversions import MaskTarget

    how = chosen.image_files
    if chosen.target_format == "coco":
        return CocoTarget(folder, classes, how, chosen.coco_polygons)
    if chosen.target_format == "nnunet":
        return NnunetTarget(folder, chosen.target.name, classes, how, read_image, losses)
    if chosen.target_format == "labelme":
        return LabelmeTarget(folder, how)
    if chosen.target_format == "masks":
        return MaskTarget(folder, classes)
    return (YoloTarget if chosen.target_format == "yolo" else CompetitionTarget)(folder, classes, how)


def _write_folder(chosen: Flags, source: Source, losses: Losses) -> None:
    from dataset.images import image_shape
    from inference.csv_masks import unique_stems
    from inference.mask_files import whole_folder

    if chosen.target_format == "masks":
        unique_stems(source.names, chosen.source)
    with whole_folder(chosen.target) as folder:
        target, labels = _target(chosen, folder, source.classes, losses), dict[tuple[str, str], str]()
        for image in progress(source, "images", len(source.names), "images"):
            other = labels.setdefault((image.split, str(PurePosixPath(image.name).with_suffix(""))), image.name)
            if other != image.name and chosen.target_format != "coco":
                raise FileProblem(f"{other!r} and {image.name!r} would share one label file: rename one.")
            shape = image_shape(image.image) if image.image and chosen.image_files != "none" else None
            if shape not in (None, (image.height, image.width)):
                raise FileProblem(
                    f"{image.image} is {shape[1]} x {shape[0]} px, but its labels are of {image.width} x "
                    f"{image.height}: give the images that were labelled."
                )
            target.add(image)
        target.finish()


def _write_csv(target: Path, source: Source) -> None:
    from inference.conversions import bits_of
    from inference.submission import SubmissionWriter

    names = [PurePosixPath(name).name for name in source.names]
    with SubmissionWriter(target, names, source.classes) as writer:
        for image in progress(source, "images", len(source.names), "images"):
            writer.write(PurePosixPath(image.name).name, bits_of(image, source.classes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
