"""What is said of the hands of an image: side, turn, polarity, and how sure the network is of each bone."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

UNSURE = 0.7
"""Bones of less confidence are named."""
NAMED = 3
"""So many of them at most."""
TOLD = 20
"""Images of which each is told of; of more, only the sum."""
UPRIGHT = 45.0
"""Degrees either way that still count as upright, on its side, or upside down."""

_HEAD = ("image_name", "hand", "side", "turned", "inverted", "score")


@dataclass(frozen=True)
class Hand:
    """One hand of an image."""

    side: Literal["left", "right"]
    """If it is seen from its back (PA, as usual)."""
    turned: float
    """By how many degrees, clockwise: 0 has the fingers up."""
    inverted: bool
    """Bones are dark on a light ground."""
    score: float
    """Of the match with an average hand, 0 to 1."""
    confidence: tuple[float, ...]
    """Mean probability inside the mask of each class; 0 where there is none."""


def hands_header(classes: Sequence[str]) -> tuple[str, ...]:
    """The columns of hands.csv; the last ones are confidences."""
    return (*_HEAD, *classes)


def hand_rows(image_name: str, hands: Sequence[Hand], classes: Sequence[str]) -> list[tuple[str, ...]]:
    """Rows under `hands_header`: one for each hand, counted from 1; hand 0 says that there is none."""
    if not hands:
        return [(image_name, "0", *[""] * (len(_HEAD) - 2 + len(classes)))]
    return [
        (
            *(image_name, str(number), hand.side, f"{hand.turned:.0f}", str(int(hand.inverted)), f"{hand.score:.3f}"),
            *(f"{confidence:.3f}" for confidence in hand.confidence),
        )
        for number, hand in enumerate(hands, 1)
    ]


def describe_hands(path: Path) -> list[str]:
    """Sentences about a hands.csv: one for each image, or of many images their sum."""
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    images = [(name, list(of)) for name, of in groupby(rows, key=lambda row: row[0])]
    if len(images) <= TOLD:
        return [f"{name}: {' and '.join(_said(row, header) for row in of)}" for name, of in images]
    without = [name for name, of in images if of[0][1] == "0"]
    several = sum(len(of) > 1 for _, of in images)
    some = f" ({', '.join(without[:NAMED])}{', …' if len(without) > NAMED else ''})" if without else ""
    return [f"hands: none in {len(without)} of {len(images)} images{some}, several in {several}"]


def _said(row: Sequence[str], header: Sequence[str]) -> str:
    found = dict(zip(header, row, strict=True))
    if found["hand"] == "0":
        return "not a hand"
    confidence = {name: float(found[name]) for name in header[len(_HEAD) :]}
    missing = [name for name, value in confidence.items() if value == 0]
    unsure = sorted((name for name, value in confidence.items() if 0 < value < UNSURE), key=lambda n: confidence[n])
    parts = [f"a {found['side']} hand (if seen from its back)", _turn(float(found["turned"]))]
    parts += ["dark on light"] if found["inverted"] == "1" else []
    parts.append(f"{len(confidence) - len(missing)} of {len(confidence)} bones")
    parts += [f"missing {_some(missing)}"] if missing else []
    parts += [f"least sure of {_some([f'{n} ({confidence[n]:.2f})' for n in unsure])}"] if unsure else []
    return ", ".join(parts)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _turn(degrees: float) -> str:
    if abs(degrees) <= UPRIGHT:
        return "upright" if abs(degrees) < 1 else f"upright, turned by {degrees:.0f} degrees"
    if abs(degrees) >= 180 - UPRIGHT:
        return "upside down"
    return f"on its side, fingers to the {'right' if degrees > 0 else 'left'}"
