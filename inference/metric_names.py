"""Which scores there are beside the competition's Dice. Imports nothing slow, so that settings can be checked at once.

Where a class is in neither mask of an image there is nothing to score: iou, precision, recall and the surfaces' scores
leave the image out of the class's mean, and tables say how many they left out. Where it is in one mask only they take
the worst value, also where the formula is 0 / 0 (precision of an empty prediction): leaving it out would flatter a
network that predicts nothing. Accuracy is always defined, and always near 1 for a small bone.
"""

from __future__ import annotations

from collections.abc import Iterable

from config import ConfigProblem, suggest

BY_COUNTS = ("iou", "precision", "recall", "accuracy")
BY_SURFACES = ("hausdorff", "hausdorff95", "surface_dice")
CONFUSION = "confusion"
METRICS = (*BY_COUNTS, *BY_SURFACES, CONFUSION)
ALL = "all"


def chosen_metrics(names: Iterable[str]) -> tuple[str, ...]:
    """The metrics that the setting asks for, each once, in the order of METRICS.

    Raises:
        ConfigProblem: a name that is neither one of METRICS nor `all`.
    """
    asked = {name.casefold() for name in names}
    for name in sorted(asked - {*METRICS, ALL}):
        raise ConfigProblem(
            f"metrics holds {name!r}{suggest(name, METRICS)}, but each must be one of {', '.join(METRICS)} or {ALL}."
        )
    return METRICS if ALL in asked else tuple(name for name in METRICS if name in asked)
