"""metrics.csv: one row per epoch, whole after every write."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from engine.files import write_text

COLUMNS = (
    "epoch", "step", "lr", "train_loss", "val_dice", "seconds", "samples_per_second", "waiting", "gpu_gib"
)  # fmt: skip
"""`waiting` is the share of the time that steps waited for data, `gpu_gib` the most memory that tensors took."""


class Metrics:
    """Rows of metrics.csv. On resume the rows from `first_epoch` on are dropped: they are computed again."""

    def __init__(self, path: Path, first_epoch: int) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if first_epoch and path.exists():
            with open(path, encoding="utf-8", newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < first_epoch]

    def add(self, **values: float | None) -> None:
        """Append a row; None becomes an empty field."""
        assert set(values) == set(COLUMNS), sorted(values)
        self.rows.append({name: _text(values[name]) for name in COLUMNS})
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"
