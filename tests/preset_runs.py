"""One run of a preset on drawn data, from nothing to masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from test_run_exp import read_csv, run

from dataset.layouts import read_split
from inference.baseline import blind_dice
from model.checkpoint import read_checkpoint
from scripts import make_example


def trained(preset: str, folder: Path, count: int, flags: Sequence[str]) -> tuple[Path, str]:
    """Folder of the experiment, and what the command printed. Images of 128 px, in folder/data; flags beat presets."""
    data = folder / "data"
    assert make_example.main([preset, "--root", str(data), "--count", str(count), "--size", "128"]) == 0
    code, out, err = run("--preset", preset, "--data_root", str(data), "--output_dir", str(folder), *flags)
    assert code == 0, err
    return folder / preset, out


def assert_learned(folder: Path, out: str, classes: Sequence[str], images: int) -> None:
    """The loss falls, and the run ends with a CSV of all test images, its Dice and a report."""
    losses = [float(row["train_loss"]) for row in read_csv(folder / "metrics.csv")]
    assert losses[-1] < losses[0]
    rows = read_csv(folder / "inference/test/submission.csv")
    assert [row["class"] for row in rows] == [*classes] * images and "test Dice" in out
    assert (folder / "report/index.html").exists() and "no report" not in out


def assert_above_blind(folder: Path, classes: Sequence[str], margin: float) -> None:
    """Test Dice is better by that much than the best prediction that does not look."""
    cfg = read_checkpoint(folder / "best.safetensors").cfg
    blind = blind_dice(read_split(cfg, "train"), read_split(cfg, "test"), cfg)
    rows = read_csv(folder / "inference/test/per_class.csv")[: len(classes)]
    assert [row["class"] for row in rows] == [*classes]
    reached = sum(float(row["mean"]) for row in rows) / len(classes)
    assert reached > blind.best + margin, (reached, blind)
