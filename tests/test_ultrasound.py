"""dataset/ultrasound.py: frames that look like ultrasound of bone, and the folders of that workflow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn import dice

from config import Config
from dataset.images import read_image
from dataset.layouts import read_split
from dataset.ultrasound import draw_frame, write_ultrasound
from engine import settings
from engine.files import FileProblem
from engine.presets import PRESETS

SIZE = 128


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ultrasound")
    write_ultrasound(root, 20, SIZE, 3)
    return root


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.png"))}


def test_the_same_arguments_draw_the_same_files(root: Path, tmp_path: Path) -> None:
    write_ultrasound(tmp_path / "again", 20, SIZE, 3)
    write_ultrasound(tmp_path / "other", 20, SIZE, 4)
    assert files_of(tmp_path / "again") == files_of(root)
    other = files_of(tmp_path / "other")
    assert other.keys() == files_of(root).keys() and not set(other.values()) & set(files_of(root).values())


def test_folders_of_the_workflow(root: Path) -> None:
    images, masks, raw = (
        {path.name for path in (root / name).iterdir()} for name in ("images", "masks_manual", "raw_unlabelled")
    )
    assert len(images) == 20 and images == masks and len(raw) == 10 and not images & raw
    assert {name[:4] for name in images} == {f"p{video:02d}_" for video in range(1, 11)}, "ten videos of two frames"
    known = {name[:3] for name in images}
    assert len({name for name in raw if name[:3] in known}) == 5, "half of the others are of the same videos"
    cfg = settings.replace(Config(), {**PRESETS["ultrasound"], "data_root": str(root)})
    records = read_split(cfg, "train")
    assert len(records) == 20 and len({record.subject for record in records}) == 10
    assert all(record.subject == record.name[:3] for record in records)


@pytest.mark.parametrize("name", ["p01_0001.png", "p10_0002.png"])
def test_masks_lie_on_bright_bone_above_its_shadow(name: str, root: Path) -> None:
    image, mask = read_image(root / "images" / name), read_image(root / "masks_manual" / name)
    assert image.shape == mask.shape == (SIZE, SIZE) and set(np.unique(mask)) == {0, 255}
    assert 0.015 < (mask > 0).mean() < 0.13, "plausible, as scripts/predict_unet_small.py has it"
    columns = np.flatnonzero((mask > 0).any(0))[4:-4]
    bottom = SIZE - 1 - np.argmax(mask[::-1, columns] > 0, 0)
    below = np.concatenate([image[b + 6 : b + 20, c] for b, c in zip(bottom, columns, strict=True)])
    assert image[mask > 0].mean() > image[mask == 0].mean() + 50
    assert below.mean() < image[mask == 0].mean() - 10


def test_frames_of_a_video_are_alike_and_without_bone_there_is_no_mask() -> None:
    masks = {(video, frame): draw_frame(1, video, frame, SIZE)[1] > 0 for video in range(1, 7) for frame in (1, 2)}
    same = np.mean([dice(masks[video, 1], masks[video, 2]) for video in range(1, 7)])
    others = np.mean([dice(masks[video, 1], masks[1 + video % 6, 2]) for video in range(1, 7)])
    assert same > others + 0.2, "so a split that parts a video's frames would leak"
    (first, one), (bare, nothing) = draw_frame(1, 1, 1, SIZE), draw_frame(1, 1, 1, SIZE, with_bone=False)
    assert not nothing.any() and first[one > 0].mean() > bare[one > 0].mean() + 50


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "images" / "p01_0001.png").mkdir(parents=True)
    with pytest.raises(FileProblem, match=r"p01_0001.png could not be written: is the disk full or read-only\?"):
        write_ultrasound(tmp_path, 6, SIZE, 1)
