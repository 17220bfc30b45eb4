"""The device of a run."""

from __future__ import annotations

import os

import torch

from config import Config, ConfigProblem, Train


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


def half_kinds(train: Train) -> tuple[str, ...]:
    """Kinds of device (cuda, cpu) on which networks run in half precision."""
    # Without such instructions bfloat16 is pretended, and slower than float32.
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return ("cuda",) * train.amp + ("cpu",) * (train.amp_cpu and fast)


def half_type(kind: str) -> torch.dtype:
    """bfloat16 on CPUs and on GPUs that have it, else float16."""
    return torch.bfloat16 if kind == "cpu" or torch.cuda.is_bf16_supported() else torch.float16
