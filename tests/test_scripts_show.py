"""scripts/show_augmentations.py: one page, every augmentation on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from dataset.readers import Record
from engine.settings import AUGMENTATIONS
from scripts import show_augmentations as show

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "show_augmentations.py"


def test_the_page_shows_every_augmentation(tmp_path: Path) -> None:
    output = tmp_path / "page.png"
    command = [sys.executable, str(SCRIPT), "--output", str(output), "--size", "128", "--set", "hand"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    page = cv2.imread(str(output))
    assert page is not None
    assert done.stdout == f"{output}: {page.shape[1]} x {page.shape[0]} px\n" and not done.stderr
    width, height = 128 + 2 * 3, 128 + 2 * 7 + 2 * 3
    assert page.shape[1] == show.COLUMNS * width and page.shape[0] % height == 0
    panels = page.reshape(-1, height, show.COLUMNS, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
    shown = panels[(panels != show.BACKGROUND).any((1, 2, 3))]
    originals = (shown == shown[0]).all((1, 2, 3))
    pictures = shown[:, -131:-3, 3:-3]
    assert originals.sum() == 4 and len(shown) == len(AUGMENTATIONS) + 4
    assert (pictures[~originals] != pictures[0]).any((1, 2, 3)).all(), "every augmentation changes something"
    assert len({picture.tobytes() for picture in pictures}) == len(AUGMENTATIONS) + 1


def test_numbers_are_the_sets_or_strong_ones() -> None:
    ranges = show._ranges("hand")
    assert set(ranges) == set(AUGMENTATIONS)
    assert ranges["rotate"] == ((-30.0, 30.0, 0.7), "")
    assert ranges["shear"] == ((-10.0, 10.0, 0.5), "  (not in hand)")
    assert ranges["mixup"] == (show.LACKING["mixup"], "  (not in hand)")


def test_an_image_of_ones_own(phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Record]] = {}
    monkeypatch.setattr(show, "_page", lambda records, ranges, size: seen.update(r=records) or np.zeros((4, 4, 3)))
    image = next((phantom_root / "train" / "DCM").rglob("*.png"))
    label = next((phantom_root / "train" / "outputs_json").rglob(f"{image.stem}.json"))
    flags = ["--output", str(tmp_path / "page.png"), "--image", str(image), "--label", str(label), "--size", "128"]
    assert show.main(flags) == 0 and (tmp_path / "page.png").exists()
    first, *donors = seen["r"]
    assert (first.image, first.label) == (image, label) and len(donors) == 2 * show.SUBJECTS


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "50"], "size is 50, but must lie between 128 and 2048"),
        (["--set", "havy"], "'havy' is none of none, light, medium, heavy, hand (did you mean heavy?)"),
        (["--image", "a.png"], "image and label belong together"),
        (["--label", "a.json"], "image and label belong together"),
    ],
)
def test_wrong_flags(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        show.main(flags)
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_a_missing_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--image", str(tmp_path / "a.png"), "--label", str(tmp_path / "a.json"), "--size", "128"]
    assert show.main([*flags, "--output", str(tmp_path / "page.png")]) == 1
    assert f"{tmp_path}/a.png cannot be read" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_help_waits_for_nothing() -> None:
    code = "import sys, scripts.show_augmentations; print({'numpy', 'cv2', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
