"""Which process is which, and which processes belong to a job: never by a process's number alone.

Linux hands numbers out again. When a process started, counted from the boot, tells two with one number apart, and the
boot's id tells apart what started at the same time after two boots. Times of day are of no use for that: they jump when
the clock is set.
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass

import psutil

MARK = "BONES_JOB"
"""Environment variable that all processes of a job inherit; its value is the job's token."""
BOOT = "BONES_BOOT_ID"
"""Environment variable in place of the kernel's boot id: a test's reboot."""

TICKS = os.sysconf("SC_CLK_TCK")
POLL = 0.05
"""Seconds between two looks at processes that shall end."""


@dataclass(frozen=True)
class Identity:
    """One process, for ever."""

    pid: int
    started: float
    """Seconds after the boot, as the kernel counts: proc(5), field 22 of /proc/pid/stat."""
    boot: str
    host: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The process that has this number now on this machine; None where none has, or only a zombie."""
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                # Fields from the third on: the second, the name in brackets, may hold blanks and brackets.
                fields = file.read().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        if fields[0] in b"ZXx":
            return None
        return cls(pid, int(fields[19]) / TICKS, boot_id(), os.uname().nodename)

    @classmethod
    def me(cls) -> Identity:
        """This process."""
        found = cls.of(os.getpid())
        assert found is not None
        return found

    @property
    def elsewhere(self) -> bool:
        """Whether it is a process of another machine, or of a container with a name of its own."""
        return self.host != os.uname().nodename

    def alive(self) -> bool:
        """Whether it still runs. Zombies don't, and nothing from before this machine's last boot does.

        What runs elsewhere can't be seen from here and counts as alive: waiting is better than running a job twice.
        """
        return self.elsewhere or self == Identity.of(self.pid)

    def to_json(self) -> str:
        """As one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Identity:
        """What `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            found = json.loads(text)
            return cls(int(found["pid"]), float(found["started"]), str(found["boot"]), str(found["host"]))
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{text!r} identifies no process: it needs pid, started, boot and host.") from None


def boot_id() -> str:
    """Of this boot of the machine; random(4)."""
    if given := os.environ.get(BOOT):
        return given
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def marked(token: str, mark: str = MARK) -> list[psutil.Process]:
    """The living processes of a job but this one, in whatever session they are (torchrun's ranks have their own).

    Found by the environments of all processes of this user, as they were when their programs began.

    Args:
        mark: environment variable that holds the token.
    """
    wanted, me, found = f"{mark}={token}".encode(), os.getpid(), []
    # Not psutil.process_iter: it remembers processes, and one that has since got the number of another would be missed.
    for pid in psutil.pids():
        with suppress(OSError, psutil.NoSuchProcess), open(f"/proc/{pid}/environ", "rb") as file:  # a zombie has none
            if pid != me and wanted in file.read().split(b"\0"):
                found.append(psutil.Process(pid))
    return found


def ask_marked(token: str) -> int:
    """SIGTERM to a job's processes; returns how many got it.

    Only to those that no other process of the job has started: these hand it on. Loader workers that were ended before
    the process that feeds on them would keep it from saving. A run that gets a second one ends without saving.
    """
    found = marked(token)
    pids, first = {process.pid for process in found}, []
    for process in found:  # before any is asked: where it leaves at once, those that it has started have another parent
        with suppress(psutil.NoSuchProcess):
            if process.ppid() not in pids:
                first.append(process)
    asked = 0
    for process in first:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
            asked += 1
    return asked


def kill_marked(token: str) -> set[int]:
    """SIGKILL to all processes of a job; returns their numbers. They may take a moment to be gone."""
    found = marked(token)
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return {process.pid for process in found}


def stop_marked(token: str, grace: float, root: Identity | None = None) -> int:
    """End all processes of a job and wait until they are gone; returns how many had to be killed.

    Args:
        grace: seconds that they have to save after SIGTERM, before SIGKILL.
        root: the process that has started the others and hands SIGTERM on; it needs no mark of its own.
    """
    if root and root.alive():
        _send(root, signal.SIGTERM)
    else:
        ask_marked(token)
    end = time.monotonic() + grace
    # Looked for anew each time: they may start others meanwhile. Not waited for: that is up to who started them.
    while ((root and root.alive()) or marked(token)) and time.monotonic() < end:
        time.sleep(POLL)
    killed: set[int] = set()
    empty = 0
    while empty < 2:  # in the middle of exec a process shows an empty environment
        found = kill_marked(token)
        if root and root.alive():
            _send(root, signal.SIGKILL)
            found.add(root.pid)
        empty = 0 if found else empty + 1
        killed |= found
        time.sleep(POLL)
    return len(killed)


def _send(process: Identity, signum: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(process.pid)
        try:
            if process.alive():  # looked at after the handle is its: no other process gets the signal
                signal.pidfd_send_signal(handle, signum)
        finally:
            os.close(handle)
