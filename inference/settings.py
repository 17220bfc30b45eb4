"""Names in the settings, spelt out. Imports nothing slow, for --print_config."""

from __future__ import annotations

from config import Config
from dataset.switches import switches_of
from engine import settings
from engine.names import resolve
from model.losses import canonical_name


def full_names(cfg: Config) -> Config:
    """`cfg` with full names where short or differently spelt ones were given.

    Raises:
        ConfigProblem: a name that no file answers to, or an unknown switch in the loader's.
    """
    fields = {"model_file": "model", "dataset_file": "dataset", "inference_file": "inference"}
    names = {field: str(resolve(package, settings.get(cfg, field))) for field, package in fields.items()}
    switches_of(cfg)
    return settings.replace(cfg, {**names, "loss": canonical_name(cfg.loss.loss)})
