"""Named looks of phantoms as data: who is drawn, how the hand lies, and how the picture is taken and shown.

A style is a row of ranges. Drawing with several mixes them by subject; leaving one out holds it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from config import ConfigProblem, suggest

Range = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """(low, high) of uniform draws, sigmas of normal ones, and probabilities.

    Where no source is named, a range was chosen by eye beside real radiographs and by docs/phantom.md's table.
    """

    about: str
    """What it stands for, one line."""

    age: Range = (19.0, 88.0)
    """Years. Below 18 physes are open and carpals small (Greulich and Pyle 1959: the last close at 16 to 18)."""
    size: Range = (0.93, 1.09)
    """Whole hand against the adult of anatomy.csv; women get 0.94 of it."""
    girth: Range = (0.94, 1.16)
    """Bone widths against their lengths."""
    flesh: Range = (0.92, 1.18)
    """Soft tissue against bones."""
    cortex: Range = (0.65, 1.1)
    """Cortical thickness. Shells hold 0.4 to 0.65 of a metacarpal's width in adults, less in the old (Barnett and
    Nordin 1960, metacarpal index)."""
    density: Range = (0.85, 1.2)
    """Mineral of shell and spongy bone."""
    texture: Range = (0.25, 0.45)
    """Contrast of trabeculae: sigma as a share of the spongy bone."""
    coarseness: Range = (0.8, 1.3)
    """Spacing of trabeculae against 0.7 mm; fewer and thicker ones remain in old age (Parfitt 1983)."""
    joint_mm: Range = (-0.3, 0.6)
    """Added to every joint's gap along a finger: thinner cartilage in the old, thicker in children."""
    wear: Range = (0.0, 0.25)
    """Lipped and hardened joint surfaces of osteoarthrosis: 1 widens ends by 14 % and doubles what is dense there."""
    length_sigma: float = 0.035
    """Each bone's own length ratio."""
    width_sigma: float = 0.04
    """Each bone's own width ratio, and as much again as a smooth change along it."""
    sesamoids: float = 0.7
    """Probability of each of the two at the thumb's base joint; 0.45 of it at the index and 0.3 at the little finger's
    knuckle, 0.2 at the thumb's last joint."""

    spread: Range = (0.1, 1.1)
    """Fingers together (0) to spread (1)."""
    thumb_degrees: float = 6.0
    """Sigma of the thumb's metacarpal about its place beside the palm."""
    finger_degrees: float = 2.0
    """Sideways deviation of each finger bone, sigma."""
    bend_degrees: Range = (0.0, 12.0)
    """Flexion per joint, shared by the fingers; each adds up to half as much of its own."""
    roll_degrees: float = 5.0
    """Out-of-plane roll about the forearm's axis, sigma."""
    oblique_degrees: Range = (0.0, 0.0)
    """Roll of an oblique view, towards the thumb (45 degrees in textbooks)."""
    turn_degrees: float = 6.0
    """In-plane rotation of all, sigma; never beyond 30."""
    deviation_degrees: float = 4.0
    """Wrist deviation of a straight hand, sigma."""

    zoom: Range = (0.94, 1.06)
    """Magnification; at 1 the picture's side is 274 mm at the plate."""
    anywhere: bool = False
    """The hand lies anywhere in the frame, else below `top` and near the middle."""
    shift_sigma: float = 0.025
    """Sideways, share of the picture, where not `anywhere`."""
    top: Range = (0.05, 0.115)
    """Space above the longest finger, share of the picture."""
    cropped: float = 0.0
    """Probability that the frame cuts 5 to 40 % off the hand, at any side. What is cut off has no label."""
    collimated: float = 0.55
    """Probability of a collimated field."""
    arm_mm: Range | None = None
    """The field of half the collimated pictures ends so far below the wrist; None: never."""
    plate_degrees: float = 1.2
    """Tilt of the collimated field, sigma."""
    outside: tuple[float, Range] = (0.25, (0.0, 0.25))
    """Probability and brightness of a rim outside the field that is not black; near 1: a light box around a film."""
    line: float = 0.17
    """Probability that the field's edge shows as a bright line."""
    glare: float = 0.0
    """Probability of bright soft bands (plate edges) along edges of the field, 0.2 to 0.7 bright and 2 to 9 mm wide."""

    gain: Range = (0.85, 1.3)
    knee: Range = (0.5, 1.2)
    base: Range = (0.0, 0.05)
    """Window: shown = base + gain a / (1 + knee a) of [0, 1], a the attenuation: the wrist must not saturate."""
    film: Range = (0.0, 0.0)
    """Share of a film's S-shaped curve (3 y^2 - 2 y^3) in the result."""
    scatter: Range = (0.04, 0.15)
    """Share of the beam that arrives as veil."""
    scatter_mm: Range = (8.0, 20.0)
    """Its reach."""
    edge: Range = (0.0, 0.4)
    """Strength of the console's coarse edge enhancement, which darkens the surroundings of the hand."""
    edge_mm: Range = (4.0, 10.0)
    """Its reach."""
    sharpen: Range = (0.1, 0.7)
    """Strength of its fine one (0.7 mm), which brings out trabeculae and the edges of shells."""
    noise: Range = (0.003, 0.011)
    """Quantum noise, sigma as a share of the open beam, at 512 px."""
    grain_mm: Range = (0.0, 0.0)
    """Sigma of its blur: film grain and the phosphor of image plates."""
    blur_mm: Range = (0.1, 0.28)
    """Focal spot, detector and motion."""
    ramp: Range = (0.0, 0.06)
    """The beam is so much weaker at one side (heel effect, a tilted plate), as attenuation over the picture."""
    dust: float = 0.0
    """Probability of specks and scratches."""

    marker: float = 0.8
    """A letter for the side, on a disc in four of ten."""
    text: float = 0.0
    """Lines of text in a corner."""
    ring: float = 0.05
    """A ring on the middle, ring or little finger."""
    watch: float = 0.0
    """A watch, or in three of ten a bangle, on the forearm."""


