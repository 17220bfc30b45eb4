"""Names in the settings, spelt out. Imports nothing slow, for --print_config."""

from __future__ import annotations

from config import Config
from dataset.switches import switches_of
from engine import settings
from engine.names import resolve
from model.losses import canonical_name, canonical_schedule
from model.losses import check as check_losses

PLACES = ("data_root", "layout", "image_dir", "mask_dir", "split_dir", "subject_pattern")
"""Where the data lie: that may change after a training."""


def full_names(cfg: Config) -> Config:
    """`cfg` with full names where short or differently spelt ones were given.

    Raises:
        ConfigProblem: a name that no file answers to, or an unknown switch in the loader's.
    """
    models = dict.fromkeys(("model_file", "first_model", "second_model"), "model")
    fields = {**models, "dataset_file": "dataset", "inference_file": "inference"}
    names = {field: str(resolve(package, settings.get(cfg, field))) for field, package in fields.items()}
    switches_of(cfg)
    losses = {"loss": canonical_name(cfg.loss.loss), "loss_schedule": canonical_schedule(cfg.loss.loss_schedule)}
    check_losses(settings.replace(cfg, losses))
    return settings.replace(cfg, {**names, **losses, "optimizer": cfg.train.optimizer.casefold()})
