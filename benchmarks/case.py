"""The loader benchmark's task: what is read, how it is augmented, and what every side hands over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from config import HAND_BONES
from dataset.phantom import VERSION, PhantomSet, phantom_matches, write_phantom_set
from dataset.readers import Record, read_competition

DATA = Path(__file__).resolve().parent / ".data"
"""Phantoms are drawn here once (16 of 2048 px take 90 MB); git ignores it."""

ROTATE = 10.0
"""Largest rotation either way, degrees."""
SCALE = 0.1
BRIGHTNESS = 0.1
CONTRAST = 0.1
GAMMA = 0.2
"""Largest change of the logarithm (base 2) of gamma either way."""

Epochs = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""Number of an epoch -> its batches: images and labels, (N, …) each."""


@dataclass(frozen=True)
class Case:
    size: int
    """Height and width of the images, px."""
    window: int
    """Side of the samples, px."""
    subjects: int
    """Two images each."""
    windows: int
    """Samples of one image in an epoch."""
    batch: int
    workers: int
    """DataLoader processes."""
    classes: tuple[str, ...] = HAND_BONES

    @property
    def root(self) -> Path:
        """Where its images lie."""
        return DATA / f"phantom{VERSION}_{self.size}px_{self.subjects}"


FULL = Case(size=2048, window=1024, subjects=8, windows=2, batch=2, workers=2)
QUICK = Case(size=256, window=128, subjects=2, windows=2, batch=2, workers=2)


def draw(case: Case) -> list[Record]:
    """The case's images, PNG of three equal channels with the competition's labels; drawn where they don't lie yet."""
    wanted = PhantomSet(train_subjects=case.subjects, test_subjects=0, size=case.size, seed=1)
    if not phantom_matches(case.root, wanted):
        write_phantom_set(case.root, wanted, workers=2)
    return read_competition(case.root, "train")
