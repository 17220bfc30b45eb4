"""One experiment from settings to a leaderboard CSV: python run_exp.py --exp_name X [--preset demo] [--lr 1e-4] …"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

import config
from config import BEST, Config, ConfigProblem
from engine import background, flags, launch, settings
from engine.files import FileProblem, remove_leftovers, write_json
from engine.names import all_names, resolve
from engine.notify import check_url
from inference.settings import full_names

if TYPE_CHECKING:
    from dataset.readers import Record
    from engine.distributed import World
    from model.checkpoint import Trained
    from train import Trainer

OF_A_START = {
    *("exp_name", "output_dir", "resume", "overwrite", "force_resume", "gpus", "max_hours", "eval_only", "profile"),
    "notify",
}
"""Settings of a command and not of an experiment."""
NOT_RECORDED = {"resume": False, "overwrite": False, "force_resume": False, "eval_only": False, "notify": ""}
"""--config with saved settings would otherwise overwrite or resume without being asked; a webhook is a password."""
OF_A_NETWORK = {
    *(f.name for f in dataclasses.fields(config.Model) if f.name not in ("init_from", "pretrained", "grad_checkpoint")),
    *("classes", "optimizer"),
}
"""Settings that a resumed run must keep: its weights or the optimizer's state belong to them."""

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
    status: str = ""
    """Print how the experiment of this name is, or without a name all that have run here."""
    stop: str = ""
    """Have the experiment of this name save and leave; kill it where it does not within a minute."""
    follow: str = ""
    """Print the log of the experiment of this name until it ends; exits with its exit code."""
    list_models: bool = False
    """Print the names for --model_file, one a line."""
    describe_model: str = ""
    """Print what the network of this name costs at the configured window, its sizes, options, paper and weights."""
    list_losses: bool = False
    """Print the terms for --loss, one a line."""
    list_optimizers: bool = False
    """Print the names for --optimizer, one a line."""
    list_datasets: bool = False
    """Print the names for --dataset_file, one a line."""
    list_inference: bool = False
    """Print the names for --inference_file, one a line."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    parsed, commands = flags.parse(argv, Commands, DESCRIPTION)
    return flags.run_command(lambda: _command(argv, parsed, commands))


def _command(argv: list[str], parsed: flags.Parsed[Commands], commands: Commands) -> int:
    if launch.inside() and os.environ["RANK"] != "0":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (one rank speaks for all)
    if listing := _listing(commands):
        print("\n".join(listing), flush=True)
        return 0
    if commands.status or commands.stop or commands.follow:
        return _control(commands)
    if commands.describe_model:
        from model.describe import describe, text

        cfg = settings.replace(parsed.cfg, {"model_file": commands.describe_model})
        settings.check(cfg)
        print(text(describe(cfg), cfg), flush=True)
        return 0
    if not (launch.inside() or commands.print_config):
        background.check_free(parsed.cfg.run.exp_name, None if commands.bg else parsed.cfg.folder)
    alone = _ensemble_alone(parsed.cfg)
    if alone:
        from inference.command import base_of

        parsed, _ = flags.parse(argv, Commands, DESCRIPTION, base=base_of(parsed.cfg, "inference.inference_ensemble"))
    elif parsed.cfg.run.resume or parsed.cfg.run.eval_only:
        if parsed.cfg.run.overwrite:
            settings.check(parsed.cfg)  # says that they contradict each other
        parsed = _resumed(argv, parsed)
    settings.check(parsed.cfg)
    check_url(parsed.cfg.run.notify)
    cfg = settings.shortened(full_names(parsed.cfg))
    if commands.print_config:
        print(flags.describe(cfg, parsed.sources), flush=True)
        return 0
    if not alone:
        from dataset.layouts import with_classes

        cfg = with_classes(cfg)
    if commands.dry_run:
        return _dry_run(cfg, alone)
    if commands.bg:
        _dry_run(cfg, alone)  # what is wrong shows here and not in a log that nobody reads
        # The last flag wins, however --bg was spelt: a child that still saw it would start another, for ever.
        print(background.start([os.path.abspath(__file__), *argv, "--no_bg"], cfg.run.exp_name))
        return 0
    if commands.check_data:
        from dataset.prepare import look_at_data, prepare_data

        prepare_data(cfg)
        return 0 if look_at_data(_first_fold(cfg)).ok else 1
    if not launch.inside() and not alone:
        _check_folder(cfg)  # here, too: a command that is refused leaves the record of the run before
    work = partial(_vote, cfg) if alone else partial(_run, argv, cfg, check=not commands.no_check_data)
    return background.on_record(cfg.run.exp_name, cfg.folder, argv, work)


def _prepared(cfg: Config, check: bool) -> bool:
    """Whether the data are there and fit to train on."""
    from dataset.prepare import may_train, prepare_data

    prepare_data(cfg)
    return not check or may_train(_first_fold(cfg))


def _control(commands: Commands) -> int:
    """Look at another run, follow or stop it."""
    from engine import control

    if commands.status:
        print(control.status("" if commands.status == "*" else commands.status), flush=True)
        return 0
    return control.stop(commands.stop) if commands.stop else control.follow(commands.follow)


def _vote(cfg: Config) -> int:
    """An ensemble of what others have trained."""
    from inference.command import ensemble_plan, run_plan

    return run_plan(ensemble_plan(cfg, set()), cfg)


def _ensemble_alone(cfg: Config) -> bool:
    """Whether networks that others have trained shall vote, with nothing trained here: --eval_only of an ensemble."""
    several = resolve("inference", cfg.inference.inference_file).stem == "inference_ensemble"
    return cfg.run.eval_only and several and not (cfg.folder / BEST).exists()


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
    if commands.list_optimizers:
        from engine.optim import optimizer_names

        names += optimizer_names()
    return names


def _resumed(argv: list[str], parsed: flags.Parsed[Commands]) -> flags.Parsed[Commands]:
    """The command line again, on top of the settings that the experiment was started with.

    Raises:
        ConfigProblem: a setting differs that changes the network or the optimizer, without --force_resume.
    """
    from dataset.layouts import with_classes
    from engine.run_state import has_state, newest_state

    folder, path = parsed.cfg.folder, parsed.cfg.folder / "config.json"
    if not has_state(folder) and path.exists():  # of all folds, or killed before its first state
        record = json.loads(path.read_text(encoding="utf-8"))
    else:
        record = newest_state(folder)[0]["config"]
    saved, names = settings.from_record(record, str(folder))
    resumed, _ = flags.parse(argv, Commands, DESCRIPTION, base=saved)
    now = with_classes(full_names(resumed.cfg))
    changed = [n for n in sorted(names - OF_A_START) if settings.get(now, n) != settings.get(saved, n)]
    said = [f"{n} {settings.get(now, n)!r} instead of {settings.get(saved, n)!r}" for n in changed]
    decided = [text for name, text in zip(changed, said, strict=True) if name in OF_A_NETWORK]
    if decided and not resumed.cfg.run.force_resume:
        raise ConfigProblem(
            f"{folder} was started with other settings of network or optimizer ({', '.join(decided)}): leave them out, "
            f"or give --force_resume to go on nevertheless, with what fits of the state."
        )
    if said and not launch.inside():
        print(f"resuming with {', '.join(said)}")
    # Where it was found and not where it was written: a copied or renamed experiment must not continue its original.
    here = {name: settings.get(parsed.cfg, name) for name in ("exp_name", "output_dir", "overwrite")}
    sources = dict.fromkeys(names, "saved") | {name: parsed.sources.get(name, "default") for name in here}
    return flags.Parsed(settings.replace(resumed.cfg, here), sources | resumed.sources)


def _check_folder(cfg: Config) -> None:
    """Raise ConfigProblem where the experiment exists and neither --resume nor --overwrite is given."""
    folder = cfg.folder
    if cfg.run.eval_only and not (folder / BEST).exists():
        raise ConfigProblem(f"eval_only: {folder / BEST} does not exist: train the experiment first.")
    if not _begun(folder) or cfg.run.resume or cfg.run.eval_only:
        return
    if not cfg.run.overwrite:
        raise ConfigProblem(
            f"{folder} exists: give --resume to continue it, --overwrite to replace it, or another --exp_name."
        )
    if not _is_experiment(folder):
        raise ConfigProblem(f"{folder} is no experiment (no config.json of one in it), so --overwrite leaves it alone.")


def _begun(folder: Path) -> bool:
    """Whether there is more in it than a killed write has left: a run may die before it has written its config.json."""
    return folder.exists() and (not folder.is_dir() or any(path.suffix != ".part" for path in folder.iterdir()))


def _discard(folder: Path) -> None:
    """Delete an experiment. It loses its name first: what a killed deletion leaves must not stand in the way."""
    doomed = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


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


def _dry_run(cfg: Config, ensemble_alone: bool = False) -> int:
    """Say what a run would do, with nothing written: the checks are the real ones, the network is really built."""
    from dataset.prepare import missing_phantoms, undrawn

    if ensemble_alone:
        from inference.plan import plan_ensemble

        plan = plan_ensemble(settings.replace(cfg, {"ensemble_use_optimization": False}))
        print(f"would predict {len(plan.records)} images with {len(plan.files)} networks: no training")
        return 0
    _check_folder(cfg)
    print(f"would write {cfg.folder}")
    if drawn := missing_phantoms(cfg):
        count = 2 * (drawn.train_subjects + drawn.test_subjects)
        print(f"would draw {count} phantoms of {drawn.size} px into {cfg.data.data_root} first")
    cfg = settings.replace(_first_fold(cfg), {"cache": "none"})  # building one is writing
    trainer = _build_trainer(cfg, undrawn(drawn.train_subjects) if drawn else None)
    side, batch, classes = trainer.loader.side, cfg.train.batch_size, len(cfg.data.classes)
    logits = batch * classes * side**2 * 4 / 2**20
    print(trainer.summary)
    if cfg.first_weights:
        print(trainer.start_from(cfg.first_weights))
    trainer.loader.close()
    print(f"a step: images {batch} x 1 x {side} x {side}, logits {logits:.0f} MiB in float32")
    return 0


def _build_trainer(cfg: Config, records: list[Record] | None = None) -> Trainer:
    """The training loop, fed by DALI where the loader is a DALI one."""
    if resolve("dataset", cfg.data.dataset_file).stem == "dataset_dali":
        from train_dali import DaliTrainer

        return DaliTrainer(cfg, records)
    from train import Trainer

    return Trainer(cfg, records)


def _run(argv: list[str], cfg: Config, check: bool) -> int:
    """Train and predict; tells `notify` how it went.

    Args:
        check: look at the data first.
    """
    from engine.notify import notify

    _check_folder(cfg)  # alone now; ranks that torchrun was given by hand come here first
    if launch.inside():
        return _train(cfg)
    if not _prepared(cfg, check):
        return 1
    notify(cfg.run.notify, f"{cfg.run.exp_name}: started")
    ending, code = "failed", 1
    try:
        code = _run_folds(argv, cfg) if cfg.data.fold == "all" else _start(argv, cfg)
        ending = background.ENDINGS.get(code, f"failed with exit code {code}")
    except BaseException as error:
        ending = f"failed: {error or type(error).__name__}"
        raise
    finally:
        notify(cfg.run.notify, f"{cfg.run.exp_name}: {ending}")
    return code


def _first_fold(cfg: Config) -> Config:
    """One of the trainings of --fold all, to check and size them."""
    return settings.replace(cfg, {"fold": "0"}) if cfg.data.fold == "all" else cfg


def _start(argv: list[str], cfg: Config) -> int:
    """One training: in this process, or in several."""
    if cfg.run.gpus > 1:
        # The last flag wins: ranks must neither go to the background nor look at the data again.
        command = [os.path.abspath(__file__), *argv, "--no_bg", "--no_check_data"]
        return launch.launch(cfg.run.gpus, command, cfg.folder)
    return _train(cfg)


def _train(cfg: Config) -> int:
    from dataset.selection import write_fold_file
    from engine.run_state import has_state, newest_state
    from model.checkpoint import read_checkpoint

    asked = cfg.run
    cfg = settings.replace(cfg, NOT_RECORDED)
    trainer = _build_trainer(cfg)
    first = trainer.world.first
    if first:
        if written := write_fold_file(cfg):
            print(f"folds: {written}")
        if cfg.folder.exists() and not (asked.resume or asked.eval_only):
            _discard(cfg.folder)
    trainer.world.wait()
    said = ""
    if asked.resume and has_state(cfg.folder):
        state, said = newest_state(cfg.folder)
        trainer.restore(state, asked.force_resume)
    if first:
        write_json(cfg.folder / "config.json", settings.to_record(cfg))
        remove_leftovers(cfg.folder)
    if said:
        print(f"{said} Going on after epoch {trainer.at.epoch}, step {trainer.at.step}.", flush=True)
    elif cfg.first_weights and not asked.eval_only:
        print(trainer.start_from(cfg.first_weights), flush=True)
    print(trainer.summary, flush=True)
    code = 1
    try:
        code = _fit(trainer, asked)
        trainer.world.wait()  # until the best weights are written
        if not code and not asked.profile:
            best = read_checkpoint(cfg.folder / BEST)
            score = "not validated" if math.isnan(best.score) else f"validation Dice {best.score:.4f}"
            print(f"{score} (epoch {best.epoch})")
            _submit(cfg, best, trainer.world)
            if first:
                _report(cfg.folder)
    except BaseException:
        code = 1
        raise
    finally:
        trainer.world.close()
        if first and not (asked.eval_only or asked.profile):
            launch.write_result(cfg.folder, code)
    return code


def _report(folder: Path) -> None:
    """Write the experiment's page; a failed one never fails a run."""
    from report.page import write_report
    from report.sources import experiments

    try:
        print(f"report:     {write_report(folder / 'report', experiments([folder]))}", flush=True)
    except (ConfigProblem, FileProblem) as problem:
        print(f"no report: {problem}", file=sys.stderr, flush=True)


