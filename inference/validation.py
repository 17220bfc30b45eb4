"""Validation while training: the submission path on labelled images, shared by all processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from config import Config
from dataset.order import Shard
from dataset.readers import Record
from engine.distributed import World
from inference.build import single
from inference.folds import VAL_DICE
from inference.metrics import DiceTable
from inference.pipeline import asked_scores, overlay, validate

SHOWN = 2
"""Images whose overlays are recorded whenever the Dice improves."""


class Validation:
    """Scores networks on the same images again and again."""

    def __init__(self, records: Sequence[Record], cfg: Config, device: str, world: World) -> None:
        self.records = list(records)
        self.cfg = cfg
        self.device = device
        self.world = world
        self.scores = asked_scores(cfg)
        """What else the settings ask for, of the network that was scored last; on the first rank."""
        single(cfg, nn.Identity())  # an unknown name is an error now, and not after an epoch

    def __len__(self) -> int:
        """Number of images."""
        return len(self.records)

    def score(self, network: nn.Module) -> DiceTable:
        """Dice of the images, each counted once, on all ranks; `scores` then has what else the settings ask for.

        Raises:
            FileProblem: memory runs out with a single window; an image can't be read.
        """
        network.eval()
        shard = Shard(self.world.rank, self.world.ranks)
        scores = asked_scores(self.cfg)
        table = validate(single(self.cfg, network), self.records, self.cfg, self.device, shard, scores)
        order = [record.key for record in self.records]
        first, *others = self.world.gather(table)
        first.merge(others, order)
        if scores:
            mine, *rest = self.world.gather(scores)
            mine.merge(rest, order)
            self.scores = mine
        return first

    def write(self, table: DiceTable) -> None:
        """Write the scores of the network that was scored last, for its weights are kept: per_class.csv, val_dice.csv,
        and scores.csv and confusion.csv, as asked for.

        Args:
            table: what `score` has returned.
        """
        table.to_csv(self.cfg.folder / "per_class.csv")
        table.images_to_csv(self.cfg.folder / VAL_DICE)
        if self.scores:
            self.scores.to_csv(self.cfg.folder)

    def pictures(self, network: nn.Module) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """The first images with true and predicted outlines: (name, (H, W, 3) BGR)."""
        ensemble = single(self.cfg, network)
        for record in self.records[:SHOWN]:
            yield record.key, overlay(ensemble, record, self.cfg, self.device)
