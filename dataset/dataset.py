"""The reference executor: OpenCV in DataLoader workers.

`dataset.dataset` reads whole images, `dataset.dataset_sliding` windows; dataset/switches.py has all switches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from config import Config
from dataset.batches import Batch, Workers, build_order, collate, report_skipped, sample_side
from dataset.cache import open_source
from dataset.order import ALONE, Shard
from dataset.readers import Record
from dataset.samples import Samples
from dataset.switches import SWITCHES, Switches

VARIANTS = ("", *SWITCHES)
"""Each switch alone; they combine."""


class OpenCVLoader:
    """See dataset.batches.Loader."""

    def __init__(self, records: Sequence[Record], cfg: Config, switches: Switches, shard: Shard) -> None:
        self.side = sample_side(cfg, switches)
        self.order = build_order(len(records), cfg, switches, shard)
        self.skipped: set[str] = set()
        samples = Samples(records, cfg, self.side, switches.sliding, open_source(records, cfg, switches, self.side))
        self.workers = Workers(samples.sample, collate, self.order, cfg)

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """See Loader."""
        for batch in self.workers.epoch(epoch, first_step):
            report_skipped(batch, self.skipped)
            yield batch

    def close(self) -> None:
        """See Loader."""
        self.workers.close()


def build(
    records: Sequence[Record], cfg: Config, switches: Switches, device: str = "cpu", shard: Shard = ALONE
) -> OpenCVLoader:
    """The loader of this executor; it works on the host whatever the device."""
    return OpenCVLoader(records, cfg, switches, shard)
