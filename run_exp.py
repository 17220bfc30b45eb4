"""One experiment from settings to a leaderboard CSV: python run_exp.py --exp_name X [--preset demo] [--lr 1e-4] …"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from config import Config, ConfigProblem
from engine import background, flags, settings
from engine.files import FileProblem, write_json
from engine.names import all_names, resolve
from inference.settings import full_names

if TYPE_CHECKING:
    from dataset.check import Verdict
    from dataset.readers import Record
    from inference.metrics import DiceTable
    from train import Trainer

DESCRIPTION = """Train a network, predict the test split and write the leaderboard's CSV.

Settings: defaults in config.py < --config FILE < --preset NAME < flags. Flags may be written with '-' or '_', values of
closed sets in any case. Exit codes: 0 done, 1 a file or the data is wrong, 2 a setting is wrong, 75 stopped and
resumable, 130 interrupted and resumable."""


@dataclass(frozen=True)
class Commands:
    """Flags that are no settings."""

    print_config: bool = False
    """Print every setting with its source, and stop."""
    dry_run: bool = False
    """Resolve, check and size everything, and stop."""
    check_data: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Look at every image and label, list what is wrong, and stop; exit code 1 where something is."""
    no_check_data: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Train without that look; it is quick where nothing has changed since the last one."""
    bg: bool = False
    """Run in the background, detached from the terminal; output goes to log/<exp_name>.log."""
    list_models: bool = False
    """Print the names for --model_file, one a line."""
    list_losses: bool = False
    """Print the terms for --loss, one a line."""
    list_datasets: bool = False
    """Print the names for --dataset_file, one a line."""
    list_inference: bool = False
    """Print the names for --inference_file, one a line."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    parsed, commands = flags.parse(argv, Commands, DESCRIPTION)
    return flags.run_command(lambda: _command(argv, parsed, commands))


def _command(argv: list[str], parsed: flags.Parsed[Commands], commands: Commands) -> int:
    if listing := _listing(commands):
        print("\n".join(listing), flush=True)
        return 0
    if parsed.cfg.run.resume:
        if parsed.cfg.run.overwrite:
            settings.check(parsed.cfg)  # says that they contradict each other
        parsed = _resumed(argv, parsed)
    settings.check(parsed.cfg)
    cfg = full_names(parsed.cfg)
    if commands.print_config:
        print(flags.describe(cfg, parsed.sources), flush=True)
        return 0
    if commands.dry_run:
        return _dry_run(cfg)
    if commands.bg:
        _dry_run(cfg)  # what is wrong shows here and not in a log that nobody reads
        # The last flag wins, however --bg was spelt: a child that still saw it would start another, for ever.
        print(background.start([os.path.abspath(__file__), *argv, "--no_bg"], cfg.run.exp_name))
        return 0
    if commands.check_data:
        _prepare_data(cfg)
        return 0 if _look_at_data(cfg).ok else 1
    return _run(cfg, check=not commands.no_check_data)


def _listing(commands: Commands) -> list[str]:
    names: list[str] = []
    for wanted, package in (
        (commands.list_models, "model"),
        (commands.list_datasets, "dataset"),
        (commands.list_inference, "inference"),
    ):
        names += all_names(package) if wanted else []
    if commands.list_losses:
        from model.losses import term_names

        names += term_names()
    return names


def _resumed(argv: list[str], parsed: flags.Parsed[Commands]) -> flags.Parsed[Commands]:
    """The command line again, on top of the settings that the stopped run was started with."""
    from model.checkpoint import load_state

    path = parsed.cfg.folder / "last.pt"
    if not path.exists():
        raise FileProblem(f"{path} does not exist, so there is nothing to resume: leave out --resume.")
    saved, names = settings.from_record(load_state(path)["config"], str(path))
    resumed, _ = flags.parse(argv, Commands, DESCRIPTION, base=saved)
    for name in sorted(names - {"resume", "overwrite"}):
        if settings.get(resumed.cfg, name) == settings.get(saved, name):
            continue
        print(f"resuming with {name} {settings.get(resumed.cfg, name)!r} instead of {settings.get(saved, name)!r}")
    # Where it was found and not where it was written: a copied or renamed experiment must not continue its original.
    here = {name: settings.get(parsed.cfg, name) for name in ("exp_name", "output_dir", "overwrite")}
    sources = dict.fromkeys(names, "last.pt") | {name: parsed.sources.get(name, "default") for name in here}
    return flags.Parsed(settings.replace(resumed.cfg, here), sources | resumed.sources)


