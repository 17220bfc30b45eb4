"""Training samples from files: our loader against the usual way of the competition's teams and against MONAI.

All sides read PNGs of three equal channels and polygons, and make windows with a random affine transform, brightness,
contrast and gamma, through a DataLoader with two workers. They hand over what their design has: ours a gray uint8 image
and packed int32 labels (the loss reads the bits), the others 29 masks. Noise and other effects are off.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context

import cv2
import torch

from benchmarks import gpu_rows, same, stages, usual_way
from benchmarks.case import FULL, QUICK, Case, draw
from benchmarks.measure import in_turn
from benchmarks.our_way import Source, ours, write_jpegs
from benchmarks.rows import Repeats, Row
from benchmarks.throughput import OURS, Peer, compare, fastest, rate_of
from benchmarks.usual_way import CORES, PLAIN, TRIED, Knobs
from benchmarks.workers import probe
from dataset.jpeg_tree import open_tree
from dataset.readers import Record

DESCRIPTION = "Augmented training windows a second, against the competition's usual way and MONAI (CPU, two workers)"

BEST, MONAI, FLOOR = "usual way, best", "MONAI", "floor: one decode, one warp"
THREADS = (
    f"Workers run one thread of torch and of OpenCV each; 'usual way' leaves OpenCV its default of {CORES}."
)


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    repeats: int
    seconds: float
    """Least time of one measurement of a loader."""
    stage_repeats: int


def run(quick: bool) -> list[Row]:
    """All rows; `quick` takes small images, whose numbers say little."""
    case, effort = (QUICK, Effort(2, 0.2, 3)) if quick else (FULL, Effort(5, 3.0, 15))
    records = draw(case)
    # One thread in this process, and before any worker starts: threads of OpenCV don't survive a fork.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    has_monai = find_spec("monai") is not None
    # In a process of its own: what the check loads would count as shared in the memory of our workers.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        apart.submit(check_all, records, case, has_monai).result()
    best, tried = fastest_usual(records, case, effort)
    peers = [
        Peer("usual way", partial(usual_way.build, records, case, PLAIN), THREADS),
        Peer(BEST, partial(usual_way.build, records, case, best), tried),
    ]
    rows = []
    if has_monai:
        peers.append(monai_peer(records, case, effort))
    else:
        note = "MONAI is not installed: `make setup` installs it."
        rows.append(Row("from PNG, loader", MONAI, "samples/s", note=note))
    write_jpegs(case)
    peers.append(Peer(f"{BEST}, from JPEG", partial(usual_way.build, as_jpeg(records, case), case, best)))
    sources: tuple[Source, ...] = ("PNG", "JPEG", "disk cache")
    builds = {f"from {source}": partial(ours, source, records, case) for source in sources}
    rows += compare(builds, peers, effort.repeats, effort.seconds)
    rows += one_thread(records, case, effort, best)
    return rows + gpu_rows.rows(records, case, effort.repeats, effort.seconds)


def check_all(records: Sequence[Record], case: Case, has_monai: bool) -> None:
    """Raise same.Different where a peer reads another image or other labels than we do."""
    for knobs in (PLAIN, *TRIED):
        whole = usual_way.UsualDataset(records, case, knobs, augment=False)[0]
        same.check(f"usual way, {knobs.name}", *whole, records, case)
    if has_monai:
        from benchmarks import monai_way  # here: it is no dependency of the product

        sample = monai_way.read(records[0], case)
        same.check(MONAI, sample["image"], sample["label"], records, case)


def fastest_usual(records: Sequence[Record], case: Case, effort: Effort) -> tuple[Knobs, str]:
    """The usual way at its best, and a sentence on what was tried."""
    ways = {knobs.name: partial(usual_way.build, records, case, knobs) for knobs in TRIED}
    name, rates = fastest(ways, effort.seconds)
    best = next(knobs for knobs in TRIED if knobs.name == name)
    return best, f"{BEST}, is {name!r}. Tried, samples/s: {rates}."


def monai_peer(records: Sequence[Record], case: Case, effort: Effort) -> Peer:
    """MONAI's transforms in the fastest of the ways to put them together."""
    from benchmarks import monai_way  # here: see check_all

    ways = {way.name: partial(monai_way.build, records, case, way) for way in monai_way.TRIED}
    name, rates = fastest(ways, effort.seconds)
    return Peer(MONAI, ways[name], f"{MONAI} is {name!r}. Tried, samples/s: {rates}.")


def as_jpeg(records: Sequence[Record], case: Case) -> list[Record]:
    """The same records with the images of the JPEG tree."""
    tree = open_tree(case.root / "jpeg")
    return [replace(record, image=tree.image(record, case.root)) for record in records]


def one_thread(records: Sequence[Record], case: Case, effort: Effort, best: Knobs) -> list[Row]:
    """Where the time of one sample goes, without workers."""
    record, alone = records[0], replace(case, workers=0)
    loaders = {OURS: ours("PNG", records, alone), BEST: usual_way.build(records, alone, best)}
    for epochs in loaders.values():
        probe(epochs)  # what happens once, such as loading compiled code, is no part of a sample
    rates = in_turn({name: rate_of(epochs, effort.seconds) for name, epochs in loaders.items()}, effort.repeats)
    whole = {name: _milliseconds(rate) for name, rate in rates.items()}
    both = {OURS: stages.our_stages(record, case), BEST: stages.usual_stages(record, case, best)}
    parts = in_turn({f"{side}{name}": f for side in both for name, f in both[side].items()}, effort.stage_repeats)
    floor = in_turn({FLOOR: partial(stages.floor, record, case)}, effort.stage_repeats)[FLOOR]
    return [
        *(Row(f"one thread, {name}", BEST, "ms", parts[OURS + name], parts[BEST + name]) for name in both[OURS]),
        Row("one thread, whole sample", BEST, "ms", whole[OURS], whole[BEST]),
        Row("one thread, whole sample", FLOOR, "ms", whole[OURS], floor),
    ]


def _milliseconds(rates: Repeats) -> Repeats:
    return tuple(1e3 / rate for rate in rates)
