"""The end of an experiment: its test split predicted, and where everything lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from config import Config
from dataset.readers import read_competition
from engine.devices import pick_device
from inference.baseline import mean_mask_dice
from inference.ensemble import Ensemble
from inference.metrics import DiceTable
from inference.pipeline import CSV_NAME, build_predictor, draw_example, infer, new_folder
from model.checkpoint import Checkpoint


def submit(cfg: Config, checkpoints: Sequence[Checkpoint]) -> None:
    """Predict the test split with the networks' mean, write the CSV, and a Dice table where there are labels."""
    root, files = Path(cfg.data.data_root), "\n            ".join(str(checkpoint.path) for checkpoint in checkpoints)
    if not (root / "test" / "DCM").is_dir():
        print(f"{root} has no test/DCM: no CSV. Weights: {files}")
        return
    records = read_competition(root, "test")
    if cfg.run.debug:
        records = records[:2]
    device = pick_device(cfg)
    members = [build_predictor(cfg, checkpoint.network().to(device)) for checkpoint in checkpoints]
    predictor = members[0] if len(members) == 1 else Ensemble(members)
    folder = new_folder(cfg.folder / "inference", "test")
    table = infer(predictor, records, cfg, device, folder)
    if table is not None:
        print(table.text())
        print(f"test Dice {table.mean():.4f} over {len(records)} images")
        _print_baseline(cfg, table)
        print(f"per class:  {folder / 'per_class.csv'}")
    picture = folder / "overlay.png"
    draw_example(predictor, records, cfg, device, table, picture)
    print(f"overlay:    {picture}\nCSV:        {folder / CSV_NAME}\nweights:    {files}")


def _print_baseline(cfg: Config, table: DiceTable) -> None:
    """On phantoms, how far the network is above the mean training mask."""
    if not cfg.phantom.phantom or cfg.run.debug:
        return
    root = Path(cfg.data.data_root)
    mean_mask = mean_mask_dice(read_competition(root, "train"), read_competition(root, "test"), cfg)
    above = table.mean() - mean_mask
    print(f"mean training mask, on the hand's true box: Dice {mean_mask:.4f}; the network is {above:.4f} above")
