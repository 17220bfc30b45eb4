"""run_exp.py and inference/inference*.py as commands: exit codes, what they refuse, and one run from data to CSV."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import config
import run_exp
from config import Config
from dataset.phantom import PhantomSet
from engine import background, flags, settings
from engine.presets import PRESETS

ROOT = Path(run_exp.__file__).parent

TINY = """--preset smoke --phantom_train 6 --phantom_test 2 --phantom_size 128 --phantom_seed 3 --n_folds 3
    --image_size 64 --window_size 64 --stride 32 --windows_per_image 1 --batch_size 2 --workers 0 --epoch 1
    --model simple_unet_quarter --base_channels 4 --val_interval 1 --warmup_epochs 0.5 --device cpu""".split()  # noqa: SIM905
"""A run of 4 steps an epoch on the tiny phantom of conftest.py."""

FIRST = """--exp_name My_First_Exp --epoch 50 --lr 0.0001 --batch_size 4 --model_file model.model_nnunet
    --loss Combined_Focal_Dice""".split()  # noqa: SIM905


def tiny(data: Path, folder: Path, name: str, *more: str) -> list[str]:
    """Arguments of a tiny run; flags in `more` win."""
    return [*TINY, "--data_root", str(data), "--output_dir", str(folder), "--exp_name", name, *more]


def run(*argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of run_exp in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run_exp.main(list(argv))
        except SystemExit as left:
            assert isinstance(left.code, int)
            code = left.code
    return code, out.getvalue(), err.getvalue()


def command(script: str, *argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / script), *argv], cwd=cwd, capture_output=True, text=True)


def content(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder but locks: relative path -> bytes, None for folders."""
    found = (path for path in folder.rglob("*") if path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in found}


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test writes into log/ or checkpoints/ of the repository."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture
def no_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "start", lambda argv, name: pytest.fail("a process was started"))


def one_sentence(text: str) -> bool:
    return text.startswith("error: ") and text.count("\n") == 1 and "Traceback" not in text


