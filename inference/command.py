"""The inference commands: a checkpoint and images in, a folder with the CSV out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import config
from config import Config, ConfigProblem
from engine import flags, settings
from inference.settings import full_names

if TYPE_CHECKING:
    from model.checkpoint import Trained

FIXED = {
    *(
        f.name
        for section in (config.Data, config.Phantom, config.Augment, config.Model, config.Loss, config.Train)
        for f in dataclasses.fields(section)
    ),
    *("seed", "resume", "overwrite", "windows_per_image"),
} - {"data_root", "amp"}
"""Fields that the checkpoint decides, or that mean nothing once a network is trained."""

DESCRIPTION = """Predict the test split, a folder or one image with a trained checkpoint.

Network and settings come from the checkpoint; flags may change what does not belong to the network."""


@dataclass(frozen=True)
class Commands:
    """Flags that are no settings."""

    print_config: bool = False
    """Print every setting with its source, and stop."""


def main(argv: list[str], style: str = "") -> int:
    """Run an inference command; `style` replaces the checkpoint's inference_file unless a flag names one.

    Returns:
        The exit code: 0, 1 for a problem with files, 2 for a wrong command line.
    """
    first, _ = flags.parse(argv, Commands, DESCRIPTION)
    return flags.run_command(lambda: _command(argv, first.cfg, style))


def _command(argv: list[str], asked: Config, style: str) -> int:
    from model.onnx_file import read_trained  # after --help, which must not wait for torch

    checkpoint = read_trained(weights_file(asked))
    base = settings.replace(checkpoint.cfg, {"inference_file": style} if style else {})
    parsed, commands = flags.parse(argv, Commands, DESCRIPTION, base=base)
    cfg = check_settings(full_names(parsed.cfg), base, checkpoint)
    if commands.print_config:
        print(flags.describe(cfg, dict.fromkeys(settings.SECTION_OF, "checkpoint") | parsed.sources))
        return 0
    return _infer(cfg, checkpoint)


def weights_file(asked: Config) -> Path:
    """The file that `checkpoint` names, else the experiment's best weights."""
    chosen = asked.inference.checkpoint
    return Path(chosen) if chosen else asked.folder / config.BEST


def check_settings(cfg: Config, base: Config, checkpoint: Trained) -> Config:
    """`cfg`, where what belongs to the network is as the checkpoint has it in `base`.

    Raises:
        ConfigProblem: it isn't, or settings contradict each other.
        FileProblem: the checkpoint was trained on other classes.
    """
    from model.checkpoint import check_classes

    check_classes(checkpoint, cfg.data.classes)
    changed = sorted(name for name in FIXED if settings.get(cfg, name) != settings.get(base, name))
    if changed:
        said = "; ".join(f"{name} is {settings.get(base, name)!r}, not {settings.get(cfg, name)!r}" for name in changed)
        raise ConfigProblem(f"{checkpoint.path}: {said}. The training decided this: leave the flag out.")
    settings.check(cfg)
    return cfg


def _infer(cfg: Config, checkpoint: Trained) -> int:
    from dataset.readers import read_competition, read_folder
    from engine.devices import pick_device
    from inference.pipeline import CSV_NAME, build_predictor, infer, new_folder

    chosen = cfg.inference
    if chosen.input:
        source = Path(chosen.input)
        records, what = read_folder(source), source.stem if source.is_file() else source.name
    else:
        records, what = read_competition(Path(cfg.data.data_root), "test"), "test"
    folder = Path(chosen.output) if chosen.output else new_folder(checkpoint.path.parent / "inference", what)
    device = pick_device(cfg)
    # With the settings as they are now: some networks can't do what any style asks (two stages see whole images).
    network = dataclasses.replace(checkpoint, cfg=cfg).network().to(device)
    table = infer(build_predictor(cfg, network), records, cfg, device, folder)
    if table is not None:
        print(f"Dice {table.mean():.4f} over {len(records)} labelled images ({folder / 'per_class.csv'})")
    print(f"CSV: {folder / CSV_NAME}")
    if chosen.save_masks != "none":
        print(f"masks: {folder / 'masks'}")
    if chosen.save_overlay:
        print(f"overlays: {folder / 'overlays'}")
    return 0
