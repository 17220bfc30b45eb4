"""Ultrasound-like frames of a bone's surface with its masks, drawn so that the ultrasound workflow runs without data.

A picture and no simulation of waves: layers of tissue with bright fasciae, a brighter curved surface of bone at some
depth with its shadow below, speckle (the envelope of complex Gaussian noise, Burckhardt 1978, doi
10.1109/T-SU.1978.30978) that widens with depth, and logarithmic compression.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.files import FileProblem

Plane = NDArray[np.float32]
Mask = NDArray[np.uint8]

FRAMES = 4
"""Labelled frames of a video; fewer where there would be less than VIDEOS videos."""
VIDEOS = 10
BARE = 5
"""Of the unlabelled frames each so many-th shows no bone, as where the probe was lifted off."""
RANGE_DB = 50.0
"""Dynamic range of the picture: so far below the brightest echo everything is black."""


class Bone(NamedTuple):
    """The surface, in shares of the picture's side, seen from the probe at the top."""

    depth: float
    """Of its middle."""
    centre: float
    half: float
    """Half of its width."""
    tilt: float
    arch: float
    """How much deeper its ends are."""
    bump: float
    thickness: float
    """Of its mask."""


class Scan(NamedTuple):
    """What all frames of a video share."""

    bone: Bone
    layers: NDArray[np.float64]
    """(n, 4) depth, slope, echo of the tissue below, dB, and echo of the fascia at its top, dB."""
    shadow: float
    """Echo of what lies behind bone, dB."""
    gain: float
    """dB."""
    fading: float
    """Echo that is lost from the top to the bottom, dB."""


