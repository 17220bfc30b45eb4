"""run_exp.py and its data: the look before a run, loaders by name, folds in files, bad files on the way."""

from __future__ import annotations

import csv
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_run_exp import ROOT, command, one_sentence, run, tiny

import run_exp
from dataset.jpeg_tree import write_tree
from dataset.readers import read_competition
from engine import settings
from train import Trainer


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test writes into log/ or checkpoints/ of the repository."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture
def data(phantom_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(phantom_root, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    return tmp_path / "data"


@pytest.fixture
def spoilt(data: Path) -> Path:
    """The data with one training image cut in half, and its path."""
    path = read_competition(data, "train")[2].image
    path.write_bytes(path.read_bytes()[:300])
    return path


def faults(folder: Path) -> list[dict[str, str]]:
    with open(folder / "bad_files.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_check_data_of_good_data(data: Path, tmp_path: Path) -> None:
    for remembered in (0, 16):
        code, out, err = run(*tiny(data, tmp_path / "runs", "x", "--check_data"))
        assert (code, err) == (0, "")
        assert "16 images (16 of 128 x 128)" in out and f"{remembered} images unchanged" in out
    assert not (tmp_path / "runs").exists(), "nothing is trained, and there is no list of nothing"


def test_check_data_lists_what_is_wrong(data: Path, spoilt: Path, tmp_path: Path) -> None:
    code, out, _ = run(*tiny(data, tmp_path / "runs", "x", "--check-data"))
    assert code == 1
    (fault,) = faults(tmp_path / "runs")
    assert fault["severity"] == "error" and fault["kind"] == "unreadable image"
    assert fault["path"] in out and str(spoilt).endswith(fault["path"])
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["bad_files.csv"]


def test_training_does_not_start_on_bad_data(data: Path, spoilt: Path, tmp_path: Path) -> None:
    code, out, err = run(*tiny(data, tmp_path / "runs", "x"))
    assert code == 1 and one_sentence(err)
    assert "unreadable image" in err and "--no_check_data" in err
    assert spoilt.name in out
    assert not (tmp_path / "runs" / "x").exists()


def test_excluded_files_are_not_looked_at(data: Path, spoilt: Path, tmp_path: Path) -> None:
    key = f"{spoilt.parent.name}/{spoilt.stem}"
    assert run(*tiny(data, tmp_path / "runs", "x", "--check_data", "--exclude", key))[0] == 0


def test_training_goes_on_where_bad_images_are_skipped(data: Path, spoilt: Path, tmp_path: Path) -> None:
    more = ["--bad_image", "skip", "--fold", str(other_fold(data, spoilt)), "--windows_per_image", "3"]
    code, out, err = run(*tiny(data, tmp_path / "runs", "x", *more))
    assert code == 0, err
    assert "unreadable image" in out and f"skipped: {spoilt}" in err
    assert (tmp_path / "runs" / "x" / "last.pt").exists()


def other_fold(data: Path, image: Path) -> int:
    """A fold that trains on this image."""
    from dataset.splits import fold_split

    records = read_competition(data, "train")
    return next(k for k in range(3) if image in [r.image for r in fold_split(records, 3, k, 42)[0]])


def test_no_check_data_meets_the_bad_file_later(data: Path, spoilt: Path, tmp_path: Path) -> None:
    code, out, err = run(*tiny(data, tmp_path / "runs", "x", "--no_check_data"))
    assert code == 1 and one_sentence(err)
    assert str(spoilt) in err and "images" not in out.splitlines()[0].split(":")[0]
    assert not (data / "cache").exists()


def test_a_missing_label_is_listed_with_all_else(data: Path, spoilt: Path, tmp_path: Path) -> None:
    records = read_competition(data, "train")
    assert records[5].label is not None
    records[5].label.unlink()
    assert run(*tiny(data, tmp_path / "runs", "x", "--check_data"))[0] == 1
    assert {fault["kind"] for fault in faults(tmp_path / "runs")} == {"unreadable image", "image without label"}


@pytest.mark.parametrize(
    "more",
    [
        ["--dataset_file", "dataset.dataset_sliding_flip_crop_clahe", "--cache", "disk", "--workers", "2"],
        ["--dataset_file", "dataset_resident_sliding", "--augment", "heavy"],
        ["--dataset_file", "dataset_dali_preprocessed_clahe"],
        ["--dataset_file", "dataset_sliding_exclude", "--cache", "ram", "--window_mode", "balanced"],
        ["--normalize", "image", "--window_mode", "grid", "--augment", "hand"],
    ],
    ids=["cached", "resident", "dali", "ram", "grid"],
)
def test_a_run_with_other_loaders(more: list[str], data: Path, tmp_path: Path) -> None:
    if "dataset_dali_preprocessed_clahe" in more:
        if importlib.util.find_spec("nvidia.dali") is None:
            pytest.skip("nvidia-dali-cuda120 is not installed")
        write_tree(data, data / "jpeg", 95, None, 1, False)
    code, _, err = run(*tiny(data, tmp_path / "runs", "x", *more))
    assert code == 0, err
    (table,) = (tmp_path / "runs" / "x").glob("inference/*/submission.csv")
    assert len(table.read_text().splitlines()) == 1 + 4 * 29
    if "--cache" in more:
        assert bool(list((data / "cache").glob("*.u8"))) == ("disk" in more)


def test_dali_loaders_are_trained_by_the_dali_loop(data: Path) -> None:
    if importlib.util.find_spec("nvidia.dali") is None:
        pytest.skip("nvidia-dali-cuda120 is not installed")
    from train_dali import DaliTrainer

    base = {"data_root": str(data), "image_size": 64, "window_size": 64, "n_folds": 3, "batch_size": 2, "workers": 0}
    base |= {"model_file": "model.model_simple_unet_quarter", "base_channels": 4, "device": "cpu"}
    kinds = {"dataset.dataset_dali_sliding_clahe": DaliTrainer, "dataset.dataset_sliding": Trainer}
    for name, kind in kinds.items():
        trainer = run_exp._build_trainer(settings.replace(settings.Config(), {**base, "dataset_file": name}))
        assert type(trainer) is kind
        trainer.loader.close()


def test_a_dry_run_builds_no_cache(data: Path, tmp_path: Path) -> None:
    code, _, err = run(*tiny(data, tmp_path / "runs", "x", "--dry_run", "--cache", "disk"))
    assert code == 0, err
    assert not (data / "cache").exists() and not (tmp_path / "runs").exists()


def test_an_unknown_switch_is_named_at_once(data: Path, tmp_path: Path) -> None:
    code, _, err = run(*tiny(data, tmp_path / "runs", "x", "--dataset_file", "dataset.dataset_slidin"))
    assert code == 2 and "did you mean sliding?" in err


def test_folds_in_a_file(data: Path, tmp_path: Path) -> None:
    """Written by the first run, read by the next, which trains on what somebody edited."""
    file = tmp_path / "folds.csv"
    more = ["--fold_file", str(file), "--stratify", "sex", "age"]
    code, out, err = run(*tiny(data, tmp_path / "runs", "a", "--dry_run", *more))
    assert code == 0 and not file.exists(), err
    code, out, err = run(*tiny(data, tmp_path / "runs", "a", *more))
    assert code == 0 and f"folds: {file}" in out, err
    lines = file.read_text().splitlines()
    assert lines[0] == "subject,fold" and len(lines) == 7
    subject, *others = (line.split(",")[0] for line in lines[1:])
    file.write_text("\n".join(["subject,fold", f"{subject},0", *(f"{other},1" for other in others)]))
    code, out, err = run(*tiny(data, tmp_path / "runs", "b", *more))
    assert code == 0 and "folds:" not in out, err
    assert "10 training and 2 validation images" in out
    file.write_text(file.read_text().replace(subject, "ID999"))
    code, out, err = run(*tiny(data, tmp_path / "runs", "c", *more))
    assert code != 0 and "ID999" in err


def test_hold_out_by_a_list_or_a_folder(data: Path, tmp_path: Path) -> None:
    subjects = sorted({record.subject for record in read_competition(data, "train")})
    listed = tmp_path / "val.txt"
    listed.write_text(f"{subjects[0]}\n{subjects[3]}\n")
    code, out, err = run(*tiny(data, tmp_path / "runs", "a", "--holdout", str(listed), "--dry_run"))
    assert code == 0 and "8 training and 4 validation images" in out, err
    for part in ("DCM", "outputs_json"):
        (data / "val" / part).mkdir(parents=True)
        (data / "train" / part / subjects[1]).rename(data / "val" / part / subjects[1])
    (data / "phantom.json").unlink()
    code, out, err = run(*tiny(data, tmp_path / "runs", "b", "--holdout", "val", "--no_phantom"))
    assert code == 0 and "10 training and 2 validation images" in out, err
    assert "16 images" in out, "the check looks at the folder too"


@pytest.mark.parametrize("name", ["dataset_sliding", "dataset_sliding_flip_crop", "dataset_dali", "dataset_resident"])
def test_test_dataloader(name: str, data: Path, tmp_path: Path) -> None:
    argv = tiny(data, tmp_path / "runs", "x")
    done = command("scripts/test_dataloader.py", *argv, "--dataset_file", name, "--batches", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"dataset.{name}: 8 training and 4 validation images" in done.stdout
    assert done.stdout.count("images (2, 1, 64, 64) torch.uint8 on cpu") == 2
    assert done.stdout.count("29 of 29 classes") == 2 and "4 samples in" in done.stdout


def test_two_runs_at_once_draw_their_phantoms_once(tmp_path: Path) -> None:
    """The second waits for the first, and finds the set."""
    said = "phantom_train=2, phantom_test=1, phantom_size=128, phantom=True, data_root='set'"
    code = "from engine import settings; from config import Config; from dataset.prepare import prepare_data\n"
    code += f"prepare_data(settings.replace(Config(), dict({said})))"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for _ in range(2)
    ]  # fmt: skip
    out = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], out
    assert sum("phantom data" in text for text, _ in out) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cwd", "set"]
