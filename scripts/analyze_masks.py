"""What masks look like, as numbers: for thresholds, post-processing and rules of what is plausible.

python scripts/analyze_masks.py ../data [--mask_dir masks_manual] [--csv MASKS.csv]
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from engine.flags import run_command
from engine.progress import progress
from inference.layout_flags import LayoutFlags

if TYPE_CHECKING:
    from engine.conversions.labelled import Source
    from engine.conversions.shapes import Runs

DESCRIPTION = """Areas, components and positions of the masks of each class, over all images. Masks come from a data set
in any layout (docs/data.md), from a folder as save_masks writes it, or from a CSV with --images.

Shares are of the image's area, width and height, positions from the top left corner. Components are 8-connected. Exit
codes: 0 done, 1 a file is wrong, 2 a flag is wrong."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    masks: tyro.conf.Positional[Path]
    """Data set, folder of masks, or CSV."""
    split: str = "train"
    """Split of the data set."""
    classes: tuple[str, ...] = ()
    """All classes; empty takes those of the labels, of a folder of masks those of the hand."""
    images: str = ""
    """Folder of the images, for a CSV."""
    csv: str = ""
    """New file for all numbers, a row for each image and class."""
    data: tyro.conf.OmitArgPrefixes[LayoutFlags] = field(default_factory=LayoutFlags)
    """Of a data set."""


@dataclass(frozen=True)
class Numbers:
    """Of one class in one image; positions and `largest` are None where it is not seen."""

    area: int
    """px."""
    area_frac: float
    components: int
    largest: float | None
    """Share of the area that is the largest component's."""
    top: float | None
    """Of the box, as shares, with the next three."""
    bottom: float | None
    left: float | None
    right: float | None
    cy_rel: float | None
    """Centre of mass."""
    cx_rel: float | None


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    from engine.conversions.shapes import runs_of  # after --help, which must not wait for OpenCV
    from engine.files import atomic_path
    from inference.csv_scores import check_new_table

    check_new_table(chosen.csv)
    source = _source(chosen)
    rows: defaultdict[str, dict[str, Numbers]] = defaultdict(dict)
    for image in progress(source, "masks", len(source.names), "images"):
        for label in source.classes:
            runs = runs_of(image.seen.get(label, ()), image.height, image.width)
            rows[label][image.name] = measure(runs, image.height, image.width)
    print(table({label: list(of_class.values()) for label, of_class in rows.items()}))
    if chosen.csv:
        with atomic_path(chosen.csv, overwrite=False) as temporary:
            _write(temporary, source, rows)
        print(f"all numbers: {chosen.csv}")
    return 0


def _source(chosen: Flags) -> Source:
    from dataset.layouts import is_data
    from inference.conversions import DataSource, MaskedSource

    if is_data(cfg := chosen.data.config(chosen.masks)):
        return DataSource(cfg, [chosen.split], chosen.classes)
    return MaskedSource(chosen.masks, Path(chosen.images) if chosen.images else None, chosen.split, chosen.classes)


def measure(runs: Runs, height: int, width: int) -> Numbers:
    """The numbers of one mask in an image of that size, px."""
    import cv2
    import numpy as np

    from engine.conversions.shapes import box_of

    plane, top, left = box_of(runs, width)
    if not plane.size:
        return Numbers(0, 0.0, 0, *(None,) * 7)
    count, _, stats, _ = cv2.connectedComponentsWithStats(plane, connectivity=8)
    area, (high, wide) = int(plane.sum(dtype=np.int64)), plane.shape
    cy, cx = (float(np.arange(plane.shape[axis]) @ plane.sum(1 - axis, dtype=np.int64)) / area + 0.5 for axis in (0, 1))
    return Numbers(
        area,
        area / (height * width),
        count - 1,
        int(stats[1:, cv2.CC_STAT_AREA].max()) / area,
        top / height,
        (top + high) / height,
        left / width,
        (left + wide) / width,
        (top + cy) / height,
        (left + cx) / width,
    )


def table(by_class: Mapping[str, Sequence[Numbers]]) -> str:
    """A line each class: in how many images, areas, components, the extremes of positions and the mean centre."""
    width = max(map(len, ("class", *by_class)))
    lines = [
        f"{'class':<{width}}  images        area px  (min .. max)             area %  components  most"
        "    top .. bottom     left .. right    centre y, x"
    ]
    for label, numbers in by_class.items():
        seen = [n for n in numbers if n.area]
        lines.append(f"{label:<{width}}  {len(seen):6}  " + (_line(seen) if seen else "in no image"))
    return "\n".join(lines)


def _line(seen: Sequence[Numbers]) -> str:
    def mean(values: Iterable[float | None]) -> float:
        return sum(value or 0.0 for value in values) / len(seen)

    areas, shares = [n.area for n in seen], [n.area_frac for n in seen]
    low = min(n.top or 0.0 for n in seen), max(n.bottom or 0.0 for n in seen)
    wide = min(n.left or 0.0 for n in seen), max(n.right or 0.0 for n in seen)
    return (
        f"{mean(areas):13.1f}  ({min(areas)} .. {max(areas)})".ljust(38)
        + f"{100 * mean(shares):9.4f}  {mean(n.components for n in seen):10.2f}  {max(n.components for n in seen):4}"
        + f"  {low[0]:.3f} .. {low[1]:.3f}  {wide[0]:.3f} .. {wide[1]:.3f}"
        + f"   {mean(n.cy_rel for n in seen):.3f}, {mean(n.cx_rel for n in seen):.3f}"
    )


def _write(path: Path, source: Source, rows: Mapping[str, Mapping[str, Numbers]]) -> None:
    """A row for each image and class, images first."""
    import csv

    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "class", *(field.name for field in fields(Numbers))])
        for name in source.names:
            for label in source.classes:
                values = astuple(rows[label][name])
                writer.writerow([name, label, *(f"{v:.6f}" if isinstance(v, float) else v for v in values)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
