"""A folder of unlabelled images -> masks of one class and overlays, and statistics that say which masks may train.

What scripts/predict_all_raw.py and scripts/predict_unet_small.py have in common: they differ in names and defaults.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from config import Config, ConfigProblem
from engine import settings
from engine.files import FileProblem, atomic_path
from engine.progress import progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from model.checkpoint import Trained


@dataclass(frozen=True)
class RawFlags:
    """The command line of both."""

    exp_name: str = "ultrasound"
    """Experiment whose best weights predict."""
    output_dir: str = "checkpoints"
    """Folder of all experiments."""
    checkpoint: str = ""
    """Weights, instead of the experiment's."""
    data_root: str = ""
    """Folder of the data, in which results lie too; empty takes the one that the network was trained on."""
    raw_dir: str = "raw_unlabelled"
    """Folder in it of the images to predict."""
    suffix: str = ""
    """Behind the names of all results: another round needs another one."""
    band: tuple[float, float] = (0.1, 0.9)
    """Share of the height, from and to, counted from the top, in which bone may lie."""
    min_area_frac: float = 0.001
    """Share of the image's area; smaller components are removed."""
    fall_back: bool = True
    """Where both leave nothing, take the largest component of what the network has found."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""

    def steps(self) -> tuple[str, ...]:
        """What they mean as post-processing.

        Raises:
            ConfigProblem: a number is out of range.
        """
        low, high = self.band
        if not 0 <= low < high <= 1:
            raise ConfigProblem(f"band is {low:g} {high:g}, but must be two shares of the height that rise: 0.1 0.9.")
        if not 0 <= self.min_area_frac < 1:
            raise ConfigProblem(f"min_area_frac is {self.min_area_frac:g}, but must be 0 or more and below 1.")
        last = ("or_largest",) if self.fall_back else ()
        return f"cut_top={low:g}", f"cut_bottom={1 - high:g}", f"area_frac={self.min_area_frac:g}", *last


@dataclass(frozen=True)
class PseudoFlags(RawFlags):
    """The same for masks that train."""

    exp_name: str = "ultrasound_small"
    """Experiment whose best weights predict."""
    suffix: str = "_small"
    """Behind the names of all results: another round needs another one."""
    plausible: tuple[float, float] = (0.015, 0.13)
    """Share of the image's area, from and to, that a plausible mask has; scripts/analyze_masks.py says yours."""

    def is_plausible(self, area_frac: float) -> bool:
        """Whether a mask of this share of the image's area may train."""
        return self.plausible[0] <= area_frac <= self.plausible[1]


class Numbers(NamedTuple):
    """What the statistics say of a mask."""

    filename: str
    area_frac: float
    """Share of the image's area."""
    cy_rel: float | None
    """Centre of mass as shares of height and width, from the top left corner; None where the mask is empty."""
    cx_rel: float | None


def predict_all(chosen: RawFlags) -> int:
    """Write masks_pred/ and overlays_pred/ into the data's folder; returns the exit code."""
    trained, root = _opened(chosen)
    _predict(chosen, trained, root, (f"masks_pred{chosen.suffix}", f"overlays_pred{chosen.suffix}"))
    return 0


def predict_pseudo(chosen: PseudoFlags) -> int:
    """Write masks_pseudo/, overlays_pseudo/ and pseudo_stats.csv into the data's folder; returns the exit code."""
    from dataset.pseudo import masks_of_stats  # after --help, which must not wait for OpenCV

    low, high = chosen.plausible
    if not 0 <= low < high <= 1:
        raise ConfigProblem(f"plausible is {low:g} {high:g}, but must be two shares of the area that rise: 0.015 0.13.")
    trained, root = _opened(chosen)
    stats = root / f"pseudo_stats{chosen.suffix}.csv"
    _check_new(stats)
    found = _predict(chosen, trained, root, (masks_of_stats(stats).name, f"overlays_pseudo{chosen.suffix}"))
    write_stats(stats, found, chosen)  # last: where it is there, all is
    count = sum(map(chosen.is_plausible, (numbers.area_frac for numbers in found)))
    print(f"{count} of {len(found)} masks are plausible: {stats}\nto train on them: --pseudo {stats}")
    return 0


