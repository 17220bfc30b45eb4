"""Draw every augmentation on one hand:

python scripts/show_augmentations.py [--output augmentations.png] [--set heavy] [--image FILE --label JSON]
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import AUGMENT_SETS, Config, ConfigProblem, Range
from engine import settings
from engine.flags import run_command

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dataset.readers import Record
    from dataset.samples import Sample

    Picture = NDArray[np.uint8]

DESCRIPTION = """Draw one page with every augmentation on one hand, with the labels' outlines. Each panel says the three
numbers of the augmentation (lowest value, highest value, probability) and the value that it shows."""

LACKING: dict[str, Range] = {"copy_paste": (1.0, 4.0, 0.5), "mixup": (0.2, 0.5, 0.5), "cutmix": (0.1, 0.3, 0.5)}
"""Strong ones that the heavy set has not."""
NEUTRAL = {"resized_crop": 1.0, "low_resolution": 1.0}
"""Values at which an augmentation does nothing, where that is not 0: shown is the value farther from it."""
COLUMNS = 5
BACKGROUND = 40
"""Grey value of the page."""
SUBJECTS = 2
"""Phantoms: the first is shown, the others give what is mixed in."""
SEED = 8
"""Of the phantoms and of all that is drawn by chance."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    output: str = "augmentations.png"
    """PNG to write; one that is there is replaced."""
    set: str = "heavy"
    """Set of augmentations whose numbers are shown: none, light, medium, heavy, hand. Those that it lacks are shown
    with strong ones."""
    image: str = ""
    """Image to show; empty draws a phantom."""
    label: str = ""
    """Its label, a competition JSON."""
    size: int = 400
    """Side of a panel, px."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    if not 128 <= chosen.size <= 2048:
        raise ConfigProblem(f"size is {chosen.size}, but must lie between 128 and 2048.")
    if bool(chosen.image) != bool(chosen.label):
        raise ConfigProblem("image and label belong together: give both, or none for a phantom.")
    ranges = _ranges(chosen.set)
    import cv2  # after --help, which must not wait for it

    from engine.files import atomic_path

    with tempfile.TemporaryDirectory() as folder:
        page = _page(_records(chosen, Path(folder) / "phantoms"), ranges, chosen.size)
    with atomic_path(Path(chosen.output)) as temporary:
        temporary.write_bytes(cv2.imencode(".png", page)[1].tobytes())
    print(f"{chosen.output}: {page.shape[1]} x {page.shape[0]} px")
    return 0


def _ranges(name: str) -> dict[str, tuple[Range, str]]:
    """Augmentation -> its three numbers and a remark: the set's, strong ones where the set lacks it."""
    augment = settings.replace(Config(), {"augment": name}).augment
    found: dict[str, tuple[Range, str]] = {}
    for entry in settings.AUGMENTATIONS:
        own: Range = getattr(augment, entry)
        strong = AUGMENT_SETS["heavy"].get(entry) or LACKING[entry]
        found[entry] = (own, "") if own[2] > 0 else (strong, f"  (not in {augment.augment})")
    return found


def _records(chosen: Flags, root: Path) -> list[Record]:
    """The image that is shown, then those that are mixed in."""
    from dataset.phantom import PhantomSet, write_phantom_set
    from dataset.readers import Record, read_competition

    write_phantom_set(root, PhantomSet(train_subjects=SUBJECTS, test_subjects=1, size=chosen.size, seed=SEED))
    phantoms = read_competition(root, "train")
    return [Record(Path(chosen.image), Path(chosen.label), "image"), *phantoms] if chosen.image else phantoms


def _page(records: list[Record], ranges: dict[str, tuple[Range, str]], size: int) -> Picture:
    """The page, (height, width, 3) uint8 BGR: every group of augmentations begins a row with the original."""
    import numpy as np

    from dataset.plan import DISTORTIONS, FILTERS, MIXERS, Tone

    tones = [field.name for field in dataclasses.fields(Tone)]
    others = {*tones, *DISTORTIONS, *FILTERS, *MIXERS}
    groups = [[*(n for n in ranges if n not in others), *DISTORTIONS], tones, list(FILTERS), list(MIXERS)]
    original = _panel(_sample(records, {}, size), "original", "")
    blank, rows = np.full_like(original, BACKGROUND), []
    for group in groups:
        panels = [original, *(_augmented(records, name, *ranges[name], size) for name in group)]
        panels += [blank] * (-len(panels) % COLUMNS)
        rows += [np.hstack(panels[i : i + COLUMNS]) for i in range(0, len(panels), COLUMNS)]
    return np.vstack(rows)


def _augmented(records: list[Record], name: str, numbers: Range, remark: str, size: int) -> Picture:
    low, high, probability = numbers
    value = max((high, low), key=lambda end: abs(end - NEUTRAL.get(name, 0.0)))
    sample = _sample(records, {name: (value, value, 1.0)}, size)
    return _panel(sample, f"{name}{remark}", f"{low:g} {high:g} {probability:g}, here {value:g}")


def _sample(records: list[Record], ranges: dict[str, Range], size: int) -> Sample:
    """The first image with these augmentations and no others."""
    from dataset.samples import Samples
    from dataset.sources import Files
    from dataset.switches import Switches

    cfg = settings.replace(Config(), {"augment": "none", "seed": SEED, "image_size": size, **ranges})
    return Samples(records, cfg, size, False, Files(records, cfg, Switches(), size)).sample((0, 0, 0))


def _panel(sample: Sample, title: str, numbers: str) -> Picture:
    """A sample with its outlines, under two lines of text."""
    import cv2
    import numpy as np

    from config import HAND_BONES
    from inference.overlay import draw_overlay

    size = len(sample.grey)
    scale, line, margin = size / 720, size // 18, max(2, size // 40)
    drawn = cv2.resize(draw_overlay(sample.grey, sample.bits, HAND_BONES), (size, size), interpolation=cv2.INTER_AREA)
    panel = np.full((size + 2 * line + 2 * margin, size + 2 * margin, 3), BACKGROUND, np.uint8)
    panel[-size - margin : -margin, margin:-margin] = drawn
    for row, (text, grey) in enumerate(((title, 255), (numbers, 190)), 1):
        place = (margin, row * line)
        cv2.putText(panel, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (grey,) * 3, max(1, size // 400), cv2.LINE_AA)
    return panel


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
