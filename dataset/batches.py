"""What executors give the training loop."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from config import Config, ConfigProblem
from dataset.order import Key, Order, Shard
from dataset.plan import n_windows
from dataset.samples import Sample
from dataset.switches import Switches
from engine.files import FileProblem

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""

S = TypeVar("S")
B = TypeVar("B")


@dataclass(frozen=True)
class Batch:
    """What a network trains on."""

    images: Tensor
    """(N, 1, H, W) uint8."""
    bits: Tensor
    """(N, words, H, W) int32 packed labels."""
    weights: Tensor
    """(N,) float32, in the loss: 1 where people drew the sample's label, `pseudo_weight` where it was predicted."""
    keys: list[str]
    """subject/stem of each sample, to name the culprit when something is wrong."""
    skipped: list[str] = field(default_factory=list)
    """What was wrong with images in whose place others stand."""

    def pin_memory(self) -> Batch:
        """Called by the DataLoader where it pins."""
        images, bits, weights = (part.pin_memory() for part in (self.images, self.bits, self.weights))
        return Batch(images, bits, weights, self.keys, self.skipped)


class Loader(Protocol):
    """Training batches, epoch by epoch: what every executor's `build` returns."""

    side: int
    """Height and width of a sample, px."""

    def __len__(self) -> int:
        """Steps of an epoch."""
        ...

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Batches of `epoch` from step `first_step` on.

        Raises:
            FileProblem: an image or label can't be used; names it.
        """
        ...

    def close(self) -> None:
        """End worker processes and pipelines; a loader can't be used after it."""
        ...


def sample_side(cfg: Config, switches: Switches) -> int:
    """Height and width of a training sample, px."""
    return cfg.window.window_size if switches.sliding else cfg.window.image_size


def build_order(n_records: int, cfg: Config, switches: Switches, shard: Shard) -> Order:
    """The order of an epoch.

    Raises:
        ConfigProblem: an epoch would have no step.
    """
    windows = n_windows(cfg.window) if switches.sliding else 1
    order = Order(n_records, windows, cfg.train.batch_size, cfg.run.seed, shard)
    if not len(order):
        several = f" on each of {shard.ranks} ranks" if shard.ranks > 1 else ""
        raise ConfigProblem(
            f"batch_size {cfg.train.batch_size}{several} is more than the {n_records * windows} training samples of an "
            f"epoch: lower --batch_size."
        )
    return order


def collate(samples: list[Sample]) -> Batch:
    """Samples -> a batch."""
    # default_collate writes straight into a worker's shared memory; what torch.stack makes is copied there once more.
    return Batch(
        default_collate([torch.from_numpy(sample.grey)[None] for sample in samples]),
        default_collate([torch.from_numpy(sample.bits) for sample in samples]),
        torch.tensor([sample.weight for sample in samples]),
        [sample.key for sample in samples],
        [sample.skipped for sample in samples if sample.skipped],
    )


def report_skipped(batch: Batch, known: set[str]) -> None:
    """Name every bad file once, on stderr."""
    for problem in batch.skipped:
        if problem not in known:
            known.add(problem)
            print(f"skipped: {problem}", file=sys.stderr, flush=True)


class Workers(Generic[S, B]):
    """Batches made by DataLoader workers, or in this process where `workers` is 0.

    Args:
        make: a key -> a sample.
        collate: samples -> a batch; like `make` it runs in a worker. Batches with a method `pin_memory` are pinned.
    """

    def __init__(
        self, make: Callable[[Key], S], collate: Callable[[list[S]], B], order: Order, cfg: Config
    ) -> None:
        workers = cfg.train.workers
        self.order = order
        self.loader: DataLoader[S | FileProblem] | None = DataLoader(
            _Made(make),
            batch_sampler=order,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=partial(_collate, collate),
            worker_init_fn=_start_worker,
            # Each epoch draws a seed for the workers. From the global generator, a run resumed in mid-epoch would draw
            # once more than one that never stopped, and dropout would go other ways.
            generator=torch.Generator(),
            pin_memory=torch.cuda.is_available() and cfg.run.device != "cpu",
        )

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[B, None, None]:
        """See Loader.epoch."""
        assert self.loader is not None, "the loader is closed"
        self.order.epoch, self.order.first_step = epoch, first_step
        for batch in self.loader:
            if isinstance(batch, FileProblem):
                # Anew: `raise batch` would tie it to this frame in a cycle, whose late collection costs 5 s a worker.
                raise FileProblem(str(batch))
            yield batch

    def close(self) -> None:
        """End the worker processes."""
        self.loader = None


class _Made(Dataset["S | FileProblem"], Generic[S]):
    """Samples for DataLoader workers.

    A bad file is returned and not raised: the DataLoader would wrap its sentence into the worker's traceback.
    """

    def __init__(self, make: Callable[[Key], S]) -> None:
        self.make = make

    def __getitem__(self, key: Key) -> S | FileProblem:
        try:
            return self.make(key)
        except FileProblem as problem:
            return problem


def _collate(collate: Callable[[list[S]], B], samples: list[S | FileProblem]) -> B | FileProblem:
    good: list[S] = []
    for sample in samples:
        if isinstance(sample, FileProblem):
            return sample
        good.append(sample)
    return collate(good)


def _start_worker(worker: int) -> None:
    # OpenCV's own threads in every worker only fight each other.
    cv2.setNumThreads(0)
    # Blocks of megabytes stay in the heap. glibc would give them back to the kernel after each sample, and faulting in
    # their pages anew took a seventh of a worker's time.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 256 << 20)
    # SIGTERM to all processes of a run (scancel, a preemption, a group's kill) is for the one that trains. It needs its
    # workers until it has saved; only its own word ends them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_on_word_of, args=(os.getppid(),), daemon=True).start()


def _end_on_word_of(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
