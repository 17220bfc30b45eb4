"""One image and its masks as a script of at most 1 MB, which a page loads without a server.

A page that was opened from the file system may not fetch files, but it may load scripts: a case is a call with one JSON
object, {name, height, width, image, layers}. The image is a JPEG in base64. A layer holds the masks of all classes as
runs, {step, data}: int32 little-endian, first the number of runs of each class, then for each class the differences of
its runs' ends (start, end, start, end, …, 0-based in the flattened image, from 0), compressed by zlib, in base64. The
29 overlapping bones of a hand of 2048 px take 10 KB, as packed words they are 16.8 MB.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.files import FileProblem
from engine.rle import runs_of_bits
from inference.csv_masks import ImageRuns, draw_runs

MOST_BYTES = 1_000_000
"""Of a case's script."""
MOST_RUNS = 60_000
"""Of a layer: a hand of 2048 px has 7 000. What a network that has learned nothing predicts has millions, and is shown
at a fraction of its size."""
QUALITIES = (95, 90, 85, 80, 70, 60, 50)
"""Of the JPEG, the best that fits; at 2048 px mostly 90. Where none fits the image is halved."""


def pack_case(name: str, image: NDArray[np.uint8], layers: Sequence[ImageRuns | None]) -> str:
    """The script of a case.

    Args:
        image: (H, W) uint8.
        layers: truth, then one prediction after the other, each the runs of all classes; None where there is none.

    Raises:
        FileProblem: layers that leave no room for the image: there are too many.
    """
    height, width = image.shape
    packed = [None if runs is None else pack_layer(runs, height, width) for runs in layers]
    case = {"name": name, "height": height, "width": width, "image": "", "layers": packed}
    room = (MOST_BYTES - len(script("Report.addCase", case))) // 4 * 3
    if room <= 0:
        raise FileProblem(f"the masks of {name} alone have more than {MOST_BYTES} bytes: compare fewer predictions.")
    return script("Report.addCase", case | {"image": _text(_jpeg(image, room))})


def script(call: str, value: object) -> str:
    """`call(value);` as JavaScript: ASCII only, so that no encoding and no line separator can break it."""
    return f"{call}({json.dumps(value, allow_nan=False, separators=(',', ':'))});\n"


def pack_layer(runs: ImageRuns, height: int, width: int) -> dict[str, object]:
    """{step, data} of the masks of an image; see above. `step` image pixels are one of the layer, in each direction."""
    step, shown = 1, runs
    if _too_many(runs):
        bits = draw_runs(runs, list(map(str, range(len(runs)))), height, width)
        while _too_many(shown):
            step *= 2
            shown = runs_of_bits(np.ascontiguousarray(bits[:, ::step, ::step]), len(runs))
    ends = [np.diff(mask.reshape(-1), prepend=0) for mask in shown]
    numbers = np.concatenate([np.array([len(mask) for mask in shown]), *ends]).astype("<i4")
    return {"step": step, "data": _text(zlib.compress(numbers.tobytes(), 9))}


def _too_many(runs: ImageRuns) -> bool:
    return sum(map(len, runs)) > MOST_RUNS


def _jpeg(image: NDArray[np.uint8], room: int) -> bytes:
    """The image as JPEG of at most `room` bytes, or the smallest there is."""
    while True:
        for quality in QUALITIES:
            data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
            if len(data) <= room:
                return data
        if min(image.shape) < 2:
            return data
        image = np.asarray(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
