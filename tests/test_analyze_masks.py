"""scripts/analyze_masks.py: the numbers of masks, against those of whole planes."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.labels import rasterise, read_polygons
from dataset.readers import read_competition
from inference.submission import SubmissionWriter
from scripts import analyze_masks

ROOT = Path(__file__).resolve().parent.parent


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(1, 15), st.integers(1, 15), st.floats(0, 1), st.integers(0, 2**32))
def test_numbers_are_those_of_the_plane(height: int, width: int, share: float, seed: int) -> None:
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    flat = np.pad(mask.reshape(-1), 1)
    runs = np.flatnonzero(flat[1:] != flat[:-1]).astype(np.int64).reshape(-1, 2)
    found = analyze_masks.measure(runs, height, width)
    assert found.area == mask.sum() and found.area_frac == mask.mean()
    count, labels = cv2.connectedComponents(mask, connectivity=8)
    assert found.components == count - 1
    if not found.area:
        assert found == analyze_masks.Numbers(0, 0.0, 0, None, None, None, None, None, None, None)
        return
    assert found.largest == max((labels == i).sum() for i in range(1, count)) / mask.sum()
    y, x = np.nonzero(mask)
    assert (found.top, found.bottom) == (y.min() / height, (y.max() + 1) / height)
    assert (found.left, found.right) == (x.min() / width, (x.max() + 1) / width)
    assert found.cy_rel == pytest.approx((y.mean() + 0.5) / height)
    assert found.cx_rel == pytest.approx((x.mean() + 0.5) / width)


def test_a_tree_and_its_csv_have_the_same_numbers(
    phantom_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = ("Radius", "Ulna")
    out = [tmp_path / "tree.csv", tmp_path / "csv.csv"]
    assert analyze_masks.main([str(phantom_root), "--split", "test", "--csv", str(out[0])]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == 31 and shown.splitlines()[-1] == f"all numbers: {out[0]}"
    rows = list(csv.DictReader(out[0].open()))
    records = read_competition(phantom_root, "test")
    assert len(rows) == 29 * len(records) and rows[0]["image"].endswith(records[0].name)
    with SubmissionWriter(tmp_path / "a.csv", [record.name for record in records], classes) as writer:
        for record in records:
            assert record.label is not None
            polygons = {k: v for k, v in read_polygons(record.label, (*classes, *_others())).items() if k in classes}
            writer.write(record.name, rasterise(polygons, classes, 128, 128, ""))
    images = str(phantom_root / "test" / "DCM")
    assert analyze_masks.main([str(tmp_path / "a.csv"), "--images", images, "--csv", str(out[1])]) == 0
    assert list(csv.DictReader(out[1].open())) == [row for row in rows if row["class"] in classes]


def _others() -> tuple[str, ...]:
    from config import HAND_BONES

    return tuple(name for name in HAND_BONES if name not in ("Radius", "Ulna"))


def test_binary_masks_and_those_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("images", "masks_manual"):
        (tmp_path / folder).mkdir()
    for name, rows in (("a", 10), ("b", 0)):
        mask = np.zeros((20, 10), np.uint8)
        mask[5 : 5 + rows] = 255
        cv2.imwrite(str(tmp_path / "masks_manual" / f"{name}_mask.png"), mask)
        cv2.imwrite(str(tmp_path / "images" / f"{name}.jpg"), np.zeros((20, 10), np.uint8))
    flags = [str(tmp_path), "--mask_dir", "masks_manual", "--csv", str(tmp_path / "n.csv")]
    assert analyze_masks.main(flags) == 0
    line = capsys.readouterr().out.splitlines()[1].split()
    assert line[:2] == ["foreground", "1"] and "50.0000" in line and "0.250" in line and "0.750" in line
    b = list(csv.DictReader((tmp_path / "n.csv").open()))[1]
    assert b["area"] == "0" and b["cy_rel"] == "" and b["largest"] == ""
    assert analyze_masks.main(flags) == 1, "nothing is overwritten"
    assert "n.csv exists and is never overwritten" in capsys.readouterr().err


def test_a_csv_without_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("image_name,class,rle\na.png,Ulna,1 2\n")
    with pytest.raises(SystemExit) as stop:
        analyze_masks.main([str(tmp_path / "a.csv")])
    assert stop.value.code == 2 and "give --images." in capsys.readouterr().err


def test_the_command_runs_inside_its_folder_and_starts_fast() -> None:
    command = [sys.executable, "-X", "importtime", "analyze_masks.py", "--help"]
    done = subprocess.run(command, cwd=ROOT / "scripts", capture_output=True, text=True, check=True)
    assert "--csv" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "numba", "cv2", "numpy"}
