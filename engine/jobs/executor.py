"""What starts entries elsewhere than on this machine, and tells how they are: Slurm, Ray.

The queue's table stays the truth. A cluster is told to run an attempt, known by its token, and asked about it; nothing
is read from its own books that the table does not hold, so a cluster that forgets costs an attempt and no entry.

The table itself is never opened on another machine: SQLite's locks are not to be trusted on network file systems
(sqlite.org/useovernet.html). What an attempt has to say lies as files in its folder: engine/jobs/remote.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from config import ConfigProblem, Train, suggest

if TYPE_CHECKING:
    from engine.jobs.entry import Entry
    from engine.jobs.process import Identity

NAMES = ("local", "slurm", "ray")
"""Values of Spec.executor; `local` is the scheduler's own machine and has no Executor."""


class ClusterSilent(Exception):
    """The cluster does not answer now. Nothing may be concluded from that: ask again later."""


class Refused(Exception):
    """The cluster will not take an attempt, whenever it is asked; the message is the cluster's."""


@dataclass(frozen=True)
class Report:
    """How an attempt is, as far as the cluster and the attempt's own files say."""

    state: Literal["waiting", "running", "ended", "failed", "lost", "returned"]
    """`waiting` and `running`: leave it alone. `ended`: its run has exited. `failed`: it must not be run again by
    itself. `lost`: it began and is gone without a word (killed, its machine is down). `returned`: it has not begun and
    never will, or the cluster took its place away: that uses up no retry."""
    exit_code: int | None = None
    reason: str = ""
    """For people; of what waits, the cluster's own word."""
    progress: bool = False
    """Whether it has left a newer state of its experiment."""
    runner: Identity | None = None
    """The process that runs it, or was the last to."""


class Executor(Protocol):
    """What the scheduler asks of a cluster. Every method may raise ClusterSilent."""

    waits: bool
    """Whether it keeps an attempt until others have succeeded (afterok); else it is given only what may begin."""

    def start(self, entry: Entry, token: str, parents: Sequence[Entry]) -> str:
        """Hand over a claimed entry; returns the cluster's id for it, for Store.external.

        Handing one token over twice starts one attempt: the scheduler may have died before it noted the id.

        Args:
            parents: entries of `entry.spec.after` that still run on this executor, none unless it `waits`; the others
                are done.

        Raises:
            Refused: the cluster will not take it.
        """
        ...

    def poll(self, entries: Sequence[Entry]) -> dict[int, Report]:
        """How running entries of this executor are, by entry id; found by their tokens, whether an id was noted or
        not."""
        ...

    def cancel(self, entry: Entry) -> None:
        """Ask a running entry to save and end; does not wait. An attempt that the cluster does not know is no error."""
        ...


def cluster(name: str, folder: Path, command: Sequence[str]) -> Executor:
    """The executor of this name.

    Args:
        folder: of the queue, on a file system that all machines share.
        command: what an entry's flags are put behind: interpreter and script.

    Raises:
        ConfigProblem: no executor has the name, its package is not installed, or there is no cluster.
    """
    if name == "slurm":
        from engine.jobs.slurm import Slurm

        return Slurm(folder, command)
    if name == "ray":
        from engine.jobs.ray_cluster import RayCluster

        return RayCluster(folder, command)
    raise ConfigProblem(f"executor {name!r} is none of {', '.join(NAMES)}{suggest(name, NAMES)}.")


def cores(entry: Entry) -> int:
    """CPU cores to ask a cluster for: those of the loop and of its loader processes, for each GPU."""
    return (1 + Train().workers) * max(1, entry.spec.gpus)


def package(name: str, extra: str) -> Any:
    """A package that only an extra of pyproject.toml installs, imported.

    Raises:
        ConfigProblem: it is not installed; says how to.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigProblem(
            f"executor {extra} needs the package {name}, which is not installed: .venv/bin/pip install -e '.[{extra}]'"
        ) from None
