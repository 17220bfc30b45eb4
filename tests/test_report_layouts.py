"""report/sources.py: the images of an inference are found again in every layout."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_trees import TREES

from config import Config
from dataset.layouts import read_split
from dataset.readers import Record, read_folder
from engine import settings
from engine.files import FileProblem, write_json
from inference.submission import SubmissionWriter
from report.sources import experiments, true_runs


def predicted(folder: Path, cfg: Config, records: list[Record]) -> Path:
    """An experiment that has seen nothing on these images."""
    csv = folder / "inference/x/submission.csv"
    for place in (folder, csv.parent):
        write_json(place / "config.json", settings.to_record(cfg))
    with SubmissionWriter(csv, [record.name for record in records], cfg.data.classes) as writer:
        for record in records:
            writer.write_rles(record.name, [""] * len(cfg.data.classes))
    return folder


@pytest.mark.parametrize("name", TREES)
def test_images_and_labels_of_each_layout(name: str, phantom_root: Path, tmp_path: Path) -> None:
    _, classes, write, flags = TREES[name]
    root = write(phantom_root, tmp_path / "set")
    asked = {k[2:]: v for k, v in zip(flags[::2], flags[1::2], strict=True)}
    base = settings.replace(Config(), {"data_root": str(root), "classes": classes, **asked})
    for split, holdout, of in (("test", "", "test"), ("val", "val", "val"), ("val", "subjects.txt", "train")):
        cfg = settings.replace(base, {"split": split, "holdout": holdout})
        records = read_split(cfg, of)
        (source,) = experiments([predicted(tmp_path / f"{split}{holdout}", cfg, records)])
        assert (source.split, list(source.records.values())) == (split, records)
        runs = true_runs(records[0], classes)
        assert runs is not None and all(len(mask) for mask in runs)


def test_a_data_set_that_moved_and_images_of_ones_own(phantom_root: Path, tmp_path: Path) -> None:
    _, classes, write, _ = TREES["labelme"]
    root = write(phantom_root, tmp_path / "set")
    cfg = settings.replace(Config(), {"data_root": str(root), "classes": classes})
    folder = predicted(tmp_path / "a", cfg, read_split(cfg, "test"))
    moved = root.rename(tmp_path / "moved")
    with pytest.raises(FileProblem, match="no other layout fits"):
        experiments([folder])
    (source,) = experiments([folder], data_root=str(moved))
    assert len(source.records) == 4 and all(record.label for record in source.records.values())
    own = read_folder(moved / "val")
    given = settings.replace(cfg, {"input": str(moved / "val")})
    (source,) = experiments([predicted(tmp_path / "b", given, own)])
    assert list(source.records.values()) == own
