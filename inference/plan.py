"""Trained weights and settings -> what is predicted by whom: one network, an experiment's folds, or an ensemble."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from config import BEST, Config, ConfigProblem, EnsembleMember
from dataset.layouts import read_split
from dataset.readers import Record, read_folder
from dataset.selection import select
from dataset.switches import switches_of
from engine import settings
from engine.files import FileProblem
from inference.build import build_predictor, single, thresholds_of
from inference.ensemble import Ensemble, Member
from inference.fitted import read_fitted
from inference.job import JOB_NAME, Identity, Job, Results, working_folder
from inference.part_file import ALL, Part
from inference.pipeline import fill
from inference.settings import PLACES
from model.checkpoint import Trained, check_classes
from model.onnx_file import read_trained

OPTIMAL = "optimal.json"
"""What inference/optimize.py has fitted, in an experiment's folder."""

OF_ALL_MEMBERS = (
    *("stride", "use_gaussian_sliding", "gaussian_sigma", "window_batch", "blend", "resize_to", "full_size"),
    *("mixed_size", "mixed_share", "tta_mode", "tta_scales", "tta_intensities", "n_tta", "tta_unseen"),
)
"""Settings of an ensemble that every member follows where they are given, or differ from the defaults of config.py;
else each member keeps its own."""


@dataclass(frozen=True)
class Network:
    """Trained weights, and the settings that they predict with.

    Raises:
        ConfigProblem: the settings name no style, or one that the training does not allow.
    """

    trained: Trained
    cfg: Config

    def __post_init__(self) -> None:
        single(self.cfg, nn.Identity())  # what is wrong shows before anything is written


@dataclass(frozen=True)
class Voter:
    """A member of an ensemble: one network, or the folds of one experiment, which share its weight."""

    path: str
    networks: tuple[Network, ...]
    weights: tuple[float, ...]
    """Of each class."""

    @property
    def sha256(self) -> tuple[str, ...]:
        """Of its files of weights."""
        return tuple(network.trained.sha256 for network in self.networks)


@dataclass(frozen=True)
class Plan:
    """An inference, but for where its results go.

    Args:
        cfg: of the whole: classes, thresholds, vote, post-processing, what is written.
    """

    cfg: Config
    home: Path
    """The experiment's folder."""
    voters: tuple[Voter, ...]
    records: tuple[Record, ...]
    by_fold: tuple[tuple[Record, ...], ...] = ()
    """Records of each fold where every fold predicts those that it has not seen."""

    @property
    def files(self) -> list[Path]:
        """The files of weights."""
        return [network.trained.path for voter in self.voters for network in voter.networks]

    @property
    def sha256(self) -> list[str]:
        """What the results follow from beside settings and images."""
        weights = json.dumps([voter.weights for voter in self.voters])
        votes = [hashlib.sha256(weights.encode()).hexdigest()] if len(self.voters) > 1 else []
        return [*(sha for voter in self.voters for sha in voter.sha256), *votes]

    @property
    def scale(self) -> str:
        """What the results' probabilities were blended on, for the record."""
        several = sum(len(voter.networks) for voter in self.voters) > 1 and not self.by_fold
        return f"vote {self.cfg.ensemble.vote}" if several else self.cfg.inference.blend

    def identity(self, parts: int = 1) -> Identity:
        """What decides the results, if so many processes share the work."""
        return Identity.of(self.cfg, self.sha256, self.records, parts)

    def ensembles(self, device: str) -> Iterator[tuple[Ensemble, tuple[Record, ...]]]:
        """Who predicts what. Networks are built one ensemble at a time."""
        if self.by_fold:
            (voter,) = self.voters
            for network, records in zip(voter.networks, self.by_fold, strict=True):
                yield self._ensemble([(network, np.ones(len(self.cfg.data.classes)))], device), records
            return
        shares = [
            (network, np.array(voter.weights) / len(voter.networks))
            for voter in self.voters
            for network in voter.networks
        ]
        yield self._ensemble(shares, device), self.records

    def _ensemble(self, shares: Sequence[tuple[Network, NDArray[np.float64]]], device: str) -> Ensemble:
        chosen = self.cfg.ensemble
        members = []
        for network, _ in shares:
            # With the settings as they are now: some networks can't do what any style asks.
            built = dataclasses.replace(network.trained, cfg=network.cfg).network()
            members.append(Member(build_predictor(network.cfg, built), built, network.cfg))
        ensemble = Ensemble(
            members,
            thresholds_of(self.cfg),
            weights=np.stack([weights for _, weights in shares]),
            vote=chosen.vote,
            vote_threshold=chosen.vote_threshold,
        )
        ensemble.to(device)
        return ensemble


