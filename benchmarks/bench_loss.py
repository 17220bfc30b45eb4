"""Our losses on packed targets against the same losses on float masks: written out, SMP's and MONAI's.

Logits lie in memory as networks give them (channels last). Peers get masks that are unpacked already: one more tensor
of the logits' size, which is not counted as theirs. Gradients are compared before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import in_turn, milliseconds
from benchmarks.rows import Repeats, Row
from benchmarks.same import Different
from benchmarks.written_out import BCE_DICE_OVERLAP, FOCAL_DICE, MISSING, Dense, peers
from config import Config
from engine import settings
from engine.bits import pack, unpack
from model.cost import LiveBytes
from model.losses import build_loss

DESCRIPTION = "Loss forward and backward: time, and memory beside the logits, against written-out losses, SMP and MONAI"

OURS = "ours"
CLASSES = len(Config().data.classes)
BATCH = 2
Work = Callable[[], Tensor]
"""Forward and backward; returns the gradient of the logits."""


@dataclass(frozen=True)
class Place:
    """Where the losses run."""

    device: str
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return f"{'GPU' if self.device == 'cuda' else 'CPU'}, {str(self.dtype).removeprefix('torch.')}"


PLACES = (Place("cpu", torch.float32), Place("cuda", torch.float32), Place("cuda", torch.bfloat16))


def run(quick: bool) -> list[Row]:
    """All rows; `quick` takes 256 px instead of 1024."""
    side, repeats = (256, 2) if quick else (1024, 5)
    tasks = [(loss, place) for place in PLACES for loss in (FOCAL_DICE, BCE_DICE_OVERLAP)]
    return [row for loss, place in tasks for row in rows(loss, place, side, repeats)]


def rows(loss: str, place: Place, side: int, repeats: int) -> list[Row]:
    """Time and memory of one loss in one place."""
    case = f"{loss}, {CLASSES} x {side} x {side}, batch {BATCH}, {place.name}"
    others = peers(loss)
    if place.device == "cuda" and not torch.cuda.is_available():
        note = "GPU rows: not measured here, there is no GPU."
        return [Row(case, peer, unit, note=note) for peer in others for unit in ("ms", "x logits")]
    logits, bits = example(place, side)
    masks = unpack(bits, CLASSES).float().contiguous(memory_format=torch.channels_last)
    function = build_loss(settings.replace(Config(), {"loss": loss}))
    works: dict[str, Work] = {OURS: partial(gradient, lambda x: function(x, bits), logits)}
    for name, peer in others.items():
        if peer is not None:
            works[name] = partial(gradient, partial(on_masks, peer, masks), logits)
    for name in works:
        agree(name, works[name](), works[OURS](), place)
    times = in_turn({name: partial(timed, work, place) for name, work in works.items()}, repeats)
    memory: dict[str, Repeats] = {name: (extra_bytes(work, place) / logits.nbytes,) for name, work in works.items()}
    return [row for name in others for row in _rows(case, name, times, memory)]


def _rows(case: str, peer: str, times: dict[str, Repeats], memory: dict[str, Repeats]) -> list[Row]:
    note = "" if peer in times else MISSING.format(peer)
    found = (("ms", times), ("x logits", memory))
    return [Row(case, peer, unit, numbers[OURS], numbers.get(peer, ()), note) for unit, numbers in found]


def example(place: Place, side: int) -> tuple[Tensor, Tensor]:
    """Logits and packed targets: a disc for each class, some of them overlapping."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((BATCH, CLASSES, side, side), generator=generator).mul_(3)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    bits = []
    for _ in range(BATCH):
        y, x, radius = (torch.rand((3, CLASSES, 1, 1), generator=generator) * side).unbind(0)
        bits.append(pack((4 + radius / 8) - torch.hypot(row - y, column - x), 0.0))
    there = logits.to(place.device, place.dtype).contiguous(memory_format=torch.channels_last)
    return there.requires_grad_(), torch.stack(bits).to(place.device)


def on_masks(loss: Dense, masks: Tensor, logits: Tensor) -> Tensor:
    return loss(logits.float(), masks)


def gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss(logits), logits)[0]


def agree(name: str, theirs: Tensor, ours: Tensor, place: Place) -> None:
    """Compare gradients, which follow from every value.

    Raises:
        Different: some differ by more than rounding.
    """
    tolerance = 1e-4 if place.dtype == torch.float32 else 1e-2
    difference = float((theirs - ours).abs().max() / ours.abs().max())
    if not difference <= tolerance:
        raise Different(f"{name}: gradients differ from ours by {difference:.2g} of the largest, not rounding.")


def timed(work: Work, place: Place) -> float:
    """Milliseconds of forward and backward."""

    def done() -> None:
        work()
        if place.device == "cuda":
            torch.cuda.synchronize()

    return milliseconds(done)


def extra_bytes(work: Work, place: Place) -> int:
    """Largest sum of what is alive at once beside logits and targets: the allocator's on a GPU, else counted."""
    if place.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return int(torch.cuda.max_memory_allocated()) - int(before)
    with LiveBytes() as counted:
        work()
    peak: int = counted.peak
    return peak
