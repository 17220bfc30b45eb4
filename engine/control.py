"""Looking at runs, following and stopping them, from another terminal: by what is on record of each."""

from __future__ import annotations

import codecs
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from config import suggest
from engine.background import (
    FOREGROUND,
    KILLED,
    LOG,
    QUEUE,
    TAIL,
    TERMINATED,
    Record,
    date,
    known,
    lock_of,
    note,
    read_record,
)
from engine.files import FileProblem, locked
from engine.jobs.process import POLL, marked, stop_marked
from engine.stop import EXIT_INTERRUPTED

GRACE = 60.0
"""Seconds that a run has to save before it is killed. What takes longer, a validation, begins with saving."""
LINES = 10
"""Of the log, before it is followed."""


def status(exp_name: str = "") -> str:
    """How one experiment is, or all that have ever run here, one a line in the order of their starts.

    Raises:
        FileProblem: nothing is on record of it.
    """
    if exp_name:
        record = _asked(exp_name)
        lines = [f"{exp_name}: {record.state()}", f"started {date(record.started)}"]
        lines += [f"ended   {date(record.ended)}"] if record.ended else []
        lines += [f"epoch   {epoch}"] if (epoch := _epoch(record)) else []
        lines += [f"process {record.identity.pid} in the {record.where}", f"folder  {record.folder}"]
        lines += [f"log     {record.log}"] if record.where != FOREGROUND else []
        return "\n  ".join([*lines, f"flags   {' '.join(record.argv)}"])
    records, lines = [], []
    for path in LOG.glob("*.json"):
        try:
            found = read_record(path.stem)
        except FileProblem as problem:
            lines.append(str(problem))
            continue
        records += [found] if found else []
    if not records:
        return "\n".join([*lines, f"nothing has run here yet ({LOG}/*.json)"])
    wide = max(len("experiment"), *(len(record.name) for record in records))
    lines.append(f"{'experiment':{wide}}  {'started':19}  epoch  state")
    for record in sorted(records, key=lambda record: record.started):
        lines.append(f"{record.name:{wide}}  {date(record.started)}  {_epoch(record):5}  {record.state()}")
    return "\n".join(lines)


def stop(exp_name: str, grace: float = GRACE) -> int:
    """Ask a run to save and leave, kill it where it does not within `grace` seconds; 0 when it is gone.

    Raises:
        FileProblem: it can't be stopped from here, or nothing is on record of it.
    """
    record = _asked(exp_name)
    if record.identity.elsewhere and record.ended is None:
        raise FileProblem(f"{exp_name} runs on {record.identity.host}: stop it there.")
    if record.where == QUEUE and record.lives:
        raise FileProblem(f"{exp_name} is run by the queue, which would run it again: scripts/schedule.py cancel it.")
    if not record.lives and not marked(record.token):
        print(f"{exp_name} does not run: {record.state()}")
        return 0
    print(f"asking {exp_name} to save and stop; it is killed after {grace:g} s", flush=True)
    try:
        killed = stop_marked(record.token, grace, record.identity if record.lives else None)
    except PermissionError:
        raise FileProblem(f"{exp_name} is another user's run: only they can stop it.") from None
    _note_end(record, KILLED if killed else TERMINATED)
    after = _asked(exp_name)
    print(f"{exp_name}: {after.state()}", flush=True)
    return 0


def follow(exp_name: str, lines: int = LINES) -> int:
    """Print the last `lines` of an experiment's log, and what comes until its run ends; returns the run's exit code.

    Ctrl-C ends the following and not the run.

    Raises:
        FileProblem: there is no log.
    """
    record = _asked(exp_name)
    if record.where == FOREGROUND:
        raise FileProblem(f"{exp_name} was started in the foreground: its output is in its terminal.")
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    try:
        with open(record.log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            print(decode(b"".join(file.read().splitlines(keepends=True)[-lines:])), end="", flush=True)
            over = False
            while not over:
                time.sleep(POLL)
                over = _over(record)  # first: then nothing comes after what is read now
                print(decode(file.read()), end="", flush=True)
    except FileNotFoundError:
        raise FileProblem(f"{record.log} does not exist: it was deleted or moved away.") from None
    except KeyboardInterrupt:
        print(f"\n{exp_name} goes on: --follow {exp_name} shows it again, --stop {exp_name} ends it")
        return EXIT_INTERRUPTED
    after = _asked(exp_name)
    print(f"{exp_name}: {after.state()}")
    return 1 if after.exit_code is None else after.exit_code


def _asked(exp_name: str) -> Record:
    """What is on record of an experiment that was asked for by name."""
    record = read_record(exp_name)
    if record is None:
        near = suggest(exp_name, [path.stem for path in LOG.glob("*.json")])
        raise FileProblem(f"{exp_name} has never run here{near}: --status lists what has ({LOG}/*.json).")
    return record


def _note_end(record: Record, exit_code: int) -> None:
    """Put on record how a run was ended that could not do so itself."""
    with suppress(BlockingIOError), locked(lock_of(Path(record.folder))):
        if record.ended is None and known(record.name) == record:
            note(replace(record, ended=time.time(), exit_code=exit_code))


def _over(record: Record) -> bool:
    """Whether its process has left, or, where that can't be seen, has said so."""
    if not record.identity.elsewhere:
        return not record.identity.alive()
    return (now := known(record.name)) is None or now.ended is not None


def _epoch(record: Record) -> str:
    """The last epoch that is done, of the newest fold where there are several; empty before the first."""
    folder = Path(record.folder)
    tables = [path for path in (folder / "metrics.csv", *folder.glob("fold*/metrics.csv")) if path.exists()]
    if not tables:
        return ""
    newest = max(tables, key=lambda path: path.stat().st_mtime)
    return newest.read_text(encoding="utf-8").splitlines()[-1].partition(",")[0]
