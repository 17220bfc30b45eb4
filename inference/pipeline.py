"""Records -> packed masks -> CSV, masks, overlays and, where there are labels, Dice."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import nn

from config import Config
from dataset.frame import fit_frame, fit_image
from dataset.images import read_image
from dataset.order import ALONE, Shard
from dataset.readers import Record
from dataset.samples import read_label
from dataset.sources import Preparation
from engine import settings
from engine.files import FileProblem, atomic_path, write_json
from engine.names import check_variant, resolve
from engine.progress import progress
from inference.masks import predict_bits
from inference.metrics import DiceTable, count_bits, dice_from_counts
from inference.overlay import draw_overlay
from inference.predictor import Predictor
from inference.scores import Scores
from inference.submission import SubmissionWriter

CSV_NAME = "submission.csv"


@dataclass(frozen=True)
class Prediction:
    """One image with its masks."""

    record: Record
    image: NDArray[np.uint8]
    bits: NDArray[np.int32]


def build_predictor(cfg: Config, network: nn.Module) -> Predictor:
    """The predictor that `inference_file` names."""
    name = resolve("inference", cfg.inference.inference_file)
    module = name.load()
    check_variant(name, module.VARIANTS)
    predictor: Predictor = module.build(cfg, network)
    return predictor


def predict(predictor: Predictor, records: Iterable[Record], cfg: Config, device: str) -> Iterator[Prediction]:
    """Masks of each record at its own size. Images are prepared as for training: CLAHE, the hand's box, its side."""
    size = cfg.inference.resize_to or cfg.window.image_size
    preparation = Preparation.of(cfg)
    for record in records:
        image = read_image(record.image)
        frame = fit_frame(preparation.view(image), size, predictor.window)
        grey = fit_image(preparation.stored(image, frame), frame)
        bits = predict_bits(predictor, grey, frame, len(cfg.data.classes), cfg.inference.threshold, device)
        yield Prediction(record, image, frame.view.paste(bits))


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
    predictor: Predictor,
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
    predictions = predict(predictor, [records[i] for i, _ in part], cfg, device)
    for prediction, (_, counts) in zip(progress(predictions, "validation", len(part), "images"), part, strict=True):
        if counts:
            score(prediction, table, scores)
    return table


def infer(
    predictor: Predictor, records: Sequence[Record], cfg: Config, device: str, folder: Path
) -> DiceTable | None:
    """Write submission.csv, and what `save_masks` and `save_overlay` ask for, as a new folder, whole or not at all.

    Returns:
        Dice of the records where all have labels, else None.

    Raises:
        FileProblem: the folder exists and is not empty, two images share a name, an image can't be read, the disk is
            full. Then nothing is left behind.
    """
    if cfg.inference.save_overlay or cfg.inference.save_masks != "none":
        _check_stems(records)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileProblem(f"{folder} exists and is never overwritten: move it away or choose another --output.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    try:
        table = _write_results(predictor, records, cfg, device, partial)
        partial.chmod(0o755)  # mkdtemp makes it private, but teams share servers
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return table


def _write_results(
    predictor: Predictor, records: Sequence[Record], cfg: Config, device: str, folder: Path
) -> DiceTable | None:
    classes, chosen = cfg.data.classes, cfg.inference
    table = DiceTable(classes) if all(record.label for record in records) else None
    scores = asked_scores(cfg) if table is not None else None
    with SubmissionWriter(folder / CSV_NAME, [record.name for record in records], classes) as writer:
        for prediction in progress(predict(predictor, records, cfg, device), "inference", len(records), "images"):
            writer.write(prediction.record.name, prediction.bits)
            if chosen.save_masks != "none":
                _write_masks(folder / "masks", prediction, cfg)
            if chosen.save_overlay:
                picture = draw_overlay(prediction.image, prediction.bits, classes)
                write_png(folder / "overlays" / f"{prediction.record.image.stem}.png", picture)
            if table is not None:
                score(prediction, table, scores)
    write_json(folder / "config.json", settings.to_record(cfg))
    if table is not None:
        table.to_csv(folder / "per_class.csv")
    if scores is not None:
        scores.to_csv(folder)
        print(scores.text(), flush=True)
    return table


def draw_example(
    predictor: Predictor, records: Sequence[Record], cfg: Config, device: str, table: DiceTable | None, path: Path
) -> None:
    """Write a picture of one image: of labelled ones that of median Dice, truth beside prediction; else the first."""
    shown = next(r for r in records if table is None or r.key == table.median_image())
    write_png(path, overlay(predictor, shown, cfg, device))


def overlay(predictor: Predictor, record: Record, cfg: Config, device: str) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 BGR picture of the predicted outlines, and beside them the true ones where there are labels."""
    prediction = next(predict(predictor, [record], cfg, device))
    classes = cfg.data.classes
    panels = [draw_overlay(prediction.image, prediction.bits, classes, "prediction")]
    if record.label is not None:
        truth = read_label(record, classes, *prediction.image.shape)
        panels.insert(0, draw_overlay(prediction.image, truth, classes, "truth"))
    return np.concatenate(panels, axis=1)


def new_folder(parent: Path, name: str) -> Path:
    """`parent/name`, or with -2, -3, … behind it: the first that does not exist."""
    folder, count = parent / name, 1
    while folder.exists():
        count += 1
        folder = parent / f"{name}-{count}"
    return folder


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture atomically."""
    ok, data = cv2.imencode(".png", picture)
    assert ok, "PNG encoding of a uint8 array cannot fail"
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _check_stems(records: Sequence[Record]) -> None:
    """Masks and pictures are named by an image's stem: those of a.png and a.jpg would overwrite each other."""
    seen: dict[str, Path] = {}
    for record in records:
        other = seen.setdefault(record.image.stem, record.image)
        if other != record.image:
            raise FileProblem(
                f"{other} and {record.image} would write masks or overlays of one name: rename one of them, or predict "
                f"them apart."
            )


def _write_masks(folder: Path, prediction: Prediction, cfg: Config) -> None:
    """One PNG per class (0 and 255), or one .npz with the packed words and the class names."""
    stem = prediction.record.image.stem
    if cfg.inference.save_masks == "packed":
        with atomic_path(folder / f"{stem}.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, bits=prediction.bits, classes=np.array(json.dumps(cfg.data.classes)))
        return
    for k, name in enumerate(cfg.data.classes):
        mask = ((prediction.bits[k // 32] >> (k % 32)) & 1).astype(np.uint8) * np.uint8(255)
        write_png(folder / stem / f"{name}.png", mask)
