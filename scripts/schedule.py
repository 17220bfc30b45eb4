"""Run experiments one after another, or side by side on several GPUs: python scripts/schedule.py [COMMAND].

Without a command it runs the `experiments` below: edit them. docs/queue.md says what may stand there, and what commands
there are.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import Config, ConfigProblem, suggest
from engine.files import FileProblem
from engine.flags import parse, run_command
from engine.jobs import database, table
from engine.jobs.entry import BLOCKING, ENDED, State
from engine.jobs.store import Store
from engine.stop import EXIT_INTERRUPTED

experiments: list[dict[str, Any]] = [
    {"exp_name": "smoke-bce", "preset": "smoke", "loss": "Combined_BCE_Dice"},
    {"exp_name": "smoke-focal", "preset": "smoke", "loss": "Combined_Focal_Dice"},
    {
        "exp_name": "smoke-both",
        "after": ["smoke-bce", "smoke-focal"],
        "inference_file": "inference.inference_ensemble",
        "ensemble_models": [{"path": "checkpoints/smoke-bce"}, {"path": "checkpoints/smoke-focal"}],
        "eval_only": True,
    },
]

DESCRIPTION = """Run experiments one after another, or side by side on several GPUs.

They are entries of a queue that outlives kills and restarts; see docs/queue.md. Without a command: adds those of the
`experiments` at the top of this file that the queue does not have, and runs until it is empty. Exit codes: 0 done, 1 a
file is wrong or an experiment has failed, 2 a flag or a setting is wrong, 75 and 130 stopped (what runs goes on)."""

SCRIPT = Path(__file__).resolve()
QUEUE = Path("log/queue")
POLL = 0.5
"""Seconds between two looks of log --follow."""

Queue = Annotated[Path, tyro.conf.arg(help="Folder of the queue.")]
ENTRIES = tyro.conf.arg(metavar="ENTRY", help="Names, numbers, states, or patterns such as 'unet-*' (in quotes).")
Targets = Annotated[tuple[str, ...], tyro.conf.Positional, ENTRIES]
# Not written None | tuple: tyro would load typeguard to check that, and `ls` would take a quarter longer.
Some = Annotated[Union[None, tuple[str, ...]], tyro.conf.Positional, ENTRIES]  # noqa: UP007, RUF036
Files = Annotated[
    tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE", help="Python or YAML with `experiments`.")
]
Slots = Annotated[int, tyro.conf.arg(help="Entries without a GPU that may run at once.")]
Space = Annotated[float, tyro.conf.arg(help="GB; nothing starts with less space left where it would write.")]
Url = Annotated[str, tyro.conf.arg(help="URL that gets a message (Slack's format) about what ends or fails.")]


def add(
    files: Files, executor: Literal["local", "slurm", "ray"] = "local", new: bool = False, queue: Queue = QUEUE
) -> int:
    """Add the experiments of files, all or none. Each one is checked first as `run_exp.py --dry_run` does.

    Args:
        executor: What runs those that name none.
        new: Leave out experiments that the queue has, or had, with these very settings.
    """
    from engine.jobs.executor import cluster
    from engine.jobs.experiments import plan, read_experiments
    from engine.jobs.inventory import VISIBLE, gpus
    from engine.jobs.scheduler import Options

    if not files:
        raise ConfigProblem("There is nothing to add: give a Python or YAML file with `experiments = [...]`.")
    lists = [(str(path), read_experiments(path)) for path in files]
    machine = len(gpus())
    os.environ[VISIBLE] = ""  # checks must not take memory of a GPU on which something runs
    known: dict[str, tuple[str, ...]] = {}
    if new and (queue / database.NAME).exists():
        with Store(queue) as store:
            known = {name: entry.spec.argv for name, entry in store.newest().items()}
    specs = [spec for where, written in lists for spec in plan(written, where, check, machine, executor, known)]
    for name in sorted({spec.executor for spec in specs} - {"local"}):
        cluster(name, queue, Options().command)  # what it lacks shows here
    with Store(queue) as store:
        for entry in store.entries(store.add(specs)):
            print(f"{entry}: queued")
        print(f"{len(specs)} experiments added to {queue}")
        if SCRIPT not in files:  # else they are run right now: _run_list
            _say_who_works(store)
    return 0


def ls(targets: Some = None, watch: bool = False, json: bool = False, queue: Queue = QUEUE) -> int:
    """List the queue, or entries of it: what has ended, what runs, and what waits in the order of its turns.

    Args:
        watch: Show it until Ctrl-C.
        json: As JSON, for programs.
    """
    terminal = sys.stdout.isatty()
    if watch and (json or not terminal):
        raise ConfigProblem("ls --watch needs a terminal and no --json: leave it out.")
    with opened(queue) as store:
        ids = None if targets is None else chosen(store, targets)
        if watch:
            table.watch(store, ids)
            return 0
        shown = table.view(store, ids)
    if json:
        print(table.as_json(shown))
    elif terminal:
        table.show(shown)
    else:
        print("\n".join([*table.lines(shown), table.summary(shown)]))
    return 0


def log(
    entry: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENTRY")] = "",
    follow: Annotated[bool, tyro.conf.arg(aliases=["-f"])] = False,
    queue: Queue = QUEUE,
) -> int:
    """Print the log of an experiment or, without a name, what has happened in the queue.

    Args:
        entry: Name or number.
        follow: Print what comes as well, until its run ends or Ctrl-C.
    """
    from engine import background, control

    with opened(queue) as store:
        if not entry:
            return _history(store, follow)
        found = store.get(chosen(store, [entry])[0])
    path = background.LOG / f"{found.spec.name}.log"
    if not path.exists():
        raise FileProblem(f"{path} does not exist: {found} is {found.state} and has not begun.")
    if follow:
        return control.follow(found.spec.name)
    with open(path, encoding="utf-8", errors="replace") as file:
        shutil.copyfileobj(file, sys.stdout)
    return 0


def cancel(targets: Targets, queue: Queue = QUEUE) -> int:
    """Cancel what waits, and have what runs save and stop."""
    with opened(queue) as store:
        for entry in store.cancel(chosen(store, targets, ["queued", "running"])):
            print(f"{entry}: {'is asked to save and stop' if entry.cancelling else 'cancelled'}")
    return 0


def retry(targets: Targets, queue: Queue = QUEUE) -> int:
    """Queue what has ended again, to go on from its newest state, with what was skipped because of it."""
    with opened(queue) as store:
        for entry in store.retry(chosen(store, targets, BLOCKING)):
            print(f"{entry}: queued")
        _say_who_works(store)
    return 0


def hold(targets: Targets, queue: Queue = QUEUE) -> int:
    """Keep what waits from starting, until `release`."""
    with opened(queue) as store:
        store.hold(chosen(store, targets, ["queued"]))
    return 0


def release(targets: Targets, queue: Queue = QUEUE) -> int:
    """Let what is held start, also what a crash loop has put on hold."""
    with opened(queue) as store:
        store.release(chosen(store, targets, ["queued"]))
    return 0


def pause(queue: Queue = QUEUE) -> int:
    """Start nothing until `resume`; what runs goes on."""
    with opened(queue) as store:
        store.pause()
    return 0


def resume(queue: Queue = QUEUE) -> int:
    """Start things again after `pause`."""
    with opened(queue) as store:
        store.unpause()
        _say_who_works(store)
    return 0


def prio(priority: tyro.conf.Positional[int], targets: Targets, queue: Queue = QUEUE) -> int:
    """Set the priority of entries.

    Args:
        priority: The highest goes first; entries have 0 by themselves.
    """
    from engine.jobs.experiments import MOST

    if abs(priority) > MOST:
        raise ConfigProblem(f"priority is {priority}, but must be a whole number up to {MOST}.")
    with opened(queue) as store:
        store.set_priority(chosen(store, targets, ["queued", "running"]), priority)
    return 0


def rm(targets: Targets, queue: Queue = QUEUE) -> int:
    """Forget what has ended; experiments and logs stay where they are."""
    with opened(queue) as store:
        store.remove(chosen(store, targets, ENDED))
    return 0


def run(
    until_empty: bool = False, cpu_slots: Slots = 1, min_free: Space = 5.0, notify: Url = "", queue: Queue = QUEUE
) -> int:
    """Run the queue until Ctrl-C, which leaves what runs running.

    Args:
        until_empty: Leave when nothing runs and nothing may start any more.
    """
    from engine.jobs import scheduler

    _check_work(cpu_slots, min_free, notify)
    options = scheduler.Options(cpu_slots=cpu_slots, min_free=min_free, notify=notify)
    return scheduler.run(queue, options, until_empty)


def install_service(cpu_slots: Slots = 1, min_free: Space = 5.0, notify: Url = "", queue: Queue = QUEUE) -> int:
    """Write a systemd user unit that runs the queue whenever the machine runs."""
    from engine.jobs import service

    _check_work(cpu_slots, min_free, notify)
    flags = {"queue": str(queue.absolute()), "cpu_slots": str(cpu_slots), "min_free": str(min_free), "notify": notify}
    given = [part for flag, value in flags.items() if value for part in (f"--{flag}", value)]
    print(service.install([sys.executable, str(SCRIPT), "run", *given]))
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    **{each.__name__: each for each in (add, ls, log, cancel, retry, hold, release, pause, resume, prio, rm, run)},
    "install-service": install_service,
}


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    if not argv:
        return run_command(_run_list)
    if argv[0] in COMMANDS:  # the flags of one command are parsed in half the time that those of all take
        prog = f"schedule.py {argv[0]}"
        return run_command(lambda: tyro.cli(COMMANDS[argv[0]], args=argv[1:], prog=prog, use_underscores=True))
    tyro.extras.subcommand_cli_from_dict(COMMANDS, args=argv, prog="schedule.py", description=DESCRIPTION)
    return 2


def _run_list() -> int:
    """Add what the list at the top has and the queue has not, and run until the queue is empty."""
    # In a process of its own: its checks load torch, which a scheduler should not keep in memory all night.
    if code := subprocess.run([sys.executable, str(SCRIPT), "add", str(SCRIPT), "--new"]).returncode:
        return code
    with opened(QUEUE) as store:
        if table.view(store, []).scheduler:
            return 0
    return run(until_empty=True)


def check(argv: list[str], waits: bool) -> Config:
    """The settings that flags of run_exp.py mean, after run_exp.py itself has checked them (--dry_run).

    Args:
        waits: files that are missing now may be written by entries that come before.

    Raises:
        ConfigProblem: run_exp.py would refuse them; in its words.
    """
    import run_exp

    cfg = _quiet(lambda: parse(argv, run_exp.Commands, run_exp.DESCRIPTION)[0].cfg, {2})
    assert isinstance(cfg, Config)
    _quiet(lambda: run_exp.main([*argv, "--dry_run", "--device", "cpu"]), {2} if waits else {1, 2})
    return cfg


def _quiet(call: Callable[[], Any], refusals: Collection[int]) -> Any:
    """What `call` returns, or exits with; without its output.

    Raises:
        ConfigProblem: with the error that it has printed, where its exit code is one of `refusals`.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            found = call()
        except SystemExit as left:
            found = left.code
    if found == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if isinstance(found, int) and found in refusals:
        raise ConfigProblem(said.getvalue().rpartition("error: ")[2])
    return found


