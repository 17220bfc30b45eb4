"""What shipped weights are worth with few labels: fine-tuned on 5, 10 and 20 images, against training from scratch.

python scripts/few_labels.py log/few_labels
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import BEST, SHIPPED
from engine.flags import run_command
from engine.leaderboard import PER_CLASS, class_mean
from engine.presets import PRESETS

DESCRIPTION = """A table (Markdown) of test Dice on drawn hands of a style that the shipped weights have never seen, by
how many of its images are labelled: --preset few_labels, and the same from scratch with more epochs. Exit codes: 0
done, 1 a file is wrong, 2 a flag is wrong."""

SEED = 5
"""Of the drawings."""
RUN = Path(__file__).resolve().parent.parent / "run_exp.py"
INFERENCE = RUN.parent / "inference" / "inference.py"


@dataclass(frozen=True)
class Flags:
    """The command line."""

    folder: tyro.conf.Positional[Path]
    """Folder for the data and the experiments; what is finished there is not done again."""
    images: tuple[int, ...] = (5, 10, 20)
    """Numbers of labelled images, both hands of each subject."""
    style: str = "portable"
    """Style of the drawings, see docs/phantom.md."""
    subjects: int = 12
    """Subjects of the test split, two hands each."""
    epochs: int = 30
    """Of fine-tuning."""
    scratch_epochs: int = 120
    """Of training from scratch, with the preset's settings but for a threefold learning rate."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    from config import ConfigProblem
    from dataset.phantom import PhantomSet, phantom_matches, write_phantom_set

    least = PRESETS["few_labels"]["batch_size"]
    if not chosen.images or min(chosen.images) < least:
        raise ConfigProblem(f"images is {chosen.images}: give numbers of {least} or more, a whole batch.")
    if chosen.subjects < 1:
        raise ConfigProblem(f"subjects is {chosen.subjects}: give 1 or more.")
    data = chosen.folder / "data"
    wanted = PhantomSet(-(-max(chosen.images) // 2), chosen.subjects, 512, SEED, (chosen.style,))
    if not phantom_matches(data, wanted):
        shutil.rmtree(data, ignore_errors=True)
        write_phantom_set(data, wanted)
    before = _untrained(chosen.folder, data)
    rows = []
    for count in chosen.images:
        tuned = _trained(chosen.folder, data, f"tuned_{count}", count, "--epoch", str(chosen.epochs))
        more = ("--init_from", "", "--epoch", str(chosen.scratch_epochs), "--lr", "3e-3")
        scratch = _trained(chosen.folder, data, f"scratch_{count}", count, *more)
        rows.append(f"| {count} | {tuned:.3f} | {scratch:.3f} |")
    print(f"Style `{chosen.style}`, {2 * chosen.subjects} test images. Without any label: {before:.3f}.\n")
    print(f"| labelled images | fine-tuned, {chosen.epochs} epochs | from scratch, {chosen.scratch_epochs} epochs |")
    print("\n".join(["| --- | --- | --- |", *rows]))
    return 0


def _untrained(folder: Path, data: Path) -> float:
    """Test Dice of the shipped weights as they are."""
    output = folder / "untrained"
    if not output.exists():
        _run(str(INFERENCE), "--checkpoint", str(SHIPPED), "--data_root", str(data), "--output", str(output))
    return class_mean(output / PER_CLASS)


def _trained(folder: Path, data: Path, name: str, count: int, *flags: str) -> float:
    """Test Dice of a training that is done now, gone on with, or done already."""
    runs = folder / "runs"
    scores = runs / name / "inference" / "test" / PER_CLASS
    if not scores.exists():
        again = ["--resume"] if (runs / name / "last.pt").exists() or (runs / name / BEST).exists() else []
        command = [str(RUN), "--preset", "few_labels", "--data_root", str(data), "--output_dir", str(runs)]
        command += ["--exp_name", name, "--limit_train", str(count), "--wandb", "off"]
        _run(*command, "--no_check_data", *flags, *again)  # some hands are cut off: it would mind
    return class_mean(scores)


def _run(*command: str) -> None:
    from engine.files import FileProblem

    if code := subprocess.run([sys.executable, *command], check=False).returncode:
        raise FileProblem(f"{Path(command[0]).name} ended with {code}, see above: what is done is kept, call again.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