def _check_folder(cfg: Config) -> None:
    """Raise ConfigProblem where the experiment exists and neither --resume nor --overwrite is given."""
    folder = cfg.folder
    if not folder.exists() or cfg.run.resume:
        return
    if not cfg.run.overwrite:
        raise ConfigProblem(
            f"{folder} exists: give --resume to continue it, --overwrite to replace it, or another --exp_name."
        )
    if not _is_experiment(folder):
        raise ConfigProblem(f"{folder} is no experiment (no config.json of one in it), so --overwrite leaves it alone.")


def _is_experiment(folder: Path) -> bool:
    """Whether --overwrite may delete it: a folder of ours, or an empty one. Others have a config.json as well."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    try:
        record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return not any(folder.iterdir())
    except ValueError:
        return False
    return isinstance(record, dict) and isinstance(record.get("run"), dict) and "exp_name" in record["run"]


PARTS = {"train", "test", "meta_data.xlsx", "phantom.json", "cache", "jpeg"}
"""All that a phantom set holds, and what we make of it."""


def _missing_phantoms(cfg: Config) -> dict[str, int]:
    """What to draw at data_root: nothing where no phantoms are asked for, or just these lie there already.

    Raises:
        FileProblem: data_root holds something else that --overwrite does not cover.
    """
    if not cfg.phantom.phantom:
        return {}
    from dataset.phantom import RECORD, phantom_matches

    root, chosen = Path(cfg.data.data_root), cfg.phantom
    wanted = {
        "train_subjects": chosen.phantom_train,
        "test_subjects": chosen.phantom_test,
        "size": chosen.phantom_size,
        "seed": chosen.phantom_seed,
    }
    if phantom_matches(root, **wanted):
        return {}
    # --overwrite covers what we have drawn with other settings, as long as nothing else lies there.
    ours = (root / RECORD).exists() and {path.name for path in root.iterdir()} <= PARTS
    if root.exists() and not (ours and cfg.run.overwrite):
        remedy = "give --overwrite to draw them anew, or another --data_root" if ours else "give another --data_root"
        raise FileProblem(f"{root} exists and does not hold the phantoms asked for: {remedy}.")
    return wanted


def _prepare_data(cfg: Config) -> None:
    """Draw the phantom set where the settings ask for one and it does not lie there already."""
    wanted, root = _missing_phantoms(cfg), Path(cfg.data.data_root)
    if not wanted:
        return
    from dataset.phantom import write_phantom_set

    if root.exists():
        shutil.rmtree(root)
    write_phantom_set(root, **wanted, workers=os.cpu_count() or 1)  # before training, so all cores are free
    print(f"phantom data: {root}")


def _dry_run(cfg: Config) -> int:
    """Say what a run would do, with nothing written: the checks are the real ones, the network is really built."""
    _check_folder(cfg)
    print(f"would write {cfg.folder}")
    if drawn := _missing_phantoms(cfg):
        count = 2 * (drawn["train_subjects"] + drawn["test_subjects"])
        print(f"would draw {count} phantoms of {drawn['size']} px into {cfg.data.data_root} first")
    cfg = settings.replace(cfg, {"cache": "none"})  # building one is writing
    trainer = _build_trainer(cfg, _undrawn(drawn["train_subjects"]) if drawn else None)
    side, batch, classes = trainer.loader.side, cfg.train.batch_size, len(cfg.data.classes)
    logits = batch * classes * side**2 * 4 / 2**20
    print(trainer.summary)
    trainer.loader.close()
    print(f"a step: images {batch} x 1 x {side} x {side}, logits {logits:.0f} MiB in float32")
    return 0


def _undrawn(subjects: int) -> list[Record]:
    """Records of phantoms that are not there yet, to size a run."""
    from dataset.readers import Record

    return [Record(Path(f"{s}/{side}.png"), Path(f"{s}/{side}.json"), str(s)) for s in range(subjects) for side in "LR"]


def _look_at_data(cfg: Config) -> Verdict:
    """Check the files of data_root and show what is wrong; the list goes to <output_dir>/bad_files.csv."""
    from dataset.check import check_data, table, write_bad_files
    from dataset.readers import KNOWN_BAD_LABELS, pair_competition, read_competition
    from dataset.selection import select
    from dataset.switches import switches_of

    root, data, switches = Path(cfg.data.data_root), cfg.data, switches_of(cfg)
    if not pair_competition(root, "train").records:
        read_competition(root, "train")  # raises: there is nothing to look at
    try:
        train, val = select(cfg, switches)
        folds = {side: {r.subject for r in part} for side, part in (("training", train), ("validation", val))}
    except FileProblem:
        folds = None  # of files that are missing, which the check itself lists
    held_out = [data.holdout] if data.holdout and (root / data.holdout / "DCM").is_dir() else []
    verdict = check_data(
        root,
        data.classes,
        folds,
        Path(data.cache_dir or root / "cache") / "check.json",
        os.cpu_count() or 1,
        splits=("train", *held_out, "test"),
        exclude={*data.exclude, *(KNOWN_BAD_LABELS if switches.exclude else ())},
    )
    print(table(verdict), flush=True)
    if verdict.faults:
        path = Path(cfg.run.output_dir) / "bad_files.csv"
        write_bad_files(path, verdict)
        print(f"list: {path}", flush=True)
    return verdict


def _may_train(cfg: Config) -> bool:
    """Whether the data is fit to train on; `bad_image` skip forgives files that can't be read."""
    forgiven = {"unreadable image", "unreadable label"} if cfg.data.bad_image == "skip" else set()
    errors = {fault.kind for fault in _look_at_data(cfg).faults if fault.severity == "error"} - forgiven
    if errors:
        print(
            f"error: the data has errors ({', '.join(sorted(errors))}): correct or --exclude the files, or give "
            f"--no_check_data.",
            file=sys.stderr,
        )
    return not errors


