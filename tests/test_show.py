"""show_samples, show_pairs and predict_visualize: run as a user does, and what they draw is read back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from layout_trees import SOME, in_folders, labelme, pair, per_class
from test_run_exp import one_sentence

from config import BEST, Config, ConfigProblem
from dataset.readers import read_competition
from engine import settings
from inference.panels import EXTRA, MISSED, MIXED, chosen, draw_difference, draw_masks, framed, legend, page
from model.checkpoint import save_weights
from model.network import build
from scripts import predict_visualize, show_pairs, show_samples

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pages are written where the command runs."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trees(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trees")
    for name, write in (("pairs", pair), ("classes", per_class), ("labelme", labelme)):
        in_folders(phantom_root, root / name, write)
    return root


# --- what is drawn


def test_difference_and_masks_say_what_is_where() -> None:
    truth, found = (np.array([[row]], np.int32) for row in ([0, 1, 1, 0, 2, 3], [0, 1, 0, 1, 1, 3]))
    drawn = draw_difference(np.full((1, 6), 100, np.uint8), truth, found)
    assert [tuple(pixel) for pixel in drawn[0, 2:5].tolist()] == [MISSED, EXTRA, MIXED]
    assert (drawn[0, [0, 1, 5]] == 60).all(), "what agrees is the darkened image"
    masks = draw_masks(truth, 2)[0].astype(int)
    assert not masks[0].any() and (abs(2 * masks[5] - masks[1] - masks[4]) <= 1).all(), "the mean where both are"
    assert (draw_masks(truth & 1, 1)[0, 1] == 255).all()


@pytest.mark.parametrize("shape", [(40, 20), (20, 40), (1, 300), (50, 50, 3)])
def test_panels_have_one_size_whatever_the_image(shape: tuple[int, ...]) -> None:
    panel = framed(np.full(shape, 200, np.uint8), 80, "a very long name of a file that does not fit 손.png")
    assert panel.shape == framed(np.zeros((9, 9), np.uint8), 80, "").shape
    shown = (panel[16:] == 200).all(-1)
    rows, columns = shown.any(1).sum(), shown.any(0).sum()
    assert max(rows, columns) == 80 and rows == max(round(80 * shape[0] / max(shape)), 1)


def test_pages_and_legends() -> None:
    panels = [np.full((5, 7, 3), value, np.uint8) for value in (1, 2, 3)]
    drawn = page(panels, 2)
    assert drawn.shape == (10, 14, 3) and (drawn[5:, :7] == 3).all() and (drawn[5:, 7:] == 40).all()
    assert legend(["a", "b"], 400).shape == (20, 400, 3)
    assert legend([f"class {k}" for k in range(29)], 300).shape[0] >= 100, "names go on in the next row"
    assert legend(["a name wider than the strip", "b"], 40).shape[1] == 40


def test_the_choice() -> None:
    names = [f"{k}.png" for k in range(20)]
    assert chosen(names, [], 0, 0) == list(range(20)) == chosen(names, [], 99, 3)
    first = chosen(names, [], 5, 0)
    assert first == sorted(set(first)) == chosen(names, [], 5, 0) != chosen(names, [], 5, 1)
    assert chosen(names, ["7", "3.png"], 1, 0) == [3, 7]
    with pytest.raises(ConfigProblem, match=r"names: '21\.png' is none of the 20 images \(did you mean"):
        chosen(names, ["21.png"], 1, 0)
    with pytest.raises(ConfigProblem, match="count is -1, but must be 0 or more"):
        chosen(names, [], -1, 0)


# --- pages of data sets


@pytest.mark.parametrize("layout", ["pairs", "classes", "labelme"])
def test_pages_of_each_layout(layout: str, trees: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_samples.main([str(trees / layout), "--count", "5", "--size", "64"]) == 0
    samples = cv2.imread("show_samples.png")
    assert samples is not None
    assert capsys.readouterr().out.startswith("show_samples.png: 5 of 8 images of train, ")
    assert show_pairs.main([str(trees / layout), "--split", "val", "--names", "ID009_R", "--size", "64"]) == 0
    pairs = cv2.imread("show_pairs.png")
    assert pairs is not None
    names = 20 * (layout != "pairs")
    one = framed(np.zeros((8, 8), np.uint8), 64, "").shape
    assert samples.shape[:2] == (2 * one[0] + names, 4 * one[1])
    assert pairs.shape[:2] == (one[0] + names, 3 * one[1])
    image, mask, both = (pairs[14 : one[0], k * one[1] : (k + 1) * one[1]].astype(int) for k in range(3))
    assert np.ptp(image, axis=-1).max() == 0, "the image is grey"
    assert np.ptp(both, axis=-1).max() > 40, "the overlay is not"
    assert mask.max() > 200 and (mask.max(-1) == 0).mean() > 0.3


def test_the_competitions_tree_and_unlabelled_images(phantom_root: Path, trees: Path, tmp_path: Path) -> None:
    assert show_samples.main([str(phantom_root), "--split", "test", "--size", "64", "--output", "a.png"]) == 0
    for image in (trees / "pairs/test/images").iterdir():
        (tmp_path / "raw/test/images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw/test/images" / image.name).write_bytes(image.read_bytes())
    assert show_pairs.main(["raw", "--split", "test", "--size", "64"]) == 0
    drawn = cv2.imread("show_pairs.png")
    assert drawn is not None and np.ptp(drawn.astype(int), axis=-1).max() == 0, "images, and no mask"


def test_pairs_that_do_not_match_are_told_of_and_the_rest_is_shown(
    phantom_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_folders(phantom_root, tmp_path / "set", pair)
    first = min((tmp_path / "set/train/masks").iterdir())
    first.rename(first.with_name("other_mask.png"))
    assert show_pairs.main(["set", "--count", "8", "--size", "64"]) == 0
    said = capsys.readouterr()
    assert "1 images without label, 1 labels without image, 0 labels in doubt: scripts/check_pairs.py" in said.err
    assert "8 of 8 images" in said.out


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--count", "0"], 2, "count is 0, but must lie between 1 and 400"),
        (["--size", "5"], 2, "size is 5, but must lie between 64 and 2048"),
        (["--names", "nobody"], 2, "names: 'nobody' is none of the 8 images"),
        (["--split", "holiday"], 1, "has no split holiday: give another --split"),
        (["--layout", "labelme"], 1, "has no training labels to take classes from"),
    ],
)
def test_what_is_refused(
    flags: list[str], code: int, said: str, trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found = show_samples.main([str(trees / "pairs"), *flags])
    except SystemExit as left:
        found = int(str(left.code))
    err = capsys.readouterr().err
    assert found == code and said in err and one_sentence(err)
    assert not list(tmp_path.iterdir()), "nothing is written"


# --- predictions


@pytest.fixture(scope="module")
def experiment(trees: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of three classes, as they are before training."""
    folder = tmp_path_factory.mktemp("runs") / "x"
    values = {"exp_name": "x", "output_dir": str(folder.parent), "data_root": str(trees / "classes"), "classes": SOME}
    tiny = {"image_size": 64, "window_size": 64, "stride": 32, "base_channels": 4, "device": "cpu", "holdout": "val"}
    cfg = settings.replace(Config(), {**values, **tiny, "model_file": "model.model_simple_unet_quarter"})
    save_weights(folder / BEST, build(cfg).state_dict(), cfg, 0.0, 1)
    return folder


