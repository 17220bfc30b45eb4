"""Outlines of the 29 bones of a hand in their own frames, built from the measures of anatomy.csv.

The frame of the plate ("plate frame") is that of a right hand seen from its back, as a PA radiograph shows it: u to the
right (the thumb is at the left, at negative u), v towards the finger tips, millimetres, origin at the base of the third
metacarpal. A left hand is the mirror image.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

Floats = NDArray[np.float64]

STATIONS = np.linspace(0.04, 0.96, 7)
"""Where anatomy.csv measured width, depth and bow, as a share of the long axis from its proximal end."""

PROFILE = np.linspace(0.0, 1.0, 49)
"""Where a bone's profile is kept, as a share of its long axis."""

FINGERS: tuple[tuple[str, ...], ...] = (
    ("finger-3", "finger-2", "finger-1"),
    ("finger-7", "finger-6", "finger-5", "finger-4"),
    ("finger-11", "finger-10", "finger-9", "finger-8"),
    ("finger-15", "finger-14", "finger-13", "finger-12"),
    ("finger-19", "finger-18", "finger-17", "finger-16"),
)
"""Chains of bones from the metacarpal to the tip, thumb first."""


@dataclass(frozen=True)
class Measures:
    """One row of anatomy.csv: an adult right hand, millimetres (x to the thumb, y distal, z towards the palm)."""

    proximal: Floats
    distal: Floats
    width: Floats
    depth: Floats
    bow: Floats

    @property
    def length(self) -> float:
        return float(np.linalg.norm(self.distal - self.proximal))


