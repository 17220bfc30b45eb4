"""One attempt at an entry: starts its run, hands on what it is told, and notes how it ended.

`python engine/jobs/runner.py FOLDER ID TOKEN COMMAND...`; COMMAND is the interpreter and the script that the entry's
flags are for. A runner needs no scheduler: it is a process in a session of its own, reads what is asked of its entry
from the table, and lives until its run and all processes of that are gone.
"""

from __future__ import annotations

import os
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

if __name__ == "__main__":
    # Run by path, Python puts engine/jobs first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)

from config import ConfigProblem
from engine import background
from engine.files import FileProblem
from engine.flags import run_command
from engine.jobs import traces
from engine.jobs.entry import Entry, outcome
from engine.jobs.process import Identity, ask_marked, kill_marked, stop_marked
from engine.jobs.store import Store
from engine.stop import EXIT_RESUMABLE, StopFlag

GRACE = 120.0
"""Seconds that a run has to save after SIGTERM, before it is killed; its newest saved state stays whole."""
LEFT = 15.0
"""Seconds that processes have which outlive their run, such as ranks whose launcher was killed, before SIGKILL."""
POLL = 1.0
"""Seconds between two looks at the table; a run that ends is seen at once."""
AGAIN = 5.0
"""Seconds between two tries to note something on a full disk."""


class Table(Protocol):
    """What an attempt needs of the queue: a Store, or what takes its place on machines that can't open one."""

    def get(self, entry_id: int) -> Entry:
        """The entry as it is now."""
        ...

    def ended(self, entry_id: int, token: str, exit_code: int, reason: str, progress: bool) -> bool:
        """As Store.ended."""
        ...

    def fail(self, entry_id: int, token: str, reason: str) -> bool:
        """As Store.fail."""
        ...


@dataclass(frozen=True)
class Asked:
    """Why a run was told to stop."""

    why: str
    at: float
    """time.monotonic()."""
    limit: bool = False
    """It had all the time that its entry allows: it is not run again by itself."""


def command_line(entry: Entry, command: Sequence[str]) -> list[str]:
    """What the attempt runs: `command`, the entry's flags and, where there is something to go on with, --resume."""
    gpus = ["--gpus", str(len(entry.devices))] if len(entry.devices) > 1 else []
    # The last flag wins: what --overwrite was to replace is gone once the experiment has begun.
    resume = ["--resume", "--no_overwrite"] if traces.begun(entry.spec, entry.added) else []
    return [*command, *entry.spec.argv, "--exp_name", entry.spec.name, *gpus, *resume]


def environment(entry: Entry) -> dict[str, str]:
    """Of the run: it sees its GPUs only, numbered as the inventory numbers them."""
    devices = ",".join(str(index) for index in entry.devices)
    return {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": devices}


def note_end(table: Table, entry: Entry, code: int) -> bool:
    """Note the exit code of an attempt's run, and what it said where it has failed; False as Store.ended."""
    said = background.last_words(entry.spec.name) if outcome(code) == "failed" else ""
    return table.ended(entry.id, entry.token, code, said, traces.progress(entry))


class Attempt:
    """One attempt, after its runner has begun.

    Args:
        command: interpreter and script.
        flag: says that this process shall stop; the run is then asked to.
    """

    def __init__(self, table: Table, entry: Entry, command: Sequence[str], flag: StopFlag) -> None:
        self.table, self.entry, self.command, self.flag = table, entry, command, flag
        self.asked: Asked | None = None
        self.start = time.monotonic()

    def run(self) -> None:
        """Run it to its end, and note that."""
        entry = self.entry
        argv = command_line(entry, self.command)
        where = f" on GPU {', '.join(map(str, entry.devices))}" if entry.devices else ""
        self._say(f"attempt {entry.attempt}{where}: {shlex.join(background.public(argv))}")
        try:
            # Never without its mark in the environment, by which all processes of the attempt are found.
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=environment(entry))
        except (FileNotFoundError, PermissionError) as error:
            problem = f"{argv[0]} can't be run ({error.strerror})"
            self._insist(lambda: self.table.fail(entry.id, entry.token, problem))
            return
        self._wait(process)
        left = stop_marked(entry.token, LEFT)
        noted = background.noted(entry.spec.name, entry.token)
        code = process.returncode if noted is None else noted
        ending = f"ended with exit code {code}" + (f", {left} processes of it were killed" if left else "")
        self._say(ending)
        self._insist(lambda: self._note(code))

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        """Until the run ends; asks it to where there is a reason, and kills it when it does not."""
        handle = os.pidfd_open(process.pid)
        try:
            while not select.select([handle], [], [], POLL)[0]:
                self.asked = self.asked or self._reason()
                if self.asked and time.monotonic() - self.asked.at > GRACE:
                    kill_marked(self.entry.token)
        finally:
            os.close(handle)
        process.wait()

    def _reason(self) -> Asked | None:
        """Tell the run to stop, once, where there is a reason to."""
        entry, now = self.entry, time.monotonic()
        limit = bool(entry.spec.hours) and now - self.start > 3600 * entry.spec.hours
        if self.flag.signum:
            why = "its runner was told to stop"
        elif limit:
            why = f"the time limit of {entry.spec.hours:g} h is over"
        elif not self._wanted():
            why = "cancelled"
        else:
            return None
        if not ask_marked(entry.token):  # it is just ending, or just beginning
            return None
        self._say(f"{why}, so it is asked to save and stop")
        return Asked(why, now, limit and not self.flag.signum)

    def _wanted(self) -> bool:
        """Whether the table still wants this attempt; where it can't be read now, nothing has changed."""
        try:
            fresh = self.table.get(self.entry.id)
        except FileProblem:
            return True
        except ConfigProblem:  # removed
            return False
        return fresh.token == self.entry.token and not fresh.cancelling

    def _note(self, code: int) -> bool:
        entry = self.entry
        if self.asked and self.asked.limit and outcome(code) == "again":
            saved = "saved" if code == EXIT_RESUMABLE else "its newest state is whole"
            return self.table.fail(entry.id, entry.token, f"{self.asked.why} ({saved}): `retry` goes on from there")
        return note_end(self.table, entry, code)

    def _say(self, what: str) -> None:
        """A line in the experiment's log; on a full disk, none."""
        with suppress(OSError):
            print(f"--- {background.date()} {self.entry}: {what}", flush=True)

    def _insist(self, note: Callable[[], bool]) -> None:
        """Note something, also where the disk is full now: the run is over, and that must not get lost."""
        said = ""
        while True:
            try:
                if not note():
                    self._say("the queue has gone on without this attempt")
                return
            except FileProblem as problem:
                if str(problem) != said:
                    said = str(problem)
                    self._say(f"its end is not noted yet, and tried again: {said}")
            if self.flag.signum:
                return  # the run's own record tells the next scheduler
            time.sleep(AGAIN)


def main(argv: Sequence[str]) -> int:
    """Run an attempt; exit code 0 where it could be noted how it ended, and where the queue has gone on without it."""
    folder, number, token, *command = argv
    with StopFlag() as flag, Store(Path(folder)) as store:
        if store.began(int(number), token, Identity.me()):
            Attempt(store, store.get(int(number)), command, flag).run()
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
