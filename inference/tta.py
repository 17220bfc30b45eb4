"""Test-time augmentation: views of an image whose predictions are turned back and averaged.

Flips, rotations by 90 degrees and changes of intensity act on each window (or on the whole image) on its way through
the network and back. A rotated image's windows are the rotated windows of the image, so nothing is lost, every
operation is undone exactly at any size, and finished rows still leave from top to bottom. Changes of size act on the
whole frame; predictor.Scaled undoes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from config import Config, ConfigProblem
from dataset.switches import switches_of


@dataclass(frozen=True)
class View:
    """One way to look at an image; the order of the changes is mirror, turns, intensity."""

    mirrored: bool = False
    """Left and right swapped."""
    turns: int = 0
    """Rotations by 90 degrees, counterclockwise."""
    scale: float = 1.0
    """Size relative to the frame's."""
    intensity: float = 1.0
    """Factor on grey values."""

    def apply(self, grey: Tensor) -> Tensor:
        """(..., H, W) grey values as the network sees them; (..., W, H) after an odd number of turns."""
        seen = grey.flip(-1) if self.mirrored else grey
        seen = torch.rot90(seen, self.turns, (-2, -1)) if self.turns else seen
        return (seen * self.intensity).clamp(0, 1) if self.intensity != 1 else seen

    def undo(self, values: Tensor) -> Tensor:
        """What the network made of it, (..., H', W'), back on the pixels of the image."""
        back = torch.rot90(values, -self.turns, (-2, -1)) if self.turns else values
        return back.flip(-1) if self.mirrored else back

    def __str__(self) -> str:
        parts = ["mirrored"] if self.mirrored else []
        parts += [f"turned {90 * self.turns}°"] if self.turns else []
        parts += [f"size {self.scale:g}"] if self.scale != 1 else []
        parts += [f"intensity {self.intensity:g}"] if self.intensity != 1 else []
        return ", ".join(parts) or "plain"


PLAIN = View()

FLIPS = (PLAIN, View(mirrored=True))
ROTATIONS = (*FLIPS, View(True, 2), View(turns=2), View(turns=1), View(turns=3), View(True, 1), View(True, 3))
"""All eight symmetries of a square; mirrored and turned by 180 degrees is the vertical flip."""


def views_of(cfg: Config, mode: str) -> tuple[View, ...]:
    """The views of a mode, the plain one first, `n_tta` at most; only those that training has seen.

    Raises:
        ConfigProblem: training showed some of them never to the network, and `tta_unseen` is error.
    """
    chosen = cfg.inference
    asked: dict[str, tuple[View, ...]] = {"none": (PLAIN,), "flip": FLIPS, "flip_rotate": ROTATIONS}
    asked["full"] = (
        *ROTATIONS,
        *(View(scale=scale) for scale in chosen.tta_scales),
        *(View(intensity=factor) for factor in chosen.tta_intensities),
    )
    views = asked[mode]
    unseen = [view for view in views if not was_seen(view, cfg)]
    if unseen and chosen.tta_unseen == "error":
        raise ConfigProblem(
            f"tta_mode {mode}: training (augment {cfg.augment.augment}) never showed these views to the network: "
            f"{'; '.join(map(str, unseen))}. Give --tta_unseen skip to leave them out or allow to use them, or train "
            f"with hflip, vflip, rotate, scale, brightness and contrast that cover them."
        )
    if chosen.tta_unseen == "skip":
        views = tuple(view for view in views if view not in unseen)
    return views[: chosen.n_tta or None]


def was_seen(view: View, cfg: Config) -> bool:
    """Whether training could show this view to the network: flips and ranges of its augmentation cover it."""
    return (
        _turned(view, cfg)
        and _covers(cfg.augment.contrast, view.intensity - 1)
        # a x is contrast a around mid grey and (a - 1) / 2 more brightness.
        and _covers(cfg.augment.brightness, (view.intensity - 1) / 2)
        and (_covers(cfg.augment.scale, view.scale - 1) or _zoomed(view.scale, cfg))
    )


def _turned(view: View, cfg: Config) -> bool:
    augment = cfg.augment
    mirrors = augment.hflip[2] > 0 and not switches_of(cfg).flip  # the switch shows one side of hands only
    upside_down = augment.vflip[2] > 0
    flips = {(False, 0)}
    flips |= {(True, 0)} if mirrors else set()
    flips |= {(True, 2)} if upside_down else set()
    flips |= {(False, 2)} if mirrors and upside_down else set()
    return any(
        mirrored == view.mirrored and any(_covers(augment.rotate, angle) for angle in _angles(view.turns - turns))
        for mirrored, turns in flips
    )


def _angles(turns: int) -> tuple[float, float]:
    """Degrees clockwise, as `rotate` has them, of this many counterclockwise quarter turns, either way round."""
    angle = 90.0 * (-turns % 4)
    return angle, angle - 360


def _zoomed(scale: float, cfg: Config) -> bool:
    low, _, probability = cfg.augment.resized_crop
    return bool(probability > 0 and 1 <= scale <= low**-0.5 + 1e-6)


def _covers(values: tuple[float, float, float], value: float) -> bool:
    low, high, probability = values
    return abs(value) < 1e-6 or bool(probability > 0 and low - 1e-6 <= value <= high + 1e-6)
