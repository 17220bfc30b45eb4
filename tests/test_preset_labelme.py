"""--preset labelme from nothing to a CSV: drawn hands with polygons of four groups of bones, one command."""

from __future__ import annotations

from pathlib import Path

import pytest
from preset_runs import assert_above_blind, assert_learned, trained
from test_run_exp import elsewhere

from model.checkpoint import read_checkpoint

__all__ = ["elsewhere"]  # a fixture

GROUPS = ("carpal", "forearm", "metacarpal", "phalanx")

TINY = """--model_file simple_unet_quarter --base_channels 16 --batch_size 8 --lr 0.01 --workers 0 --device cpu
    --wandb off --image_size 128 --window_size 64 --stride 32 --windows_per_image 2""".split()  # noqa: SIM905
"""What makes the preset fit drawn hands of 128 px and a CPU; all else is the preset's."""

MARGIN = 0.1
"""Dice above the better of both baselines, as docs/labelme.md says."""


def test_one_command_from_polygons_to_a_csv(tmp_path: Path) -> None:
    small = ("--base_channels", "4", "--batch_size", "2")
    folder, out = trained("labelme", tmp_path, 8, [*TINY, "--epoch", "6", "--val_interval", "6", *small])
    cfg = read_checkpoint(folder / "best.safetensors").cfg
    assert cfg.data.classes == GROUPS, "taken from the labels"
    assert cfg.augment.rotate == (-20.0, 20.0, 1.0) and cfg.window.window_mode == "balanced"
    assert cfg.data.holdout == "val" and cfg.loss.loss == "Combined_BCE_Dice"
    assert_learned(folder, out, GROUPS, images=2)


@pytest.mark.full
def test_it_beats_predictions_that_do_not_look(tmp_path: Path) -> None:
    folder, _ = trained("labelme", tmp_path, 20, [*TINY, "--epoch", "40", "--val_interval", "40"])
    assert_above_blind(folder, GROUPS, MARGIN)
