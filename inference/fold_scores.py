"""What each fold of an experiment reaches, and their mean and standard deviation: table, CSV and plot."""

from __future__ import annotations

import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.files import atomic_path
from inference.metrics import DiceTable, write_csv
from inference.scores import CSV_NAMES, DISTANCES

FILES = "fold_scores.csv", "fold_scores.png"


@dataclass(frozen=True)
class FoldScore:
    """One metric in one fold, as the mean over classes; NaN where no image has a value."""

    mean: float
    """Over the fold's images."""
    sd: float
    """Over the fold's images, dividing by their number."""


@dataclass(frozen=True)
class FoldScores:
    """All metrics of all folds."""

    folds: tuple[str, ...]
    images: tuple[int, ...]
    """Of each fold."""
    metrics: Mapping[str, tuple[FoldScore, ...]]
    """dice, then what `metrics` asked for, of each fold. Distances are px of the original image."""

    def over_folds(self, metric: str) -> tuple[float, float]:
        """Mean of the folds' means, and their standard deviation (of a sample: n - 1)."""
        means = [score.mean for score in self.metrics[metric]]
        return statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else math.nan

    def text(self) -> str:
        """For people: a line a fold, then mean and standard deviation over the folds."""
        rows = [("fold", "images", *self.metrics)]
        for k, (fold, images) in enumerate(zip(self.folds, self.images, strict=True)):
            rows.append((fold, str(images), *(_short(name, of[k].mean) for name, of in self.metrics.items())))
        for place, label in enumerate(("mean", "sd")):
            rows.append((label, "", *(_short(name, self.over_folds(name)[place]) for name in self.metrics)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        )

    def write(self, folder: Path) -> None:
        """Write fold_scores.csv (fold,images,dice,…; rows mean and sd last) and .png; replaces older ones."""
        rows: list[tuple[object, ...]] = [("fold", "images", *self.metrics)]
        for k, (fold, images) in enumerate(zip(self.folds, self.images, strict=True)):
            rows.append((fold, images, *(_six(of[k].mean) for of in self.metrics.values())))
        for place, label in enumerate(("mean", "sd")):
            rows.append((label, sum(self.images), *(_six(self.over_folds(name)[place]) for name in self.metrics)))
        write_csv(folder / FILES[0], rows)
        self._plot(folder / FILES[1])

    def _plot(self, path: Path) -> None:
        """A panel a metric: each fold with the spread of its images, over mean and deviation of the folds."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        at = range(len(self.folds))
        figure = Figure(figsize=(1.2 + 2.9 * len(self.metrics), 3.2), layout="constrained")
        FigureCanvasAgg(figure)  # never a window: servers have none
        panels = figure.subplots(1, len(self.metrics), squeeze=False)[0]
        for axes, (name, of) in zip(panels, self.metrics.items(), strict=True):
            mean, sd = self.over_folds(name)
            axes.axhspan(mean - sd, mean + sd, color="tab:blue", alpha=0.2, linewidth=0)
            axes.axhline(mean, color="tab:blue", linewidth=1)
            spread = [score.sd for score in of]
            axes.errorbar(at, [score.mean for score in of], spread, fmt="o", color="black", capsize=3, linewidth=1)
            axes.set_ylim(bottom=max(axes.get_ylim()[0], 0.0))  # no score is negative, whatever its deviation
            axes.set_xticks(at, [fold.removeprefix("fold") for fold in self.folds])
            axes.set_xlabel("fold", fontsize=9)
            unit = ", px" if name in DISTANCES else ""
            axes.set_title(f"{name}{unit}\n{_short(name, mean)} ± {_short(name, sd)}", fontsize=10)
            axes.tick_params(labelsize=8)
        figure.suptitle("line and band: mean ± sd of the folds; whiskers: sd of a fold's images", fontsize=9)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)


def fold_scores(folds: Sequence[Path], tables: Sequence[DiceTable]) -> FoldScores:
    """Collect what the folds' validations have written.

    Args:
        folds: their folders; those metrics count that all of them hold in scores.csv.
        tables: Dice of their images.
    """
    dice = [_over_classes(zip(*table.per_class(), strict=True)) for table in tables]
    further = [_read_scores(fold / CSV_NAMES[0]) for fold in folds]
    shared = [name for name in further[0] if all(name in of for of in further)]
    return FoldScores(
        tuple(fold.name for fold in folds),
        tuple(len(table) for table in tables),
        {"dice": tuple(dice), **{name: tuple(of[name] for of in further) for name in shared}},
    )


def _read_scores(path: Path) -> dict[str, FoldScore]:
    """scores.csv of one fold: metric -> its score; empty where no metrics were asked for."""
    if not path.exists():
        return {}
    classes: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            classes[row["metric"]].append((float(row["mean"] or "nan"), float(row["std"] or "nan")))
    return {name: _over_classes(values) for name, values in classes.items()}


def _over_classes(values: Iterable[tuple[float, float]]) -> FoldScore:
    """Mean and deviation of each class -> their means over the classes that have them."""
    known = [(mean, sd) for mean, sd in values if not math.isnan(mean)]
    if not known:
        return FoldScore(math.nan, math.nan)
    return FoldScore(*(statistics.fmean(map(float, column)) for column in zip(*known, strict=True)))


def _short(metric: str, value: float) -> str:
    return f"{value:.2f}" if metric in DISTANCES else f"{value:.4f}"


def _six(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"
