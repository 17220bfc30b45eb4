"""dataset/layouts.py, match.py: every layout gives the phantom's own records and labels; what fits none says why."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from layout_trees import (
    SOME,
    TREES,
    in_folders,
    labelme,
    pair,
    per_class,
    planes,
    save,
    split_of,
    stem,
    union,
    with_lists,
)

from config import HAND_BONES, Config, ConfigProblem
from dataset.images import read_image
from dataset.jpeg_tree import open_tree, write_tree
from dataset.labels import read_label, read_shapes
from dataset.layouts import find_layout, has_split, is_data, pair_split, read_split, with_classes
from dataset.match import class_owner, mask_owner
from dataset.selection import select
from dataset.switches import switches_of
from engine import settings
from engine.files import FileProblem


def config_of(root: Path, classes: tuple[str, ...], **more: object) -> Config:
    return settings.replace(Config(), {"data_root": str(root), "classes": classes, **more})


def asked(root: Path, name: str) -> Config:
    _, classes, _, flags = TREES[name]
    return config_of(root, classes, **{k[2:]: v for k, v in zip(flags[::2], flags[1::2], strict=True)})


@pytest.fixture(scope="module", params=TREES)
def tree(
    request: pytest.FixtureRequest, phantom_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    name: str = request.param
    return name, TREES[name][2](phantom_root, tmp_path_factory.mktemp("layouts") / name)


@pytest.fixture(scope="module")
def picture(phantom_root: Path) -> np.ndarray:
    return read_image(split_of(phantom_root)["train"][0].image)


def test_each_layout_is_told_from_the_tree(tree: tuple[str, Path]) -> None:
    name, root = tree
    cfg = asked(root, name)
    assert find_layout(cfg) == TREES[name][0] and is_data(cfg)
    assert [has_split(cfg, split) for split in ("train", "val", "test", "other")] == [True, True, True, False]


def test_records_and_labels_are_the_phantoms(tree: tuple[str, Path], phantom_root: Path) -> None:
    name, root = tree
    cfg = asked(root, name)
    for split, originals in split_of(phantom_root).items():
        records = {record.image.stem: record for record in read_split(cfg, split)}
        assert len(records) == len(originals)
        for number, original in enumerate(originals):
            record = records[stem(original, number)]
            assert record.subject == original.subject, "both hands of a subject share it"
            shape = read_image(record.image).shape
            bits = read_label(record, cfg.data.classes, *shape)
            wanted = [union(original)] if len(cfg.data.classes) == 1 else list(planes(original).values())
            for k, mask in enumerate(wanted):
                np.testing.assert_array_equal(bits[0] >> k & 1, mask > 0)


def test_a_split_that_validates(tree: tuple[str, Path]) -> None:
    name, root = tree
    cfg = settings.replace(asked(root, name), {"holdout": "val"})
    train, val = select(cfg, switches_of(cfg))
    assert (len(train), len(val)) == (8, 4)
    assert not {record.subject for record in train} & {record.subject for record in val}
    folds = settings.replace(cfg, {"holdout": "", "n_folds": 4})
    assert [len(part) for part in select(folds, switches_of(folds))] == [6, 2]


def test_classes_of_the_data(tree: tuple[str, Path], phantom_root: Path) -> None:
    name, root = tree
    found = with_classes(settings.replace(asked(root, name), {"classes": ("auto",)})).data.classes
    assert found == {"pairs": ("foreground",), "mask_per_class": ("0", "1", "2"), "labelme": SOME}[TREES[name][0]]
    competition = config_of(phantom_root, ("auto",))
    assert with_classes(competition).data.classes == HAND_BONES
    assert with_classes(asked(root, name)) == asked(root, name)


def test_numbers_sort_as_numbers(tmp_path: Path, picture: np.ndarray) -> None:
    save(tmp_path / "images/a.png", picture)
    for name in ("10", "2", "bone-1", "1"):
        save(tmp_path / f"masks/a-{name}.png", picture * 0)
    found = with_classes(config_of(tmp_path, ("auto",))).data.classes
    assert found == ("bone-1", "1", "2", "10")


def test_masks_by_the_names_of_classes(phantom_root: Path, tmp_path: Path) -> None:
    in_folders(phantom_root, tmp_path, per_class)
    for path in tmp_path.rglob("masks/*.png"):
        name, number = path.stem.rsplit("-", 1)
        path.rename(path.with_name(f"{name}_{SOME[int(number)]}.png"))
    (first, *_) = read_split(config_of(tmp_path, SOME), "train")
    assert [name for name, _ in first.masks] == list(SOME)


def test_a_class_that_an_image_does_not_show(phantom_root: Path, tmp_path: Path) -> None:
    in_folders(phantom_root, tmp_path, per_class)
    (tmp_path / "train/masks/ID001_L-1.png").unlink()
    (first, *_) = read_split(config_of(tmp_path, SOME), "train")
    bits = read_label(first, SOME, *read_image(first.image).shape)
    assert [bool((bits >> k & 1).any()) for k in range(3)] == [True, False, True]


def test_the_test_split_may_have_no_labels(phantom_root: Path, tmp_path: Path) -> None:
    in_folders(phantom_root, tmp_path, pair)
    shutil.rmtree(tmp_path / "test/masks")
    cfg = config_of(tmp_path, ("bone",))
    assert [record.label for record in read_split(cfg, "test")] == [None] * 4
    shutil.rmtree(tmp_path / "train")
    shutil.rmtree(tmp_path / "val")
    assert find_layout(cfg) == "pairs" and len(read_split(cfg, "test")) == 4


def test_numbers_that_begin_anew_in_each_folder(tmp_path: Path, picture: np.ndarray) -> None:
    for split in ("train", "val"):
        for number in range(3):
            save(tmp_path / split / f"images/{number}.png", picture)
            save(tmp_path / split / f"masks/{number}.png", picture)
    train, val = select(cfg := config_of(tmp_path, ("bone",), holdout="val"), switches_of(cfg))
    assert [record.subject for record in (*train, *val)] == ["0", "1", "2", "val-0", "val-1", "val-2"]


@pytest.mark.parametrize(
    ("pattern", "subjects"), [("", ["p1_a", "p1_b", "x"]), (r"^(p\d+|x)", ["p1", "p1", "x"]), ("/(.)", ["a", "a", "3"])]
)
def test_subjects(pattern: str, subjects: list[str], tmp_path: Path, picture: np.ndarray) -> None:
    names = ["p1_a", "p1_b", "x/3"] if pattern != "/(.)" else ["q/a1", "q/a2", "r/3"]
    for name in names:
        save(tmp_path / f"images/{name}.png", picture)
        save(tmp_path / f"masks/{name}.png", picture)
    records = read_split(config_of(tmp_path, ("bone",), subject_pattern=pattern), "train")
    assert [record.subject for record in records] == subjects


def test_a_name_without_the_subject(tmp_path: Path, picture: np.ndarray) -> None:
    for name in ("p1_a", "scan"):
        save(tmp_path / f"images/{name}.png", picture)
        save(tmp_path / f"masks/{name}.png", picture)
    with pytest.raises(FileProblem, match=r"scan\.png: subject_pattern .* finds no subject in 'scan\.png': change it"):
        read_split(config_of(tmp_path, ("bone",), subject_pattern=r"^(p\d+)_"), "train")
    with pytest.raises(ConfigProblem, match="must be a regular expression with a group"):
        settings.check(config_of(tmp_path, ("bone",), subject_pattern="p[", image_size=2048))


# --- names that don't fit


def small(root: Path, images: list[str], masks: list[str]) -> Path:
    for name in images:
        save(root / "images" / name, np.zeros((8, 8), np.uint8))
    for name in masks:
        save(root / "masks" / name, np.full((8, 8), 255, np.uint8))
    return root


@pytest.mark.parametrize(
    ("images", "masks", "classes", "said"),
    [
        (["1.png", "2.png"], ["1.png"], ("bone",), r"2\.png has no label .*masks/2_mask\.png: add it"),
        (["1.png"], ["1.png", "9_mask.png"], ("bone",), r"9_mask\.png has no image .*images/9\.png: add it, or remove"),
        (["1.png"], ["1.png", "1_mask.png"], ("bone",), r"1_mask\.png and 1\.png are both the label of one image"),
        (["1.png", "1.jpg"], ["1.png"], ("bone",), r"1\.jpg and 1\.png have one name.* rename or remove one"),
        (["1.png", "2.png"], ["1-0.png"], ("a",), r"2\.png has no label .*masks/2-a\.png: add it"),
        (["1.png"], ["1-0.png", "2-0.png"], ("a",), r"2-0\.png has no image that its name begins with in .*images"),
        (["1.png"], ["1-0.png", "1-2.png"], ("a", "b"), r"1-2\.png is of class '2', which is no class: rename"),
        (["1.png"], ["1-0.png", "1-a.png"], ("a", "b"), r"1-a\.png and 1-0\.png are both .*one image and a: remove"),
    ],
)
def test_partners(images: list[str], masks: list[str], classes: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=said):
        read_split(config_of(small(tmp_path, images, masks), classes), "train")


def test_pairs_need_one_class(tmp_path: Path) -> None:
    small(tmp_path, ["1.png"], ["1.png"])
    with pytest.raises(ConfigProblem, match="classes has 29 names, but the layout pairs has one mask an image"):
        read_split(config_of(tmp_path, HAND_BONES), "train")


@pytest.mark.parametrize("make", ["nothing", "empty", "images", "strange"])
def test_what_fits_no_layout(make: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    if make == "empty":
        (root / "images").mkdir(parents=True)
    elif make == "images":
        small(root, ["1.png"], [])
    elif make == "strange":
        small(root / "deep", ["1.png"], ["1.png"])
    found = {
        "nothing": "nothing",
        "empty": r"images/ \(empty\)",
        "images": r"images/ \(1 \.png\)",
        "strange": r"deep/ \(2 \.png\)",
    }[make]
    said = rf"data/train/DCM holds no images, .*looked for images/ and .*found {found}\. "
    with pytest.raises(FileProblem, match=said):
        read_split(config_of(root, ("bone",)), "train")
    assert not is_data(config_of(root, ("bone",)))


def test_a_layout_without_its_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(FileProblem, match=r"has no images of the split train: point --data_root"):
        read_split(config_of(tmp_path, ("bone",), layout="pairs"), "train")
    assert pair_split(config_of(tmp_path, ("bone",), layout="pairs"), "val").records == []
    with pytest.raises(FileProblem, match="has no training labels to take classes from: set --classes"):
        with_classes(config_of(tmp_path, ("auto",), layout="labelme"))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("nine.png", r"train\.txt: 'nine\.png' is no image in .*images \(did you mean 2\.png or 1\.png\?\): correct"),
        ("1", r"train\.txt: '1' may mean .*a/1\.png and .*b/1\.png: write the path below"),
    ],
)
def test_split_files_that_name_no_image(lines: str, said: str, tmp_path: Path) -> None:
    small(tmp_path, ["a/1.png", "b/1.png", "2.png"], ["a/1.png", "b/1.png", "2.png"])
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/train.txt").write_text(lines)
    with pytest.raises(FileProblem, match=said):
        read_split(config_of(tmp_path, ("bone",)), "train")


def test_split_files_name_images_in_several_ways(tmp_path: Path) -> None:
    names = ["a/1.png", "b/1.png", "2.png", "3.png", "raw.png"]
    small(tmp_path, names, names[:-1])
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/train.txt").write_text("# subjects\na/1.png\nb/1\nimages/2.png\n\n3  # blurred\n")
    cfg = config_of(tmp_path, ("bone",))
    records = read_split(cfg, "train")
    assert [record.image.relative_to(tmp_path / "images").as_posix() for record in records] == sorted(names[:-1])
    assert not has_split(cfg, "val")


def test_accents_in_both_of_their_spellings(tmp_path: Path) -> None:
    image, mask = (unicodedata.normalize(form, "손é.png") for form in ("NFC", "NFD"))
    small(tmp_path, [image], [mask])
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/train.txt").write_text(unicodedata.normalize("NFD", image), encoding="utf-8")
    (record,) = read_split(config_of(tmp_path, ("bone",)), "train")
    assert record.label is not None and read_shapes(record, ("bone",)) is not None
    assert record.subject == unicodedata.normalize("NFC", "손é")


def test_what_runs_leave_in_the_data_is_no_data(phantom_root: Path, tmp_path: Path) -> None:
    """Images at the root itself, and beside them a cache with a JSON and a JPEG tree."""
    for number, record in enumerate(split_of(phantom_root)["train"]):
        labelme(tmp_path, record, stem(record, number))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/check.json").write_text('{"shapes": []}')
    (tmp_path / "notes.json").write_text('{"who": "me"}')
    save(tmp_path / "jpeg/ID001_R.jpg", np.zeros((8, 8), np.uint8))
    assert len(read_split(config_of(tmp_path, SOME), "train")) == 8
    (tmp_path / "lone.json").write_text(json.dumps({"shapes": [], "imageData": "iVBORw0"}))
    with pytest.raises(FileProblem, match=r"lone\.json has no image lone\.jpg beside it .*imageData, is not read"):
        read_split(config_of(tmp_path, SOME), "train")


def test_the_jpeg_tree_has_every_image(tree: tuple[str, Path], tmp_path: Path) -> None:
    name, root = tree
    assert not write_tree(root, tmp_path / "jpeg", 95, None, 1, False).failed
    jpegs, cfg = open_tree(tmp_path / "jpeg"), asked(root, name)
    for split in ("train", "val", "test"):
        assert all(jpegs.image(record, root).is_file() for record in read_split(cfg, split))
    assert len([*(tmp_path / "jpeg").rglob("*.jpg")]) == 16, "and no masks"


KEYS = st.text("ab1-_", min_size=1, max_size=5)
FEW = hypothesis_settings(derandomize=True, max_examples=60, deadline=None)


@FEW
@given(st.sets(KEYS, min_size=1, max_size=4), st.lists(KEYS, min_size=1, max_size=3, unique=True), st.data())
def test_a_mask_finds_its_image_and_class(images: set[str], classes: list[str], data: st.DataObject) -> None:
    image, name = data.draw(st.sampled_from(sorted(images))), data.draw(st.sampled_from(classes))
    owner, said = class_owner(f"{image}-{name}", images, classes)
    assert owner in images and f"{image}-{name}"[len(owner) + 1 :] == said
    assert len(owner) >= len(image) or said in classes or said.isdecimal()
    assert mask_owner(image, images) == image
    assert mask_owner(f"{image}_mask", {image}) == image
    assert class_owner(f"{image}-{name}", set(), classes) == ("", "")


def test_lists_of_the_ultrasound_kind_leave_other_images_alone(phantom_root: Path, tmp_path: Path) -> None:
    with_lists(phantom_root, tmp_path)
    save(tmp_path / "images/unlabelled.jpg", np.zeros((8, 8), np.uint8))
    cfg = config_of(tmp_path, ("bone",), mask_dir="masks_manual")
    assert sum(len(read_split(cfg, split)) for split in ("train", "val", "test")) == 16
    (tmp_path / "masks_manual/gone.png").write_bytes(b"")
    with pytest.raises(FileProblem, match=r"gone\.png has no image"):
        read_split(cfg, "train")
    assert len(read_split(cfg, "val")) == 4, "said once"
