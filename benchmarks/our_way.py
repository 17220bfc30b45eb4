"""The product's loader at the benchmark's case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from benchmarks.case import BRIGHTNESS, CONTRAST, GAMMA, ROTATE, SCALE, Case, Epochs
from config import OFF, Augment, Config
from dataset.dataset import build
from dataset.jpeg_tree import write_tree
from dataset.readers import Record
from dataset.switches import switches_of
from engine.settings import AUGMENTATIONS

Source = Literal["PNG", "JPEG", "disk cache"]
"""Where the pixels come from: the data set's files, the JPEG tree (quality 95), decoded images in one file."""

DATA_SETTINGS: dict[Source, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"dataset_file": "dataset.dataset_sliding_preprocessed"},
    "disk cache": {"cache": "disk"},
}


def settings(source: Source, case: Case, augment: bool = True) -> Config:
    """Everything at its default but for the case. Without `augment` samples are plain windows of the image."""
    cfg, off = Config(), Augment(augment="none", **dict.fromkeys(AUGMENTATIONS, OFF))
    on = replace(
        off,
        rotate=(-ROTATE, ROTATE, 1.0),
        scale=(-SCALE, SCALE, 1.0),
        brightness=(-BRIGHTNESS, BRIGHTNESS, 1.0),
        contrast=(-CONTRAST, CONTRAST, 1.0),
        gamma=(-GAMMA, GAMMA, 1.0),
    )
    return replace(
        cfg,
        run=replace(cfg.run, device="cpu"),
        data=replace(cfg.data, data_root=str(case.root), classes=case.classes, **DATA_SETTINGS[source]),
        window=replace(cfg.window, image_size=case.size, window_size=case.window, windows_per_image=case.windows),
        augment=on if augment else off,
        train=replace(cfg.train, batch_size=case.batch, workers=case.workers),
    )


def ours(source: Source, records: Sequence[Record], case: Case, augment: bool = True) -> Epochs:
    """Batches of (N, 1, window, window) uint8 and (N, words, window, window) int32 packed labels.

    JPEGs must have been written by write_jpegs.
    """
    cfg = settings(source, case, augment)
    loader = build(records, cfg, switches_of(cfg))

    def epochs(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader.epoch(epoch):
            yield batch.images, batch.bits

    return epochs


def write_jpegs(case: Case) -> None:
    """Write the JPEG tree beside the images, unless it is there."""
    write_tree(case.root, case.root / "jpeg", 95, None, case.workers, False)
