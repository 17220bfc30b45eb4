"""What a run reports as it goes: a line for people, metrics.csv, and the trackers' curves and pictures."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from config import Config
from engine import settings
from engine.environment import environment, system_load
from engine.files import write_json
from engine.pace import duration
from engine.record import Metrics
from engine.tracking import Tracker, wandb_mode


class Journal:
    """Written by one process of a run.

    Args:
        epoch: epochs that were done when this process began.
        step: the first step that it will report.
        run_id: of the tracker of the process that this one continues.
    """

    def __init__(self, cfg: Config, epoch: int, step: int, run_id: str | None) -> None:
        self.epochs = cfg.train.epoch
        self.metrics = Metrics(cfg.folder / "metrics.csv", epoch)
        self.first_epoch, self.started = epoch, time.monotonic()
        known = {name: settings.get(cfg, name) for name in settings.SECTION_OF if name != "notify"}
        mode = wandb_mode(cfg.run.wandb)
        self.tracker = Tracker(cfg.folder, cfg.run.exp_name, known, mode, cfg.run.wandb_project, step, run_id)
        write_json(cfg.folder / "env.json", environment())

    def validation(
        self, step: int, dice: Mapping[str, float], pictures: Iterable[tuple[str, NDArray[np.uint8]]]
    ) -> None:
        """Dice of each class, and overlays of some images (name, (H, W, 3) BGR)."""
        self.tracker.scalars(step, {f"dice/{name}": value for name, value in dice.items()})
        for name, picture in pictures:
            self.tracker.picture(step, name, picture)

    def epoch(self, done: int, row: Mapping[str, float | None], best: float) -> None:
        """The end of an epoch: `row` has the columns of metrics.csv."""
        self.metrics.add(**row)
        values = {**row, **system_load()}
        self.tracker.scalars(int(row["step"] or 0), {n: v for n, v in values.items() if v is not None})
        dice = row["val_dice"]
        shown = "" if dice is None else f"  val Dice {dice:.4f} (best {best:.4f})"
        pace = (time.monotonic() - self.started) / (done - self.first_epoch)
        print(
            f"epoch {done}/{self.epochs}  loss {row['train_loss']:.4f}{shown}  lr {row['lr']:.2e}  "
            f"{row['samples_per_second']:.1f} samples/s  {duration((self.epochs - done) * pace)} left",
            flush=True,
        )
