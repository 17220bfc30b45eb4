"""How the hand lies on the plate: joint angles, and every bone in its place, in plate millimetres."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dataset.phantom_body import Body, warp
from dataset.phantom_outline import PosedBone, carpal, direction, extra, long_bone, turned
from dataset.phantom_shape import CARPALS, FINGERS, Floats, anatomy
from dataset.phantom_styles import Style

BENT_DEGREES = (16.0, 32.0)
"""Wrist deviation of a bent hand, either way; radial ones are a third smaller, as joints allow."""

SPLAY_DEGREES = np.array([[-36.0, -6.5, 0.0, 7.0, 13.0], [9.0, 0.0, 0.0, -2.0, -4.0], [-4.0, -5.0, -1.0, 3.0, 13.0]])
"""Per finger, thumb first, positive to the little finger: metacarpal's direction; proximal phalanx against it with
fingers together; what full spread adds (the thumb's is against its metacarpal). Set by eye."""

BASES_MM = np.array([[-28.8, -2.0], [-10.8, 1.0], [1.0, 0.0], [11.6, 0.0], [20.2, -1.8]])
"""Bases of the metacarpals in the plate frame: between anatomy.csv unrolled (its palm is cupped, a PA hand lies flat)
and the radiograph that the carpals were laid out after."""

THUMB_HEIGHT_MM, PLATE_HEIGHT_MM = 6.0, -6.0
"""Height (anatomy.csv's z, to the palm) of the thumb, and of the other fingers and the forearm."""

JOINT_MM = (1.0, 1.0, 0.8)
"""Gap between bone ends along a finger from the knuckle on; concave bases add to what shows."""

UNDER = 0.2
"""A bent finger's next base moves in front of the head before it: by this times the head's depth and the sine."""

CARTILAGE_MM = 1.2
"""What a small child's joints are wider."""

CARPAL_SIGMA_MM = 0.45
"""Place of each carpal; three times that of Pisiform."""

PROXIMAL_ROW = ("Scaphoid", "Lunate", "Triquetrum", "Pisiform")

SESAMOIDS = ((1, 3.0, 0.45), (4, -3.0, 0.3), (0, 0.0, 0.2))
"""Beside the thumb's pair: finger, mm to the thumb's side of the joint, probability against Style.sesamoids (at the
knuckles of index and little finger, and the thumb's last joint)."""


@dataclass(frozen=True)
class PosedHand:
    """All that lies on the plate, in millimetres of the plate frame."""

    bones: dict[str, PosedBone]
    extras: list[PosedBone]
    """Bone that no class names: sesamoids and the hook of the hamate, which lies within its bone."""
    chains: list[Floats]
    forearm: Floats
    body: Body


def pose_hand(body: Body, bent: bool, style: Style, rng: np.random.Generator) -> PosedHand:
    """A hand on the plate: a right one; the caller mirrors it for the left."""
    roll = np.deg2rad(rng.normal(0.0, style.roll_degrees) - rng.uniform(*style.oblique_degrees))
    spread, bend = rng.uniform(*style.spread), rng.uniform(*style.bend_degrees)
    bones: dict[str, PosedBone] = {}
    chains = []
    for index in range(5):
        found, joints = _finger(index, body, spread, bend, roll, style, rng)
        bones.update({bone.name: bone for bone in found})
        chains.append(joints)
    for name in CARPALS:
        bones[name] = carpal(name, CARPAL_SIGMA_MM, roll, body, rng)
    extras = _draw_extras(chains, body, style, rng)
    for name, end in (("Radius", (-9.0, -27.0)), ("Ulna", (17.5, -37.0))):
        measures = anatomy()[name]
        degrees = float(np.clip(rng.normal(0.0, 1.5), -3, 3)) + (2.5 if name == "Radius" else -1.5)
        reach = direction(degrees) * measures.length * body.stretch[name]
        origin = (np.array(end) * [body.breadth, 1.0] - reach) * body.size
        bones[name] = long_bone(name, origin, degrees, 0.0, roll, body)
    deviation = rng.normal(0.0, style.deviation_degrees)
    if bent:
        deviation = rng.uniform(*BENT_DEGREES) * (1.0 if rng.random() < 0.6 else -0.67)
    turn = float(np.clip(rng.normal(0.0, style.turn_degrees), -30.0, 30.0))
    placing = _Placing(body, roll, deviation, turn)
    forearm = np.array([[3.0, -38.0], [2.0, -80.0], [1.0, -190.0], [0.0, -430.0]]) * body.size
    return PosedHand(
        {name: placing.bone(bone) for name, bone in bones.items()},
        [placing.bone(bone) for bone in extras],
        [placing.points(joints, chain[0]) for joints, chain in zip(chains, FINGERS, strict=True)],
        placing.points(forearm, "forearm"),
        body,
    )


@dataclass(frozen=True)
class _Placing:
    """Moves what was laid out flat: the body's warp, the hand's roll, the wrist's bend, the turn of all."""

    body: Body
    roll: float
    deviation: float
    turn: float

    def points(self, points: Floats, name: str) -> Floats:
        """`name` is a bone or "forearm"."""
        points = warp(points, self.body)
        # Rolled about the forearm, bones nearer to the palm slide sideways over those behind them.
        aside = np.sin(self.roll) * _height_mm(name) * self.body.size
        points = points * [np.cos(self.roll), 1.0] + [aside, 0.0]
        # The proximal row follows half of the way: the midcarpal joint bends too.
        share = -0.4 if name in ("Radius", "Ulna", "forearm") else 0.27 if name in PROXIMAL_ROW else 0.6
        return turned(points, self.turn + share * self.deviation, np.array([4.0, -24.0]) * self.body.size)

    def bone(self, bone: PosedBone) -> PosedBone:
        ends = self.points(np.stack([bone.origin, bone.origin + bone.axis * bone.length]), bone.name)
        axis = ends[1] - ends[0]
        length = float(np.hypot(*axis))
        contour = self.points(bone.contour, bone.name)
        return replace(bone, contour=contour, origin=ends[0], axis=axis / length, length=length)


def _height_mm(name: str) -> float:
    """How far towards the palm a bone lies. Fingers lie flat on the plate, whatever the model's hand did, and a chain
    has one height, so that a rolled hand keeps its joints."""
    if name in FINGERS[0]:
        return THUMB_HEIGHT_MM
    if name in CARPALS:
        measures = anatomy()[name]
        return float(measures.proximal[2] + measures.distal[2]) / 2
    return PLATE_HEIGHT_MM


def _finger(
    index: int, body: Body, spread: float, bend: float, roll: float, style: Style, rng: np.random.Generator
) -> tuple[list[PosedBone], Floats]:
    """The bones of one finger from its metacarpal on, and the joints (mm) that its flesh follows."""
    chain = FINGERS[index]
    degrees = SPLAY_DEGREES[0, index] + rng.normal(0.0, style.thumb_degrees if index == 0 else 1.0)
    origin = (BASES_MM[index] * [body.breadth, 1.0] + [0.0, rng.normal(0.0, 0.4)]) * body.size
    tilt = rng.normal(0.0, 4.0)
    own = rng.uniform(0.0, 0.5) * bend
    more = body.joint_mm + (1.0 - body.growth) * CARTILAGE_MM
    bones, joints = [], [origin]
    for step, name in enumerate(chain):
        if step == 1:
            degrees += SPLAY_DEGREES[1, index] + spread * SPLAY_DEGREES[2, index]
        if step:
            degrees += rng.normal(0.0, style.finger_degrees) * (1.0 if step == 1 else 0.7)
            tilt += (bend + own) * (0.6 if step == 1 else 1.0) * (0.4 if index == 0 else 1.0)
        bone = long_bone(name, origin, degrees, tilt, roll, body)
        end = origin + bone.axis * bone.length
        bones.append(bone)
        joints.append(end)
        under = UNDER * bone.depth[-1] * np.sin(np.deg2rad(np.clip(tilt, 0.0, 60.0)))
        gap = (JOINT_MM[min(step, 2)] + more * (0.6 if step else 1.0)) * body.size - under
        origin = end + bone.axis * gap
    return bones, np.array(joints)


def _draw_extras(chains: list[Floats], body: Body, style: Style, rng: np.random.Generator) -> list[PosedBone]:
    """The hook of the hamate, and sesamoids at joints (of each finger from its metacarpal's base on, mm)."""
    hook = np.array([13.5, -5.5]) * body.size + rng.normal(0.0, 0.7, 2)
    found = [extra(hook, (rng.uniform(1.8, 2.6), rng.uniform(2.8, 3.8)), 5.0, rng.normal(10.0, 15.0), body)]
    places = [(0, 1, rng.uniform(7.0, 9.5), 1.0), (0, 1, rng.uniform(2.0, 4.0), 1.0)]
    places += [(index, 2 if index == 0 else 1, -aside, chance) for index, aside, chance in SESAMOIDS]
    for index, joint, aside, chance in places:
        towards = chains[index][joint] - chains[index][joint - 1]
        towards = towards / np.hypot(*towards)
        centre = chains[index][joint] + np.array([towards[1], -towards[0]]) * aside * body.size
        centre = centre - towards * rng.uniform(0.0, 4.0)
        one = extra(centre, (rng.uniform(1.2, 2.3), rng.uniform(1.4, 2.8)), 4.0, rng.uniform(0, 180), body)
        if rng.random() < chance * style.sesamoids:
            found.append(one)
    return found
