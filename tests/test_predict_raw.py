"""scripts/predict_all_raw.py and predict_unet_small.py: full-size masks of a folder, and what may train of them."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from config import Config
from dataset.images import read_image
from dataset.pseudo import pseudo_records
from engine import settings
from engine.presets import PRESETS
from inference.post_process import parse_steps
from inference.raw_folder import PseudoFlags, RawFlags, measure
from model.checkpoint import Checkpoint, save_weights
from scripts import analyze_masks, predict_all_raw, predict_unet_small

ROOT = Path(__file__).resolve().parent.parent
HEIGHT, WIDTH = 96, 128


class Bright(nn.Module):
    """A network that takes bright pixels for bone."""

    def forward(self, grey: Tensor) -> Tensor:
        return 40 * (grey - 0.5)


def frame(*bars: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """(HEIGHT, WIDTH), white in each box of rows and columns."""
    image = np.full((HEIGHT, WIDTH), 20, np.uint8)
    for top, bottom, left, right in bars:
        image[top:bottom, left:right] = 235
    return image


MIDDLE, TOP, SPECK = (40, 48, 24, 88), (0, 8, 10, 50), (60, 62, 100, 102)
FRAMES = {"middle.png": frame(MIDDLE, TOP, SPECK), "only_top.png": frame(TOP), "nothing.bmp": frame()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, image in FRAMES.items():
        path = tmp_path / "data" / "raw_unlabelled" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image)
    return tmp_path / "data"


@pytest.fixture
def flags(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of an experiment whose network is Bright, and whose own post-processing would remove everything."""
    monkeypatch.setattr(Checkpoint, "network", lambda checkpoint: Bright())
    save(tmp_path, {"post_process": ("cut_top=1",)})
    return ["--exp_name", "x", "--output_dir", str(tmp_path / "runs"), "--device", "cpu"]


def save(folder: Path, values: dict[str, Any]) -> None:
    values = {**PRESETS["ultrasound_small"], "data_root": str(folder / "data"), **values}
    cfg = settings.replace(Config(), {"image_size": 128, "window_size": 128, **values})
    save_weights(folder / "runs" / "x" / "best.safetensors", {"none": torch.zeros(1)}, cfg, 0.5, 1)


