"""The probability store, and the thresholds of all classes from its histograms, against what dense maps need.

Probabilities are bone-like: the sigmoid of the signed distance to a phantom's bones, with noise of the outline and of
each pixel. A fit reads the files of a store again and again until it has 160 images; the peers' times are taken of a
part and scaled, their reading of dense maps from disk not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.case import FULL, QUICK, Case, draw
from benchmarks.measure import in_turn, milliseconds
from benchmarks.rows import Row
from benchmarks.same import Different
from dataset.labels import read_label
from engine.progress import progress
from inference.metrics import dice_from_counts
from inference.probs import VALUES, ImageProbs, ProbsFolder, ProbsWriter, from_dense, quantise
from inference.thresholds import LEVELS, best_levels, dice_at_levels, probability

DESCRIPTION = "Probability store: size, write, read; thresholds of all classes from it against rescanning dense maps"

IMAGES = 160
RESCAN = "thresholding fp32 maps"
BINCOUNT = "bincount of uint8 maps"
DENSE = "dense fp16, NumPy file"
WRITTEN = (
    "write: ours from dense uint8 values and packed labels on the CPU, boxes and histograms included, flushed to disk "
    "and renamed; np.save is not flushed."
)
PEERS = {
    RESCAN: f"{RESCAN}: np.greater_equal and np.count_nonzero into a buffer at each of 255 thresholds, label's pixels "
    "taken out once a class; timed on one image and class, scaled to all; reading the maps from disk is not counted.",
    BINCOUNT: f"{BINCOUNT}: np.bincount of the quantised maps; timed on one image and class, scaled to all; neither "
    "reading nor quantising the maps is counted.",
}


@dataclass(frozen=True)
class Example:
    """The first image."""

    image: ImageProbs
    q: Tensor
    """(K, H, W) uint8."""
    truth: NDArray[np.int32]
    """Packed labels."""


def bone_logits(mask: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """(H, W) float32 logits of one bone from its (H, W) mask of 0 and 1.

    Signed distance over 2 px, from -12 to 12; the outline wanders by 1.5 px (standard deviation, one knot in 32 px),
    and pixels have noise of 0.5 of their own.
    """
    shape = height, width = mask.shape
    inside, outside = (cv2.distanceTransform(side, cv2.DIST_L2, 3) for side in (mask, 1 - mask))
    knots = rng.standard_normal((height // 32, width // 32), dtype=np.float32)
    wander = cv2.resize(knots, (width, height), interpolation=cv2.INTER_CUBIC)
    smooth = np.clip((inside - outside + 1.5 * wander) / 2, -12, 12)
    return np.asarray(smooth + 0.5 * rng.standard_normal(shape, dtype=np.float32), np.float32)


def run(quick: bool) -> list[Row]:
    """All rows; `quick` takes 4 images of 256 px instead of 16 of 2048."""
    case, repeats = (QUICK, 2) if quick else (FULL, 5)
    with TemporaryDirectory() as folder:
        example = _fill(Path(folder), case)
        store = ProbsFolder(folder)
        return [*_store_rows(store, example, repeats), *_fit_rows(store, example, repeats)]


def _fill(folder: Path, case: Case) -> Example:
    """Write a store of all the case's images; returns the first of them."""
    rng, writer, first = np.random.default_rng(0), _writer(folder, case.classes), None
    for record in progress(draw(case), "writing a store", unit="image"):
        truth = read_label(record, case.classes, case.size, case.size)
        q = torch.empty((len(case.classes), case.size, case.size), dtype=torch.uint8)
        for k in range(len(q)):
            q[k] = quantise(torch.from_numpy(bone_logits(_mask(truth, k), rng))[None].sigmoid())[0]
        image = from_dense(record.key, record.name, q, case.classes, truth)
        writer.write(image)
        first = first or Example(image, q, truth)
    assert first is not None
    return first


def _writer(folder: Path, classes: tuple[str, ...]) -> ProbsWriter:
    return ProbsWriter(folder, classes, ["0" * 64], "probabilities")


