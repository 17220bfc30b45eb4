"""Everything that is wrong with a submission, before anyone uploads it: all findings, not only the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from config import suggest
from engine.files import FileProblem
from engine.progress import progress
from engine.rle import parse_runs
from inference.csv_masks import MaskSource
from inference.csv_scores import area
from inference.submission import fields_problem, read_rows

FENCE = 3.0
"""Interquartile ranges of the logarithm of the area that a mask may lie beyond the training labels' quartiles: Tukey's
outer fence (Exploratory Data Analysis, 1977). Quartiles don't move with a few bad labels, as the extremes do."""
NEAREST = 2.0
"""Least factor of the area between a quartile and its limit: a few labels of nearly one size say little of others."""

LEAST_STEPS = 100
"""Pairs of neighbouring runs that an image must have before they tell how wide it was."""
STEP_TOLERANCE = 0.05
"""How far such a step may be from the width, as a share; a slanted edge moves it by a few px."""

Shape = tuple[int, int]
"""Height and width of an image, px."""
Severity = Literal["fault", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    severity: Severity
    """The leaderboard refuses or misreads a fault; a warning is worth a look."""
    line: int
    """In the file, 1 is the header; 0 where it concerns no line."""
    image: str
    """Empty where it concerns no image."""
    label: str
    """Class; empty where it concerns no class."""
    detail: str
    """What is wrong, with the values, and what to do."""

    def __str__(self) -> str:
        """Where, and what."""
        where = [f"line {self.line}"] if self.line else []
        where += [f"image {self.image!r}"] if self.image else []
        where += [f"class {self.label!r}"] if self.label else []
        return f"{', '.join(where)}: {self.detail}" if where else self.detail


@dataclass
class Report:
    """What a submission holds, and what is wrong with it."""

    images: int = 0
    rows: int = 0
    """With three fields."""
    empty: int = 0
    """Rows without a mask."""
    runs: int = 0
    findings: list[Finding] = field(default_factory=list)
    """In the order of the file; what is missing comes last."""

    @property
    def faults(self) -> list[Finding]:
        """Without the warnings."""
        return [finding for finding in self.findings if finding.severity == "fault"]

    def add(self, severity: Severity, detail: str, line: int = 0, image: str = "", label: str = "") -> None:
        """Add a finding."""
        self.findings.append(Finding(severity, line, image, label, detail))


@dataclass(frozen=True)
class Rules:
    """What is expected of a submission."""

    classes: tuple[str, ...]
    """In order."""
    names: tuple[str, ...] | None = None
    """Images in order; None accepts any."""
    sizes: Mapping[str, Shape] | Shape | None = None
    """Of each image, or of all; None where they are unknown, and runs may end anywhere."""
    areas: Mapping[str, tuple[float, float]] | None = None
    """Class -> least and largest area that is usual, px."""

    @cached_property
    def expected(self) -> frozenset[str]:
        """The names, to look them up."""
        return frozenset(self.names or ())

    def shape(self, name: str) -> Shape | None:
        """Of an image, where it is known."""
        return self.sizes.get(name) if isinstance(self.sizes, Mapping) else self.sizes


@dataclass
class Seen:
    """What was seen of an image so far."""

    line: int
    """Of its first row."""
    blocks: int = 0
    """Stretches of rows that follow each other; should be 1."""
    labels: Sequence[str] = ()
    """Known classes in the order of their rows."""


def check_submission(path: Path | str, rules: Rules) -> Report:
    """Check that a submission is complete, in order, and that all its runs are sorted, disjoint and inside the image.

    Faults: rows without three fields; images that come again, are unknown, missing or out of order; classes that are
    unknown, repeated, missing or out of order; runs that `parse_runs` refuses. Warnings: empty masks, areas outside of
    `rules.areas`, runs whose steps are those of another width. One image is in memory at a time.

    Raises:
        FileProblem: a file that cannot be read, or with another header: nothing in it can be checked.
    """
    report, images = Report(), dict[str, Seen]()
    try:
        for name, group in groupby(_rows(Path(path), report), lambda row: row.image):
            rows = list(group)
            image = images.setdefault(name, Seen(rows[0].line))
            _check_place(name, rows[0].line, image, rules, report)
            _check_labels(rows, image, rules, report)
            _check_masks(rows, rules, report)
    except FileProblem as problem:
        if not report.rows:
            raise
        report.add("fault", f"{problem} What comes behind it was not checked.")
    else:
        _check_complete(images, rules, report)
    report.images = len(images)
    # Of one line those of the whole image come first.
    report.findings.sort(key=lambda finding: (finding.line == 0, finding.line, finding.label != ""))
    return report


def usual_areas(source: MaskSource) -> dict[str, tuple[float, float]]:
    """Class -> least and largest usual area, px: what `Rules.areas` takes; masks must be of images of one size.

    The limits lie FENCE interquartile ranges of the logarithm beyond the quartiles of the areas in `source`, and at
    least a factor of NEAREST. Empty masks don't count; a class with none but empty ones has no limits.

    Raises:
        FileProblem: masks that can't be read.
    """
    names = progress(source.names, "areas", len(source.names), "labels")
    table = np.array([[area(runs) for runs in source.runs(name)] for name in names], np.float64)
    limits: dict[str, tuple[float, float]] = {}
    for label, column in zip(source.classes, table.T, strict=True):
        if shown := column[column > 0].tolist():
            low, high = np.percentile(np.log(shown), (25, 75))
            margin = max(FENCE * (high - low), np.log(NEAREST))
            limits[label] = float(np.exp(low - margin)), float(np.exp(high + margin))
    return limits


@dataclass(frozen=True)
class Row:
    """A row of the CSV."""

    line: int
    image: str
    label: str
    rle: str


def _rows(path: Path, report: Report) -> Iterator[Row]:
    """The rows that have three fields; the others become faults."""
    for place, fields in read_rows(path):
        if len(fields) != 3:
            report.add("fault", fields_problem(fields), place.line)
            continue
        report.rows += 1
        yield Row(place.line, *fields)


def _check_place(name: str, line: int, image: Seen, rules: Rules, report: Report) -> None:
    """Whether an image belongs here; of one that begins again and again the second time is told."""
    image.blocks += 1
    if image.blocks == 2:
        report.add("fault", f"begins again, but its rows must follow those of line {image.line}.", line, name)
    elif image.blocks == 1 and rules.names is not None and name not in rules.expected:
        report.add("fault", "is not an expected image: leave it out or correct its name.", line, name)


def _check_labels(rows: Sequence[Row], image: Seen, rules: Rules, report: Report) -> None:
    labels = list(image.labels)
    for row in rows:
        if row.label not in rules.classes:
            near = suggest(row.label, rules.classes)
            report.add("fault", f"is no class{near}: correct it or set --classes.", row.line, row.image, row.label)
        elif row.label in labels:
            report.add("fault", "is there again, but must be there once: drop a row.", row.line, row.image, row.label)
        else:
            labels.append(row.label)
    # Shared where nothing is wrong, so that memory does not grow by the classes of all images.
    image.labels = rules.classes if tuple(labels) == rules.classes else labels


def _check_masks(rows: Sequence[Row], rules: Rules, report: Report) -> None:
    """The runs of an image."""
    name, shape = rows[0].image, rules.shape(rows[0].image)
    found: dict[str, NDArray[np.int64]] = {}
    for row in rows:
        try:
            runs = parse_runs(row.rle, shape[0] * shape[1] if shape else None)
        except ValueError as error:
            report.add("fault", str(error), row.line, name, row.label)
            continue
        found[row.label] = runs
        report.runs += len(runs)
        report.empty += len(runs) == 0
        _check_area(row, area(runs), rules, report)
    if shape and (width := _other_width(list(found.values()), shape[1])):
        detail = f"its runs repeat every {width} px, but it is {shape[1]} wide: were its masks of another size?"
        report.add("warning", detail, rows[0].line, name)


def _check_area(row: Row, pixels: int, rules: Rules, report: Report) -> None:
    if not pixels:
        report.add("warning", "its mask is empty.", row.line, row.image, row.label)
        return
    low, high = (rules.areas or {}).get(row.label, (0.0, np.inf))
    if not low <= pixels <= high:
        detail = f"its mask has {pixels} px, but {low:.0f} to {high:.0f} are usual by the training labels."
        report.add("warning", detail, row.line, row.image, row.label)


def _other_width(runs: Sequence[NDArray[np.int64]], width: int) -> int:
    """The width of the image that runs were written for, if that is clearly not `width`; else 0.

    A bone has about one run in each row, so most runs begin one image width after the one before.
    """
    steps = np.concatenate([np.diff(one[:, 0]) for one in runs] or [np.empty(0, np.int64)])
    if len(steps) < LEAST_STEPS:
        return 0
    step = int(np.median(steps))
    clear = (np.abs(steps - step) <= STEP_TOLERANCE * step).mean() >= 0.5
    return step if clear and abs(step - width) > STEP_TOLERANCE * width else 0


def _check_complete(images: Mapping[str, Seen], rules: Rules, report: Report) -> None:
    if not images:
        report.add("fault", "there are no images, only a header: write the CSV again.")
    for name, image in images.items():
        if lacking := [label for label in rules.classes if label not in image.labels]:
            report.add("fault", f"has no row of {', '.join(lacking)}: an empty mask needs one too.", image.line, name)
        if label := _first_moved(image.labels, rules.classes):
            report.add("fault", "comes too early: the classes must be in order.", image.line, name, label)
    if rules.names is None:
        return
    if moved := _first_moved(list(images), rules.names):
        detail = "comes too early: write the CSV in the order of the list of images that it is for."
        report.add("fault", detail, images[moved].line, moved)
    for name in rules.names:
        if name not in images:
            report.add("fault", "is missing: predict it too.", image=name)


def _first_moved(found: Sequence[str], order: Sequence[str]) -> str:
    """The first name that is not in its place among those found of `order`; "" where all are."""
    known, there = set(order), set(found)
    pairs = zip((name for name in found if name in known), (name for name in order if name in there), strict=True)
    return next((name for name, expected in pairs if name != expected), "")