def _check_work(cpu_slots: int, min_free: float, notify: str) -> None:
    """Raise ConfigProblem where a queue can't be run so."""
    from engine.notify import check_url

    for name, value in (("cpu_slots", cpu_slots), ("min_free", min_free)):
        if not value >= 0:
            raise ConfigProblem(f"{name} is {value}, but must be 0 or more.")
    check_url(notify)


def _history(store: Store, follow: bool) -> int:
    """Print the events of a queue."""
    from engine.jobs.messages import line

    last = 0
    while True:
        for event in store.events(since=last):
            print(line(event), flush=True)
            last = event.number
        if not follow:
            return 0
        while not store.changed():
            time.sleep(POLL)


def opened(queue: Path) -> Store:
    """A queue that exists; looking at one must not begin it.

    Raises:
        FileProblem: it doesn't.
    """
    if not (queue / database.NAME).exists():
        raise FileProblem(f"{queue} holds no queue: `add` begins one, and --queue names another.")
    return Store(queue)


def chosen(store: Store, targets: Sequence[str], states: Collection[State] | None = None) -> list[int]:
    """Ids of the entries that are meant: by name (the newest of that name), number, state, or pattern of names.

    Args:
        states: states and patterns mean entries in these states only; None means any.

    Raises:
        ConfigProblem: a name, number or pattern means no entry.
    """
    if not targets:
        raise ConfigProblem("No entry is named: give names, numbers, states, or a pattern such as '*' (in quotes).")
    newest, ids = store.newest(), list[int]()
    for target in targets:
        if target in newest:
            ids.append(newest[target].id)
        elif target.isdecimal():
            ids.append(store.get(int(target)).id)
        elif target in get_args(State):
            ids += [entry.id for entry in store.entries(states=[target]) if states is None or target in states]
        elif matching := [
            entry.id
            for name, entry in newest.items()
            if fnmatch.fnmatchcase(name, target) and (states is None or entry.state in states)
        ]:
            ids += matching
        else:
            limits = f" that is {' or '.join(states)}" if states and set("*?[") & set(target) else ""
            raise ConfigProblem(f"{target!r} is no entry of {store.folder}{limits}{suggest(target, newest)}.")
    return list(dict.fromkeys(ids))


def _say_who_works(store: Store) -> None:
    """Say how things get started, where nothing does that."""
    if table.view(store, []).scheduler is None:
        print(table.NOBODY)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
