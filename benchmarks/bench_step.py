"""What the training loop costs beside the network: its steps against a bare loop on one batch that is kept in memory.

Both train the same network with the same loss, clipping and optimizer, and take turns. The bare loop is what remains of
`Trainer.run_steps` without data, transfers, checks and progress. Saving and validation are no part of either.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.case import Case, draw
from benchmarks.measure import in_turn
from benchmarks.our_way import settings as settings_of
from benchmarks.rows import Repeats, Row
from dataset.batches import Batch
from engine import settings
from engine.pace import Pace
from train import Trainer

DESCRIPTION = "The training loop's steps against forward, loss, backward and optimizer on one batch kept in memory"

OURS, BARE = "our loop", "bare loop on one batch"
REST = "share of a step outside of forward, loss, backward, clipping and optimizer"
NO_GPU = "GPU rows: not measured here, there is no GPU."

FULL = Case(size=1024, window=512, subjects=4, windows=1, batch=2, workers=0)
QUICK = Case(size=256, window=128, subjects=2, windows=1, batch=2, workers=0)
GPU = Case(size=2048, window=1024, subjects=8, windows=4, batch=2, workers=8)

ON_CPU: dict[str, dict[str, Any]] = {
    f"model_unet_resnet34, CPU, {workers} workers": {
        "model_file": "model.model_unet_resnet34", "cache": "ram", "workers": workers, "device": "cpu",
    }
    for workers in (0, 2)
}  # fmt: skip
"""What is measured -> its settings, those of the case aside."""
ON_GPU: dict[str, dict[str, Any]] = {
    f"{model}, GPU, {kind}{', compiled' if compiled else ''}": {
        "model_file": f"model.{model}", "dataset_file": "dataset.dataset_resident_sliding", "device": "cuda",
        "amp": kind == "half precision", "compile": compiled,
    }
    for model in ("model_nnunet", "model_hrnet_w48")
    for kind, compiled in (("half precision", False), ("half precision", True), ("float32", False))
}  # fmt: skip
CURVE = 64
"""Steps of the loss curves that half precision and float32 are compared by; the last quarter's mean is shown."""


def run(quick: bool) -> list[Row]:
    """All rows; `quick` takes small windows, whose steps are too short to say much."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    case, repeats = (QUICK, 3) if quick else (FULL, 4)
    rows = [row for name, values in ON_CPU.items() for row in measured(name, values, case, repeats)]
    return rows + gpu_rows(QUICK if quick else GPU, repeats)


def gpu_rows(case: Case, repeats: int) -> list[Row]:
    """The rows with numbers where there is a GPU, else without."""
    if torch.cuda.is_available():
        rows = [row for name, values in ON_GPU.items() for row in measured(name, values, case, repeats)]
        return rows + curves(ON_GPU, case, CURVE)
    planned = [(name, BARE, unit) for name in ON_GPU for unit in ("ms", "samples/s", "MB")]
    planned += [(f"loss after {CURVE} steps, {name}", "float32", "loss") for name in _halves(ON_GPU)]
    return [Row(*row, note=NO_GPU) for row in planned]


def measured(name: str, values: Mapping[str, Any], case: Case, repeats: int) -> list[Row]:
    """Time of a step in both loops, samples a second, and what is ours in it: the rest on a CPU, memory on a GPU."""
    trainer = build(values, case)
    try:
        batch = next(iter(trainer.loader.epoch(0)))
        shares: list[float] = []
        on_gpu = trainer.device == "cuda"
        ours = partial(epoch, trainer) if on_gpu else partial(watched, trainer, shares)
        sides: dict[str, Callable[[], float]] = {OURS: ours, BARE: partial(bare, trainer, batch)}
        for warm in sides.values():
            warm()
        shares.clear()
        times = in_turn(sides, repeats)
        peaks = {side: _peak(work) for side, work in sides.items()} if on_gpu else {}
    finally:
        trainer.loader.close()
    rates: dict[str, Repeats] = {side: tuple(1e3 * case.batch / ms for ms in found) for side, found in times.items()}
    note = f"{case.window} px, batch {case.batch}, {len(case.classes)} classes; {torch.get_num_threads()} threads."
    return [
        Row(name, BARE, "ms", times[OURS], times[BARE], note),
        Row(name, BARE, "samples/s", rates[OURS], rates[BARE]),
        Row(name, BARE, "MB", peaks[OURS], peaks[BARE]) if on_gpu else Row(f"{name}: {REST}", BARE, "%", tuple(shares)),
    ]


def curves(tasks: Mapping[str, Mapping[str, Any]], case: Case, steps: int) -> list[Row]:
    """Mean loss of the last quarter of a short training, in half precision and in float32."""
    rows = []
    for name in _halves(tasks):
        half, single = (last_losses({**tasks[name], "amp": amp}, case, steps) for amp in (True, False))
        rows.append(Row(f"loss after {steps} steps, {name}", "float32", "loss", (half,), (single,)))
    return rows


def _halves(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [name for name, values in tasks.items() if values["amp"] and not values["compile"]]


def last_losses(values: Mapping[str, Any], case: Case, steps: int) -> float:
    """Mean loss of the last quarter of `steps` steps."""
    trainer = build(values, case)
    means: list[float] = []
    try:
        while len(means) * len(trainer.loader) < steps:
            epoch(trainer)
            means.append(trainer.at.loss_sum / trainer.at.losses)
    finally:
        trainer.loader.close()
    return fmean(means[-max(1, len(means) // 4) :])


def build(values: Mapping[str, Any], case: Case) -> Trainer:
    """A trainer on the case's images."""
    trainer = Trainer(settings.replace(settings_of("PNG", case), {"fold": "none", **values}), draw(case))
    trainer.network.train()
    return trainer


