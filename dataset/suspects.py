"""Labels that are probably wrong: bones of an odd size or in an odd place, labels of the other hand.

A size or place is compared with those in the other images, in units of what 95 % of them stay within: phantoms and
hands have long tails, which a standard deviation does not describe. Where labels show four classes or more, a place is
where the class lies among the others: the distances to its steadiest partners, free of the hand's size, turn and side.
A class is judged by three quarters of its partners, so one that was moved does not make its partners suspicious.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataset.findings import side_drawn
from dataset.statistics import Statistics, Table

Values = NDArray[np.float64]

USUAL = 0.95
"""Share of the images whose deviation is the unit of all others'."""
FEWEST = 10
"""Labels that show a class, below which nothing is said about it."""
PARTNERS = 8
"""Of a class, those to which its distance is steadiest."""
AGREEING = 0.75
"""Share of the partners whose distances are wrong by no more than is said of a class: of eight, two may be in the wrong
place themselves. (Half would be blind to a fingertip that moved sideways, around most of its partners.)"""
LEAST_PARTNERS = 3
"""With fewer classes than this and one, a place is one in the image."""
LEAST_UNIT = 0.02
"""Smallest unit, share of a length: masks of a few pixels are no more exact."""
LIMIT = 2.5
"""Units from which on a size or place is suspicious: see docs/eda.md for how many clean labels lie beyond."""


@dataclass(frozen=True)
class Suspect:
    """Something that a person should look at."""

    kind: str
    image: str
    """Path below the data set; empty where it is about no image that can be read."""
    label: str
    """Class; empty where it is about the whole image."""
    detail: str
    score: float | None
    """Deviation in units of what 95 % of the images stay within; None where it is no matter of degree."""
    severity: str = "warning"
    """error where dataset/check.py calls it one."""


@dataclass(frozen=True)
class Deviations:
    """(N, K) each; NaN where a class is not shown or not judged."""

    size: Values
    """Units, see Suspect.score."""
    ratio: Values
    """Area as a multiple of the usual one for an image like this."""
    place: Values
    """Units."""
    off: Values
    """Of the place: how far the distances to the partners are wrong, as a share of them; of few classes how far the
    centre is from its usual place, share of the image's side."""


def deviations(table: Table) -> Deviations:
    """How far sizes and places of all classes are from the usual."""
    with np.errstate(divide="ignore", invalid="ignore"):
        areas = np.log(np.where(table.areas > 0, table.areas, np.nan).astype(np.float64))
        if areas.shape[1] > LEAST_PARTNERS:
            scale, off, place = _among_the_others(np.asarray(table.centres * table.shapes[:, None], np.float64))
            areas = np.log(np.where(table.pixels > 0, table.pixels, np.nan)) - 2 * scale[:, None]
        else:
            off, place = _in_the_image(table.centres.astype(np.float64))
    areas = areas - _median(areas)
    return Deviations(np.abs(areas) / _unit(areas), np.exp(areas), place, off)


def _in_the_image(centres: Values) -> tuple[Values, Values]:
    """`off` and `place` of centres in shares of the image."""
    off = np.hypot(*np.moveaxis(centres - _median(centres), -1, 0))
    return off, off / _unit(off)


def _among_the_others(centres: Values) -> tuple[Values, Values, Values]:
    """Log of each image's scale (N,), `off` and `place` from the distances between the centres, px.

    The scale of an image is the median, over all pairs of classes, of a distance as a multiple of its usual one.
    """
    n, k, _ = centres.shape
    usual = np.stack([_median(_distances(centres, i)) for i in range(k)])
    scale = np.array([_median(np.concatenate([_distances(one[None], i)[0] - usual[i] for i in range(k)]))
                      for one in centres])  # fmt: skip
    off, place = np.full((n, k), np.nan), np.full((n, k), np.nan)
    for i in range(k):
        wrong = _distances(centres, i) - usual[i] - scale[:, None]
        unit = _unit(wrong)
        partners = np.argsort(np.where(np.isnan(unit), np.inf, unit))[:PARTNERS]
        partners = partners[~np.isnan(unit[partners])]
        if len(partners) >= LEAST_PARTNERS:
            wrong = np.abs(wrong[:, partners])
            off[:, i] = np.exp(_quantile(wrong, AGREEING, 1)) - 1
            place[:, i] = _quantile(wrong / unit[partners], AGREEING, 1)
    return scale, off, place


def _distances(centres: Values, i: int) -> Values:
    """(N, K) log of the distances of class i to all; NaN to itself and where one of the two is not shown."""
    with np.errstate(divide="ignore"):
        log = np.log(np.hypot(*np.moveaxis(centres - centres[:, i : i + 1], -1, 0)))
    log[:, i] = np.nan
    return np.asarray(log)


def _quantile(values: Values, share: float, axis: int = 0) -> Values:
    """Along an axis, of what is finite, the lower where it lies between two; NaN where nothing is finite."""
    if not values.shape[axis]:
        return np.full(np.delete(values.shape, axis), np.nan)
    known = np.where(np.isfinite(values), values, np.nan)
    some = ~np.isnan(known).all(axis)
    known = np.where(np.expand_dims(some, axis), known, 0.0)  # NumPy warns of columns without any
    return np.asarray(np.where(some, np.nanquantile(known, share, axis, method="lower"), np.nan))


def _median(values: Values) -> Values:
    return _quantile(values, 0.5)


def _unit(values: Values) -> Values:
    """What USUAL of the images stay within, of each column; NaN where fewer than FEWEST have a value."""
    # The lower quantile: of few images, the one that is wrong must not be the measure.
    enough = np.isfinite(values).sum(0) >= FEWEST
    return np.where(enough, np.maximum(_quantile(np.abs(values), USUAL), LEAST_UNIT), np.nan)


def odd_classes(table: Table, classes: Sequence[str], found: Deviations, limit: float = LIMIT) -> list[Suspect]:
    """Classes beyond the limit, the farthest first."""
    suspects = []
    for kind, scores in (("odd size", found.size), ("odd place", found.place)):
        for n, k in zip(*np.nonzero(scores > limit), strict=True):
            if kind == "odd size":
                detail = f"{table.pixels[n, k]} px, {found.ratio[n, k]:.2f} times what is usual in such an image"
            elif len(classes) > LEAST_PARTNERS:
                detail = f"distances to its steadiest partners differ by {100 * found.off[n, k]:.0f} %"
            else:
                detail = f"{100 * found.off[n, k]:.0f} % of the image from where it usually lies"
            suspects.append(Suspect(kind, table.items[n].path, classes[k], detail, float(scores[n, k])))
    return sorted(suspects, key=lambda one: -(one.score or 0))


def odd_sides(statistics: Statistics, table: Table) -> list[Suspect]:
    """Images whose label is of the other hand than their picture."""
    suspects = []
    for item, centres, (height, width) in zip(table.items, table.centres, table.shapes, strict=True):
        seen = statistics.sides.get(item.path, "")
        shown = {
            name: [np.array([[x * width, y * height]])]
            for name, (y, x) in zip(statistics.classes, centres, strict=True)
            if np.isfinite(x)
        }
        drawn = side_drawn(shown)
        if seen and drawn and seen != drawn:
            detail = f"the picture shows a hand {seen}, its label one {drawn}: is it swapped or mirrored?"
            suspects.append(Suspect("other hand", item.path, "", detail, None))
    return suspects
