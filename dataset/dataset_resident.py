"""The resident executor: all images and labels stay on the training device, and batches are gathered there.

Stored images are uint8. A label is a map of uint8 at its file's full size: each pixel is an index into the table of the
packed words that occur in that image (about 60 of them with 29 bones). 640 images of 2048 px are 5.4 GB.

Everything is integer arithmetic, so a batch is the same on every device. `dataset.dataset_resident` gathers whole
images, `dataset.dataset_resident_sliding` windows; dataset/switches.py has all switches.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from config import Config, ConfigProblem
from dataset.batches import Batch, build_order, report_skipped, sample_side
from dataset.cache import gigabytes, in_order, largest_shapes, open_source
from dataset.frame import Frame
from dataset.labels import Shapes, rasterise, read_shapes
from dataset.order import ALONE, Key, Shard
from dataset.plan import FILTERS, Plan
from dataset.readers import Record
from dataset.samples import Sample, Samples
from dataset.sources import Files, Source
from dataset.switches import SWITCHES, Switches
from dataset.warp import FRACTION, label_steps
from engine.bits import n_words
from engine.files import FileProblem

VARIANTS = ("", *SWITCHES)
"""Each switch alone; they combine."""

SHARE = 0.5
"""Of the free memory that images and labels may take. Network, gradients, optimizer and activations need the rest, and
a batch takes about 60 bytes for each of its pixels while it is made."""
DIGITS = 11
"""Binary digits behind the point of the image warp: 8 bits of grey and twice as many still fit into 32."""
RIM = 3
"""Black rows and columns around a picture: one before it, two behind. What lies outside is read from them."""

Grey = NDArray[np.uint8]
Bits = NDArray[np.int32]
NO_BITS = np.zeros((0, 0, 0), np.int32)


@dataclass(frozen=True)
class Picture:
    """One image and its label, as they are held."""

    frame: Frame
    grey: NDArray[np.uint8]
    """Stored image, (h + RIM, w + RIM), black rim."""
    codes: NDArray[np.uint8]
    """Lower byte of each pixel's index into the table, (H + RIM, W + RIM), rim 0."""
    high: NDArray[np.int16] | None
    """What lies above the lower byte, where the table has more than 256 entries."""
    table: NDArray[np.int32]
    """The packed words that occur, (n, words); the first entry is background."""
    shapes: Shapes


