"""The device of a run."""

from __future__ import annotations

import torch

from config import Config, ConfigProblem


def pick_device(cfg: Config) -> str:
    """"cuda" or "cpu" as configured.

    Raises:
        ConfigProblem: CUDA is asked for and there is none.
    """
    if cfg.run.device == "cuda" and not torch.cuda.is_available():
        raise ConfigProblem("device is cuda, but torch sees no GPU: give --device cpu, or install a driver.")
    return "cpu" if cfg.run.device == "cpu" or not torch.cuda.is_available() else "cuda"
