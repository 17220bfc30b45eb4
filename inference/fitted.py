"""What a fit found, as a file beside the checkpoints: weights, thresholds, post-processing, and the evidence."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.files import FileProblem, write_json

VERSION = 1
TOGETHER = "together"
"""Name of the evidence of all choices that are used."""
AGAIN = "fit again with inference/optimize.py"


@dataclass(frozen=True)
class Member:
    """A member of the ensemble as it was when it was fitted."""

    path: str
    sha256: tuple[str, ...]
    """Of its checkpoints: one, or one a fold."""


@dataclass(frozen=True)
class Evidence:
    """What one choice gains. Dice is the competition's mean over images, then classes, of subjects that the choice was
    not fitted on; intervals are 95 %, by a bootstrap over subjects."""

    name: str
    detail: str
    """What was chosen on all images."""
    dice: float
    """With the choice, and those that are used before it."""
    simple_dice: float
    """Of equal weights, 0.5, no post-processing."""
    gain: float
    """`dice` - `simple_dice`."""
    low: float
    high: float
    added: float
    """Over the choices that are used before it."""
    added_low: float
    added_high: float
    clears: bool
    """Both intervals lie above 0."""
    used: bool
    forced: bool
    """It was asked for, whether it clears its noise or not."""


@dataclass(frozen=True)
class Fitted:
    """The choices that are used, fitted on all images.

    Raises:
        ValueError: lengths that don't fit together, or numbers out of range.
    """

    classes: tuple[str, ...]
    members: tuple[Member, ...]
    weights: tuple[tuple[float, ...], ...] | None
    """Of each member its weight for each class, (M, K), each class's of sum 1; None: all members weigh the same."""
    thresholds: tuple[float, ...] | None
    """Of each class, a probability; None: 0.5."""
    post_process: tuple[str, ...]
    """Steps of inference/post_process.py, in their order."""
    evidence: tuple[Evidence, ...]
    """Of all choices that were looked at; the last is all that are used together."""

    def __post_init__(self) -> None:
        n_classes = len(self.classes)
        if self.weights is not None:
            if [len(row) for row in self.weights] != [n_classes] * len(self.members):
                raise ValueError(f"weights must be {len(self.members)} members' of {n_classes} classes each")
            if not all(weight >= 0 for row in self.weights for weight in row):
                raise ValueError("weights must be 0 or more")
            if not all(math.isclose(sum(column), 1, abs_tol=1e-6) for column in zip(*self.weights, strict=True)):
                raise ValueError("weights of a class must sum to 1")
        if self.thresholds is not None:
            if len(self.thresholds) != n_classes:
                raise ValueError(f"thresholds are {len(self.thresholds)}, but there are {n_classes} classes")
            if not all(0 < threshold < 1 for threshold in self.thresholds):
                raise ValueError("thresholds must lie between 0 and 1")

    def check(self, classes: Sequence[str], sha256s: Sequence[Sequence[str]]) -> None:
        """Check that the fit belongs to this ensemble.

        Args:
            classes: of the ensemble.
            sha256s: of the checkpoints of each member, in the members' order.

        Raises:
            FileProblem: other classes, another number of members, or a checkpoint that has changed since.
        """
        if tuple(classes) != self.classes:
            raise FileProblem(
                f"Weights and thresholds were fitted for the classes {_short(self.classes)}, but the ensemble has "
                f"{_short(classes)}: {AGAIN}."
            )
        if len(sha256s) != len(self.members):
            raise FileProblem(
                f"Weights and thresholds were fitted for {len(self.members)} members, but the ensemble has "
                f"{len(sha256s)}: {AGAIN}."
            )
        for member, found in zip(self.members, sha256s, strict=True):
            if tuple(found) != member.sha256:
                raise FileProblem(f"The checkpoints of {member.path} have changed since the fit: {AGAIN}.")


def write_fitted(path: Path | str, fitted: Fitted) -> None:
    """Write as JSON; atomic, replaces an older fit."""
    write_json(path, {"version": VERSION, **asdict(fitted)})


def read_fitted(path: Path | str) -> Fitted:
    """Read what `write_fitted` wrote.

    Raises:
        FileProblem: it is missing, damaged or of another version.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        version = found["version"]
        if version == VERSION:
            return _fitted(found)
    except OSError as error:
        raise FileProblem(f"{path} cannot be read ({error.strerror}): {AGAIN}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileProblem(f"{path} is no result of a fit ({error}): {AGAIN}.") from error
    raise FileProblem(f"{path} is of version {version}, but must be of version {VERSION}: {AGAIN}.")


def _fitted(found: dict[str, Any]) -> Fitted:
    weights, thresholds = found["weights"], found["thresholds"]
    return Fitted(
        tuple(map(str, found["classes"])),
        tuple(Member(str(m["path"]), tuple(map(str, m["sha256"]))) for m in found["members"]),
        None if weights is None else tuple(tuple(map(float, row)) for row in weights),
        None if thresholds is None else tuple(map(float, thresholds)),
        tuple(map(str, found["post_process"])),
        tuple(Evidence(**evidence) for evidence in found["evidence"]),
    )


def _short(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[1]}, … ({len(names)})"
