"""Pseudo-labels: images whose labels a network predicted, which train beside the labelled ones and never validate.

The source is a leaderboard CSV, a folder of masks, or a CSV of statistics that says which masks are plausible; it must
hold each image of its folder once, with all classes. What can be wrong with it is found before training starts, masks
themselves are decoded when they are used.
"""

from __future__ import annotations

import csv
import filecmp
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from statistics import fmean

from config import Config, ConfigProblem, suggest
from dataset.images import image_shape
from dataset.layouts import has_split, read_split
from dataset.match import Files, pair_masks
from dataset.readers import Pseudo, Record, read_folder
from dataset.runs import check_masks, check_names, split_rows
from dataset.switches import switches_of
from engine.files import FileProblem
from engine.rle import parse_runs

HEADER = ["image_name", "class", "rle"]
CONFIDENCE = "confidence"
"""Last column of the CSV, where it states how sure the network was of each row, 0 to 1."""
CONFIDENCE_FILE = "confidence.csv"
"""In a folder of masks: image_name and confidence, 0 to 1, of every image."""

STATS_HEADER = ["filename", "area_frac", "cy_rel", "cx_rel", "plausible"]
"""Of statistics: 1 and 0 in the last column; only the first and the last are read."""
STATS, MASKS = "pseudo_stats", "masks_pseudo"
"""Statistics pseudo_stats_small.csv are about the masks masks_pseudo_small/<stem>.png beside them."""
RAW = "raw_unlabelled"
"""Folder beside statistics that holds their images."""

PIECE = 4096
"""Bytes that are read of each image to find equal files."""


@dataclass(frozen=True)
class Found:
    """The predicted label of one image."""

    record: Record
    confidence: float | None
    """Mean of its rows, 0 to 1; None where the source states none."""


def pseudo_images(cfg: Config) -> list[Record]:
    """The images that `pseudo` labels, without labels: of `pseudo_images`, else beside statistics, else the test split.

    Raises:
        ConfigProblem: the JPEG tree does not hold them, though the loader's name ends in _preprocessed.
        FileProblem: there are none.
    """
    data, root = cfg.data, Path(cfg.data.data_root)
    source = Path(data.pseudo)
    if not data.pseudo_images and is_stats(source):
        return _in_folder(source.parent / RAW, data.subject_pattern)
    if not data.pseudo_images:
        return [replace(record, label=None, masks=()) for record in read_split(cfg, "test")]
    folder = Path(data.pseudo_images)
    inside = folder.relative_to(root).parts if folder.is_relative_to(root) else ()
    if switches_of(cfg).preprocessed and inside[1:2] != ("DCM",):
        raise ConfigProblem(
            f"pseudo_images is {folder}, but the JPEG tree only holds images below {root}/<split>/DCM: move them "
            f"there, or leave _preprocessed out of --dataset_file."
        )
    return _in_folder(folder, data.subject_pattern)


def _in_folder(folder: Path, pattern: str) -> list[Record]:
    """Its images with the subjects that `subject_pattern` finds, so that frames of a video that validates are known."""
    records = read_folder(folder)
    if not pattern or folder.is_file():
        return records
    files = Files("test", folder, folder, [record.image for record in records], [], [], pattern)
    named = pair_masks(files, "").records
    return [replace(record, subject=one.subject) for record, one in zip(records, named, strict=True)]


