"""The inference commands: weights and images in, a folder with the CSV out."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import config
from config import Config, ConfigProblem
from engine import flags, launch, settings
from engine.files import FileProblem
from engine.names import resolve
from inference.settings import PLACES, full_names

if TYPE_CHECKING:
    from inference.plan import Plan
    from model.checkpoint import Trained

OF_TRAINING = {
    *(
        f.name
        for section in (config.Data, config.Phantom, config.Augment, config.Model, config.Loss, config.Train)
        for f in dataclasses.fields(section)
    ),
    *("seed", "overwrite", "windows_per_image"),
} - {*PLACES, "amp", "amp_cpu"}
"""Fields that the training decided, or that mean nothing once a network is trained."""

ENSEMBLE, FOLDS = "inference_ensemble", "inference_kfold"
"""Styles of several networks."""

DESCRIPTION = """Predict the test split, a folder or one image with trained weights.

Network and settings come from the checkpoint; flags may change what does not belong to the network. An inference that
was stopped goes on with --resume. --gpus N, torchrun or --shard i/n share the images out to processes and machines."""


OPTIMISE = """Fit thresholds, weights, members and post-processing out of fold, and say what of it is noise.

The result belongs to these very weights; inference takes it up with --use_optimal_threshold, and for ensembles with
--ensemble_use_optimization."""


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
    asked = first.cfg if style or _names_weights(first) else _shipped(first.cfg)
    return flags.run_command(lambda: _command(argv, asked, style))


def _command(argv: list[str], asked: Config, style: str) -> int:
    base = settings.replace(base_of(asked, style), {"inference_file": style} if style else {})
    parsed, commands = flags.parse(argv, Commands, DESCRIPTION, base=base)
    cfg = check_settings(full_names(parsed.cfg), base)
    if commands.print_config:
        print(flags.describe(cfg, dict.fromkeys(settings.SECTION_OF, "checkpoint") | parsed.sources))
        return 0
    if asked.run.gpus > 1 and not launch.inside():  # not as many as trained it, unless that is asked for
        script = Path(__file__).with_name(f"{resolve('inference', style or 'inference').stem}.py").resolve()
        return launch.launch(asked.run.gpus, [str(script), *argv], cfg.folder)
    return run_plan(_plan(cfg, asked, _given(parsed)), cfg)


def _names_weights(parsed: flags.Parsed[Commands]) -> bool:
    """False for an image alone, where the default experiment was never trained: the weights that come with the code."""
    asked = parsed.cfg
    named = parsed.sources.keys() & {"exp_name", "checkpoint", "inference_file"}
    return bool(named) or not asked.inference.input or _has_weights(asked.folder)


def _shipped(asked: Config) -> Config:
    print(f"no experiment is named: taking {config.SHIPPED}, which has learned from drawn hands", flush=True)
    return settings.replace(asked, {"checkpoint": str(config.SHIPPED)})


def main_optimise(argv: list[str]) -> int:
    """Run inference/optimize.py; returns the exit code, see `main`."""
    first, _ = flags.parse(argv, Commands, OPTIMISE)
    return flags.run_command(lambda: _optimise(argv, first.cfg))


def _optimise(argv: list[str], asked: Config) -> int:
    from inference.optimize import optimise_experiment
    from inference.plan import read_member

    several = bool(asked.ensemble.ensemble_models) or not _has_weights(asked.folder)
    base = base_of(asked, ENSEMBLE) if several else _of_all_folds(read_member(str(asked.folder))[0].cfg, asked)
    parsed, commands = flags.parse(argv, Commands, OPTIMISE, base=base)
    cfg = check_settings(full_names(parsed.cfg), base)
    if commands.print_config:
        print(flags.describe(cfg, dict.fromkeys(settings.SECTION_OF, "checkpoint") | parsed.sources))
        return 0
    optimise_experiment(cfg, _given(parsed))
    return 0


def _has_weights(folder: Path) -> bool:
    return (folder / config.BEST).exists() or any(folder.glob(f"fold*/{config.BEST}"))


def _given(parsed: flags.Parsed[Commands]) -> set[str]:
    return {name for name, source in parsed.sources.items() if source == "flag"}


def base_of(asked: Config, style: str) -> Config:
    """The settings that flags change: those of the weights, or of an ensemble those of its record and first member."""
    from inference.plan import read_folds, read_member

    stem = resolve("inference", style or asked.inference.inference_file).stem
    if stem == FOLDS:
        return _of_all_folds(read_folds(asked.folder)[0].cfg, asked)
    if stem != ENSEMBLE:
        return _trained(asked).cfg
    record, cfg = asked.folder / "config.json", Config()
    if not asked.ensemble.ensemble_models and record.exists():
        cfg, _ = settings.from_record(json.loads(record.read_text(encoding="utf-8")), str(record))
    members = asked.ensemble.ensemble_models or cfg.ensemble.ensemble_models
    if not members:
        return cfg
    data = {f.name: settings.get(read_member(members[0].path)[0].cfg, f.name) for f in dataclasses.fields(config.Data)}
    return settings.replace(cfg, data)


def _of_all_folds(cfg: Config, asked: Config) -> Config:
    """The settings of one fold as those of the experiment."""
    return settings.replace(cfg, {"exp_name": asked.run.exp_name, "output_dir": asked.run.output_dir})


def ensemble_plan(cfg: Config, given: set[str]) -> Plan:
    """The ensemble that the settings name; fitted first where they ask for a fit and there is none."""
    from inference.optimize import optimise_experiment
    from inference.plan import OPTIMAL, plan_ensemble

    if cfg.ensemble.ensemble_use_optimization and not (cfg.folder / OPTIMAL).exists():
        optimise_experiment(cfg, given)
    return plan_ensemble(cfg, given)


def _plan(cfg: Config, asked: Config, given: set[str]) -> Plan:
    from inference.plan import plan_folds, plan_one, read_folds

    stem = resolve("inference", cfg.inference.inference_file).stem
    if stem == ENSEMBLE:
        return ensemble_plan(cfg, given)
    if stem == FOLDS:
        return plan_folds(read_folds(asked.folder), cfg, asked.folder)
    return plan_one(_trained(asked), cfg)


def _trained(asked: Config) -> Trained:
    from model.onnx_file import read_trained  # after --help, which must not wait for torch

    path = weights_file(asked)
    if not path.exists() and _has_weights(asked.folder):
        raise FileProblem(f"{path} does not exist, but {asked.folder} holds folds: run inference/inference_kfold.py.")
    return read_trained(path)


def weights_file(asked: Config) -> Path:
    """The file that `checkpoint` names, else the experiment's best weights."""
    chosen = asked.inference.checkpoint
    return Path(chosen) if chosen else asked.folder / config.BEST


