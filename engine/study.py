"""What a search remembers: Optuna's journal of trials, how it goes on after a crash, and the report.

One experiment may take several trials of the journal: a trial of a search that died is told failed, and a successor
goes on with its experiment. `slots` gives each trial the number of its experiment.
"""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.importance import get_param_importances
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from config import Config, ConfigProblem
from engine import settings
from engine.files import FileProblem, locked, write_text
from engine.space import Space

optuna.logging.set_verbosity(optuna.logging.ERROR)

JOURNAL = "journal.log"

CONTINUES, SLOT = "continues", "slot"
"""Attributes of a successor: number of the trial it goes on with, and of their experiment."""
EXPERIMENT, OUTCOME, EPOCH, SECONDS = "experiment", "outcome", "epoch", "seconds"
"""Attributes of a trial: experiment, set when all values are sampled; how it ended; epoch of its best Dice; seconds,
without those of trials that it continues."""

FREE = ("output_dir", "device", "gpus", "workers", "cache", "cache_dir", "wandb", "wandb_project", "notify")
"""Settings that may change in mid-study: none of them changes what a trial reaches."""
FEWEST = 4
"""Finished trials that importances are computed from."""


@dataclass(frozen=True)
class Options:
    """How a study samples and prunes; kept with it."""

    seed: int = 0
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["median", "halving", "none"] = "median"


