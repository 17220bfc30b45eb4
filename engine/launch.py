"""Several processes of a run on this machine, started by torchrun with the signals that it must hand on.

Run by path, this file is torchrun that says whether a rank was killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

if __name__ == "__main__":
    # Run by path, Python puts engine/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from engine.files import write_json
from engine.stop import EXIT_INTERRUPTED, EXIT_RESUMABLE

RESULT = "result.json"
BY_SIGNAL = 128
"""Exit code of what a signal has ended, less the signal's number; as shells have it."""

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
"""What torchrun must hand on to its ranks: on any other signal it dies and leaves them as orphans."""
TORCHRUN_KILLS = 30.0
"""Seconds after which torchrun itself sends SIGKILL to ranks that don't leave on its SIGTERM, once one has failed."""


def torchrun(processes: int, argv: Sequence[str]) -> list[str]:
    """Arguments for Python that start `processes` ranks of `python argv...` on this machine."""
    return [
        *(str(Path(__file__).resolve()), "--standalone", f"--nproc_per_node={processes}"),
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
        The exit code that rank 0 noted in `folder`, or torchrun's own, 1, where it noted none. Where a signal has ended
        a rank, torchrun, or all of them before they could save: 75 (130 after Ctrl-C) where `folder` has a state to go
        on from, else 128 and the signal's number.
    """
    before = _written(folder)
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))}
    child = subprocess.Popen([sys.executable, *torchrun(processes, argv)], env={**os.environ, **threads})
    asked: list[int] = []

    def hand_on(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)
        child.send_signal(signum)

    handlers = {each: signal.signal(each, hand_on) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = child.wait()
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    noted = read_result(folder) if _written(folder) != before else None
    if noted not in (None, 1):
        return noted
    ended_by = -code if code < 0 else code - BY_SIGNAL if code > BY_SIGNAL else asked[0] if asked and not noted else 0
    return _of_signal(ended_by, folder, bool(noted)) if ended_by else code


def _of_signal(signum: int, folder: Path, noted: bool) -> int:
    """Exit code of ranks that a signal has ended; corrects what rank 0 has noted when it lost the others."""
    from engine.run_state import has_state  # here: it imports torch

    code = BY_SIGNAL + signum
    if has_state(folder):
        code = EXIT_INTERRUPTED if signum == signal.SIGINT else EXIT_RESUMABLE
    if noted:
        write_result(folder, code)
    return code


def _written(folder: Path) -> int:
    """When a result was noted, ns; 0 where none was."""
    path = folder / RESULT
    return path.stat().st_mtime_ns if path.exists() else 0


def main(argv: Sequence[str]) -> int:
    """torchrun, which exits with 1 whatever has become of its ranks; here it is 128 and the number where a signal has
    ended one, whatever the others say then, which have lost it."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as run

    try:
        run(argv)
    except ChildFailedError as error:
        ended = {rank: (failure.exitcode, failure.timestamp) for rank, failure in error.failures.items()}
        rank = killed_rank(ended)
        if rank is None:
            raise
        signum = -ended[rank][0]
        print(f"error: rank {rank} was ended by {signal.Signals(signum).name}", file=sys.stderr, flush=True)
        return BY_SIGNAL + signum
    return 0


def killed_rank(ended: Mapping[int, tuple[int, float]]) -> int | None:
    """The rank that a signal from outside has ended, and with it the others; None where one has failed by itself.

    Args:
        ended: rank -> exit code, negative for a signal, and unix time, of those that have not ended well; as torchrun
            reports them, first those that it has found and then those that it has ended because of these.
    """
    first, begun = next(iter(ended)), min(when for _, when in ended.values())
    if ended[first][0] < 0:
        return first
    # One that lost a killed one may be found before it. NCCL aborts in ranks that lost one that had failed by itself.
    killed = (rank for rank, (code, when) in ended.items() if code == -signal.SIGKILL and when - begun < TORCHRUN_KILLS)
    return next(killed, None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
