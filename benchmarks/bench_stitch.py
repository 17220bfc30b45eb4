"""From a network's windows to CSV rows: our sliding window against MONAI's with the competition's way to a CSV.

Both blend windows by the same Gaussian. MONAI returns the blended logits, which go through sigmoid and threshold and,
class by class, through the competition's function. The network is a stand-in that has its answers ready, in memory of
their own as MONAI writes into them, so the times are those of everything else.

Memory is measured in a process of its own for each side, as the growth of its resident memory (VmHWM in proc(5)) over
what it was with logits and modules loaded: what NumPy, torch and all libraries take counts alike. There the stand-in
makes its answers when they are asked for, as a network does, so those count too.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import competition_way
from benchmarks.case import FULL, QUICK, Case, draw
from benchmarks.measure import in_turn, milliseconds
from benchmarks.ready_network import Ready, logits_of
from benchmarks.rows import Row
from benchmarks.same import Different
from dataset.frame import View, fit_frame
from dataset.labels import read_label
from engine.bits import pack
from engine.rle import decode_bits
from inference.forward import Forward
from inference.masks import Packed, limits_of, on_file
from inference.predictor import Sliding
from inference.submission import SubmissionWriter, read_submission

DESCRIPTION = "From a network's windows to CSV rows, against MONAI's sliding window and the competition's way to a CSV"

OURS, PEER = "ours", "MONAI sliding window + sigmoid + threshold + competition's RLE"
SIGMA = 0.3
"""Standard deviation of the Gaussian as a share of the window, for both."""
NAME = "image.png"
REPEATS = 5

Write = Callable[[Path], None]
"""Writes the CSV of the network's picture."""
Way = Callable[[Ready, Case], Write]
"""Windows overlap by half. What is made here serves all images of a run."""


def run(quick: bool) -> list[Row]:
    """All rows; `quick` takes 256 px instead of 2048."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return rows(QUICK if quick else FULL, 2 if quick else REPEATS)


def rows(case: Case, repeats: int) -> list[Row]:
    """Time against MONAI's fastest setting, and peak memory against that which takes least."""
    title = f"{len(case.classes)} x {case.size} x {case.size}, windows of {case.window}: "
    logits = example(case)
    differ = {name: differing(logits, name, case) for name in MONAI_WAYS}
    works = {name: side(Ready(logits), way, case) for name, way in WAYS.items()}
    for work in works.values():
        work()  # its stand-in learns which windows it will be asked for
    tried = {name: works[name]() for name in MONAI_WAYS}
    best = min(tried, key=tried.__getitem__)
    times = in_turn({OURS: works[OURS], best: works[best]}, repeats)
    least = min(peak_apart(name, case) for name in {best, SMALLEST})
    note = f"MONAI, {'; '.join(f'{name}: {ms:.4g} ms' for name, ms in tried.items())}. "
    note += f"{differ[best]} pixels of all masks differ, all of them within rounding of the threshold."
    return [
        Row(title + "time", PEER, "ms", times[OURS], times[best], note),
        Row(title + "peak memory", PEER, "MB", (peak_apart(OURS, case),), (least,)),
    ]


def example(case: Case) -> Tensor:
    """Logits (classes, size, size) of the first phantom's bones."""
    bits = read_label(draw(case)[0], case.classes, case.size, case.size)
    return logits_of(bits, len(case.classes))


def our_sliding(network: Ready, case: Case) -> Sliding:
    """One window at a time, which is MONAI's fastest on a CPU too."""
    return Sliding(Forward(network, batch=1), case.window, case.window // 2, SIGMA)


def our_way(network: Ready, case: Case) -> Write:
    """Bands -> packed words -> CSV, which is checked as always."""
    shape = (case.size, case.size)
    predictor, picture = our_sliding(network, case), Ready.places(*shape)
    frame, limits = fit_frame(View.whole(shape), case.size, case.window), limits_of([0.5] * len(case.classes), "logits")

    def write(path: Path) -> None:
        masks = Packed(*shape, limits)
        for band in on_file(predictor.bands(picture), frame, "logits"):
            masks.add(band)
        with SubmissionWriter(path, [NAME], case.classes) as writer:
            writer.write(NAME, masks.result())

    return write


def monai_way(network: Ready, case: Case, batch: int, buffer_steps: int | None) -> Write:
    """The whole picture's logits -> probabilities -> planes -> CSV."""
    from monai.inferers.inferer import SlidingWindowInferer  # here: it takes a second

    inferer = SlidingWindowInferer(
        (case.window, case.window),
        batch,
        overlap=0.5,
        mode="gaussian",
        sigma_scale=SIGMA,
        cache_roi_weight_map=True,
        buffer_steps=buffer_steps,
    )
    picture = Ready.places(case.size, case.size)

    def write(path: Path) -> None:
        masks = (torch.sigmoid(inferer(picture, network))[0] > 0.5).numpy()
        competition_way.write_rows(path, [(NAME, masks)], case.classes)

    return write


MONAI_WAYS: dict[str, Way] = {
    f"sw_batch_size {batch}, buffer_steps {steps}": partial(monai_way, batch=batch, buffer_steps=steps)
    for batch in (1, 4)
    for steps in (None, 1)
}
SMALLEST = next(iter(MONAI_WAYS))
"""Takes least memory: neither more windows at a time nor a buffer."""
WAYS: dict[str, Way] = {OURS: our_way, **MONAI_WAYS}


def side(network: Ready, way: Way, case: Case) -> Callable[[], float]:
    """Measures milliseconds of writing the CSV, with the network's answers ready."""
    write = way(network, case)

    def timed() -> float:
        network.get_ready()
        return once(write)

    return timed


def once(write: Write) -> float:
    """Milliseconds of writing the CSV."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        return milliseconds(lambda: write(Path(folder) / "rows.csv"))


def differing(logits: Tensor, name: str, case: Case) -> int:
    """Pixels, over all masks, that a way of MONAI's gives another class than ours.

    Raises:
        Different: one of them has a blended logit that is not within 1e-4 of the threshold.
    """
    ours, theirs = (masks_of(way(Ready(logits), case), case) for way in (our_way, WAYS[name]))
    bands = our_sliding(Ready(logits), case).bands(Ready.places(case.size, case.size))
    near = pack(torch.cat([-band.abs() for band in bands], 1), -1e-4).numpy()
    odd = ours ^ theirs
    if (odd & ~near).any():
        raise Different(f"MONAI, {name}: masks differ from ours by more than rounding.")
    return int(np.bitwise_count(odd.view(np.uint32)).sum())


def masks_of(write: Write, case: Case) -> NDArray[np.int32]:
    """The masks in the CSV that a way writes, packed words (words, size, size)."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "rows.csv"
        write(path)
        (image,) = read_submission(path, case.classes)
    return decode_bits(list(image.rles.values()), case.size, case.size)


def peak_apart(name: str, case: Case) -> float:
    """`peak` in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        return apart.submit(peak, name, case).result()


def peak(name: str, case: Case) -> float:
    """MB that this process grows by, at most, while the CSV is written."""
    logits, way = example(case), WAYS[name]
    tiny = replace(case, size=64, window=32)
    once(way(Ready(torch.zeros(len(case.classes), 64, 64)), tiny))  # loads modules
    write = way(Ready(logits), case)
    # What was freed and kept for the next to ask would be taken without any growth: glibc gives it back.
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
    once(write)
    return _status("VmHWM") - before


def _status(what: str) -> float:
    """A figure of this process, MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) * 1024 / 1e6
