"""The measured part of a model card: what a network that finds hands does on drawn ones, style by style.

python scripts/model_card.py checkpoints/phantom --write
"""

from __future__ import annotations

import hashlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import BEST, HAND_BONES
from engine.flags import run_command

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from config import Config
    from inference.ensemble import Ensemble

DESCRIPTION = """Measure a network on drawn hands that it has not seen, as Markdown: Dice on each style, what find_hands
makes of hands that lie anyhow and of pictures without one, time and memory. Exit codes: 0 done, 1 a file is wrong, 2 a
flag is wrong."""

INFERENCE = Path(__file__).resolve().parent.parent / "inference" / "inference.py"

SEED = 20_261_122
"""Of all drawings: no preset trains on it."""
SIZES = (500, 2000)
"""Smallest and largest side of the hands that lie anyhow, px; their margins come on top."""
MARGIN = 0.5
"""Widest margin, share of the drawing."""
LARGE = 2048
"""Side of the radiograph that time and memory are taken of, px."""
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True)
class Flags:
    """The command line."""

    folder: tyro.conf.Positional[Path]
    """Folder of the weights (best.safetensors); its README.md is the card."""
    subjects: int = 16
    """Subjects of each style, two hands each."""
    hands: int = 40
    """Hands that lie anyhow."""
    others: tuple[Path, ...] = ()
    """Folders of images that show no hand, beside the drawn ultrasound frames."""
    write: bool = False
    """Put it into the card, between its two marks."""


@dataclass(frozen=True)
class Shown:
    """A drawn hand as it lies in a picture."""

    image: NDArray[np.uint8]
    bits: NDArray[np.int32]
    """(1, H, W)."""
    side: str
    turned: int
    """Degrees clockwise, in quarter turns."""
    inverted: bool


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    from config import ConfigProblem
    from engine import settings
    from engine.files import FileProblem, write_text
    from inference.build import single
    from model.checkpoint import read_checkpoint

    if min(chosen.subjects, chosen.hands) < 1:
        raise ConfigProblem(f"subjects is {chosen.subjects} and hands is {chosen.hands}: give 1 or more of each.")
    for folder in chosen.others:
        if not folder.is_dir():
            raise FileProblem(f"{folder} is no folder: give --others folders of images.")
    path, card = chosen.folder / BEST, chosen.folder / "README.md"
    found = read_checkpoint(path)
    if found.cfg.data.classes != HAND_BONES:
        raise ConfigProblem(f"{path} has not the 29 bones of a hand: there is no card for it.")
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    if chosen.write and not (BEGIN in text and END in text):
        raise FileProblem(f"{card} has no lines {BEGIN} and {END}: add them where the measured part belongs.")
    cfg = settings.replace(found.cfg, {"find_hands": True})
    ensemble = single(cfg, found.network())
    with tempfile.TemporaryDirectory() as place:
        parts = [
            _file(path),
            _by_style(ensemble, cfg, Path(place), chosen.subjects),
            _as_they_come(ensemble, cfg, Path(place), chosen.hands),
            _without_hands(ensemble, cfg, Path(place), chosen.others),
            _cost(path, Path(place)),
        ]
    measured = "\n\n".join(parts)
    print(measured)
    if chosen.write:
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        write_text(card, f"{before}{BEGIN}\n\n{measured}\n\n{END}{after}")
    return 0


def _file(path: Path) -> str:
    content = path.read_bytes()
    return f"`{path.name}`: {len(content):,} bytes, SHA-256\n`{hashlib.sha256(content).hexdigest()}`."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _by_style(ensemble: Ensemble, cfg: Config, place: Path, subjects: int) -> str:
    from dataset.phantom import PhantomSet, write_phantom_set
    from dataset.phantom_styles import STYLES
    from dataset.readers import read_competition
    from inference.metrics import DiceTable
    from inference.pipeline import predict, score

    rows = []
    for style in STYLES:
        root = place / style
        write_phantom_set(root, PhantomSet(2, subjects, 512, SEED, (style,)))
        table = DiceTable(HAND_BONES)
        for prediction in predict(ensemble, read_competition(root, "test"), cfg, "cpu"):
            score(prediction, table, None)
        bones = sorted(table.summary(), key=lambda bone: bone.mean)[:3]
        lowest = ", ".join(f"{bone.label} {bone.mean:.2f}" for bone in bones)
        trained = "yes" if style in cfg.phantom.phantom_styles else "**never**"
        rows.append((f"`{style}`", trained, f"{table.mean():.3f}", lowest))
    said = f"Both hands of {subjects} subjects of each style, 512 px, upright, over half with bent wrists:"
    return f"{said}\n\n{_table(('style', 'trained on', 'mean Dice', 'lowest'), rows)}"