class _HeldAlready(JournalFileOpenLock):
    """The whole search holds a lock of its own, which the kernel opens when it is killed; Optuna's stays shut."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


@contextmanager
def open_study(space: Space, resume: bool, given: Mapping[str, Any]) -> Iterator[tuple[optuna.Study, Options]]:
    """Begin or go on with a study; no other search can meanwhile.

    Args:
        given: fields of Options and their values; None keeps the study's, or takes the default.

    Raises:
        ConfigProblem: it exists and `resume` is not given, or the other way round, or it was begun with another space.
        FileProblem: another search of it runs.
    """
    journal, options = space.folder / JOURNAL, {k: v for k, v in given.items() if v is not None}
    _check_folder(space, resume)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(space.folder / "search.lock"))
        except BlockingIOError:
            raise FileProblem(f"{space.folder}: a search of this study runs already: wait, or stop it.") from None
        if journal.exists():
            _mend(journal)
        study = optuna.create_study(
            storage=_storage(journal), study_name=space.study, direction="maximize", load_if_exists=True
        )
        _check_space(space, study.user_attrs)
        chosen = Options(**{**study.user_attrs.get("options", {}), **options})
        study.set_user_attr("base", settings.to_record(space.base))
        study.set_user_attr("space", _texts(space))
        study.set_user_attr("options", asdict(chosen))
        study.pruner = _pruner(chosen, space.base)
        yield study, chosen


def read_study(space: Space) -> optuna.Study:
    """A study to look at, also while its search runs.

    Raises:
        FileProblem: there is none.
    """
    journal = space.folder / JOURNAL
    if not journal.exists():
        raise FileProblem(f"{journal} does not exist, so there is nothing to report: leave out --report.")
    try:
        return optuna.load_study(study_name=space.study, storage=_storage(journal))
    except KeyError:
        raise FileProblem(f"{journal} holds no study {space.study}: its search was stopped as it began.") from None


def _storage(journal: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(journal), lock_obj=_HeldAlready(str(journal))))


def _check_folder(space: Space, resume: bool) -> None:
    folder, exists = space.folder, (space.folder / JOURNAL).exists()
    if exists and not resume:
        raise ConfigProblem(f"{folder} is a study already: give --resume to go on with it, or rename {space.study}.")
    if resume and not exists:
        raise ConfigProblem(f"{folder / JOURNAL} does not exist, so there is nothing to resume: leave out --resume.")
    if (folder / "config.json").exists():
        raise ConfigProblem(f"{folder} is an experiment: give the study another name (exp_name in base).")
    if not exists and (left := sorted(folder.parent.glob(f"{space.study}-[0-9][0-9][0-9][0-9]"))):
        raise ConfigProblem(f"{left[0]} is left of another study: move it away, or rename {space.study}.")


def _mend(journal: Path) -> None:
    """Cut off a line that a full disk or a loss of power left half written: Optuna would read nothing behind it."""
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(journal, whole)


def _texts(space: Space) -> dict[str, str]:
    return {name: repr(part) for name, part in space.fields.items()}


def _check_space(space: Space, saved: dict[str, Any]) -> None:
    """Raise ConfigProblem where trials of the study would not be comparable with those to come."""
    if "base" not in saved or "space" not in saved:
        return
    old, _ = settings.from_record(saved["base"], f"{space.folder / JOURNAL}")
    changed = [
        f"{name} is {settings.get(space.base, name)!r}, was {settings.get(old, name)!r}"
        for name in settings.SECTION_OF
        if name not in FREE and settings.get(space.base, name) != settings.get(old, name)
    ]
    new = _texts(space)
    changed += [
        f"space has {new.get(name, 'nothing')} for {name}, had {saved['space'].get(name, 'nothing')}"
        for name in sorted(new.keys() | saved["space"].keys())
        if new.get(name) != saved["space"].get(name)
    ]
    if changed:
        raise ConfigProblem(
            f"study {space.study} was begun otherwise, so its trials can't be compared: {'; '.join(changed)}. Change "
            f"it back, or give the study another name (exp_name in base)."
        )


def _pruner(options: Options, base: Config) -> optuna.pruners.BasePruner:
    early = base.train.epoch // 5
    if options.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=early)
    if options.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=max(early, 1), reduction_factor=3)
    return optuna.pruners.NopPruner()


def new_sampler(options: Options, slot: int) -> optuna.samplers.BaseSampler:
    """The sampler for one experiment, with generators of its own: what is sampled does not depend on interruptions."""
    seed = (options.seed * 1_000_003 + slot) % 2**32
    if options.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # the version is pinned
        # In groups, as fields with `when` are not in every trial.
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)


def slots(trials: Sequence[FrozenTrial]) -> dict[int, int]:
    """Number of each trial -> number of its experiment; `trials` are all of the study, in order."""
    found: dict[int, int] = {}
    fresh = 0
    for trial in trials:
        found[trial.number] = trial.user_attrs.get(SLOT, fresh)
        fresh += SLOT not in trial.user_attrs
    return found


def experiment_name(space: Space, slot: int) -> str:
    """Name of an experiment of the study."""
    return f"{space.study}-{slot:04d}"


def hand_on(study: optuna.Study) -> None:
    """Tell the journal that trials which are running according to it have failed; successors will go on with them.

    The successor comes first: killed in between, nothing is lost and nothing begun twice.
    """
    trials = study.get_trials(deepcopy=False)
    slot, continued = slots(trials), {trial.user_attrs.get(CONTINUES) for trial in trials}
    for trial in trials:
        if trial.state != TrialState.RUNNING:
            continue
        if trial.number not in continued:
            sampled = trial.params if EXPERIMENT in trial.user_attrs else {}  # all of them or, killed in between, anew
            study.enqueue_trial(sampled, user_attrs={CONTINUES: trial.number, SLOT: slot[trial.number]})
        study.tell(trial.number, state=TrialState.FAIL)


def latest(study: optuna.Study) -> dict[int, FrozenTrial]:
    """Number of each experiment -> its newest trial."""
    trials = study.get_trials(deepcopy=False)
    slot = slots(trials)
    return {slot[trial.number]: trial for trial in trials}


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of each field in what makes trials good; PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255).

    Returns:
        Field -> share, largest first; their sum is 1. Nothing for fewer than 4 finished trials, or equal ones.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < FEWEST or len({trial.value for trial in done}) < 2:
        return {}
    return get_param_importances(study)


def report(study: optuna.Study, space: Space, best: int = 10) -> str:
    """Best trials and importances as text; writes trials.csv and importances.csv into the study's folder."""
    found, shares = latest(study), importances(study)
    rows = [_row(space, slot, trial) for slot, trial in sorted(found.items())]
    columns = ["experiment", "state", "dice", EPOCH, SECONDS, *space.fields, OUTCOME]
    tables = space.folder / "trials.csv", space.folder / "importances.csv"
    write_text(tables[0], _csv(columns, [[row.get(c, "") for c in columns] for row in rows]))
    write_text(tables[1], _csv(["field", "importance"], [[name, shown(share)] for name, share in shares.items()]))
    states = [row["state"] for row in rows]
    lines = [f"study {space.study}: " + ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))]
    finished = sorted((row for row in rows if row["state"] == "finished"), key=lambda row: -float(row["dice"]))
    for row in finished[:best]:
        chosen = "  ".join(f"{name} {row[name]}" for name in space.fields if name in row)
        lines.append(f"  {row['experiment']}  Dice {row['dice']} (epoch {row[EPOCH]})  {chosen}")
    if shares:
        lines.append("importance  " + "  ".join(f"{name} {share:.2f}" for name, share in shares.items()))
    else:
        lines.append(f"importance: needs {FEWEST} finished trials that differ")
    if finished:
        path = Path(space.base.run.output_dir) / finished[0]["experiment"] / "config.json"
        lines.append(f"best: run_exp.py --config {path} --exp_name NEW trains the same again")
    lines.append(f"tables: {tables[0]}, {tables[1]}")
    return "\n".join(lines)


def _row(space: Space, slot: int, trial: FrozenTrial) -> dict[str, str]:
    """One experiment: column -> text, without what it has no value for."""
    attributes = trial.user_attrs
    states = {
        TrialState.COMPLETE: "finished",
        TrialState.PRUNED: "pruned" if trial.intermediate_values else "impossible",
        TrialState.FAIL: "failed",
        TrialState.RUNNING: "running",
        TrialState.WAITING: "stopped",
    }
    row = {"experiment": experiment_name(space, slot), "state": states[trial.state]}
    if trial.value is not None:
        row["dice"] = f"{trial.value:.4f}"
    row |= {name: str(attributes[name]) for name in (EPOCH, SECONDS, OUTCOME) if name in attributes}
    values = trial.params or trial.system_attrs.get("fixed_params", {})
    return row | {name: shown(value) for name, value in values.items()}


def shown(value: Any) -> str:
    """A value as text; floats with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _csv(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *rows])
    return text.getvalue()
