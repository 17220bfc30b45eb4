"""One bone in its place: its outline in plate millimetres, and what it is made of along its axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataset.phantom_body import Body
from dataset.phantom_shape import (
    CARPAL_CORTEX_MM,
    CARPAL_SPONGY,
    CARPALS,
    FORMS,
    PROFILE,
    Floats,
    LongForm,
    anatomy,
    curve,
    profile,
    smooth_contour,
)

BASE_TO = 0.08
"""Share of a long bone's axis that its base's surface takes up."""

PHYSIS_MM = (0.55, 0.35, 0.9)
"""Half thickness (sigma) of an open physis, what youth adds to it, and how much of the bone is missing there."""

SCAR_MM = 0.35
"""Dense bone that a closed physis leaves, mm."""

NOTCH = 0.09
"""An epiphysis and its shaft round off towards an open physis: by so much of the half width."""


@dataclass(frozen=True)
class PosedBone:
    """A bone's silhouette on the plate (mm, plate frame), and what it is made of along its axis (PROFILE)."""

    name: str
    contour: Floats
    origin: Floats
    axis: Floats
    length: float
    edge: Floats
    """How far from the silhouette the full depth is reached, mm: half the width of a round shaft, less at flat ends."""
    depth: Floats
    cortex: Floats
    spongy: Floats
    ridges: Floats
    """Lines of denser bone, (n, 8), all in mm from `origin`: across, along, cosine and sine of the direction, bow
    (1/mm), half its length, sigma, and what it adds; or, negative, the share of the bone that is missing there."""


def direction(degrees: float) -> Floats:
    """Unit vector: 0 degrees is distal (up), positive to the little finger (right)."""
    angle = np.deg2rad(degrees)
    return np.array([np.sin(angle), np.cos(angle)])


def turned(points: Floats, degrees: float, about: Floats) -> Floats:
    """Points turned in the plate's plane, positive to the little finger."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.asarray((points - about) @ np.array([[c, -s], [s, c]]) + about)


def long_bone(name: str, origin: Floats, degrees: float, tilt: float, roll: float, body: Body) -> PosedBone:
    """A long bone with its proximal end at `origin`, pointing to `degrees`, lifted off the plate by `tilt` degrees and
    turned about its axis by `roll` radians."""
    form = FORMS[name]
    width, depth, bow = profile(name)
    squeeze = np.cos(np.deg2rad(tilt))
    length = anatomy()[name].length * body.stretch[name] * body.size * squeeze
    # A rolled ellipse; the whole hand is later compressed by cos(roll).
    seen = np.sqrt(np.square(np.cos(roll) * width) + np.square(np.sin(roll) * depth)) / np.cos(roll)
    half = seen / 2 * curve(form.flare) * body.girth[name] * body.size * _ends(form, body)
    depth = depth * body.girth[name] * body.size
    bow = -bow * body.size  # anatomy.csv's x points to the thumb, u to the little finger
    outline = _long_outline(name, form, half, bow, depth, length, float(np.abs(np.sin(np.deg2rad(tilt)))), body)
    axis = direction(degrees)
    across = np.array([axis[1], -axis[0]])
    return PosedBone(
        name,
        origin + outline[:, :1] * across + outline[:, 1:] * axis,
        origin,
        axis,
        length,
        half * curve(form.round),
        depth / max(squeeze, 0.7),
        np.minimum(curve(form.cortex) * body.cortex * body.size, 0.6 * half),
        curve(form.spongy),
        _ridges(form, half, length, body),
    )


def _ends(form: LongForm, body: Body) -> Floats:
    """Factor of the half width: worn joints are lipped, open physes notched."""
    near = np.minimum(np.abs(PROFILE - 0.04), np.abs(PROFILE - 0.94))
    lipped = 1.0 + 0.14 * body.wear * np.exp(-np.square(near / 0.04)) * (form.shaft_mm == 0.0)
    if body.growth >= 1.0:
        return np.asarray(lipped)
    young = 1.0 - body.growth
    small = 1.0 - 0.25 * young / (1.0 + np.exp((PROFILE - form.physis) * np.sign(form.physis - 0.5) * -60.0))
    return np.asarray(small * (1.0 - NOTCH * np.exp(-np.square((PROFILE - form.physis) / 0.035))))


def _long_outline(
    name: str, form: LongForm, half: Floats, bow: Floats, depth: Floats, length: float, lift: float, body: Body
) -> Floats:
    """(n, 2) mm across and along the bone. `lift` is the sine of its tilt."""
    # A tilted end shows its depth; less than half of it times the sine, as ends are rounded towards the viewer too.
    grow = lift * depth[[0, -1]] * 0.35
    slant_base, slant_head, right = body.skew[name]
    inner = np.abs(PROFILE - (form.head_from + BASE_TO) / 2) < (form.head_from - BASE_TO) / 2
    first, last = np.flatnonzero(inner)[[0, -1]]
    sides = [
        np.stack([bow + sign * half * (1.0 + sign * right), PROFILE * length], axis=1)[inner] for sign in (-1, 1)
    ]
    ends = []
    for at, cap, edge, sign, more, slant in (
        (first, np.array(form.base), 0.0, -1, grow[0] + form.shaft_mm, slant_base),
        (last, np.array(form.head), length, 1, grow[1], slant_head),
    ):
        h = cap[:, 0] * (1.0 + right * np.sign(cap[:, 0]))
        ends.append(
            np.stack([bow[at] + h * half[at], edge + sign * ((cap[:, 1] + slant * h) * body.size + more)], axis=1)
        )
    points = np.vstack([sides[0], ends[1], sides[1][::-1], ends[0][::-1]])
    around = np.hypot(*np.diff(points, axis=0).T).sum()
    return smooth_contour(points, int(around / 1.0) + 60, 0.45 if body.growth >= 1.0 else 0.8)


def _ridges(form: LongForm, half: Floats, length: float, body: Body) -> Floats:
    """The form's lines in mm, and its physis: a gap where it is open, a faint line where it has closed."""
    rows = []
    for ridge in form.ridges:
        width = float(np.interp(ridge.at, PROFILE, half))
        bow = ridge.bow_mm / max(width, 1.0) ** 2
        rows.append((
            ridge.across * width, ridge.at * length, *direction(90.0 - ridge.degrees), bow, ridge.half_width * width,
            ridge.sigma_mm * body.size, ridge.mm * body.size * (1.0 + body.wear),
        ))  # fmt: skip
    width = float(np.interp(form.physis, PROFILE, half))
    young = 1.0 - body.growth
    bow = -0.5 / max(width, 1.0) ** 2
    if young > 0.0:
        sigma = (PHYSIS_MM[0] + PHYSIS_MM[1] * young) * body.size
        rows.append((0.0, form.physis * length, 1.0, 0.0, bow, 2 * width, sigma, -min(PHYSIS_MM[2], 6.0 * young)))
    else:
        rows.append((0.0, form.physis * length, 1.0, 0.0, bow, 0.8 * width, 0.35, SCAR_MM * body.size))
    return np.array(rows, np.float64)


