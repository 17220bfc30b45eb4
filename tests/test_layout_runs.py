"""One tiny training from data to CSV through run_exp, in every layout, with one class and with several."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import pytest
from layout_trees import SOME, TREES, in_folders, labelme, pair
from test_run_exp import command, one_sentence, read_csv, run

from model.checkpoint import read_checkpoint

pytestmark = pytest.mark.full
"""Real trainings, a minute in all; tests/test_layouts.py reads the same trees in `make test`."""

TINY = """--image_size 64 --window_size 64 --stride 32 --windows_per_image 1 --batch_size 2 --workers 0 --epoch 1
    --model simple_unet_quarter --base_channels 4 --val_interval 1 --warmup_epochs 0.5 --device cpu
    --loss Combined_BCE_Dice --n_folds 4""".split()  # noqa: SIM905

EXECUTORS = {"pairs": "dataset_resident", "mask_per_class": "dataset_resident", "labelme": "dataset_dali"}
"""Layout -> what trains it; the others take dataset.dataset."""


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test writes into log/ or checkpoints/ of the repository."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def tiny(root: Path, *more: str) -> list[str]:
    return [*TINY, "--data_root", str(root), "--output_dir", "runs", "--exp_name", "x", *more]


def check_csv(folder: Path, classes: tuple[str, ...]) -> None:
    rows = read_csv(folder / "submission.csv")
    assert len(rows) == 4 * len(classes)
    assert [row["class"] for row in rows[: len(classes)]] == list(classes)


@pytest.mark.parametrize("name", TREES)
def test_from_each_layout_to_a_csv(name: str, phantom_root: Path, tmp_path: Path) -> None:
    _, classes, write, more = TREES[name]
    root = write(phantom_root, tmp_path / "set")
    executor = EXECUTORS.get(name, "dataset")
    if executor == "dataset_dali":
        pytest.importorskip("nvidia.dali")
    flags = [*more, "--classes", *classes, "--dataset_file", f"dataset.{executor}_sliding"]
    flags += ["--holdout", "val", "--cache", "disk"] if name.startswith("pairs_") else []
    code, out, err = run(*tiny(root, *flags))
    assert code == 0, err
    folder = Path("runs/x")
    check_csv(folder / "inference/test", classes)
    assert [row["class"] for row in read_csv(folder / "per_class.csv")][: len(classes)] == list(classes)
    assert read_checkpoint(folder / "best.safetensors").cfg.data.classes == classes
    assert "test Dice" in out and f"{16 if name.startswith('pairs_') else 12} images" in out
    assert ("the split val is not used" in out) == (not name.startswith("pairs_"))


def test_classes_from_the_data_and_folds_and_inference(phantom_root: Path, tmp_path: Path) -> None:
    root = in_folders(phantom_root, tmp_path / "set", labelme)
    code, _, err = run(*tiny(root, "--classes", "auto", "--fold", "1"))
    assert code == 0, err
    check_csv(Path("runs/x/inference/test"), SOME)
    code, _, err = run(*tiny(root, "--classes", "auto", "--fold", "1", "--resume"))
    assert code == 0, err
    moved = root.rename(tmp_path / "moved")
    said = command("inference/inference.py", "--exp_name", "x", "--output_dir", "runs", "--data_root", str(moved),
                   "--split", "val", "--output", "val", cwd=Path.cwd())
    assert said.returncode == 0, said.stderr
    assert len(read_csv(Path("val/submission.csv"))) == 2 * len(SOME)


def test_masks_of_a_network_of_another_layout(phantom_root: Path, tmp_path: Path) -> None:
    """Pseudo-labels: the test split's own predictions train too."""
    root = in_folders(phantom_root, tmp_path / "set", pair)
    assert run(*tiny(root, "--classes", "bone"))[0] == 0
    csv = Path("runs/x/inference/test/submission.csv")
    code, _, err = run(*tiny(root, "--classes", "bone", "--pseudo", str(csv), "--exp_name", "again"))
    assert code == 0, err


def test_a_test_split_without_labels_and_none_at_all(phantom_root: Path, tmp_path: Path) -> None:
    root = in_folders(phantom_root, tmp_path / "set", pair)
    shutil.rmtree(root / "test/masks")
    code, out, err = run(*tiny(root, "--classes", "bone"))
    assert code == 0 and "test Dice" not in out, err
    check_csv(Path("runs/x/inference/test"), ("bone",))
    shutil.rmtree(root / "test")
    code, out, err = run(*tiny(root, "--classes", "bone", "--exp_name", "again"))
    assert code == 0 and "has no test split: no CSV" in out, err


def test_what_the_look_before_a_run_says(phantom_root: Path, tmp_path: Path) -> None:
    root = in_folders(phantom_root, tmp_path / "set", pair)
    masks = sorted((root / "train/masks").iterdir())
    empty = cv2.imread(str(masks[0])) * 0
    cv2.imwrite(str(masks[0]), empty)
    code, out, _ = run(*tiny(root, "--classes", "bone", "--check_data"))
    assert code == 0 and f"warning  empty label: 1\n         train/masks/{masks[0].name}: shows nothing" in out
    masks[1].unlink()
    code, out, err = run(*tiny(root, "--classes", "bone"))
    assert code == 1 and "image without label: 1" in out and one_sentence(err)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ([], 2, "classes has 29 names, but the layout pairs has one mask an image"),
        (["--image_dir", "pictures", "--mask_dir", "none"], 1, "holds no images, and no other layout fits"),
        (["--layout", "labelme", "--classes", "a"], 1, "has no label"),
    ],
)
def test_what_is_said_of_data_that_does_not_fit(
    flags: list[str], code: int, said: str, phantom_root: Path, tmp_path: Path
) -> None:
    root = in_folders(phantom_root, tmp_path / "set", pair)
    found, _, err = run(*tiny(root, *flags, "--dry_run"))
    assert found == code and said in err and one_sentence(err)
