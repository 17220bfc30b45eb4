"""Records -> packed masks -> CSV, masks, overlays and, where there are labels, Dice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from config import Config
from dataset.images import read_image
from dataset.labels import read_label
from dataset.order import ALONE, Shard
from dataset.readers import Record
from engine import settings
from engine.bits import n_words
from engine.devices import half_kinds
from engine.progress import progress
from inference.build import steps_of
from inference.ensemble import Ensemble, Prepared
from inference.find_hands import Placement, find_hands
from inference.forward import Forward
from inference.hands import Hand
from inference.job import Job, Results
from inference.mask_files import write_png
from inference.masks import Packed, Quantised, Sureness, limits_of
from inference.metrics import DiceTable, count_bits, dice_from_counts
from inference.overlapped import Behind, prefetch
from inference.overlay import draw_overlay
from inference.post_process import Finding, Step, apply, low_threshold
from inference.probs import ImageProbs, from_dense
from inference.scores import Scores

LARGEST = 2048
"""Side of the square that a hand is predicted in, px, at most: as large as the competition's images."""


@dataclass(frozen=True)
class Prediction:
    """One image with its masks."""

    record: Record
    image: NDArray[np.uint8]
    bits: NDArray[np.int32]
    probs: ImageProbs | None = None
    findings: tuple[Finding, ...] = ()
    """Missing and split bones, where the step one_bone asks for them."""
    hands: tuple[Hand, ...] = ()
    """What find_hands has found."""
    cutting: float = 0.0
    """Seconds that it took to cut the probabilities out."""


Answer = Callable[[], Prediction]
"""Completes a prediction on the host, on any thread."""


def predict(ensemble: Ensemble, records: Iterable[Record], cfg: Config, device: str) -> Iterator[Prediction]:
    """Masks of each record at its own size, post-processed as the settings ask; see `answers`."""
    return (answer() for answer in answers(ensemble, records, cfg, device))


def answers(ensemble: Ensemble, records: Iterable[Record], cfg: Config, device: str) -> Iterator[Answer]:
    """What the network says of each record, in their order; what is left to do needs the host only.

    Images are decoded and prepared ahead. So the network waits neither for files nor for what is done with its masks,
    if answers are completed on another thread.

    Args:
        cfg: classes, `save_probs` and `post_process`; what belongs to the members is in the ensemble.

    Raises:
        FileProblem: an image can't be read, or memory runs out with a single window.
    """
    steps = steps_of(cfg)
    for image in prefetch(records, partial(_load, ensemble, cfg)):
        if cfg.inference.find_hands:
            raws = list(_each_hand(ensemble, image, cfg, device, steps))
            yield partial(_put_together, image, len(cfg.data.classes), raws, steps)
        else:
            yield partial(_complete, _collect(ensemble, image, cfg, device, low_threshold(steps)), steps)


def _complete(raw: _Raw, steps: tuple[Step, ...]) -> Prediction:
    bits, findings = apply(raw.bits, raw.classes, steps, raw.low) if steps else (raw.bits, ())
    return Prediction(raw.image.record, raw.image.pixels, bits, raw.probs, findings, (), raw.cutting)


def _each_hand(
    ensemble: Ensemble, image: _Loaded, cfg: Config, device: str, steps: tuple[Step, ...]
) -> Iterator[tuple[Placement, _Raw]]:
    """The hands of an image, each predicted upright and as large as in its file."""
    network = ensemble.members[0].network
    network.to(device)  # of members that take turns it may be away
    forward = Forward(network, half=half_kinds(cfg.train), batch=cfg.window.window_batch)
    for placement in find_hands(forward, cfg.data.classes, image.pixels, device):
        square = placement.cut(image.pixels, placement.natural_size(LARGEST))
        upright = _Loaded(image.record, square, ensemble.prepare(square), None)
        yield placement, _collect(ensemble, upright, cfg, device, low_threshold(steps))


def _put_together(
    image: _Loaded, n_classes: int, raws: list[tuple[Placement, _Raw]], steps: tuple[Step, ...]
) -> Prediction:
    """One answer of all hands; steps see one hand at a time, so that each keeps its own largest component."""
    height, width = image.pixels.shape
    bits = np.zeros((n_words(n_classes), height, width), np.int32)
    found: list[Finding] = []
    hands: list[Hand] = []
    for placement, raw in raws:
        done = _complete(raw, steps)
        placement.paste(done.bits, bits)
        found += done.findings
        where = placement.side, placement.turned, placement.inverted, placement.score
        hands.append(Hand(*where, raw.confidence))
    return Prediction(image.record, image.pixels, bits, None, tuple(found), tuple(hands))


@dataclass(frozen=True)
class _Loaded:
    record: Record
    pixels: NDArray[np.uint8]
    prepared: list[Prepared]
    truth: NDArray[np.int32] | None
    """Only where it is stored with the probabilities."""


def _load(ensemble: Ensemble, cfg: Config, record: Record) -> _Loaded:
    pixels = read_image(record.image)
    labelled = cfg.inference.save_probs and record.label is not None
    truth = read_label(record, cfg.data.classes, *pixels.shape) if labelled else None
    return _Loaded(record, pixels, [] if cfg.inference.find_hands else ensemble.prepare(pixels), truth)


