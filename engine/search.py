"""Hyper-parameter search: trials are ordinary experiments in processes of their own; Optuna chooses their settings.

A trial is watched through its metrics.csv, stopped with SIGTERM and known by an environment variable, so that a search
that was killed finds what it left running.
"""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import psutil
from optuna.trial import TrialState

from config import Config, ConfigProblem
from engine import background, settings
from engine.files import write_json
from engine.jobs.process import marked
from engine.space import Space
from engine.stop import EXIT_INTERRUPTED, EXIT_RESUMABLE, StopFlag, Stopped
from engine.study import (
    CONTINUES,
    EPOCH,
    EXPERIMENT,
    OUTCOME,
    SECONDS,
    Options,
    experiment_name,
    hand_on,
    latest,
    new_sampler,
    shown,
    slots,
)

MARK = "BONE_TRIAL"
"""Environment variable of all processes of a trial: the experiment's folder."""
SECONDS_TO_SAVE = 120.0
"""How long a trial may take to end after SIGTERM, before it is killed; its newest saved state stays whole."""
FAILURES = 5
"""Trials that fail in a row before the search stops: then it is not their settings."""
PRUNE, STOP = "prune", "stop"


@dataclass
class Job:
    """A trial that runs."""

    trial: optuna.Trial
    name: str
    process: subprocess.Popen[bytes]
    started: float
    dice: dict[int, float] = field(default_factory=dict)
    """Epoch -> validation Dice, as reported so far."""
    asked: str = ""
    """Why it was told to stop."""
    asked_at: float = 0.0

    def ask(self, why: str) -> None:
        """Tell it to save and stop; a second reason changes nothing."""
        if not self.asked:
            self.asked, self.asked_at = why, time.monotonic()
            self.process.terminate()