def infer(plan: Plan, device: str, folder: Path, part: Part = ALL, *, resume: bool = False) -> Results | None:
    """Predict the images of a part and write what the settings ask for; None where other parts are still missing.

    Args:
        folder: for the results; there whole or not at all, see inference/job.py.
        resume: go on with what an earlier process has left.

    Raises:
        FileProblem: see Job; an image can't be read, memory runs out.
    """
    with Job(folder, plan.records, plan.cfg, plan.sha256, plan.scale, part, resume) as job:
        return fill(job, plan.ensembles(device) if job.todo else (), plan.cfg, device)


def plan_one(trained: Trained, cfg: Config) -> Plan:
    """One network on the images that the settings name."""
    voter = Voter(str(trained.path), (Network(trained, cfg),), (1.0,) * len(cfg.data.classes))
    cfg, _ = _fitted(cfg, trained.path.parent, [voter]) if cfg.inference.use_optimal_threshold else (cfg, None)
    records = images_of(cfg) if cfg.inference.split == "test" else validated_on(_where(trained.cfg, cfg))
    return Plan(cfg, trained.path.parent, (voter,), tuple(records))


def plan_folds(folds: Sequence[Trained], cfg: Config, folder: Path) -> Plan:
    """The folds of an experiment: their mean on new images; on labelled ones, each on those that it has not seen."""
    networks = tuple(Network(fold, cfg) for fold in folds)
    voter = Voter(str(folder), networks, (1.0,) * len(cfg.data.classes))
    if cfg.inference.use_optimal_threshold:
        cfg, _ = _fitted(cfg, folder, [voter])
    if cfg.inference.split == "test":
        return Plan(cfg, folder, (voter,), tuple(images_of(cfg)))
    by_fold = tuple(tuple(validated_on(_where(fold.cfg, cfg))) for fold in folds)
    return Plan(cfg, folder, (voter,), tuple(record for part in by_fold for record in part), by_fold)


def plan_ensemble(cfg: Config, given: Collection[str] = ()) -> Plan:
    """The members that `ensemble_models` names, on the images that the settings name.

    Args:
        given: settings that were asked for, see OF_ALL_MEMBERS.

    Raises:
        ConfigProblem: there are no members, a class has no weight at all, or `split` is val.
        FileProblem: weights that can't be read, or of other classes.
    """
    if not cfg.ensemble.ensemble_models:
        raise ConfigProblem(
            "ensemble_models is empty: give --ensemble_models '[{\"path\": \"checkpoints/A\"}, …]', or @ and the name "
            "of a file with such a list."
        )
    if cfg.inference.split == "val":
        raise ConfigProblem(
            "split val: members may have seen each other's validation images, so an ensemble has no such score. "
            "inference/optimize.py scores ensembles out of fold; or leave out --split."
        )
    voters = tuple(_voter(entry, cfg, given) for entry in cfg.ensemble.ensemble_models)
    if cfg.ensemble.ensemble_use_optimization:
        cfg, weights = _fitted(cfg, cfg.folder, voters)
        if weights is not None:
            voters = tuple(
                dataclasses.replace(voter, weights=tuple(row)) for voter, row in zip(voters, weights, strict=True)
            )
    for k, name in enumerate(cfg.data.classes):
        if not sum(voter.weights[k] for voter in voters) > 0:
            raise ConfigProblem(f"ensemble_models: no member has a weight above 0 for {name}: give one.")
    return Plan(cfg, cfg.folder, voters, tuple(images_of(cfg)))


def read_member(path: str) -> list[Trained]:
    """The networks that an ensemble's `path` means: a file of weights, an experiment's best, or all its folds.

    Raises:
        FileProblem: there are none.
    """
    folder = Path(path)
    if not folder.is_dir():
        return [read_trained(folder)]
    if (folder / BEST).exists():
        return [read_trained(folder / BEST)]
    return read_folds(folder)


