"""engine/environment.py: what env.json says, with and without git, a checkout and a GPU; the load while a run runs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest
import torch

from engine import environment
from engine.environment import redacted, system_load

NOTHING = hashlib.sha256(b"").hexdigest()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout with one commit on branch work, apart from the settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    (tmp_path / "code.py").write_text("x = 1\n")
    (tmp_path / "requirements.txt").write_text("# pinned\nnumpy==0.0.0\nno_such_package==1; python_version > '3'\n")
    git(tmp_path, "init", "-q", "-b", "work")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=n", "-c", "user.email=e@x", "commit", "-q", "-m", "first")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True).stdout


def test_the_record_is_plain_json_and_describes_this_process() -> None:
    record = environment.environment()
    assert json.loads(json.dumps(record)) == record
    assert record["pid"] == os.getpid()
    age = datetime.now(UTC) - datetime.fromisoformat(record["started"])
    assert abs(age.total_seconds() - (datetime.now().timestamp() - psutil.Process().create_time())) < 1
    assert record["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["packages"]["torch"] == version("torch") and record["packages"]["numpy"] == version("numpy")
    assert 1 <= record["cpu"]["usable"] <= record["cpu"]["cores"] and record["cpu"]["model"]
    assert record["ram_gib"] == pytest.approx(psutil.virtual_memory().total / 2**30, abs=0.01)
    assert any("GCC" in line or "clang" in line for line in record["torch_build"])


def test_the_state_of_the_checkout(checkout: Path) -> None:
    clean = environment.environment(checkout)["git"]
    commit = git(checkout, "rev-parse", "HEAD").strip()
    assert clean == {"commit": commit, "branch": "work", "dirty": False, "diff_hash": NOTHING}
    (checkout / "new.py").write_text("y = 1\n")
    assert environment.environment(checkout)["git"] == clean | {"dirty": True}
    (checkout / "code.py").write_text("x = 2\n")
    changed = environment.environment(checkout)["git"]
    assert changed["diff_hash"] == hashlib.sha256(git(checkout, "diff").encode()).hexdigest() != NOTHING
    git(checkout, "add", "code.py")  # what is staged differs from the commit as well
    assert environment.environment(checkout)["git"]["diff_hash"] == changed["diff_hash"]


def test_asking_git_writes_nothing(checkout: Path) -> None:
    index = checkout / ".git" / "index"
    os.utime(checkout / "code.py", (1, 1))  # `git status` would note this time in the index
    before = index.read_bytes()
    assert environment.environment(checkout)["git"]["dirty"] is False
    assert index.read_bytes() == before


def test_versions_are_those_installed_not_those_listed(checkout: Path) -> None:
    assert environment.environment(checkout)["packages"] == {"numpy": version("numpy")}


@pytest.mark.parametrize("without", ["checkout", "git", "time"])
def test_without_git_the_rest_is_there(
    without: str, tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if without == "checkout":
        checkout = tmp_path / "elsewhere"
        checkout.mkdir()
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    elif without == "git":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setattr(environment, "SECONDS_FOR_GIT", 1e-6)
    record = environment.environment(checkout)
    assert record["git"] is None
    assert record["pid"] == os.getpid()


def test_the_command_line_names_no_user_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    arguments = ["python", "run_exp.py", "--data_root", "/home/anna/data", "--notify=https://hooks.slack.com/T0/secret"]
    monkeypatch.setattr(sys, "orig_argv", arguments)
    record = environment.environment()
    assert record["command"] == ["python", "run_exp.py", "--data_root", "~/data", "--notify=https://hooks.slack.com/…"]
    assert "anna" not in json.dumps(record)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/anna", "~"),
        ("/home/anna2/data", "/home/anna2/data"),
        ("https://user:word@host:81/a?key=b", "https://host:81/…"),
        ("https://host", "https://host/…"),
        ("https://host?key=b", "https://host/…"),
        ("--lr=1e-3", "--lr=1e-3"),
    ],
)
def test_what_is_left_out(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    assert redacted(text) == shown


def test_a_home_at_the_root_hides_no_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    assert redacted("/data/x") == "/data/x"


def test_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    record = environment.environment()
    assert (record["gpus"], record["driver"]) == ([], None)


def test_a_machine_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(name=f"GPU {index}", total_memory=2**34)
    )
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "580.65.06")
    record = environment.environment()
    assert record["gpus"] == [{"name": "GPU 0", "gib": 16.0}, {"name": "GPU 1", "gib": 16.0}]
    assert record["driver"] == "580.65.06"


def test_the_load_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    system_load()
    before = system_load()
    held = bytearray(os.urandom(2**16)) * 2**11  # 128 MiB, touched
    after = system_load()
    assert set(after) == {"cpu_percent", "ram_gib", "process_gib"}
    assert after["process_gib"] - before["process_gib"] == pytest.approx(len(held) / 2**30, rel=0.2)
    assert 0 < after["process_gib"] <= after["ram_gib"] < psutil.virtual_memory().total / 2**30
    assert 0 <= after["cpu_percent"] <= 100


@pytest.mark.parametrize("fault", [None, pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED), RuntimeError("no driver")])
def test_the_load_of_a_gpu(fault: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def utilization() -> int:
        if fault:
            raise fault
        return 97

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    load = system_load()
    assert (load["gpu_gib"], load["gpu_peak_gib"]) == (1.0, 3.0)
    assert load.get("gpu_percent") == (None if fault else 97.0)
