"""Pictures that say which bone a pixel is of, and networks that read it: bone-like masks without a training.

What an untrained network marks is noise, whose run-length text is a hundred times longer than that of bones.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.case import Case, draw
from benchmarks.competition_way import planes
from dataset.labels import read_label
from dataset.readers import Record

STEP = 8
"""Grey levels between classes: 29 of them fit into 255."""


def paint(case: Case, folder: Path) -> list[Record]:
    """The case's labels as pictures, PNG of three equal channels, without labels: class k has the grey (k + 1) STEP."""
    records = []
    for record in draw(case):
        masks = planes(read_label(record, case.classes, case.size, case.size), len(case.classes))
        path = folder / record.subject / record.name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), cv2.merge([painted(masks)] * 3))
        records.append(replace(record, image=path, label=None))
    return records


def painted(masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(H, W) from masks (K, H, W); where they overlap the last one shows."""
    grey = np.zeros(masks.shape[1:], np.uint8)
    for k, mask in enumerate(masks):
        grey[mask] = STEP * (k + 1)
    return grey


class Reader(nn.Module):
    """A network of which hardly more than the time is used: it marks what is painted.

    Reading adds a few passes over the logits, about a hundredth of the forward pass of a real network.

    Args:
        network: (N, 1, H, W) -> logits (N, K, H, W), of which a hundredth counts.
    """

    greys: Tensor

    def __init__(self, network: nn.Module, n_classes: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("greys", STEP * torch.arange(1.0, n_classes + 1).view(1, -1, 1, 1))

    def forward(self, grey: Tensor) -> Tensor:
        """See Args."""
        logits: Tensor = self.network(grey)
        far = (255 * grey.to(logits.dtype) - self.greys.to(logits.dtype)).abs_()  # exact in bfloat16 too
        return logits.mul_(0.01).sub_(far.sub_(STEP / 2))
