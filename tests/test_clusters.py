"""What runs on clusters, without one: how the table and an attempt's files go on with what a cluster says."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from config import ConfigProblem
from engine.files import FileProblem, locked
from engine.jobs import clusters, executor, slurm
from engine.jobs.clusters import Clusters
from engine.jobs.entry import Entry, Spec
from engine.jobs.executor import ClusterSilent, Refused, Report
from engine.jobs.process import Identity
from engine.jobs.remote import Notes
from engine.jobs.store import Store

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = Identity(7, 1.5, "boot", "node-3")


class Pretended:
    """A cluster that says what a test has put into `reports` (name -> Report), else that an attempt waits."""

    def __init__(self, waits: bool) -> None:
        self.waits, self.silent, self.refuses = waits, False, False
        self.handed: list[tuple[str, list[str]]] = []
        self.reports: dict[str, Report] = {}
        self.cancelled: list[str] = []

    def start(self, entry: Entry, token: str, parents: Sequence[Entry]) -> str:
        if self.refuses:
            raise Refused("no such partition")
        self.handed.append((entry.spec.name, [parent.external for parent in parents]))
        return f"job-{entry.spec.name}"

    def poll(self, entries: Sequence[Entry]) -> dict[int, Report]:
        if self.silent:
            raise ClusterSilent("squeue: no answer")
        return {entry.id: self.reports.get(entry.spec.name, Report("waiting")) for entry in entries}

    def cancel(self, entry: Entry) -> None:
        self.cancelled.append(entry.spec.name)


class World:
    """A queue and its cluster."""

    def __init__(self, store: Store, cluster: Pretended) -> None:
        self.store, self.cluster, self.clusters = store, cluster, Clusters(store, ["false"])
        self.clusters.executors["slurm"] = cluster

    def add(self, *names: str, **more: Any) -> None:
        self.store.add([Spec(name, executor="slurm", **more) for name in names])

    def step(self) -> bool:
        self.clusters.next_look = 0.0
        return self.clusters.step()

    def said(self, name: str, state: Any, **more: Any) -> None:
        self.cluster.reports[name] = Report(state, **more)

    def entry(self, name: str) -> Entry:
        return self.store.newest()[name]


@pytest.fixture(params=[True, False], ids=["waits", "does not wait"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with Store(tmp_path / "queue") as store:
        yield World(store, Pretended(request.param))


def test_only_a_cluster_that_waits_is_given_what_must_wait(world: World) -> None:
    world.add("a", "b")
    world.add("both", after=("a", "b"))
    world.store.add([Spec("here"), Spec("mixed", executor="slurm", after=("here",))])
    assert world.step() and not world.step()
    handed = dict(world.cluster.handed)
    if world.cluster.waits:
        assert handed == {"a": [], "b": [], "both": ["job-a", "job-b"]}
    else:
        assert handed == {"a": [], "b": []}
        world.said("a", "ended", exit_code=0)
        world.said("b", "ended", exit_code=0)
        assert world.step() and dict(world.cluster.handed)["both"] == []
    assert "mixed" not in dict(world.cluster.handed), "a cluster can't wait for what runs here"
    assert world.entry("here").state == "queued" and world.entry("a").external in ("job-a", "")


def test_what_a_cluster_says_is_noted_once(world: World) -> None:
    world.add("a", retries=1)
    world.step()
    world.said("a", "running", runner=ELSEWHERE)
    assert world.step() and not world.step()
    assert world.entry("a").runner == ELSEWHERE
    world.said("a", "lost", reason="its node is down", runner=ELSEWHERE)
    assert world.step()
    assert (world.entry("a").state, world.entry("a").spent) == ("queued", 1)
    assert world.step() and world.entry("a").attempt == 2
    assert world.step() and world.entry("a").state == "lost"


def test_what_a_cluster_takes_back_uses_up_no_retry(world: World) -> None:
    world.add("a", retries=0)
    for _ in range(20):
        world.said("a", "running", runner=ELSEWHERE)
        world.step()
        world.step()
        world.said("a", "returned", reason="preempted")
        world.step()
    assert (world.entry("a").spent, world.entry("a").held) == (0, False)


@pytest.mark.parametrize(
    ("report", "state", "reason"),
    [
        (Report("ended", exit_code=0), "done", ""),
        (Report("ended", exit_code=1, reason="no such file"), "failed", "no such file"),
        (Report("failed", reason="the time limit of 2 h is over"), "failed", "the time limit of 2 h is over"),
    ],
)
def test_an_ending_is_the_entrys(world: World, report: Report, state: str, reason: str) -> None:
    world.add("a")
    world.step()
    world.cluster.reports["a"] = report
    world.step()
    assert (world.entry("a").state, world.entry("a").reason) == (state, reason)


def test_a_silent_cluster_changes_nothing_and_is_named_once(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.add("a")
    world.step()
    before = world.entry("a")
    world.cluster.silent = True
    for _ in range(3):
        assert not world.step()
    assert world.entry("a") == before
    assert capsys.readouterr().err == "executor slurm: squeue: no answer\n"


def test_what_is_refused_again_and_again_is_held(world: World) -> None:
    world.cluster.refuses = True
    world.add("a")
    for _ in range(30):
        world.step()
    entry = world.entry("a")
    assert entry.held and entry.state == "queued" and "no such partition" in entry.reason


def test_cancelling_is_handed_on(world: World) -> None:
    world.add("a")
    world.step()
    world.store.cancel([1])
    world.step()
    assert world.cluster.cancelled == ["a"] and world.entry("a").state == "running"
    world.said("a", "ended", exit_code=75)
    world.step()
    assert world.entry("a").state == "cancelled"


def test_clusters_are_not_asked_all_the_time(world: World) -> None:
    world.add("a")
    world.clusters.step()
    world.cluster.silent = True
    assert not world.clusters.step(), "not asked, so not silent"
    assert world.clusters.next_look > time.monotonic() + clusters.LOOK / 2


def test_an_executor_that_is_not_there_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store(tmp_path) as store:
        store.add([Spec("x", executor="cloud"), Spec("y", executor="slurm")])
        queue = Clusters(store, ["false"])
        queue.executors["slurm"] = Pretended(True)
        assert queue.step()
        assert store.newest()["y"].state == "running" and store.newest()["x"].state == "queued"
    assert "executor 'cloud' is none of local, slurm, ray" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_says_what_to_install(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ConfigProblem) as caught:
        executor.cluster(name, tmp_path, [])
    said = f"executor {name} needs the package {package}, which is not installed: .venv/bin/pip install -e '.[{name}]'"
    assert str(caught.value) == said


def test_the_extras_are_those_that_the_errors_name() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'slurm = ["submitit==' in text and 'ray = ["ray==' in text


def test_the_scheduler_imports_no_cluster(tmp_path: Path) -> None:
    code = "import sys, engine.jobs.scheduler; assert not {'submitit', 'ray', 'torch', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# What Slurm says


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> slurm.Slurm:
    """Slurm's commands as scripts: squeue prints the file `squeue.txt`, scancel notes its arguments in `cancelled`."""
    for name, text in {
        "squeue": f'[ -f {tmp_path}/down ] && {{ echo "slurm_load_jobs error: no contact" >&2; exit 1; }}\n'
        f"cat {tmp_path}/squeue.txt",
        "scancel": f'echo "$@" >> {tmp_path}/cancelled',
        "sbatch": "",
        "srun": "",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "package", lambda name, extra: SimpleNamespace())
    return slurm.Slurm(tmp_path, [])


