"""What the README promises of the demo, run for real: `make test-full`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from config import HAND_BONES
from inference.csv_check import Rules, check_submission

ROOT = Path(__file__).resolve().parent.parent


def run(preset: str, folder: Path) -> str:
    """Output of a preset's run, with everything that it writes below `folder`."""
    command = [sys.executable, str(ROOT / "run_exp.py"), "--preset", preset, "--output_dir", str(folder / "runs")]
    command += ["--data_root", str(folder / "data")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in the output"
    return float(found[1])


@pytest.mark.full
def test_demo_learns_far_more_than_the_mean_hand(tmp_path: Path) -> None:
    output = run("demo", tmp_path)
    dice = number(r"test Dice ([\d.]+)", output)
    mean_mask = number(r"mean training mask.*Dice ([\d.]+)", output)
    assert dice >= 0.75
    assert dice >= mean_mask + 0.3
    counts = check_submission(tmp_path / "runs/demo/inference/test/submission.csv", Rules(HAND_BONES))
    assert not counts.faults and counts.rows == counts.images * 29


@pytest.mark.full
def test_smoke_takes_the_same_path(tmp_path: Path) -> None:
    output = run("smoke", tmp_path)
    assert number(r"test Dice ([\d.]+)", output) > 0.3
    assert (tmp_path / "runs/smoke/inference/test/overlay.png").stat().st_size > 10_000
