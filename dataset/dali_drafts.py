"""What DataLoader workers prepare for DALI: the encoded file, the numbers of the plan, the label.

So order, resuming and independence of the workers are those of every executor, and DALI draws and reads nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataset.frame import Frame, View, compose, fit_frame
from dataset.images import image_shape, is_dicom, read_encoded, read_image
from dataset.order import Key
from dataset.plan import Plan
from dataset.samples import Samples, Unfit
from dataset.sources import Files
from engine.files import FileProblem


@dataclass(frozen=True)
class Draft:
    """A sample before its image is decoded."""

    asked: Key
    key: Key
    """Its image may be another one, which stands in for a bad one."""
    name: str
    """subject/stem of its image."""
    path: Path
    plan: Plan
    encoded: Tensor
    """The file, (bytes,) uint8."""
    squares: NDArray[np.int32]
    """Stored height, reduction, stored width, reduction: how the file is cut into the squares that are averaged."""
    matrix: NDArray[np.float32]
    """From output to stored pixels, 2 x 3; pixel corners lie at whole numbers."""
    tone: NDArray[np.float32]
    """Gamma, contrast, brightness."""
    skipped: str
    """What was wrong with the image in whose place it stands."""
    weight: float = 1.0
    """Of the sample in the loss."""


@dataclass(frozen=True)
class Drafts:
    """A batch before its images are decoded."""

    drafts: list[Draft]
    bits: Tensor
    """(N, words, size, size) int32, before the effects."""

    def pin_memory(self) -> Drafts:
        """Called by the DataLoader where it pins."""
        return replace(self, bits=self.bits.pin_memory())


class Drafter:
    """Drafts by key, in any worker."""

    def __init__(self, samples: Samples, files: Files) -> None:
        self.samples = samples
        self.files = files
        self.strict = samples.cfg.data.bad_image == "skip"
        # One for all workers, so that no file is looked at twice.
        self.looked_at = torch.zeros(len(files.records), dtype=torch.uint8).share_memory_()

    def draft(self, key: Key) -> tuple[Draft, NDArray[np.int32]]:
        """The sample of a key and its packed label; with `bad_image` skip, as Samples.sample, that of the next image.

        Raises:
            Unfit: DALI can't take the file.
            FileProblem: an image or label can't be used; names it.
        """
        return self.samples.or_next(partial(self._make, key), key)

    def _make(self, asked: Key, key: Key, skipped: str) -> tuple[Draft, NDArray[np.int32]]:
        index, path = key[1], self.files.path(key[1])
        data = read_encoded(path)
        if not self.looked_at[index]:
            check_fit(path, data)
            if self.strict:
                read_image(path)  # what only a decoder notices can't be skipped any more once DALI has the file
            self.looked_at[index] = 1
        frame = self.files.frame(index)
        plan = self.samples.plan(key, frame)
        tone = plan.tone
        draft = Draft(
            asked,
            key,
            self.files.records[index].key,
            path,
            plan,
            encoded=torch.frombuffer(bytearray(data), dtype=torch.uint8),
            squares=squares(frame),
            matrix=matrix_to_stored(frame, plan),
            tone=np.array([tone.gamma, tone.contrast, tone.brightness], np.float32),
            skipped=skipped,
            weight=self.samples.weight(key, plan),
        )
        return draft, self.samples.bits(index, plan, frame)


def collate_drafts(made: list[tuple[Draft, NDArray[np.int32]]]) -> Drafts:
    """Drafts and their labels -> a batch."""
    return Drafts([draft for draft, _ in made], torch.stack([torch.from_numpy(bits) for _, bits in made]))


def squares(frame: Frame) -> NDArray[np.int32]:
    """See Draft."""
    factor, (height, width) = frame.reduction, frame.view.file
    return np.array([-(-height // factor), factor, -(-width // factor), factor], np.int32)


def matrix_to_stored(frame: Frame, plan: Plan) -> NDArray[np.float32]:
    """A plan's matrix from output to stored pixels, for pixel corners instead of centres at whole numbers."""
    matrix = compose(frame.to_stored(), plan.matrix)
    matrix[:, 2] += 0.5 - matrix[:, :2] @ (0.5, 0.5)
    return matrix.astype(np.float32)


def note_views(files: Files) -> bool:
    """Note what is used of each image where its size tells, so that nothing is decoded for it later.

    Returns:
        Whether any image may be stored smaller than its file. A box inside of it is reduced less than the whole.
    """
    reduced = False
    for index in range(len(files.records)):
        try:
            view = View.whole(image_shape(files.path(index)))
        except FileProblem:
            continue  # named when it is used
        if not files.preparation.looks:
            files.views[index] = view
        reduced |= fit_frame(view, files.cfg.window.image_size, files.side).reduction > 1
    return reduced


def check_fit(path: Path, data: bytes) -> None:
    """Raise Unfit where a file is DICOM or has more than 8 bits a pixel and channel: DALI would cut them off."""
    what = "DICOM" if is_dicom(path, data) else "deeper than 8 bits" if _is_deep(data) else ""
    if what:
        raise Unfit(
            f"{path} is {what}, which DALI can't take as OpenCV does: give --dataset_file dataset.dataset, or write "
            f"8-bit JPEGs with scripts/preprocess_to_jpeg.py and add _preprocessed."
        )


def _is_deep(data: bytes) -> bool:
    if data.startswith(b"\x89PNG"):
        return data[24] > 8
    if not data.startswith((b"II", b"MM")):  # of the others only TIFF can be
        return False
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    except cv2.error:
        return False
    return image is not None and image.dtype != np.uint8
