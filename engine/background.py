"""Running a command detached from the terminal."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

LOG = Path("log")


def start(argv: list[str], exp_name: str) -> str:
    """Start `python argv...` in a session of its own, its output appended to log/<exp_name>.log.

    Returns:
        How to follow and to stop it.
    """
    LOG.mkdir(exist_ok=True)
    path = LOG / f"{exp_name}.log"
    with open(path, "a", encoding="utf-8") as log:
        log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} python {' '.join(argv)}\n")
        log.flush()
        process = subprocess.Popen(
            [sys.executable, "-u", *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    return (
        f"running in the background\n  follow: tail -f {path}\n"
        f"  stop:   kill {process.pid}  (it saves; --resume continues)"
    )
