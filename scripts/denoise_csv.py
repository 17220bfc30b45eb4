"""Clean the masks of a submission CSV, without the images:

python scripts/denoise_csv.py IN.csv --output OUT.csv --steps min_area=50,Pisiform=20 largest fill_holes one_bone
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
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

if TYPE_CHECKING:
    from inference.post_process import Step
    from inference.submission import SubmissionWriter
    from inference.submission_file import SubmissionFile

DESCRIPTION = """Run post-processing steps on the masks of a submission CSV and write another one. Only one image at a
time is in memory. Says how many rows have changed, and by how many pixels of each class.

Steps, done in the order given: min_area=50 (fewer px are removed; min_area=50,Pisiform=20 has another limit for a
class), largest (only the largest component stays), fill_holes, open=2, close=2 (radius, px), convex (hull of the
class), smooth=3 (Gaussian of the outline, px), one_bone (changes nothing; lists missing and split bones in --report).
Components are 8-connected. Exit codes: 0 done, 1 a file is wrong, 2 a flag is wrong."""

LARGEST = 65536
"""Of height and width, px."""
Size = tuple[int, int]
"""Height and width, px."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    input: tyro.conf.Positional[str]
    """Submission CSV to clean."""
    output: str
    """CSV to write; one that is there is never overwritten."""
    steps: tuple[str, ...]
    """What is done, in this order."""
    height: int = 2048
    """Of all images, px. No effect with images."""
    width: int = 2048
    """Of all images, px. No effect with images."""
    images: str = ""
    """Folder of the images, with folders in it, for their sizes; nothing else of them is read."""
    report: str = ""
    """CSV for what one_bone finds; one that is there is never overwritten."""


@dataclass
class Changes:
    """Of one class."""

    rows: int = 0
    removed: int = 0
    """Pixels."""
    added: int = 0

    def add(self, both: int, before: int, after: int) -> None:
        """Count a changed row: pixels of the mask before and after, and of both."""
        self.rows += 1
        self.removed += before - both
        self.added += after - both


@dataclass
class Summary:
    """What the steps have done."""

    by_class: dict[str, Changes]
    images: int = 0
    findings: list[tuple[str, ...]] = field(default_factory=list)
    """Rows of the report."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    _check(chosen)
    from inference.post_process import (  # after --help, which must not wait for numba
        describe_findings,
        low_threshold,
        parse_steps,
        write_findings,
    )
    from inference.submission import SubmissionWriter
    from inference.submission_file import SubmissionFile

    source = SubmissionFile(chosen.input)
    steps = parse_steps(chosen.steps, source.classes)
    if low_threshold(steps) is not None:
        raise ConfigProblem("hysteresis needs probabilities, and a CSV has none: give inference --post_process.")
    checks = any(step.name == "one_bone" for step in steps)
    if chosen.report and not checks:
        raise ConfigProblem("report holds what one_bone finds, which is none of the steps: add it, or drop --report.")
    with SubmissionWriter(chosen.output, source.names, source.classes) as writer:
        summary = _clean(source, writer, steps, _size_of(chosen, source.names))
        if chosen.report:
            write_findings(chosen.report, summary.findings)
    _print(summary, chosen.output)
    if checks:
        print(f"one_bone: {describe_findings(summary.findings)}")
    return 0


def _check(chosen: Flags) -> None:
    if not chosen.steps:
        raise ConfigProblem("steps is empty: give what is to be done, such as --steps min_area=50 largest.")
    for name, value in (("height", chosen.height), ("width", chosen.width)):
        if not 1 <= value <= LARGEST:
            raise ConfigProblem(f"{name} is {value}, but must lie between 1 and {LARGEST} px.")
    if chosen.report == chosen.output:
        raise ConfigProblem(f"output and report are both {chosen.output}: give two files.")
    if chosen.report and Path(chosen.report).exists():  # of the output, the writer sees to it
        raise FileProblem(f"{chosen.report} exists and is never overwritten: move it away or choose another --report.")


def _size_of(chosen: Flags, names: Sequence[str]) -> Callable[[str], Size]:
    """Image name -> height and width."""
    if not chosen.images:
        return lambda name: (chosen.height, chosen.width)
    from dataset.images import image_shape
    from dataset.readers import read_folder

    paths: dict[str, Path] = {}
    for record in read_folder(Path(chosen.images)):
        other = paths.setdefault(record.name, record.image)
        if other != record.image:
            raise FileProblem(f"{other} and {record.image} have one name: give a folder that holds the right one only.")
    if lacking := [name for name in names if name not in paths]:
        raise FileProblem(
            f"{chosen.images} lacks {len(lacking)} of {len(names)} images, such as {lacking[0]!r}: give the folder of "
            f"the images that were predicted."
        )
    return lambda name: image_shape(paths[name])


def _clean(
    source: SubmissionFile, writer: SubmissionWriter, steps: tuple[Step, ...], size_of: Callable[[str], Size]
) -> Summary:
    """Write all images after the steps."""
    from engine.progress import progress
    from engine.rle import runs_to_text
    from inference.csv_scores import count_runs
    from inference.post_process import apply_to_runs, finding_rows
    from inference.submission import parse_image

    summary = Summary({label: Changes() for label in source.classes})
    for image in progress(source, "denoising", len(source.names), "images"):
        height, width = size_of(image.name)
        old = list(parse_image(source.path, image, height * width).values())
        new, findings = apply_to_runs(old, height, width, source.classes, steps)
        summary.findings += finding_rows(image.name, findings)
        texts = list(image.rles.values())
        for k, (changes, counts) in enumerate(zip(summary.by_class.values(), count_runs(old, new).T, strict=True)):
            if new[k] is not old[k]:
                texts[k] = runs_to_text(new[k])
                changes.add(*counts.tolist())
        writer.write_rles(image.name, texts)
        summary.images += 1
    return summary


def _print(summary: Summary, output: str) -> None:
    rows, changed = summary.images * len(summary.by_class), sum(c.rows for c in summary.by_class.values())
    print(f"{output}: {summary.images} images, {changed} of {rows} rows changed ({changed / rows:.1%})")
    width = max(map(len, ("class", *summary.by_class)))
    lines = [f"{'class':<{width}}    rows  removed px  added px"]
    lines += [
        f"{label:<{width}}  {c.rows:6}  {c.removed:10}  {c.added:8}" for label, c in summary.by_class.items() if c.rows
    ]
    print("\n".join(lines if changed else ["no mask has changed"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
