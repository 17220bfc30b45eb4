"""What a measurement was taken on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "opencv-python-headless", "albumentations", "monai", "pycocotools", "nvidia-dali-cuda120")


def machine() -> dict[str, Any]:
    """CPU model, cores that this process may use, load of the last minute, GPU or None, versions of the packages."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "gpu": gpu(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def gpu() -> str | None:
    """Name of the first GPU; None where there is none."""
    import torch  # here: listing the benchmarks must not wait for it

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
