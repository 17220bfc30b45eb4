"""Steps on predicted masks, by name and order, on the runs of packed words; the masks that come in stay as they are.

`min_area=50` removes components of fewer px, `min_area=50,Pisiform=20` has another limit for a class; `largest` keeps
the largest component; `fill_holes`; `open=2` and `close=2` have discs of that radius, px; `hysteresis=0.3` takes the
components of the mask at that lower probability which hold a pixel of the mask; `one_bone` changes nothing and lists
bones that are missing or in several parts; `convex` takes the convex hull; `smooth=3` smooths the outline by a Gaussian
of that standard deviation, px; `area_frac=0.001` is min_area as a share of the image's area; `cut_top=0.1` and
`cut_bottom=0.1` remove the top and bottom tenth of the image's height; `or_largest` takes the largest component of the
mask that came in, where the steps before have left nothing. What each does exactly, at the image's border too, is said
in components.py and outlines.py. Classes don't see each other: overlaps stay.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from config import ConfigProblem, suggest
from engine.files import atomic_path
from engine.rle import WORD_BITS, flat_words, runs_of_bits
from inference.components import (
    Mask,
    Runs,
    as_mask,
    component_areas,
    cut_bottom,
    cut_top,
    fill_holes,
    grow_into,
    join,
    keep_largest,
    remove_small,
    remove_small_share,
)
from inference.outlines import closed, hull, opened, smoothed

FINDINGS_HEADER = ("image_name", "class", "what", "components", "areas")
MOST_AREAS = 20
"""A finding has only so many areas: a mask of noise falls into a million parts."""


class Rule(NamedTuple):
    """What a step takes, and what it does to a mask."""

    example: str
    work: Callable[..., Mask] | None
    """(mask[, value]) -> mask; None for the steps that need more than the mask."""
    lowest: float = 0.0
    highest: float = 0.0
    """Limits of its value; both are 0 where it takes none."""


RULES = {
    "min_area": Rule("min_area=50", remove_small, 0, 1e9),
    "largest": Rule("largest", keep_largest),
    "fill_holes": Rule("fill_holes", fill_holes),
    "open": Rule("open=2", opened, 1, 50),
    "close": Rule("close=2", closed, 1, 50),
    "hysteresis": Rule("hysteresis=0.3", None, 0.001, 0.999),
    "one_bone": Rule("one_bone", None),
    "convex": Rule("convex", hull),
    "smooth": Rule("smooth=3", smoothed, 0.5, 50),
    "area_frac": Rule("area_frac=0.001", remove_small_share, 0, 1),
    "cut_top": Rule("cut_top=0.1", cut_top, 0, 1),
    "cut_bottom": Rule("cut_bottom=0.1", cut_bottom, 0, 1),
    "or_largest": Rule("or_largest", None),
}
"""The steps by name."""

BY_CLASS = ("min_area", "area_frac")
"""Steps whose value may differ from class to class."""

ONCE = ("hysteresis", "one_bone")
"""Steps that may be given once only: there is one low mask and one list of findings."""


@dataclass(frozen=True)
class Step:
    """One step."""

    name: str
    """One of RULES."""
    values: tuple[float, ...] = ()
    """For each class; empty where the step takes no value."""


@dataclass(frozen=True)
class Finding:
    """A class that is not one piece."""

    label: str
    """Name of the class."""
    what: Literal["missing", "split"]
    components: int
    areas: tuple[int, ...]
    """Of the components, px, the largest first; of more than MOST_AREAS only the first."""


def parse_steps(steps: Sequence[str], classes: Sequence[str]) -> tuple[Step, ...]:
    """The steps that the texts name, in their order.

    Raises:
        ConfigProblem: an unknown step or class, a value that is missing, superfluous or out of range, or a second step
            of ONCE.
    """
    parsed = tuple(_parse_step(text, classes) for text in steps)
    names = [step.name for step in parsed]
    for name in ONCE:
        if names.count(name) > 1:
            raise ConfigProblem(f"step {name!r} is given {names.count(name)} times, but must be given once: drop one.")
    return parsed


def low_threshold(steps: Sequence[Step]) -> float | None:
    """The probability above which pixels are in the low mask of the hysteresis step; None where there is no such step.

    It should be below the threshold of the mask itself: where it is not, nothing is added.
    """
    return next((step.values[0] for step in steps if step.name == "hysteresis"), None)


def apply(
    bits: NDArray[np.int32], classes: Sequence[str], steps: Sequence[Step], low: NDArray[np.int32] | None = None
) -> tuple[NDArray[np.int32], tuple[Finding, ...]]:
    """Packed words after all steps, and what `one_bone` found; `bits` stays as it is.

    Args:
        bits: int32 (ceil(K / 32), H, W), K = len(classes).
        low: packed words of the same shape at `low_threshold(steps)`; needed where there is a hysteresis step.

    Returns:
        New words of the same shape, and the findings in the order of the classes.

    Raises:
        ValueError: another dtype or shape, a bit above the last class is set, or the low words are missing.
    """
    if low is not None and low.shape != bits.shape:
        raise ValueError(f"low has shape {low.shape} and bits {bits.shape}, but they must be of one image.")
    runs = runs_of_bits(bits, len(classes))
    low_runs = None if low is None else runs_of_bits(low, len(classes))
    _, height, width = bits.shape
    out = bits.copy()
    words = flat_words(out, len(classes))
    findings: list[Finding] = []
    # Class by class: one mask of noise has 16 MB of runs.
    for k, (new, found) in enumerate(_cleaned(runs, height, width, classes, steps, low_runs)):
        findings += found
        if new is not runs[k]:
            _exchange(words[k // WORD_BITS], runs[k], new, np.uint32(1 << k % WORD_BITS))
    return out, tuple(findings)


def apply_to_runs(
    runs: Sequence[Runs],
    height: int,
    width: int,
    classes: Sequence[str],
    steps: Sequence[Step],
    low: Sequence[Runs] | None = None,
) -> tuple[list[Runs], tuple[Finding, ...]]:
    """As `apply`, from and to the runs of each class, int64 (R, 2) as engine.rle.parse_runs gives them.

    Returns:
        The runs of each class, of which no two touch; the very array that was given where its mask has not changed. And
        the findings.

    Raises:
        ValueError: there is a hysteresis step, and `low` is missing.
    """
    cleaned = list(_cleaned(runs, height, width, classes, steps, low))
    return [new for new, _ in cleaned], tuple(finding for _, found in cleaned for finding in found)


def finding_rows(image_name: str, findings: Iterable[Finding]) -> list[tuple[str, ...]]:
    """Rows under FINDINGS_HEADER; areas are parted by blanks."""
    return [
        (image_name, found.label, found.what, str(found.components), " ".join(map(str, found.areas)))
        for found in findings
    ]


def write_findings(path: Path | str, rows: Iterable[Sequence[str]]) -> None:
    """Write the rows of `finding_rows` as CSV; atomic, and never over an existing file.

    Raises:
        FileProblem: the file exists, or the disk is full.
    """
    with atomic_path(path, overwrite=False) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([FINDINGS_HEADER, *rows])


def describe_findings(rows: Sequence[Sequence[str]]) -> str:
    """One line about the rows of `finding_rows` of all images."""
    if not rows:
        return "no bone is missing or split"
    images = len({image for image, *_ in rows})
    kinds, labels = Counter(row[2] for row in rows), Counter(row[1] for row in rows)
    often = ", ".join(f"{label} ({count})" for label, count in labels.most_common(3))
    return f"bones missing: {kinds['missing']}, split: {kinds['split']}, in {images} images; most often {often}"


def _cleaned(
    runs: Sequence[Runs],
    height: int,
    width: int,
    classes: Sequence[str],
    steps: Sequence[Step],
    low: Sequence[Runs] | None,
) -> Iterator[tuple[Runs, list[Finding]]]:
    """Of each class what `apply_to_runs` returns."""
    if low is None and low_threshold(steps) is not None:
        raise ValueError("The hysteresis step needs the low masks: make them at low_threshold(steps).")
    for k, label in enumerate(classes):
        mask = before = as_mask(runs[k], height, width)
        found: list[Finding] = []
        for step in steps:
            if step.name == "one_bone":
                found = _check(mask, label)
            elif step.name == "hysteresis" and low is not None:
                mask = grow_into(mask, as_mask(low[k], height, width).runs)
            elif step.name == "or_largest":
                mask = mask if len(mask.runs) else keep_largest(before)
            elif work := RULES[step.name].work:
                mask = work(mask, *step.values[k : k + 1])
        same = np.array_equal(mask.runs, before.runs)
        yield runs[k] if same else join(mask.runs, height * width), found  # joined as if all pixels were one row


def _check(mask: Mask, label: str) -> list[Finding]:
    areas = component_areas(mask)
    if len(areas) == 1:
        return []
    largest = tuple(np.sort(areas)[::-1][:MOST_AREAS].tolist())
    return [Finding(label, "split" if largest else "missing", len(areas), largest)]


def _parse_step(text: str, classes: Sequence[str]) -> Step:
    name, equals, value = text.strip().partition("=")
    name = name.casefold()
    if name not in RULES:
        known = ", ".join(rule.example for rule in RULES.values())
        raise ConfigProblem(f"step {text!r} is unknown{suggest(name, RULES)}: there are {known}.")
    rule = RULES[name]
    if not rule.highest:
        if equals:
            raise ConfigProblem(f"step {text!r} takes no value: write {rule.example}.")
        return Step(name)
    common, *own = value.split(",") if name in BY_CLASS else [value]
    values = dict.fromkeys(classes, _number(common, text, rule))
    given: set[str] = set()
    for part in own:
        label, _, number = part.rpartition("=")
        if label not in values:
            raise ConfigProblem(f"step {text!r}: {label or part!r} is none of the classes{suggest(label, classes)}.")
        if label in given:
            raise ConfigProblem(f"step {text!r} names {label} twice: leave out one of them.")
        given.add(label)
        values[label] = _number(number, text, rule)
    return Step(name, tuple(values.values()))


def _number(value: str, text: str, rule: Rule) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not rule.lowest <= number <= rule.highest:  # NaN is out of any range
        raise ConfigProblem(
            f"step {text!r}: {value!r} must be a number from {rule.lowest:g} to {rule.highest:g}, as in {rule.example}."
        )
    return number


@njit(cache=True, nogil=True)
def _exchange(word: NDArray[np.uint32], old: Runs, new: Runs, bit: np.uint32) -> None:
    """Clear `bit` in (P,) words along the old runs and set it along the new ones."""
    for r in range(len(old)):
        for i in range(old[r, 0], old[r, 1]):
            word[i] &= ~bit
    for r in range(len(new)):
        for i in range(new[r, 0], new[r, 1]):
            word[i] |= bit
