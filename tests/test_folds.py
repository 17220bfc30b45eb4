"""inference/folds.py and run_exp.py --fold: one fold, none, or all with their out-of-fold score and ensemble."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from test_run_exp import content, elsewhere, one_sentence, read_csv, run, stop_after, tiny

from dataset.readers import read_competition
from engine.files import FileProblem
from engine.launch import read_result
from inference.folds import VAL_DICE, out_of_fold
from inference.metrics import DiceTable
from inference.plan import infer, plan_folds, plan_one
from model.checkpoint import read_checkpoint

__all__ = ["elsewhere"]  # a fixture

MORE = ("--threshold", "0.01", "--wandb", "off", "--stride", "64")


def table(names: list[str], value: float) -> DiceTable:
    found = DiceTable(("Ulna", "Radius"))
    for i, name in enumerate(names):
        found.add(name, np.array([value, value + 0.01 * i]))
    return found


@pytest.fixture
def folds(tmp_path: Path) -> list[Path]:
    """Two validated folds of 2 and 1 images."""
    made = []
    for name, images, value in (("fold0", ["b", "a"], 0.5), ("fold1", ["c"], 0.8)):
        (tmp_path / name).mkdir()
        table(images, value).images_to_csv(tmp_path / name / VAL_DICE)
        made.append(tmp_path / name)
    return made


def test_out_of_fold_is_the_mean_over_all_images(folds: list[Path], tmp_path: Path) -> None:
    found = out_of_fold(tmp_path, folds)
    assert found.names() == ["b", "a", "c"]
    assert found.mean() == pytest.approx((0.5 + (0.5 + 0.51) / 2 + 0.8) / 3)
    assert [(row["fold"], row["images"]) for row in read_csv(tmp_path / "folds.csv")] == [
        ("fold0", "2"), ("fold1", "1"), ("all", "3"),
    ]  # fmt: skip
    ulna, radius = read_csv(tmp_path / "oof.csv")
    assert float(ulna["mean"]) == pytest.approx((0.5 + 0.5 + 0.8) / 3, abs=1e-6)
    assert (ulna["class"], radius["class"], radius["worst_image"]) == ("Ulna", "Radius", "b")
    assert DiceTable.from_images_csv(tmp_path / VAL_DICE).mean() == found.mean()


def test_a_fold_without_validation_and_an_image_in_two_are_errors(folds: list[Path], tmp_path: Path) -> None:
    table(["a"], 0.1).images_to_csv(folds[1] / VAL_DICE)
    with pytest.raises(ValueError, match="'a' is in the table already"):
        out_of_fold(tmp_path, folds)
    (folds[1] / VAL_DICE).unlink()
    with pytest.raises(FileProblem, match=r"fold1/val_dice\.csv holds no Dice of images"):
        out_of_fold(tmp_path, folds)


@pytest.fixture(scope="module")
def all_folds(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of an experiment of 3 folds that was stopped in the second and went on; what was said then."""
    folder = tmp_path_factory.mktemp("folds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.MonkeyPatch.context() as inner:
            stop_after(6, signal.SIGTERM, inner)
            code, out, err = run(*tiny(phantom_root, folder, "x", "--fold", "all", *MORE))
        assert code == 75, err
        assert "fold 1 of 3" in out and "fold 2 of 3" not in out
        assert (read_result(folder / "x" / "fold0"), read_result(folder / "x" / "fold1")) == (0, 75)
        assert not (folder / "x" / "oof.csv").exists()
        code, out, err = run("--exp_name", "x", "--output_dir", str(folder), "--resume")
        assert code == 0, err
    return folder / "x", out


def test_all_folds_go_on_where_they_were_stopped(all_folds: tuple[Path, str], phantom_root: Path) -> None:
    folder, out = all_folds
    assert "fold 0 of 3" not in out and "fold 1 of 3" in out and "fold 2 of 3" in out
    assert "Going on after epoch 0, step 2." in out
    assert "out-of-fold Dice" in out and f"({folder / 'oof.csv'})" in out
    assert json.loads((folder / "config.json").read_text())["data"]["fold"] == "all"
    for k in range(3):
        assert json.loads((folder / f"fold{k}" / "config.json").read_text())["data"]["fold"] == str(k)
        assert len(read_csv(folder / f"fold{k}" / "metrics.csv")) == 1


def test_every_image_is_scored_once_by_a_network_that_never_saw_its_subject(
    all_folds: tuple[Path, str], phantom_root: Path
) -> None:
    folder = all_folds[0]
    parts = [DiceTable.from_images_csv(folder / f"fold{k}" / VAL_DICE).names() for k in range(3)]
    everything = [name for part in parts for name in part]
    records = read_competition(phantom_root, "train")
    assert sorted(everything) == sorted(record.key for record in records)
    subjects = [{name.split("/")[0] for name in part} for part in parts]
    assert not subjects[0] & subjects[1] and not subjects[1] & subjects[2] and not subjects[0] & subjects[2]
    assert [row["images"] for row in read_csv(folder / "folds.csv")] == ["4", "4", "4", "12"]
    assert DiceTable.from_images_csv(folder / VAL_DICE).names() == everything


def test_the_csv_is_that_of_the_folds_mean(
    all_folds: tuple[Path, str], phantom_root: Path, tmp_path: Path
) -> None:
    folder = all_folds[0]
    members = [read_checkpoint(folder / f"fold{k}" / "best.safetensors") for k in range(3)]
    cfg = members[0].cfg
    infer(plan_folds(members, cfg, folder), "cpu", tmp_path / "mean")
    infer(plan_one(members[0], cfg), "cpu", tmp_path / "one")
    (written,) = folder.glob("inference/*/submission.csv")
    mean, one = ((tmp_path / name / "submission.csv").read_text() for name in ("mean", "one"))
    assert written.read_text() == mean != one
    for k in range(3):
        assert str(folder / f"fold{k}" / "best.safetensors") in all_folds[1]


def test_a_fold_is_the_run_of_that_fold_alone(all_folds: tuple[Path, str], phantom_root: Path, tmp_path: Path) -> None:
    """Stopped and continued here, never stopped there; also with the folds of another command."""
    code, _, err = run(*tiny(phantom_root, tmp_path, "one", "--fold", "1", *MORE))
    assert code == 0, err
    ours, alone = (read_checkpoint(f / "best.safetensors") for f in (all_folds[0] / "fold1", tmp_path / "one"))
    assert ours.score == alone.score
    assert all((tensor == alone.weights[name]).all() for name, tensor in ours.weights.items())


def test_all_folds_again_need_overwrite_or_resume(all_folds: tuple[Path, str], phantom_root: Path) -> None:
    folder = all_folds[0]
    before = content(folder)
    code, _, err = run(*tiny(phantom_root, folder.parent, "x", "--fold", "all", *MORE))
    assert (code, one_sentence(err)) == (2, True)
    assert content(folder) == before


def test_training_on_everything(phantom_root: Path, tmp_path: Path) -> None:
    code, out, err = run(*tiny(phantom_root, tmp_path, "x", "--fold", "none", *MORE))
    assert code == 0, err
    assert "12 training and 0 validation images" in out and "not validated" in out
    assert len(list((tmp_path / "x").glob("inference/*/submission.csv"))) == 1
    code, _, err = run(*tiny(phantom_root, tmp_path, "y", "--fold", "none", "--patience", "2"))
    assert (code, one_sentence(err)) == (2, True) and "fold none" in err


@pytest.mark.parametrize("more", [["--overfit_batches", "2"], ["--holdout", "val.txt"], ["--profile", "3"]])
def test_what_contradicts_all_folds_is_said_first(more: list[str], phantom_root: Path, tmp_path: Path) -> None:
    """Folds that validate on the same images have no out-of-fold score."""
    subject = read_competition(phantom_root, "train")[0].subject
    Path("val.txt").write_text(f"{subject}\n")
    code, _, err = run(*tiny(phantom_root, tmp_path, "x", "--fold", "all", *more, *MORE))
    assert (code, one_sentence(err)) == (2, True)
    assert more[0].removeprefix("--") in err
    assert not (tmp_path / "x").exists()