def write_ultrasound(root: Path, count: int, size: int, seed: int) -> None:
    """Write `count` labelled frames and half as many unlabelled ones; the same arguments give the same files.

    Frames are images/p01_0001.png with masks_manual/p01_0001.png (0 and 255), and raw_unlabelled/p01_0005.png: p01 is
    the video. Of the unlabelled frames half are of the labelled videos, half of others, and some show no bone.

    Args:
        root: new or empty folder.
        count: labelled frames.
        size: height and width, px.
        seed: of everything that is drawn.

    Raises:
        FileProblem: a file can't be written.
    """
    each = max(min(FRAMES, count // VIDEOS), 1)
    for number in range(count):
        video, frame = 1 + number // each, 1 + number % each
        image, mask = draw_frame(seed, video, frame, size)
        _save(root / "images" / _name(video, frame), image)
        _save(root / "masks_manual" / _name(video, frame), mask)
    videos = -(-count // each)
    for number in range(count // 2):
        turn = number // 2
        later = 1 + turn % videos, each + 1 + turn // videos
        video, frame = (videos + 1 + turn // each, 1 + turn % each) if number % 2 else later
        image, _ = draw_frame(seed, video, frame, size, with_bone=number % BARE < BARE - 1)
        _save(root / "raw_unlabelled" / _name(video, frame), image)


def draw_frame(seed: int, video: int, frame: int, size: int, with_bone: bool = True) -> tuple[Mask, Mask]:
    """A frame and the mask of its bone, both (size, size) uint8, the mask 0 and 255."""
    scan = _draw_scan(np.random.default_rng((seed, video)))
    rng = np.random.default_rng((seed, video, frame))
    bone = _moved(scan.bone, video + 0.9 * frame)
    v, u = (np.mgrid[:size, :size].astype(np.float32) + np.float32(0.5)) / np.float32(size)
    below = v - _surface(bone, u)
    edge = np.clip((bone.half - np.abs(u - bone.centre)) / 0.03, 0, 1)
    decibels = _tissue(scan, u, v, rng) + 5 * _patches(rng, size, 0.05, 0.02) - scan.fading * v
    mask = np.zeros((size, size), np.uint8)
    if with_bone:
        decibels += (scan.shadow + 4 * _patches(rng, size, 0.02, 1)) * edge * np.clip(below / 0.06, 0, 1)
        echo = 3 - 14 * np.abs(_slope(bone, u)) - 20 * (1 - edge)  # what is tilted sends its echo elsewhere
        echo += 4 * _patches(rng, size, 0.05, 1)
        decibels = np.maximum(decibels, echo - 9 * (np.where(below < 0, below / 0.01, below / 0.025)) ** 2)
        mask[(np.abs(below - 0.2 * bone.thickness) < bone.thickness / 2) & (np.abs(u - bone.centre) < bone.half)] = 255
    seen = decibels + 20 * np.log10(_speckle(rng, size) + 1e-3) + scan.gain
    return np.clip(255 * (1 + seen / RANGE_DB), 0, 255).astype(np.uint8), mask


def _name(video: int, frame: int) -> str:
    return f"p{video:02d}_{frame:04d}.png"


def _draw_scan(rng: np.random.Generator) -> Scan:
    bone = Bone(
        depth=rng.uniform(0.3, 0.65),
        centre=rng.uniform(0.35, 0.65),
        half=rng.uniform(0.2, 0.4),
        tilt=rng.uniform(-0.3, 0.3),
        arch=rng.uniform(0.02, 0.12),
        bump=rng.uniform(-0.015, 0.015),
        thickness=rng.uniform(0.05, 0.08),
    )
    n = int(rng.integers(3, 6))
    depths = np.sort(rng.uniform(0.04, 0.9, n))
    layers = [depths, rng.uniform(-0.15, 0.15, n), rng.uniform(-32, -19, n), rng.uniform(-18, -6, n)]
    return Scan(bone, np.stack(layers, 1), -rng.uniform(16, 26), rng.uniform(-8, 1), rng.uniform(2, 14))


def _moved(bone: Bone, phase: float) -> Bone:
    """A moment later: the probe glides and tilts."""
    return bone._replace(
        depth=bone.depth + 0.03 * np.sin(phase),
        centre=bone.centre + 0.05 * np.sin(0.7 * phase + 1),
        half=bone.half * (1 + 0.1 * np.sin(1.3 * phase)),
        tilt=bone.tilt + 0.05 * np.cos(phase),
    )


def _surface(bone: Bone, u: Plane) -> Plane:
    """Depth of the surface over the width."""
    t = (u - bone.centre) / bone.half
    bent = bone.tilt * (u - bone.centre) + bone.arch * t * t + bone.bump * np.cos(5 * t)
    return np.asarray(bone.depth + bent, np.float32)


def _slope(bone: Bone, u: Plane) -> Plane:
    t = (u - bone.centre) / bone.half
    return np.asarray(bone.tilt + (2 * bone.arch * t - 5 * bone.bump * np.sin(5 * t)) / bone.half, np.float32)


def _tissue(scan: Scan, u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Echo of the layers and of the fasciae between them, dB."""
    size = len(u)
    echo = np.full(u.shape, -22.0, np.float32)
    for depth, slope, below, fascia in scan.layers:
        wave = 0.01 * np.sin(9 * u + rng.uniform(0, 0.6) + 40 * depth)
        under = v - (depth + slope * (u - 0.5) + wave)
        echo = np.where(under > 0, np.float32(below), echo)
        echo = np.maximum(echo, fascia + 6 * _patches(rng, size, 0.08, 1) - 9 * (under / 0.008) ** 2)
    return np.asarray(echo, np.float32)


def _patches(rng: np.random.Generator, size: int, across: float, down: float) -> Plane:
    """Smooth noise of standard deviation 1 whose patches are so wide and high; a height of 1 is one row for all."""
    rows = 1 if down == 1 else size
    noise = rng.standard_normal((rows, size)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigmaX=across * size, sigmaY=down * size if rows > 1 else 1)
    return np.asarray(smooth / smooth.std(), np.float32)


def _speckle(rng: np.random.Generator, size: int) -> Plane:
    """Envelope of mean 1 whose grains are wide, and wider with depth, where the beam is."""
    parts = [rng.standard_normal((2, size, size)).astype(np.float32) for _ in range(2)]
    near, far = (_envelope(part, size, width) for part, width in zip(parts, (0.008, 0.018), strict=True))
    share = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    return np.asarray((1 - share) * near + share * far, np.float32)


def _envelope(noise: Plane, size: int, width: float) -> Plane:
    grains = [cv2.GaussianBlur(part, (0, 0), sigmaX=width * size, sigmaY=0.005 * size) for part in noise]
    envelope = np.hypot(*grains)
    return np.asarray(envelope / envelope.mean(), np.float32)


def _save(path: Path, picture: Mask) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), picture):
        raise FileProblem(f"{path} could not be written: is the disk full or read-only?")
