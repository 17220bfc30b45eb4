"""A Slurm of one machine with two pretended GPUs, a queue beside it, and what both tests of clusters need."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from engine.jobs.entry import Entry, Spec
from engine.jobs.store import Store

ROOT = Path(__file__).resolve().parent.parent.parent
STAND_IN = Path(__file__).resolve().parent / "stand_in.py"

CONF = """
ClusterName=bones
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=10
GresTypes=gpu
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=32 SocketsPerBoard=1 CoresPerSocket=32 RealMemory=1000 Gres=gpu:2
PartitionName=low Nodes={host} Default=YES PriorityTier=1 MaxTime=60 DefaultTime=60
PartitionName=high Nodes={host} PriorityTier=10 MaxTime=60
"""


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    """Until `what` is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.2)


@dataclass
class Queue:
    """A queue in a working folder of its own, run by a real scheduler whose entries are stand-ins."""

    work: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.work / "log" / "queue"

    def add(self, *specs: Spec) -> None:
        with Store(self.folder) as store:
            store.add(specs)

    def entries(self) -> dict[str, Entry]:
        with Store(self.folder) as store:
            return store.newest()

    def states(self) -> dict[str, str]:
        return {name: entry.state for name, entry in self.entries().items()}

    def schedule(self) -> subprocess.Popen[bytes]:
        """Start a scheduler that leaves when nothing is left to do."""
        command = (sys.executable, "-u", str(STAND_IN))
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "from pathlib import Path\nfrom engine.jobs import clusters, scheduler\nclusters.LOOK = 1.0\n"
            f"sys.exit(scheduler.run(Path('log/queue'), scheduler.Options(command={command!r}), until_empty=True))"
        )
        with open(self.work / "scheduler.txt", "ab") as out:
            process = subprocess.Popen([sys.executable, "-c", code], cwd=self.work, stdout=out, stderr=out)
        self.processes.append(process)
        return process

    def journal(self, name: str) -> list[str]:
        """What an experiment's runs did, in order."""
        try:
            lines = (self.work / "journal.txt").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [line.split("|")[2] for line in lines if line.split("|")[1] == name]

    def gpus(self, name: str) -> set[str]:
        """CUDA_VISIBLE_DEVICES of an experiment's runs."""
        lines = (self.work / "journal.txt").read_text().splitlines()
        return {line.split("|")[4] for line in lines if line.split("|")[1] == name}

    def report(self) -> str:
        """For people, where a test fails: pytest shows what is printed."""
        texts = [f"{path.name}:\n{path.read_text()}" for path in sorted(self.work.glob("*.txt"))]
        return "\n".join([*texts, *(f"{e}: {e.state} {e.reason}" for e in self.entries().values())])


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    (tmp_path / "log").mkdir()
    monkeypatch.chdir(tmp_path)
    queue = Queue(tmp_path)
    yield queue
    for process in queue.processes:
        if process.poll() is None:
            process.kill()
        process.wait()
    print(queue.report())


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class SingleNode:
    """Controller, node and munge as children of this process, with their files in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.daemons = folder, dict[str, subprocess.Popen[bytes]]()
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        facts = {"host": socket.gethostname().split(".")[0], "port": free_port(), "node_port": free_port()}
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        (folder / "slurm.conf").write_text(CONF.format(folder=folder, user=user, **facts))
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

    def start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.out", "ab") as out:
            self.daemons[name] = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)

    def begin(self) -> None:
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        named = [f"--{option}={self.folder / name}" for option, name in files.items()]
        self.start("munged", "munged", "--foreground", "--force", f"--log-file={self.folder / 'munged.log'}", *named)
        wait_for(lambda: (self.folder / "munge.socket").exists())
        self.control()
        self.start("slurmd", "slurmd", "-D", "-f", str(self.folder / "slurm.conf"))
        wait_for(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"))

    def control(self) -> None:
        self.start("slurmctld", "slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        wait_for(lambda: "UP" in self.ask("scontrol", "ping"))

    def kill_controller(self) -> None:
        """kill -9 of slurmctld and of the helper that it has forked."""
        os.killpg(self.daemons["slurmctld"].pid, signal.SIGKILL)
        self.daemons.pop("slurmctld").wait()

    def ask(self, *command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True).stdout

    def jobs(self) -> dict[str, tuple[str, str, str]]:
        """Name of a job that has not ended -> its number, state and reason."""
        lines = self.ask("squeue", "-h", "-o", "%j|%i|%T|%r").splitlines()
        return {line.split("|")[0]: tuple(line.split("|")[1:4]) for line in lines}  # type: ignore[misc]

    def hurry(self) -> None:
        """Start requeued jobs now: Slurm lets them wait for two minutes."""
        for number, _, reason in self.jobs().values():
            if reason == "BeginTime":
                self.ask("scontrol", "update", f"JobId={number}", "StartTime=now")

    def end(self) -> None:
        if "slurmctld" in self.daemons:
            self.ask("scancel", "--me")
            wait_for(lambda: not self.jobs())
        for daemon in reversed(list(self.daemons.values())):
            daemon.terminate()
            daemon.wait()


@pytest.fixture(scope="module")
def slurm() -> Iterator[SingleNode]:
    """Skips, with what to install, where there is no Slurm."""
    if missing := [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]:
        pytest.skip(f"no {', '.join(missing)} here: apt-get install slurm-wlm munge")
    if find_spec("submitit") is None:
        pytest.skip("submitit is not installed: .venv/bin/pip install -e '.[slurm]'")
    # Not pytest's own folder: the path of munge's socket may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    node = SingleNode(folder)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        node.begin()
        yield node
    finally:
        node.end()
        del os.environ["SLURM_CONF"]
        shutil.rmtree(folder)
