"""The reference loader: OpenCV in DataLoader workers. Variants are switches: windows or whole images, exclusion.

`dataset.dataset` reads whole images, `dataset.dataset_sliding` random windows; `_exclude` leaves out the competition's
known bad labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from config import Config, ConfigProblem
from dataset.images import read_image
from dataset.labels import rasterise, read_polygons
from dataset.plan import draw_plan, fit_frame, fit_image, generator, warp_bits, warp_image
from dataset.readers import Record, leave_out, read_competition
from dataset.splits import fold_split
from engine.files import FileProblem

VARIANTS = ("", "sliding", "exclude", "sliding_exclude")


@dataclass(frozen=True)
class Batch:
    """What a network trains on."""

    images: Tensor
    """(N, 1, H, W) uint8."""
    bits: Tensor
    """(N, words, H, W) int32 packed labels."""
    keys: list[str]
    """subject/stem of each sample, to name the culprit when something is wrong."""

    def pin_memory(self) -> Batch:
        """Called by the DataLoader where it pins."""
        return Batch(self.images.pin_memory(), self.bits.pin_memory(), self.keys)


def split(
    cfg: Config, variant: str, records: Sequence[Record] | None = None
) -> tuple[list[Record], list[Record]]:
    """Training and validation records of the configured fold, without the excluded ones.

    `records` are all labelled ones; None reads those of data_root.
    """
    found = read_competition(Path(cfg.data.data_root), "train") if records is None else records
    kept = leave_out(found, cfg.data.exclude, known_bad="exclude" in variant.split("_"))
    return fold_split(kept, cfg.data.n_folds, cfg.data.fold, cfg.data.split_seed)


def read_label(record: Record, classes: Sequence[str], height: int, width: int) -> NDArray[np.int32]:
    """Packed label of a record at the image's own size, (words, H, W) int32. The record must have a label."""
    assert record.label is not None
    return rasterise(read_polygons(record.label, classes), classes, height, width, str(record.label))


Key = tuple[int, int, int]
"""Epoch, record, window: all that a sample depends on."""


Sample = tuple[Tensor, Tensor, str]


class Samples(Dataset[Sample | FileProblem]):
    """Samples by (epoch, record, window); no state, so any worker can make any sample.

    A bad file is returned and not raised: the DataLoader would wrap its sentence into the worker's traceback.
    """

    def __init__(self, records: Sequence[Record], cfg: Config, side: int) -> None:
        self.records = list(records)
        self.cfg = cfg
        self.side = side

    def __getitem__(self, key: Key) -> Sample | FileProblem:
        try:
            return self._read(*key)
        except FileProblem as problem:
            return problem

    def _read(self, epoch: int, index: int, window: int) -> Sample:
        record, cfg = self.records[index], self.cfg
        image = read_image(record.image)
        bits = read_label(record, cfg.data.classes, *image.shape)
        frame = fit_frame(image.shape, cfg.window.image_size, self.side)
        plan = draw_plan(generator(cfg.run.seed, epoch, record.key, window), frame, self.side, cfg.augment)
        grey = warp_image(fit_image(image, frame), plan)
        return torch.from_numpy(grey)[None], torch.from_numpy(warp_bits(bits, plan, frame)), record.key


class Order(Sampler[list[Key]]):
    """Batches of keys: a permutation of all samples by (seed, epoch), its remainder dropped, from a given step on."""

    def __init__(self, n_records: int, windows: int, batch_size: int, seed: int) -> None:
        self.samples = [(i, w) for i in range(n_records) for w in range(windows)]
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = self.first_step = 0

    def __len__(self) -> int:
        return len(self.samples) // self.batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.samples))
        for step in range(self.first_step, len(self)):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield [(self.epoch, *self.samples[i]) for i in chosen]


class Loader:
    """Training batches, epoch by epoch."""

    def __init__(self, records: Sequence[Record], cfg: Config, variant: str) -> None:
        sliding = "sliding" in variant.split("_")
        self.side = cfg.window.window_size if sliding else cfg.window.image_size
        windows = cfg.window.windows_per_image if sliding else 1
        self.order = Order(len(records), windows, cfg.train.batch_size, cfg.run.seed)
        if not len(self.order):
            raise ConfigProblem(
                f"batch_size {cfg.train.batch_size} is more than the {len(records) * windows} training samples of an "
                f"epoch: lower --batch_size."
            )
        workers = cfg.train.workers
        self.loader = DataLoader(
            Samples(records, cfg, self.side),
            batch_sampler=self.order,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_collate,
            worker_init_fn=_one_thread,
            # Each epoch draws a seed for the workers. From the global generator, a run resumed in mid-epoch would draw
            # once more than one that never stopped, and dropout would go other ways.
            generator=torch.Generator(),
            pin_memory=torch.cuda.is_available() and cfg.run.device != "cpu",
        )

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Batches of `epoch` from step `first_step` on.

        Raises:
            FileProblem: an image or label can't be used; names it.
        """
        self.order.epoch, self.order.first_step = epoch, first_step
        for batch in self.loader:
            if isinstance(batch, FileProblem):
                # Anew: `raise batch` would tie it to this frame in a cycle, whose late collection costs 5 s a worker.
                raise FileProblem(str(batch))
            yield batch


def build(records: Sequence[Record], cfg: Config, variant: str) -> Loader:
    """The loader that `dataset_file` names."""
    return Loader(records, cfg, variant)


def _collate(samples: list[Sample | FileProblem]) -> Batch | FileProblem:
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, FileProblem):
            return sample
        good.append(sample)
    images, bits, keys = zip(*good, strict=True)
    return Batch(torch.stack(images), torch.stack(bits), list(keys))


def _one_thread(worker: int) -> None:
    # OpenCV's own threads in every worker only fight each other.
    cv2.setNumThreads(0)
