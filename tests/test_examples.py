"""dataset/examples.py, scripts/make_example.py and the baselines that networks trained on examples must beat."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from test_run_exp import content, one_sentence

from config import Config, ConfigProblem
from dataset import examples
from dataset.examples import EXAMPLES, GROUPS, OVERLAPPING, write_example
from dataset.images import read_image
from dataset.labels import read_label
from dataset.layouts import SPLITS, has_split, read_split, with_classes
from dataset.readers import Record
from engine import settings
from engine.files import FileProblem
from engine.presets import PRESETS
from inference.baseline import blind_dice
from scripts import make_example

ROOT = Path(make_example.__file__).resolve().parent.parent

HANDS = tuple(kind for kind in EXAMPLES if kind != "ultrasound")

LAYOUTS = {"hand_mask": "pairs", "bone_binary": "pairs", "multi_mask": "mask_per_class", "labelme": "labelme"}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an example of each kind that shows hands: 8 images of 128 px."""
    folder = tmp_path_factory.mktemp("examples")
    for kind in HANDS:
        write_example(kind, folder / kind, count=8, size=128, seed=5)
    return folder


def cfg_of(kind: str, root: Path) -> Config:
    values = {"layout": LAYOUTS[kind], "classes": ("auto",), "data_root": str(root)}
    return with_classes(settings.replace(Config(), values))


def planes(record: Record, cfg: Config) -> dict[str, NDArray[np.bool_]]:
    bits = read_label(record, cfg.data.classes, *read_image(record.image).shape)[0]
    return {name: (bits >> k & 1).astype(bool) for k, name in enumerate(cfg.data.classes)}


@pytest.mark.parametrize("kind", HANDS)
def test_an_example_is_told_by_its_files_and_reads_back(kind: str, sets: Path) -> None:
    cfg = cfg_of(kind, sets / kind)
    told = with_classes(settings.replace(cfg, {"layout": "auto", "classes": ("auto",)}))
    assert told.data.classes == cfg.data.classes
    records = {split: read_split(cfg, split) for split in SPLITS if has_split(cfg, split)}
    assert {split: len(found) for split, found in records.items()} == (
        {"train": 8} if kind == "bone_binary" else {"train": 4, "val": 2, "test": 2}
    )
    subjects = [{record.subject for record in found} for found in records.values()]
    assert len(set.union(*subjects)) == sum(map(len, subjects)), "no subject is in two splits"
    for record in (record for found in records.values() for record in found):
        assert read_image(record.image).shape == (128, 128)
        assert all(mask.any() for mask in planes(record, cfg).values())


def test_the_classes_are_what_the_module_says(sets: Path) -> None:
    assert set(cfg_of("multi_mask", sets / "multi_mask").data.classes) == set(OVERLAPPING)
    assert set(cfg_of("labelme", sets / "labelme").data.classes) == set(GROUPS.values())
    for kind in set(HANDS) & PRESETS.keys():
        settings.check(settings.replace(Config(), PRESETS[kind] | {"data_root": str(sets / kind)}))


def test_both_hands_of_a_subject_by_its_pattern(sets: Path) -> None:
    cfg = settings.replace(cfg_of("bone_binary", sets / "bone_binary"), {"subject_pattern": r"^(p\d+)_"})
    assert [record.subject for record in read_split(cfg, "train")] == sorted(2 * [f"p{i:03d}" for i in range(1, 5)])


def test_all_bones_are_the_same_however_they_are_written(sets: Path) -> None:
    """Masks of the union, polygons by groups, masks by class, and the hand around them, of the same left hand."""
    (bones,) = planes(read_split(cfg := cfg_of("bone_binary", sets / "bone_binary"), "train")[0], cfg).values()
    groups = planes(read_split(cfg := cfg_of("labelme", sets / "labelme"), "train")[0], cfg)
    single = planes(read_split(cfg := cfg_of("multi_mask", sets / "multi_mask"), "train")[0], cfg)
    (hand,) = planes(read_split(cfg := cfg_of("hand_mask", sets / "hand_mask"), "train")[0], cfg).values()
    assert (np.logical_or.reduce(list(groups.values())) == bones).all()
    assert ((single["Radius"] | single["Ulna"]) == groups["forearm"]).all()
    assert not (np.logical_or.reduce(list(single.values())) & ~bones).any()
    assert (bones <= hand).all() and hand.sum() > 1.3 * bones.sum()


def test_classes_overlap(sets: Path) -> None:
    cfg = cfg_of("multi_mask", sets / "multi_mask")
    records = [record for split in SPLITS for record in read_split(cfg, split)]
    assert all((np.sum(list(planes(record, cfg).values()), axis=0) > 1).any() for record in records)


