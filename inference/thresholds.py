"""Dice at every threshold at once, from histograms: the best threshold of each class, a table and a plot.

Levels are those of the probability store (inference/probs.py): level j, 1 to 255, is the mask q >= j, which is
p >= (j - 0.5) / 255. Level 128 is p >= 0.5. "Curves" are float64 (images, K, 255), the competition's Dice of each image
and class with level j at index j - 1, for one image or more. Everything here is a pure function of arrays; which images
a threshold may be fitted on is for the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.files import atomic_path
from inference.metrics import dice_from_counts, write_csv
from inference.probs import VALUES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = VALUES - 1
HALF = 128
"""The level of p >= 0.5."""
WITHIN = 0.0005
"""Dice below the best that still counts as good."""

_FROM_HALF = np.argsort(np.abs(np.arange(1, VALUES) - HALF), kind="stable")  # indices of levels, nearest to 0.5 first


def probability(level: int) -> float:
    """The threshold of a level, 1 to 255: its mask is p >= (level - 0.5) / 255."""
    return (level - 0.5) / LEVELS


def level(threshold: float) -> int:
    """The level whose threshold is nearest to a probability; of two, the higher."""
    return min(max(int(threshold * LEVELS + 1.0), 1), LEVELS)


def dice_at_levels(histograms: NDArray[np.int64], true_histograms: NDArray[np.int64]) -> NDArray[np.float64]:
    """The competition's Dice at all levels, float64 (..., 255) with level j at index j - 1.

    Args:
        histograms: int64 (..., 256), pixels of the image that have each q.
        true_histograms: int64 (..., 256), pixels of the label that have each q.
    """
    # Pixels with q >= j are a sum from the end.
    pred = np.cumsum(histograms[..., ::-1], axis=-1)[..., ::-1]
    both = np.cumsum(true_histograms[..., ::-1], axis=-1)[..., ::-1]
    true = np.broadcast_to(both[..., :1], both.shape)
    return dice_from_counts(np.stack([both, pred, true])[..., 1:])


def best_levels(curves: NDArray[np.float64]) -> NDArray[np.int64]:
    """Of each class, the level with the highest mean over images, int64 (K,).

    Of equal levels it is the one nearest to 0.5, and of two such the lower.

    Args:
        curves: float64 (images, K, 255).
    """
    return _best(curves.mean(axis=0))


def best_global_level(curves: NDArray[np.float64]) -> int:
    """The one level with the highest mean over images, then classes; ties as in `best_levels`."""
    return int(_best(curves.mean(axis=0).mean(axis=0)))


class CurveRow(NamedTuple):
    """What the curve of one class says."""

    label: str
    dice_at_half: float
    """At the threshold 0.5."""
    threshold: float
    """The best one."""
    dice: float
    """At the best threshold: fitted on the very images that it is counted on, so it flatters."""
    low: float
    """Of the range around the best threshold where Dice is within 0.0005 of the best."""
    high: float


ALL_CLASSES = "all classes"


def curve_table(classes: Sequence[str], curves: NDArray[np.float64]) -> tuple[CurveRow, ...]:
    """A row for each class, and a last one for one threshold of all classes."""
    means = curves.mean(axis=0)
    return tuple(_row(*named) for named in zip((*classes, ALL_CLASSES), (*means, means.mean(axis=0)), strict=True))


def curve_text(rows: Sequence[CurveRow]) -> str:
    """The table for people."""
    width = max(len(row.label) for row in rows)
    lines = [f"{'class':<{width}}  Dice at 0.5  best threshold    Dice  within {WITHIN:g} of it"]
    lines += [
        f"{r.label:<{width}}  {r.dice_at_half:11.4f}  {r.threshold:14.3f}  {r.dice:.4f}  {r.low:.3f} to {r.high:.3f}"
        for r in rows
    ]
    return "\n".join(lines)


def write_curves_csv(path: Path | str, classes: Sequence[str], curves: NDArray[np.float64]) -> None:
    """Write Dice against threshold, `threshold,<class>,…`, a row a level, mean over images; replaces an older file."""
    rows = [
        (f"{probability(j):.6f}", *(f"{dice:.6f}" for dice in column))
        for j, column in enumerate(curves.mean(axis=0).T, 1)
    ]
    write_csv(path, [("threshold", *classes), *rows])


def plot_curves(path: Path | str, classes: Sequence[str], curves: NDArray[np.float64], chosen: Sequence[int]) -> None:
    """Draw Dice against threshold as PNG, a panel a class and one for their mean; replaces an older file.

    Args:
        path: of the PNG.
        classes: names of the K classes.
        curves: float64 (images, K, 255).
        chosen: level of each class, marked in its panel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_panels = len(classes) + 1
    columns = min(6, n_panels)
    n_rows = -(-n_panels // columns)
    figure = Figure(figsize=(2.7 * columns, 2.1 * n_rows + 0.8), layout="constrained")
    FigureCanvasAgg(figure)  # never a window: servers have none
    panels = figure.subplots(n_rows, columns, sharex=True, squeeze=False).ravel()
    means = curves.mean(axis=0)
    span = _span(means)
    for axes, label, curve, j in zip(panels[: len(classes)], classes, means, chosen, strict=True):
        _draw(axes, label, curve, span)
        axes.axvline(probability(j), color="tab:red", linewidth=1.2)
        axes.set_title(f"{probability(j):.3f}", fontsize=9, loc="right", color="tab:red")
    _draw(panels[len(classes)], ALL_CLASSES, means.mean(axis=0), span)
    for axes in panels[n_panels - columns : n_panels]:  # the lowest of each column, where the last row is not full too
        axes.tick_params(labelbottom=True)
    for axes in panels[n_panels:]:
        axes.remove()
    figure.suptitle(
        f"Dice against threshold, mean of images: {len(curves)}\n"
        f"dashed: 0.5; red: chosen; shaded: within {WITHIN:g} of the best",
        fontsize=10,
    )
    figure.supxlabel("threshold on the probability", fontsize=10)
    figure.supylabel(f"Dice; every panel spans {span:.2g}", fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _draw(axes: Axes, label: str, curve: NDArray[np.float64], span: float) -> None:
    """One panel: it ends at the best Dice and spans `span`, so that slopes compare between panels."""
    low, high = _good_range(curve)
    axes.axvspan(probability(low), probability(high), color="tab:blue", alpha=0.25, linewidth=0)
    axes.axvline(0.5, color="0.4", linestyle="--", linewidth=0.8)
    axes.plot([probability(j) for j in range(1, VALUES)], curve, color="tab:blue", linewidth=1.5)
    axes.set_xlim(0, 1)
    axes.set_ylim(curve.max() - span, curve.max() + 0.08 * span)
    axes.set_title(label, fontsize=9, loc="left")
    axes.tick_params(labelsize=8)


def _span(means: NDArray[np.float64]) -> float:
    """Dice that a panel spans: the fall from the best to the worst between 0.2 and 0.8, of the median class."""
    # Of the median class, as one bad class would flatten all others; the ends, where every curve falls, say nothing.
    middle = means[:, level(0.2) - 1 : level(0.8)]
    return max(float(np.median(np.ptp(middle, axis=1))), 4 * WITHIN)


def _best(means: NDArray[np.float64]) -> NDArray[np.int64]:
    """Best level along the last axis of (..., 255)."""
    return np.asarray(_FROM_HALF[means[..., _FROM_HALF].argmax(axis=-1)] + 1, np.int64)


def _row(label: str, curve: NDArray[np.float64]) -> CurveRow:
    low, high = _good_range(curve)
    best = int(_best(curve))
    return CurveRow(
        label,
        float(curve[HALF - 1]),
        probability(best),
        float(curve[best - 1]),
        probability(low),
        probability(high),
    )


def _good_range(curve: NDArray[np.float64]) -> tuple[int, int]:
    """First and last level of the stretch around the best one where (255,) Dice is within WITHIN of it."""
    best = int(_best(curve)) - 1
    bad = np.flatnonzero(curve < curve[best] - WITHIN)
    after = int(np.searchsorted(bad, best))
    low = bad[after - 1] + 1 if after else 0
    high = bad[after] - 1 if after < len(bad) else LEVELS - 1
    return int(low) + 1, int(high) + 1
