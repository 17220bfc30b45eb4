"""--preset multi_mask from nothing to a CSV: drawn hands, a mask for each of eight bones that overlap."""

from __future__ import annotations

from pathlib import Path

import pytest
from preset_runs import assert_above_blind, assert_learned, trained
from test_run_exp import elsewhere, run

from dataset.examples import OVERLAPPING
from dataset.labels import read_label
from dataset.layouts import read_split
from model.checkpoint import read_checkpoint
from scripts import make_example

__all__ = ["elsewhere"]  # a fixture

BONES = tuple(sorted(OVERLAPPING))

TINY = """--model_file simple_unet_quarter --base_channels 16 --batch_size 4 --lr 0.01 --workers 0 --device cpu
    --wandb off --image_size 128 --window_size 128 --stride 64""".split()  # noqa: SIM905
"""What makes the preset fit drawn hands of 128 px and a CPU; all else is the preset's."""

MARGIN = 0.25
"""Dice above the better of both baselines, as docs/multi_mask.md says."""


def test_one_command_from_masks_to_a_csv(tmp_path: Path) -> None:
    small = ("--base_channels", "4", "--batch_size", "2")
    folder, out = trained("multi_mask", tmp_path, 8, [*TINY, "--epoch", "6", "--val_interval", "6", *small])
    cfg = read_checkpoint(folder / "best.safetensors").cfg
    assert cfg.data.classes == BONES, "taken from the names of the files"
    assert cfg.augment.rotate == (-20.0, 20.0, 1.0) and cfg.data.layout == "mask_per_class"
    assert cfg.data.holdout == "val" and cfg.loss.loss == "Combined_BCE_Dice"
    overlap = read_label(read_split(cfg, "test")[0], cfg.data.classes, 128, 128)[0]
    assert (overlap & (overlap - 1)).any(), "two classes share pixels"
    assert_learned(folder, out, BONES, images=2)


@pytest.mark.full
def test_it_beats_predictions_that_do_not_look(tmp_path: Path) -> None:
    folder, _ = trained("multi_mask", tmp_path, 20, [*TINY, "--epoch", "40", "--val_interval", "40"])
    assert_above_blind(folder, BONES, MARGIN)



def test_the_class_list_may_be_given(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert make_example.main(["multi_mask", "--root", str(data), "--count", "6", "--size", "128"]) == 0
    flags = ["--preset", "multi_mask", "--data_root", str(data), "--output_dir", str(tmp_path), "--check_data"]
    code, out, err = run(*flags, "--classes", *OVERLAPPING)
    assert code == 0 and "data: 6 images" in out, err
    code, out, _ = run(*flags, "--classes", *OVERLAPPING[:-1])
    assert code == 1 and "label in doubt" in out and "is of class 'Ulna', which is no class" in out