def pseudo_records(cfg: Config) -> list[Record]:
    """Records of all images that `pseudo` labels with enough confidence, in the order of their folder.

    Raises:
        ConfigProblem: a confidence is asked for and none is stated, or no image has it.
        FileProblem: the source can't be read, or does not fit the images or the classes; names file and line.
    """
    data = cfg.data
    source, images = Path(data.pseudo), pseudo_images(cfg)
    if not source.exists():
        raise FileProblem(f"{source} does not exist: give --pseudo a leaderboard CSV or a folder of masks.")
    label = _label_by_stats if is_stats(source) else _label_by_rows if source.is_file() else _label_by_masks
    found = label(source, images, data.classes, Pseudo(data.pseudo_weight))
    if not data.pseudo_confidence:
        return [one.record for one in found]
    sure = [(one.record, one.confidence) for one in found if one.confidence is not None]
    if not sure:
        raise ConfigProblem(
            f"pseudo_confidence is {data.pseudo_confidence:g}, but {source} states none: add "
            f"{'a column ' + CONFIDENCE if source.is_file() else CONFIDENCE_FILE}, or leave --pseudo_confidence out."
        )
    kept = [record for record, confidence in sure if confidence >= data.pseudo_confidence]
    if not kept:
        raise ConfigProblem(
            f"pseudo_confidence is {data.pseudo_confidence:g}, but the highest of {source} is "
            f"{max(confidence for _, confidence in sure):g}: lower it, or leave --pseudo out."
        )
    return kept


def add_pseudo(cfg: Config, train: Sequence[Record], val: Sequence[Record]) -> list[Record]:
    """`train` and behind it the pseudo-labelled images; those of subjects that validate are left out, and counted.

    So are those of labelled test subjects where statistics are the source: their images are no test split's own.

    Raises:
        ConfigProblem, FileProblem: see pseudo_records; or an image is labelled already, or all are left out.
    """
    subjects, tested = {record.subject for record in val}, ""
    if is_stats(Path(cfg.data.pseudo)) and has_split(cfg, "test"):
        subjects |= {record.subject for record in read_split(cfg, "test") if record.label}
        tested = " or are tested"
    every = pseudo_records(cfg)
    kept = [record for record in every if record.subject not in subjects]
    left = f"{len(every) - len(kept)} of {len(every)} images of {cfg.data.pseudo}"
    count = f"{left} are of subjects that validate{tested}"
    if not kept:
        raise ConfigProblem(f"pseudo: {count}: validate on others, or leave --pseudo out.")
    if len(kept) < len(every):
        _tell(f"pseudo: {count}, and left out")
    _check_unlabelled(kept, [*train, *val])
    return [*train, *kept]


@cache
def _tell(sentence: str) -> None:
    """Once in a process: records are selected for the look at the data and for training."""
    print(sentence, file=sys.stderr, flush=True)


def _check_unlabelled(records: Iterable[Record], labelled: Sequence[Record]) -> None:
    """Raise where an image has a label of people: that is the better one, and if it validates, this is a leak.

    Equal files are found whatever they are called, as subjects of another folder may have other names.
    """
    keys = {record.key: record.image for record in labelled}
    files = {_fingerprint(record.image): record.image for record in labelled if record.image.is_file()}
    for record in records:
        twin = files.get(_fingerprint(record.image))
        if twin is None or not filecmp.cmp(twin, record.image, shallow=False):
            twin = keys.get(record.key)
        if twin is not None:
            raise FileProblem(
                f"{record.image} has a predicted label, but it is labelled already as {twin}: take it out of --pseudo "
                f"and of --pseudo_images."
            )