@pytest.fixture(scope="module")
def finished(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of all experiments with one finished run called `tiny`, and what the run printed. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "checkpoints"
    code, out, err = run(*tiny(phantom_root, folder, "tiny"))
    assert code == 0, err
    return folder, out


@pytest.fixture
def runs(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of it to change, at another place."""
    shutil.copytree(finished[0], tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


# --- from data to CSV


def test_a_run_leaves_all_that_it_promises(finished: tuple[Path, str], phantom_root: Path) -> None:
    folder, out = finished[0] / "tiny", finished[1]
    for name in ("config.json", "metrics.csv", "per_class.csv", "best.safetensors", "last.pt"):
        assert (folder / name).stat().st_size > 0, name
    (table,) = folder.glob("inference/*/submission.csv")
    for name in ("per_class.csv", "overlay.png", "config.json"):
        assert (table.parent / name).stat().st_size > 0, name
    picture = cv2.imread(str(table.parent / "overlay.png"))
    assert picture is not None
    assert picture.std() > 0
    assert not [p for p in folder.rglob("*") if p.name.endswith(".part")]
    for said in (str(table), str(table.parent / "overlay.png"), "test Dice", "Ulna", "mean training mask", "4 images"):
        assert said in out
    assert content(phantom_root).keys() == {p.relative_to(phantom_root).as_posix() for p in phantom_root.rglob("*")}


def test_the_csv_has_every_image_and_class_in_order(finished: tuple[Path, str], phantom_root: Path) -> None:
    (table,) = (finished[0] / "tiny").glob("inference/*/submission.csv")
    rows = read_csv(table)
    images = sorted((phantom_root / "test" / "DCM").rglob("*.png"), key=lambda path: path.as_posix())
    assert len(images) == 4
    assert len(rows) == 4 * 29
    assert list(rows[0]) == ["image_name", "class", "rle"]
    expected = [(image.name, bone) for image in images for bone in config.HAND_BONES]
    assert [(row["image_name"], row["class"]) for row in rows] == expected
    for row in rows:
        numbers = [int(number) for number in row["rle"].split()]
        assert len(numbers) % 2 == 0
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            assert 1 <= start <= start + length - 1 <= 128 * 128


def test_metrics_and_settings_are_recorded(finished: tuple[Path, str]) -> None:
    folder = finished[0] / "tiny"
    (row,) = read_csv(folder / "metrics.csv")
    assert (row["epoch"], row["step"]) == ("0", "4")
    assert 0 <= float(row["val_dice"]) <= 1
    saved = json.loads((folder / "config.json").read_text("utf-8"))
    cfg, names = settings.from_record(saved, "config.json")
    assert names == set(settings.SECTION_OF)
    assert (cfg.run.exp_name, cfg.train.epoch, cfg.model.base_channels) == ("tiny", 1, 4)
    assert cfg.model.model_file == "model.model_simple_unet_quarter"


def test_resume_with_more_epochs_goes_on_where_it_ended(runs: Path, phantom_root: Path) -> None:
    before = read_csv(runs / "tiny" / "metrics.csv")
    code, out, err = run("--exp_name", "tiny", "--output_dir", str(runs), "--resume", "--epochs", "3")
    assert code == 0, err
    assert f"Resuming from {runs / 'tiny' / 'last.pt'}. Going on after epoch 1, step 0.\n" in out
    assert "resuming with epoch 3 instead of 1\n" in out, "a copied folder is no change of the settings"
    rows = read_csv(runs / "tiny" / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert [row["step"] for row in rows] == ["4", "8", "12"]
    assert rows[:1] == before
    assert len(list(runs.glob("tiny/inference/*/submission.csv"))) == 2  # nothing is overwritten
    saved, _ = settings.from_record(json.loads((runs / "tiny" / "config.json").read_text("utf-8")), "x")
    assert (saved.train.epoch, saved.data.data_root, saved.folder) == (3, str(phantom_root), runs / "tiny")
    assert not saved.run.overwrite


def test_resume_stays_in_the_folder_that_it_was_pointed_at(
    runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A copied or renamed experiment must not continue its original."""
    monkeypatch.chdir(tmp_path)  # so that --output_dir has its default, checkpoints
    (runs / "tiny").rename(runs / "baseline")
    code, out, _ = run("--resume", "--print_config")
    assert code == 0
    assert '  exp_name = "baseline"' in out
    assert '  output_dir = "checkpoints"' in out
    assert "  base_channels = 4  (saved)" in out
    assert "  resume = true  (flag)" in out


def test_inference_on_a_picture_of_another_size(finished: tuple[Path, str], tmp_path: Path, phantom_root: Path) -> None:
    source = next((phantom_root / "test" / "DCM").rglob("*.png"))
    image = cv2.imread(str(source), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    cv2.imwrite(str(tmp_path / "my hand.png"), cv2.resize(image, (101, 157)))
    argv = ["--exp_name", "tiny", "--save_overlay", "--save_masks", "--stride", "16", "--device", "cpu"]
    paths = ["--output_dir", str(finished[0]), "--input", "my hand.png", "--output", "result"]
    done = command("inference/inference.py", *argv, *paths, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "result"
    assert f"CSV: {Path('result') / 'submission.csv'}" in done.stdout
    rows = read_csv(folder / "submission.csv")
    assert [(row["image_name"], row["class"]) for row in rows] == [("my hand.png", bone) for bone in config.HAND_BONES]
    (overlay,) = folder.glob("overlays/*.png")
    height, width = cv2.imread(str(overlay)).shape[:2]
    assert (height % 157, width % 101, height // 157 - width // 101) == (0, 0, 0)  # small images are enlarged
    for row in rows:
        mask = cv2.imread(str(folder / "masks" / "my hand" / f"{row['class']}.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (157, 101)
        assert set(np.unique(mask)) <= {0, 255}
        assert (mask > 0).sum() == sum(int(n) for n in row["rle"].split()[1::2])


# --- stopping and going on


def stop_after(steps: int, signum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the signal come while training step `steps` (from 1) is computed."""
    from train import Trainer

    original: Callable[..., int] = Trainer.step
    taken = [0]

    def step(self: Any, batch: Any, accumulated: int = 1) -> int:
        taken[0] += 1
        if taken[0] == steps:
            signal.raise_signal(signum)
        return original(self, batch, accumulated)

    monkeypatch.setattr(Trainer, "step", step)


def last_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "last.pt", weights_only=True)
    return state


@pytest.mark.parametrize(
    ("steps", "signum", "code", "more"),
    [
        (2, signal.SIGTERM, 75, []),
        (4, signal.SIGINT, 130, ["--accumulate", "3"]),  # the last step of an epoch
        (5, signal.SIGTERM, 75, ["--accumulate", "3", "--optimizer", "SGD"]),
        (2, signal.SIGTERM, 75, ["--dropout", "0.3"]),
    ],
)
def test_a_stopped_run_continues_bit_identically(
    steps: int,
    signum: int,
    code: int,
    more: list[str],
    phantom_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inference.submit.submit", lambda cfg, checkpoints: None)
    argv = [*tiny(phantom_root, tmp_path, "whole", "--epoch", "2"), *more]
    assert run(*argv)[0] == 0
    argv[argv.index("whole")] = "cut"
    with monkeypatch.context() as patch:
        stop_after(steps, signum, patch)
        stopped, out, _ = run(*argv)
    assert stopped == code
    assert "--exp_name cut --resume" in out
    position = last_state(tmp_path / "cut")["position"]
    assert 0 < position["epoch"] * 4 + position["step"] < 8
    assert run("--exp_name", "cut", "--output_dir", str(tmp_path), "--resume")[0] == 0
    whole, cut = last_state(tmp_path / "whole"), last_state(tmp_path / "cut")
    assert whole["position"] == cut["position"]
    assert whole["network"].keys() == cut["network"].keys()
    for name, tensor in whole["network"].items():
        assert torch.equal(tensor, cut["network"][name]), name
    rows = [read_csv(tmp_path / name / "metrics.csv") for name in ("whole", "cut")]
    for a, b in zip(*rows, strict=True):
        for column in ("epoch", "step", "lr", "train_loss", "val_dice"):
            assert a[column] == b[column]


# --- refusals and exit codes


def test_the_first_command_fails_cleanly_without_data(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    done = command("run_exp.py", *FIRST, cwd=tmp_path / "repo")
    assert (done.returncode, done.stdout) == (1, "")
    assert one_sentence(done.stderr)
    assert "../data/train/DCM" in done.stderr
    assert "--data_root" in done.stderr
    record = "repo/log/My_First_Exp.json"
    assert content(tmp_path).keys() == {"repo", "repo/checkpoints", "repo/log", record}
    assert "../data/train/DCM" in json.loads((tmp_path / record).read_text())["error"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("run_exp.py", "../data/train/DCM"),
        ("inference/inference.py", "checkpoints/baseline/best.safetensors"),
        ("inference/inference_sliding.py", "checkpoints/baseline/best.safetensors"),
    ],
)
def test_bare_commands_do_what_config_says(script: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    done = command(script, cwd=tmp_path / "repo")
    assert (done.returncode, done.stdout) == (1, "")
    assert one_sentence(done.stderr)
    assert said in done.stderr
    on_record = {"repo/checkpoints", "repo/log", "repo/log/baseline.json"} if script == "run_exp.py" else set()
    assert content(tmp_path).keys() == {"repo", *on_record}


@pytest.mark.usefixtures("no_background")
def test_an_existing_experiment_is_neither_continued_nor_replaced_unasked(runs: Path, phantom_root: Path) -> None:
    before = content(runs)
    for more in ([], ["--dry_run"], ["--bg"]):
        code, _, err = run(*tiny(phantom_root, runs, "tiny", *more))
        assert code == 2
        assert one_sentence(err)
        for said in (str(runs / "tiny"), "--resume", "--overwrite", "--exp_name"):
            assert said in err
    assert content(runs) == before


def test_overwrite_replaces_the_experiment_and_nothing_else(
    runs: Path, phantom_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.submit.submit", lambda cfg, checkpoints: None)
    (runs / "tiny" / "notes.txt").write_text("of the old run")
    shutil.copytree(runs / "tiny", runs / "other")
    other, data = content(runs / "other"), content(phantom_root)
    assert run(*tiny(phantom_root, runs, "tiny", "--overwrite", "--seed", "7"))[0] == 0
    assert not (runs / "tiny" / "notes.txt").exists()
    assert not (runs / "tiny" / "inference").exists()
    assert json.loads((runs / "tiny" / "config.json").read_text())["run"]["seed"] == 7
    assert (content(runs / "other"), content(phantom_root)) == (other, data)


def test_overwrite_deletes_nothing_before_the_new_run_can_start(runs: Path, phantom_root: Path, tmp_path: Path) -> None:
    before = content(runs)
    for more, code in (
        (["--no_phantom", "--data_root", str(tmp_path / "nowhere")], 1),
        (["--model_file", "unet_resnet43"], 2),
        (["--batch_size", "999"], 2),
        (["--dataset_file", "dataset_slidin"], 2),
        (["--inference_file", "inference_x"], 2),
        (["--exclude", "ID000/x"], 2),
    ):
        assert run(*tiny(phantom_root, runs, "tiny", "--overwrite", *more))[0] == code, more
    assert content(runs) == before


FOREIGN: dict[str, dict[str, str]] = {
    "files": {"thesis.txt": "years of work"},
    "a config.json of something else": {"config.json": '{"name": "web", "run": "npm"}', "src/index.js": "1"},
    "a config.json that is a list": {"config.json": "[1]"},
    "a config.json that is no JSON": {"config.json": "{"},
    "weights only": {"best.safetensors": "x"},
}


@pytest.mark.usefixtures("no_background")
@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN.keys())
@pytest.mark.parametrize("more", [[], ["--dry_run"], ["--bg"]], ids=str)
def test_overwrite_never_deletes_what_is_no_experiment(
    files: dict[str, str], more: list[str], tmp_path: Path, phantom_root: Path
) -> None:
    for name, text in files.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text(text)
    before = content(tmp_path)
    code, _, err = run(*tiny(phantom_root, tmp_path, "mine", "--overwrite", *more))
    assert code == 2
    assert one_sentence(err)
    assert "no experiment" in err
    assert content(tmp_path) == before


@pytest.mark.parametrize("rank", ["0", "1"])
def test_ranks_started_by_hand_leave_a_finished_experiment_alone(
    rank: str, runs: Path, phantom_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m torch.distributed.run … run_exp.py`: the ranks are the first to look."""
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": rank, "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # all ranks but the first one close theirs
    before = content(runs)
    code, _, err = run(*tiny(phantom_root, runs, "tiny"))
    assert (code, one_sentence(err)) == (2, True)
    assert "tiny exists: give --resume to continue it, --overwrite to replace it" in err
    assert content(runs) == before


def test_overwrite_leaves_files_and_links_of_this_name_alone(tmp_path: Path, runs: Path, phantom_root: Path) -> None:
    (runs / "file").write_text("mine")
    (runs / "link").symlink_to(runs / "tiny")
    before = content(runs)
    for name in ("file", "link"):
        code, _, err = run(*tiny(phantom_root, runs, name, "--overwrite"))
        assert (code, one_sentence(err)) == (2, True)
        assert name in err
    assert content(runs) == before


@pytest.mark.parametrize("extra", [None, "my_notes.txt"])
def test_overwrite_redraws_phantoms_but_only_a_folder_of_nothing_else(
    extra: str | None, phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[PhantomSet] = []
    monkeypatch.setattr("dataset.prepare.write_phantom_set", lambda root, wanted, workers: drawn.append(wanted))
    data = tmp_path / "data"
    shutil.copytree(phantom_root, data)
    if extra:
        (data / extra).write_text("mine")
    (tmp_path / "out").mkdir()  # of the lock
    before = content(tmp_path)
    argv = tiny(data, tmp_path / "out", "new", "--phantom_train", "7")
    for more in ([], ["--dry_run"], *([["--overwrite"], ["--overwrite", "--dry_run"]] if extra else [])):
        code, _, err = run(*argv, *more)
        assert (code, one_sentence(err)) == (1, True), err
        assert str(data) in err
        assert ("--overwrite" in err) == (extra is None)
    assert (content(tmp_path), drawn) == (before, [])
    if not extra:
        code, out, _ = run(*argv, "--overwrite", "--dry_run")
        assert (code, content(tmp_path)) == (0, before)
        assert "would draw 18 phantoms of 128 px" in out
        assert run(*argv, "--overwrite")[0] == 1  # nothing is drawn here, so there are no images
        assert not data.exists()
        assert [wanted.train_subjects for wanted in drawn] == [7]


def test_saved_settings_never_overwrite_nor_resume_unasked(
    runs: Path, phantom_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.submit.submit", lambda cfg, checkpoints: None)
    saved = runs / "tiny" / "config.json"
    for argv in (
        tiny(phantom_root, runs, "tiny", "--overwrite"),
        ["--exp_name", "tiny", "--output_dir", str(runs), "--resume", "--epoch", "2"],
    ):
        assert run(*argv)[0] == 0
        cfg, _ = settings.from_record(json.loads(saved.read_text("utf-8")), "x")
        assert not cfg.run.overwrite
        assert not cfg.run.resume
        before = content(runs)
        assert run("--config", str(saved))[0] == 2
        assert content(runs) == before


def test_resume_without_a_run_is_one_sentence(tmp_path: Path) -> None:
    code, out, err = run("--exp_name", "nothing", "--output_dir", str(tmp_path), "--resume")
    assert (code, out, one_sentence(err)) == (1, "", True)
    assert str(tmp_path / "nothing" / "last.pt") in err
    assert content(tmp_path) == {}


@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_resume_from_a_damaged_state_is_one_sentence(runs: Path, damage: str) -> None:
    for path in (runs / "tiny" / "last.pt", runs / "tiny" / "previous.pt"):
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "other": b"not a state"}[damage])
    before = content(runs)
    code, _, err = run("--exp_name", "tiny", "--output_dir", str(runs), "--resume")
    assert (code, one_sentence(err)) == (1, True), err
    assert str(runs / "tiny" / "last.pt") in err and str(runs / "tiny" / "previous.pt") in err
    assert content(runs) == before


def test_resume_with_another_network_is_one_sentence(runs: Path) -> None:
    before = content(runs)
    argv = ["--exp_name", "tiny", "--output_dir", str(runs), "--resume"]
    code, _, err = run(*argv, "--base_channels", "5", "--epoch", "2")
    assert (code, one_sentence(err)) == (2, True), err
    assert "base_channels 5 instead of 4" in err and "--force_resume" in err
    assert content(runs) == before


@pytest.mark.usefixtures("no_background")
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--epoh", "3"], "--epoch"),
        (["--scheduler", "stepplr"], "did you mean StepLR"),
        (["--model_file", "model_nnunt"], "model_nnunet"),
        (["--loss", "focl_dice"], "Focal"),
        (["--loss", "Combined"], "Combined"),
        (["--stride", "4096", "--fold", "7", "--lr", "99"], "stride 4096"),
        (["--resume", "--overwrite"], "overwrite"),
        (["--exp_name", "../x"], "exp_name"),
        (["--preset", "smoek"], "smoke"),
        (["--config", "nowhere.json"], "nowhere.json"),
    ],
)
def test_wrong_settings_leave_with_2(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--dry_run"], ["--print_config"], ["--bg"]):
        code, out, err = run(*argv, *more)
        assert (code, out) == (2, "")
        assert said in err
        assert "Traceback" not in err
    assert content(tmp_path) == {}


@pytest.mark.usefixtures("no_background")
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--optimizer", "adamm"], "did you mean adam"),
        (["--optimizer", "adamw", "--momentum", "0.9"], "momentum 0.9"),
    ],
)
def test_what_only_a_library_knows_leaves_with_2_before_anything_is_written(
    argv: list[str], said: str, runs: Path, phantom_root: Path
) -> None:
    """The names of optimizers are timm's, so --print_config, which imports nothing slow, can't know them."""
    before = content(runs)
    for more in ([], ["--dry_run"], ["--bg"], ["--fold", "all"]):
        code, _, err = run(*tiny(phantom_root, runs, "tiny", "--overwrite", *argv, *more))
        assert (code, one_sentence(err)) == (2, True), err
        assert said in err
        assert content(runs) == before, more


def test_all_broken_rules_are_reported_together() -> None:
    _, _, err = run("--stride", "4096", "--fold", "7", "--lr", "99", "--exp_name", "a/b")
    for said in ("stride 4096", "fold is 7", "lr is 99", "exp_name is 'a/b'"):
        assert said in err


def test_an_error_of_the_file_system_is_one_sentence(tmp_path: Path, phantom_root: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = run(*tiny(phantom_root, tmp_path / "file", "x"))
    assert (code, one_sentence(err)) == (1, True)
    assert str(tmp_path / "file") in err


def test_an_error_of_our_own_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(argv: list[str], cfg: Config, check: bool) -> int:
        raise OSError("no file is named")

    monkeypatch.setattr(run_exp, "_run", broken)
    with pytest.raises(OSError, match="no file is named"):
        run()


def test_ctrl_c_outside_of_training_leaves_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(argv: list[str], cfg: Config, check: bool) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_exp, "_run", interrupted)
    code, _, err = run()
    assert code == 130
    assert "Traceback" not in err


def test_a_reader_that_has_gone_is_no_crash(tmp_path: Path) -> None:
    """python run_exp.py --print_config | head -1"""
    reader, writer = os.pipe()
    os.close(reader)
    script = [sys.executable, str(ROOT / "run_exp.py"), "--print_config"]
    done = subprocess.run(script, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == ""


# --- looking without touching


def test_print_config_shows_full_names_and_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["--model", "UNET_resnet50", "--loss", "bce_dice", "--dataset", "DATASET", "--scheduler", "COSINE"]
    names += ["--inference_file", "sliding"]
    code, out, err = run("--preset", "smoke", *names, "--print_config")
    assert (code, err) == (0, "")
    for line in (
        'model_file = "model.model_unet_resnet50"  (flag)',
        'loss = "Combined_BCE_Dice"  (flag)',
        'dataset_file = "dataset.dataset"  (flag)',
        'inference_file = "inference.inference_sliding"  (flag)',
        'scheduler = "CosineAnnealingLR"  (flag)',
        'exp_name = "smoke"  (preset)',
        "split_seed = 42  (default)",
    ):
        assert f"  {line}\n" in out
    assert content(tmp_path) == {}


def test_dry_run_sizes_everything_and_writes_nothing(
    finished: tuple[Path, str], phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("train.Trainer.fit", lambda self: pytest.fail("training was started"))
    data, runs = content(phantom_root), content(finished[0])
    for folder, more in ((tmp_path / "out", []), (finished[0], ["--overwrite"]), (finished[0], ["--resume"])):
        code, out, err = run(*tiny(phantom_root, folder, "tiny", "--dry_run", *more))
        assert (code, err) == (0, "")
        for said in (f"would write {folder / 'tiny'}", "8 training and 4 validation images", "4 steps", "parameters"):
            assert said in out
        assert "2 x 1 x 64 x 64" in out
        assert "logits 1 MiB" in out  # 2 x 29 x 64 x 64 x 4 bytes
    assert (content(phantom_root), content(finished[0]), content(tmp_path)) == (data, runs, {})


def test_dry_run_before_the_phantoms_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = tiny(tmp_path / "data", tmp_path / "out", "tiny", "--dry_run")
    code, out, err = run(*argv)
    assert (code, err) == (0, "")
    assert "would draw 16 phantoms of 128 px" in out
    assert "parameters" in out
    for more in (
        ["--dataset_file", "dataset_slidin"],
        ["--inference_file", "inference_x"],
        ["--model_file", "unet_resnet43"],
        ["--model_file", "unet_resnet18", "--base_channels", "4"],
        ["--n_folds", "7"],
        ["--batch_size", "9"],
        *([["--device", "cuda"]] if not torch.cuda.is_available() else []),
    ):
        assert run(*argv, *more)[0] == 2, more
    assert content(tmp_path) == {}


@pytest.mark.parametrize("preset", [name for name, values in PRESETS.items() if values.get("phantom")])
def test_every_preset_that_draws_its_data_passes_a_dry_run(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("--preset", preset, "--dry_run")
    assert (code, err) == (0, "")
    assert f"would write checkpoints/{PRESETS[preset].get('exp_name', 'baseline')}" in out
    assert content(tmp_path) == {}


# --- the background


@pytest.mark.parametrize("spelling", [["--bg"], ["--bg", "True"], ["--bg=yes"], ["--no_bg", "--bg"]], ids=str)
def test_the_background_run_is_the_same_but_in_the_foreground(
    spelling: list[str], tmp_path: Path, phantom_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that goes to the background again would start children for ever."""
    started: list[tuple[list[str], str]] = []
    monkeypatch.setattr(background, "start", lambda argv, name: started.append((argv, name)) or "started")
    argv = tiny(phantom_root, tmp_path, "x")
    code, out, _ = run(*argv[:2], *spelling, *argv[2:])
    assert code == 0
    assert out.endswith("started\n")
    ((script, *rest), name), = started
    assert (Path(script), name) == (ROOT / "run_exp.py", "x")
    parsed, commands = flags.parse(rest, run_exp.Commands, "")
    assert not commands.bg
    assert parsed.cfg == flags.parse(argv, run_exp.Commands, "")[0].cfg


def test_a_background_run_reports_to_its_log(tmp_path: Path, phantom_root: Path) -> None:
    code, out, _ = run(*tiny(phantom_root, tmp_path, "behind"), "--bg")
    assert code == 0
    assert "log/behind.log" in out
    code, out, _ = run("--follow", "behind")
    assert (code, out.splitlines()[-1]) == (0, "behind: done")
    code, out, _ = run("--status")
    assert code == 0
    assert re.search(r"^behind .* done$", out, re.MULTILINE)
    assert run("--status", "behind")[1].startswith("behind: done")
    assert run("--stop", "behind")[:2] == (0, "behind does not run: done\n")
    log = Path("log/behind.log").read_text()
    assert log.startswith("--- ")
    assert "test Dice" in log
    assert (tmp_path / "behind/inference/test/submission.csv").exists()


@pytest.mark.usefixtures("no_background")
def test_what_runs_is_not_begun_again(tmp_path: Path, phantom_root: Path) -> None:
    argv = tiny(phantom_root, tmp_path, "x")

    def others() -> int:
        for more in ([], ["--bg"], ["--overwrite"]):
            code, _, err = run(*argv, *more)
            assert (code, one_sentence(err)) == (1, True), err
            assert err.startswith(f"error: x runs already (process {os.getpid()} on ")
        return 0

    assert background.on_record("x", tmp_path / "x", argv, others) == 0
    assert run("--status", "x")[1].startswith("x: done")


def test_no_experiment_of_the_name_is_one_sentence() -> None:
    for ask in ("--status", "--stop", "--follow"):
        code, out, err = run(ask, "nobody")
        assert (code, out, err) == (1, "", "error: nobody has never run here: --status lists what has (log/*.json).\n")


def test_what_cannot_run_does_not_go_to_the_background() -> None:
    code, _, err = run(*FIRST, "--bg")
    assert code == 1
    assert err.startswith("error: ../data/train/DCM holds no images")
    assert not Path("log").exists()
