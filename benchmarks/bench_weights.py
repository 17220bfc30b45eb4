"""Fitting an ensemble's weights to stored probabilities: time and memory of the whole fit, from files to report.

The members' probabilities are bone-like, as in bench_thresholds: each member and image has its own noise. They are
drawn once into benchmarks/.data, ten images of every phantom.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.bench_thresholds import bone_logits
from benchmarks.case import DATA, FULL, QUICK, Case, draw
from benchmarks.measure import in_turn, milliseconds
from benchmarks.rows import Row
from benchmarks.same import Different
from dataset.labels import read_label
from dataset.readers import Record
from engine.progress import progress
from inference.combined import Source, common_keys, read_together, workers
from inference.fit_weights import collect
from inference.optimal import Options, optimise
from inference.probs import ProbsFolder, ProbsWriter, from_dense, quantise
from inference.thresholds import HALF

DESCRIPTION = "Class weights of three members on 160 images, cross-fitted, with bootstrap; goal: 120 s, 4 GB"

MEMBERS = 3
COPIES = 10
"""Images with noise of their own of each phantom; a subject's two phantoms make one subject each time."""
MARGIN = 64
"""Around a bone's box, px: farther out its probabilities are 0."""
MEMORY = "memory: the largest resident set of this process so far, libraries included."


def run(quick: bool) -> list[Row]:
    """All rows; `quick` takes 40 images of 256 px instead of 160 of 2048."""
    case, repeats = (QUICK, 1) if quick else (FULL, 3)
    sources = stores(case)
    compare(sources)
    keys = common_keys(sources)
    name = f"{MEMBERS} members, {len(case.classes)} classes, {len(keys)} images of {case.size} px"
    fits = {metric: Options("class", metric) for metric in ("soft_dice", "dice")}
    times = in_turn(
        {metric: partial(milliseconds, partial(optimise, sources, options)) for metric, options in fits.items()},
        repeats,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    reading = tuple(milliseconds(partial(collect, sources, keys)) for _ in range(repeats))
    return [
        *(Row(f"class weights by {metric}, members, thresholds; {name}", "", "ms", times[metric]) for metric in fits),
        Row(f"of it reading and sums; {name}", "", "ms", reading),
        Row(f"peak memory; {name}", "", "MB", (peak,), note=MEMORY),
    ]


def stores(case: Case) -> list[Source]:
    """The members' stores, drawn where they don't lie yet."""
    root = DATA / f"{case.root.name}_probs_{COPIES}"
    records = draw(case)
    tasks = [(record, member, copy) for record in records for member in range(MEMBERS) for copy in range(COPIES)]
    missing = [task for task in tasks if not _path(root, *task).exists()]
    with ProcessPoolExecutor(workers()) as pool:
        done = pool.map(partial(_write, root, case), missing)
        list(progress(done, "drawing probabilities", len(missing), "images"))
    return [Source(f"member{member}", ProbsFolder(root / f"member{member}")) for member in range(MEMBERS)]


def compare(sources: Sequence[Source]) -> None:
    """Dice of random weights from disputed pixels against Dice from all pixels, of two images.

    Raises:
        Different: they are not equal.
    """
    keys = common_keys(sources)[:2]
    _, hard = collect(sources, keys)
    weights = np.random.default_rng(0).dirichlet(np.ones(len(sources)), hard.shape[1]).T
    for i, key in enumerate(keys):
        whole = read_together(sources, key).curves([weights])[0, :, HALF - 1]
        for k, dice in enumerate(whole):
            if hard.dice(k, weights[:, k], np.array([i]))[0] != dice:
                raise Different(f"Dice of image {key}, class {k}, from its disputed pixels is not that of all pixels.")


def _key(record: Record, copy: int) -> str:
    return f"{record.subject}-{copy}/{record.image.stem}"


def _path(root: Path, record: Record, member: int, copy: int) -> Path:
    return root / f"member{member}" / f"{_key(record, copy)}.probs"


def _write(root: Path, case: Case, task: tuple[Record, int, int]) -> None:
    record, member, copy = task
    truth = read_label(record, case.classes, case.size, case.size)
    rng = np.random.default_rng([*record.key.encode(), member, copy])
    values = torch.zeros((len(case.classes), case.size, case.size), dtype=torch.uint8)
    for k in range(len(values)):
        mask = ((truth[k // 32] >> (k % 32)) & 1).astype(np.uint8)
        part = _around(mask)
        logits = torch.from_numpy(bone_logits(np.ascontiguousarray(mask[part]), rng))
        values[k][part] = quantise(logits[None].sigmoid())[0]
    image = from_dense(record.key, record.name, values, case.classes, truth)
    writer = ProbsWriter(root / f"member{member}", case.classes, [f"{member:064x}"], "probabilities")
    writer.write(replace(image, key=_key(record, copy)))


def _around(mask: NDArray[np.uint8]) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return slice(0, MARGIN), slice(0, MARGIN)
    return tuple(slice(max(0, int(at[0]) - MARGIN), int(at[-1]) + MARGIN) for at in (rows, columns))  # type: ignore[return-value]
