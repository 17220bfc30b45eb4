"""How one picture is taken: framing, beam and window, collimation, and what else lies on the plate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataset.phantom_bones import to_pixels
from dataset.phantom_pose import PosedHand
from dataset.phantom_shape import Floats
from dataset.phantom_styles import Style

FRAME_MM = 274.0
"""Side of the picture at the plate, so that bone areas come near the competition's (docs/data.md)."""

FLESH_MM = 9.0
"""Flesh beyond the bones, at most."""

CUT = (0.05, 0.4)
"""Share of the hand's bones beyond the frame in a cropped picture."""


@dataclass(frozen=True)
class Text:
    """Letters on the picture."""

    words: str
    place: Floats
    """Middle, in the unit square."""
    height: float
    """Of a letter, share of the picture."""
    degrees: float
    level: float
    disc: bool


@dataclass(frozen=True)
class Metal:
    """Nothing passes it: an ellipse seen from its side, or a box with a rim."""

    middle: Floats
    """Plate mm."""
    along: Floats
    """Unit vector of the bone that wears it."""
    half_mm: tuple[float, float]
    """Across and along."""
    line_mm: float
    """Thickness of its outline."""
    solid: bool


@dataclass(frozen=True)
class Taking:
    """How one picture was taken and windowed."""

    matrix: Floats
    """2 x 3, plate mm to the unit square (x right, y down)."""
    gain: float
    knee: float
    base: float
    film: float
    scatter: float
    scatter_mm: float
    edge: float
    edge_mm: float
    sharpen: float
    noise: float
    grain_mm: float
    blur_mm: float
    ramp: Floats
    """Attenuation that the beam gains over the picture in x and in y."""
    dust: int
    """Seed of the specks; 0: none."""
    field: Floats | None
    """Corners of the collimated field in the unit square."""
    outside: float
    """Brightness outside of it."""
    line: float
    """Brightness of the line along its edge; 0 for none."""
    glare: list[tuple[float, float]]
    """Brightness and width (mm) of the band inside each edge of the field, or of the picture where there is none."""
    texts: list[Text]
    metals: list[Metal]


def draw_taking(hand: PosedHand, side: str, style: Style, rng: np.random.Generator) -> Taking:
    """Draw framing, window and accessories; `side` "L" mirrors the hand."""
    tips = np.vstack([bone.contour for name, bone in hand.bones.items() if name not in ("Radius", "Ulna")])
    matrix = _draw_frame(tips, style, rng)
    if side == "L":
        matrix[0] = (-matrix[0, 0], 0.0, 1.0 - matrix[0, 2])
    bones = to_pixels(tips, matrix, 1)
    glare = [
        (float(rng.uniform(0.2, 0.7)) * (rng.random() < 0.6), float(rng.uniform(2.0, 9.0))) for _ in range(4)
    ]
    return Taking(
        matrix=matrix,
        gain=rng.uniform(*style.gain),
        knee=rng.uniform(*style.knee),
        base=rng.uniform(*style.base),
        film=rng.uniform(*style.film),
        scatter=rng.uniform(*style.scatter),
        scatter_mm=rng.uniform(*style.scatter_mm),
        edge=rng.uniform(*style.edge),
        edge_mm=rng.uniform(*style.edge_mm),
        sharpen=rng.uniform(*style.sharpen),
        noise=rng.uniform(*style.noise),
        grain_mm=rng.uniform(*style.grain_mm),
        blur_mm=rng.uniform(*style.blur_mm),
        ramp=rng.uniform(*style.ramp) * _unit(rng.uniform(0.0, 2 * np.pi)),
        dust=int(rng.integers(1, 2**31)) if rng.random() < style.dust else 0,
        field=_draw_field(bones, matrix, style, rng),
        outside=float(rng.uniform(*style.outside[1])) if rng.random() < style.outside[0] else 0.0,
        line=float(rng.uniform(0.3, 0.9)) if rng.random() < style.line else 0.0,
        glare=glare if rng.random() < style.glare else [],
        texts=_draw_texts(bones, side, style, rng),
        metals=_draw_metals(hand, style, rng),
    )


def _unit(angle: float) -> Floats:
    return np.array([np.cos(angle), np.sin(angle)])