def _submit(cfg: Config, best: Trained, world: World) -> None:
    """Predict the test split with the trained network, or the ensemble that the settings name."""
    from inference.command import ENSEMBLE, ensemble_plan
    from inference.optimize import optimise_experiment
    from inference.plan import plan_one
    from inference.submit import has_test_split, submit

    if not has_test_split(cfg):
        print(f"{cfg.data.data_root} has no test split: no CSV. Weights: {best.path}")
        return
    # Where the settings say where results go, that is for the inference commands.
    cfg = settings.replace(cfg, {"split": "test", "input": "", "output": "", "shard": ""})
    several = resolve("inference", cfg.inference.inference_file).stem == ENSEMBLE
    asked = cfg.ensemble.ensemble_use_optimization if several else cfg.inference.use_optimal_threshold
    if asked and world.first:  # for the weights as they are now
        optimise_experiment(cfg if several else settings.replace(cfg, {"ensemble_models": ()}), set())
    world.wait()
    submit(ensemble_plan(cfg, set()) if several else plan_one(best, cfg), world)


def _fit(trainer: Trainer, asked: config.Run) -> int:
    """Train, validate or profile, as asked; returns the exit code."""
    from engine.stop import Stopped
    from model.checkpoint import read_checkpoint

    code = 1
    try:
        if asked.eval_only:
            best = read_checkpoint(trainer.cfg.folder / BEST)
            print(trainer.evaluate(best.network()).text(), flush=True)
        elif asked.profile:
            print(trainer.profile(asked.profile), flush=True)
        else:
            trainer.fit()
        code = 0
    except Stopped as stopped:
        print(f"{stopped}: saved; continue with --exp_name {trainer.cfg.run.exp_name} --resume", flush=True)
        code = stopped.exit_code
    finally:
        trainer.close(code)
    return code