def box(top: int, bottom: int, left: int, right: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def masks_in(folder: Path) -> dict[str, NDArray[np.uint8]]:
    return {path.name: read_image(path) for path in sorted(folder.iterdir())}


def test_masks_and_overlays_of_a_raw_folder(
    flags: list[str], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict_all_raw.main(flags) == 0
    assert f"3 images of {root}/raw_unlabelled: masks in {root}/masks_pred, overlays in" in capsys.readouterr().out
    masks = masks_in(root / "masks_pred")
    expected = {"middle.png": box(*MIDDLE), "nothing.png": box(0, 0, 0, 0), "only_top.png": box(*TOP)}
    assert masks.keys() == expected.keys()
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, 255 * expected[name].astype(np.uint8), err_msg=name)
    overlay = np.asarray(cv2.imread(str(root / "overlays_pred" / "middle.png")))
    grey = overlay.max(-1) == overlay.min(-1)
    seen = cv2.resize(expected["middle.png"].astype(np.uint8), overlay.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(~grey, seen > 0)
    assert sorted(path.name for path in root.iterdir()) == ["masks_pred", "overlays_pred", "raw_unlabelled"]


@pytest.mark.parametrize(
    ("more", "middle", "top"),
    [
        (["--no_fall_back"], box(*MIDDLE), box(0, 0, 0, 0)),
        (["--band", "0", "1"], box(*MIDDLE) | box(*TOP), box(*TOP)),
        (["--band", "0.45", "0.9", "--min_area_frac", "0"], box(43, 48, 24, 88) | box(*SPECK), box(*TOP)),
        (["--min_area_frac", "0.5"], box(*MIDDLE), box(*TOP)),
    ],
)
def test_band_area_and_fall_back(
    more: list[str], middle: NDArray[np.bool_], top: NDArray[np.bool_], flags: list[str], root: Path
) -> None:
    assert predict_all_raw.main([*flags, *more, "--suffix", "_2"]) == 0
    masks = masks_in(root / "masks_pred_2")
    np.testing.assert_array_equal(masks["middle.png"] > 0, middle)
    np.testing.assert_array_equal(masks["only_top.png"] > 0, top)
    assert (root / "overlays_pred_2").is_dir()


def test_pseudo_labels_and_their_statistics(
    flags: list[str], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict_unet_small.main([*flags, "--plausible", "0.03", "0.13"]) == 0
    stats = root / "pseudo_stats_small.csv"
    assert f"1 of 3 masks are plausible: {stats}\nto train on them: --pseudo {stats}\n" in capsys.readouterr().out
    with open(stats, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["filename", "area_frac", "cy_rel", "cx_rel", "plausible"]
    assert [(row[0], row[4]) for row in rows] == [("middle.png", "1"), ("nothing.bmp", "0"), ("only_top.png", "0")]
    assert rows[1] == ["nothing.bmp", "0.000000", "", "", "0"]
    masks = masks_in(root / "masks_pseudo_small")
    for name, *numbers, _ in (rows[0], rows[2]):
        flat = np.flatnonzero(masks[f"{Path(name).stem}.png"])
        runs = np.stack([flat, flat + 1], 1)
        same = analyze_masks.measure(runs, HEIGHT, WIDTH)
        assert [float(text) for text in numbers] == pytest.approx([same.area_frac, same.cy_rel, same.cx_rel], abs=1e-6)
    assert (root / "overlays_pseudo_small" / "nothing.png").is_file()
    cfg = settings.replace(Config(), {"classes": ("bone",), "pseudo": str(stats), "data_root": str(root)})
    (record,) = pseudo_records(cfg)
    assert record.name == "middle.png" and record.label == root / "masks_pseudo_small" / "middle.png"


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(
    flags: list[str], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    (root / "raw_unlabelled" / "zzz.png").write_bytes(b"")
    before = files()
    assert predict_unet_small.main(flags) == 1
    assert "zzz.png is empty" in capsys.readouterr().err and files() == before
    assert [path.name for path in root.iterdir()] == ["raw_unlabelled"]
    (root / "raw_unlabelled" / "zzz.png").unlink()
    assert predict_unet_small.main(flags) == 0
    before = files()
    assert predict_unet_small.main(flags) == 1
    said = f"{root}/pseudo_stats_small.csv exists and is never overwritten: move it away or give another --suffix."
    assert said in capsys.readouterr().err
    (root / "pseudo_stats_small.csv").unlink()
    assert predict_unet_small.main(flags) == 1
    assert f"{root}/masks_pseudo_small exists and is never overwritten" in capsys.readouterr().err
    assert {name: data for name, data in before.items() if not name.endswith(".csv")} == files()


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--exp_name", "y"], 1, "runs/y/best.safetensors does not exist: train the experiment first"),
        (["--raw_dir", "none"], 1, "none does not exist"),
        (["--band", "0.9", "0.1"], 2, "band is 0.9 0.1, but must be two shares of the height that rise: 0.1 0.9."),
        (["--min_area_frac", "1"], 2, "min_area_frac is 1, but must be 0 or more and below 1."),
        (["--plausible", "0.2", "nan"], 2, "plausible is 0.2 nan, but must be two shares of the area that rise"),
    ],
)
def test_wrong_flags(
    more: list[str], code: int, message: str, flags: list[str], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code([*flags, *more]) == code
    assert message in capsys.readouterr().err and [path.name for path in root.iterdir()] == ["raw_unlabelled"]


def exit_code(argv: list[str]) -> int:
    try:
        return predict_unet_small.main(argv)
    except SystemExit as left:
        assert isinstance(left.code, int)
        return left.code


def test_networks_of_several_classes_and_images_of_one_stem(
    flags: list[str], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(root / "raw_unlabelled" / "middle.bmp"), frame())
    assert exit_code(flags) == 1
    assert "'middle.bmp' and 'middle.png' would share files of one name: rename one of them." in capsys.readouterr().err
    save(tmp_path, {"classes": ("a", "b")})
    assert exit_code(flags) == 2
    assert "has 2 classes, but this command writes one mask an image: use inference/inference.py" in (
        capsys.readouterr().err
    )


def test_the_preset_does_what_the_flags_say_by_default() -> None:
    """So validation scores what the commands write."""
    for flags in (RawFlags(), PseudoFlags()):
        assert parse_steps(flags.steps(), ["bone"]) == parse_steps(PRESETS["ultrasound"]["post_process"], ["bone"])


def test_a_centre_is_that_of_pixels_middles() -> None:
    assert measure("a.png", np.ones((3, 5), bool)) == ("a.png", 1.0, 0.5, 0.5)
    assert measure("a.png", np.zeros((3, 5), bool)) == ("a.png", 0.0, None, None)


@pytest.mark.parametrize("script", ["predict_all_raw.py", "predict_unet_small.py"])
def test_the_commands_run_inside_their_folder_and_start_fast(script: str) -> None:
    command = [sys.executable, "-X", "importtime", script, "--help"]
    done = subprocess.run(command, cwd=ROOT / "scripts", capture_output=True, text=True, check=True)
    assert "--min_area_frac" in done.stdout and ("--plausible" in done.stdout) == ("small" in script)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "numba", "cv2", "numpy"}
