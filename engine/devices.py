"""The device of a run."""

from __future__ import annotations

import os

import torch

from config import Config, ConfigProblem


def set_determinism(deterministic: bool) -> None:
    """Let GPUs choose the fastest operations, or only those that give the same result every time.

    torch raises RuntimeError where an operation has no such form; it names the operation.
    """
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for


def pick_device(cfg: Config) -> str:
    """"cuda" or "cpu" as configured.

    Raises:
        ConfigProblem: CUDA is asked for and there is none.
    """
    if cfg.run.device == "cuda" and not torch.cuda.is_available():
        raise ConfigProblem("device is cuda, but torch sees no GPU: give --device cpu, or install a driver.")
    return "cpu" if cfg.run.device == "cpu" or not torch.cuda.is_available() else "cuda"
