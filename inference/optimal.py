"""What gains on labelled images beyond equal weights, 0.5 and no post-processing, and what of it is noise.

Choices are looked at one after the other: members to drop, weights, one threshold, a threshold for each class,
post-processing. Each is fitted without the subjects that it is scored on, on top of the choices used before it as they
were fitted in the same fold; so no subject is ever scored by anything that was fitted on it. A choice is used where its
gain over the simple choice and what it adds to those before it both clear their 95 % intervals, or where it is forced.
That decision itself looks at all subjects: of choices without any gain, up to one in forty clears by luck.

Members and weights are compared at 0.5, before thresholds: where 0.5 is far from the best threshold, they may gain by
shifting the probabilities, which a threshold alone may do better. A threshold far from 0.5 in the table is its sign.

The images are read once for the weights, once more for the thresholds, and once more where there is post-processing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from config import ConfigProblem, suggest
from inference.combined import Source, Together, common_keys, each_image, workers
from inference.cross_fit import CrossFit
from inference.fit_report import Report
from inference.fit_weights import MaskDice, Members, Objective, collect, fit_best, fit_classes, fit_global
from inference.fitted import TOGETHER, Evidence, Fitted, Member
from inference.metrics import count_bits, dice_from_counts
from inference.post_process import Step, apply, low_threshold, parse_steps
from inference.thresholds import HALF, best_global_level, best_levels, probability

METHODS = {"global": fit_global, "class": fit_classes, "best": fit_best}
EQUAL = "equal"
SOFT_DICE, DICE = METRICS = ("soft_dice", "dice")

MEMBERS, WEIGHTS, THRESHOLD, CLASS_THRESHOLDS, POST_PROCESS = CHOICES = (
    "members",
    "weights",
    "threshold",
    "class_thresholds",
    "post_process",
)
"""What may be forced."""

PlanDice = Callable[[int, NDArray[np.int64]], NDArray[np.float64]]
"""Number of a plan, indices of n images -> (n, K)."""


@dataclass(frozen=True)
class Options:
    """How to fit.

    Raises:
        ConfigProblem: an unknown method, metric or choice.
    """

    weight_method: str = "class"
    """equal, global (the same for all classes), class (each class its own) or best (one member for each class)."""
    metric: str = SOFT_DICE
    """What members and weights are fitted to: soft_dice, or dice (of the masks at 0.5, the competition's)."""
    post_process: tuple[tuple[str, ...], ...] = ()
    """Lists of steps to choose from."""
    force: tuple[str, ...] = ()
    """CHOICES to use in any case."""
    n_folds: int = 5
    seed: int = 42

    def __post_init__(self) -> None:
        for what, value, known in (
            ("ensemble_weight_method", self.weight_method, (EQUAL, *METHODS)),
            ("ensemble_optim_metric", self.metric, METRICS),
            *(("a forced choice", choice, CHOICES) for choice in self.force),
        ):
            if value not in known:
                near = suggest(value, known)
                raise ConfigProblem(f"{what} is {value!r}{near}, but must be one of {', '.join(known)}.")


@dataclass(frozen=True)
class Plan:
    """How masks are made."""

    weights: NDArray[np.float64]
    """(M, K), each class's of sum 1."""
    levels: NDArray[np.int64]
    """Thresholds of the classes as levels 1 to 255, (K,)."""
    steps: int = 0
    """Number of the post-processing in the list of candidates, where 0 is none."""

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """As probabilities, (K,)."""
        return np.array([probability(level) for level in self.levels.tolist()])


def optimise(sources: Sequence[Source], options: Options) -> Report:
    """Fit all choices to the stored probabilities of labelled images that the members were not trained on.

    Memory: first the disputed pixels (see `collect`), then the images' curves, 2 kB an image and class, and as much for
    each fold where members or weights are used.

    Raises:
        ConfigProblem: unknown steps, or other folds than the subjects allow.
        FileProblem: no member, stores that don't fit together or are damaged, images without labels, one subject only.
    """
    keys, classes = common_keys(sources), sources[0].store.classes
    candidates = ((), *(parse_steps(steps, classes) for steps in options.post_process))
    cross = CrossFit(keys, options.n_folds, options.seed)
    ladder = _ladder_of_weights(sources, keys, cross, options)
    curves = _all_curves(sources, keys, ladder.plans)
    _offer_thresholds(ladder, curves)
    if options.post_process:
        _offer_steps(ladder, sources, keys, candidates, options)
    evidence = ladder.finish()
    plan = ladder.plans[-1]
    used = {found.name for found in evidence if found.used}
    fitted = Fitted(
        classes,
        tuple(Member(source.name, source.store.members) for source in sources),
        tuple(map(tuple, plan.weights.tolist())) if used & {MEMBERS, WEIGHTS} else None,
        tuple(plan.thresholds.tolist()) if used & {THRESHOLD, CLASS_THRESHOLDS} else None,
        options.post_process[plan.steps - 1] if plan.steps else (),
        evidence,
    )
    return Report(fitted, curves[-1], tuple(plan.levels.tolist()), len(keys), cross.n_subjects, cross.n_folds)


class Ladder:
    """The choices used so far, one on top of the other, in every fold; and the evidence of all."""

    def __init__(self, cross: CrossFit, hard: MaskDice, force: Sequence[str]) -> None:
        _, n_classes, n_members = hard.shape
        simple = Plan(np.full((n_members, n_classes), 1 / n_members), np.full(n_classes, HALF))
        self.cross, self._force = cross, force
        self.plans: tuple[Plan, ...] = (simple,) * (cross.n_folds + 1)
        """Of each fold, fitted on the others; the last is fitted on everything."""
        self._simple = self._dice = cross.held_out(lambda _, images: _mask_dice(hard, simple, images))
        self._evidence: list[Evidence] = []

    def offer(self, name: str, plans: tuple[Plan, ...], dice: PlanDice, detail: str) -> None:
        """Use the choice if it clears its noise or is forced; `dice(plan number, images)` is (n, K)."""
        table = self.cross.held_out(dice)
        found = self._found(name, table, detail)
        self._evidence.append(found)
        if found.used:
            self.plans, self._dice = plans, table

    def show(self, name: str, dice: PlanDice, detail: str) -> None:
        """Evidence of something that is not to be used by itself."""
        found = self._found(name, self.cross.held_out(dice), detail)
        self._evidence.append(replace(found, used=False, forced=False))

    def finish(self) -> tuple[Evidence, ...]:
        """All evidence, with that of what is used together."""
        names = [found.name for found in self._evidence if found.used]
        return *self._evidence, replace(
            self._against(TOGETHER, self._dice, self._simple, ", ".join(names) or "nothing"), used=bool(names)
        )

    def _found(self, name: str, table: NDArray[np.float64], detail: str) -> Evidence:
        found = self._against(name, table, self._dice, detail)
        forced = name in self._force
        return replace(found, used=found.clears or forced, forced=forced)

    def _against(
        self, name: str, table: NDArray[np.float64], before: NDArray[np.float64], detail: str
    ) -> Evidence:
        gain, added = self.cross.gain(table, self._simple), self.cross.gain(table, before)
        return Evidence(
            name,
            detail,
            float(table.mean()),
            float(self._simple.mean()),
            gain.gain,
            gain.low,
            gain.high,
            added.gain,
            added.low,
            added.high,
            clears=gain.clears and added.clears,
            used=False,
            forced=False,
        )


def _ladder_of_weights(
    sources: Sequence[Source], keys: Sequence[str], cross: CrossFit, options: Options
) -> Ladder:
    """With members and weights offered; the pixels that takes are given back with the return."""
    soft, hard = collect(sources, keys)
    objective: Objective = hard if options.metric == DICE else soft
    ladder = Ladder(cross, hard, options.force)
    if len(sources) > 1:
        _offer_members(ladder, objective, hard, sources)
        if options.weight_method != EQUAL:
            _offer_weights(ladder, objective, hard, options)
    return ladder


def _offer_members(ladder: Ladder, objective: Objective, hard: MaskDice, sources: Sequence[Source]) -> None:
    members, n_classes = Members(objective), objective.shape[1]

    def fit(number: int, images: NDArray[np.int64]) -> Plan:
        weights = members.fit(images)
        return replace(ladder.plans[number], weights=np.tile(weights[:, None], n_classes))

    plans = ladder.cross.fit(fit)
    dropped = [source.name for source, weight in zip(sources, plans[-1].weights[:, 0], strict=True) if not weight]
    detail = f"without {', '.join(dropped)}" if dropped else "all"
    ladder.offer(MEMBERS, plans, lambda fold, images: _mask_dice(hard, plans[fold], images), detail)


def _offer_weights(ladder: Ladder, objective: Objective, hard: MaskDice, options: Options) -> None:
    def fit(number: int, images: NDArray[np.int64]) -> Plan:
        plan = ladder.plans[number]
        weights = METHODS[options.weight_method](objective, images, plan.weights[:, 0])
        return replace(plan, weights=weights)

    plans = ladder.cross.fit(fit, workers())
    means = " ".join(f"{weight:.2f}" for weight in plans[-1].weights.mean(1))
    detail = f"{options.weight_method}, by {options.metric}; mean over classes {means}"
    ladder.offer(WEIGHTS, plans, lambda fold, images: _mask_dice(hard, plans[fold], images), detail)


def _offer_thresholds(ladder: Ladder, curves: Sequence[NDArray[np.float64]]) -> None:
    """One threshold, then one for each class; `curves` are those of each plan's weights."""
    n_classes = curves[-1].shape[1]

    def dice(plans: Sequence[Plan], fold: int, images: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(curves[fold][images][:, np.arange(n_classes), plans[fold].levels - 1])

    def fit_one(number: int, images: NDArray[np.int64]) -> Plan:
        return replace(ladder.plans[number], levels=np.full(n_classes, best_global_level(curves[number][images])))

    def fit_each(number: int, images: NDArray[np.int64]) -> Plan:
        return replace(ladder.plans[number], levels=best_levels(curves[number][images]))

    for name, fit in ((THRESHOLD, fit_one), (CLASS_THRESHOLDS, fit_each)):
        plans = ladder.cross.fit(fit)
        low, high = (f"{limit:.3f}" for limit in (plans[-1].thresholds.min(), plans[-1].thresholds.max()))
        ladder.offer(name, plans, partial(dice, plans), low if low == high else f"{low} to {high}")


def _offer_steps(
    ladder: Ladder,
    sources: Sequence[Source],
    keys: Sequence[str],
    candidates: Sequence[tuple[Step, ...]],
    options: Options,
) -> None:
    """Post-processing: of several candidates each by itself first; what is offered is the best of them and none."""
    cross = ladder.cross
    unique, which = _unique(ladder.plans, lambda plan: (plan.weights.tobytes(), plan.levels.tobytes()))
    found = each_image(sources, keys, partial(_dice_of_steps, plans=unique, candidates=candidates), "post-processing")
    table = np.stack(found, axis=2)  # (plans, candidates, images, K)
    names = ("none", *(", ".join(steps) for steps in options.post_process))

    def fit(number: int, images: NDArray[np.int64]) -> Plan:
        means = table[which[number]][:, images].mean((1, 2))
        first = 1 if POST_PROCESS in options.force else 0
        return replace(ladder.plans[number], steps=first + int(means[first:].argmax()))

    def dice(steps: Sequence[int], fold: int, images: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(table[which[fold], steps[fold], images])

    for c in range(1, len(candidates)) if len(candidates) > 2 else ():
        ladder.show(f"{POST_PROCESS} {c}", partial(dice, [c] * cross.n_folds), names[c])
    plans = cross.fit(fit)
    ladder.offer(POST_PROCESS, plans, partial(dice, [plan.steps for plan in plans]), names[plans[-1].steps])


def _mask_dice(hard: MaskDice, plan: Plan, images: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, K) at 0.5."""
    return np.stack([hard.dice(k, plan.weights[:, k], images) for k in range(hard.shape[1])], axis=1)


def _all_curves(
    sources: Sequence[Source], keys: Sequence[str], plans: Sequence[Plan]
) -> tuple[NDArray[np.float64], ...]:
    """Dice at all levels with each plan's weights, (images, K, 255); plans of equal weights share theirs."""
    unique, which = _unique(plans, lambda plan: plan.weights.tobytes())
    weights = [plan.weights for plan in unique]
    found = each_image(sources, keys, lambda image: image.curves(weights), "curves for thresholds")
    curves = np.stack(found, axis=1)
    return tuple(curves[i] for i in which)


def _dice_of_steps(
    image: Together, plans: Sequence[Plan], candidates: Sequence[tuple[Step, ...]]
) -> NDArray[np.float64]:
    """Dice of one image by every plan and post-processing, (plans, candidates, K)."""
    classes, truth = image.parts[0].classes, image.true_bits()
    table = np.empty((len(plans), len(candidates), len(classes)))
    for p, plan in enumerate(plans):
        bits = image.bits(plan.weights, plan.thresholds)
        for c, steps in enumerate(candidates):
            limit = low_threshold(steps)
            low = None if limit is None else image.bits(plan.weights, np.full(len(classes), limit))
            table[p, c] = dice_from_counts(count_bits(apply(bits, classes, steps, low)[0], truth, len(classes)))
    return table


def _unique(plans: Sequence[Plan], key: Callable[[Plan], Hashable]) -> tuple[list[Plan], list[int]]:
    """The plans that differ, and of every plan which of them it is."""
    first: dict[Hashable, int] = {}
    which = [first.setdefault(key(plan), len(first)) for plan in plans]
    return [plans[which.index(i)] for i in range(len(first))], which