class Search:
    """The loop over trials.

    Args:
        command: what trains: a command line that takes `--config FILE --exp_name NAME --output_dir DIR`, perhaps with
            --resume or --overwrite, and writes metrics.csv. Exit codes: 0 done, 2 a setting is wrong, 75 and 130
            stopped.
        complete: settings -> the same with full names. Where it raises ConfigProblem, the trial counts as impossible.
        poll: seconds between two looks at a running trial.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        options: Options,
        command: Sequence[str],
        complete: Callable[[Config], Config],
        poll: float = 1.0,
    ) -> None:
        self.study, self.space, self.options = study, space, options
        self.command, self.complete, self.poll = list(command), complete, poll
        self.jobs: list[Job] = []
        self.failures = 0
        self.halted = 0
        """Exit code of a search that stops before its end."""

    def run(self, trials: int, jobs: int) -> int:
        """Go on until the study has so many experiments, so many at once; returns the exit code.

        0: all have ended; 1: trials fail one after another; 75, 130: stopped, and --resume goes on.
        """
        self._clear()
        with StopFlag() as stop:
            try:
                while True:
                    if stop.signum and not self.halted:
                        self.halted = Stopped(stop.signum).exit_code
                    if self.halted:
                        for job in self.jobs:
                            job.ask(STOP)
                    elif len(self.jobs) < jobs and self._more(trials):
                        self._start()
                        continue
                    if not self.jobs:
                        break
                    with suppress(subprocess.TimeoutExpired):
                        self.jobs[0].process.wait(self.poll)
                    for job in list(self.jobs):
                        self._look(job)
            finally:
                for job in self.jobs:  # none, but after an error of this process
                    job.ask(STOP)
                self._clear()
        return self.halted

    def _clear(self) -> None:
        """Stop what a killed search has left running, and hand its trials on."""
        for slot, trial in latest(self.study).items():
            if trial.state == TrialState.RUNNING:
                _end(self._folder(experiment_name(self.space, slot)))
        hand_on(self.study)

    def _folder(self, name: str) -> Path:
        return Path(self.space.base.run.output_dir) / name

    def _more(self, trials: int) -> bool:
        every = self.study.get_trials(deepcopy=False)
        waiting = any(trial.state == TrialState.WAITING for trial in every)
        return waiting or len(set(slots(every).values())) < trials

    def _start(self) -> None:
        every = self.study.get_trials(deepcopy=False)
        slot = slots(every)
        waiting = [slot[trial.number] for trial in every if trial.state == TrialState.WAITING]
        chosen = waiting[0] if waiting else len(set(slot.values()))
        self.study.sampler = new_sampler(self.options, chosen)
        trial = self.study.ask()
        name = experiment_name(self.space, chosen)
        values = self.space.sample(trial)
        trial.set_user_attr(EXPERIMENT, name)
        print(f"{name}: {'  '.join(f'{key} {shown(value)}' for key, value in values.items())}", flush=True)
        try:
            cfg = self.complete(settings.replace(self.space.base, {**values, "exp_name": name}))
        except ConfigProblem as problem:
            self._tell(trial, name, TrialState.PRUNED, f"impossible: {' '.join(str(problem).split())}")
            return
        path = self.space.folder / "trials" / f"{name}.json"
        write_json(path, settings.to_record(cfg))
        argv = ["--config", str(path), "--exp_name", name, "--output_dir", cfg.run.output_dir]
        if CONTINUES in trial.user_attrs:
            argv += _how_to_go_on(cfg.folder)
        self.jobs.append(Job(trial, name, self._spawn(argv, name), time.monotonic()))

    def _spawn(self, argv: list[str], name: str) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C in the terminal reaches the search, which then stops the trial.
        environment = {**os.environ, MARK: _mark(self._folder(name))}
        return background.spawn([*self.command, *argv], name, environment)

    def _look(self, job: Job) -> None:
        """Report what the trial has reached, and prune it or see how it ended."""
        code = job.process.poll()  # first: what it wrote before it ended is then read below
        fresh = {e: d for e, d in read_dice(self._folder(job.name) / "metrics.csv").items() if e not in job.dice}
        for epoch, dice in fresh.items():
            job.trial.report(dice, epoch)
        job.dice |= fresh
        if code is not None:
            self.jobs.remove(job)
            self._ended(job, code)
        elif job.asked and time.monotonic() - job.asked_at > SECONDS_TO_SAVE:
            for process in marked(_mark(self._folder(job.name)), MARK):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        elif fresh and job.trial.should_prune():
            job.ask(PRUNE)

    def _ended(self, job: Job, code: int) -> None:
        job.trial.set_user_attr(SECONDS, round(time.monotonic() - job.started))
        if code == 0 and job.dice:
            best = max(job.dice, key=lambda epoch: job.dice[epoch])
            job.trial.set_user_attr(EPOCH, best)
            self._tell(job.trial, job.name, TrialState.COMPLETE, f"Dice {job.dice[best]:.4f}", job.dice[best])
        elif job.asked == PRUNE:
            self._tell(job.trial, job.name, TrialState.PRUNED, f"pruned after epoch {max(job.dice)}")
        elif job.asked == STOP or code in (EXIT_RESUMABLE, EXIT_INTERRUPTED):
            print(f"{job.name}: stopped; --resume goes on with it", flush=True)
            self.halted = self.halted or EXIT_RESUMABLE  # what stopped the trial means the search as well
        elif code == 2:
            self._tell(job.trial, job.name, TrialState.PRUNED, f"impossible: {background.last_words(job.name)}")
        else:
            said = (background.last_words(job.name) or "no word") if code else "no validation Dice in metrics.csv"
            self._tell(job.trial, job.name, TrialState.FAIL, f"failed (exit code {code}): {said}")

    def _tell(
        self, trial: optuna.Trial, name: str, state: TrialState, outcome: str, value: float | None = None
    ) -> None:
        trial.set_user_attr(OUTCOME, outcome)
        self.study.tell(trial, value, state)
        print(f"{name}: {outcome}", flush=True)
        self.failures = self.failures + 1 if state == TrialState.FAIL else 0
        if self.failures == FAILURES:
            print(f"{FAILURES} trials have failed one after another: mend what they say, then --resume.", flush=True)
            self.halted = 1


def read_dice(path: Path) -> dict[int, float]:
    """Epoch -> validation Dice of a run's metrics.csv, where there is one and the value is finite."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            found = {int(row["epoch"]): float(row["val_dice"]) for row in csv.DictReader(file) if row["val_dice"]}
    except FileNotFoundError:
        return {}
    return {epoch: dice for epoch, dice in found.items() if math.isfinite(dice)}


def _how_to_go_on(folder: Path) -> list[str]:
    """A flag for an experiment that was killed: at its saved state or, killed before there was one, from the start."""
    if any((folder / name).exists() for name in ("last.pt", "previous.pt")):
        return ["--resume"]
    return ["--overwrite"] if folder.exists() else []


def _mark(folder: Path) -> str:
    return str(folder.resolve())


def _end(folder: Path) -> None:
    """Stop an experiment whose search is gone: it saves, or is killed after two minutes."""
    processes = marked(_mark(folder), MARK)
    if processes:
        print(f"{folder.name} still runs: stopping it, to go on with it from here", flush=True)
    pids = {process.pid for process in processes}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.ppid() not in pids:  # loader workers leave with the process that started them
                process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=SECONDS_TO_SAVE)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive)
