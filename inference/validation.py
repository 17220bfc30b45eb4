"""Validation while training: the submission path on labelled images, shared by all processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from config import Config
from dataset.order import Shard
from dataset.readers import Record
from engine import settings
from engine.distributed import World
from engine.files import FileProblem
from inference.metrics import DiceTable
from inference.pipeline import asked_scores, build_predictor, overlay, validate

SHOWN = 2
"""Images whose overlays are recorded whenever the Dice improves."""


class Validation:
    """Scores networks on the same images again and again."""

    def __init__(self, records: Sequence[Record], cfg: Config, device: str, world: World) -> None:
        self.records = list(records)
        self.cfg = cfg
        self.device = device
        self.world = world
        build_predictor(cfg, nn.Identity())  # an unknown name is an error now, and not after an epoch

    def __len__(self) -> int:
        """Number of images."""
        return len(self.records)

    def score(self, network: nn.Module) -> DiceTable:
        """Dice of the images, each counted once, on all ranks; scores.csv with what else the settings ask for.

        Where memory runs out, fewer windows go through the network at a time, from then on.

        Raises:
            FileProblem: memory runs out with a single window too; an image can't be read.
        """
        network.eval()
        shard = Shard(self.world.rank, self.world.ranks)
        while True:
            scores = asked_scores(self.cfg)
            try:
                predictor = build_predictor(self.cfg, network)
                table = validate(predictor, self.records, self.cfg, self.device, shard, scores)
                break
            except torch.OutOfMemoryError as error:
                self._fewer_windows(error)
        order = [record.key for record in self.records]
        first, *others = self.world.gather(table)
        first.merge(others, order)
        if scores:
            mine, *rest = self.world.gather(scores)
            mine.merge(rest, order)
            if self.world.first:
                mine.to_csv(self.cfg.folder)
        return first

    def pictures(self, network: nn.Module) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """The first images with true and predicted outlines: (name, (H, W, 3) BGR)."""
        predictor = build_predictor(self.cfg, network)
        for record in self.records[:SHOWN]:
            yield record.key, overlay(predictor, record, self.cfg, self.device)

    def _fewer_windows(self, error: torch.OutOfMemoryError) -> None:
        windows = self.cfg.window.window_batch
        if windows == 1 or self.world.ranks > 1:  # the other ranks are elsewhere in their images
            raise FileProblem(
                f"Memory ran out in validation with {windows} windows at a time ({str(error).splitlines()[0][:160]}): "
                f"lower --window_batch or --window_size."
            ) from None
        torch.cuda.empty_cache()
        self.cfg = settings.replace(self.cfg, {"window_batch": windows // 2})
        print(f"memory ran out in validation: going on with window_batch {windows // 2}", flush=True)
