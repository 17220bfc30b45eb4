"""Who is drawn: size, age, sex, what the bones are made of, and each bone's own shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataset.phantom_shape import CARPALS, FORMS, PROFILE, Floats
from dataset.phantom_styles import Range, Style

WARP = ((45.0, 0.15), (75.0, 0.4), (120.0, 0.8), (200.0, 1.4))
"""Smooth displacement of everything: waves as (length, sigma of the amplitude), mm."""

GROWN = (3.0, 17.0)
"""Years: growth is 0 at the first and 1 from the second on."""

CARPAL_GIRTH = 1.08
"""Girth of the hand whose carpals and bases of metacarpals were laid out."""

CARPAL_WAVES = 4
"""Harmonics of a carpal's own outline."""


@dataclass(frozen=True)
class Body:
    """What both hands of a subject share; ratios are against the adult of anatomy.csv."""

    size: float
    flesh: float
    density: float
    age: int
    sex: str
    growth: float
    """1: physes are closed."""
    breadth: float
    """How much farther apart the bones of palm and wrist lie side by side."""
    girth: dict[str, Floats]
    """Width of each bone along it."""
    stretch: dict[str, float]
    """Length of each bone."""
    skew: dict[str, Floats]
    """Slant of each bone's base and head (mm over a half width), and how much wider its right half is, (3,)."""
    dents: dict[str, Floats]
    """Of each carpal's outline: cosine and sine parts of CARPAL_WAVES harmonics from the second on, (2, waves)."""
    cortex: float
    texture: float
    coarseness: float
    joint_mm: float
    wear: float
    waves: Floats
    """(amplitude in mm or phase, axis, wave) of the warp."""


def draw_body(rng: np.random.Generator, style: Style) -> Body:
    """A person of this style."""
    age = _age(style.age, rng)
    sex = "M" if rng.random() < 0.5 else "F"
    frail = max(age - 50, 0) / 40.0 * (1.0 if sex == "F" else 0.6)
    growth = float(np.clip((age - GROWN[0]) / (GROWN[1] - GROWN[0]), 0.0, 1.0))
    adult = style.age[0] >= 18
    part = rng.random() if adult else (age - style.age[0]) / (style.age[1] - style.age[0])  # children grow with age
    size = style.size[0] + part * (style.size[1] - style.size[0])
    general = rng.uniform(*style.girth) * (1.0 if sex == "M" else 0.96)
    girth, stretch, skew, dents = {}, {}, {}, {}
    for name in (*FORMS, *CARPALS):
        bends = rng.normal(0.0, style.width_sigma, 3)
        own = 1.0 + bends[0] + bends[1] * np.cos(np.pi * PROFILE) + bends[2] * np.cos(2 * np.pi * PROFILE)
        girth[name] = general * np.clip(own, 0.85, 1.15)
        stretch[name] = float(np.clip(1.0 + rng.normal(0.0, style.length_sigma), 0.88, 1.12))
        skew[name] = np.clip(rng.normal(0.0, 1.0, 3), -2, 2) * [0.35, 0.35, 0.05]
        dents[name] = rng.normal(0.0, 1.0, (2, CARPAL_WAVES)) * 0.03 / np.arange(1, CARPAL_WAVES + 1)
    return Body(
        size=size * (1.0 if sex == "M" or not adult else 0.94),
        flesh=rng.uniform(*style.flesh),
        density=rng.uniform(*style.density) * (1.0 - 0.2 * frail),
        age=age,
        sex=sex,
        growth=growth,
        breadth=(general / CARPAL_GIRTH) ** 0.8,
        girth=girth,
        stretch=stretch,
        skew=skew,
        dents=dents,
        cortex=rng.uniform(*style.cortex) * (1.0 - 0.3 * frail),
        texture=rng.uniform(*style.texture),
        coarseness=rng.uniform(*style.coarseness),
        joint_mm=rng.uniform(*style.joint_mm),
        wear=rng.uniform(*style.wear),
        waves=np.stack(
            [
                np.clip(rng.normal(0.0, 1.0, (2, len(WARP))), -2.0, 2.0) * [sigma for _, sigma in WARP],
                rng.uniform(0.0, 2 * np.pi, (2, len(WARP))),
            ]
        ),
    )


def _age(years: Range, rng: np.random.Generator) -> int:
    """Mostly in the middle of the range."""
    middle, reach = (years[0] + years[1]) / 2, years[1] - years[0]
    return int(np.clip(rng.normal(middle - 0.08 * reach, 0.24 * reach), *years))


def warp(points: Floats, body: Body) -> Floats:
    """Smooth displacement field: neighbours move together, so joints stay joints while shapes differ."""
    along = points[:, ::-1] + 0.4 * points  # (n, 2): what displaces x runs along y
    wavelengths = np.array([length for length, _ in WARP])
    amplitude, phase = body.waves
    waves = amplitude * np.sin(2 * np.pi * along[..., None] / wavelengths + phase)
    return np.asarray(points + waves.sum(axis=2))