def _build_trainer(cfg: Config, records: list[Record] | None = None) -> Trainer:
    """The training loop, fed by DALI where the loader is a DALI one."""
    if resolve("dataset", cfg.data.dataset_file).stem == "dataset_dali":
        from train_dali import DaliTrainer

        return DaliTrainer(cfg, records)
    from train import Trainer

    return Trainer(cfg, records)


def _run(cfg: Config, check: bool) -> int:
    _check_folder(cfg)
    _prepare_data(cfg)
    if check and not _may_train(cfg):
        return 1
    from dataset.selection import write_fold_file
    from engine.stop import Stopped

    asked = cfg.run
    # Not recorded: --config with the saved settings would otherwise overwrite or resume without being asked.
    cfg = settings.replace(cfg, {"resume": False, "overwrite": False})
    trainer = _build_trainer(cfg)
    if written := write_fold_file(cfg):
        print(f"folds: {written}")
    if asked.resume:
        trainer.restore(cfg.folder / "last.pt")
        print(f"resuming after epoch {trainer.at.epoch}, step {trainer.at.step}")
    elif cfg.folder.exists():
        shutil.rmtree(cfg.folder)
    write_json(cfg.folder / "config.json", settings.to_record(cfg))
    print(trainer.summary, flush=True)
    try:
        trainer.fit()
    except Stopped as stopped:
        print(f"{stopped}: saved; continue with --exp_name {cfg.run.exp_name} --resume")
        return stopped.exit_code
    finally:
        trainer.loader.close()
    return _submit(cfg)


def _submit(cfg: Config) -> int:
    """Predict the test split with the best weights, and say where everything is."""
    from dataset.readers import read_competition
    from engine.devices import pick_device
    from inference.pipeline import CSV_NAME, build_predictor, draw_example, infer, new_folder
    from model.checkpoint import read_checkpoint

    root = Path(cfg.data.data_root)
    if not (root / "test" / "DCM").is_dir():
        print(f"{root} has no test/DCM: no CSV. Weights: {cfg.folder / 'best.safetensors'}")
        return 0
    records = read_competition(root, "test")
    device = pick_device(cfg)
    checkpoint = read_checkpoint(cfg.folder / "best.safetensors")
    predictor = build_predictor(cfg, checkpoint.network().to(device))
    folder = new_folder(cfg.folder / "inference", "test")
    table = infer(predictor, records, cfg, device, folder)
    print(f"validation Dice {checkpoint.score:.4f} (epoch {checkpoint.epoch})")
    if table is not None:
        print(table.text())
        print(f"test Dice {table.mean():.4f} over {len(records)} images")
        _print_baseline(cfg, table)
        print(f"per class:  {folder / 'per_class.csv'}")
    picture = folder / "overlay.png"
    draw_example(predictor, records, cfg, device, table, picture)
    print(f"overlay:    {picture}\nCSV:        {folder / CSV_NAME}\nweights:    {cfg.folder / 'best.safetensors'}")
    return 0


def _print_baseline(cfg: Config, table: DiceTable) -> None:
    """On phantoms, how far the network is above the mean training mask."""
    if not cfg.phantom.phantom:
        return
    from dataset.readers import read_competition
    from inference.baseline import mean_mask_dice

    root = Path(cfg.data.data_root)
    mean_mask = mean_mask_dice(read_competition(root, "train"), read_competition(root, "test"), cfg)
    above = table.mean() - mean_mask
    print(f"mean training mask, on the hand's true box: Dice {mean_mask:.4f}; the network is {above:.4f} above")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