def _mask(bits: NDArray[np.int32], k: int) -> NDArray[np.uint8]:
    return np.asarray((bits[k // 32] >> (k % 32)) & 1, np.uint8)


def _store_rows(store: ProbsFolder, example: Example, repeats: int) -> list[Row]:
    """Size of a file, q to file, file to memory."""
    image, case = example.image, f"{len(example.q)} x {example.image.height} x {example.image.width}"
    dense = example.q.numpy().astype(np.float16) / np.float16(255)
    with TemporaryDirectory() as folder:
        path, writer = Path(folder) / "dense.npy", _writer(Path(folder), image.classes)

        def ours() -> None:
            writer.write(from_dense(image.key, image.name, example.q, image.classes, example.truth))

        write = in_turn(
            {"ours": partial(milliseconds, ours), DENSE: partial(milliseconds, partial(np.save, path, dense))}, repeats
        )
        read = in_turn(
            {
                "ours": partial(milliseconds, partial(store.read, image.key)),
                DENSE: partial(milliseconds, partial(np.load, path)),
            },
            repeats,
        )
        size = path.stat().st_size
    return [
        Row(f"size of an image, {case}", DENSE, "MB", (store.bytes_per_image() / 1e6,), (size / 1e6,)),
        Row(f"write an image, {case}", DENSE, "ms", write["ours"], write[DENSE], WRITTEN),
        Row(f"read an image, {case}", DENSE, "ms", read["ours"], read[DENSE]),
    ]


def _fit_rows(store: ProbsFolder, example: Example, repeats: int) -> list[Row]:
    """Best thresholds of all classes, of IMAGES images."""
    q, mask = example.q[0].numpy(), _mask(example.truth, 0).astype(np.bool_)
    probs = q.astype(np.float32) / np.float32(255)
    peers = {RESCAN: partial(rescan, probs, mask), BINCOUNT: partial(bincount, q, mask)}
    ours = dice_at_levels(example.image.histograms, store_truth(example.image))[0]
    for name, work in peers.items():
        # The first level is left out: a store drops values of 1 outside of boxes.
        if not np.array_equal(work()[1:], ours[1:]):
            raise Different(f"{name}: Dice of {example.image.classes[0]} differs from the store's.")
    times = in_turn(
        {
            "ours": partial(milliseconds, partial(fit, store)),
            **{name: partial(milliseconds, work) for name, work in peers.items()},
        },
        repeats,
    )
    case = f"thresholds of {len(example.q)} classes, {IMAGES} images of {example.image.height} px"
    scale = len(example.q) * IMAGES
    return [
        Row(case, name, "ms", times["ours"], tuple(scale * t for t in times[name]), PEERS[name]) for name in peers
    ]


def store_truth(image: ImageProbs) -> NDArray[np.int64]:
    """Histograms of the label's pixels, which all images here have."""
    assert image.true_histograms is not None
    return image.true_histograms


def fit(store: ProbsFolder) -> NDArray[np.int64]:
    """Best level of each class over IMAGES images, read from the store one after the other."""
    images = map(store.read, islice(cycle(store.keys()), IMAGES))
    return best_levels(np.stack([dice_at_levels(image.histograms, store_truth(image)) for image in images]))


def rescan(probs: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Dice of (H, W) maps of one class at all levels, a pass over the map for each."""
    inside, above = probs[mask], np.empty(probs.shape, np.bool_)
    counts = np.empty((3, LEVELS), np.int64)
    counts[2] = inside.size
    for i in range(LEVELS):
        limit = np.float32(probability(i + 1))
        counts[0, i] = np.count_nonzero(inside >= limit)
        counts[1, i] = np.count_nonzero(np.greater_equal(probs, limit, out=above))
    return dice_from_counts(counts)


def bincount(q: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The same from histograms of the dense map."""
    return dice_at_levels(np.bincount(q.ravel(), minlength=VALUES), np.bincount(q[mask], minlength=VALUES))
