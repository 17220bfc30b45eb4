"""Vote over submissions pixel by pixel:

python scripts/ensemble_hard.py CSV CSV … --output OUT.csv [--weights 2 1 1] [--vote_threshold 0.6]
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import ConfigProblem
from engine.files import FileProblem
from engine.flags import run_command
from inference.submission_file import SubmissionFile
from inference.votes import vote_submissions, vote_weights

DESCRIPTION = """Vote over submissions pixel by pixel (hard voting), by majority or weights. Rows are matched by image
and class, so that the CSVs may list them in any order; the result has the first one's. Weighted hard voting is to masks
what weighted boxes fusion is to boxes; weighted soft voting, over probabilities, is inference/inference_ensemble.py."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    csvs: tyro.conf.Positional[tuple[Path, ...]]
    """Submissions of the same images and classes."""
    output: Path
    """CSV to write; one that is there is never replaced."""
    weights: tuple[float, ...] = ()
    """One number a CSV, in their order, from 0 to 1000; nine decimals count. Equal ones if not given."""
    class_weights: str = ""
    """Weights of single classes, instead of --weights: JSON such as {"Pisiform": [2, 1, 1]}, or a file with it. Zeros
    leave CSVs out: {"Radius": [0, 1, 0]} takes the second one's."""
    vote_threshold: float | None = None
    """Share of all the weight that a pixel needs, above 0 and at most 1; just that much is enough. Without it, more
    than half. At least k of n equal votes is k / n: 0.6 for 3 of 5, 0.7 for 7 of 10, 1 for all. Where k / n has no
    end, cut it off and don't round it up: 0.66 for 2 of 3, as 0.67 wants more than 2."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code: 0, 1 for a problem with files, 2 for a wrong command line."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    if not chosen.csvs:
        raise ConfigProblem("No CSV was given: name the submissions to vote over.")
    by_class = _class_weights(chosen.class_weights)
    files = [SubmissionFile(path) for path in chosen.csvs]
    weights = vote_weights(files[0].classes, len(files), chosen.weights, by_class)
    images = vote_submissions(files, chosen.output, weights, chosen.vote_threshold)
    print(f"{chosen.output}: {images} images, {len(files[0].classes)} classes, votes of {len(files)} CSVs")
    return 0


def _class_weights(given: str) -> dict[str, list[float]]:
    """Class -> weights, from JSON or the path of a file with it; empty for nothing."""
    if not given:
        return {}
    inline = given.lstrip().startswith("{")
    try:
        table = json.loads(given if inline else Path(given).read_text(encoding="utf-8"))
        return {str(label): [float(weight) for weight in row] for label, row in table.items()}
    except OSError as error:
        raise FileProblem(f"{given} cannot be read ({error.strerror}): give a JSON file of class weights.") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigProblem(
            f"class_weights: {given[:80]!r} is not JSON of classes and their weights ({error}): give a text such as "
            '{"Pisiform": [2, 1, 1]}, or a file with it.'
        ) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