def carpal(name: str, place_sigma: float, roll: float, body: Body, rng: np.random.Generator) -> PosedBone:
    """A carpal bone in its place, give or take `place_sigma` mm; small and round in children."""
    points = np.array(CARPALS[name]) * body.size * [body.breadth, 1.0]
    centre = points.mean(axis=0)
    young = 1.0 - body.growth
    grow = (1.04 - 0.45 * young) * float(np.sqrt(body.girth[name].mean() * body.stretch[name])) / body.breadth**0.5
    loose = 3.0 if name == "Pisiform" else 1.0  # it lies in a tendon and moves with it
    shift = rng.normal(0.0, place_sigma * loose, 2) * body.size
    angle = np.arctan2(*(points - centre).T)
    order = np.arange(2, 2 + body.dents[name].shape[1])[:, None] * angle
    dents = 1.0 + body.dents[name][0] @ np.cos(order) + body.dents[name][1] @ np.sin(order)
    # The whole hand is later compressed by cos(roll), and a carpal is about as deep as wide.
    around = (points - centre) * grow * dents[:, None] * [1.0 / np.cos(roll), 1.0]
    outline = smooth_contour(turned(centre + around, rng.normal(0.0, 3.0), centre) + shift, 96, 0.6 + 3.0 * young)
    height = np.ptp(outline[:, 1])
    depth = float(np.median(anatomy()[name].depth)) * body.size * grow
    flat = np.ones_like(PROFILE)
    half = flat * min(height, np.ptp(outline[:, 0])) / 2
    return PosedBone(
        name,
        outline,
        np.array([outline[:, 0].mean(), outline[:, 1].min()]),
        np.array([0.0, 1.0]),
        float(height),
        half * 0.8,
        flat * depth,
        flat * CARPAL_CORTEX_MM * body.cortex * body.size,
        flat * CARPAL_SPONGY,
        np.zeros((0, 8)),
    )


def extra(centre: Floats, radii: tuple[float, float], depth: float, degrees: float, body: Body) -> PosedBone:
    """An unlabelled oval of bone, mm."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    axis = direction(degrees)
    across = np.array([axis[1], -axis[0]])
    outline = np.outer(np.cos(angle) * radii[0], across) + np.outer(np.sin(angle) * radii[1], axis)
    flat = np.ones_like(PROFILE)
    return PosedBone(
        "extra",
        centre + outline * body.size,
        centre - axis * radii[1] * body.size,
        axis,
        2 * radii[1] * body.size,
        flat * min(radii) * body.size,
        flat * depth * body.size,
        flat * CARPAL_CORTEX_MM * body.cortex * body.size,
        flat * CARPAL_SPONGY,
        np.zeros((0, 8)),
    )