def read_folds(folder: Path) -> list[Trained]:
    """The best weights of each fold of an experiment, in the order of the folds.

    Raises:
        FileProblem: there are none.
    """
    found = sorted(folder.glob(f"fold*/{BEST}"), key=lambda path: int(path.parent.name.removeprefix("fold")))
    if not found:
        raise FileProblem(
            f"{folder} holds neither {BEST} nor folds with one (fold0/{BEST}): train it first, or give the path of "
            f"an experiment or of a file of weights."
        )
    return [read_trained(path) for path in found]


def images_of(cfg: Config) -> list[Record]:
    """The images that `input` names, else the test split."""
    if cfg.inference.input:
        return read_folder(Path(cfg.inference.input))
    return read_split(cfg, "test")


def validated_on(cfg: Config) -> list[Record]:
    """The labelled images that a network was validated on.

    Raises:
        FileProblem: it was validated on none.
    """
    records = select(cfg, switches_of(cfg))[1]
    if not records:
        raise FileProblem(f"{cfg.run.exp_name} was trained without validation images (fold none): give --split test.")
    return records


def new_folder(plan: Plan, name: str, parts: int = 1) -> Path:
    """A folder for results: `home/inference/name`, or with -2, -3, … behind it.

    The first that does not exist yet, and is not the working folder of another inference.
    """
    identity, parent, count = plan.identity(parts), plan.home / "inference", 1
    folder = parent / name
    while folder.exists() or _is_of_another(working_folder(folder), identity):
        count += 1
        folder = parent / f"{name}-{count}"
    return folder


def oof_folder(plan: Plan) -> Path:
    """Where the out-of-fold results of these weights with these settings lie."""
    digest = hashlib.sha256(plan.identity().text().encode()).hexdigest()
    return plan.home / "inference" / f"oof-{digest[:8]}"


def _is_of_another(partial: Path, identity: Identity) -> bool:
    job = partial / JOB_NAME
    return job.exists() and bool(Identity.read(job).differences(identity))


def _voter(entry: EnsembleMember, cfg: Config, given: Collection[str]) -> Voter:
    trained = read_member(entry.path)
    for each in trained:
        check_classes(each, cfg.data.classes)
    networks = tuple(Network(each, as_member(each.cfg, cfg, entry, given)) for each in trained)
    weights = tuple(entry.class_weights.get(name, entry.weight) for name in cfg.data.classes)
    return Voter(entry.path, networks, weights)


def as_member(own: Config, shared: Config, entry: EnsembleMember, given: Collection[str]) -> Config:
    """A member's own settings, but for those that its entry or the whole ensemble changes."""
    default = Config()
    asked = {name: settings.get(shared, name) for name in OF_ALL_MEMBERS}
    changed = {name: v for name, v in asked.items() if name in given or v != settings.get(default, name)}
    named = {"inference_file": entry.inference_file, "dataset_file": entry.dataset_file}
    return settings.replace(own, {**changed, **{name: value for name, value in named.items() if value}})


def _where(own: Config, now: Config) -> Config:
    """`own` with the data where they are now."""
    return settings.replace(own, {name: settings.get(now, name) for name in PLACES})


def _fitted(cfg: Config, folder: Path, voters: Sequence[Voter]) -> tuple[Config, list[list[float]] | None]:
    """Settings with what was fitted for these weights, and the fitted weights of the members if there are some.

    Thresholds and steps that the settings name themselves stay.
    """
    fitted = read_fitted(folder / OPTIMAL)
    fitted.check(cfg.data.classes, [voter.sha256 for voter in voters])
    changes: dict[str, object] = {}
    if fitted.thresholds is not None:
        found = dict(zip(cfg.data.classes, fitted.thresholds, strict=True))
        changes["optimal_thresholds"] = found | cfg.inference.optimal_thresholds
    if fitted.post_process and not cfg.inference.post_process:
        changes["post_process"] = fitted.post_process
    weights = None if fitted.weights is None else [list(row) for row in fitted.weights]
    used = [*changes, *(["weights of the members"] if weights else [])]
    print(f"{folder / OPTIMAL}: {', '.join(used) or 'nothing cleared its noise, so nothing is changed'}", flush=True)
    return settings.replace(cfg, changes), weights
