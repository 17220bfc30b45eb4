"""Entries as jobs of a Slurm cluster, handed over by submitit.

A job is one attempt, known by the token in its comment. Slurm starts it again where it preempts it or loses its node;
everything else that ends it comes back to the queue's table. What a site wants (partition, account, memory) is taken
from Slurm's own variables: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_QOS, SBATCH_TIMELIMIT, … (sbatch(1)).

Before a time limit, and before a preemption where the site has SlurmctldParameters=preempt_send_user_signal, Slurm
sends USR2 to the job's first process alone: it has the run saved and requeues the job. SIGTERM (a preemption, scancel)
goes to every process of a job at once, so there is nothing to hand on; Slurm kills what is left after its KillWait.
"""

from __future__ import annotations

import io
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from config import ConfigProblem
from engine.jobs.entry import Entry
from engine.jobs.executor import ClusterSilent, Refused, Report, cores, package
from engine.jobs.remote import Notes, attempt
from engine.stop import StopFlag

ROOT = Path(__file__).resolve().parent.parent.parent

WARNING = 150
"""Seconds before the end of its time that a job is told: enough to save (engine.jobs.runner.GRACE) and to requeue."""
MARGIN = 5
"""Minutes of a job beyond its entry's hours, after which the attempt itself stops its run."""
PATIENCE = 30.0
"""Seconds to wait for an answer of Slurm's."""

ALIVE = {
    **dict.fromkeys(("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"), "running"),
    **dict.fromkeys(("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING"), "waiting"),
    "SPECIAL_EXIT": "waiting",
}
"""Job states (squeue(1)) in which Slurm has it in hand -> Report's; all others are over."""
TAKEN = ("PREEMPTED", "BOOT_FAIL", "REVOKED")
"""States of jobs that Slurm ended for reasons of its own."""


class Job(NamedTuple):
    """What Slurm says about a job."""

    number: str
    state: str
    reason: str


class Slurm:
    """See engine.jobs.executor.Executor.

    Raises:
        ConfigProblem: submitit is not installed, or there is no Slurm on this machine.
    """

    waits = True

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self.folder, self.command = folder.absolute(), command
        self.submitit = package("submitit", "slurm")
        for tool in ("sbatch", "squeue", "scancel", "srun"):
            if shutil.which(tool) is None:
                raise ConfigProblem(f"executor slurm needs {tool}, which is not here: run the queue on a login node.")

    def start(self, entry: Entry, token: str, parents: Sequence[Entry]) -> str:
        """Submit the attempt, to begin after the parents' jobs (afterok)."""
        if token in (known := self._jobs()):
            return known[token].number
        notes = Notes(self.folder, entry.id, token)
        notes.order(entry, self.command)
        executor = self.submitit.SlurmExecutor(
            folder=notes.folder / "slurm",
            # In place of the shell: the process that gets Slurm's warning is then our own.
            python=f"exec {shlex.quote(sys.executable)}",
        )
        # The limit of a site or partition is taken where the entry has none.
        minutes = math.ceil(60 * entry.spec.hours) + MARGIN if entry.spec.hours else None
        executor.update_parameters(
            job_name=entry.spec.name,
            comment=token,
            time=minutes,
            # A site that counts CPUs by GPU says so; Slurm takes only one of the two.
            cpus_per_task=None if "SBATCH_CPUS_PER_GPU" in os.environ else cores(entry),
            gres=f"gpu:{entry.spec.gpus}" if entry.spec.gpus else None,
            dependency=":".join(["afterok", *(parent.external for parent in parents)]) if parents else None,
            use_srun=False,
            stderr_to_stdout=True,
            setup=[f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"],
            additional_parameters={"signal": f"B:USR2@{WARNING}", "requeue": True, "chdir": os.getcwd()},
        )
        try:
            with redirect_stderr(io.StringIO()):  # submitit prints what it raises
                return str(executor.submit(_Attempt(self.folder, entry.id, token)).job_id)
        except self.submitit.core.utils.FailedJobError as error:
            raise Refused((str(error).strip().splitlines() or ["sbatch failed without a word"])[-1]) from None

    def poll(self, entries: Sequence[Entry]) -> dict[int, Report]:
        """One question to Slurm for all of them."""
        known = self._jobs()
        return {entry.id: self._report(entry, known.get(entry.token)) for entry in entries}

    def cancel(self, entry: Entry) -> None:
        """What runs is asked to save; what waits in Slurm is withdrawn."""
        job = self._jobs().get(entry.token)
        if job is None:
            return
        Notes(self.folder, entry.id, entry.token).cancel()
        if ALIVE.get(job.state) == "waiting":
            _ask(["scancel", "--state=PENDING", job.number])

    def _report(self, entry: Entry, job: Job | None) -> Report:
        notes = Notes(self.folder, entry.id, entry.token)
        if job is None:
            return notes.over("Slurm does not know its job any more")
        said = job.state + (f" ({job.reason})" if job.reason not in ("None", "") else "")
        if job.reason == "DependencyNeverSatisfied":
            _ask(["scancel", job.number])
            return Report("returned", reason="what it comes after did not succeed in Slurm")
        if state := ALIVE.get(job.state):
            return Report("waiting" if state == "waiting" else "running", reason=said, runner=notes.runner())
        if job.state in TAKEN:
            return Report("returned", reason=f"Slurm: {said}", runner=notes.runner())
        if job.state == "CANCELLED" and not entry.cancelling:
            return Report("failed", reason="its job was cancelled in Slurm", runner=notes.runner())
        return notes.over(f"Slurm: {said}; see {notes.folder / 'slurm'}")

    def _jobs(self) -> dict[str, Job]:
        """Token -> job, of all jobs of this user that Slurm still knows."""
        lines = _ask(["squeue", "--me", "--noheader", "--states=all", "--format=%k|%i|%T|%r"]).splitlines()
        parts = [line.strip().split("|", 3) for line in lines]
        return {part[0]: Job(*part[1:]) for part in parts if len(part) == 4}


class _Attempt:
    """What runs on the node."""

    def __init__(self, queue: Path, number: int, token: str) -> None:
        self.queue, self.number, self.token = queue, number, token

    def __call__(self) -> None:
        """Run the attempt; where it was stopped in time, Slurm is told to start it again."""
        with _Warned() as flag:
            again = attempt(self.queue, self.number, self.token, flag)
        if again and flag.signum:
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
        elif (code := Notes(self.queue, self.number, self.token).over("").exit_code) != 0:
            sys.exit(code or 1)  # afterok must not be fulfilled


class _Warned(StopFlag):
    """Set by USR2. SIGTERM, which the run has got as well, leaves this process waiting for it."""

    def __enter__(self) -> _Warned:
        self._before = {
            signal.SIGUSR2: signal.signal(signal.SIGUSR2, self._note),
            # In place of submitit's, which write into the log. Not SIG_IGN, which the run would inherit.
            **{each: signal.signal(each, self._go_on) for each in (signal.SIGTERM, signal.SIGCONT)},
        }
        return self

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum

    def _go_on(self, signum: int, frame: FrameType | None) -> None:
        pass


def _ask(command: Sequence[str]) -> str:
    """Output of one of Slurm's commands.

    Raises:
        ClusterSilent: it failed, or did not answer.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
    except subprocess.TimeoutExpired:
        raise ClusterSilent(f"{command[0]} did not answer within {PATIENCE:g} s") from None
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise ClusterSilent(f"{command[0]}: {said.strip().splitlines()[-1]}") from None