@cache
def anatomy() -> dict[str, Measures]:
    """The rows of anatomy.csv by class name."""
    with open(Path(__file__).with_name("anatomy.csv"), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    def numbers(row: dict[str, str], *names: str) -> Floats:
        return np.array([float(row[name]) for name in names])

    return {
        row["class"]: Measures(
            numbers(row, "prox_x", "prox_y", "prox_z"),
            numbers(row, "dist_x", "dist_y", "dist_z"),
            numbers(row, *(f"width_{i}" for i in range(7))),
            numbers(row, *(f"depth_{i}" for i in range(7))),
            numbers(row, *(f"bow_{i}" for i in range(7))),
        )
        for row in rows
    }


@dataclass(frozen=True)
class Ridge:
    """A line of denser bone that is seen within a silhouette: a joint surface or a bone's corner seen from its side."""

    across: float
    """Its middle, half widths from the axis."""
    at: float
    """Its middle, share of the axis."""
    degrees: float
    """Direction: 0 runs across the bone, 90 along it."""
    half_width: float
    """Half its length in half widths of the bone."""
    sigma_mm: float
    """Half its thickness."""
    mm: float
    """Dense bone that it adds."""
    bow_mm: float = 0.0
    """How far it is bent towards its own left where it is half a width from its middle."""


@dataclass(frozen=True)
class LongForm:
    """What seven stations cannot tell of a long bone's silhouette and its inside.

    `flare` multiplies the width at shares of the axis. `base` and `head` are the ends' surfaces: (h, mm) pairs, h
    across the bone in half widths (-1 at the thumb's side), mm beyond the end of the axis (negative: inside). `cortex`
    is the thickness of the dense shell in mm at shares of the axis; `spongy` is the density of the inside as a share of
    the shell's, at shares of the axis. All values were set by eye, looking at a real radiograph; they have no other
    source.
    """

    flare: tuple[tuple[float, float], ...]
    base: tuple[tuple[float, float], ...]
    head: tuple[tuple[float, float], ...]
    cortex: tuple[tuple[float, float], ...]
    spongy: tuple[tuple[float, float], ...]
    round: tuple[tuple[float, float], ...]
    """At shares of the axis: how far from the edge the full depth is reached, in half widths (1: an elliptic section).
    Low at the ends: an articular surface is seen from its side, as a bright line."""
    physis: float
    """Where growth cartilage lies, share of the axis."""
    ridges: tuple[Ridge, ...] = ()
    head_from: float = 0.92
    """Where the head's surface begins; the widths measured beyond are those of single corners."""
    shaft_mm: float = 0.0
    """Shaft added before the proximal end: the forearm leaves the picture."""


DISTAL = LongForm(
    flare=((0.0, 1.3), (0.06, 1.42), (0.13, 1.22), (0.25, 1.02), (0.4, 1.05), (0.52, 1.08), (0.63, 1.04), (0.72, 1.06),
           (0.82, 1.14), (0.92, 1.18), (1.0, 1.05)),
    base=((-1.0, -1.4), (-0.88, -0.3), (-0.45, 0.0), (0.0, -0.3), (0.45, 0.0), (0.88, -0.3), (1.0, -1.4)),
    head=((-1.0, -2.2), (-0.8, -0.8), (-0.3, 0.0), (0.3, 0.0), (0.8, -0.8), (1.0, -2.2)),
    cortex=((0.0, 0.25), (0.2, 0.6), (0.5, 1.1), (0.7, 0.8), (0.85, 0.3), (1.0, 0.25)),
    spongy=((0.0, 0.36), (0.25, 0.28), (0.5, 0.2), (0.7, 0.24), (0.85, 0.26), (1.0, 0.22)),
    round=((0.0, 0.6), (0.08, 0.6), (0.2, 1.0), (0.7, 1.0), (1.0, 0.8)),
    physis=0.16,
    ridges=(Ridge(0.0, 0.045, 0.0, 0.8, 0.4, 1.3), Ridge(0.0, 0.9, 0.0, 0.7, 0.5, 0.4, -1.0)),
)  # fmt: skip
MIDDLE = LongForm(
    flare=((0.0, 1.1), (0.07, 1.2), (0.2, 1.04), (0.5, 0.95), (0.7, 0.95), (0.85, 1.08), (0.93, 1.16), (1.0, 1.08)),
    base=((-1.0, -2.0), (-0.9, -0.5), (-0.6, -0.1), (0.0, 0.2), (0.6, -0.1), (0.9, -0.5), (1.0, -2.0)),
    head=((-1.0, -2.4), (-0.88, -0.8), (-0.55, 0.0), (0.0, -0.3), (0.55, 0.0), (0.88, -0.8), (1.0, -2.4)),
    cortex=((0.0, 0.25), (0.12, 0.35), (0.4, 1.3), (0.65, 1.6), (0.85, 0.55), (0.92, 0.25), (1.0, 0.2)),
    spongy=((0.0, 0.36), (0.2, 0.27), (0.45, 0.16), (0.65, 0.14), (0.82, 0.26), (1.0, 0.32)),
    round=((0.0, 0.5), (0.06, 0.55), (0.16, 1.0), (0.85, 1.0), (1.0, 0.6)),
    physis=0.12,
    ridges=(Ridge(0.0, 0.05, 0.0, 0.85, 0.42, 1.6), Ridge(-0.4, 0.93, 0.0, 0.4, 0.5, 0.7, 0.6),
            Ridge(0.4, 0.93, 0.0, 0.4, 0.5, 0.7, 0.6)),
)  # fmt: skip
PROXIMAL = LongForm(
    flare=((0.0, 1.06), (0.06, 1.13), (0.17, 1.02), (0.5, 0.93), (0.75, 0.92), (0.88, 1.06), (0.94, 1.14), (1.0, 1.06)),
    base=((-1.0, -3.0), (-0.95, -1.2), (-0.82, -0.2), (-0.68, 0.0), (-0.4, -0.7), (0.0, -1.1), (0.4, -0.7), (0.68, 0.0),
          (0.82, -0.2), (0.95, -1.2), (1.0, -3.0)),
    head=((-1.0, -2.6), (-0.9, -0.9), (-0.55, 0.0), (0.0, -0.5), (0.55, 0.0), (0.9, -0.9), (1.0, -2.6)),
    cortex=((0.0, 0.25), (0.1, 0.35), (0.35, 1.5), (0.6, 2.0), (0.82, 1.0), (0.92, 0.3), (1.0, 0.2)),
    spongy=((0.0, 0.3), (0.15, 0.25), (0.35, 0.17), (0.6, 0.13), (0.82, 0.24), (0.92, 0.3), (1.0, 0.28)),
    round=((0.0, 0.5), (0.05, 0.6), (0.12, 1.0), (0.88, 1.0), (1.0, 0.6)),
    physis=0.1,
    ridges=(Ridge(0.0, 0.075, 0.0, 0.8, 0.5, 2.6, -1.6), Ridge(-0.42, 0.95, 0.0, 0.4, 0.55, 0.8, 0.7),
            Ridge(0.42, 0.95, 0.0, 0.4, 0.55, 0.8, 0.7), Ridge(-0.6, 0.9, 70.0, 0.4, 0.4, 0.7),
            Ridge(0.6, 0.9, 110.0, 0.4, 0.4, 0.7)),
)  # fmt: skip
METACARPAL = LongForm(
    flare=((0.0, 1.16), (0.05, 1.25), (0.12, 1.1), (0.2, 0.88), (0.28, 0.86), (0.4, 0.92), (0.5, 0.94), (0.62, 0.88),
           (0.72, 0.86), (0.8, 1.02), (0.86, 1.22), (0.93, 1.26), (1.0, 1.04)),
    base=((-1.0, -2.4), (-0.92, -0.8), (-0.6, 0.2), (-0.1, -0.8), (0.4, -0.2), (0.9, -1.0), (1.0, -2.6)),
    head=((-1.0, -6.0), (-0.94, -3.4), (-0.75, -1.5), (-0.4, -0.3), (0.0, 0.0), (0.4, -0.3), (0.75, -1.5),
          (0.94, -3.4), (1.0, -6.0)),
    cortex=((0.0, 0.25), (0.1, 0.4), (0.22, 1.3), (0.5, 2.3), (0.66, 1.8), (0.78, 0.8), (0.86, 0.25), (1.0, 0.15)),
    spongy=((0.0, 0.26), (0.15, 0.23), (0.3, 0.14), (0.55, 0.1), (0.75, 0.16), (0.88, 0.24), (1.0, 0.24)),
    round=((0.0, 0.6), (0.04, 0.7), (0.12, 1.0), (0.85, 1.0), (1.0, 0.9)),
    physis=0.85,
    ridges=(Ridge(-0.58, 0.84, 70.0, 0.45, 0.45, 1.3), Ridge(0.52, 0.85, 100.0, 0.45, 0.45, 1.1),
            Ridge(0.0, 0.025, 0.0, 0.7, 0.5, 1.2), Ridge(0.0, 0.12, 0.0, 0.5, 0.5, 0.4, 1.0)),
    head_from=0.9,
)  # fmt: skip
THUMB = replace(METACARPAL, physis=0.14)
RADIUS = LongForm(
    flare=((0.0, 1.0), (0.5, 0.95), (0.65, 0.92), (0.8, 0.98), (0.9, 0.97), (1.0, 0.94)),
    base=((-1.0, 0.0), (1.0, 0.0)),
    head=((-1.0, -9.0), (-0.98, -4.6), (-0.93, -1.9), (-0.84, -0.4), (-0.72, -0.2), (-0.55, -1.3), (-0.3, -3.3),
          (0.0, -5.2), (0.4, -6.8), (0.8, -7.4), (0.94, -8.4), (1.0, -13.0)),
    cortex=((0.0, 3.0), (0.4, 2.6), (0.6, 1.7), (0.8, 0.6), (0.9, 0.35), (1.0, 0.3)),
    spongy=((0.0, 0.08), (0.4, 0.1), (0.6, 0.15), (0.8, 0.17), (1.0, 0.19)),
    round=((0.0, 1.0), (0.6, 1.0), (0.82, 0.7), (0.9, 0.5), (1.0, 0.4)),
    physis=0.83,
    ridges=(Ridge(0.12, 0.895, -13.0, 0.85, 1.0, 3.0, -1.2), Ridge(0.84, 0.86, 85.0, 0.2, 0.5, 2.0),
            Ridge(0.1, 0.855, -6.0, 0.6, 0.9, 1.0, 0.8)),
    head_from=0.82,
    shaft_mm=350.0,
)  # fmt: skip
ULNA = LongForm(
    flare=((0.0, 0.95), (0.6, 0.92), (0.75, 0.95), (0.88, 1.0), (1.0, 1.0)),
    base=((-1.0, 0.0), (1.0, 0.0)),
    head=((-1.0, -9.0), (-0.95, -6.0), (-0.8, -4.5), (-0.2, -4.0), (0.25, -4.8), (0.42, -5.2), (0.5, -4.4),
          (0.56, -2.4), (0.64, -0.5), (0.74, 0.0), (0.86, -0.4), (0.95, -2.6), (1.0, -8.0)),
    cortex=((0.0, 2.7), (0.5, 2.3), (0.7, 1.4), (0.85, 0.5), (1.0, 0.3)),
    spongy=((0.0, 0.08), (0.5, 0.12), (0.7, 0.19), (0.85, 0.24), (1.0, 0.26)),
    round=((0.0, 1.0), (0.75, 1.0), (0.9, 0.7), (1.0, 0.6)),
    physis=0.86,
    ridges=(Ridge(-0.2, 0.935, -4.0, 0.7, 0.6, 1.4), Ridge(0.5, 0.9, 85.0, 0.35, 0.45, 1.3)),
    shaft_mm=350.0,
)  # fmt: skip

FORMS: dict[str, LongForm] = {
    **{chain[-1]: DISTAL for chain in FINGERS},
    **{chain[-2]: MIDDLE if len(chain) == 4 else PROXIMAL for chain in FINGERS},
    **{chain[1]: PROXIMAL for chain in FINGERS},
    **{chain[0]: METACARPAL if len(chain) == 4 else THUMB for chain in FINGERS},
    "Radius": RADIUS,
    "Ulna": ULNA,
}

CARPALS: dict[str, tuple[tuple[float, float], ...]] = {
    "Trapezium": ((-30.6, -7.0), (-28.0, -2.6), (-24.0, 0.6), (-20.5, 2.2), (-17.4, 0.8), (-16.0, -3.0), (-16.2, -8.4),
                  (-19.5, -12.0), (-23.0, -14.6), (-27.4, -14.0), (-30.2, -11.4)),
    "Trapezoid": ((-20.0, -4.4), (-17.8, -1.6), (-13.8, -0.8), (-9.8, -2.0), (-7.6, -4.6), (-8.0, -8.4), (-11.6, -9.9),
                  (-16.0, -10.4), (-19.4, -10.6), (-20.8, -7.4)),
    "Capitate": ((-6.6, -2.6), (-4.8, -1.2), (-1.0, -1.4), (3.0, -0.8), (6.4, -1.4), (7.0, -4.4), (6.6, -9.0),
                 (7.2, -14.0), (6.9, -19.0), (4.8, -22.8), (0.8, -24.4), (-3.4, -23.4), (-6.1, -19.4), (-5.9, -13.5),
                 (-6.9, -9.5), (-7.2, -5.6)),
    "Hamate": ((8.2, -2.4), (10.6, 0.2), (14.5, -0.4), (17.0, -1.8), (20.4, -2.0), (23.0, -4.6), (22.8, -8.0),
               (18.8, -11.4), (15.2, -15.4), (12.4, -19.6), (9.6, -20.4), (8.2, -18.0), (8.4, -12.0), (7.8, -7.0)),
    "Scaphoid": ((-20.4, -14.6), (-15.6, -11.8), (-11.0, -10.8), (-8.0, -11.8), (-7.4, -15.6), (-7.2, -20.0),
                 (-5.0, -24.2), (-1.4, -26.2), (0.0, -29.6), (-0.8, -33.6), (-5.6, -35.2), (-11.0, -33.6),
                 (-15.0, -29.8), (-17.0, -26.2), (-20.6, -23.6), (-22.2, -21.0), (-22.2, -17.0)),
    "Lunate": ((-2.0, -28.0), (0.8, -26.0), (4.6, -25.0), (7.6, -22.2), (10.6, -22.4), (14.6, -27.0), (17.4, -31.0),
               (16.6, -34.2), (12.2, -36.8), (6.6, -37.6), (2.2, -37.0), (-0.4, -33.4)),
    "Triquetrum": ((20.4, -10.8), (24.8, -9.8), (27.8, -13.4), (27.6, -18.8), (25.4, -24.2), (22.8, -28.8),
                   (19.6, -30.2), (15.8, -27.6), (11.6, -22.2), (14.8, -17.6)),
    "Pisiform": ((20.2, -14.0), (23.8, -12.2), (26.8, -14.6), (27.0, -19.0), (24.8, -23.2), (21.2, -24.2),
                 (18.6, -21.0), (18.4, -17.0)),
}  # fmt: skip
"""Outlines of the carpals in the plate frame, mm: rounded polygons whose sides are the joint facets.

Seven elliptic stations make no facets, so these are not computed from anatomy.csv (which gives their depth and height):
they are laid out by hand after the extents of the carpals in one radiograph (codekansas, MIT; scaled by its third
metacarpal, taken as 65 mm), then changed by eye. That picture is therefore no independent test of a model trained on
phantoms. Areas against the projected hulls of anatomy.csv: 0.87 (Pisiform) to 1.15 (Capitate), but Lunate 1.35,
Triquetrum 1.39 and Scaphoid 1.54: a flat hand shows the proximal row less foreshortened than the model's pose.
"""

CARPAL_CORTEX_MM = 0.32
CARPAL_SPONGY = 0.3


def smooth_contour(points: Floats, samples: int, rounding: float) -> Floats:
    """Resample a closed polygon to equal steps and round it by a Gaussian whose sigma is `rounding` mm."""
    closed = np.vstack([points, points[:1]])
    steps = np.hypot(*np.diff(closed, axis=0).T)
    at = np.concatenate([[0.0], np.cumsum(steps)])
    even = np.linspace(0.0, at[-1], samples, endpoint=False)
    spectrum = np.fft.rfft(np.interp(even, at, closed[:, 0])), np.fft.rfft(np.interp(even, at, closed[:, 1]))
    frequency = np.fft.rfftfreq(samples, d=at[-1] / samples)
    damping = np.exp(-2.0 * (np.pi * frequency * rounding) ** 2)
    return np.stack([np.fft.irfft(axis * damping, samples) for axis in spectrum], axis=1)


@cache
def curve(pairs: tuple[tuple[float, float], ...]) -> Floats:
    """(position, value) pairs as a smooth monotone curve at PROFILE, flat beyond its ends."""
    x, y = np.array(pairs).T
    values = np.asarray(PchipInterpolator(x, y)(np.clip(PROFILE, x[0], x[-1])), np.float64)
    values.flags.writeable = False
    return values


@cache
def profile(name: str) -> Floats:
    """Width, depth and bow of a bone at PROFILE, from the seven stations of anatomy.csv: (3, len(PROFILE)) mm."""
    measures = anatomy()[name]
    at = np.clip(PROFILE, STATIONS[0], STATIONS[-1])
    values = np.stack([PchipInterpolator(STATIONS, row)(at) for row in (measures.width, measures.depth, measures.bow)])
    values.flags.writeable = False
    return values
