"""--preset hand_mask from nothing to masks: drawn hands, one command, the inference that docs/hand_mask.md shows."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from test_inference_commands import infer
from test_run_exp import elsewhere, read_csv, run

from dataset.layouts import read_split
from engine import settings
from inference.baseline import blind_dice
from model.checkpoint import Trained, read_checkpoint
from scripts import make_example

__all__ = ["elsewhere"]  # a fixture

TINY = """--image_size 64 --window_size 48 --stride 32 --windows_per_image 1 --base_channels 4 --batch_size 2
    --epoch 9 --val_interval 3 --lr 0.02 --workers 0 --device cpu --wandb off
    --post_process open=1 close=1 largest""".split()  # noqa: SIM905
"""What makes the preset fit drawn hands of 128 px and seconds on a CPU; all else is the preset's."""

MARGIN = 0.1
"""Dice above the better of both baselines, as docs/hand_mask.md says."""


def command(folder: Path, *more: str) -> list[str]:
    return ["--preset", "hand_mask", "--data_root", str(folder / "data"), "--output_dir", str(folder), *TINY, *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder with `data` and the experiment `hand_mask`, and what the run printed. Read only."""
    folder = tmp_path_factory.mktemp("hand_mask")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert make_example.main(["hand_mask", "--root", str(folder / "data"), "--count", "20", "--size", "128"]) == 0
        code, out, err = run(*command(folder))
    assert code == 0, err
    return folder, out


@pytest.fixture(scope="module")
def trained(finished: tuple[Path, str]) -> Trained:
    return read_checkpoint(finished[0] / "hand_mask" / "best.safetensors")


def test_the_preset_is_what_the_page_says(trained: Trained) -> None:
    cfg = trained.cfg
    assert cfg.model.model_file == "model.model_attention_unet" and cfg.model.deep_supervision
    assert cfg.loss.loss == "Combined_BCE_Dice" and cfg.train.scheduler == "CosineAnnealingLR"
    assert (cfg.data.holdout, cfg.data.classes) == ("val", ("hand",)) and cfg.train.patience > 0
    assert cfg.window.window_size < cfg.window.image_size


def test_it_beats_predictions_that_do_not_look(finished: tuple[Path, str], trained: Trained) -> None:
    folder, out = finished
    cfg = settings.replace(trained.cfg, {"data_root": str(folder / "data")})
    blind = blind_dice(read_split(cfg, "train"), read_split(cfg, "test"), cfg)
    (row,) = read_csv(folder / "hand_mask/inference/test/per_class.csv")
    assert row["class"] == "hand" and f"test Dice {float(row['mean']):.4f} over 4 images" in out
    assert float(row["mean"]) > blind.best + MARGIN
    assert "12 training and 4 validation images" in out


def test_masks_are_drawn_on_every_image(finished: tuple[Path, str]) -> None:
    results = finished[0] / "hand_mask/inference/test"
    images = sorted((finished[0] / "data/test/images").iterdir())
    assert [row["image_name"] for row in read_csv(results / "submission.csv")] == [path.name for path in images]
    for path in images:
        (drawn,) = results.glob(f"overlays/**/{path.stem}*.png")
        picture = cv2.imread(str(drawn))
        assert picture is not None and picture.shape[0] == picture.shape[1] >= 128
        assert (np.ptp(picture, axis=2) > 60).any(), "an outline in colour"


@pytest.mark.parametrize("views", [1, 5])
def test_views_sizes_and_morphology_at_inference(views: int, finished: tuple[Path, str], tmp_path: Path) -> None:
    folder = finished[0]
    flags = ["--exp_name", "hand_mask", "--output_dir", str(folder), "--output", str(tmp_path / "out"), "--save_masks"]
    flags += ["--tta_mode", "flip_rotate", "--n_tta", str(views), "--resize_to", "80"]
    flags += ["--post_process", "open=2", "close=2", "--input", str(folder / "data/test/images")]
    code, _, err = infer("inference_tta", *flags)
    assert code == 0, err
    masks = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in (tmp_path / "out").glob("masks/*/hand.png")]
    assert len(masks) == 4
    for mask in masks:
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
        assert mask is not None and mask.shape == (128, 128) and 0.1 < (mask > 0).mean() < 0.6
        opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc)
        assert (opened != mask).mean() < 0.01, "no specks and no threads are left"


def test_poly_and_stopping_early(finished: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(finished[0] / "data")
    more = ["--scheduler", "poly", "--lr", "1e-9", "--min_lr", "0", "--warmup_min_lr", "0", "--patience", "1"]
    more += ["--epoch", "9", "--val_interval", "1", "--limit_train", "2", "--limit_val", "1"]
    code, _, err = run(*command(tmp_path, *more))
    assert code == 0, err
    rows = read_csv(tmp_path / "hand_mask/metrics.csv")
    assert len(rows) < 9, "a learning rate of nothing cannot improve the Dice"