def write_stats(path: Path, found: Sequence[Numbers], chosen: PseudoFlags) -> None:
    """Write filename,area_frac,cy_rel,cx_rel,plausible (1 or 0); the centre of an empty mask is left empty.

    Raises:
        FileProblem: the file exists.
    """
    from dataset.pseudo import STATS_HEADER

    with atomic_path(path, overwrite=False) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(STATS_HEADER)
        for name, *numbers in found:
            shown = ["" if number is None else f"{number:.6f}" for number in numbers]
            writer.writerow([name, *shown, int(chosen.is_plausible(float(shown[0])))])


def measure(filename: str, mask: NDArray[np.bool_]) -> Numbers:
    """The numbers of a mask, (H, W); a pixel's place is its middle."""
    import numpy as np

    y, x = np.nonzero(mask)
    if not len(y):
        return Numbers(filename, 0.0, None, None)
    height, width = mask.shape
    return Numbers(filename, len(y) / mask.size, float(y.mean() + 0.5) / height, float(x.mean() + 0.5) / width)


def _opened(chosen: RawFlags) -> tuple[Trained, Path]:
    """The network with what the flags change, and the data's folder.

    Raises:
        ConfigProblem: a flag is out of range, or the network has several classes.
        FileProblem: no weights.
    """
    from inference.command import weights_file
    from model.onnx_file import read_trained

    changes = {"post_process": chosen.steps(), "save_probs": False, "device": chosen.device}
    named = {"exp_name": chosen.exp_name, "output_dir": chosen.output_dir, "checkpoint": chosen.checkpoint}
    trained = read_trained(weights_file(settings.replace(Config(), named)))
    root = Path(chosen.data_root or trained.cfg.data.data_root)
    if (count := len(trained.cfg.data.classes)) > 1:
        raise ConfigProblem(
            f"{trained.path} has {count} classes, but this command writes one mask an image: use "
            f"inference/inference.py --input {root / chosen.raw_dir} --save_masks class."
        )
    return dataclasses.replace(trained, cfg=settings.replace(trained.cfg, changes)), root


def _check_new(path: Path) -> None:
    if path.exists():
        raise FileProblem(f"{path} exists and is never overwritten: move it away or give another --suffix.")


def _predict(chosen: RawFlags, trained: Trained, root: Path, names: tuple[str, str]) -> list[Numbers]:
    """Write the folders of masks (0 and 255) and of overlays, <stem>.png each, both whole or not at all.

    Raises:
        FileProblem: no images, two of one name or stem, or a folder is there already.
    """
    import numpy as np

    from dataset.readers import read_folder
    from engine.devices import pick_device
    from inference.build import single
    from inference.csv_masks import by_name, unique_stems
    from inference.mask_files import whole_folder, write_png
    from inference.overlay import draw_overlay
    from inference.pipeline import predict

    raw, cfg, found = root / chosen.raw_dir, trained.cfg, []
    for name in names:
        _check_new(root / name)
    records = read_folder(raw)
    unique_stems(by_name(records), raw)
    device = pick_device(cfg)
    ensemble = single(cfg, trained.network())
    ensemble.to(device)
    with whole_folder(root / names[0]) as masks, whole_folder(root / names[1]) as overlays:
        for one in progress(predict(ensemble, records, cfg, device), "prediction", len(records), "images"):
            stem, mask = one.record.image.stem, one.bits[0] != 0
            write_png(masks / f"{stem}.png", mask.astype(np.uint8) * np.uint8(255))
            write_png(overlays / f"{stem}.png", draw_overlay(one.image, one.bits, cfg.data.classes))
            found.append(measure(one.record.name, mask))
    print(f"{len(found)} images of {raw}: masks in {root / names[0]}, overlays in {root / names[1]}")
    return found
