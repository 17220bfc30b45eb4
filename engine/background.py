"""Runs that outlive their terminal, and what is known of every run: log/<exp_name>.json, log/<exp_name>.log.

Whoever trains or predicts an experiment holds a lock beside its folder, from its first moment to its last: in the
background, in the foreground or for the queue. The kernel opens the lock however the process ends, so a second run is
refused exactly as long as the first one lives. The lock can't lie in the folder, which --overwrite deletes.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

from engine import launch
from engine.files import FileProblem, locked, write_json
from engine.flags import run_command
from engine.jobs.process import MARK, POLL, Identity, boot_id, marked
from engine.stop import EXIT_INTERRUPTED, EXIT_RESUMABLE, TOGETHER

LOG = Path("log")

TERMINATED, KILLED = 128 + signal.SIGTERM, 128 + signal.SIGKILL
ENDINGS = {
    0: "done", EXIT_RESUMABLE: "stopped, resumable", EXIT_INTERRUPTED: "interrupted, resumable",
    TERMINATED: "stopped, resumable from its newest state", KILLED: "killed, resumable from its newest state",
}  # fmt: skip
"""What an exit code means; all others: failed."""
BACKGROUND, FOREGROUND, QUEUE = "background", "foreground", "queue"
"""Where a run runs."""

PATIENCE = 60.0
"""Seconds to wait for a run in the background to be on record: Python and its packages may come over a network."""
RANK = re.compile(r"^\[rank\d+\]: ?")
"""What torch puts before the lines of a rank's traceback."""
LAUNCHER = "torch.distributed.elastic"
"""Errors that torchrun itself ends with: its rank's own says more."""
TAIL = 1 << 16
"""Bytes at a log's end in which its last words are looked for."""


@dataclass(frozen=True)
class Record:
    """What is on record of an experiment's last run."""

    name: str
    identity: Identity
    """The process that has started all others of the run."""
    token: str
    """These others have it in their environment: `engine.jobs.process.MARK`."""
    where: str
    """BACKGROUND, FOREGROUND or QUEUE."""
    folder: str
    """Of the experiment."""
    argv: tuple[str, ...]
    """Flags of run_exp.py."""
    started: float
    """Unix time."""
    ended: float | None = None
    """Unix time; None until then, and where it was killed."""
    exit_code: int | None = None
    error: str = ""
    """What it failed with."""

    @property
    def lives(self) -> bool:
        """Whether the run goes on, as far as can be seen from this machine."""
        return self.ended is None and self.identity.alive()

    @property
    def lives_here(self) -> bool:
        """Whether it does for certain."""
        return self.lives and not self.identity.elsewhere

    @property
    def log(self) -> Path:
        """Its output, but that of a run in the foreground."""
        return LOG / f"{self.name}.log"

    def state(self) -> str:
        """In words: running, done, failed and with what, died and when."""
        if self.exit_code is not None:
            failed = f"failed, exit code {self.exit_code}"
            return ENDINGS.get(self.exit_code, ": ".join(filter(None, [failed, self.error or self._said()])))
        if self.lives:
            where = f" on {self.identity.host}, which can't be seen from here" if self.identity.elsewhere else ""
            return f"running{where}"
        if self.identity.boot != boot_id():
            return "died as the machine did"
        if left := _left(self):
            return f"died with {left} left: --stop {self.name} ends them"
        with suppress(FileNotFoundError):
            if said := self._said():
                return f"died, last heard of {date(self.log.stat().st_mtime)}: {said}"
        return "died"

    def _said(self) -> str:
        return "" if self.where == FOREGROUND else last_words(self.name)


def read_record(exp_name: str) -> Record | None:
    """What is on record of an experiment; None where nothing is.

    Raises:
        FileProblem: the record is damaged.
    """
    path = _path(exp_name)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found |= {"identity": Identity(**found["identity"]), "argv": tuple(found["argv"]), "name": exp_name}
        return Record(**found)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise FileProblem(f"{path} is no record of a run: delete it, the next run writes it anew.") from None


