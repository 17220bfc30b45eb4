"""The loader that teams of the competition wrote: 29 masks from polygons, albumentations, float tensors, DataLoader.

Written anew after reading, among others,
* boostcampaitech8/pro-cv-semanticsegmentation-cv-07, src/data/train_data.py and src/data/transforms.py,
* boostcampaitech7/level2-cv-semanticsegmentation-cv-01-lv3, utils/dataset.py and train.py,
* boostcampaitech7/level2-cv-semanticsegmentation-cv-15-lv3, scripts/dataset.py,
* boostcampaitech8/pro-cv-semanticsegmentation-cv-01, dataset/dataset_dali_sliding.py (windows of 1024; it keeps the
  last image and cuts its grid windows one after the other, where samples here are independent of each other).

`PLAIN` is what they have. `TRIED` are changes that a team could make within that design, the fastest of which is the
peer "at its best". To the peer's favour, workers persist, and a crop before the affine transform is accepted though
it leaves black corners, where our windows see the image.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

# Else albumentations asks the network for its newest version, at every import.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.case import BRIGHTNESS, CONTRAST, GAMMA, ROTATE, SCALE, Case, Epochs
from dataset.readers import Record


@dataclass(frozen=True)
class Knobs:
    """What the ways differ in."""

    name: str
    crop_first: bool
    """Crop before the affine transform: a quarter of the pixels to warp, but black corners."""
    planes: bool
    """Fill every class in its own contiguous plane, not on a canvas that is copied into (H, W, classes)."""
    uint8: bool
    """Image and masks stay uint8 up to the GPU, not float32."""
    workers: int
    opencv_threads: int
    """In each worker."""


CORES = len(os.sched_getaffinity(0))
PLAIN = Knobs("plain", crop_first=True, planes=False, uint8=False, workers=2, opencv_threads=CORES)
TRIED = (
    Knobs("affine first", crop_first=False, planes=False, uint8=False, workers=2, opencv_threads=0),
    Knobs("crop first", crop_first=True, planes=False, uint8=False, workers=2, opencv_threads=0),
    Knobs("crop first, uint8", crop_first=True, planes=False, uint8=True, workers=2, opencv_threads=0),
    Knobs("crop first, planes", crop_first=True, planes=True, uint8=False, workers=2, opencv_threads=0),
    Knobs("crop first, planes, uint8", crop_first=True, planes=True, uint8=True, workers=2, opencv_threads=0),
    Knobs("crop first, planes, uint8, OpenCV threads", True, True, True, workers=2, opencv_threads=CORES),
    Knobs("crop first, planes, uint8, one worker", True, True, True, workers=1, opencv_threads=CORES),
)


def read_image(record: Record, knobs: Knobs) -> NDArray[Any]:
    """(H, W, 3), uint8 or float64 in 0..1."""
    image: NDArray[np.uint8] = np.asarray(cv2.imread(str(record.image)), dtype=np.uint8)
    return image if knobs.uint8 else image / 255.0


def read_masks(record: Record, shape: tuple[int, ...], classes: Sequence[str], knobs: Knobs) -> NDArray[np.uint8]:
    """(H, W, classes) uint8; with `planes` a view of (classes, H, W)."""
    assert record.label is not None
    annotations = json.loads(record.label.read_text(encoding="utf-8"))["annotations"]
    height, width = shape[:2]
    planes = np.zeros((len(classes), height, width), np.uint8) if knobs.planes else None
    masks = planes.transpose(1, 2, 0) if planes is not None else np.zeros((height, width, len(classes)), np.uint8)
    for annotation in annotations:
        k, points = classes.index(annotation["label"]), np.array(annotation["points"], np.int32)
        if planes is not None:
            cv2.fillPoly(planes[k], [points], 1)
        else:
            canvas = np.zeros((height, width), np.uint8)
            cv2.fillPoly(canvas, [points], 1)
            masks[..., k] = canvas
    return masks


def transforms(case: Case, knobs: Knobs, tone: bool = True) -> A.Compose:
    """The case's augmentation: random affine transform and window, brightness, contrast and gamma with `tone`."""
    affine = A.Affine(rotate=(-ROTATE, ROTATE), scale=(1 - SCALE, 1 + SCALE), p=1)
    crop = A.RandomCrop(case.window, case.window)
    gamma = (round(100 * 2**-GAMMA), round(100 * 2**GAMMA))
    curves = [A.RandomBrightnessContrast(BRIGHTNESS, CONTRAST, p=1), A.RandomGamma(gamma, p=1)] if tone else []
    return A.Compose([*([crop, affine] if knobs.crop_first else [affine, crop]), *curves])


def to_tensors(image: NDArray[Any], masks: NDArray[np.uint8], knobs: Knobs) -> tuple[Tensor, Tensor]:
    """(H, W, …) arrays -> (3, H, W) and (classes, H, W), uint8 or float32."""
    first, second = (torch.from_numpy(array.transpose(2, 0, 1)) for array in (image, masks))
    return (first, second) if knobs.uint8 else (first.float(), second.float())


class UsualDataset(Dataset[tuple[Tensor, Tensor]]):
    """Every image `case.windows` times an epoch. Without `augment` whole images come as they are."""

    def __init__(self, records: Sequence[Record], case: Case, knobs: Knobs, augment: bool = True) -> None:
        self.records, self.case, self.knobs = list(records), case, knobs
        self.transforms = transforms(case, knobs) if augment else None

    def __len__(self) -> int:
        return len(self.records) * self.case.windows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        record = self.records[index % len(self.records)]
        image = read_image(record, self.knobs)
        masks = read_masks(record, image.shape, self.case.classes, self.knobs)
        if self.transforms is not None:
            result = self.transforms(image=image, mask=masks)
            image, masks = result["image"], result["mask"]
        return to_tensors(image, masks, self.knobs)


def build(records: Sequence[Record], case: Case, knobs: Knobs) -> Epochs:
    """Batches of (N, 3, window, window) and (N, classes, window, window). `case.workers` of 0 loads in this process."""
    workers = min(case.workers, knobs.workers)
    loader = DataLoader(
        UsualDataset(records, case, knobs),
        batch_size=case.batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=True,
        worker_init_fn=partial(_set_threads, knobs.opencv_threads),
    )
    return lambda epoch: iter(loader)


def _set_threads(threads: int, worker: int) -> None:
    cv2.setNumThreads(threads)
