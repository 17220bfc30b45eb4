"""Stopping between steps: signal handlers only set a flag, for saving inside one can corrupt what it saves."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType

EXIT_RESUMABLE = 75
"""EX_TEMPFAIL: stopped by SIGTERM or the time limit after saving; run again with --resume."""
EXIT_INTERRUPTED = 130
"""Stopped by Ctrl-C after saving."""

TIME_IS_UP = 1000
"""In place of a signal's number: `max_hours` is over."""
TOGETHER = 2.0
"""Seconds within which SIGTERMs are one request: Slurm signals a job's steps and its shell, torchrun hands on what the
whole group has got already."""


class Stopped(Exception):
    """A run that was asked to stop and has saved its state."""

    def __init__(self, reason: int) -> None:
        name = "the time limit (max_hours)" if reason == TIME_IS_UP else signal.Signals(reason).name
        super().__init__(f"stopped by {name}")
        self.exit_code = EXIT_INTERRUPTED if reason == signal.SIGINT else EXIT_RESUMABLE


class StopFlag:
    """While entered, SIGTERM and SIGINT set a flag; a second signal ends the process at once.

    A SIGTERM within TOGETHER of the first one is no second signal. Ctrl-C always is: a person has pressed it.

    Args:
        hours: after this time the flag is set as well; 0 is never.
    """

    def __init__(self, hours: float = 0.0) -> None:
        self.signum = 0
        self._asked = 0.0
        self.end = time.monotonic() + 3600 * hours if hours else float("inf")

    @property
    def reason(self) -> int:
        """Number of the signal, or TIME_IS_UP; 0 where nothing asks to stop."""
        return self.signum or (TIME_IS_UP if time.monotonic() > self.end else 0)

    def __enter__(self) -> StopFlag:
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signum:
            self.signum, self._asked = signum, now
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        elif now - self._asked > TOGETHER:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
