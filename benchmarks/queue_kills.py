"""A queue whose processes are killed with -9 again and again, and what is lost or run twice because of that."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks import queue_victims as victims
from engine.files import write_text
from engine.jobs.process import BOOT
from engine.jobs.store import Store

ROOT = Path(__file__).resolve().parent.parent

AIMED = (
    *("scheduler: starts", "scheduler: writes claim", "scheduler: commits claim"),
    *("scheduler: claimed, runner not started", "scheduler: runner started", "scheduler: writes give_back"),
    *("scheduler: commits give_back", "scheduler: writes ended", "scheduler: commits ended"),
    *("runner: starts", "runner: writes began", "runner: commits began", "runner: began, run not started"),
    *("runner: run started", "runner: run ended, its processes not looked for", "runner: run ended, not noted"),
    *("runner: writes ended", "runner: commits ended", "runner: end noted"),
    *("run: starts", "run: on record", "run: works", "run: saves", "run: done, not on record"),
    *("run: on record as done", "user: writes add", "user: commits add"),
)
"""Moments of queue_victims.py; a process dies in them by its own hand."""
TIMED = ("scheduler: any time", "runner: any time", "run: any time", "rank: any time", "machine: any time")
"""Killed from outside; with the machine goes everything, and the boot id is another one afterwards."""
PHASES = (*AIMED, *TIMED)

COMMIT = 0.004
"""Seconds that a commit takes about: a process dies somewhere in that time after its begin."""
PATIENCE = 8.0
"""Seconds after which an aim that nobody comes to is given up."""
WAITING = 4
"""Entries that wait at least, so that there always is something to start."""
HUNG = 120.0
"""Seconds after which entries that are not done yet are lost."""
PROVOKED = {"give_back": ("runner", "job"), "ended": ("runner",)}
"""What is killed until the scheduler does this: it takes a run's exit code over from the record where there is one."""


@dataclass
class Found:
    """What the kills have shown."""

    kills: Counter[str] = field(default_factory=Counter)
    """Phase -> kills in it."""
    entries: int = 0
    starts: int = 0
    """Of runs, by all attempts."""
    released: int = 0
    """Entries that were held as a crash loop, and released."""
    missed: Counter[str] = field(default_factory=Counter)
    """Phase -> aims that nobody came to."""
    lost: list[str] = field(default_factory=list)
    """Entries that are not done, done without a result, or not there although they were added."""
    doubled: list[str] = field(default_factory=list)
    """Runs that began while another one of their experiment was alive, or after it had been done."""
    orphans: list[str] = field(default_factory=list)
    """Processes that are left when all is done."""


