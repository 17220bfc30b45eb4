"""One attempt on a machine of a cluster, told and telling by files on the file system that all machines share.

`python engine/jobs/remote.py FOLDER ID TOKEN` runs it as engine/jobs/runner.py does on the scheduler's own machine,
with files in place of the table. A cluster may start one token again and again (requeued, its machine lost): a lock of
the entry's lets each start wait for the one before, and each goes on from the newest state.

    jobs/<id>/<token>/order.json    what to run; written before the cluster is told
                      began.json    the process that runs it
                      ended.json    how it ended
                      cancel        it shall save and end
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Run by path, Python puts engine/jobs first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)

from engine import background
from engine.files import FileProblem, locked, write_json
from engine.flags import run_command
from engine.jobs.entry import Entry, Spec, outcome
from engine.jobs.executor import Report
from engine.jobs.process import MARK, Identity, stop_marked
from engine.jobs.runner import LEFT, POLL, Attempt
from engine.stop import StopFlag


class Notes:
    """The files of one attempt. To an Attempt they are the table, as far as it asks for one."""

    def __init__(self, queue: Path, number: int, token: str) -> None:
        self.folder = queue / "jobs" / str(number) / token
        self.lock = queue / "jobs" / str(number) / "lock"

    # What the scheduler writes

    def order(self, entry: Entry, command: Sequence[str]) -> None:
        """Note what shall run: `command`, interpreter and script, with the entry's flags, in this working folder."""
        found = asdict(replace(entry, runner=None))
        write_json(self.folder / "order.json", {"entry": found, "command": [*command], "cwd": os.getcwd()})

    def cancel(self) -> None:
        """Ask it to save and end; it looks every second."""
        (self.folder / "cancel").touch()

    # What it reads and writes itself

    def ordered(self) -> tuple[Entry, list[str], str]:
        """The entry, the command and the working folder.

        Raises:
            FileProblem: there is no order, or a damaged one.
        """
        path = self.folder / "order.json"
        found = self._read("order.json")
        try:
            spec = Spec(**_with_tuples(found["entry"]["spec"]))
            cancelling = (self.folder / "cancel").exists()
            entry = Entry(**_with_tuples(found["entry"]) | {"spec": spec, "cancelling": cancelling})
            return entry, [str(part) for part in found["command"]], str(found["cwd"])
        except (KeyError, TypeError, AttributeError):
            raise FileProblem(
                f"{path} is missing or damaged: is the queue's folder on a file system that this machine shares?"
            ) from None

    def began(self, runner: Identity) -> None:
        """Note who runs it; what an earlier start has noted about its end is over."""
        write_json(self.folder / "began.json", json.loads(runner.to_json()))
        (self.folder / "ended.json").unlink(missing_ok=True)

    def get(self, entry_id: int) -> Entry:
        """The entry as it was ordered, and whether it is to be cancelled."""
        return self.ordered()[0]

    def ended(self, entry_id: int, token: str, exit_code: int, reason: str, progress: bool) -> bool:
        """As Store.ended."""
        return self._end(state="ended", exit_code=exit_code, reason=reason, progress=progress)

    def fail(self, entry_id: int, token: str, reason: str) -> bool:
        """As Store.fail."""
        return self._end(state="failed", exit_code=None, reason=reason, progress=False)

    def _end(self, state: str, exit_code: int | None, reason: str, progress: bool) -> bool:
        found = {"state": state, "exit_code": exit_code, "reason": reason, "progress": progress}
        write_json(self.folder / "ended.json", found)
        return True

    # What the scheduler reads

    def runner(self) -> Identity | None:
        """Who runs it, or was the last to."""
        try:
            return Identity.from_json(json.dumps(self._read("began.json")))
        except ValueError:
            return None

    def settled(self) -> bool:
        """Whether it ended in a way that it is not to go on from."""
        report = self.over("")
        return report.state == "failed" or (report.exit_code is not None and outcome(report.exit_code) != "again")

    def stopped_for(self) -> float:
        """Seconds since it ended; 0 where it has not, or runs again."""
        try:
            return max(0.0, time.time() - (self.folder / "ended.json").stat().st_mtime)
        except FileNotFoundError:
            return 0.0

    def over(self, why: str) -> Report:
        """How it ended, when the cluster no longer has it; `why` where it has not said so itself."""
        runner, found = self.runner(), self._read("ended.json")
        if found:
            return Report(**found, runner=runner)
        return Report("lost" if runner else "returned", reason=why, runner=runner)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _with_tuples(found: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists only."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def attempt(queue: Path, number: int, token: str, flag: StopFlag) -> bool:
    """Run an attempt in this process; returns whether it was stopped and may go on from where it is.

    Args:
        flag: says that this process shall stop.

    Raises:
        FileProblem: no order can be read.
    """
    notes = Notes(queue, number, token)
    entry, command, cwd = notes.ordered()
    os.chdir(cwd)
    with _into_log(entry.spec.name), locked(notes.lock, f"--- {entry}: waits for its last start to end"):
        stop_marked(token, LEFT)  # what a killed start has left on this machine
        if notes.settled() or notes.get(number).cancelling:
            return False
        notes.began(Identity.me())
        try:
            devices = _given() if entry.spec.gpus else ()
        except FileProblem as problem:
            notes.fail(number, token, str(problem))
            return False
        os.environ[MARK] = token
        Attempt(notes, replace(entry, devices=devices), command, flag).run()
    return not notes.settled() and not notes.get(number).cancelling


def _given() -> tuple[int, ...]:
    """The GPUs that the cluster has given to this process.

    Raises:
        FileProblem: they are parts of GPUs.
    """
    text = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    parts = [part for part in text.split(",") if part and part not in ("-1", "NoDevFiles")]
    if not all(part.isdecimal() for part in parts):
        raise FileProblem(f"CUDA_VISIBLE_DEVICES is {text!r} here, but the queue takes whole GPUs, named by numbers.")
    return tuple(map(int, parts))


@contextmanager
def _into_log(name: str) -> Iterator[None]:
    """Append what this process and its children print to the experiment's log."""
    background.LOG.mkdir(exist_ok=True)
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2)
    with open(background.LOG / f"{name}.log", "a", encoding="utf-8") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        for descriptor, before in zip((1, 2), kept, strict=True):
            os.dup2(before, descriptor)
            os.close(before)


def _follow_parent() -> None:
    """Ask this process to stop as soon as the one that has started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        with suppress(ProcessLookupError):
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: Sequence[str]) -> int:
    """Run an attempt until it ends, or until the process that has started this one is gone; exit code 0."""
    queue, number, token = argv
    with StopFlag() as flag:
        _follow_parent()
        attempt(Path(queue), int(number), token, flag)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
