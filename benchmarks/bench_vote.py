"""Hard vote of three submissions on their runs against decoding every mask, voting and encoding with NumPy.

The CSVs hold the phantom's masks: as they are, eroded by a pixel, and shifted by one. Peers read and write them with
pandas and work on a part of the images; their times are scaled to all. Files are compared byte by byte before anything
is timed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.case import FULL, QUICK, Case, draw
from benchmarks.competition_way import decode, encode
from benchmarks.measure import in_turn, milliseconds
from benchmarks.rows import Row
from benchmarks.same import Different
from dataset.labels import rasterise, read_polygons
from inference.submission import SubmissionWriter
from inference.submission_file import SubmissionFile
from inference.votes import vote_submissions, vote_weights

DESCRIPTION = "Hard vote of three submissions on their runs: time, against decoding, voting and encoding with NumPy"

OURS = "ours"
MEMBERS = 3
IMAGES = 288
"""Of the competition's test set: 8 352 rows."""
PART = 4
"""Images that peers work on."""

Vote = Callable[[Sequence[str], int], str]
"""Texts of one mask by all members, and height and width of the image -> the text of the majority."""


def run(quick: bool) -> list[Row]:
    """All rows; `quick` takes 8 images of 256 px, and peers all of them."""
    case, images, part, repeats = (QUICK, 8, 8, 2) if quick else (FULL, IMAGES, PART, 5)
    with tempfile.TemporaryDirectory(prefix="vote-") as folder:
        root = Path(folder)
        whole, shown = write_members(case, images, root / "whole"), write_members(case, part, root / "part")
        works = {OURS: partial(ours, whole), **{name: partial(peer, vote, shown, case) for name, vote in PEERS.items()}}
        expected = ours(shown, root / "expected.csv").read_bytes()
        for name in PEERS:
            if works[name](root / f"{name}.csv").read_bytes() != expected:
                raise Different(f"{name}: the CSV of the vote differs from ours.")
        sides = {name: partial(timed, work, root / "timed.csv") for name, work in works.items()}
        times = in_turn(sides, repeats)
    rows = images * len(case.classes)
    note = (
        f"Peers vote over {part} of the {images} images; their times are scaled to all. The first decodes, votes and "
        "encodes; the second never makes a mask."
    )
    return [
        Row(
            f"hard vote of {MEMBERS} CSVs of {rows} rows, {case.size} px",
            name,
            "ms",
            times[OURS],
            tuple(time * images / part for time in times[name]),
            note,
        )
        for name in PEERS
    ]


def write_members(case: Case, images: int, folder: Path) -> list[Path]:
    """The members' CSVs. There are fewer phantoms than images: they come again, shifted to the side."""
    drawn = [
        rasterise(read_polygons(record.label, case.classes), case.classes, case.size, case.size, record.name)
        for record in draw(case)[:images]
        if record.label
    ]
    names = [f"image{i:03}.png" for i in range(images)]
    paths = [folder / f"{name}.csv" for name in VARIANTS]
    for path, vary in zip(paths, VARIANTS.values(), strict=True):
        varied = [vary(bits) for bits in drawn]
        with SubmissionWriter(path, names, case.classes) as writer:
            for i, name in enumerate(names):
                writer.write(name, np.roll(varied[i % len(drawn)], i // len(drawn), axis=2))
    return paths


VARIANTS: dict[str, Callable[[NDArray[np.int32]], NDArray[np.int32]]] = {
    "as it is": lambda bits: bits,
    "eroded": lambda bits: bits & np.roll(bits, 1, axis=1) & np.roll(bits, 1, axis=2),
    "shifted": lambda bits: np.roll(bits, (1, 1), axis=(1, 2)),
}


def ours(paths: Sequence[Path], output: Path) -> Path:
    files = [SubmissionFile(path) for path in paths]
    vote_submissions(files, output, vote_weights(files[0].classes, len(files), (), {}))
    return output


def peer(vote: Vote, paths: Sequence[Path], case: Case, output: Path) -> Path:
    tables = [pd.read_csv(path, keep_default_na=False) for path in paths]
    texts = zip(*(table["rle"] for table in tables), strict=True)
    tables[0].assign(rle=[vote(row, case.size) for row in texts]).to_csv(output, index=False)
    return output


def usual(texts: Sequence[str], size: int) -> str:
    """A stack of masks, with the competition's functions."""
    stack = np.stack([decode(text, size, size) for text in texts])
    return encode(stack.sum(axis=0) > len(texts) / 2)


def frugal(texts: Sequence[str], size: int) -> str:
    """As fast as we could make it with NumPy: votes are counted in one plane of bytes, and no mask is made."""
    votes = np.zeros(size * size + 2, np.uint8)
    for text in texts:
        numbers = np.fromstring(text, np.int64, sep=" ") if text else np.empty(0, np.int64)
        for first, length in numbers.reshape(-1, 2).tolist():
            votes[first : first + length] += 1
    inside = votes > len(texts) // 2
    runs = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    runs[1::2] -= runs[::2]
    return " ".join(map(str, runs.tolist()))


PEERS: dict[str, Vote] = {"NumPy, the competition's functions": usual, "NumPy, votes counted in one plane": frugal}


def timed(work: Callable[[Path], Path], output: Path) -> float:
    """Milliseconds; the output is gone afterwards."""
    output.unlink(missing_ok=True)
    return milliseconds(lambda: work(output))
