"""What a run is doing at each moment, noted in memory that outlives it, and kills at a chosen moment.

The product knows nothing of this: `install` puts wrappers around its functions, in the process of the run only. Moments
are the beginnings of a phase's functions, their images, and before and after each call that changes what lies on disk.
"""

from __future__ import annotations

import mmap
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

import torch

import dataset.phantom
import dataset.prepare
import inference.pipeline
import inference.submit
import model.kept
import train
from engine.pace import Pace
from train import Trainer

PHASES = ("data", "start", "loading", "step", "validation", "records", "state", "weights", "inference")
"""Drawing and checking files; settings and building; waiting for a batch; forward, backward and update; validation;
journal, tables and all else of the loop; writing last.pt; writing *.safetensors; the test split."""

FUNCTIONS: tuple[tuple[Any, str, str], ...] = (
    (dataset.prepare, "prepare_data", "data"),
    (dataset.prepare, "may_train", "data"),
    (Trainer, "fit", "records"),
    (Trainer, "step", "step"),
    (Trainer, "update", "step"),
    (Trainer, "validate", "validation"),
    (train, "write_state", "state"),
    (train, "save_weights", "weights"),
    (model.kept, "save_weights", "weights"),
    (inference.submit, "submit", "inference"),
)
"""Where it lies, its name, its phase."""
ON_DISK: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("replace", "rename", "fsync")),
    *((tempfile, name) for name in ("mkstemp", "mkdtemp")),
    (torch, "save"),
)
ITEM_BY_ITEM: tuple[tuple[Any, str], ...] = ((dataset.phantom, "progress"), (inference.pipeline, "progress"))
"""Iterators, each of whose items is a moment: images that are drawn, validated or predicted."""


class Aim(NamedTuple):
    """A moment, counted from 1 over all moments of its phase in one process."""

    phase: str
    moment: int


class Watch:
    """The phase of a run and how many moments each has had; shared with processes forked after it was made."""

    def __init__(self) -> None:
        self.words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("I")
        self.process, self.aim = 0, Aim("", 0)

    @property
    def phase(self) -> str:
        """In which the run is, or was when it was killed."""
        return PHASES[self.words[0]]

    def moments(self) -> dict[str, int]:
        """Phase -> moments that it had."""
        return dict(zip(PHASES, self.words[1 : 1 + len(PHASES)], strict=True))

    def begin(self, aim: Aim | None) -> None:
        """Count from here on, in this process and thread only; at `aim` its process group is killed."""
        for place in range(1 + len(PHASES)):
            self.words[place] = 0
        self.words[0] = PHASES.index("start")
        self.process, self.aim = os.getpid(), aim or Aim("", 0)

    def moment(self) -> None:
        """Something happens in the current phase."""
        if not self._noted():
            return
        self.words[1 + self.words[0]] += 1
        if self.aim == (self.phase, self.words[1 + self.words[0]]):
            os.killpg(0, signal.SIGKILL)

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Another phase until the end of the block."""
        if not self._noted():
            yield
            return
        before = self.words[0]
        self.words[0] = PHASES.index(phase)
        try:
            self.moment()
            yield
        finally:
            self.words[0] = before

    def _noted(self) -> bool:
        return os.getpid() == self.process and threading.current_thread() is threading.main_thread()


def install(watch: Watch) -> None:
    """Note phases and moments of everything that this process does."""
    for owner, name, phase in FUNCTIONS:
        setattr(owner, name, _in_phase(watch, getattr(owner, name), phase))
    for owner, name in ON_DISK:
        setattr(owner, name, _between_moments(watch, getattr(owner, name)))
    for owner, name in ITEM_BY_ITEM:
        setattr(owner, name, _at_items(watch, getattr(owner, name)))
    setattr(Pace, "count", _loading(watch, Pace.count))  # noqa: B010 (mypy takes methods for constants)


def _in_phase(watch: Watch, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
    @wraps(function)
    def wrapped(*args: Any, **named: Any) -> Any:
        with watch.within(phase):
            return function(*args, **named)

    return wrapped


def _between_moments(watch: Watch, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapped(*args: Any, **named: Any) -> Any:
        watch.moment()
        result = function(*args, **named)
        watch.moment()
        return result

    return wrapped


def _at_items(watch: Watch, iterate: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    @wraps(iterate)
    def wrapped(*args: Any, **named: Any) -> Iterator[Any]:
        for item in iterate(*args, **named):
            watch.moment()
            yield item

    return wrapped


def _loading(watch: Watch, count: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def wrapped(pace: Pace, batches: Iterable[Any]) -> Iterator[Any]:
        counted = count(pace, batches)
        while True:
            with watch.within("loading"):
                batch = next(counted, None)
            if batch is None:
                return
            yield batch

    return wrapped
