"""Presets ultrasound and ultrasound_small: from drawn frames to a network that trained on its own plausible masks."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import dice
from test_run_exp import command, run

from config import Config
from dataset.images import read_image
from dataset.layouts import read_split
from dataset.ultrasound import draw_frame
from engine import settings
from engine.presets import PRESETS
from inference.baseline import blind_dice
from inference.settings import full_names
from model.checkpoint import read_checkpoint
from model.losses import build_loss
from scripts import make_splits, predict_all_raw, predict_unet_small

TINY = """--image_size 64 --window_size 64 --stride 32 --batch_size 4 --workers 0 --patience 0 --device cpu
    --output_dir runs""".split()  # noqa: SIM905
QUICK = "--model simple_unet_quarter --base_channels 16 --lr 5e-3".split()  # noqa: SIM905

MARGIN = 0.3
"""Test Dice above the better of the all-foreground and the mean-mask prediction (docs/ultrasound.md)."""


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test writes into log/, data/ or checkpoints/ of the repository."""
    monkeypatch.chdir(tmp_path)


def draw(count: int) -> Path:
    """The preset's own data_root, with splits."""
    done = command("scripts/make_example.py", "ultrasound", "--root", "data/ultrasound", "--count", str(count),
                   "--size", "128", cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    assert make_splits.main(["--preset", "ultrasound"]) == 0
    return Path("data/ultrasound")


def dice_of(name: str) -> float:
    with open(f"runs/{name}/inference/test/per_class.csv", encoding="utf-8", newline="") as file:
        (row,) = (row for row in csv.DictReader(file) if row["class"] == "bone")
    return float(row["mean"])


def blind(root: Path) -> float:
    cfg = settings.replace(Config(), {**PRESETS["ultrasound"], "data_root": str(root)})
    return blind_dice(read_split(cfg, "train"), read_split(cfg, "test"), cfg).best


@pytest.mark.parametrize("name", ["ultrasound", "ultrasound_small"])
def test_presets_are_whole(name: str) -> None:
    cfg = settings.replace(Config(), PRESETS[name])
    settings.check(cfg)
    assert full_names(cfg).model == cfg.model and cfg.run.exp_name == name
    assert cfg.data.classes == ("bone",) and cfg.window.image_size == 256
    networks = {"ultrasound": ("model.model_unet_resnet34", "BCE", True)}
    asked = networks.get(name, ("model.model_simple_unet_32", "Combined_BCE_Dice", False))
    assert (cfg.model.model_file, cfg.loss.loss, cfg.model.pretrained) == asked


@pytest.mark.parametrize("alpha", [0.5, 0.7])
def test_alpha_is_the_first_of_two_weights(alpha: float) -> None:
    """alpha BCE + (1 - alpha) Dice, as scripts of the field have it."""
    preset = settings.replace(Config(), {**PRESETS["ultrasound_small"], "device": "cpu"})
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 1, 24, 24)).astype(np.float32))
    bits = torch.from_numpy((np.random.default_rng(2).random((2, 1, 24, 24)) < 0.2).astype(np.int32))

    def loss(**values: object) -> float:
        return float(build_loss(settings.replace(preset, values))(logits, bits))

    mixed = loss(loss_weights=(alpha, 1 - alpha))
    of_pixels, of_regions = (loss(loss=term, loss_weights=()) for term in ("BCE", "Dice"))
    assert mixed == pytest.approx(alpha * of_pixels + (1 - alpha) * of_regions, rel=1e-5)
    assert PRESETS["ultrasound_small"]["loss_weights"] == (0.5, 0.5)


def test_from_frames_to_a_network_that_trained_on_its_own_masks(capsys: pytest.CaptureFixture[str]) -> None:
    root = draw(20)
    assert "splits/train.txt: 16 images of 8 subjects" in capsys.readouterr().out
    code, out, err = run("--preset", "ultrasound_small", *TINY, *QUICK, "--epoch", "8", "--val_interval", "8")
    assert code == 0, err
    assert dice_of("ultrasound_small") > blind(root) + MARGIN, out
    assert predict_unet_small.main(["--output_dir", "runs"]) == 0
    rows = list(csv.DictReader((root / "pseudo_stats_small.csv").open(encoding="utf-8")))
    names = sorted(path.name for path in (root / "raw_unlabelled").iterdir())
    assert [row["filename"] for row in rows] == names
    plausible = [row["filename"] for row in rows if row["plausible"] == "1"]
    assert 0.5 * len(rows) < len(plausible) < len(rows), "two of ten show no bone"
    truths = {name: draw_frame(1, int(name[1:3]), int(name[4:8]), 128)[1] > 0 for name in plausible}
    right = [dice(read_image(root / "masks_pseudo_small" / name) > 0, truth) for name, truth in truths.items()]
    assert np.mean(right) > blind(root) + MARGIN / 2, "of new videos, too"
    flags = ["--exp_name", "again", "--pseudo", str(root / "pseudo_stats_small.csv"), "--epoch", "1"]
    code, out, err = run("--preset", "ultrasound_small", *TINY, *QUICK, *flags, "--init_from",
                         "runs/ultrasound_small/best.safetensors")
    assert code == 0, err
    left = sum(name[:3] not in held_out(root) for name in plausible)
    assert f"{16 + left} training ({left} pseudo-labelled) and 2 validation images" in out
    assert dice_of("again") > blind(root) + MARGIN, out


def held_out(root: Path) -> set[str]:
    lists = [(root / "splits" / f"{split}.txt").read_text(encoding="utf-8").split() for split in ("val", "test")]
    return {name[:3] for names in lists for name in names}


@pytest.mark.full
def test_the_large_network_finds_the_bone() -> None:
    root = draw(40)
    flags = ["--no_pretrained", "--epoch", "6", "--val_interval", "6", "--lr", "2e-3"]
    code, out, err = run("--preset", "ultrasound", *TINY, *flags)
    assert code == 0, err
    assert dice_of("ultrasound") > blind(root) + MARGIN, out
    assert read_checkpoint(Path("runs/ultrasound/best.safetensors")).cfg.loss.loss == "BCE"
    assert predict_all_raw.main(["--output_dir", "runs"]) == 0
    assert len(list((root / "masks_pred").iterdir())) == len(list((root / "overlays_pred").iterdir())) == 20
