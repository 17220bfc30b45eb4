"""Entries on a Ray cluster: several servers without Slurm.

An attempt is a detached actor with as many GPUs as its entry, named by its token. It outlives the scheduler, which
finds it by its name; Ray starts it again on another server when its own is lost (docs.ray.io, "Actor fault tolerance"),
and it then goes on from the newest state. `ray job submit` is not used: it loses its table with the head node.

The address of the cluster is Ray's own variable RAY_ADDRESS, or that of this machine's.
"""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from config import ConfigProblem
from engine.jobs.entry import Entry
from engine.jobs.executor import ClusterSilent, Report, cores, package
from engine.jobs.remote import Notes

REMOTE = Path(__file__).resolve().parent / "remote.py"
NAMESPACE = "bones"
SECONDS_TO_RESTART = 90.0
KILLED = 3
"""Times that an actor starts a runner that was killed again, before the table hears of it."""


class RayCluster:
    """See engine.jobs.executor.Executor.

    Raises:
        ConfigProblem: ray is not installed, or no cluster runs.
    """

    waits = False

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self.folder, self.command = folder.absolute(), command
        self.ray = package("ray", "ray")
        try:
            quiet = {"log_to_driver": False, "logging_level": "ERROR", "ignore_reinit_error": True}
            self.ray.init(address="auto", namespace=NAMESPACE, **quiet)
        except ConnectionError:
            raise ConfigProblem(
                "executor ray finds no cluster: start one with `ray start --head` here and `ray start --address` on "
                "the other servers, or set RAY_ADDRESS."
            ) from None
        self.ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

    def start(self, entry: Entry, token: str, parents: Sequence[Entry]) -> str:
        """Create the attempt's actor; it waits in Ray until a server has room."""
        Notes(self.folder, entry.id, token).order(entry, self.command)
        actor = self.ray.remote(
            num_gpus=entry.spec.gpus, num_cpus=cores(entry), max_restarts=entry.spec.retries
        )(_Attempt)
        command = [sys.executable, "-u", str(REMOTE), str(self.folder), str(entry.id), token]
        try:
            with contextlib.suppress(ValueError):  # it exists: a scheduler before this one has created it
                actor.options(name=token, lifetime="detached").remote(command)
        except self.ray.exceptions.RayError as error:
            raise ClusterSilent(f"ray: {error}") from None
        return token

    def poll(self, entries: Sequence[Entry]) -> dict[int, Report]:
        """By the actors' names; how far each is, its own files say."""
        try:
            known = set(self.ray.util.list_named_actors())
        except self.ray.exceptions.RayError as error:
            raise ClusterSilent(f"ray: {error}") from None
        return {entry.id: self._report(entry, entry.token in known) for entry in entries}

    def cancel(self, entry: Entry) -> None:
        """What runs is asked to save; what waits for room is withdrawn."""
        notes = Notes(self.folder, entry.id, entry.token)
        notes.cancel()
        if notes.runner() is None:
            self._withdraw(entry)

    def _report(self, entry: Entry, known: bool) -> Report:
        notes = Notes(self.folder, entry.id, entry.token)
        if not known:
            return notes.over("Ray lost it, and its restarts are used up")
        # Settled: its server may be gone, and Ray about to start it again for nothing. Stopped, it is Ray's to start
        # again; that takes 15 s after a server was lost, and where it does not come the table takes over.
        if notes.settled() or notes.stopped_for() > SECONDS_TO_RESTART:
            self._withdraw(entry)
            return notes.over("")
        runner = notes.runner()
        return Report("running" if runner else "waiting", runner=runner)

    def _withdraw(self, entry: Entry) -> None:
        with contextlib.suppress(ValueError):  # it is gone already
            self.ray.kill(self.ray.get_actor(entry.token), no_restart=True)


class _Attempt:
    """The actor. Ray copies it to its server.

    Args:
        command: that runs the attempt; it stops when this process is gone.
    """

    def __init__(self, command: list[str]) -> None:
        self.command, self.ray = command, importlib.import_module("ray")
        # Called from here, so that Ray's restart of the actor calls it again, whether a scheduler lives or not.
        self.ray.get_runtime_context().current_actor.run.remote()

    def run(self) -> None:
        """Run the attempt, and leave the cluster."""
        # Ray kills the children of a process that it ends, but not theirs: the runner has time to have its run saved.
        command = ["sh", "-c", '"$@" & wait $!', "sh", *self.command]
        for _ in range(KILLED):
            if subprocess.run(command, stdin=subprocess.DEVNULL).returncode < 128:
                break
        self.ray.actor.exit_actor()