def _fingerprint(path: Path) -> tuple[int, bytes]:
    """Size and a piece of the middle: of two radiographs these are equal where the files are."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(size // 2)
        return size, file.read(PIECE)


def _unique(images: Sequence[Record], names: Sequence[str], source: Path) -> dict[str, Record]:
    """Name -> image; raises where two have one name."""
    known: dict[str, Record] = {}
    for name, image in zip(names, images, strict=True):
        if other := known.get(name):
            raise FileProblem(
                f"{other.image} and {image.image} are both called {name!r}, so {source} can't tell them apart: rename "
                f"one of them."
            )
        known[name] = image
    return known


@dataclass(frozen=True)
class Row:
    """A row of a CSV."""

    line: int
    """Its number; the header has 1."""
    start: int
    """Its first byte in the file."""
    end: int
    """The byte behind it."""
    fields: list[str]


def _label_by_rows(source: Path, images: Sequence[Record], classes: Sequence[str], pseudo: Pseudo) -> list[Found]:
    """From a leaderboard CSV: classes in any order, but the rows of an image one after the other."""
    known = _unique(images, [record.name for record in images], source)
    found: dict[str, Found] = {}
    rows = _read_rows(source)
    header = next(rows, None)
    if header is None or header.fields not in (HEADER, [*HEADER, CONFIDENCE]):
        raise FileProblem(
            f"{source}, line 1: the header is {','.join(header.fields)[:80] if header else ''!r}, but must be "
            f"{','.join(HEADER)}, with or without {CONFIDENCE} behind it."
        )
    for name, group in groupby(_of_length(source, rows, len(header.fields)), lambda row: row.fields[0]):
        own = list(group)
        where = f"{source}, line {own[0].line}, image {name!r}"
        if name not in known:
            raise FileProblem(f"{where}: there is no such image{suggest(name, known)}: set --pseudo_images to theirs.")
        if name in found:
            raise FileProblem(f"{where}: it begins again, but an image's rows must follow each other: remove one.")
        check_names([row.fields[1] for row in own], classes, where)
        confidences = [_confidence(row.fields[3], f"{source}, line {row.line}") for row in own if row.fields[3:]]
        _check_runs(source, own, known[name])
        label = replace(known[name], label=source, pseudo=replace(pseudo, rows=(own[0].start, own[-1].end)))
        found[name] = Found(label, fmean(confidences) if confidences else None)
    if lacking := [name for name in known if name not in found]:
        raise FileProblem(
            f"{source} has no rows of {known[lacking[0]].image} ({len(lacking)} images in all): predict it too, or set "
            f"--pseudo_images to a folder without it."
        )
    return [found[name] for name in known]


def _read_rows(source: Path) -> Iterator[Row]:
    line, start = 0, 0
    try:
        with open(source, "rb") as file:
            for line, data in enumerate(file, 1):
                (fields,) = split_rows(data.decode("utf-8").rstrip("\r\n"))
                yield Row(line, start, start + len(data), fields)
                start += len(data)
    except OSError as error:
        raise FileProblem(f"{source} cannot be read ({error.strerror}): check the path and its permissions.") from None
    except (ValueError, csv.Error):
        raise FileProblem(f"{source}, line {line}: it is no row of a CSV in UTF-8: write the file again.") from None


def _of_length(source: Path, rows: Iterator[Row], length: int) -> Iterator[Row]:
    for row in rows:
        if len(row.fields) != length:
            raise FileProblem(
                f"{source}, line {row.line}: the row has {len(row.fields)} fields, but the header has {length}: write "
                f"the file again."
            )
        yield row


def _check_runs(source: Path, rows: Sequence[Row], record: Record) -> None:
    height, width = image_shape(record.image)
    for row in rows:
        try:
            parse_runs(row.fields[2], height * width)
        except ValueError as error:
            raise FileProblem(
                f"{source}, line {row.line}, class {row.fields[1]!r} of the {width} x {height} image {record.image}: "
                f"{error}"
            ) from None


def _confidence(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise FileProblem(f"{where}: confidence is {text!r}, but must be a number from 0 to 1: correct it.")
    return value


def _label_by_masks(source: Path, images: Sequence[Record], classes: Sequence[str], pseudo: Pseudo) -> list[Found]:
    """From a folder that holds for each image <stem>/<class>.png of all classes, or <stem>.npz."""
    known = _unique(images, [record.image.stem for record in images], source)
    labels = {path.stem if path.suffix == ".npz" else path.name: path for path in _masks_in(source)}
    if strange := [path for name, path in labels.items() if name not in known]:
        near = suggest(strange[0].stem, known)
        raise FileProblem(f"{strange[0]} has no image of this name{near}: set --pseudo_images to the images predicted.")
    if lacking := [name for name in known if name not in labels]:
        raise FileProblem(
            f"{source} has neither {lacking[0]}/ nor {lacking[0]}.npz ({len(lacking)} images in all): predict it too, "
            f"or set --pseudo_images to a folder without it."
        )
    for name, record in known.items():
        check_masks(labels[name], classes, record.image)
    stated = _read_confidences(source / CONFIDENCE_FILE, [record.name for record in images])
    return [
        Found(replace(record, label=labels[name], pseudo=pseudo), stated.get(record.name))
        for name, record in known.items()
    ]


def is_stats(source: Path) -> bool:
    """Whether it is a CSV of statistics, by its header."""
    if not source.is_file():
        return False
    with open(source, "rb") as file:
        return file.readline(200).decode("utf-8-sig", "replace").strip() == ",".join(STATS_HEADER)


def masks_of_stats(path: Path) -> Path:
    """The folder of the masks that statistics are about."""
    return path.with_name(path.stem.replace(STATS, MASKS, 1))


def _label_by_stats(source: Path, images: Sequence[Record], classes: Sequence[str], pseudo: Pseudo) -> list[Found]:
    """From statistics: the masks that are plausible, of one class."""
    if len(classes) > 1:
        raise ConfigProblem(f"pseudo: {source} is about masks of one class, but classes has {len(classes)}: give one.")
    folder = masks_of_stats(source)
    if folder == source.with_name(source.stem):
        raise FileProblem(f"{source} is about {MASKS}… beside it, but its name lacks {STATS}: call it {STATS}….csv.")
    known = _unique(images, [record.name for record in images], source)
    plausible = _read_plausible(source, known)
    found = []
    for name, record in known.items():
        mask = folder / f"{record.image.stem}.png"
        if not plausible[name]:
            continue
        if not mask.is_file():
            raise FileProblem(f"{mask} does not exist, but {source} calls it plausible: write it, or put 0 there.")
        if image_shape(mask) != image_shape(record.image):
            raise FileProblem(f"{mask} has another size than its image {record.image}: predict it again.")
        label = replace(record, label=mask, pseudo=pseudo, kind="masks", masks=((classes[0], mask),))
        found.append(Found(label, 1.0))
    if not found:
        raise ConfigProblem(f"pseudo: no image of {source} is plausible: train a better network first, or edit it.")
    return found


def _read_plausible(source: Path, known: Collection[str]) -> dict[str, bool]:
    """Image name -> whether its mask is plausible."""
    rows = _read_rows(source)
    next(rows)
    stated: dict[str, bool] = {}
    for row in _of_length(source, rows, len(STATS_HEADER)):
        name, *_, text = row.fields
        where = f"{source}, line {row.line}"
        if name in stated or name not in known:
            why = "there twice" if name in stated else "no image of --pseudo_images"
            raise FileProblem(f"{where}: {name!r} is {why}: remove the row.")
        if text not in ("0", "1"):
            raise FileProblem(f"{where}: plausible is {text!r}, but must be 1 or 0: correct it.")
        stated[name] = text == "1"
    if lacking := [name for name in known if name not in stated]:
        raise FileProblem(f"{source} lacks {lacking[0]!r} ({len(lacking)} images in all): predict it too.")
    return stated


def _masks_in(source: Path) -> list[Path]:
    return sorted(p for p in source.iterdir() if (p.is_dir() or p.suffix == ".npz") and not p.name.startswith("."))


def _read_confidences(path: Path, names: Sequence[str]) -> dict[str, float]:
    """Image name -> confidence; empty where there is no such file."""
    if not path.exists():
        return {}
    header, *rows = [*_read_rows(path)] or [Row(1, 0, 0, [])]
    if header.fields != ["image_name", CONFIDENCE]:
        raise FileProblem(f"{path}, line 1: the header must be image_name,{CONFIDENCE}.")
    stated: dict[str, float] = {}
    for row in _of_length(path, iter(rows), 2):
        name, text = row.fields
        if name in stated or name not in names:
            raise FileProblem(
                f"{path}, line {row.line}: {name!r} is {'there twice' if name in stated else 'no image'}: remove it."
            )
        stated[name] = _confidence(text, f"{path}, line {row.line}")
    if lacking := [name for name in names if name not in stated]:
        raise FileProblem(f"{path} lacks {lacking[0]!r} ({len(lacking)} images in all): add a row for it.")
    return stated
