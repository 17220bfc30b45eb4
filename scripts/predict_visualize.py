"""Pictures of what a trained network finds: image, truth, prediction and their difference side by side:

python scripts/predict_visualize.py --exp_name X [--split val] [--count 8] [--names 12.jpg]
python scripts/predict_visualize.py --exp_name X --input my_images [--output pictures] [--tta_mode flip]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from config import BEST, Config, ConfigProblem
from engine import flags

if TYPE_CHECKING:
    from inference.panels import Picture
    from inference.pipeline import Prediction
    from inference.plan import Plan

DESCRIPTION = """Predict images with an experiment's weights and draw one PNG for each: image, truth, prediction, and
what is missed and extra; where there is no label, image and prediction. Of an experiment with folds their mean, or with
--split val the fold that has not seen the image.

Takes the flags of the inference commands (--checkpoint, --split, --input, --output, --tta_mode, …). The folder is there
whole or not at all. Exit codes: 0 done, 1 a file is wrong, 2 a flag is wrong."""


@dataclass(frozen=True)
class Commands:
    """Flags that are no settings."""

    count: int = 8
    """Images to draw, chosen by chance; 0 draws all."""
    choice: int = 0
    """Seed of the choice: another number shows other images."""
    names: tuple[str, ...] = ()
    """Draw these images instead, by their file names, with or without extension."""
    size: int = 512
    """Side of a picture, px (64 to 2048)."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    first, commands = flags.parse(argv, Commands, DESCRIPTION)
    return flags.run_command(lambda: _command(argv, first.cfg, commands))


def _command(argv: list[str], asked: Config, commands: Commands) -> int:
    if not 64 <= commands.size <= 2048:
        raise ConfigProblem(f"size is {commands.size}, but must lie between 64 and 2048.")
    from engine.devices import pick_device  # after --help, which must not wait for torch
    from engine.progress import progress
    from inference import panels
    from inference.csv_masks import unique_stems
    from inference.mask_files import whole_folder, write_png
    from inference.metrics import DiceTable
    from inference.pipeline import predict, score
    from inference.plan import new_folder

    plan = _plan(argv, asked)
    cfg, names = plan.cfg, [record.name for record in plan.records]
    shown = {plan.records[i] for i in panels.chosen(names, commands.names, commands.count, commands.choice)}
    unique_stems([record.name for record in shown], plan.home)
    place = Path(cfg.inference.input).stem if cfg.inference.input else cfg.inference.split
    folder = Path(cfg.inference.output) if cfg.inference.output else new_folder(plan, f"pictures-{place}")
    table, device = DiceTable(cfg.data.classes), pick_device(cfg)
    found = (
        prediction
        for ensemble, records in plan.ensembles(device)
        for prediction in predict(ensemble, [record for record in records if record in shown], cfg, device)
    )
    with whole_folder(folder) as partial:
        for prediction in progress(found, "pictures", len(shown), "images"):
            if prediction.record.label is not None:
                score(prediction, table, None)
            write_png(partial / f"{prediction.record.image.stem}.png", _picture(prediction, cfg, commands.size))
    said = f", Dice {table.mean():.4f} over {len(table)} labelled" if len(table) else ""
    print(f"{folder}: {len(shown)} of {len(names)} images{said}")
    return 0


def _plan(argv: list[str], asked: Config) -> Plan:
    """Who predicts what: the experiment's network, or its folds."""
    from inference.command import FOLDS, base_of, check_settings, weights_file
    from inference.plan import plan_folds, plan_one, read_folds
    from inference.settings import full_names
    from model.onnx_file import read_trained

    folds = not asked.inference.checkpoint and not (asked.folder / BEST).exists() and any(asked.folder.glob("fold*"))
    base = base_of(asked, f"inference.{FOLDS}" if folds else "")
    parsed, _ = flags.parse(argv, Commands, DESCRIPTION, base=base)
    cfg = check_settings(full_names(parsed.cfg), base)
    if folds:
        return plan_folds(read_folds(asked.folder), cfg, asked.folder)
    return plan_one(read_trained(weights_file(asked)), cfg)


def _picture(prediction: Prediction, cfg: Config, size: int) -> Picture:
    """The panels of one image in a row, with the names of the classes below where there are several."""
    import numpy as np

    from dataset.labels import read_label
    from inference.metrics import count_bits, dice_from_counts
    from inference.overlay import draw_overlay
    from inference.panels import draw_difference, framed, legend

    image, bits, classes, name = prediction.image, prediction.bits, cfg.data.classes, prediction.record.name
    titles, drawn = [name, "prediction"], [image, draw_overlay(image, bits, classes)]
    if prediction.record.label is not None:
        truth = read_label(prediction.record, classes, *image.shape)
        dice = dice_from_counts(count_bits(bits, truth, len(classes)))
        said = f"prediction: {_said(dice.tolist(), classes)}"
        titles = [name, "truth", said, "missed orange, extra blue, both white"]
        drawn = [image, draw_overlay(image, truth, classes), drawn[1], draw_difference(image, truth, bits)]
    row = np.hstack([framed(picture, size, title) for picture, title in zip(drawn, titles, strict=True)])
    return np.vstack([row, legend(classes, row.shape[1])]) if len(classes) > 1 else row


def _said(dice: Sequence[float], classes: Sequence[str]) -> str:
    worst = min(range(len(classes)), key=dice.__getitem__)
    least = f", least {classes[worst]} {dice[worst]:.3f}" if len(classes) > 1 else ""
    return f"Dice {sum(dice) / len(dice):.3f}{least}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
