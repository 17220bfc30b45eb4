"""The end of an experiment: its test split predicted, and where everything lies."""

from __future__ import annotations

import dataclasses

from config import Config
from dataset.layouts import has_split, read_split
from engine.devices import pick_device
from engine.distributed import ALONE, World
from inference.baseline import mean_mask_dice
from inference.job import CSV_NAME
from inference.metrics import DiceTable
from inference.part_file import Part
from inference.pipeline import draw_example
from inference.plan import Plan, infer, new_folder


def has_test_split(cfg: Config) -> bool:
    """Whether there is something to predict."""
    return has_split(cfg, "test")


def submit(plan: Plan, world: World = ALONE) -> None:
    """Predict the test split, shared by all processes; the first says where the CSV is, and the Dice where there are
    labels.

    What a killed process has left of it is gone on with.
    """
    if plan.cfg.run.debug:
        plan = dataclasses.replace(plan, records=plan.records[:2])
    cfg, device = plan.cfg, pick_device(plan.cfg)
    (folder,) = set(world.gather(new_folder(plan, "test", world.ranks)))
    part = Part(world.rank, world.ranks)
    found = world.gather(infer(plan, device, folder, part, resume=True))  # whoever ends last has the results
    if not world.first:
        return
    results = next(results for results in found if results is not None)
    table = results.table
    if results.scores is not None:
        print(results.scores.text())
    if table is not None:
        print(table.text())
        print(f"test Dice {table.mean():.4f} over {len(plan.records)} images")
        _print_baseline(cfg, table)
        print(f"per class:  {folder / 'per_class.csv'}")
    picture = folder / "overlay.png"
    ensemble, _ = next(plan.ensembles(device))
    draw_example(ensemble, plan.records, cfg, device, table, picture)
    weights = "\n            ".join(map(str, plan.files))
    print(f"overlay:    {picture}\nCSV:        {folder / CSV_NAME}\nweights:    {weights}")


def _print_baseline(cfg: Config, table: DiceTable) -> None:
    """On phantoms, how far the network is above the mean training mask."""
    if not cfg.phantom.phantom or cfg.run.debug:
        return
    mean_mask = mean_mask_dice(read_split(cfg, "train"), read_split(cfg, "test"), cfg)
    above = table.mean() - mean_mask
    print(f"mean training mask, on the hand's true box: Dice {mean_mask:.4f}; the network is {above:.4f} above")