def check_free(exp_name: str, folder: Path | None = None) -> None:
    """Check, before anything else is said of an experiment, that it does not run.

    Args:
        folder: of the experiment. Without it, another one of its name, which has the same log, must not run either.

    Raises:
        FileProblem: it runs.
    """
    old = known(exp_name)
    if old and old.lives_here and (folder is None or old.folder == str(folder.resolve())):
        raise _refusal(old)


def noted(exp_name: str, token: str) -> int | None:
    """Exit code that the run with this token has on record; None where it has none."""
    record = known(exp_name)
    return record.exit_code if record and record.token == token else None


def on_record(exp_name: str, folder: Path, argv: list[str], run: Callable[[], int]) -> int:
    """Run an experiment, alone and on record; ranks that another process has started just run.

    Args:
        folder: of the experiment.
        argv: flags, for people who read the record.
        run: returns the exit code. What `engine.flags.run_command` catches, becomes one; other errors come through.
            Where it does not listen to SIGTERM itself, it is left with 143.

    Raises:
        FileProblem: it runs already.
    """
    if launch.inside() and (MARK in os.environ or launch.rank()[0]):
        return run()
    where = _where()
    with _alone(exp_name, folder) as old, _mark() as token:
        record = Record(exp_name, Identity.me(), token, where, str(folder.resolve()), tuple(public(argv)), time.time())
        # Another folder's run of the same name keeps its place: --stop must find it.
        recorded = not (old and old.lives_here and old.folder != record.folder)
        if recorded:
            note(record)
        code, error = 1, ""

        def watched() -> int:
            nonlocal error
            try:
                with _leaving_on_sigterm():
                    return run()
            except BaseException as problem:
                error = f"{type(problem).__name__}: {problem}".splitlines()[0]
                raise

        try:
            code = run_command(watched)
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
            raise
        finally:
            if recorded:
                note(replace(record, ended=time.time(), exit_code=code, error=error))
            if where == BACKGROUND:  # below the traceback, if there is one
                atexit.register(print, f"--- {date()} ended with exit code {code}", flush=True)
    return code


def spawn(
    argv: list[str], exp_name: str, environment: Mapping[str, str] = os.environ
) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own, its output appended to log/<exp_name>.log."""
    LOG.mkdir(exist_ok=True)
    with open(LOG / f"{exp_name}.log", "a", encoding="utf-8") as log:
        log.write(f"--- {date()} {shlex.join(public(argv))}\n")
        log.flush()
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
        )


def start(argv: list[str], exp_name: str) -> str:
    """Start `python argv...` in the background and wait until it is on record.

    Its session has no terminal, so nothing that closes one reaches it.

    Returns:
        How to look at it, to follow and to stop it.

    Raises:
        FileProblem: it runs already, or has failed at once.
    """
    check_free(exp_name)
    token = f"{BACKGROUND}-{uuid.uuid4().hex}"
    # A crash in C, too, leaves its traceback.
    environment = {**os.environ, MARK: token, "PYTHONFAULTHANDLER": "1"}
    child = spawn([sys.executable, "-u", *argv], exp_name, environment)
    end = time.monotonic() + PATIENCE
    while child.poll() is None and time.monotonic() < end:
        record = known(exp_name)
        if record and record.token == token:
            break
        time.sleep(POLL)
    log = LOG / f"{exp_name}.log"
    if child.returncode:
        said = last_words(exp_name).removeprefix("error: ")
        raise FileProblem(f"{exp_name} has ended at once, exit code {child.returncode}: {said} (more in {log})")
    if child.returncode == 0:
        return f"{exp_name} is done already: {log}"
    return (
        f"running in the background (process {child.pid}), output in {log}\n"
        f"  look:   --status {exp_name}\n"
        f"  follow: --follow {exp_name}\n"
        f"  stop:   --stop {exp_name}  (it saves; --resume continues)"
    )


def last_words(exp_name: str) -> str:
    """What an experiment's log says of the end of its last run: an error, else the last line; empty without a log.

    An error is a line that begins with `error:`, the last one of a traceback, or the first one of a crash in C.
    """
    try:
        with open(LOG / f"{exp_name}.log", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ""
    last = error = ""
    traceback = another = False
    for line in (RANK.sub("", line).rstrip() for line in lines):
        if line.startswith("--- "):
            another = True
            continue
        if not line:
            continue
        if another:
            last, error, traceback, another = "", "", False, False
        last = line.strip()
        if line.startswith("Traceback ("):
            traceback = True
        elif line.startswith(("error:", "Fatal Python error:")) or (traceback and not line.startswith(" ")):
            error, traceback = error if error and line.startswith(LAUNCHER) else last, False
    return error or last


def public(argv: Sequence[str]) -> list[str]:
    """A command line without the address for messages, which is a password."""
    shown: list[str] = []
    for word in argv:
        if shown[-1:] == ["--notify"]:
            word = "..."
        shown.append("--notify=..." if word.startswith("--notify=") else word)
    return shown


def date(moment: float | None = None) -> str:
    """A unix time, or now, as people here read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def lock_of(folder: Path) -> Path:
    """The lock that an experiment's run holds: a file that stays, as only its lock means anything."""
    return folder.with_name(f".{folder.name}.lock")