def check_settings(cfg: Config, base: Config) -> Config:
    """`cfg`, where what training decided is as in `base`.

    Raises:
        ConfigProblem: it isn't, or settings contradict each other.
    """
    changed = sorted(name for name in OF_TRAINING if settings.get(cfg, name) != settings.get(base, name))
    if changed:
        said = "; ".join(f"{name} is {settings.get(base, name)!r}, not {settings.get(cfg, name)!r}" for name in changed)
        raise ConfigProblem(f"{said}. The training decided this: leave the flag out.")
    settings.check(cfg)
    return cfg


def run_plan(plan: Plan, cfg: Config) -> int:
    """Predict into `output`, or a new folder of the experiment, and say where all lies; returns the exit code."""
    import torch

    from engine.devices import pick_device, set_determinism
    from inference.hands import describe_hands
    from inference.job import CSV_NAME, working_folder
    from inference.part_file import Part
    from inference.plan import infer, new_folder

    chosen = cfg.inference
    if chosen.shard and not chosen.output:
        raise ConfigProblem(f"shard {chosen.shard} needs --output, the same for all parts: give it.")
    source = Path(chosen.input)
    name = (source.stem if source.is_file() else source.name) if chosen.input else chosen.split
    part = Part.of(chosen.shard).shared(*launch.rank())
    folder = Path(chosen.output) if chosen.output else new_folder(plan, name, part.count)
    device = pick_device(cfg)
    if device == "cuda" and launch.inside():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    set_determinism(cfg.run.deterministic)
    try:
        results = infer(plan, device, folder, part, resume=cfg.run.resume)
    except KeyboardInterrupt:
        print(f"stopped: --resume goes on with {working_folder(folder)}", flush=True)
        raise
    if results is None:
        print(f"{part} is done; the CSV will be written when all are.")
        return 0
    if results.scores is not None:
        print(results.scores.text())
    if results.table is not None:
        print(f"Dice {results.table.mean():.4f} over {len(plan.records)} labelled images ({folder / 'per_class.csv'})")
    print(f"CSV: {folder / CSV_NAME}")
    if (folder / "hands.csv").exists():
        print("\n".join(describe_hands(folder / "hands.csv")))
    for kind in ("masks", "overlays", "probs", "bones.csv", "hands.csv"):
        if (folder / kind).exists():
            print(f"{kind}: {folder / kind}")
    return 0
