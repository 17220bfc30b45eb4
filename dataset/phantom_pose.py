"""Who is drawn and how the hand lies on the plate: body, joint angles, the bones' silhouettes in plate millimetres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataset.phantom_shape import (
    CARPAL_CORTEX_MM,
    CARPAL_SPONGY,
    CARPALS,
    FINGERS,
    FORMS,
    PROFILE,
    Floats,
    LongForm,
    anatomy,
    curve,
    profile,
    smooth_contour,
)


@dataclass(frozen=True)
class Ranges:
    """How much bodies and poses differ: (low, high) of a uniform draw, or the sigma of a normal one.

    Chosen by eye and to bring areas and overlaps near docs/data.md; no source gives them.
    """

    size: tuple[float, float] = (0.93, 1.09)
    """Whole hand against the adult of anatomy.csv; women get 0.94 of it."""
    girth: tuple[float, float] = (0.92, 1.10)
    """Bone widths against their lengths."""
    flesh: tuple[float, float] = (0.92, 1.18)
    """Soft tissue against bones."""
    cortex: tuple[float, float] = (0.65, 1.1)
    """Cortical thickness; low values are old age."""
    density: tuple[float, float] = (0.8, 1.15)
    """Mineral of shell and spongy bone."""
    length_sigma: float = 0.03
    """Each bone's own length ratio."""
    width_sigma: float = 0.035
    """Each bone's own width ratio, and as much again as a smooth change along it."""
    warp: tuple[tuple[float, float], ...] = ((45.0, 0.15), (75.0, 0.4), (120.0, 0.8), (200.0, 1.4))
    """Smooth displacement of everything: waves as (length, sigma of the amplitude), mm."""
    spread: tuple[float, float] = (0.1, 1.1)
    """Fingers together (0) to spread (1)."""
    finger_degrees: float = 2.0
    """Sideways deviation of each finger bone."""
    bend_degrees: tuple[float, float] = (0.0, 10.0)
    """Flexion per joint, shared by the fingers; each adds up to half as much of its own."""
    roll_degrees: float = 5.0
    """Out-of-plane roll about the forearm's axis, sigma."""
    turn_degrees: float = 6.0
    """In-plane rotation of all, sigma."""
    deviation_degrees: float = 4.0
    """Wrist deviation of a straight hand, sigma."""
    bent_degrees: tuple[float, float] = (16.0, 32.0)
    """Wrist deviation of a bent hand, either way; radial ones are a third smaller, as joints allow."""


RANGES = Ranges()

SPLAY_DEGREES = np.array([[-40.0, -7.5, 0.0, 7.5, 13.5], [6.0, 0.0, 0.0, -2.0, -4.0], [-4.0, -5.0, -1.0, 3.0, 13.0]])
"""Per finger, thumb first, positive to the little finger: metacarpal's direction; proximal phalanx against it with
fingers together; what full spread adds (the thumb's is against its metacarpal). Set by eye."""

BASES_MM = np.array([[-27.5, -1.5], [-9.5, 0.8], [1.0, 0.0], [10.8, -0.2], [18.6, -2.0]])
"""Bases of the metacarpals in the plate frame: about anatomy.csv unrolled (its palm is cupped, a PA hand lies flat)."""

BASE_TO = 0.08
"""Share of a long bone's axis that its base's surface takes up."""

THUMB_HEIGHT_MM, PLATE_HEIGHT_MM = 6.0, -6.0
"""Height (anatomy.csv's z, to the palm) of the thumb, and of the other fingers and the forearm."""

JOINT_MM = (1.0, 1.0, 0.8)
"""Gap between bone ends along a finger from the knuckle on; concave bases add to what shows."""


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


@dataclass(frozen=True)
class Body:
    """What both hands of a subject share."""

    size: float
    flesh: float
    density: float
    age: int
    sex: str
    girth: dict[str, Floats]
    stretch: dict[str, float]
    cortex: float
    waves: Floats
    """(amplitude in mm or phase, axis, wave) of the warp."""


@dataclass(frozen=True)
class PosedHand:
    """All that lies on the plate, in millimetres of the plate frame."""

    bones: dict[str, PosedBone]
    extras: list[PosedBone]
    """Bone that no class names: sesamoids and the hook of the hamate, which lies within its bone."""
    chains: list[Floats]
    forearm: Floats
    body: Body
    turn: float


