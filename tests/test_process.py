"""engine/jobs/process.py: which process is which, and the processes of a job."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.jobs.process import BOOT, MARK, Identity, ask_marked, boot_id, kill_marked, marked, stop_marked

ROOT = Path(__file__).resolve().parent.parent

Shell = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def token() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def shell(token: str) -> Iterator[Shell]:
    """Starts shell scripts as processes of the job and waits until they say `ready`."""
    started: list[subprocess.Popen[str]] = []

    def run(script: str, mark: bool = True) -> subprocess.Popen[str]:
        environment = {**os.environ, MARK: token} if mark else None
        process = subprocess.Popen(
            ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    kill_marked(token)
    for process in started:
        process.kill()
        process.communicate(timeout=10)


def identity(process: subprocess.Popen[str]) -> Identity:
    found = Identity.of(process.pid)
    assert found is not None
    return found


def said(process: subprocess.Popen[str]) -> str:
    """What it has printed since `ready`, once it and all that it has started are gone."""
    return process.communicate(timeout=10)[0]


# --- identity


def test_a_process_knows_itself() -> None:
    me = Identity.me()
    assert (me.pid, me.alive(), me.elsewhere) == (os.getpid(), True, False)
    assert me.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert me == Identity.of(os.getpid())


def test_it_started_when_psutil_says() -> None:
    since_boot = psutil.Process().create_time() - psutil.boot_time()
    assert abs(Identity.me().started - since_boot) < 1.5  # psutil counts from the boot's whole second


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(1, 2**22), st.floats(0, 1e9), st.text(), st.text())
def test_an_identity_comes_back_from_json(pid: int, started: float, boot: str, host: str) -> None:
    known = Identity(pid, started, boot, host)
    assert "\n" not in known.to_json()
    assert Identity.from_json(known.to_json()) == known


@pytest.mark.parametrize("text", ["", "7", "[]", '{"pid": 7}', '{"pid": "x", "started": 1, "boot": "", "host": ""}'])
def test_what_is_no_identity_says_so(text: str) -> None:
    with pytest.raises(ValueError, match="identifies no process"):
        Identity.from_json(text)


def test_a_number_that_was_handed_out_again_is_another_process() -> None:
    me = Identity.me()
    assert not replace(me, started=me.started - 60).alive()


def test_nothing_survives_a_reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    me = Identity.me()
    monkeypatch.setenv(BOOT, "another boot")
    assert boot_id() == "another boot"
    assert not me.alive()
    assert Identity.me().alive()


def test_what_runs_elsewhere_counts_as_alive() -> None:
    there = replace(Identity.me(), host="another-host", boot="its boot")
    assert there.elsewhere
    assert there.alive()


def test_a_zombie_is_dead(shell: Shell) -> None:
    process = shell("echo ready; read line")
    before = identity(process)
    assert before.alive()
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, not collected
    assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    assert not before.alive()
    assert Identity.of(process.pid) is None
    process.wait()
    assert not before.alive()


def test_a_program_may_have_any_name(tmp_path: Path) -> None:
    program = tmp_path / "a) Z (b"
    shutil.copy(shutil.which("cat") or "", program)
    process = subprocess.Popen([program], stdin=subprocess.PIPE)
    try:
        found = Identity.of(process.pid)
        assert found is not None
        assert 0 <= found.started - Identity.me().started < 3600
    finally:
        process.communicate()


# --- the processes of a job


def test_all_processes_of_a_job_are_found_in_whatever_session(shell: Shell, token: str) -> None:
    assert marked(token) == []
    root = shell("setsid sh -c 'echo ready; sleep 600; :'; :")
    found = marked(token)
    assert root.pid in {process.pid for process in found}
    assert sum(process.name() == "sleep" for process in found) <= 1
    assert len({os.getsid(process.pid) for process in found}) == 2
    other = shell("echo ready; read line", mark=False)
    assert other.pid not in {process.pid for process in marked(token)}


def test_a_process_with_a_number_that_was_used_before_is_found_and_asked(shell: Shell, token: str) -> None:
    """Numbers come again after 32768 processes on many machines; psutil.process_iter remembers whose they were."""
    root = shell("trap 'echo root; exit' TERM; echo ready; while :; do sleep 0.01; done")
    (known,) = (process for process in psutil.process_iter() if process.pid == root.pid)
    known._ident = (root.pid, 0.0)
    try:
        assert root.pid in {process.pid for process in marked(token)}
        assert ask_marked(token) == 1
        assert said(root) == "root\n"
    finally:
        psutil.process_iter.cache_clear()


def test_a_process_of_the_job_does_not_find_itself(token: str) -> None:
    code = "import sys; from engine.jobs.process import marked; print(marked(sys.argv[1]))"
    argv = [sys.executable, "-c", code, token]
    done = subprocess.run(argv, cwd=ROOT, env={**os.environ, MARK: token}, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


CHILD = "sh -c 'trap \"echo child; exit\" TERM; {}; while :; do sleep 0.01; done' & "
"""Says `child` when it gets SIGTERM."""


def test_only_those_are_asked_that_no_other_has_started(
    shell: Shell, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shell("trap 'echo root; kill -9 $!; exit 75' TERM; " + CHILD.format("echo ready") + "wait")

    def terminate(process: psutil.Process) -> None:
        process.send_signal(signal.SIGTERM)
        root.wait(10)  # now those that it has started have another parent

    monkeypatch.setattr(psutil.Process, "terminate", terminate)
    assert ask_marked(token) == 1
    assert said(root) == "root\n"
    assert root.returncode == 75


def test_orphans_are_asked(shell: Shell, token: str) -> None:
    root = shell(CHILD.format("echo ready") + "wait")
    root.kill()
    root.wait()
    assert len(marked(token)) >= 1
    assert stop_marked(token, 10) == 0
    assert said(root) == "child\n"
    assert marked(token) == []


def test_what_does_not_leave_is_killed(shell: Shell, token: str) -> None:
    root = shell("trap '' TERM; setsid sh -c 'echo ready; sleep 600; :'; :")
    assert stop_marked(token, 0.0) >= 2  # both shells, and sleep where it had begun
    assert marked(token) == []
    assert root.wait() == -signal.SIGKILL


def test_nothing_to_stop_is_no_error(token: str) -> None:
    assert (ask_marked(token), kill_marked(token), stop_marked(token, 10)) == (0, set(), 0)


def test_the_root_needs_no_mark(shell: Shell, token: str) -> None:
    root = shell(
        f"trap 'echo root; kill -9 $!; exit' TERM; export {MARK}={token}; " + CHILD.format("echo ready") + "wait",
        mark=False,
    )
    assert root.pid not in {process.pid for process in marked(token)}
    assert stop_marked(token, 10, identity(root)) == 0
    assert said(root) == "root\n"  # it was asked, and its child was not


def test_a_deaf_root_is_killed(shell: Shell, token: str) -> None:
    root = shell("trap '' TERM; echo ready; while :; do sleep 0.01; done", mark=False)
    assert stop_marked(token, 0.1, identity(root)) == 1
    assert root.wait() == -signal.SIGKILL


def test_another_process_with_the_number_is_left_alone(shell: Shell, token: str) -> None:
    process = shell("echo ready; read line", mark=False)
    mistaken = replace(identity(process), started=0.0)
    assert stop_marked(token, 10, mistaken) == 0
    assert identity(process).alive()
