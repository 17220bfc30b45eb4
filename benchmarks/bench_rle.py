"""Masks of one image to run-length text and back, against the competition's function and pycocotools.

Each side begins with what it has after thresholding: ours with packed words, the others with one plane a class. Ours
and the competition's end with the CSV's texts, pycocotools with its compressed counts; these are decoded for the
comparison of results, outside of the times. Decoding leads back to what each side began with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import competition_way
from benchmarks.case import FULL, QUICK, draw
from benchmarks.fastest import fastest
from benchmarks.measure import in_turn, milliseconds
from benchmarks.rows import Row
from benchmarks.same import Different
from dataset.labels import read_label
from engine.rle import decode_bits, encode_bits

DESCRIPTION = "Masks of one image to run-length text and back, against the competition's function and pycocotools"

OURS, COMPETITION = "ours", "competition's function"
COPIED, VIEWED = "pycocotools, with the Fortran copy it needs", "pycocotools, transposed view"
DECODED = "pycocotools"
VIEW_NOTE = (
    "Transposed view: planes in C order lie in Fortran order from the other side, so pycocotools takes them without a "
    "copy, and its columns are our rows. Its documentation has the copy."
)
REPEATS = 7

Planes = NDArray[np.bool_]
Work = Callable[[], Any]


def run(quick: bool) -> list[Row]:
    """All rows; `quick` takes 256 px instead of 2048."""
    case = QUICK if quick else FULL
    return rows(read_label(draw(case)[0], case.classes, case.size, case.size), len(case.classes))


def rows(bits: NDArray[np.int32], n_classes: int) -> list[Row]:
    """Encoding and decoding of the masks in packed words, (words, H, W)."""
    masks, (height, width) = competition_way.planes(bits, n_classes), bits.shape[1:]
    texts = encode_bits(bits, n_classes)
    encode, note = competition_encoder(masks)
    decode = partial(competition_way.decode_all, texts, height, width)
    agree(COMPETITION, encode(), texts)
    agree(COMPETITION, decode(), masks)
    agree(OURS, decode_bits(texts, height, width), bits)
    encoders: dict[str, Work] = {OURS: partial(encode_bits, bits, n_classes), COMPETITION: encode}
    decoders: dict[str, Work] = {OURS: partial(decode_bits, texts, height, width), COMPETITION: decode}
    encoders |= coco_encoders(masks)
    decoders[DECODED] = coco_decoder(masks)
    size = f"{n_classes} x {height} x {width}"
    notes = {COMPETITION: note, VIEWED: VIEW_NOTE}
    return [
        *compared(f"masks to RLE strings, {size}", encoders, notes),
        *compared(f"RLE strings to masks, {size}", decoders, {}),
    ]


def compared(case: str, works: Mapping[str, Work], notes: Mapping[str, str]) -> list[Row]:
    """A row for each but ours."""
    times = in_turn({name: partial(milliseconds, work) for name, work in works.items()}, REPEATS)
    return [Row(case, peer, "ms", times[OURS], times[peer], notes.get(peer, "")) for peer in works if peer != OURS]


def competition_encoder(masks: Planes) -> tuple[Work, str]:
    """The competition's function on the faster of the types that masks come in, and what was tried."""
    ways = {
        str(planes.dtype): partial(competition_way.encode_all, planes) for planes in (masks, masks.view(np.uint8))
    }
    best, tried = fastest(ways)
    return ways[best], f"{COMPETITION}: {tried}."


def coco_encoders(masks: Planes) -> dict[str, Work]:
    """Both ways to pycocotools' compressed counts, once they are checked."""
    from pycocotools import mask as coco  # here: it is no dependency of the product

    pixels = masks.view(np.uint8)
    found: dict[str, Work] = {
        COPIED: lambda: coco.encode(np.asfortranarray(pixels.transpose(1, 2, 0))),
        VIEWED: lambda: coco.encode(pixels.transpose(2, 1, 0)),
    }
    agree(COPIED, coco.decode(found[COPIED]()).transpose(2, 0, 1), masks)
    agree(VIEWED, coco.decode(found[VIEWED]()).transpose(2, 1, 0), masks)
    return found


def coco_decoder(masks: Planes) -> Work:
    """Its compressed counts, rows one after the other as in ours, to masks of (W, H, classes)."""
    from pycocotools import mask as coco  # here: it is no dependency of the product

    counts = coco.encode(masks.view(np.uint8).transpose(2, 1, 0))
    return partial(coco.decode, counts)


def agree(name: str, found: Any, expected: Any) -> None:
    """Compare texts or masks.

    Raises:
        Different: they are not the same.
    """
    if not np.array_equal(found, expected):
        raise Different(f"{name}: the masks or their texts differ from ours, so times say nothing.")