def draw_body(rng: np.random.Generator) -> Body:
    """A person: size, age, sex, and each bone's own shape."""
    age = int(np.clip(rng.normal(48, 16), 19, 88))
    sex = "M" if rng.random() < 0.5 else "F"
    frail = max(age - 50, 0) / 40.0 * (1.0 if sex == "F" else 0.6)
    girth, stretch = {}, {}
    general = rng.uniform(*RANGES.girth) * (1.0 if sex == "M" else 0.96)
    for name in (*FORMS, *CARPALS):
        bends = rng.normal(0.0, RANGES.width_sigma, 3)
        own = 1.0 + bends[0] + bends[1] * np.cos(np.pi * PROFILE) + bends[2] * np.cos(2 * np.pi * PROFILE)
        girth[name] = general * np.clip(own, 0.85, 1.15)
        stretch[name] = float(np.clip(1.0 + rng.normal(0.0, RANGES.length_sigma), 0.91, 1.09))
    return Body(
        size=rng.uniform(*RANGES.size) * (1.0 if sex == "M" else 0.94),
        flesh=rng.uniform(*RANGES.flesh),
        density=rng.uniform(*RANGES.density) * (1.0 - 0.2 * frail),
        age=age,
        sex=sex,
        girth=girth,
        stretch=stretch,
        cortex=rng.uniform(*RANGES.cortex) * (1.0 - 0.3 * frail),
        waves=np.stack(
            [
                np.clip(rng.normal(0.0, 1.0, (2, len(RANGES.warp))), -2.0, 2.0) * [sigma for _, sigma in RANGES.warp],
                rng.uniform(0.0, 2 * np.pi, (2, len(RANGES.warp))),
            ]
        ),
    )


def direction(degrees: float) -> Floats:
    """Unit vector: 0 degrees is distal (up), positive to the little finger (right)."""
    angle = np.deg2rad(degrees)
    return np.array([np.sin(angle), np.cos(angle)])


def turned(points: Floats, degrees: float, about: Floats) -> Floats:
    """Points turned in the plate's plane, positive to the little finger."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.asarray((points - about) @ np.array([[c, -s], [s, c]]) + about)


def long_bone(name: str, form: LongForm, origin: Floats, degrees: float, tilt: float, body: Body) -> PosedBone:
    """A long bone with its proximal end at `origin`, pointing to `degrees`, lifted off the plate by `tilt` degrees."""
    width, depth, bow = profile(name)
    squeeze = np.cos(np.deg2rad(tilt))
    length = anatomy()[name].length * body.stretch[name] * body.size * squeeze
    half = width / 2 * curve(form.flare) * body.girth[name] * body.size
    depth = depth * body.girth[name] * body.size
    bow = -bow * body.size  # anatomy.csv's x points to the thumb, u to the little finger
    # A tilted end shows its depth; less than half of it times the sine, as ends are rounded towards the viewer too.
    lift = np.abs(np.sin(np.deg2rad(tilt))) * depth[[0, -1]] * 0.35
    base, head = np.array(form.base), np.array(form.head)
    inner = np.abs(PROFILE - (form.head_from + BASE_TO) / 2) < (form.head_from - BASE_TO) / 2
    first, last = np.flatnonzero(inner)[[0, -1]]
    side = np.stack([half, PROFILE * length], axis=1)
    left = np.stack([bow - side[:, 0], side[:, 1]], axis=1)[inner]
    right = np.stack([bow + side[:, 0], side[:, 1]], axis=1)[inner]
    ends = [
        np.stack([bow[at] + cap[:, 0] * half[at], edge + sign * (cap[:, 1] * body.size + grow)], axis=1)
        for at, cap, edge, sign, grow in (
            (first, base, 0.0, -1, lift[0] + form.shaft_mm),
            (last, head, length, 1, lift[1]),
        )
    ]
    outline = smooth_contour(np.vstack([left, ends[1], right[::-1], ends[0][::-1]]), 160, 0.5)
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
    )


def carpal(name: str, body: Body, rng: np.random.Generator) -> PosedBone:
    """A carpal bone in its place."""
    points = np.array(CARPALS[name]) * body.size
    centre = points.mean(axis=0)
    grow = 1.03 * float(np.sqrt(body.girth[name].mean() * body.stretch[name]))
    shift = rng.normal(0.0, 0.35, 2)
    outline = smooth_contour(turned(centre + (points - centre) * grow, rng.normal(0.0, 2.5), centre) + shift, 96, 0.6)
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
    )


def draw_extras(thumb: Floats, body: Body, rng: np.random.Generator) -> list[PosedBone]:
    """The hook of the hamate, and one or two sesamoids at the thumb's base joint (joints of the thumb in mm)."""
    hook = np.array([13.5, -5.5]) * body.size + rng.normal(0.0, 0.7, 2)
    found = [extra(hook, (rng.uniform(1.8, 2.6), rng.uniform(2.8, 3.8)), 5.0, rng.normal(10.0, 15.0), body)]
    towards = thumb[1] - thumb[0]
    side = np.array([towards[1], -towards[0]]) / np.hypot(*towards)
    for offset in (rng.uniform(7.0, 9.5), rng.uniform(2.0, 4.0))[: rng.integers(0, 3)]:
        centre = thumb[1] + side * offset * body.size - towards / np.hypot(*towards) * rng.uniform(0.0, 4.0)
        found.append(extra(centre, (rng.uniform(1.5, 2.3), rng.uniform(1.6, 2.6)), 4.0, rng.uniform(0, 180), body))
    return found


