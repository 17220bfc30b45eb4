"""Running a command detached from the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

LOG = Path("log")


def spawn(
    argv: list[str], exp_name: str, environment: Mapping[str, str] = os.environ
) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own, its output appended to log/<exp_name>.log."""
    LOG.mkdir(exist_ok=True)
    with open(LOG / f"{exp_name}.log", "a", encoding="utf-8") as log:
        log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(argv)}\n")
        log.flush()
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
        )


def start(argv: list[str], exp_name: str) -> str:
    """Start `python argv...` in a session of its own, its output appended to log/<exp_name>.log.

    Returns:
        How to follow and to stop it.
    """
    process = spawn([sys.executable, "-u", *argv], exp_name)
    return (
        f"running in the background\n  follow: tail -f {LOG / exp_name}.log\n"
        f"  stop:   kill {process.pid}  (it saves; --resume continues)"
    )
