"""Stopping between steps: signal handlers only set a flag, for saving inside one can corrupt what it saves."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

EXIT_RESUMABLE = 75
"""EX_TEMPFAIL: stopped by SIGTERM after saving; run again with --resume."""
EXIT_INTERRUPTED = 130
"""Stopped by Ctrl-C after saving."""


class Stopped(Exception):
    """A run that was asked to stop and has saved its state."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = EXIT_INTERRUPTED if signum == signal.SIGINT else EXIT_RESUMABLE


class StopFlag:
    """While entered, SIGTERM and SIGINT set `signum`; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.signum = 0

    def __enter__(self) -> StopFlag:
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