def running(store: Store) -> Entry:
    store.add([Spec("a", executor="slurm", gpus=1)])
    store.claim(1, ())
    return store.get(1)


@pytest.mark.parametrize(
    ("line", "began", "code", "expected"),
    [
        ("PENDING|Priority", False, None, "waiting"),
        ("PENDING|BeginTime", True, 75, "waiting"),
        ("REQUEUED|None", True, 75, "waiting"),
        ("RUNNING|None", True, None, "running"),
        ("COMPLETING|None", True, 0, "running"),
        ("COMPLETED|None", True, 0, "ended"),
        ("FAILED|NonZeroExitCode", True, 75, "ended"),
        ("TIMEOUT|TimeLimit", True, None, "lost"),
        ("OUT_OF_MEMORY|OutOfMemory", True, None, "lost"),
        ("NODE_FAIL|None", True, None, "lost"),
        ("FAILED|RaisedSignal:53", False, None, "returned"),
        ("PREEMPTED|None", True, 75, "returned"),
        ("CANCELLED|None", True, None, "failed"),
        ("PENDING|DependencyNeverSatisfied", False, None, "returned"),
        ("", True, 0, "ended"),
        ("", True, None, "lost"),
        ("", False, None, "returned"),
    ],
)
def test_every_state_of_a_job(
    cluster: slurm.Slurm, tmp_path: Path, line: str, began: bool, code: int | None, expected: str
) -> None:
    with Store(tmp_path) as store:
        entry = running(store)
    notes = Notes(tmp_path, entry.id, entry.token)
    notes.order(entry, [])
    if began:
        notes.began(ELSEWHERE)
    if code is not None:
        notes.ended(entry.id, entry.token, code, "", True)
    (tmp_path / "squeue.txt").write_text(f"another|1|RUNNING|None\n{entry.token}|12|{line}\n" if line else "\n")
    report = cluster.poll([entry])[1]
    assert (report.state, report.runner) == (expected, ELSEWHERE if began else None)
    assert report.exit_code == (code if expected == "ended" else None)
    assert (tmp_path / "cancelled").exists() == (line == "PENDING|DependencyNeverSatisfied")