def lying(number: int) -> Shown:
    """A drawn hand of any style, side, size and margin, turned by quarter turns, mirrored and inverted by chance."""
    import numpy as np

    from dataset.labels import rasterise
    from dataset.phantom_draw import draw_phantom
    from dataset.phantom_styles import STYLES

    rng = np.random.default_rng((SEED, number))
    size, side = int(rng.integers(*SIZES)), "LR"[rng.integers(2)]
    phantom = draw_phantom(SEED, number, side, size, bool(rng.random() < 0.3), tuple(STYLES))
    bits = rasterise(phantom.polygons, HAND_BONES, size, size, str(number))[0]
    margins = (size * rng.uniform(0, MARGIN, (2, 2))).astype(int)
    image, bits = np.pad(phantom.image, margins), np.pad(bits, margins)
    turns, mirror, inverted = int(rng.integers(4)), bool(rng.random() < 0.3), bool(rng.random() < 0.5)
    if mirror:
        image, bits = image[:, ::-1], bits[:, ::-1]
    image, bits = (np.ascontiguousarray(np.rot90(plane, -turns)) for plane in (image, bits))
    seen = "left" if (side == "L") != mirror else "right"
    return Shown(255 - image if inverted else image, bits[None], seen, 90 * turns, inverted)


def _as_they_come(ensemble: Ensemble, cfg: Config, place: Path, hands: int) -> str:
    import cv2
    import numpy as np

    from dataset.readers import Record
    from inference.metrics import DiceTable, count_bits, dice_from_counts
    from inference.pipeline import predict

    table, right = DiceTable(HAND_BONES), np.zeros((hands, 5))
    for number in range(hands):
        shown = lying(number)
        path = place / f"{number}.png"
        cv2.imwrite(str(path), shown.image)
        (prediction,) = predict(ensemble, [Record(path, None, "x")], cfg, "cpu")
        counts = count_bits(prediction.bits, shown.bits, len(HAND_BONES))
        table.add(path.name, dice_from_counts(counts))
        if not prediction.hands:
            continue
        hand = prediction.hands[0]
        turn = abs((hand.turned - shown.turned + 180) % 360 - 180) < 45
        there = counts[2] > 0
        found = float((counts[0] > 0)[there].mean())
        right[number] = True, hand.side == shown.side, turn, hand.inverted == shown.inverted, found
    share = [f"{100 * value:.0f} %" for value in right.mean(axis=0)]
    said = (
        f"{hands} hands of all styles, left and right, {SIZES[0]} to {SIZES[1]} px with margins of up to half of that, "
        f"in all quarter turns (on top of their own), some mirrored, half of them negatives:"
    )
    head = ("found", "side right", "turn right", "polarity right", "bones touched where they are", "mean Dice")
    return f"{said}\n\n{_table(head, [(*share, f'{table.mean():.3f}')])}"


def _without_hands(ensemble: Ensemble, cfg: Config, place: Path, folders: Sequence[Path]) -> str:
    import cv2

    from dataset.images import IMAGE_SUFFIXES
    from dataset.readers import Record
    from dataset.ultrasound import draw_frame
    from inference.pipeline import predict

    drawn = place / "drawn ultrasound"
    drawn.mkdir()
    for number in range(8):
        cv2.imwrite(str(drawn / f"{number}.png"), draw_frame(SEED, number, 0, 512)[0])
    rows = []
    for folder in (drawn, *folders):
        paths = sorted(path for path in folder.iterdir() if path.suffix.casefold() in IMAGE_SUFFIXES)
        answers = [bool(p.hands) for p in predict(ensemble, [Record(path, None, "x") for path in paths], cfg, "cpu")]
        rows.append((folder.name, str(len(answers)), str(sum(answers))))
    return f"Pictures without a hand:\n\n{_table(('pictures', 'how many', 'taken for a hand'), rows)}"


def _cost(path: Path, place: Path) -> str:
    """Of the whole command in a process of its own, overlay and CSV included."""
    import cv2
    import torch

    from dataset.phantom_draw import draw_phantom
    from engine.files import FileProblem

    image = place / "large.png"
    cv2.imwrite(str(image), draw_phantom(SEED, 0, "L", LARGE, False, ("dr",)).image)
    command = [sys.executable, str(INFERENCE), "--checkpoint", str(path), "--input", str(image)]
    command += ["--output", str(place / "answer"), "--save_overlay", "--find_hands", "--device", "cpu"]
    start = time.perf_counter()
    if code := subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
        raise FileProblem(f"{INFERENCE.name} ended with {code}, see above.")
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return (
        f"The whole answer for one radiograph of {LARGE} px, from the start of the command to CSV and overlay: "
        f"{seconds:.1f} s and {peak:.2f} GiB at most, with {torch.get_num_threads()} threads on the CPU."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
