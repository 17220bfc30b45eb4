"""A three-member ensemble from image files to the CSV, against its bare forward passes and MONAI's sliding window.

Members, windows, overlap, blending, the mirrored view and soft voting are the same for all. The bare forward passes run
the very batches that ours sends to its networks, and nothing else. MONAI's side decodes an image, calls its sliding
window for each network and view, averages, thresholds, and writes the rows by the competition's function.

On a GPU: nnU-Net, HRNet-W48 and DeepLabV3+ in half precision. `--quick` runs the same code on small networks and
images, on a CPU where there is no GPU.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.case import FULL, QUICK, Case
from benchmarks.ensemble_sides import Side, Task, bare, monai, ours
from benchmarks.measure import in_turn
from benchmarks.painted import paint
from benchmarks.rows import Repeats, Row
from benchmarks.same import Different
from dataset.readers import Record
from engine.rle import decode_bits
from inference.submission import read_submission

DESCRIPTION = "Images a second of a three-member ensemble, against its bare forward passes and MONAI (GPU)"

OURS, BARE, MONAI = "ours", "bare batched forward passes", "MONAI sliding_window_inference"
NO_GPU = "GPU rows: not measured here, there is no GPU."
ON_CPU = "On a CPU nothing crosses to the host, and torch does not count its memory."

REAL = ("model_nnunet", "model_hrnet_w48", "model_deeplabv3plus")
SMALL = ("model_simple_unet_quarter",) * 3
SW_BATCHES = (4, 9)
"""Windows that MONAI's side sends to a network together; the faster is taken."""

PLANNED = (
    ("images a second", BARE, "samples/s"),
    ("images a second", MONAI, "samples/s"),
    ("share of the time that is not forward passes", MONAI, "%"),
    ("to the host, an image", MONAI, "MB"),
    ("peak memory of the device", MONAI, "MB"),
)
"""What, peer and unit of every row."""


def run(quick: bool) -> list[Row]:
    """All rows; `quick` takes small networks and 256 px, whose numbers say nothing."""
    has_gpu = torch.cuda.is_available()
    if quick:
        return rows(Task(QUICK, SMALL, "cuda" if has_gpu else "cpu"), 2)
    if has_gpu:
        return rows(Task(FULL, REAL, "cuda"), 3)
    return [Row(title(Task(FULL, REAL, "cuda")) + what, peer, unit, note=NO_GPU) for what, peer, unit in PLANNED]


def title(task: Task) -> str:
    """What every row's name begins with."""
    where = "GPU, half precision" if task.device == "cuda" else "CPU, float32"
    return f"{len(task.models)} members, {task.case.size} px, windows of {task.case.window}, {where}: "


def rows(task: Task, repeats: int) -> list[Row]:
    """The rows, measured."""
    networks = task.networks()
    with tempfile.TemporaryDirectory() as folder:
        records, place = paint(task.case, Path(folder) / "images"), Places(Path(folder))
        note = agree(networks, records[:1], task, place)
        peer, tried = fastest_monai(networks, records[:2], task, place)
        sides = {OURS: ours(networks, task, amp=True), MONAI: peer}
        forward = bare(networks, sides[OURS], records, place.new())
        speeds = in_turn(
            {name: partial(rate, side, records, task, place) for name, side in {**sides, BARE: forward}.items()},
            repeats,
        )
        outside = {
            name: tuple(100 * (1 - whole / part) for whole, part in zip(speeds[name], speeds[BARE], strict=True))
            for name in sides
        }
        crossing = {name: to_host(side, records[:1], task, place) for name, side in sides.items()}
        peaks = {name: peak(side, records[:1], task, place) for name, side in sides.items()}
    found = [(speeds[OURS], speeds[BARE])]
    found += [(numbers[OURS], numbers[MONAI]) for numbers in (speeds, outside, crossing, peaks)]
    notes = [note, tried, "", ON_CPU, ON_CPU] if task.device == "cpu" else [note, tried, "", "", ""]
    return [
        Row(title(task) + what, peer, unit, mine, theirs, said)
        for (what, peer, unit), (mine, theirs), said in zip(PLANNED, found, notes, strict=True)
    ]


class Places:
    """Folders that do not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def new(self) -> Path:
        """Another one."""
        self.count += 1
        return self.folder / f"results-{self.count}"


def agree(networks: Sequence[nn.Module], records: Sequence[Record], task: Task, place: Places) -> str:
    """Compare masks in float32, and say how many pixels differ.

    Raises:
        Different: more than one in a million.
    """
    mine, theirs = (
        masks_of(side(records, place.new()), task.case)
        for side in (ours(networks, task, amp=False), monai(networks, task, SW_BATCHES[0], amp=False))
    )
    differ = int(np.bitwise_count((mine ^ theirs).view(np.uint32)).sum())
    total = mine[0].size * len(task.case.classes)
    if differ > 1e-6 * total:
        raise Different(f"{MONAI}: {differ} of {total} pixels of all masks differ from ours.")
    models = ", ".join(name.removeprefix("model_") for name in task.models)
    return f"{models}; in float32 {differ} of {total} pixels of all masks of an image differ between ours and MONAI."


def masks_of(csv: Path, case: Case) -> NDArray[np.int32]:
    """Packed words (words, size, size) of a CSV with one image."""
    (image,) = read_submission(csv, case.classes)
    return decode_bits(list(image.rles.values()), case.size, case.size)


def fastest_monai(
    networks: Sequence[nn.Module], records: Sequence[Record], task: Task, place: Places
) -> tuple[Side, str]:
    """MONAI's side with the better number of windows at a time, and what was tried."""
    sides = {batch: monai(networks, task, batch, amp=True) for batch in SW_BATCHES}
    rates = {}
    for batch, side in sides.items():
        rate(side, records, task, place)
        rates[batch] = rate(side, records, task, place)
    tried = "; ".join(f"sw_batch_size {batch}: {found:.3g} a second" for batch, found in rates.items())
    return sides[max(rates, key=rates.__getitem__)], f"MONAI, {tried}."


def rate(side: Side, records: Sequence[Record], task: Task, place: Places) -> float:
    """Images a second."""
    start = time.perf_counter()
    side(records, place.new())
    if task.device == "cuda":
        torch.cuda.synchronize()
    return len(records) / (time.perf_counter() - start)


class ToHost(TorchDispatchMode):
    """Bytes that operations inside it, of this thread, copy from a GPU to the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.is_cuda for tensor in given):
            here = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.device.type == "cpu"]
            self.bytes += sum(tensor.nbytes for tensor in here)
        return out


def to_host(side: Side, records: Sequence[Record], task: Task, place: Places) -> Repeats:
    """MB of an image that cross to the host; none on a CPU."""
    if task.device == "cpu":
        return ()
    with ToHost() as counted:
        side(records, place.new())
    return (counted.bytes / len(records) / 1e6,)


def peak(side: Side, records: Sequence[Record], task: Task, place: Places) -> Repeats:
    """Most GPU memory that tensors take, networks and all, MB; none on a CPU."""
    if task.device == "cpu":
        return ()
    torch.cuda.reset_peak_memory_stats()
    side(records, place.new())
    return (torch.cuda.max_memory_allocated() / 1e6,)
