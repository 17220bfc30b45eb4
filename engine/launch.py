"""Several processes of a run on this machine, started by torchrun with the signals that it must hand on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.files import write_json

RESULT = "result.json"

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
"""What torchrun must hand on to its ranks: on any other signal it dies and leaves them as orphans."""


def torchrun(processes: int, argv: Sequence[str]) -> list[str]:
    """Arguments for Python that start `processes` ranks of `python argv...` on this machine."""
    return [
        *("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"),
        f"--signals-to-handle={SIGNALS}",
        *argv,
    ]


def inside() -> bool:
    """Whether this process is a rank that torchrun has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> tuple[int, int]:
    """Number of this process among those that torchrun has started, from 0, and how many there are."""
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if inside() else (0, 1)


def write_result(folder: Path, exit_code: int) -> None:
    """Note how a run has ended: torchrun itself exits with 1 whatever its ranks say."""
    write_json(folder / RESULT, {"exit_code": exit_code})


def read_result(folder: Path) -> int | None:
    """Exit code of the run in `folder`; None where none has ended there."""
    try:
        return int(json.loads((folder / RESULT).read_text(encoding="utf-8"))["exit_code"])
    except (OSError, ValueError, KeyError):
        return None


def launch(processes: int, argv: Sequence[str], folder: Path) -> int:
    """Run `python argv...` on so many ranks and wait; SIGTERM and Ctrl-C go on to them.

    Returns:
        The exit code that rank 0 noted in `folder`, or torchrun's own where it noted none.
    """
    before = _written(folder)
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))}
    child = subprocess.Popen([sys.executable, *torchrun(processes, argv)], env={**os.environ, **threads})
    both = (signal.SIGTERM, signal.SIGINT)
    handlers = {each: signal.signal(each, lambda signum, frame: child.send_signal(signum)) for each in both}
    try:
        code = child.wait()
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    noted = read_result(folder) if _written(folder) != before else None
    return noted if noted is not None else abs(code)


def _written(folder: Path) -> int:
    """When a result was noted, ns; 0 where none was."""
    path = folder / RESULT
    return path.stat().st_mtime_ns if path.exists() else 0