def finger(
    index: int, body: Body, spread: float, bend: float, rng: np.random.Generator
) -> tuple[list[PosedBone], Floats]:
    """The bones of one finger from its metacarpal on, and the joints (mm) that its flesh follows."""
    chain = FINGERS[index]
    degrees = SPLAY_DEGREES[0, index] + rng.normal(0.0, 6.0 if index == 0 else 1.0)
    origin = BASES_MM[index] * body.size
    tilt = rng.normal(0.0, 4.0)
    own = rng.uniform(0.0, 0.5) * bend
    bones, joints = [], [origin]
    for step, name in enumerate(chain):
        if step == 1:
            degrees += SPLAY_DEGREES[1, index] + spread * SPLAY_DEGREES[2, index]
        if step:
            degrees += rng.normal(0.0, RANGES.finger_degrees) * (1.0 if step == 1 else 0.7)
            tilt += (bend + own) * (0.6 if step == 1 else 1.0) * (0.4 if index == 0 else 1.0)
        bone = long_bone(name, FORMS[name], origin, degrees, tilt, body)
        end = origin + bone.axis * bone.length
        bones.append(bone)
        joints.append(end)
        origin = end + bone.axis * JOINT_MM[min(step, 2)] * body.size
    return bones, np.array(joints)


def height_mm(name: str) -> float:
    """How far towards the palm a bone lies. Fingers lie flat on the plate, whatever the model's hand did, and a chain
    has one height, so that a rolled hand keeps its joints."""
    if name in FINGERS[0]:
        return THUMB_HEIGHT_MM
    if name in CARPALS:
        measures = anatomy()[name]
        return float(measures.proximal[2] + measures.distal[2]) / 2
    return PLATE_HEIGHT_MM


def warp(points: Floats, body: Body) -> Floats:
    """Smooth displacement field: neighbours move together, so joints stay joints while shapes differ."""
    moved = points.copy()
    for number, (wavelength, _) in enumerate(RANGES.warp):
        for axis in (0, 1):
            amplitude, phase = body.waves[:, axis, number]
            along = points[:, 1 - axis] + 0.4 * points[:, axis]
            moved[:, axis] += amplitude * np.sin(2 * np.pi * along / wavelength + phase)
    return moved


def pose_hand(body: Body, bent: bool, rng: np.random.Generator) -> PosedHand:
    """A hand on the plate: a right one; the caller mirrors it for the left."""
    spread, bend = rng.uniform(*RANGES.spread), rng.uniform(*RANGES.bend_degrees)
    bones: dict[str, PosedBone] = {}
    chains = []
    for index in range(5):
        found, joints = finger(index, body, spread, bend, rng)
        bones.update({bone.name: bone for bone in found})
        chains.append(joints)
    for name in CARPALS:
        bones[name] = carpal(name, body, rng)
    extras = draw_extras(chains[0], body, rng)
    for name, end in (("Radius", (-9.0, -27.0)), ("Ulna", (17.5, -37.0))):
        measures = anatomy()[name]
        degrees = float(np.clip(rng.normal(0.0, 1.5), -3, 3)) + (2.5 if name == "Radius" else -1.5)
        origin = np.array(end) * body.size - direction(degrees) * measures.length * body.stretch[name] * body.size
        bones[name] = long_bone(name, FORMS[name], origin, degrees, 0.0, body)
    deviation = rng.normal(0.0, RANGES.deviation_degrees)
    if bent:
        deviation = rng.uniform(*RANGES.bent_degrees) * (1.0 if rng.random() < 0.6 else -0.67)
    roll = np.deg2rad(rng.normal(0.0, RANGES.roll_degrees))
    wrist = np.array([4.0, -24.0]) * body.size
    turn = rng.normal(0.0, RANGES.turn_degrees)
    forearm = np.array([[3.0, -38.0], [2.0, -80.0], [1.0, -190.0]]) * body.size

    def placed(points: Floats, name: str) -> Floats:
        points = warp(points, body)
        # Rolled about the forearm, bones nearer to the palm slide sideways over those behind them.
        points = points * [np.cos(roll), 1.0] + [np.sin(roll) * height_mm(name) * body.size, 0.0]
        if name in ("Radius", "Ulna", "forearm"):
            return turned(points, turn - 0.4 * deviation, wrist)
        # The proximal row follows half of the way: the midcarpal joint bends too.
        share = 0.27 if name in ("Scaphoid", "Lunate", "Triquetrum", "Pisiform") else 0.6
        return turned(points, turn + share * deviation, wrist)

    def placed_bone(bone: PosedBone) -> PosedBone:
        ends = placed(np.stack([bone.origin, bone.origin + bone.axis * bone.length]), bone.name)
        axis = ends[1] - ends[0]
        length = float(np.hypot(*axis))
        return PosedBone(
            bone.name,
            placed(bone.contour, bone.name),
            ends[0],
            axis / length,
            length,
            bone.edge,
            bone.depth,
            bone.cortex,
            bone.spongy,
        )

    return PosedHand(
        {name: placed_bone(bone) for name, bone in bones.items()},
        [placed_bone(bone) for bone in extras],
        [placed(joints, chain[0]) for joints, chain in zip(chains, FINGERS, strict=True)],
        placed(forearm, "forearm"),
        body,
        turn,
    )