def _run_folds(argv: list[str], cfg: Config) -> int:
    """Train every fold that is not done yet, then score them all out of fold and predict with their mean."""
    from engine.run_state import has_state
    from inference.folds import out_of_fold
    from inference.optimize import optimise_experiment
    from inference.plan import plan_folds, read_folds
    from inference.submit import has_test_split, submit

    if cfg.folder.exists() and not cfg.run.resume:
        _build_trainer(_first_fold(cfg)).loader.close()  # nothing is deleted for settings that can't work
        _discard(cfg.folder)
    saved = settings.replace(cfg, NOT_RECORDED)
    write_json(cfg.folder / "config.json", settings.to_record(saved))
    folds = [
        settings.replace(cfg, {"fold": str(k), "exp_name": f"fold{k}", "output_dir": str(cfg.folder)})
        for k in range(cfg.data.n_folds)
    ]
    for fold in folds:
        if launch.read_result(fold.folder) == 0:
            continue
        print(f"fold {fold.data.fold} of {cfg.data.n_folds}", flush=True)
        begun = has_state(fold.folder)
        fold = settings.replace(fold, {"resume": begun, "overwrite": not begun})
        named = ["--fold", fold.data.fold, "--exp_name", fold.run.exp_name, "--output_dir", fold.run.output_dir]
        how = ["--resume", "--no_overwrite"] if begun else ["--no_resume", "--overwrite"]
        if code := _start([*argv, *named, *how], fold):
            return code
    table = out_of_fold(cfg.folder, [fold.folder for fold in folds])
    print(f"{table.text()}\nout-of-fold Dice {table.mean():.4f} over {len(table)} images ({cfg.folder / 'oof.csv'})")
    if saved.inference.use_optimal_threshold:
        optimise_experiment(settings.replace(saved, {"ensemble_models": ()}), set())
    if has_test_split(saved):
        submit(plan_folds(read_folds(saved.folder), saved, saved.folder))
    else:
        print(f"{saved.data.data_root} has no test split: no CSV. Weights: {saved.folder / 'fold*' / BEST}")
    _report(cfg.folder)
    launch.write_result(cfg.folder, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
