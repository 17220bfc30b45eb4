"""What a run ran on: env.json once, and the machine's load while it runs."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import pynvml
import torch

ROOT = Path(__file__).resolve().parent.parent

GIB = 2**30

SECONDS_FOR_GIT = 10.0
"""A checkout on a slow network drive is given up after this."""


def environment(root: Path = ROOT) -> dict[str, Any]:
    """What env.json holds, as plain JSON values; None where the machine does not say.

    No user names: the home folder is written ~, and the machine has its boot's id instead of its name. With the
    process's id and start that names a process for good, which its id alone does not.

    Args:
        root: the checkout: its requirements.txt lists the packages, and git is asked about it.
    """
    process = psutil.Process()
    return {
        "started": datetime.fromtimestamp(process.create_time(), UTC).isoformat(timespec="milliseconds"),
        "pid": process.pid,
        "boot_id": _first_line(Path("/proc/sys/kernel/random/boot_id")),
        "command": [redacted(argument) for argument in sys.orig_argv],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(root / "requirements.txt"),
        "git": _git_state(root),
        "cpu": {"model": _cpu_model(), "cores": os.cpu_count(), "usable": len(os.sched_getaffinity(0))},
        "ram_gib": round(psutil.virtual_memory().total / GIB, 2),
        "gpus": _gpus(),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "torch_build": [line.strip(" -") for line in torch.__config__.show().splitlines()],
    }


def redacted(text: str) -> str:
    """`text` without the home folder's name, and addresses only up to their host: a webhook's path is its password."""
    home = os.path.expanduser("~")
    if len(home) > 1:  # "/" in some containers, "~" where the user has no name
        text = re.sub(rf"{re.escape(home)}(?=/|$)", "~", text)
    return re.sub(r"(https?://)(?:[^/\s@]*@)?([^/\s?#]+)[^\s]*", r"\1\2/…", text)


def system_load() -> dict[str, float]:
    """Load since the last call: `cpu_percent` of the machine, `ram_gib` in use on it, `process_gib` of this process.

    Where this process uses a GPU, also `gpu_percent` (share of time with a kernel running), `gpu_gib` that tensors take
    and `gpu_peak_gib`, the most that torch has held. Takes under a millisecond, so that a step may call it.
    """
    memory = psutil.virtual_memory()
    load = {
        "cpu_percent": psutil.cpu_percent(),
        "ram_gib": (memory.total - memory.available) / GIB,
        "process_gib": psutil.Process().memory_info().rss / GIB,
    }
    if torch.cuda.is_initialized():  # asking would make a context of some 100 MiB in a process that uses none
        load["gpu_gib"] = torch.cuda.memory_allocated() / GIB
        load["gpu_peak_gib"] = torch.cuda.max_memory_reserved() / GIB
        with suppress(pynvml.NVMLError, RuntimeError):  # shares of a GPU (MIG) have no utilisation
            load["gpu_percent"] = float(torch.cuda.utilization())
    return load


def _packages(requirements: Path) -> dict[str, str]:
    """Installed versions of the packages that the file lists."""
    found = {}
    lines = requirements.read_text(encoding="utf-8").splitlines() if requirements.exists() else []
    for line in lines:
        if match := re.match(r"[A-Za-z0-9][\w.-]*", line):
            with suppress(PackageNotFoundError):
                found[match[0]] = version(match[0])
    return found


def _git_state(root: Path) -> dict[str, Any] | None:
    """Commit and branch; whether files differ from it or are new; SHA-256 of `git diff HEAD` (of nothing: no change).

    None outside a checkout, and where there is no git.
    """
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain")
    diff = _git(root, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv")
    branch = _git(root, "rev-parse", "--abbrev-ref", "HEAD")
    if commit is None or status is None or diff is None or branch is None:
        return None
    return {
        "commit": commit.decode().strip(),
        "branch": branch.decode().strip(),
        "dirty": bool(status),
        "diff_hash": hashlib.sha256(diff).hexdigest(),
    }


def _git(root: Path, *arguments: str) -> bytes | None:
    """What git prints, or None where it fails."""
    # No locks on the index, of status or of diff: a commit at the same time would be refused.
    command = ["git", "--no-optional-locks", "-c", "diff.autoRefreshIndex=false", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS_FOR_GIT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


def _cpu_model() -> str | None:
    """As Linux names it; elsewhere as Python does."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _gpus() -> list[dict[str, Any]]:
    """Name and memory of the GPUs that torch sees."""
    if not torch.cuda.is_available():
        return []
    seen = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [{"name": gpu.name, "gib": round(gpu.total_memory / GIB, 2)} for gpu in seen]


def _driver() -> str | None:
    """Version of NVIDIA's driver."""
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return None