def epoch(trainer: Trainer) -> float:
    """Milliseconds of a step over the next epoch of the real loop."""
    at = trainer.at
    at.epoch, at.step, at.loss_sum, at.losses = at.epoch + 1, 0, 0.0, 0
    start = time.perf_counter()
    trainer.run_steps(Pace(trainer.device))
    return _each(trainer, start)


def bare(trainer: Trainer, batch: Batch) -> float:
    """Milliseconds of a step over as many steps on one batch."""
    images, bits, weights = (part.to(trainer.device) for part in (batch.images, batch.bits, batch.weights))
    grey, clip = images.float() / 255, trainer.cfg.train.grad_clip
    start = time.perf_counter()
    for _ in range(len(trainer.loader)):
        with torch.autocast(trainer.device, trainer.half) if trainer.half else nullcontext():
            logits = trainer.model(grey)
        trainer.scaler.scale(trainer.loss(logits, bits, weights)).backward()
        trainer.scaler.unscale_(trainer.optimizer)
        nn.utils.clip_grad_norm_(trainer.network.parameters(), clip)
        trainer.scaler.step(trainer.optimizer)
        trainer.scaler.update()
        trainer.optimizer.zero_grad(set_to_none=True)
    return _each(trainer, start)


def watched(trainer: Trainer, shares: list[float]) -> float:
    """`epoch`, which appends the percent of its time that is not spent in what the bare loop does.

    For CPUs, where a call returns when its work is done.
    """
    inside = Inside()
    with (
        inside.counted(trainer, "model"),
        inside.counted(trainer, "loss"),
        inside.counted(Tensor, "backward"),
        inside.counted(nn.utils, "clip_grad_norm_"),
        inside.counted(trainer.optimizer, "step"),
    ):
        each = epoch(trainer)
    shares.append(100 * (1 - inside.milliseconds / (each * len(trainer.loader))))
    return each


@dataclass
class Inside:
    """Time spent in some functions, which must not call each other."""

    milliseconds: float = 0.0
    calls: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def counted(self, owner: Any, name: str) -> Iterator[None]:
        """Count the calls of `owner.name` and their time until the end of the block."""
        function = getattr(owner, name)
        self.calls[name] = 0

        def timed(*args: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **named)
            self.milliseconds += 1e3 * (time.perf_counter() - start)
            self.calls[name] += 1
            return result

        with patch.object(owner, name, timed):
            yield


def _each(trainer: Trainer, start: float) -> float:
    if trainer.device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start) / len(trainer.loader)


def _peak(work: Callable[[], float]) -> Repeats:
    """Most GPU memory that tensors take, MB."""
    torch.cuda.reset_peak_memory_stats()
    work()
    return (torch.cuda.max_memory_allocated() / 1e6,)
