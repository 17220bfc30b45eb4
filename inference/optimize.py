"""Fit thresholds, weights, members and post-processing on out-of-fold predictions, and say what of it is noise.

    python inference/optimize.py --exp_name A                                          # thresholds, post-processing
    python inference/optimize.py --exp_name E --ensemble_models @members.json          # weights and members too

Members are predicted out of fold first, where that is not done yet. Everything is cross-fitted by subject, with a
bootstrap interval over subjects against the simple choice (equal weights, 0.5, no post-processing); what does not
clear its interval is left off unless --force_optimal names it. The result, optimal.json in the experiment's folder,
belongs to these very weights; inference takes it up with --use_optimal_threshold, or --ensemble_use_optimization for
ensembles.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # see inference/inference.py

if TYPE_CHECKING:
    from config import Config
    from inference.combined import Source

CANDIDATES: tuple[tuple[str, ...], ...] = (
    ("fill_holes",),
    ("min_area=50",),
    ("min_area=50", "fill_holes"),
    ("largest",),
    ("largest", "fill_holes"),
    ("hysteresis=0.3",),
    ("open=2",),
    ("close=2",),
)
"""Post-processing to choose from; --post_process replaces them by one of your own."""
FOLDS = 5
"""Folds of the cross-fit, where there are so many subjects."""


def optimise_experiment(cfg: Config, given: set[str]) -> None:
    """Predict out of fold what is missing, fit, print and write the result and its curves into the experiment's folder.

    Raises:
        ConfigProblem, FileProblem: see inference.optimal.optimise.
    """
    from inference.combined import common_keys
    from inference.fitted import write_fitted
    from inference.optimal import Options, optimise
    from inference.plan import OPTIMAL
    from inference.thresholds import curve_table, curve_text, plot_curves, write_curves_csv

    sources = out_of_fold_sources(cfg, given)
    chosen = cfg.ensemble
    steps = (cfg.inference.post_process,) if cfg.inference.post_process else CANDIDATES
    report = optimise(
        sources,
        Options(
            weight_method=chosen.ensemble_weight_method,
            metric=chosen.ensemble_optim_metric,
            post_process=steps,
            force=chosen.force_optimal,
            n_folds=min(FOLDS, len({key.split("/")[0] for key in common_keys(sources)})),
            seed=cfg.data.split_seed,
        ),
    )
    print(report.text(), flush=True)
    classes, folder = report.fitted.classes, cfg.folder
    print(curve_text(curve_table(classes, report.curves)), flush=True)
    write_fitted(folder / OPTIMAL, report.fitted)
    write_curves_csv(folder / "thresholds.csv", classes, report.curves)
    plot_curves(folder / "thresholds.png", classes, report.curves, report.levels)
    print(f"fit:        {folder / OPTIMAL}\ncurves:     {folder / 'thresholds.csv'}, {folder / 'thresholds.png'}")


def out_of_fold_sources(cfg: Config, given: set[str]) -> list[Source]:
    """The stored out-of-fold probabilities of each member (of the experiment itself where there are none)."""
    import dataclasses

    from config import EnsembleMember
    from engine.devices import pick_device
    from inference.combined import Source
    from inference.plan import as_member, infer, oof_folder, plan_folds, plan_one, read_member
    from inference.probs import ProbsFolder

    sources, device = [], pick_device(cfg)
    for entry in cfg.ensemble.ensemble_models or (EnsembleMember(str(cfg.folder)),):
        trained = read_member(entry.path)
        member = as_member(trained[0].cfg, cfg, entry, given)
        stored = dataclasses.replace(
            member.inference,
            split="val",
            save_probs=True,
            use_optimal_threshold=False,
            post_process=(),
            save_masks="none",
            save_overlay=False,
            metrics=(),
        )
        member = dataclasses.replace(member, inference=stored)
        own = Path(entry.path) if Path(entry.path).is_dir() else trained[0].path.parent
        plan = plan_folds(trained, member, own) if len(trained) > 1 else plan_one(trained[0], member)
        folder = oof_folder(plan)
        print(f"{entry.path}: out-of-fold probabilities in {folder}", flush=True)
        infer(plan, device, folder, resume=True)
        sources.append(Source(entry.path, ProbsFolder(folder / "probs")))
    return sources


if __name__ == "__main__":
    from inference.command import main_optimise

    sys.exit(main_optimise(sys.argv[1:]))