def visualize(folder: Path, *flags: str) -> int:
    return predict_visualize.main(["--exp_name", folder.name, "--output_dir", str(folder.parent), *flags])


def test_predictions_beside_the_truth(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert visualize(experiment, "--split", "val", "--count", "2", "--size", "64", "--output", "seen") == 0
    assert "seen: 2 of 4 images, Dice 0." in capsys.readouterr().out
    drawn = [picture for path in sorted(Path("seen").iterdir()) if (picture := cv2.imread(str(path))) is not None]
    side = framed(np.zeros((8, 8), np.uint8), 64, "").shape[1]
    assert [picture.shape[1] for picture in drawn] == [4 * side] * 2
    difference = drawn[0][14:78, 3 * side :].reshape(-1, 3)
    assert any((difference == colour).all(1).any() for colour in (MISSED, EXTRA, MIXED))
    assert visualize(experiment, "--split", "val", "--output", "seen") == 1, "an existing folder is left alone"


def test_predictions_of_images_of_ones_own(experiment: Path, phantom_root: Path) -> None:
    (record, *_) = read_competition(phantom_root, "test")
    assert visualize(experiment, "--input", str(record.image), "--size", "64") == 0
    (written,) = experiment.glob("inference/pictures-*/*.png")
    picture = cv2.imread(str(written))
    assert written.stem == record.image.stem and picture is not None
    assert picture.shape[1] == 2 * framed(np.zeros((8, 8), np.uint8), 64, "").shape[1], "there is no truth"


def test_folds_show_the_images_that_they_have_not_seen(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from model.checkpoint import read_checkpoint

    trained = read_checkpoint(experiment / BEST)
    for fold in ("0", "1"):
        cfg = settings.replace(trained.cfg, {"holdout": "", "n_folds": 2, "fold": fold, "exp_name": f"fold{fold}"})
        save_weights(tmp_path / "runs/k" / f"fold{fold}" / BEST, trained.weights, cfg, 0.0, 1)
    flags = ["--split", "val", "--count", "3", "--size", "64", "--output", "out"]
    assert visualize(tmp_path / "runs/k", *flags) == 0
    assert "out: 3 of 8 images" in capsys.readouterr().out and len(list(Path("out").iterdir())) == 3


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--size", "3"], 2, "size is 3, but must lie between 64 and 2048"),
        (["--count", "-1"], 2, "count is -1, but must be 0 or more"),
        (["--epoch", "3"], 2, "The training decided this: leave the flag out"),
        (["--exp_name", "y"], 1, "does not exist: train the experiment first"),
    ],
)
def test_predictions_that_are_refused(
    flags: list[str], code: int, said: str, experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found = visualize(experiment, *flags)
    except SystemExit as left:
        found = int(str(left.code))
    err = capsys.readouterr().err
    assert found == code and said in err and one_sentence(err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", ["show_samples", "show_pairs", "predict_visualize"])
def test_commands_run_from_their_own_folder_and_help_waits_for_nothing(script: str) -> None:
    code = f"import sys; sys.argv = ['{script}.py', '--help']\ntry:\n import runpy; runpy.run_path('{script}.py', "
    code += "run_name='__main__')\nexcept SystemExit: print(sorted({'cv2', 'numba', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True)
    assert done.stdout.endswith("[]\n") and "--count" in done.stdout, done.stderr