def test_a_silhouette_is_one_bright_piece(sets: Path) -> None:
    cfg = cfg_of("hand_mask", sets / "hand_mask")
    for record in (record for split in SPLITS for record in read_split(cfg, split)):
        (hand,) = planes(record, cfg).values()
        image = read_image(record.image)
        assert cv2.connectedComponents(hand.astype(np.uint8))[0] == 2
        assert 0.15 < hand.mean() < 0.45
        around = cv2.dilate(hand.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool) & ~hand
        assert np.median(image[hand]) > 1.5 * np.median(image[around])


@pytest.mark.parametrize("kind", ["hand_mask", "labelme", "ultrasound"])
def test_the_same_arguments_give_the_same_bytes(kind: str, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_example(kind, tmp_path / name, count=6, size=128, seed=seed)
    first, again, other = (content(tmp_path / name) for name in "abc")
    assert first == again and first.keys() == other.keys()
    assert not any(data == other[name] for name, data in first.items() if name.endswith((".png", ".jpg")))


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["hand_msk"], 2, "kind 'hand_msk' is none of hand_mask, .* (did you mean hand_mask?)"),
        (["hand_mask", "--count", "5"], 2, "count is 5, but must be 6 or more"),
        (["hand_mask", "--size", "100"], 2, "size is 100, but must be 128 to 2048 px"),
    ],
)
def test_what_does_not_work_is_said_and_nothing_is_written(
    flags: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        make_example.main([*flags, "--root", str(tmp_path / "x")])
    err = capsys.readouterr().err
    assert left.value.code == code and one_sentence(err)
    assert all(part in err for part in said.split(".*"))
    assert content(tmp_path) == {}


def test_an_existing_folder_is_never_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("mine")
    before = content(tmp_path)
    assert make_example.main(["labelme", "--root", str(tmp_path / "x"), "--count", "6"]) == 1
    err = capsys.readouterr().err
    assert one_sentence(err) and "x exists and is never overwritten" in err
    with pytest.raises(FileProblem, match="x exists and is never overwritten: remove it or choose another folder"):
        write_example("labelme", tmp_path / "x", count=6, size=128, seed=1)
    assert content(tmp_path) == before


def test_an_example_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: Path, count: int, size: int, seed: int) -> None:
        (root / "half.png").write_text("half")
        raise RuntimeError("killed")

    monkeypatch.setitem(examples.EXAMPLES, "labelme", fail)
    with pytest.raises(RuntimeError, match="killed"):
        make_example.main(["labelme", "--root", str(tmp_path / "x")])
    assert content(tmp_path) == {}


def test_the_command_from_inside_its_folder(tmp_path: Path) -> None:
    flags = ["bone_binary", "--root", str(tmp_path / "x"), "--count", "6", "--size", "128", "--seed", "5"]
    command = [sys.executable, "make_example.py", *flags]
    done = subprocess.run(command, cwd=ROOT / "scripts", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'x'}: bone_binary, 12 files of 6 images of 128 px\n"
    write_example("bone_binary", tmp_path / "y", count=6, size=128, seed=5)
    assert content(tmp_path / "x") == content(tmp_path / "y")


# --- baselines


def pair(folder: Path, name: str, mask: NDArray[np.uint8]) -> None:
    for kind, picture in (("images", np.zeros_like(mask)), ("masks", mask)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / kind / f"{name}.png"), picture)


def half(height: int, width: int, share: float = 0.5) -> NDArray[np.uint8]:
    """255 in the left part."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, : round(share * width)] = 255
    return mask


def test_baselines_of_masks_whose_answer_is_known(tmp_path: Path) -> None:
    for name, share in (("a", 0.5), ("b", 0.5), ("c", 0.25)):
        pair(tmp_path / "train", name, half(64, 64, share))
    pair(tmp_path / "test", "d", half(60, 100))
    cfg = settings.replace(Config(), {"data_root": str(tmp_path), "classes": ("left",)})
    found = blind_dice(read_split(cfg, "train"), read_split(cfg, "test"), cfg)
    assert found.foreground == pytest.approx(2 * 0.5 / 1.5, abs=1e-5)
    assert found.mean_mask == pytest.approx(1, abs=0.02), "two of three training masks are the test mask"
    assert found.best == found.mean_mask


def test_baselines_of_several_classes(sets: Path) -> None:
    cfg = cfg_of("multi_mask", sets / "multi_mask")
    train, test = read_split(cfg, "train"), read_split(cfg, "test")
    found = blind_dice(train, test, cfg)
    areas = np.array([[mask.mean() for mask in planes(record, cfg).values()] for record in test])
    assert found.foreground == pytest.approx((2 * areas / (1 + areas)).mean(), abs=1e-4)
    assert found.foreground < found.mean_mask < blind_dice(train, train, cfg).mean_mask < 0.9


def test_a_wrong_kind_and_sizes_are_errors_of_the_function_too(tmp_path: Path) -> None:
    for kind, count, size in (("x", 8, 128), ("labelme", 2, 128), ("labelme", 8, 4096)):
        with pytest.raises(ConfigProblem):
            write_example(kind, tmp_path / "x", count=count, size=size, seed=1)
    assert content(tmp_path) == {}
