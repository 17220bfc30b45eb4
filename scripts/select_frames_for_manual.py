"""The images that are most worth labelling next:

python scripts/select_frames_for_manual.py --data_root ../data [--probs PROBS] [--dry_run | --undo JOURNAL]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import ConfigProblem
from engine.files import FileProblem
from engine.flags import run_command
from engine.moves import MoveFlags, Step, run_steps
from engine.progress import progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DESCRIPTION = """Copy the best of the unlabelled images to the folder of those to be labelled, but none that is there.
Best are the brightest where bone lies (the mean of the brightest 5 % of the pixels between 30 and 60 % of the height),
or with --probs those of which a network is least sure.

A journal is written first, which --undo takes. Exit codes: 0 done, 1 a file is wrong, 2 a flag is wrong."""

BAND = (0.3, 0.6)
"""Share of the height that is looked at: the depths at which ultrasound shows bone."""
BRIGHTEST = 0.05
"""Share of the band's pixels whose mean is taken."""
LEAST_AREA = 1e-4
"""Share of the image below which a class's expected area counts as that much: a few doubtful pixels are no bone."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    data_root: Path = Path("../data")
    """Folder of the two."""
    raw_dir: str = "raw_unlabelled"
    """Folder of the unlabelled images."""
    to_dir: str = "to_label"
    """Folder that the chosen ones are copied to."""
    n: int = 120
    """Images to choose."""
    probs: str = ""
    """Probabilities of all of them, as inference --save_probs writes them: chosen is by uncertainty."""
    move: tyro.conf.OmitArgPrefixes[MoveFlags] = field(default_factory=MoveFlags)
    """Dry run and undo."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: run_steps(chosen.move, chosen.data_root / chosen.to_dir, lambda: _steps(chosen)))


def _steps(chosen: Flags) -> list[Step]:
    if chosen.n < 1:
        raise ConfigProblem(f"n is {chosen.n}, but must be 1 or more.")
    from dataset.readers import images_below  # after --help, which must not wait for OpenCV

    raw, target = chosen.data_root / chosen.raw_dir, chosen.data_root / chosen.to_dir
    images = [path for path in images_below(raw) if not (target / path.relative_to(raw)).exists()]
    if not images:
        raise FileProblem(f"{raw} holds no images that are not in {target} already: set --data_root and --raw_dir.")
    scores = _uncertainties(images, Path(chosen.probs)) if chosen.probs else _brightnesses(images)
    ranked = sorted(images, key=lambda path: -scores[path])[: chosen.n]
    print(f"{'uncertainty' if chosen.probs else 'brightness'} of {len(images)} images, the best {len(ranked)}:")
    print("\n".join(f"{scores[path]:10.4f}  {path.relative_to(raw)}" for path in ranked))
    return [Step("copy", path, target / path.relative_to(raw)) for path in ranked]


def _brightnesses(images: list[Path]) -> Mapping[Path, float]:
    from dataset.images import read_image

    return {path: brightness(read_image(path)) for path in progress(images, "brightness", len(images), "images")}


def brightness(grey: NDArray[np.uint8]) -> float:
    """Mean of the brightest pixels in the band of an image (H, W), 0 to 255."""
    import numpy as np

    first = int(BAND[0] * len(grey))
    band = grey[first : max(int(BAND[1] * len(grey)), first + 1)].reshape(-1)
    count = max(int(BRIGHTEST * band.size), 1)
    return float(np.partition(band, band.size - count)[-count:].mean())


def _uncertainties(images: list[Path], folder: Path) -> Mapping[Path, float]:
    from inference.probs import ProbsFolder

    store = ProbsFolder(folder)
    by_name: dict[str, float] = {}
    for key in progress(store.keys(), "uncertainty", len(store.keys()), "images"):
        image = store.read(key)
        if image.name in by_name:
            raise FileProblem(f"{folder} holds two images called {image.name!r}: rename one, and predict again.")
        by_name[image.name] = uncertainty(image.histograms)
    if lacking := [path for path in images if path.name not in by_name]:
        raise FileProblem(
            f"{folder} has no probabilities of {lacking[0]} ({len(lacking)} in all): predict them with --save_probs."
        )
    return {path: by_name[path.name] for path in images}


def uncertainty(histograms: NDArray[np.int64]) -> float:
    """Pixels that are expected to be wrong at a threshold of a half, per expected pixel of bone; mean over classes.

    The sum of min(p, 1 - p) over the sum of p: 0 where the network is sure, at most 1 where it sees but doubts. (Least
    confidence, Lewis and Gale 1994, doi 10.1007/978-1-4471-2099-5_1, summed over pixels.)

    Args:
        histograms: (K, 256) pixels of each p = q / 255, as inference/probs.py has them.
    """
    import numpy as np

    p = np.arange(histograms.shape[1]) / (histograms.shape[1] - 1)
    least = LEAST_AREA * histograms.sum(1)
    return float((histograms @ np.minimum(p, 1 - p) / np.maximum(histograms @ p, least)).mean())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
