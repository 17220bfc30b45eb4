"""--preset bone_binary from nothing to the table of its folds: drawn bones, one command."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_run_exp import elsewhere, read_csv, run

from config import Config
from dataset.layouts import read_split
from engine import settings
from engine.presets import PRESETS
from inference.baseline import blind_dice
from inference.fold_scores import FILES
from inference.metrics import DiceTable
from model.checkpoint import read_checkpoint
from scripts import make_example

__all__ = ["elsewhere"]  # a fixture

TINY = """--image_size 64 --window_size 64 --stride 32 --base_channels 4 --batch_size 2 --lr 0.01
    --workers 0 --device cpu --wandb off""".split()  # noqa: SIM905
"""What makes the preset fit drawn bones of 128 px and seconds on a CPU; all else is the preset's."""

SUBJECTS = ("--subject_pattern", r"^(p\d+)_")

FOLDS = 3
"""Of the quick run; the preset has five."""

MARGIN = 0.2
"""Out-of-fold Dice above the better of both baselines, as docs/bone_binary.md says."""


def all_folds(folder: Path, images: int, *more: str) -> str:
    """Draw `data` and run all folds; returns what the run printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        flags = ["bone_binary", "--root", str(folder / "data"), "--count", str(images), "--size", "128"]
        assert make_example.main(flags) == 0
        places = ["--data_root", str(folder / "data"), "--output_dir", str(folder)]
        code, out, err = run("--preset", "bone_binary", *places, *SUBJECTS, *TINY, *more)
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The experiment's folder after three folds of two images, two epochs each, and what was printed. Read only."""
    folder = tmp_path_factory.mktemp("bone_binary")
    out = all_folds(folder, 6, "--epoch", "2", "--n_folds", str(FOLDS))
    return folder / "bone_binary", out


def test_the_preset_is_what_the_page_says(finished: tuple[Path, str]) -> None:
    cfg = read_checkpoint(finished[0] / "fold0" / "best.safetensors").cfg
    assert (cfg.loss.loss, cfg.loss.loss_weights) == ("Combined_Focal_Dice", (1.0, 0.15))
    assert cfg.train.scheduler == "ReduceLROnPlateau"
    assert (cfg.data.classes, cfg.model.in_channels) == (("bone",), 1)
    assert (PRESETS["bone_binary"]["fold"], PRESETS["bone_binary"]["n_folds"]) == ("all", 5)
    assert cfg.inference.metrics == ("hausdorff", "hausdorff95")


def test_one_command_trains_every_fold(finished: tuple[Path, str]) -> None:
    folder, out = finished
    parts = [DiceTable.from_images_csv(folder / f"fold{k}/val_dice.csv").names() for k in range(FOLDS)]
    subjects = [{name.split("/")[0] for name in part} for part in parts]
    assert [len(part) for part in parts] == [2] * FOLDS and len(set.union(*subjects)) == FOLDS
    for k in range(FOLDS):
        assert f"fold {k} of {FOLDS}" in out
        first, last = read_csv(folder / f"fold{k}/metrics.csv")
        assert float(last["train_loss"]) < float(first["train_loss"])


def test_the_table_of_the_folds(finished: tuple[Path, str]) -> None:
    folder, out = finished
    rows = read_csv(folder / FILES[0])
    assert list(rows[0]) == ["fold", "images", "dice", "hausdorff", "hausdorff95"]
    assert [row["fold"] for row in rows] == [*(f"fold{k}" for k in range(FOLDS)), "mean", "sd"]
    *each, mean, sd = rows
    for name in ("dice", "hausdorff", "hausdorff95"):
        values = [float(row[name]) for row in each]
        assert float(mean[name]) == pytest.approx(np.mean(values), abs=1e-5)
        assert float(sd[name]) == pytest.approx(np.std(values, ddof=1), abs=1e-5)
        for k, value in enumerate(values):
            own = read_csv(folder / f"fold{k}" / ("per_class.csv" if name == "dice" else "scores.csv"))
            assert value in [float(row["mean"]) for row in own if row.get("metric", name) == name]
    assert all(float(row["hausdorff95"]) <= float(row["hausdorff"]) < 128 * 2**0.5 + 0.01 for row in each)
    assert re.search(r"^fold +images +dice +hausdorff +hausdorff95$", out, re.M)
    assert re.search(rf"^mean +{float(mean['dice']):.4f} +{float(mean['hausdorff']):.2f} ", out, re.M)
    picture = cv2.imread(str(folder / FILES[1]))
    assert picture is not None and picture.shape[1] > 2 * picture.shape[0] and picture.std() > 10


@pytest.mark.full
def test_it_beats_predictions_that_do_not_look(tmp_path: Path) -> None:
    """Five real trainings, half a minute."""
    all_folds(tmp_path, 20, "--epoch", "12", "--val_interval", "4")
    values = {"data_root": str(tmp_path / "data"), "classes": ("bone",), "subject_pattern": SUBJECTS[1]}
    cfg = settings.replace(Config(), values)
    records = read_split(cfg, "train")
    for k in range(5):
        table = DiceTable.from_images_csv(tmp_path / f"bone_binary/fold{k}/val_dice.csv")
        held = [record for record in records if record.key in table.names()]
        train = [record for record in records if record.key not in table.names()]
        assert len(held) == len(table)
        assert table.mean() > blind_dice(train, held, cfg).best + MARGIN, f"fold {k}"