def _draw_frame(tips: Floats, style: Style, rng: np.random.Generator) -> Floats:
    """Plate mm to the unit square for a right hand: whole, or cut at one side of the frame."""
    scale = rng.uniform(*style.zoom) / FRAME_MM
    low, high = tips.min(axis=0) - [FLESH_MM, 0.0], tips.max(axis=0) + [FLESH_MM, 5.0]
    scale = min(scale, 0.95 / (high[0] - low[0]), (0.9 if style.anywhere else 0.82) / (high[1] - low[1]))
    wide, tall = scale * (high - low)
    if style.anywhere:
        left, top = rng.uniform(0.01, 0.99 - wide), rng.uniform(0.02, 0.98 - tall)
    else:
        left = np.clip(0.5 + rng.normal(0.0, style.shift_sigma) - wide / 2, 0.02, 0.98 - wide)
        top = rng.uniform(*style.top)
    border, cut = rng.integers(4), rng.uniform(*CUT)
    if rng.random() < style.cropped:
        left = (left, -cut * wide, left, 1.0 - (1.0 - cut) * wide)[border]
        top = (-cut * tall, top, 1.0 - (1.0 - cut) * tall, top)[border]
    return np.array([[scale, 0.0, left - scale * low[0]], [0.0, -scale, top + scale * high[1]]])


def _draw_field(bones: Floats, matrix: Floats, style: Style, rng: np.random.Generator) -> Floats | None:
    """Collimation never covers a bone of the hand; the forearm leaves it at its lower edge."""
    margin = rng.uniform(0.0, 1.0 if style.anywhere else 0.07, 3)
    degrees = rng.normal(0.0, style.plate_degrees)
    ends, arm_mm = rng.random() < 0.5, rng.uniform(*(style.arm_mm or (0.0, 0.0)))
    if rng.random() >= style.collimated:
        return None
    near = 0.04 if not style.anywhere else 10.0 * abs(matrix[0, 0])
    left = min(margin[0], bones[:, 0].min() - near)
    right = max(1.0 - margin[1], bones[:, 0].max() + near)
    top = min(margin[2], bones[:, 1].min() - near)
    bottom = bones[:, 1].max() + arm_mm * abs(matrix[1, 1]) if style.arm_mm and ends else 1.2
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    middle = corners.mean(axis=0) if style.anywhere else np.array([0.5, 0.5])
    return np.asarray((corners - middle) @ np.array([[c, -s], [s, c]]) + middle)


def _draw_texts(bones: Floats, side: str, style: Style, rng: np.random.Generator) -> list[Text]:
    """A side marker where no bone comes near, if a few tries find such a place; now and then lines in a corner."""
    height, degrees, disc = rng.uniform(0.025, 0.05), rng.normal(0.0, 12.0), rng.random() < 0.4
    level = rng.uniform(0.6, 1.0) if style.anywhere else 0.94
    places = rng.random((16, 2)) * np.array([0.84, 0.86]) + np.array([0.08, 0.07])
    found: list[Text] = []
    if rng.random() < style.marker:
        for place in places:
            if np.hypot(*(bones - place).T).min() > 0.12 and (place[1] < 0.6 or abs(place[0] - 0.5) > 0.32):
                found.append(Text(side, place, height, degrees, level, disc))
                break
    corner = np.array([rng.choice([0.14, 0.86]), rng.choice([0.04, 0.9])])
    letters, count = rng.integers(0, 26, (3, 10)), rng.integers(1, 4)
    if rng.random() < style.text:
        for row, codes in enumerate(letters[:count]):
            words = "".join(chr(65 + code) if code < 20 else str(code - 18) for code in codes)
            found.append(Text(words, corner + [0.0, 0.035 * row], 0.018, 0.0, 0.9, False))
    return found


def _draw_metals(hand: PosedHand, style: Style, rng: np.random.Generator) -> list[Metal]:
    """A ring on a proximal phalanx, a watch or bangle on the forearm."""
    joints = hand.chains[rng.choice([2, 3, 3, 3, 4])]
    at, arm = rng.uniform(0.3, 0.6), rng.uniform(8.0, 50.0)
    grow = hand.body.flesh * hand.body.size
    thick, box = rng.uniform(1.0, 2.6), rng.random() < 0.7
    found = []
    if rng.random() < style.ring:
        along = joints[2] - joints[1]
        middle = joints[1] + at * along
        found.append(Metal(middle, along / np.hypot(*along), (8.6 * grow, 1.4 * thick), thick, False))
    if rng.random() < style.watch:
        along = hand.forearm[1] - hand.forearm[0]
        along = along / np.hypot(*along)
        half = (17.0, 18.0) if box else (31.0 * grow, 4.0 * thick)
        found.append(Metal(hand.forearm[0] + along * arm, along, half, 1.5 * thick, box))
    return found
