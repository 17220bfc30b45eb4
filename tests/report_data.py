"""A small experiment as run_exp.py leaves it, for the tests of the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from config import HAND_BONES, Config
from dataset.labels import read_label
from dataset.readers import Record, read_competition
from engine import settings
from engine.files import write_json
from inference.metrics import write_csv
from inference.submission import SubmissionWriter

SIZE = 128
"""Of the phantoms."""


def write_predictions(path: Path, records: list[Record], shift: int) -> Path:
    """The labels of the records, moved to the right; each image farther than the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with SubmissionWriter(path, [record.name for record in records], HAND_BONES) as writer:
        for more, record in enumerate(records):
            bits = read_label(record, HAND_BONES, SIZE, SIZE)
            writer.write(record.name, np.roll(bits, shift + more, axis=2))
    return path


def write_experiment(folder: Path, data_root: Path, shift: int = 1, **changed: object) -> Path:
    """An experiment of two epochs that has predicted the test split."""
    values = {"exp_name": folder.name, "output_dir": str(folder.parent), "data_root": str(data_root), **changed}
    record = settings.to_record(settings.replace(Config(), values))
    records = read_competition(data_root, "test")
    csv = write_predictions(folder / "inference" / "test" / "submission.csv", records, shift)
    for target in (folder, csv.parent):
        write_json(target / "config.json", record)
    head = ("epoch", "step", "lr", "train_loss", "val_dice", "seconds", "samples_per_second", "waiting", "gpu_gib")
    epochs = [(0, 4, 0.1, 0.9, "", 2, 8, 0.1, ""), (1, 8, 0.05, 0.7, 0.6, 3, 6, 0.2, "")]
    write_csv(folder / "metrics.csv", [head, *epochs])
    levels = [(level, *[1 - abs(level - 0.5)] * len(HAND_BONES)) for level in (0.1, 0.5, 0.9)]
    write_csv(folder / "thresholds.csv", [("threshold", *HAND_BONES), *levels])
    rows = [(f"ID001/{k}", *[0.5 + k / 10] * len(HAND_BONES)) for k in range(3)]
    write_csv(folder / "val_dice.csv", [("image", *HAND_BONES), *rows])
    return folder