class Memory:
    """Images and labels on a device; also a dataset.sources.Source, for the samples that others take from.

    Args:
        need: bytes of all labels and of all images, rims included, at least.

    Raises:
        FileProblem: a bad image or label, with `bad_image` error; names it.
    """

    def __init__(self, records: Sequence[Record], source: Source, cfg: Config, device: str, need: tuple[int, int]):
        self.device = device
        self.codes, self.greys = (torch.empty(count, dtype=torch.uint8, device=device) for count in need)
        self.frames: list[Frame | str] = []
        """Of each record; what is wrong with it, where it is bad."""
        self.polygons: dict[int, Shapes] = {}
        self.high: dict[int, Tensor] = {}
        self.origins = np.zeros((len(records), 3), np.int64)
        """Of each record: where its label, its image and its table begin."""
        self.sizes = np.zeros((len(records), 2, 2), np.int32)
        """Of each record: height and width of its label and of its image."""
        tables: list[NDArray[np.int32]] = []
        end = np.array([0, 0, 1], np.int64)
        for index, picture in enumerate(in_order(_Reading(records, source, cfg), len(records), "loading")):
            if isinstance(picture, str):
                if cfg.data.bad_image == "error":
                    raise FileProblem(picture)
                self.frames.append(picture)
                continue
            self.frames.append(picture.frame)
            self.polygons[index] = picture.shapes
            self.origins[index] = end
            for kind, (flat, pixels) in enumerate([(self.codes, picture.codes), (self.greys, picture.grey)]):
                self.sizes[index, kind] = pixels.shape[0] - RIM, pixels.shape[1] - RIM
                self.origins[index, kind] += pixels.shape[1] + 1  # past the rim, at the first pixel
                flat[end[kind] : end[kind] + pixels.size] = torch.from_numpy(pixels.ravel())
            if picture.high is not None:
                self.high[index] = torch.from_numpy(picture.high).to(device)
            tables.append(picture.table)
            end += (picture.codes.size, picture.grey.size, len(picture.table))
        background = np.zeros((1, n_words(len(cfg.data.classes))), np.int32)
        self.table = torch.from_numpy(np.concatenate([background, *tables])).to(device)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)  # other streams read it from now on

    def load(self, index: int) -> tuple[Frame, NDArray[np.uint8]]:
        """See Source: the stored image, brought back to the host."""
        frame = self.frames[index]
        if isinstance(frame, str):
            raise FileProblem(frame)
        (height, width), origin = self.sizes[index, 1].tolist(), int(self.origins[index, 1])
        rows = self.greys[origin : origin + height * (width + RIM)].view(height, width + RIM)
        return frame, rows.cpu().numpy()[:, :width]

    def gather(self, indices: Sequence[int], plans: Sequence[Plan]) -> tuple[Tensor, Tensor]:
        """Geometry and tone of plans, one for each index: (N, 1, S, S) uint8 and (N, words, S, S) int32.

        Images within 1/1800 of a stored pixel of the plan's matrix, halves of grey levels rounded upwards.
        """
        frames = [frame for i in indices if isinstance(frame := self.frames[i], Frame)]
        steps = np.stack([label_steps(plan, frame) for plan, frame in zip(plans, frames, strict=True)])
        origins = self._up(self.origins[indices].T[..., None, None])
        sizes = self._up(self.sizes[indices].transpose(1, 2, 0)[..., None, None])
        places, _, _ = _look_up(self._up(steps), sizes[0], origins[0], FRACTION)
        entries = _take(self.codes, places) + origins[2].int()
        for n, index in enumerate(indices):
            if index in self.high:
                entries[n] += _take(self.high[index].view(-1), places[n] - self._start(index)).int() << 8
        words = self.table.index_select(0, entries.view(-1)).view(*entries.shape, -1)
        bits = words.permute(0, 3, 1, 2).contiguous()
        # A stored pixel is a square of `reduction` file pixels, and label_steps hold half a pixel more, to round.
        reductions = np.array([frame.reduction for frame in frames])[:, None, None]
        fine = steps / (reductions << (FRACTION - DIGITS))
        fine[:, 2:] -= 2 ** (DIGITS - 1)
        places, x, y = _look_up(self._up(np.rint(fine).astype(np.int32)), sizes[1], origins[1], DIGITS)
        grey = _blend(self.greys, places, sizes[1][1] + RIM, x, y)
        tones = self._up(np.stack([plan.tone.table() for plan in plans]))
        grey += 256 * torch.arange(len(plans), dtype=torch.int32, device=self.device)[:, None, None]
        return _take(tones.view(-1), grey)[:, None], bits

    def _start(self, index: int) -> int:
        """Where a label's rim begins."""
        return int(self.origins[index, 0]) - int(self.sizes[index, 0, 1]) - RIM - 1

    def _up(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _look_up(lines: Tensor, size: Tensor, origin: Tensor, digits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Places of pixels in a flat array, (N, S, S) int64, and the fixed-point column and row that they come from.

    Args:
        lines: (N, 4, S) int32, as dataset.warp.label_steps.
        size: height and width of the pictures, (2, N, 1, 1) int32.
        origin: places of their first pixels, (N, 1, 1) int64.
    """
    height, width = size
    rim = torch.full_like(width, -1) << digits
    x = (lines[:, 0, None, :] + lines[:, 2, :, None]).clamp_(rim, width << digits)
    y = (lines[:, 1, None, :] + lines[:, 3, :, None]).clamp_(rim, height << digits)
    place = (y >> digits).mul_(width + RIM).add_(x >> digits)
    return place + origin, x, y


def _blend(flat: Tensor, place: Tensor, stride: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear mean of the four pixels at `place` and right of and below it: (N, S, S) int32, 0 to 255."""
    one = 1 << DIGITS
    right, low = x.bitwise_and_(one - 1), y.bitwise_and_(one - 1)
    left = one - right
    top, bottom = ((_take(flat, p) * left).add_(_take(flat[1:], p) * right) for p in (place, place + stride))
    return top.mul_(one - low).add_(bottom.mul_(low)).add_(1 << (2 * DIGITS - 1)).bitwise_right_shift_(2 * DIGITS)


def _take(flat: Tensor, index: Tensor) -> Tensor:
    # Half the time of flat[index] on the CPU, and it takes int32.
    return flat.index_select(0, index.reshape(-1)).view(index.shape)


class _Reading:
    """Reads pictures by index, for threads."""

    def __init__(self, records: Sequence[Record], source: Source, cfg: Config) -> None:
        self.records, self.source, self.classes = records, source, cfg.data.classes

    def __call__(self, index: int) -> Picture | str:
        record = self.records[index]
        try:
            frame, stored = self.source.load(index)
            shapes = read_shapes(record, self.classes)
            bits = rasterise(shapes, self.classes, *frame.view.file, str(record.label))
        except FileProblem as problem:
            return str(problem)
        codes, table = index_map(bits)
        codes = np.pad(codes, (1, RIM - 1))
        high = (codes >> 8).astype(np.int16) if len(table) > 256 else None
        return Picture(frame, np.pad(stored, (1, RIM - 1)), codes.astype(np.uint8), high, table, shapes)


def index_map(bits: NDArray[np.int32]) -> tuple[NDArray[np.integer], NDArray[np.int32]]:
    """Packed words (words, H, W) -> (H, W) uint8 or int32 and a table, (n, words) int32: the map's entries in it.

    The table begins with background, whether it occurs or not. Up to 256 entries the map is uint8.
    """
    flat = bits.reshape(len(bits), -1)
    starts = np.flatnonzero(np.concatenate([[True], (flat[:, 1:] != flat[:, :-1]).any(0)]))
    # Unsigned, so that background comes first.
    runs = np.concatenate([np.zeros((1, len(bits)), np.int32), flat[:, starts].T]).view(np.uint32)
    table, which = np.unique(runs, axis=0, return_inverse=True)
    kind = np.uint8 if len(table) <= 256 else np.int32
    lengths = np.diff(starts, append=flat.shape[1])
    return np.repeat(which.ravel()[1:].astype(kind), lengths).reshape(bits.shape[1:]), table.view(np.int32)


@dataclass(frozen=True)
class Row:
    """One sample of a batch."""

    asked: Key
    key: Key
    """Its image may be another one, which stands in for a bad one."""
    plan: Plan
    weight: float
    """In the loss."""
    skipped: str
    """What is wrong with the bad one."""


class ResidentLoader:
    """See dataset.batches.Loader. A thread makes the next batch while the network trains on the last one."""

    def __init__(self, records: Sequence[Record], cfg: Config, switches: Switches, device: str, shard: Shard) -> None:
        if cfg.data.cache == "ram":
            raise ConfigProblem(
                f"cache is ram, but {cfg.data.dataset_file} holds the images itself and would have them twice: give "
                f"--cache none or --cache disk."
            )
        self.side = sample_side(cfg, switches)
        self.order = build_order(len(records), cfg, switches, shard)
        self.skipped: set[str] = set()
        need = _bytes_needed(Files(records, cfg, switches, self.side))
        _check_room(sum(need), device, cfg)
        memory = Memory(records, open_source(records, cfg, switches, self.side), cfg, device, need)
        self.memory: Memory | None = memory
        self.samples = Samples(records, cfg, self.side, switches.sliding, memory)
        self.samples.polygons = memory.polygons
        self.stream = torch.cuda.Stream(device) if device.startswith("cuda") else None
        if not any(isinstance(frame, Frame) for frame in memory.frames):
            self.samples.sample((0, 0, 0))  # raises, and says why

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """See Loader."""
        assert self.memory is not None, "the loader is closed"
        self.order.epoch, self.order.first_step = epoch, first_step
        waiting: Future[Batch] | None = None
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(os.cpu_count()) as pool:
            for keys in [*self.order, None]:
                following = ahead.submit(self._make, self.memory, keys, pool) if keys else None
                if waiting:
                    yield self._hand_over(waiting.result())
                waiting = following

    def close(self) -> None:
        """Free the memory."""
        self.memory = None
        del self.samples

    def _hand_over(self, batch: Batch) -> Batch:
        report_skipped(batch, self.skipped)
        if self.stream:
            for tensor in (batch.images, batch.bits, batch.weights):
                tensor.record_stream(torch.cuda.current_stream(tensor.device))  # keeps it until the network is done
        return batch

    def _make(self, memory: Memory, keys: list[Key], pool: ThreadPoolExecutor) -> Batch:
        rows = [self._row(key, memory) for key in keys]
        with torch.cuda.stream(self.stream):  # does nothing without a stream
            images, bits = memory.gather([row.key[1] for row in rows], [row.plan for row in rows])
            told = self._apply_effects(rows, images, bits, pool)
            weights = torch.tensor([weight for _, weight, _ in told], device=images.device)
        if self.stream:
            self.stream.synchronize()
        return Batch(
            images, bits, weights, [key for key, _, _ in told], [skipped for _, _, skipped in told if skipped]
        )

    def _row(self, key: Key, memory: Memory) -> Row:
        epoch, index, window = key
        count = len(memory.frames)
        around = [(index + step) % count for step in range(count)]
        here, frame = next((i, frame) for i in around if isinstance(frame := memory.frames[i], Frame))
        shown = (epoch, here, window)
        plan = self.samples.plan(shown, frame)
        skipped = "" if here == index else str(memory.frames[index])
        return Row(key, shown, plan, self.samples.weight(shown, plan), skipped)

    def _apply_effects(
        self, rows: list[Row], images: Tensor, bits: Tensor, pool: ThreadPoolExecutor
    ) -> list[tuple[str, float, str]]:
        """Effects and mixers, on the host and into the batch; returns each sample's key, weight, what was skipped."""
        told = [(self.samples.records[row.key[1]].key, row.weight, row.skipped) for row in rows]
        chosen = [n for n, row in enumerate(rows) if row.plan.effects]
        if not chosen:
            return told
        # Labels stay where they are unless something changes them: they are four bytes of five.
        moved = [n for n in chosen if any(effect.name not in FILTERS for effect in rows[n].plan.effects)]
        labels = dict(zip(moved, bits[moved].cpu().numpy(), strict=True))
        greys = images[chosen, 0].cpu().numpy()
        jobs = [(rows[n], grey, labels.get(n, NO_BITS)) for n, grey in zip(chosen, greys, strict=True)]
        samples = dict(zip(chosen, pool.map(self._finish, jobs), strict=True))
        images[chosen, 0] = torch.from_numpy(np.stack([samples[n].grey for n in chosen])).to(images.device)
        if moved:
            bits[moved] = torch.from_numpy(np.stack([samples[n].bits for n in moved])).to(bits.device)
        for n, sample in samples.items():
            told[n] = sample.key, sample.weight, sample.skipped
        return told

    def _finish(self, job: tuple[Row, Grey, Bits]) -> Sample:
        row, grey, bits = job
        try:
            grey, bits = self.samples.finish(row.key, row.plan, grey, bits)
        except FileProblem:  # of the image that a mixer takes from: another sample, as in all executors
            return self.samples.sample(row.asked)
        return Sample(grey, bits, self.samples.records[row.key[1]].key, row.weight, row.skipped)


def build(
    records: Sequence[Record], cfg: Config, switches: Switches, device: str = "cpu", shard: Shard = ALONE
) -> ResidentLoader:
    """The loader of this executor. Batches are made on `device`, in this process: `workers` has no effect.

    Every rank holds all images, on its own device.

    Raises:
        ConfigProblem: cache is ram; an epoch would have no step.
        FileProblem: too little memory (says how much is needed); a bad image or label, with `bad_image` error.
    """
    return ResidentLoader(records, cfg, switches, device, shard)


def _bytes_needed(files: Files) -> tuple[int, int]:
    """Bytes of all labels and of all images, at most; the second bytes of tables beyond 256 entries come on top."""
    shapes = list(largest_shapes(files))
    return _rimmed([file for file, _ in shapes]), _rimmed([stored for _, stored in shapes])


def _rimmed(shapes: list[tuple[int, int]]) -> int:
    return sum((height + RIM) * (width + RIM) for height, width in shapes)


def _check_room(need: int, device: str, cfg: Config) -> None:
    free = free_bytes(device)
    if need > SHARE * free:
        raise FileProblem(
            f"{cfg.data.dataset_file} needs {gigabytes(need)} on the {device} device for images and labels, and may "
            f"take {gigabytes(int(SHARE * free))}: half of what is free there, as training needs the rest. Give "
            f"--dataset_file dataset.dataset with --cache disk, or a device with more memory."
        )


def free_bytes(device: str) -> int:
    """Bytes that are free on a device; on the host those that programs can have without swapping."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    table = Path("/proc/meminfo")
    lines = table.read_text(encoding="ascii").splitlines() if table.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), sys.maxsize)
