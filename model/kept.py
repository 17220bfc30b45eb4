"""Which weights an experiment keeps: the best, and on demand the best few, every so many epochs', each class's best."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from config import BEST, Config
from engine.files import write_text
from model.checkpoint import save_weights

INDEX = "kept.csv"

NOT_VALIDATED = -1.0
"""In place of an epoch's Dice."""


@dataclass
class Kept:
    """What lies in the experiment's folder, as plain values for the training state.

    Weights of one epoch are one file, however many reasons there are to keep it; kept.csv says them.
    """

    best: float = -1.0
    """Highest validation Dice so far; -1 before the first validation."""
    dice: dict[str, float] = field(default_factory=dict)
    """File of an epoch -> its validation Dice."""
    of_class: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Class -> its highest Dice so far and the file."""

    def update(
        self,
        folder: Path,
        weights: Mapping[str, Tensor],
        cfg: Config,
        epoch: int,
        dice: float,
        by_class: Mapping[str, float],
    ) -> None:
        """Write what this validation earns.

        Args:
            epoch: epochs that are done.
            by_class: mean Dice of each class.
        """
        if dice > self.best:
            self.best = dice
            save_weights(folder / BEST, weights, cfg, dice, epoch)
        name = _file(epoch)
        if cfg.train.best_per_class:
            for label, score in by_class.items():
                if score > self.of_class.get(label, (-1.0, ""))[0]:
                    self.of_class[label] = (score, name)
        self.keep(folder, weights, cfg, epoch, dice)

    def keep(
        self, folder: Path, weights: Mapping[str, Tensor], cfg: Config, epoch: int, dice: float = NOT_VALIDATED
    ) -> None:
        """Write the weights of an epoch if there is a reason to, and remove those that have none any more."""
        name = _file(epoch)
        self.dice[name] = dice
        reasons = {file: self._reasons(file, cfg) for file in self.dice}
        if reasons[name]:
            save_weights(folder / name, weights, cfg, math.nan if dice == NOT_VALIDATED else dice, epoch)
        for file in [file for file, why in reasons.items() if not why]:
            del self.dice[file]
            (folder / file).unlink(missing_ok=True)
        if self.dice:
            self._write_index(folder, reasons)

    def _reasons(self, file: str, cfg: Config) -> list[str]:
        """Why the weights of an epoch are kept."""
        place = sorted(self.dice, key=lambda other: -self.dice[other]).index(file) + 1
        interval, epoch = cfg.train.save_interval, int(file[6:10])
        reasons = [f"top {place}"] if place <= cfg.train.keep_top and self.dice[file] != NOT_VALIDATED else []
        reasons += [f"every {interval}"] if interval and epoch % interval == 0 else []
        return reasons + [f"best {label}" for label, (_, best) in self.of_class.items() if best == file]

    def _write_index(self, folder: Path, reasons: Mapping[str, list[str]]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("file", "val_dice", "why"))
        writer.writerows((file, _text(dice), "; ".join(reasons[file])) for file, dice in self.dice.items())
        write_text(folder / INDEX, text.getvalue())


def _file(epoch: int) -> str:
    return f"epoch_{epoch:04d}.safetensors"


def _text(dice: float) -> str:
    return "" if dice == NOT_VALIDATED else f"{dice:.6f}"