COMPETITION = Style("like the competition's PNGs: black ground, upright, whole hand, mean 0.124 and deviation 0.168")

FREE = replace(
    COMPETITION,
    about="",
    size=(0.88, 1.12),
    girth=(0.95, 1.38),
    flesh=(0.9, 1.3),
    cortex=(0.5, 1.2),
    density=(0.7, 1.3),
    texture=(0.1, 0.45),
    coarseness=(0.7, 1.5),
    joint_mm=(-0.4, 0.9),
    wear=(0.0, 0.5),
    spread=(-0.1, 1.5),
    thumb_degrees=12.0,
    finger_degrees=2.8,
    bend_degrees=(0.0, 14.0),
    roll_degrees=8.0,
    turn_degrees=12.0,
    deviation_degrees=7.0,
    zoom=(0.55, 1.25),
    anywhere=True,
    cropped=0.12,
    arm_mm=(20.0, 110.0),
    plate_degrees=2.5,
    glare=0.35,
    marker=0.8,
    text=0.15,
    ring=0.1,
    watch=0.05,
)
"""What all styles but the competition's share."""

STYLES: dict[str, Style] = {
    "competition": COMPETITION,
    "dr": replace(
        FREE, about="direct detector: little noise, fine detail, grey ground, dark halo of edge enhancement",
        gain=(0.6, 1.1), knee=(0.3, 0.9), base=(0.03, 0.2), edge=(0.2, 0.7), sharpen=(0.1, 0.7), noise=(0.0002, 0.005),
        blur_mm=(0.12, 0.35), scatter=(0.02, 0.1), glare=0.6,
    ),
    "cr": replace(
        FREE, about="image plates: more noise, softer, plate edges", gain=(0.8, 1.5), knee=(0.3, 1.2), base=(0.0, 0.12),
        noise=(0.005, 0.02), grain_mm=(0.05, 0.15), blur_mm=(0.12, 0.35), outside=(0.5, (0.0, 0.4)), line=0.25,
        text=0.3, ramp=(0.0, 0.15),
    ),
    "film": replace(
        FREE, about="scanned film: S-shaped tones, grain, dust, a light box around it",
        gain=(0.8, 1.3), knee=(0.3, 1.0), base=(0.0, 0.2), film=(0.3, 1.0),
        edge=(0.0, 0.0), sharpen=(0.0, 0.2), noise=(0.006, 0.02),
        grain_mm=(0.08, 0.2), blur_mm=(0.12, 0.3), outside=(0.6, (0.0, 1.0)), ramp=(0.0, 0.3), dust=0.7, text=0.4,
    ),
    "portable": replace(
        FREE, about="bedside: much scatter, weak contrast, tilted, badly placed, rings and watches",
        gain=(0.5, 0.9), knee=(0.4, 1.0), base=(0.05, 0.3), scatter=(0.2, 0.6), noise=(0.008, 0.03),
        grain_mm=(0.0, 0.12), blur_mm=(0.15, 0.4), edge=(0.0, 0.3), ramp=(0.0, 0.4), plate_degrees=6.0, cropped=0.25,
        bend_degrees=(5.0, 28.0), turn_degrees=18.0, ring=0.25, watch=0.2, outside=(0.4, (0.0, 0.3)),
    ),
    "child": replace(
        FREE, about="5 to 17 years: open physes, small carpals, wide joints", age=(5.0, 17.0), size=(0.62, 0.98),
        girth=(0.92, 1.25), cortex=(0.7, 1.2), density=(0.6, 1.05), joint_mm=(0.2, 1.0), wear=(0.0, 0.0),
        zoom=(0.8, 1.7), sesamoids=0.3, base=(0.0, 0.2), gain=(0.8, 1.5), text=0.3, ring=0.02, watch=0.02,
    ),
    "old": replace(
        FREE, about="65 years and more: thin shells, coarse trabeculae, narrow worn joints, bent fingers",
        age=(65.0, 95.0), cortex=(0.4, 0.9), density=(0.5, 0.95), texture=(0.2, 0.6), coarseness=(1.0, 1.8),
        joint_mm=(-1.0, 0.2), wear=(0.3, 1.2), finger_degrees=4.5, bend_degrees=(3.0, 28.0), base=(0.0, 0.2),
        gain=(0.7, 1.4), ring=0.3,
    ),
    "oblique": replace(
        FREE, about="oblique view: metacarpals and carpals run over each other", oblique_degrees=(15.0, 45.0),
        bend_degrees=(5.0, 25.0), base=(0.0, 0.2), gain=(0.7, 1.4),
    ),
}  # fmt: skip
"""Style name -> its ranges."""


def check_styles(names: Sequence[str]) -> tuple[str, ...]:
    """The names, sorted, once each: their order does not matter to the set that is drawn.

    Raises:
        ConfigProblem: none, or one that is no style.
    """
    if not names:
        raise ConfigProblem(f"phantom_styles is empty: give one or more of {', '.join(STYLES)}.")
    for name in names:
        if name not in STYLES:
            raise ConfigProblem(f"phantom_styles has {name!r}{suggest(name, STYLES)}: styles are {', '.join(STYLES)}.")
    return tuple(sorted(set(names)))


def style_of(seed: int, subject: int, styles: Sequence[str]) -> Style:
    """The style of a subject: each of `styles` is as likely.

    Raises:
        ConfigProblem: as check_styles.
    """
    names = check_styles(styles)
    return STYLES[names[int(np.random.default_rng((seed, subject, 0x57)).integers(len(names)))]]
