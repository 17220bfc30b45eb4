"""Where the time of one sample goes, in one thread, stage by stage, for us and for the usual way."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks import usual_way
from benchmarks.case import Case
from benchmarks.measure import milliseconds
from benchmarks.our_way import settings
from benchmarks.usual_way import Knobs
from dataset.cache import open_source
from dataset.images import read_image
from dataset.labels import rasterise, read_polygons
from dataset.png import decode_gray
from dataset.readers import Record
from dataset.samples import Samples
from dataset.switches import switches_of
from dataset.warp import label_region, label_steps, warp_bits, warp_image

Stages = dict[str, Callable[[], float]]
"""Stage -> measures it once, ms for one sample."""

DECODE, RASTERISE, IMAGE, LABEL, SEND = "decode", "rasterise", "warp image, tone", "warp label", "collate and send"


def our_stages(record: Record, case: Case) -> Stages:
    """The steps of dataset.samples.Samples for one window of `record`, from PNG."""
    cfg = settings("PNG", case)
    switches = switches_of(cfg)
    samples = Samples([record], cfg, case.window, True, open_source([record], cfg, switches, case.window))
    frame, stored = samples.source.load(0)
    plan = samples.plan((0, 0, 0), frame)
    steps = label_steps(plan, frame)
    region = label_region(steps, *frame.view.file)
    assert record.label is not None
    polygons = read_polygons(record.label, case.classes)  # kept between samples by the loader too
    fill = (polygons, case.classes, *frame.view.file, str(record.label), region)
    packed = rasterise(*fill)
    ready = (torch.from_numpy(warp_image(stored, plan, frame))[None], samples.bits(0, plan, frame))
    return {
        DECODE: lambda: milliseconds(lambda: read_image(record.image)),
        RASTERISE: lambda: milliseconds(lambda: rasterise(*fill)),
        IMAGE: lambda: milliseconds(lambda: warp_image(stored, plan, frame)),
        LABEL: lambda: milliseconds(lambda: warp_bits(packed, region, label_steps(plan, frame))),
        SEND: sending(ready[0], torch.from_numpy(ready[1]), case),
    }


def usual_stages(record: Record, case: Case, knobs: Knobs) -> Stages:
    """The steps of usual_way.UsualDataset for one window of `record`."""
    image = usual_way.read_image(record, knobs)
    masks = usual_way.read_masks(record, image.shape, case.classes, knobs)
    moved = usual_way.transforms(case, knobs, tone=False)
    whole = usual_way.transforms(case, knobs)
    result = whole(image=image, mask=masks)
    ready = usual_way.to_tensors(result["image"], result["mask"], knobs)
    return {
        DECODE: lambda: milliseconds(lambda: usual_way.read_image(record, knobs)),
        RASTERISE: lambda: milliseconds(lambda: usual_way.read_masks(record, image.shape, case.classes, knobs)),
        IMAGE: lambda: milliseconds(lambda: whole(image=image)),
        # Compose takes no mask without an image.
        LABEL: lambda: (
            milliseconds(lambda: moved(image=image, mask=masks)) - milliseconds(lambda: moved(image=image))
        ),
        SEND: sending(*ready, case),
    }


def floor(record: Record, case: Case) -> float:
    """What no loader from PNG to augmented windows can do without: one decode (ours, the faster) and one warp, ms."""
    matrix = np.array([[0.98, 0.17, 3.0], [-0.17, 0.98, 3.0]])

    def least() -> None:
        image = decode_gray(record.image.read_bytes())
        assert image is not None, "phantoms are gray"
        cv2.warpAffine(image, matrix, (case.window, case.window), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)

    return milliseconds(least)


class Ready(Dataset[tuple[Tensor, Tensor]]):
    """The same finished sample again and again."""

    def __init__(self, sample: tuple[Tensor, Tensor], length: int) -> None:
        self.sample, self.length = sample, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.sample


def sending(image: Tensor, label: Tensor, case: Case) -> Callable[[], float]:
    """Measures ms for one sample through one DataLoader worker that has nothing to do but collate and send."""
    length = 16 * case.batch
    loader = DataLoader(Ready((image, label), length), case.batch, num_workers=1, persistent_workers=True)

    def drain() -> None:
        for _ in loader:
            pass

    drain()  # starts the worker
    return lambda: milliseconds(drain) / length