def known(exp_name: str) -> Record | None:
    """What is on record, where that can be read."""
    with suppress(FileProblem, OSError):
        return read_record(exp_name)
    return None


def note(record: Record) -> None:
    """Put on record. A run does not fail for that: it may have reached its end."""
    found = asdict(record)
    del found["name"]
    try:
        write_json(_path(record.name), found)
    except (FileProblem, OSError) as problem:
        print(f"not on record in {_path(record.name)}: {problem}", file=sys.stderr, flush=True)


@contextmanager
def _alone(exp_name: str, folder: Path) -> Iterator[Record | None]:
    """Hold the experiment's lock; yields what was on record of its last run."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock_of(folder)))
        except BlockingIOError:
            check_free(exp_name, folder)
            raise FileProblem(
                f"{folder} belongs to a run that goes on (it holds {lock_of(folder)}): wait for its end, or give "
                f"another --exp_name."
            ) from None
        check_free(exp_name, None if _where() == BACKGROUND else folder)
        old = known(exp_name)
        mine = old is None or old.folder != str(folder.resolve()) or old.token == os.environ.get(MARK)
        if old and not mine and (left := _left(old)):
            raise FileProblem(f"{exp_name}: {left} left of its earlier run: --stop {exp_name} ends them.")
        yield old


class Terminated(SystemExit):
    """SIGTERM came while nothing listened to it."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)

    def __str__(self) -> str:
        return "stopped by SIGTERM"


@contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """The first SIGTERM unwinds the block, so that temporary files go and the end is on record; a later one kills."""
    asked = 0.0

    def leave(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if not asked:
            asked = time.monotonic()
            raise Terminated
        if time.monotonic() - asked > TOGETHER:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _mark() -> Iterator[str]:
    """The token of this process's run, which all processes that it starts inherit."""
    if given := os.environ.get(MARK):
        yield given
        return
    os.environ[MARK] = token = uuid.uuid4().hex
    try:
        yield token
    finally:
        del os.environ[MARK]


def _where() -> str:
    token = os.environ.get(MARK)
    if token is None:
        return FOREGROUND
    return BACKGROUND if token.startswith(BACKGROUND) else QUEUE


def _path(exp_name: str) -> Path:
    return LOG / f"{exp_name}.json"


def _left(record: Record) -> str:
    """Processes of a run but its first one, in words; empty where there is none."""
    found = [str(process.pid) for process in marked(record.token)]
    return f"{len(found)} processes ({', '.join(found)})" if found else ""


def _refusal(record: Record) -> FileProblem:
    name, process = record.name, record.identity
    return FileProblem(
        f"{name} runs already (process {process.pid} on {process.host}, in the {record.where}, since "
        f"{date(record.started)}): --status {name} says how it is, --stop {name} ends it; or give another --exp_name."
    )
