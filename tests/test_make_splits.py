"""scripts/make_splits.py and check_pairs.py as commands, and the cut itself."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_trees import TREES, in_folders, pair, save, split_of, with_lists

from config import Config, ConfigProblem
from dataset.layouts import read_split
from dataset.readers import Record, read_competition
from dataset.splits import cut
from engine import settings as config_settings
from scripts import check_pairs, make_splits

SCRIPTS = Path(make_splits.__file__).parent
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=12, max_size=60), st.integers(0, 2**32 - 1))
def test_the_cut(sizes: list[int], seed: int) -> None:
    records = [Record(Path(f"{s}/{i}.png"), None, str(s)) for s, size in enumerate(sizes) for i in range(size)]
    if sum(sizes) < 60:
        return
    splits = cut(records, SHARES, seed)
    assert sorted(r.key for part in splits.values() for r in part) == sorted(r.key for r in records)
    places = [{r.subject for r in part} for part in splits.values()]
    assert sum(map(len, places)) == len(sizes), "a subject is in one split"
    for split, share in SHARES.items():
        assert abs(len(splits[split]) - share * len(records)) <= 2 * max(sizes)
    assert cut(list(reversed(records)), SHARES, seed).keys() == splits.keys()
    assert {r.key for r in cut(list(reversed(records)), SHARES, seed)["val"]} == {r.key for r in splits["val"]}


def test_the_cut_follows_its_seed() -> None:
    records = [Record(Path(f"{s}.png"), None, str(s)) for s in range(50)]
    first, second = (cut(records, SHARES, seed) for seed in (1, 2))
    assert [len(part) for part in first.values()] == [40, 5, 5]
    assert first["val"] != second["val"]
    with pytest.raises(ConfigProblem, match=r"val gets none of the 3 subjects for its share of 0\.1: raise it"):
        cut(records[:3], SHARES, 1)


@pytest.fixture
def flat(phantom_root: Path, tmp_path: Path) -> Path:
    """12 labelled images in one folder, and one without a label."""
    root = tmp_path / "raw"
    for number, record in enumerate(read_competition(phantom_root, "train")):
        pair(root, record, f"{record.subject}_{number}")
    save(root / "images/ID777.png", np.zeros((8, 8), np.uint8))
    return root


def test_split_files(flat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--data_root", str(flat), "--subject_pattern", r"^(ID\d+)", "--shares", "0.5", "0.25", "0.25"]
    assert make_splits.main(argv) == 0
    said = capsys.readouterr().out
    assert "splits/train.txt: 6 images of 3 subjects" in said and "1 images without a label are in none" in said
    values = {"data_root": str(flat), "classes": ("bone",), "subject_pattern": r"^(ID\d+)"}
    cfg = config_settings.replace(Config(), values)
    parts = {split: read_split(cfg, split) for split in SHARES}
    assert {split: len(part) for split, part in parts.items()} == {"train": 6, "val": 4, "test": 2} or {
        split: len(part) for split, part in parts.items()
    } == {"train": 6, "val": 2, "test": 4}
    assert len({record.subject for part in parts.values() for record in part}) == 6
    before = (flat / "splits/train.txt").read_bytes()
    assert make_splits_code(argv) == 2, "it is cut already"
    assert (flat / "splits/train.txt").read_bytes() == before


def make_splits_code(argv: list[str]) -> int:
    with pytest.raises(SystemExit) as left:
        make_splits.main(argv)
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.mark.parametrize("shares", [["0.8", "0.1", "0.2"], ["0", "0.5", "0.5"], ["1.1", "-0.1", "0"]])
def test_shares_that_make_no_whole(shares: list[str], flat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_splits_code(["--data_root", str(flat), "--shares", *shares]) == 2
    assert "must be three numbers that sum to 1" in capsys.readouterr().err
    assert not (flat / "splits").exists()


def test_what_is_cut_already(phantom_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_splits_code(["--data_root", str(phantom_root)]) == 2
    in_folders(phantom_root, tmp_path, pair)
    assert make_splits_code(["--data_root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("is cut into splits already") == 2


@pytest.mark.parametrize("name", TREES)
def test_good_data_of_each_layout(
    name: str, phantom_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, write, more = TREES[name]
    write(phantom_root, tmp_path)
    assert check_pairs.main(["--data_root", str(tmp_path), *more]) == 0
    assert "16 images (16 of 128 x 128), 16 labels, 8 subjects" in (said := capsys.readouterr().out)
    assert said.endswith("data: nothing is wrong\n")


def test_everything_that_can_be_wrong(
    phantom_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = with_lists(phantom_root, tmp_path / "set")
    images, masks = (sorted((root / folder).iterdir()) for folder in ("images", "masks_manual"))
    masks[0].unlink()
    save(root / "masks_manual/lone.png", np.zeros((128, 128), np.uint8))
    masks[1].write_bytes(b"half")
    images[2].write_bytes(images[2].read_bytes()[:100])
    for empty in masks[3:8]:
        save(empty, np.zeros((128, 128), np.uint8))
    save(masks[8], cv2.resize(cv2.imread(str(masks[8])), (64, 64), interpolation=cv2.INTER_NEAREST))
    shutil.copy(images[9], images[10])
    output = tmp_path / "faults.csv"
    argv = ["--data_root", str(root), "--mask_dir", "masks_manual", "--csv", str(output)]
    assert check_pairs.main(argv) == 1
    said = capsys.readouterr().out
    with open(output, encoding="utf-8", newline="") as file:
        found = [(row["kind"], row["path"]) for row in csv.DictReader(file)]
    wanted = [
        ("image without label", f"images/{images[0].name}"),
        ("label without image", "masks_manual/lone.png"),
        ("unreadable label", f"masks_manual/{masks[1].name}"),
        ("unreadable image", f"images/{images[2].name}"),
        *(("empty label", f"masks_manual/{path.name}") for path in masks[3:8]),
        ("mask of another size", f"masks_manual/{masks[8].name}"),
        ("double pixels", next(path for kind, path in found if kind == "double pixels")),
    ]
    assert sorted(found) == sorted(wanted)
    assert wanted[-1][1] in [f"images/{path.name}" for path in images[9:11]]
    assert all(path in said for _, path in wanted), "all are shown, however many"
    assert check_pairs.main(argv) == 1
    assert "faults.csv exists and is never overwritten" in capsys.readouterr().err


def test_the_commands_run_in_their_own_folder(phantom_root: Path, tmp_path: Path) -> None:
    root = in_folders(phantom_root, tmp_path / "set", pair)
    for script, code in (("check_pairs.py", 0), ("make_splits.py", 2)):
        argv = [sys.executable, script, "--data_root", str(root)]
        assert subprocess.run(argv, cwd=SCRIPTS, capture_output=True, check=False).returncode == code


def test_help_needs_no_torch() -> None:
    slow = "{'torch', 'cv2', 'numba'} & {*sys.modules}"
    code = f"import sys; from scripts import check_pairs, make_splits; assert not {slow}"
    assert subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS.parent, check=False).returncode == 0


def test_the_phantom_is_whole(phantom_root: Path) -> None:
    assert [len(records) for records in split_of(phantom_root).values()] == [8, 4, 4]
