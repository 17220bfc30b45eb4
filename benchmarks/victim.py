"""Runs of run_exp.py that are killed with -9, with all processes that they have started.

They are forked from a process that has imported everything: starting Python takes longer than a tiny run, and nothing
is written meanwhile.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import run_exp
from benchmarks.phases import Aim, Watch, install
from engine import background

HUNG = 300.0
"""Seconds after which a run is taken to hang."""
KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Ending:
    """How one process of a run went."""

    code: int
    """Its exit code; KILLED where it was killed."""
    phase: str
    """In which it was at the end."""
    moments: dict[str, int]
    """Phase -> moments that it had."""
    seconds: float


def attempt(argv: Sequence[str], log: Path, watch: Watch, kill: Aim | float | None) -> Ending:
    """Run `run_exp.py argv...` to its end or to the kill.

    Args:
        log: what it prints is appended here.
        kill: a moment, seconds after the start, or never.

    Raises:
        TimeoutError: it hangs; it is killed then.
    """
    start = time.monotonic()
    process = os.fork()
    if not process:
        _live(argv, log, watch, kill if isinstance(kill, Aim) else None)
    os.setpgid(process, process)  # here too: whoever comes first
    timed = isinstance(kill, float)
    ended = _ends_within(process, kill if isinstance(kill, float) else HUNG)
    if not ended:
        os.killpg(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if not ended and not timed:
        raise TimeoutError(f"run_exp.py {' '.join(argv)} did not end within {HUNG:.0f} s: see {log}.")
    return Ending(code, watch.phase, watch.moments(), time.monotonic() - start)


def _ends_within(process: int, seconds: float) -> bool:
    handle = os.pidfd_open(process)
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def _live(argv: Sequence[str], log: Path, watch: Watch, aim: Aim | None) -> None:
    """The forked process; never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        torch.set_num_threads(1)
        install(watch)
        watch.begin(aim)
        background.LOG = log.parent / "log"
        code = run_exp.main(list(argv))
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
