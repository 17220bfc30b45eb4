"""The same samples with MONAI's dictionary transforms (https://monai.readthedocs.io), the mask as 29 channels.

To MONAI's favour: one gray channel, a reader of our own (OpenCV, every class filled in its own plane) in place of
LoadImaged, and no tracking of metadata. `TRIED` are the ways to put its transforms together; the fastest is the peer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import radians

import cv2
import monai.transforms as mt
import numpy as np
import torch
from monai.data import set_track_meta
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.case import BRIGHTNESS, CONTRAST, GAMMA, ROTATE, SCALE, Case, Epochs
from benchmarks.usual_way import Knobs, read_masks
from dataset.readers import Record

READ = Knobs("read", crop_first=True, planes=True, uint8=True, workers=2, opencv_threads=0)
KEYS = ("image", "label")


@dataclass(frozen=True)
class Way:
    name: str
    geometry: Callable[[Case], list[mt.Transform]]
    uint8: bool
    """Cast the masks back to uint8 before they are sent."""


def crop_then_affine(case: Case) -> list[mt.Transform]:
    """A quarter of the pixels to warp, but black corners."""
    return [mt.RandSpatialCropd(KEYS, (case.window, case.window), random_size=False), _affine(None, 0)]


def one_affine(case: Case) -> list[mt.Transform]:
    """The window is a translation of the affine transform, as in our plan: nothing is warped that is not in it."""
    return [_affine((case.window, case.window), (case.size - case.window) / 2)]


def _affine(size: tuple[int, int] | None, translate: float) -> mt.Transform:
    return mt.RandAffined(
        KEYS,
        spatial_size=size,
        prob=1,
        rotate_range=radians(ROTATE),
        translate_range=(translate, translate),
        scale_range=(SCALE, SCALE),
        mode=("bilinear", "nearest"),
        padding_mode="zeros",
        cache_grid=size is not None,
    )


TRIED = (
    Way("RandSpatialCropd and RandAffined", crop_then_affine, uint8=False),
    Way("RandSpatialCropd and RandAffined, masks as uint8", crop_then_affine, uint8=True),
    Way("one RandAffined", one_affine, uint8=False),
    Way("one RandAffined, masks as uint8", one_affine, uint8=True),
)


def read(record: Record, case: Case) -> dict[str, Tensor]:
    """image (1, H, W) float32 in 0..1, label (classes, H, W) uint8."""
    image: NDArray[np.uint8] = np.asarray(cv2.imread(str(record.image), cv2.IMREAD_GRAYSCALE), dtype=np.uint8)
    masks = read_masks(record, image.shape, case.classes, READ).transpose(2, 0, 1)
    return {"image": torch.from_numpy(image)[None].float() / 255, "label": torch.from_numpy(masks)}


def transforms(case: Case, way: Way) -> mt.Compose:
    """The case's augmentation; brightness, contrast and gamma on the image alone."""
    effects = [
        mt.RandShiftIntensityd("image", BRIGHTNESS, prob=1),
        mt.RandScaleIntensityFixedMeand("image", factors=CONTRAST, prob=1),
        mt.RandAdjustContrastd("image", prob=1, gamma=(2**-GAMMA, 2**GAMMA)),
    ]
    cast = [mt.CastToTyped("label", torch.uint8)] if way.uint8 else []
    return mt.Compose([*way.geometry(case), *effects, *cast])


class MonaiDataset(Dataset[tuple[Tensor, Tensor]]):
    """Every image `case.windows` times an epoch."""

    def __init__(self, records: Sequence[Record], case: Case, way: Way) -> None:
        self.records, self.case = list(records), case
        self.transforms = transforms(case, way)

    def __len__(self) -> int:
        return len(self.records) * self.case.windows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.transforms(read(self.records[index % len(self.records)], self.case))
        return sample["image"], sample["label"]


def build(records: Sequence[Record], case: Case, way: Way) -> Epochs:
    """Batches of (N, 1, window, window) float32 and (N, classes, window, window) float32 or uint8."""
    set_track_meta(False)
    loader = DataLoader(
        MonaiDataset(records, case, way),
        batch_size=case.batch,
        shuffle=True,
        num_workers=case.workers,
        persistent_workers=case.workers > 0,
        drop_last=True,
        worker_init_fn=_one_thread,
    )
    return lambda epoch: iter(loader)


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)