def test_no_answer_is_no_news(cluster: slurm.Slurm, tmp_path: Path) -> None:
    (tmp_path / "down").touch()
    with Store(tmp_path) as store, pytest.raises(ClusterSilent, match="squeue: slurm_load_jobs error: no contact"):
        cluster.poll([running(store)])


def test_only_what_waits_is_withdrawn_from_slurm(cluster: slurm.Slurm, tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        entry = running(store)
    Notes(tmp_path, entry.id, entry.token).order(entry, [])
    for state, withdrawn in (("COMPLETED", False), ("RUNNING", False), ("PENDING", True)):
        (tmp_path / "squeue.txt").write_text(f"{entry.token}|12|{state}|None\n")
        cluster.cancel(entry)
        assert (tmp_path / "cancelled").exists() == withdrawn
        assert Notes(tmp_path, entry.id, entry.token).get(entry.id).cancelling


# An attempt and its files


def test_an_order_is_read_as_it_was_given(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.add([Spec("a", ("--lr", "1e-3"), gpus=2, hours=1.5, executor="ray")])
        store.claim(1, ())
        entry = store.get(1)
    notes = Notes(tmp_path, entry.id, entry.token)
    notes.order(entry, ["python", "x.py"])
    assert notes.ordered() == (entry, ["python", "x.py"], os.getcwd())
    for text in ("", "[]", "{}", '{"entry": 3}'):
        (notes.folder / "order.json").write_text(text)
        with pytest.raises(FileProblem, match="is missing or damaged: is the queue's folder on a file system"):
            notes.ordered()


def attempt(tmp_path: Path, script: str, **environment: str) -> tuple[Notes, subprocess.Popen[str]]:
    """Run one in a process of its own, as Ray's actor does; `script` stands in for run_exp.py."""
    (tmp_path / "x.py").write_text(f"import os, sys, time\nfrom pathlib import Path\n{script}")
    folder = tmp_path / "queue"
    with Store(folder) as store:
        if not store.entries():
            store.add([Spec("a", gpus=2, executor="ray")])
            store.claim(1, ())
        entry = store.get(1)
    notes = Notes(folder, 1, entry.token)
    notes.order(entry, [sys.executable, "-u", str(tmp_path / "x.py")])
    order = json.loads((notes.folder / "order.json").read_text()) | {"cwd": str(tmp_path)}
    (notes.folder / "order.json").write_text(json.dumps(order))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "engine/jobs/remote.py"), str(folder), "1", entry.token],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "4,6", **environment}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    return notes, process


def test_an_attempt_runs_on_what_it_was_given_and_notes_its_end(tmp_path: Path) -> None:
    notes, process = attempt(tmp_path, "print('sees', os.environ['CUDA_VISIBLE_DEVICES'], sys.argv[1:])")
    assert process.wait(20) == 0
    report = notes.over("")
    assert (report.state, report.exit_code) == ("ended", 0) and report.runner is not None and notes.settled()
    log = (tmp_path / "log/a.log").read_text()
    assert "sees 4,6 ['--exp_name', 'a', '--gpus', '2']" in log and "ended with exit code 0" in log


def test_what_is_settled_is_not_run_again(tmp_path: Path) -> None:
    script = "open('runs', 'a').write('x')\nsys.exit(1)"
    for _ in range(2):
        notes, process = attempt(tmp_path, script)
        assert process.wait(20) == 0
    assert (tmp_path / "runs").read_text() == "x" and notes.over("").exit_code == 1


def test_a_start_waits_until_the_one_before_is_gone(tmp_path: Path) -> None:
    with locked(Notes(tmp_path / "queue", 1, "x").lock):
        notes, process = attempt(tmp_path, "")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        assert notes.runner() is None and "waits for its last start to end" in (tmp_path / "log/a.log").read_text()
    assert process.wait(20) == 0 and notes.over("").exit_code == 0


def test_cancelled_it_is_asked_to_save(tmp_path: Path) -> None:
    script = (
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "open('ready', 'w').close()\ntime.sleep(60)"
    )
    notes, process = attempt(tmp_path, script)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    notes.cancel()
    assert process.wait(20) == 0 and notes.over("").exit_code == 75


def test_parts_of_gpus_are_refused(tmp_path: Path) -> None:
    notes, process = attempt(tmp_path, "", CUDA_VISIBLE_DEVICES="MIG-1234")
    assert process.wait(20) == 0
    report = notes.over("")
    assert report.state == "failed" and "'MIG-1234' here, but the queue takes whole GPUs" in report.reason