@dataclass(frozen=True)
class _Raw:
    """What has left the device."""

    image: _Loaded
    classes: tuple[str, ...]
    bits: NDArray[np.int32]
    low: NDArray[np.int32] | None
    """Masks at a lower threshold, where a step of the post-processing needs them."""
    probs: ImageProbs | None
    cutting: float
    confidence: tuple[float, ...]
    """Mean probability in each mask, where hands were looked for."""


def _collect(ensemble: Ensemble, image: _Loaded, cfg: Config, device: str, low: float | None) -> _Raw:
    while True:
        try:
            return _collected(ensemble, image, cfg, device, low)
        except torch.OutOfMemoryError as error:
            problem = error.with_traceback(None)  # whose frames hold the tensors that filled the memory
        ensemble.step_down(problem)


def _collected(ensemble: Ensemble, image: _Loaded, cfg: Config, device: str, low: float | None) -> _Raw:
    classes, (height, width) = cfg.data.classes, image.pixels.shape
    masks = Packed(height, width, ensemble.limits(device))
    lower = Packed(height, width, limits_of([low] * len(classes), ensemble.blend).to(device)) if low else None
    sure = Sureness(ensemble.limits(device), ensemble.blend) if cfg.inference.find_hands else None
    dense = Quantised(len(classes), height, width, device) if cfg.inference.save_probs else None
    for band in ensemble.bands(image.prepared, device):
        masks.add(band)
        if lower:
            lower.add(band)
        if sure:
            sure.add(band)
        if dense:
            dense.add(band.sigmoid() if ensemble.blend == "logits" else band)
    bits, low_bits, record = masks.result(), lower.result() if lower else None, image.record
    start = time.perf_counter()
    probs = from_dense(record.key, record.name, dense.values, classes, image.truth) if dense else None
    cutting = time.perf_counter() - start
    return _Raw(image, classes, bits, low_bits, probs, cutting, sure.result() if sure else ())


def fill(
    job: Job, work: Iterable[tuple[Ensemble, Sequence[Record]]], cfg: Config, device: str
) -> Results | None:
    """Predict what is left to do in a job that is entered, and end it; None where other parts are still missing.

    Args:
        work: who predicts which of the job's images, in the job's order.
    """
    todo = set(job.todo)
    found = chain.from_iterable(
        answers(ensemble, [record for record in records if record in todo], cfg, device) for ensemble, records in work
    )
    with Behind() as behind:
        for answer in progress(found, "inference", len(todo), "images"):
            behind.put(partial(_write, job, answer))
    if job.stored.images:
        print(f"probabilities: {job.stored}", flush=True)
    return job.finish()


def _write(job: Job, answer: Answer) -> None:
    job.write(answer())


def score(prediction: Prediction, table: DiceTable, scores: Scores | None) -> None:
    """Add the competition's Dice of one labelled image, at its full size, to the table, and what else is asked for."""
    truth = read_label(prediction.record, table.classes, *prediction.image.shape)
    table.add(prediction.record.key, dice_from_counts(count_bits(prediction.bits, truth, len(table.classes))))
    if scores:
        scores.add(prediction.record.key, prediction.bits, truth)


def asked_scores(cfg: Config) -> Scores | None:
    """An empty table for the metrics that the settings ask for beside Dice."""
    chosen = cfg.inference
    return Scores(cfg.data.classes, chosen.metrics, chosen.surface_tolerance) if chosen.metrics else None


def validate(
    ensemble: Ensemble,
    records: Sequence[Record],
    cfg: Config,
    device: str,
    shard: Shard = ALONE,
    scores: Scores | None = None,
) -> DiceTable:
    """The leaderboard's own score of labelled records, through the submission path; others go into `scores`.

    Of several processes each scores its shard: equally many images, of which those that pad the last round don't count.
    """
    table = DiceTable(cfg.data.classes)
    part = shard.padded(len(records))
    # Nobody would read the probabilities; and hands of labelled images lie as those that the network learns from.
    cfg = settings.replace(cfg, {"save_probs": False, "find_hands": False})
    found = answers(ensemble, [records[i] for i, _ in part], cfg, device)
    with Behind() as behind:
        for answer, (_, counts) in zip(progress(found, "validation", len(part), "images"), part, strict=True):
            if counts:
                behind.put(partial(_score, answer, table, scores))
    return table


def _score(answer: Answer, table: DiceTable, scores: Scores | None) -> None:
    score(answer(), table, scores)


def draw_example(
    ensemble: Ensemble, records: Sequence[Record], cfg: Config, device: str, table: DiceTable | None, path: Path
) -> None:
    """Write a picture of one image: of labelled ones that of median Dice, truth beside prediction; else the first."""
    shown = next(r for r in records if table is None or r.key == table.median_image())
    write_png(path, overlay(ensemble, shown, cfg, device))


def overlay(ensemble: Ensemble, record: Record, cfg: Config, device: str) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 BGR picture of the predicted outlines, and beside them the true ones where there are labels."""
    prediction = next(predict(ensemble, [record], cfg, device))
    classes = cfg.data.classes
    panels = [draw_overlay(prediction.image, prediction.bits, classes, "prediction")]
    if record.label is not None:
        truth = read_label(record, classes, *prediction.image.shape)
        panels.insert(0, draw_overlay(prediction.image, truth, classes, "truth"))
    return np.concatenate(panels, axis=1)
