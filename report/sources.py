"""What a report shows: experiments and the CSVs that they wrote, or any CSVs, with their images and labels."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from config import Config, ConfigProblem
from dataset.images import image_shape
from dataset.labels import read_label
from dataset.layouts import has_split, read_split
from dataset.readers import Record, read_folder
from engine import settings
from engine.files import FileProblem
from engine.rle import runs_of_bits
from inference.csv_masks import CsvMasks, ImageRuns, by_name

SUBMISSION = "submission.csv"

Split = Literal["auto", "val", "test"]


@dataclass(frozen=True)
class Source:
    """An experiment, a CSV, or both."""

    title: str
    """What pages call it."""
    folder: Path | None = None
    """The experiment's folder; None for a CSV of unknown origin."""
    cfg: Config | None = None
    """The experiment's settings."""
    masks: CsvMasks | None = None
    """Predictions; None where an experiment has none yet."""
    split: str = ""
    """What was predicted: val (out of fold), test, or "" where that is unknown."""
    records: dict[str, Record] = field(default_factory=dict)
    """Images of the predictions by name, those with labels as well as those without."""


def experiments(folders: Sequence[Path], split: Split = "auto", data_root: str = "") -> list[Source]:
    """Experiments with their newest predictions of a split that all have predicted.

    Args:
        split: auto takes val, on which labels are known, where all have it, else test.
        data_root: where the images are now; "" means where they were.

    Raises:
        ConfigProblem: `split` was asked for, and an experiment has not predicted it.
        FileProblem: a folder is no experiment, predictions can't be read, or their images are not there.
    """
    found = [_experiment(folder) for folder in folders]
    for each in ("val", "test") if split == "auto" else (split,):
        csvs = [newest_csv(folder, each) for folder in folders]
        if all(csvs):
            break
        if split != "auto":
            lacking = folders[csvs.index(None)]
            raise ConfigProblem(
                f"split {split}: {lacking} holds no such predictions: run python inference/inference.py --exp_name "
                f"{lacking.name} --split {split}, or leave out --split."
            )
    if not all(csvs):
        return found
    sources: list[Source] = []
    for source, csv in zip(found, csvs, strict=True):
        assert csv is not None
        masks = CsvMasks(csv, sources[0].masks.classes if sources and sources[0].masks else None)
        records = by_name(_records(_read_cfg(csv.parent), data_root))
        known = {name: records[name] for name in masks.names if name in records}
        if len(known) < len(masks.names):
            lost = next(name for name in masks.names if name not in known)
            raise FileProblem(f"{csv} predicts {lost!r}, which is not in the data set any more: give --data_root.")
        sources.append(dataclasses.replace(source, masks=masks, split=each, records=known))
    return sources


def csvs(paths: Sequence[Path], images: Sequence[Record]) -> list[Source]:
    """CSVs of the same classes, whoever wrote them; those of their images that `images` has.

    Raises:
        FileProblem: a CSV can't be read, or none of its images is there.
    """
    records = by_name(images)
    sources: list[Source] = []
    for path in paths:
        masks = CsvMasks(path, sources[0].masks.classes if sources and sources[0].masks else None)
        known = {name: records[name] for name in masks.names if name in records}
        if not known:
            raise FileProblem(f"none of the {len(masks.names)} images of {path} is among the images given.")
        sources.append(Source(path.name, None, None, masks, "", known))
    names = [path.name for path in paths]
    return titled(sources, names if len(set(names)) == len(names) else list(map(str, paths)))


def titled(sources: Sequence[Source], titles: Sequence[str]) -> list[Source]:
    """The sources under other names."""
    return [dataclasses.replace(source, title=title) for source, title in zip(sources, titles, strict=True)]


def shared_records(sources: Sequence[Source]) -> dict[str, Record]:
    """The images that all have predicted, in the order of the first.

    Raises:
        FileProblem: there are none, though each has predicted some.
    """
    if any(source.masks is None for source in sources):
        return {}
    first, *others = sources
    shared = {name: r for name, r in first.records.items() if all(name in other.records for other in others)}
    if not shared:
        raise FileProblem(f"{' and '.join(s.title for s in sources)} have predicted no image in common.")
    return shared


def true_runs(record: Record, classes: Sequence[str]) -> ImageRuns | None:
    """The label of an image as runs; None where it has none."""
    if record.label is None:
        return None
    return runs_of_bits(read_label(record, classes, *image_shape(record.image)), len(classes))


def newest_csv(folder: Path, split: str) -> Path | None:
    """The CSV of the newest whole inference of a split in an experiment's folder."""
    found = [csv for csv in folder.glob(f"inference/*/{SUBMISSION}") if csv.parent.suffix != ".partial"]
    of_split = [csv for csv in found if _read_cfg(csv.parent).inference.split == split]
    return max(of_split, key=lambda csv: csv.stat().st_mtime, default=None)


def _experiment(folder: Path) -> Source:
    if not (folder / "config.json").exists():  # an ensemble was never trained: its settings are those of its inferences
        written = max(folder.glob(f"inference/*/{SUBMISSION}"), key=lambda csv: csv.stat().st_mtime, default=None)
        if written:
            return Source(folder.name, folder, _read_cfg(written.parent))
    return Source(folder.name, folder, _read_cfg(folder))


def _read_cfg(folder: Path) -> Config:
    path = folder / "config.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileProblem(f"{path} cannot be read ({error.strerror}): give the folder of an experiment.") from None
    except ValueError as error:
        raise FileProblem(f"{path} is not JSON ({error}): copy the experiment again.") from None
    return settings.from_record(record, str(path))[0]


def _records(cfg: Config, data_root: str) -> list[Record]:
    """The images of an inference, whatever the layout of their data set."""
    cfg = settings.replace(cfg, {"data_root": data_root or cfg.data.data_root})
    if cfg.inference.split == "test":
        return read_folder(Path(cfg.inference.input)) if cfg.inference.input else read_split(cfg, "test")
    held_out = cfg.data.holdout
    return read_split(cfg, held_out if held_out and has_split(cfg, held_out) else "train")
