"""What needs a GPU: executors that make batches there, and how long the GPU waits for them in training."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, repeat

import torch
from torch import Tensor

from benchmarks.case import Case
from benchmarks.our_way import settings
from benchmarks.rows import Repeats, Row
from benchmarks.throughput import rate_of
from config import Config
from dataset.batches import Batch, Loader
from dataset.readers import Record
from dataset.switches import switches_of
from engine.names import resolve
from train import Trainer
from train_dali import DaliTrainer

REFERENCE = "dataset.dataset_sliding"
EXECUTORS = {
    "DALI from JPEG": "dataset.dataset_dali_sliding_preprocessed",
    "DALI from PNG": "dataset.dataset_dali_sliding",
    "resident": "dataset.dataset_resident_sliding",
}
MODELS = {"model_nnunet": "model.model_nnunet", "U-Net on HRNet-W48": "model.model_unet_tu-hrnet_w48"}
"""Networks of a training step; the second stands in for model_hrnet_w48, which does not exist yet."""
OPENCV = "our OpenCV executor, from PNG"
WORKERS = 8
STEPS = 20
"""Steps of a training loop that are measured."""


def rows(records: Sequence[Record], case: Case, repeats: int, seconds: float) -> list[Row]:
    """The rows with numbers where there is a GPU, else without."""
    if not torch.cuda.is_available():
        note = "GPU rows: not measured here, there is no GPU."
        return [Row(what, peer, unit, note=note) for what, peer, unit in planned()]
    return measured(records, replace(case, workers=WORKERS), "cuda", repeats, seconds)


def planned() -> list[tuple[str, str, str]]:
    """Case, peer and unit of every row."""
    speeds = [(f"GPU, {name}, loader", OPENCV, "samples/s") for name in EXECUTORS]
    waits = [(f"GPU idle in training {model}, {name}", OPENCV, "%") for model in MODELS for name in EXECUTORS]
    return [*speeds, *waits, ("CLAHE by DALI on the GPU, largest difference", "OpenCV's CLAHE", "grey levels")]


def measured(records: Sequence[Record], case: Case, device: str, repeats: int, seconds: float) -> list[Row]:
    """The rows, measured on `device`."""
    names = {OPENCV: REFERENCE, **EXECUTORS}
    speeds = {name: _speed(_settings(case, file, device), records, repeats, seconds) for name, file in names.items()}
    found = [speeds[name] for name in EXECUTORS]
    theirs = [speeds[OPENCV]] * len(EXECUTORS)
    for model in MODELS.values():
        idle = {
            name: tuple(idle_share(_settings(case, file, device, model), records) for _ in range(repeats))
            for name, file in names.items()
        }
        found += [idle[name] for name in EXECUTORS]
        theirs += [idle[OPENCV]] * len(EXECUTORS)
    found.append((clahe_difference(_settings(case, f"{REFERENCE}_clahe", device, augment=False), records),))
    theirs.append(())
    return [Row(*what, ours, other) for what, ours, other in zip(planned(), found, theirs, strict=True)]


def _settings(case: Case, dataset_file: str, device: str, model: str = "", augment: bool = True) -> Config:
    cfg = settings("PNG", case, augment)
    chosen = replace(cfg.model, model_file=model) if model else cfg.model
    return replace(
        cfg,
        run=replace(cfg.run, device="cuda" if device == "cuda" else "cpu"),
        data=replace(cfg.data, dataset_file=dataset_file),
        model=chosen,
    )


def _loader(cfg: Config, records: Sequence[Record]) -> Loader:
    loader: Loader = resolve("dataset", cfg.data.dataset_file).load().build(
        records, cfg, switches_of(cfg), cfg.run.device
    )
    return loader


def _speed(cfg: Config, records: Sequence[Record], repeats: int, seconds: float) -> Repeats:
    loader = _loader(cfg, records)

    def epochs(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader.epoch(epoch):
            yield batch.images.to(cfg.run.device), batch.bits.to(cfg.run.device)
        _wait(cfg.run.device)

    try:
        for _ in epochs(0):
            pass
        rate = rate_of(epochs, seconds)
        return tuple(rate() for _ in range(repeats))
    finally:
        loader.close()


def idle_share(cfg: Config, records: Sequence[Record]) -> float:
    """Percent of a training loop in which the device waits: 1 minus the time of steps on one batch over that of steps
    on new ones."""
    kind = DaliTrainer if resolve("dataset", cfg.data.dataset_file).stem == "dataset_dali" else Trainer
    trainer = kind(cfg, records)
    try:
        batches = _endless(trainer.loader)
        batch = next(batches)
        for _ in range(3):
            _train(trainer, batch)
        same = _seconds_of_steps(trainer, repeat(batch))
        new = _seconds_of_steps(trainer, batches)
    finally:
        trainer.loader.close()
    return 100 * max(0.0, 1 - same / new)


def clahe_difference(cfg: Config, records: Sequence[Record]) -> float:
    """Largest difference in grey levels between windows after DALI's CLAHE on the device and after OpenCV's."""
    dali = replace(cfg, data=replace(cfg.data, dataset_file="dataset.dataset_dali_sliding_clahe"))
    loaders = [_loader(one, records) for one in (dali, cfg)]
    try:
        pairs = zip(*(loader.epoch(0) for loader in loaders), strict=True)
        return max(float((a.images.cpu().int() - b.images.cpu().int()).abs().max()) for a, b in pairs)
    finally:
        for loader in loaders:
            loader.close()


def _endless(loader: Loader) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


def _train(trainer: Trainer, batch: Batch) -> None:
    trainer.network.train()
    trainer.step(batch)
    trainer.update()


def _seconds_of_steps(trainer: Trainer, batches: Iterator[Batch]) -> float:
    start = time.perf_counter()
    for batch in islice(batches, STEPS):
        _train(trainer, batch)
    _wait(trainer.device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
