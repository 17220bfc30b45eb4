"""The weights that come with the code: small, whole, and good for radiographs that lie anyhow."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_run_exp import elsewhere, run

from config import BEST, HAND_BONES, SHIPPED, Config
from dataset.labels import rasterise
from dataset.phantom_draw import Phantom, draw_phantom
from dataset.ultrasound import draw_frame
from engine import settings
from inference.command import main
from inference.csv_masks import CsvMasks, draw_runs
from inference.find_hands import Placement, find_hands
from inference.forward import Forward
from inference.metrics import count_bits, dice_from_counts
from model.checkpoint import Checkpoint, read_checkpoint, save_weights
from model.network import build
from scripts import few_labels, model_card, release_weights

__all__ = ["elsewhere"]  # a fixture

SEED = 4242
"""Of the drawings: no preset trains on it."""
LARGEST = 20_000_000


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return read_checkpoint(SHIPPED)


@pytest.fixture(scope="module")
def forward(shipped: Checkpoint) -> Forward:
    return Forward(shipped.network())


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return draw_phantom(SEED, 0, "L", 512, False, ("dr",))


def test_the_file_is_small_and_its_card_names_it(shipped: Checkpoint) -> None:
    card = (SHIPPED.parent / "README.md").read_text(encoding="utf-8")
    content = SHIPPED.read_bytes()
    assert len(content) <= LARGEST
    assert hashlib.sha256(content).hexdigest() in card and f"{len(content):,} bytes" in card
    assert "Not a medical device" in card
    for style in shipped.cfg.phantom.phantom_styles:
        assert re.search(rf"\| `{style}` \| yes \|", card)
    held_out = re.findall(r"\| `(\w+)` \| \*\*never\*\* \| ([\d.]+) \|", card)
    assert held_out and all(float(dice) >= 0.85 for _, dice in held_out)
    assert shipped.cfg.run.output_dir == "checkpoints" and shipped.cfg.data.classes == HAND_BONES


def test_an_image_alone_is_answered_from_any_folder(
    phantom: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All 29 bones, each where it is, through the whole command."""
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("hand.png", phantom.image)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["--input", "hand.png", "--output", "answer", "--save_overlay", "--device", "cpu"]) == 0
    assert str(SHIPPED) in out.getvalue()
    assert "hand.png: a left hand (if seen from its back), upright" in out.getvalue()
    assert "29 of 29 bones" in out.getvalue()
    runs = CsvMasks(Path("answer/submission.csv"), HAND_BONES).runs("hand.png", 512 * 512)
    bits, truth = draw_runs(runs, HAND_BONES, 512, 512), rasterise(phantom.polygons, HAND_BONES, 512, 512, "")
    dice = dict(zip(HAND_BONES, dice_from_counts(count_bits(bits, truth, len(HAND_BONES))), strict=True))
    assert min(dice.values()) > 0.75, dice
    with open("answer/hands.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert all(float(row[name]) > 0.7 for name in HAND_BONES), "sure of every bone"
    assert Path("answer/overlays/hand.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("turns", "mirrored", "inverted", "style"),
    [
        (0, True, False, "competition"),
        (1, False, True, "film"),
        (2, False, False, "cr"),
        (2, True, True, "portable"),
        (3, True, False, "old"),
        (3, False, True, "child"),
    ],
)
def test_side_turn_and_polarity_of_transformed_hands(
    turns: int, mirrored: bool, inverted: bool, style: str, forward: Forward
) -> None:
    """Margins, too: by quarter turns, so that the picture is nowhere resampled."""
    phantom = draw_phantom(SEED, 1, "R", 640, False, (style,))
    image = np.pad(phantom.image, ((90, 0), (40, 200)))
    image = image[:, ::-1] if mirrored else image
    image = np.ascontiguousarray(np.rot90(255 - image if inverted else image, -turns))
    (hand,) = found(forward, image)
    assert hand.side == ("left" if mirrored else "right")
    assert hand.inverted == inverted
    assert abs((hand.turned - 90 * turns + 180) % 360 - 180) < 45, "but for its own turn, up to 30 degrees"
    assert hand.score > 0.7


def found(forward: Forward, image: NDArray[np.uint8]) -> list[Placement]:
    return find_hands(forward, HAND_BONES, image, "cpu")


def test_two_hands_in_one_picture(forward: Forward) -> None:
    """Both hands of a subject side by side, as on one plate."""
    left, right = (draw_phantom(SEED, 2, side, 512, False, ("competition",)).image for side in "LR")
    hands = found(forward, np.concatenate([left, right], axis=1))
    assert sorted(hand.side for hand in hands) == ["left", "right"]
    assert [hand.side for hand in sorted(hands, key=lambda hand: hand.centre()[0])] == ["left", "right"]


@pytest.mark.parametrize("kind", ["ultrasound", "noise", "black", "flat"])
def test_what_is_no_hand(kind: str, forward: Forward) -> None:
    shape = (400, 500)
    noise = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    pictures = {
        "ultrasound": draw_frame(SEED, 0, 0, 512)[0],
        "noise": noise,
        "black": np.zeros(shape, np.uint8),
        "flat": np.full(shape, 128, np.uint8),
    }
    assert found(forward, pictures[kind]) == []


# --- what is made with them, and of them


def test_few_labels_begin_with_them(elsewhere: Path, phantom_root: Path) -> None:
    flags = ("--data_root", str(phantom_root), "--limit_train", "5", "--epoch", "1", "--wandb", "off", "--workers", "0")
    code, out, err = run("--preset", "few_labels", "--cpu", *flags)
    assert code == 0, err
    assert f"{SHIPPED}: " in out and "100.0% of the network" in out
    start, end = (read_checkpoint(path).weights for path in (SHIPPED, Path("checkpoints/few_labels/best.safetensors")))
    assert start.keys() == end.keys() and end["body.head.weight"].dtype == torch.float32
    assert 0 < (end["body.head.weight"] - start["body.head.weight"].float()).abs().max() < 0.02


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Config]:
    """An experiment that nobody has trained."""
    folder = tmp_path / "runs" / "trained"
    values = {"model_file": "model.model_simple_unet_quarter", "base_channels": 4, "image_size": 64, "window_size": 64}
    cfg = settings.replace(Config(), {**values, "stride": 64, "inference_file": "inference.inference"})
    torch.manual_seed(0)
    save_weights(folder / BEST, build(cfg).state_dict(), cfg, 0.5, 3)
    return folder, cfg


