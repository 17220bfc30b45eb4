"""Data sets as people have them, through the real commands: each works, or one line says why not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from layout_trees import save
from numpy.typing import NDArray
from PIL import Image
from test_bad_input import SQUARE, labelme, palette
from test_run_exp import elsewhere, one_sentence, read_csv, run

from scripts import check_pairs

__all__ = ["elsewhere"]  # a fixture


def picture(number: int, side: int = 64) -> NDArray[np.uint8]:
    noise = np.random.default_rng(number).integers(0, 255, (side, side), np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 2), np.uint8)


def disc(number: int, side: int = 64) -> NDArray[np.uint8]:
    return np.asarray(cv2.circle(np.zeros((side, side), np.uint8), (16 + 3 * number, 30), 12, (255,), -1), np.uint8)


def data_set(root: Path, names: tuple[str, ...] = ("0", "1", "2", "3")) -> Path:
    """Images and masks, both 0.png, 1.png, …"""
    for number, name in enumerate(names):
        save(root / f"images/{name}.png", picture(number))
        save(root / f"masks/{name}.png", disc(number))
    return root


def odd_but_right(root: Path) -> Path:
    """A data set of what must work, one oddity each."""
    data_set(root, ("larger", "red", "zero_one", "soft", "손é 中", "deep", "real", "palette"))
    save(root / "masks/larger.png", disc(0, 128))
    save(root / "masks/red.png", np.dstack([disc(1) * 0, disc(1) * 0, disc(1)]))
    save(root / "masks/zero_one.png", disc(2) // 255)
    save(root / "masks/soft.png", np.asarray(cv2.GaussianBlur(disc(3), (0, 0), 2), np.uint8))
    for name, image in (("deep", picture(5).astype(np.uint16) * 16), ("real", picture(6).astype(np.float32) / 255)):
        assert cv2.imwrite(str(root / f"images/{name}.tif"), image)
        (root / f"images/{name}.png").unlink()
    (root / "masks/palette.png").write_bytes(palette(disc(7) // 255, [0, 0, 0, 128, 0, 0]))
    (root / "masks/손é 中.png").rename(root / "masks/손é 中_mask.png")
    return root


def test_what_is_odd_but_right_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_pairs.main(["--data_root", str(odd_but_right(tmp_path / "set"))]) == 0
    out = capsys.readouterr().out
    assert "data: 8 images (8 of 64 x 64), 8 labels, 8 subjects" in out and "data: errors 0, warnings 1" in out
    assert "masks/larger.png: is 128 x 128 px, and is resized to its image's 64 x 64." in out


@pytest.mark.full
def test_what_is_odd_but_right_trains_and_is_predicted(tmp_path: Path) -> None:
    root = odd_but_right(tmp_path / "set")
    flags = """--classes disc --image_size 64 --window_size 64 --stride 32 --windows_per_image 1 --epoch 1 --workers 0
        --model simple_unet_quarter --base_channels 4 --n_folds 4 --cpu --wandb off --exp_name x""".split()  # noqa: SIM905
    (root / "images").rename(root / "train_images")
    for name in ("train", "test"):
        (root / "splits").mkdir(exist_ok=True)
        (root / f"splits/{name}.txt").write_text("".join(f"{p.name}\n" for p in (root / "train_images").iterdir()))
    flags += ["--data_root", str(root), "--image_dir", "train_images", "--output_dir", str(tmp_path), "--no_check_data"]
    code, _, err = run(*flags)
    assert code == 0, err
    rows = read_csv(tmp_path / "x/inference/test/submission.csv")
    assert {row["image_name"] for row in rows} == {path.name for path in (root / "train_images").iterdir()}


def edit(root: Path, kind: str) -> None:
    """Make one thing of a data set wrong."""
    mask = root / "masks/0.png"
    frames = [Image.fromarray(picture(number)) for number in range(3)]
    if kind == "pages":
        (root / "images/0.png").unlink()
        frames[0].save(root / "images/0.tif", save_all=True, append_images=frames[1:])
    elif kind == "animated":
        frames[0].save(root / "images/0.png", save_all=True, append_images=frames[1:])
    elif kind == "gif image":
        (root / "images/0.png").unlink()
        frames[0].save(root / "images/0.gif", save_all=True, append_images=frames[1:])
    elif kind == "gif mask":
        mask.unlink()
        Image.fromarray(disc(0)).save(root / "masks/0_mask.gif")
    elif kind == "no mask":
        mask.unlink()
    elif kind == "two masks":
        save(root / "masks/0_mask.png", disc(0))
    elif kind == "two images":
        save(root / "images/0.jpg", picture(0))
    elif kind == "other shape":
        save(mask, disc(0)[:32])
    elif kind == "label map":
        save(mask, disc(0) // 255 + disc(3) // 255)
    elif kind == "colours":
        save(mask, np.dstack([disc(0), disc(0) * 0, disc(3)]))


SAID = {
    "pages": "images/0.tif: holds several pages or frames, but must be one image: save the one",
    "animated": "images/0.png: holds several pages or frames, but must be one image: save the one",
    "gif image": "masks/0.png: add images/0.png (0.gif is there, but of a type that is not read), or remove the label",
    "gif mask": "0.png: add masks/0_mask.png (0_mask.gif is there, but of a type that is not read), or remove the ima",
    "no mask": "images/0.png: add masks/0_mask.png, or remove the image.",
    "two masks": "masks/0_mask.png: and 0.png are both the label of one image and disc: remove one.",
    "two images": "images/0.jpg: and 0.png have one name, so their labels can't be told apart: rename or remove one.",
    "other shape": "masks/0.png: is 64 x 32 px, but its image is 64 x 64, which is no enlargement of it",
    "label map": "masks/0.png: has several values beside 0 and none above 127.5",
    "colours": "masks/0.png: shows 3 colours beside black, so it is no mask of one class",
}
"""What `edit` does -> what the look at the data says."""


@pytest.mark.parametrize("kind", SAID)
def test_one_line_says_what_is_wrong(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(data_set(tmp_path / "set"), kind)
    before = sorted((tmp_path / "set").rglob("*"))
    assert check_pairs.main(["--data_root", str(tmp_path / "set"), "--classes", "disc"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if SAID[kind] in line]
    assert line.startswith(" " * 9)
    assert sorted((tmp_path / "set").rglob("*")) == before, "nothing is lost"


def test_training_stops_before_it_begins(tmp_path: Path) -> None:
    edit(data_set(tmp_path / "set"), "two masks")
    code, out, err = run("--data_root", str(tmp_path / "set"), "--classes", "disc", "--output_dir", str(tmp_path))
    assert code == 1 and SAID["two masks"] in out and one_sentence(err)
    assert "the data has errors (label in doubt): correct or --exclude the files" in err


@pytest.mark.parametrize(
    ("images", "masks", "found"),
    [
        (".png", "", "images/ (1 .png), masks/ (empty)"),
        ("", "", "images/ (empty), masks/ (empty)"),
        (".png", ".gif", "images/ (1 .png), masks/ (1 .gif)"),
    ],
)
def test_a_tree_that_is_no_data_set(images: str, masks: str, found: str, tmp_path: Path) -> None:
    for folder, suffix in (("images", images), ("masks", masks)):
        (tmp_path / "set" / folder).mkdir(parents=True)
        if suffix:
            Image.fromarray(disc(0)).save(tmp_path / "set" / folder / f"0{suffix}")
    code, _, err = run("--data_root", str(tmp_path / "set"), "--classes", "disc", "--check_data")
    assert code == 1 and one_sentence(err) and f"found {found}. Point --data_root" in err


def test_labelme_files_without_their_images(tmp_path: Path) -> None:
    labelme(tmp_path, [SQUARE], imageData="iVBORw0")
    (tmp_path / "a.png").unlink()
    (tmp_path / "a_mask.png").unlink()
    code, _, err = run("--data_root", str(tmp_path), "--layout", "labelme", "--classes", "knee", "--check_data")
    assert code == 1 and one_sentence(err)
    assert "no images of the split train beside its 1 JSON files (an image inside of one, imageData, is not rea" in err