class Harness:
    """Kills processes of one queue; all that they write lies in `root`."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random, self.found = root, random.Random(seed), Found()
        self.order = random.Random(seed)
        """Of the phases; apart, as how often the other one is asked depends on time."""
        self.boots = self.named = 0
        self.scheduler: subprocess.Popen[bytes] | None = None
        (root / victims.NOTES).mkdir(parents=True, exist_ok=True)
        (root / victims.ADDED).touch()
        self.store = Store(root / victims.QUEUE)

    def kill(self, kills: int) -> Found:
        """Kill so many times, the rarest phase first; let everything come to its end, and look."""
        try:
            while self.found.kills.total() < kills:
                phase = min(self.order.sample(PHASES, len(PHASES)), key=self._tried)
                if self._aim(phase) if phase in AIMED else self._hit(phase):
                    self.found.kills[phase] += 1
                else:
                    self.found.missed[phase] += 1
            self._end()
        finally:
            while self._strike(*victims.ROLES, "sleep"):
                pass
            self.store.close()
        return self.found

    def _tried(self, phase: str) -> int:
        return self.found.kills[phase] + self.found.missed[phase]

    def _keep_up(self) -> None:
        """A scheduler that runs, entries that wait, and none that is held."""
        if self.scheduler is None or self.scheduler.poll() is not None:
            self.scheduler = self._spawn("scheduler", "0")
        waiting = self.store.entries(states=["queued"])
        if len(waiting) < WAITING:
            names = [f"job{self.named + k:04d}" for k in range(WAITING)]
            self.named += len(names)
            self._spawn("user", *names).wait()
        self._release()

    def _release(self) -> None:
        if held := [entry.id for entry in self.store.entries(states=["queued"]) if entry.held]:
            self.store.release(held)
            self.found.released += len(held)

    def _spawn(self, *argv: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ, victims.FOLDER: str(self.root), "PYTHONPATH": str(ROOT), BOOT: f"boot{self.boots}"
        }  # fmt: skip
        with open(self.root / "scheduler.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", victims.MODULE, *argv],
                cwd=self.root, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def _aim(self, phase: str) -> bool:
        """Let whoever comes to this moment die there; False where nobody does."""
        aim, end = self.root / victims.AIM, time.monotonic() + PATIENCE
        if phase == "scheduler: starts" and self.scheduler is not None:
            self.scheduler.kill()
            self.scheduler.wait()
        later = self.random.uniform(1e-4, COMMIT) if "commits" in phase else 0.0
        write_text(aim, json.dumps([phase, later]))
        provoke = PROVOKED.get(phase.rpartition(" ")[2], ()) if phase.startswith("scheduler") else ()
        while aim.exists() and time.monotonic() < end:
            if provoke and self.random.random() < 0.1:
                self._strike(*provoke, most=len(provoke))
            self._keep_up()
            time.sleep(0.02)
        with suppress(FileNotFoundError):
            aim.unlink()
            return False
        return True

    def _hit(self, phase: str) -> bool:
        """Kill something at a random time; False where there is nothing of its kind."""
        end = time.monotonic() + self.random.uniform(0.0, 0.5)
        while time.monotonic() < end:
            self._keep_up()
            time.sleep(0.02)
        who = phase.partition(":")[0]
        if who != "machine":
            return bool(self._strike({"run": "job", "rank": "sleep"}.get(who, who), most=1))
        struck = 0
        while killed := self._strike(*victims.ROLES, "sleep"):
            struck += killed
        self.boots += 1
        return bool(struck)

    def _strike(self, *roles: str, most: int = 10**6) -> int:
        """SIGKILL to processes of these roles; returns to how many."""
        found = [process for process, role in self._processes() if role in roles]
        chosen = self.random.sample(found, min(most, len(found)))
        for process in chosen:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        return len(chosen)

    def _processes(self) -> Iterator[tuple[psutil.Process, str]]:
        """Living processes of this queue, each with its role; ranks are called sleep."""
        for process in psutil.process_iter(["environ", "cmdline"]):
            argv = process.info["cmdline"] or []
            if (process.info["environ"] or {}).get(victims.FOLDER) != str(self.root):
                continue
            yield process, argv[argv.index(victims.MODULE) + 1] if victims.MODULE in argv else argv[0]

    def _end(self) -> None:
        """Let everything come to its end without kills, and look."""
        end = time.monotonic() + HUNG
        while self.store.entries(states=["queued", "running"]) and time.monotonic() < end:
            if self.scheduler is None or self.scheduler.poll() is not None:
                self.scheduler = self._spawn("scheduler", "0")
            self._release()
            time.sleep(0.05)
        if self.scheduler is not None:
            self.scheduler.terminate()
            self.scheduler.wait()
        found = self.found
        found.orphans = [f"process {process.pid}, {role}" for process, role in self._processes()]
        states: dict[str, str] = {**self.store.states()}
        found.entries = len(states)
        for name in (self.root / victims.ADDED).read_text(encoding="utf-8").split():
            states.setdefault(name, "not in the queue")
        for name, state in states.items():
            if state != "done" or not self._has_result(name):
                found.lost.append(f"{name}: {state}")
        tokens: Counter[str] = Counter()
        for path in sorted(self.root.joinpath(victims.NOTES).glob("*[0-9]")):
            for line in path.read_text(encoding="utf-8").splitlines():
                what, token = line.split()[:2]
                tokens[token] += what == victims.STARTED
                if what != victims.STARTED:
                    found.doubled.append(f"{path.name}: {what}, attempt {token}")
        found.starts = tokens.total()
        found.doubled += [f"attempt {token} started {count} times" for token, count in tokens.items() if count > 1]
        found.lost += [f"{self.store.path} is damaged: {fault}" for fault in self._damage()]

    def _has_result(self, name: str) -> bool:
        try:
            record = json.loads((self.root / "log" / f"{name}.json").read_text(encoding="utf-8"))
            state = (self.root / "checkpoints" / name / "last.pt").read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        return record["exit_code"] == 0 and state == str(victims.STEPS)

    def _damage(self) -> list[str]:
        with _connection(self.store.path) as connection:
            return [row[0] for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]


@contextmanager
def _connection(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path)
    try:
        yield connection
    finally:
        connection.close()