def test_release_is_half_as_large_and_says_nearly_the_same(small: tuple[Path, Config], tmp_path: Path) -> None:
    folder, cfg = small
    target = tmp_path / "shipped"
    assert release_weights.main([str(folder), str(target)]) == 0
    whole, half = (read_checkpoint(path / BEST) for path in (folder, target))
    assert 0.4 < (target / BEST).stat().st_size / (folder / BEST).stat().st_size < 0.7
    assert (half.score, half.epoch, half.cfg.model) == (0.5, 3, cfg.model)
    assert (half.cfg.run.exp_name, half.cfg.run.output_dir) == ("shipped", str(tmp_path))
    grey = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        one, other = whole.network()(grey), half.network()(grey)
    assert other.dtype == torch.float32
    torch.testing.assert_close(one, other, atol=0.02, rtol=0.02)


def test_release_replaces_nothing_and_no_number_overflows(
    small: tuple[Path, Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, cfg = small
    assert release_weights.main([str(folder), str(folder)]) == 1
    assert "give --overwrite, or another folder" in capsys.readouterr().err
    weights = read_checkpoint(folder / BEST).weights
    weights["body.head.bias"][3] = 1e5
    save_weights(folder / BEST, weights, cfg, 0.5, 3)
    assert release_weights.main([str(folder), str(tmp_path / "other")]) == 1
    assert "body.head.bias has values beyond 65504" in capsys.readouterr().err
    assert not (tmp_path / "other" / BEST).exists()


@pytest.mark.full
def test_card_is_measured_and_written_between_its_marks(
    small: tuple[Path, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = small
    monkeypatch.setattr(model_card, "LARGE", 160)
    monkeypatch.setattr(model_card, "SIZES", (130, 200))
    pictures = tmp_path / "chests"
    pictures.mkdir()
    cv2.imwrite(str(pictures / "a.png"), np.full((60, 60), 9, np.uint8))
    argv = [str(folder), "--subjects", "1", "--hands", "2", "--others", str(pictures), "--write"]
    assert model_card.main(argv) == 1
    assert "add them where the measured part belongs" in capsys.readouterr().err
    assert model_card.main([str(folder), "--others", "nowhere"]) == 1
    assert "nowhere is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        model_card.main([str(folder), "--hands", "0"])
    assert "hands is 0: give 1 or more" in capsys.readouterr().err
    card = folder / "README.md"
    card.write_text(f"before\n{model_card.BEGIN}\nstale\n{model_card.END}\nafter\n")
    assert model_card.main(argv) == 0
    text = card.read_text()
    assert text.startswith(f"before\n{model_card.BEGIN}\n") and text.endswith(f"{model_card.END}\nafter\n")
    assert "stale" not in text and hashlib.sha256((folder / BEST).read_bytes()).hexdigest() in text
    assert re.search(r"\| `competition` \| yes \| 0\.\d{3} \|", text)
    assert re.search(r"\| `portable` \| \*\*never\*\* \| 0\.\d{3} \|", text)
    assert "| 0 % | 0 % | 0 % | 0 % | 0 % | 0.0" in text and "| chests | 1 | 0 |" in text
    assert re.search(r"for one radiograph of 160 px, .* [\d.]+ s and [\d.]+ GiB at most", text)


def test_hands_of_the_card_lie_in_every_way() -> None:
    shown = [model_card.lying(number) for number in range(12)]
    assert {hand.side for hand in shown} == {"left", "right"} and {hand.inverted for hand in shown} == {True, False}
    assert {hand.turned for hand in shown} == {0, 90, 180, 270}
    for hand in shown:
        assert hand.bits.shape[1:] == hand.image.shape and (hand.bits != 0).any()


def test_a_batch_of_labels_is_the_least(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        few_labels.main([str(tmp_path), "--images", "10", "4"])
    assert "give numbers of 5 or more, a whole batch" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_table_of_few_labels(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = [str(tmp_path), "--images", "5", "--subjects", "1", "--epochs", "1", "--scratch_epochs", "1"]
    assert few_labels.main(argv) == 0
    first = capfd.readouterr().out
    (row,) = re.findall(r"\| 5 \| ([\d.]+) \| ([\d.]+) \|", first)
    (before,) = re.findall(r"Without any label: ([\d.]+)\.", first)
    assert float(row[0]) > 0.5 > float(row[1]) and float(before) > 0.5
    assert few_labels.main(argv) == 0
    again = capfd.readouterr().out
    assert "epoch 1/1" not in again and again.splitlines()[-1] in first, "what is done is not done again"
