"""The DALI executor: NVIDIA DALI decodes, equalises, reduces, warps and tones images, on the GPU where there is one.

`dataset.dataset_dali` reads whole images, `dataset.dataset_dali_sliding` windows; dataset/switches.py has all switches.

Workers only read files and make labels (dataset/dali_drafts.py), which never go through DALI: its warp is not ours. A
GPU decodes gray baseline JPEGs itself (_preprocessed); DALI decodes all else in `workers` threads on the host. Effects
and mixers of a plan are applied on the host, as by every executor. Without a GPU this is slow and for tests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from config import Config, ConfigProblem
from dataset.batches import Batch, Workers, build_order, report_skipped, sample_side
from dataset.dali_drafts import Draft, Drafter, Drafts, collate_drafts, note_views
from dataset.order import ALONE, Shard
from dataset.readers import Record
from dataset.samples import Sample, Samples
from dataset.sources import Files
from dataset.switches import SWITCHES, Switches
from engine.files import FileProblem

if TYPE_CHECKING:
    from dataset.dali_pipeline import Warper

VARIANTS = ("", *SWITCHES)
"""Each switch alone; they combine."""

INSTALL = "pip install nvidia-dali-cuda120==2.4.0"

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


def require_dali() -> None:
    """Raise ConfigProblem where DALI can't be imported."""
    try:
        import dataset.dali_pipeline  # noqa: F401
    except ImportError as error:
        raise ConfigProblem(
            f"dataset.dataset_dali needs NVIDIA DALI, which can't be imported ({error}): {INSTALL}, or give "
            f"--dataset_file dataset.dataset."
        ) from None


@dataclass(frozen=True)
class Unfinished:
    """A batch whose effects are being applied."""

    batch: Drafts
    images: Tensor
    samples: dict[int, Future[Sample]]
    """Of the samples that have effects."""


class DaliLoader:
    """See dataset.batches.Loader.

    While the network trains on a batch, the effects of the next one are applied and the one after it is in DALI. Any
    error closes the loader.
    """

    def __init__(
        self, records: Sequence[Record], cfg: Config, switches: Switches, device: str, shard: Shard
    ) -> None:
        if cfg.data.cache != "none":
            raise ConfigProblem(
                f"cache is {cfg.data.cache}, but DALI decodes files itself: give --cache none, or --dataset_file "
                f"dataset.dataset."
            )
        self.side = sample_side(cfg, switches)
        self.order = build_order(len(records), cfg, switches, shard)
        self.cfg = cfg
        self.device = device
        self.skipped: set[str] = set()
        self.files = Files(records, cfg, switches, self.side)
        self.reduces = note_views(self.files)
        self.samples = Samples(records, cfg, self.side, switches.sliding, self.files)
        drafter = Drafter(self.samples, self.files)
        self.workers = Workers(drafter.draft, collate_drafts, self.order, cfg)
        self.warper: Warper | None = None
        self.pool = ThreadPoolExecutor(self.threads)

    @property
    def threads(self) -> int:
        """Threads of DALI on the host, and for effects."""
        return max(1, self.cfg.train.workers)

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """See Loader."""
        try:
            if self.warper:
                self.warper.drain()  # of an epoch that was left in the middle
            with closing(self.workers.epoch(epoch, first_step)) as drafts:
                windows = _ahead(drafts, self._start, self._take)
                for batch in _ahead(windows, self._submit, self._gather):
                    report_skipped(batch, self.skipped)
                    yield batch
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """See Loader."""
        self.workers.close()
        self.pool.shutdown(cancel_futures=True)
        if self.warper:
            self.warper.close()
            self.warper = None

    def _start(self, batch: Drafts) -> Drafts:
        if self.warper is None:
            # Only now that the workers are forked: they must not inherit half of DALI's threads and locks.
            from dataset.dali_pipeline import Warper

            clahe = self.files.preparation.clahe
            self.warper = Warper(self.order.batch_size, self.side, clahe, self.reduces, self.device, self.threads)
        self.warper.start(batch.drafts)
        return batch

    def _take(self, batch: Drafts) -> tuple[Drafts, Tensor]:
        assert self.warper is not None, "a batch was started"
        return batch, self.warper.take()

    def _submit(self, windows: tuple[Drafts, Tensor]) -> Unfinished:
        batch, images = windows
        todo = [n for n, draft in enumerate(batch.drafts) if draft.plan.effects]
        if todo:
            images = images.cpu()
        labels = batch.bits.numpy()
        return Unfinished(
            batch,
            images,
            {n: self.pool.submit(self._finish, batch.drafts[n], images[n, 0].numpy(), labels[n]) for n in todo},
        )

    def _finish(self, draft: Draft, grey: NDArray[np.uint8], bits: NDArray[np.int32]) -> Sample:
        try:
            grey, bits = self.samples.finish(draft.key, draft.plan, grey, bits)
        except FileProblem:  # of the image that a mixer takes from: another sample, as in all executors
            return self.samples.sample(draft.asked)
        return Sample(grey, bits, draft.name, draft.weight, draft.skipped)

    def _gather(self, unfinished: Unfinished) -> Batch:
        drafts, images, bits = unfinished.batch.drafts, unfinished.images, unfinished.batch.bits
        told = [(draft.name, draft.weight, draft.skipped) for draft in drafts]
        for n, future in unfinished.samples.items():
            sample = future.result()
            images[n, 0] = torch.from_numpy(sample.grey)
            bits[n] = torch.from_numpy(sample.bits)
            told[n] = sample.key, sample.weight, sample.skipped
        return Batch(
            images.to(self.device, non_blocking=True),
            bits.to(self.device, non_blocking=True),
            torch.tensor([weight for _, weight, _ in told], device=self.device),
            [key for key, _, _ in told],
            [skipped for _, _, skipped in told if skipped],
        )


def build(
    records: Sequence[Record], cfg: Config, switches: Switches, device: str = "cpu", shard: Shard = ALONE
) -> DaliLoader:
    """The loader of this executor.

    Raises:
        ConfigProblem: DALI can't be imported; cache is not none; an epoch would have no step.
    """
    require_dali()
    return DaliLoader(records, cfg, switches, device, shard)


def _ahead(source: Iterable[A], start: Callable[[A], B], end: Callable[[B], C]) -> Generator[C, None, None]:
    """end(start(x)) of each x; the next x is started before the end of one is waited for."""
    waiting: deque[B] = deque()
    for x in source:
        waiting.append(start(x))
        if len(waiting) > 1:
            yield end(waiting.popleft())
    while waiting:
        yield end(waiting.popleft())

