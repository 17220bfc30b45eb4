"""The queue on a Ray cluster of two pretended servers with one GPU each: `make test-ray`. Entries are stand-ins."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Queue, wait_for

from config import ConfigProblem
from engine.jobs import executor as executors
from engine.jobs.entry import Spec
from engine.jobs.store import Store

ray = pytest.importorskip("ray", reason="ray is not installed: .venv/bin/pip install -e '.[ray]'")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.cluster

MEMORY = {"object_store_memory": 80 * 2**20}


def job(name: str, *argv: str, **more: object) -> Spec:
    return Spec(name, argv, executor="ray", **more)  # type: ignore[arg-type]


class Servers:
    """A head that runs nothing, and servers of 1 GPU and 3 cores."""

    def __init__(self) -> None:
        self.cluster: Any = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, **MEMORY}
        )
        self.cluster.connect(namespace="bones")

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=3, num_gpus=1, **MEMORY)

    def lose(self, server: Any) -> None:
        """As if its power had gone: no process of Ray's there gets a signal that it could react to."""
        self.cluster.remove_node(server, allow_graceful=False)


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    found = Servers()
    os.environ["RAY_ADDRESS"] = found.cluster.address
    yield found
    del os.environ["RAY_ADDRESS"]
    ray.shutdown()
    found.cluster.shutdown()


def test_without_a_cluster_the_error_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem, match="executor ray finds no cluster: start one with `ray start --head`"):
        executors.cluster("ray", tmp_path, [])


def test_a_lost_server_costs_no_experiment(servers: Servers, queue: Queue) -> None:
    first = servers.add()
    queue.add(
        job("a", "--steps", "150", gpus=1),
        job("b", "--steps", "20", gpus=1),
        job("two", gpus=2),  # more than any server has
        job("ensemble", "--steps", "3", "--needs", "a", "b", after=("a", "b")),
        job("bad", "--fail"),
        job("child", after=("bad",)),
    )
    scheduler = queue.schedule()
    wait_for(lambda: queue.journal("a"))
    assert not queue.journal("b"), "the only GPU is taken"
    assert queue.states()["ensemble"] == "queued"
    servers.add()
    wait_for(lambda: "done" in queue.journal("b"))
    servers.lose(first)
    wait_for(lambda: queue.states()["ensemble"] == "done", 150)

    assert queue.states() == {
        **dict.fromkeys(("a", "b", "ensemble"), "done"), "bad": "failed", "child": "skipped", "two": "running",
    }  # fmt: skip
    start, saved, again, done = queue.journal("a")
    step = saved.split()[1]
    assert (start, saved, again, done) == ("start 0", f"saved {step}", f"start {step}", "done") and int(step) > 0
    assert queue.journal("b") == ["start 0", "done"] and queue.gpus("a") == {"0"} and queue.gpus("ensemble") == {""}
    with Store(queue.folder) as store:
        store.cancel([queue.entries()["two"].id])
    assert scheduler.wait(60) == 1
    assert queue.states()["two"] == "cancelled" and not queue.journal("two")
    wait_for(lambda: not ray.util.list_named_actors(), 30)


def test_a_killed_scheduler_finds_its_attempts_again(servers: Servers, queue: Queue) -> None:
    queue.add(job("a", "--steps", "150", gpus=1), job("b", "--steps", "3", "--needs", "a", after=("a",)))
    first = queue.schedule()
    wait_for(lambda: queue.journal("a"))
    first.kill()
    first.wait()
    assert queue.schedule().wait(90) == 0
    assert queue.journal("a") == ["start 0", "done"] and queue.journal("b") == ["start 0", "done"]
    assert [entry.attempt for entry in queue.entries().values()] == [1, 1]


def test_cancelled_while_it_runs_it_saves(servers: Servers, queue: Queue) -> None:
    queue.add(job("a", "--steps", "9999"))
    scheduler = queue.schedule()
    wait_for(lambda: queue.journal("a"))
    with Store(queue.folder) as store:
        store.cancel([1])
    scheduler.wait(60)
    assert queue.states() == {"a": "cancelled"} and queue.journal("a")[-1].startswith("saved")


def test_handed_over_twice_it_runs_once(servers: Servers, queue: Queue) -> None:
    """A scheduler may die after Ray has taken an attempt and before the table says so."""
    queue.add(job("a", "--steps", "10"))
    command = [sys.executable, "-u", str(Path(__file__).parent / "stand_in.py")]
    with Store(queue.folder) as store:
        token = store.claim(1, ())
        assert token is not None
        one = executors.cluster("ray", queue.folder, command)
        for _ in range(2):
            assert one.start(store.get(1), token, []) == token
        wait_for(lambda: one.poll(store.entries())[1].state == "ended")
        assert one.poll(store.entries())[1].exit_code == 0
    assert queue.journal("a") == ["start 0", "done"]
