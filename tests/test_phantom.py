"""The phantom: deterministic, complete, anatomical, and written as the competition writes its data."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas
import pytest
from numpy.typing import NDArray

from config import HAND_BONES
from dataset import phantom
from dataset.phantom import Phantom, PhantomSet, draw_phantom, phantom_matches, write_phantom_set
from engine.files import FileProblem

WANTED = PhantomSet(train_subjects=8, test_subjects=4, size=128, seed=3)


def masks_of(drawn: Phantom) -> dict[str, NDArray[np.uint8]]:
    found = {}
    for name, polygons in drawn.polygons.items():
        found[name] = cv2.fillPoly(np.zeros(drawn.image.shape, np.uint8), polygons, 1)
    return found


def centre(drawn: Phantom, name: str) -> NDArray[np.float64]:
    return np.argwhere(masks_of(drawn)[name]).mean(axis=0)[::-1]


def tree(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".xlsx")
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("phantom") / "set"
    write_phantom_set(root, WANTED)
    yield root


def test_same_arguments_same_picture() -> None:
    first, second = (draw_phantom(1, 2, "R", 192, False) for _ in range(2))
    assert np.array_equal(first.image, second.image)
    for name in HAND_BONES:
        assert all(np.array_equal(a, b) for a, b in zip(first.polygons[name], second.polygons[name], strict=True))
    for other in (draw_phantom(2, 2, "R", 192, False), draw_phantom(1, 3, "R", 192, False)):
        assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("size", [128, 256])
@pytest.mark.parametrize("bent", [False, True])
def test_every_bone_is_drawn_inside(size: int, bent: bool) -> None:
    for subject in range(6):
        drawn = draw_phantom(5, subject, "LR"[subject % 2], size, bent)
        assert drawn.image.shape == (size, size) and drawn.image.dtype == np.uint8
        assert tuple(drawn.polygons) == HAND_BONES
        for name, polygons in drawn.polygons.items():
            for polygon in polygons:
                assert polygon.dtype == np.int32 and polygon.ndim == 2 and len(polygon) >= 3
                assert polygon.min() >= 0 and polygon.max() < size
            assert masks_of(drawn)[name].sum() >= 5, name


def test_forearm_leaves_at_the_bottom() -> None:
    drawn = draw_phantom(6, 0, "L", 256, False)
    for name in ("Radius", "Ulna"):
        assert masks_of(drawn)[name][-1].any()


@pytest.mark.parametrize("pair", [("Triquetrum", "Pisiform"), ("Trapezium", "Trapezoid")])
def test_bones_overlap_as_in_a_radiograph(pair: tuple[str, str]) -> None:
    drawn = [masks_of(draw_phantom(7, subject, "R", 256, False)) for subject in range(6)]
    shared = [int((masks[pair[0]] & masks[pair[1]]).sum()) for masks in drawn]
    assert sum(count > 0 for count in shared) >= 5
    several = np.mean([np.sum(list(masks.values()), axis=0) > 1 for masks in drawn])
    assert 0.001 < several < 0.01  # 0.41 % in the competition


def test_bones_are_brighter_than_flesh_and_flesh_than_air() -> None:
    drawn = draw_phantom(8, 1, "R", 256, False)
    masks = masks_of(drawn)
    bone = np.sum(list(masks.values()), axis=0) > 0
    near = cv2.dilate(bone.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool) & ~bone
    assert drawn.image[bone].mean() > 1.3 * drawn.image[near].mean()
    assert drawn.image[near].mean() > 2 * np.percentile(drawn.image, 20)


def test_edges_of_labels_lie_on_edges_of_bones() -> None:
    drawn = draw_phantom(8, 3, "R", 512, False)
    shaft = masks_of(drawn)["finger-11"]
    inner, outer = cv2.erode(shaft, np.ones((5, 5))), cv2.dilate(shaft, np.ones((5, 5)))
    image = drawn.image.astype(float)
    assert image[(shaft - inner) > 0].mean() > 1.2 * image[(outer - shaft) > 0].mean()


def test_sides_mirror_each_other() -> None:
    for subject in range(4):
        left, right = (draw_phantom(9, subject, side, 256, False) for side in "LR")
        assert left.side == "L" and right.side == "R"
        # PA: a right hand is seen from its back, its thumb at the left.
        assert centre(right, "finger-1")[0] < centre(right, "finger-16")[0]
        assert centre(left, "finger-1")[0] > centre(left, "finger-16")[0]
        assert centre(right, "Radius")[0] < centre(right, "Ulna")[0]
        assert centre(left, "Radius")[0] > centre(left, "Ulna")[0]
        assert not np.array_equal(left.image, right.image[:, ::-1])


def test_another_size_is_the_same_hand() -> None:
    small, large = (draw_phantom(10, 0, "R", size, False) for size in (256, 512))
    halved = cv2.resize(large.image, (256, 256), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(small.image.ravel(), halved.ravel())[0, 1] > 0.99
    for name in HAND_BONES:
        assert np.abs(centre(small, name) * 2 + 0.5 - centre(large, name)).max() < 1.0, name


def test_bent_wrists_turn_the_hand_against_the_forearm() -> None:
    def angle(drawn: Phantom) -> float:
        hand = centre(drawn, "finger-11") - centre(drawn, "Capitate")
        arm = centre(drawn, "Capitate") - centre(drawn, "Radius") / 2 - centre(drawn, "Ulna") / 2
        return abs(float(np.rad2deg(np.arctan2(*hand) - np.arctan2(*arm)) + 180) % 360 - 180)

    straight, bent = (np.mean([angle(draw_phantom(11, s, "R", 256, b)) for s in range(6)]) for b in (False, True))
    assert bent > straight + 5


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="side is 'X'"):
        draw_phantom(0, 0, "X", 256, False)
    with pytest.raises(ValueError, match="size is 64"):
        draw_phantom(0, 0, "R", 64, False)


def test_tree_is_the_competition_s(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {"train", "test", "meta_data.xlsx", "phantom.json"}
    subjects = {}
    for split, count in (("train", 8), ("test", 4)):
        subjects[split] = {folder.name for folder in (written / split / "DCM").iterdir()}
        assert len(subjects[split]) == count
        images = sorted((written / split / "DCM").rglob("*.png"))
        assert len(images) == 2 * count
        for image in images:
            assert re.fullmatch(r"ID\d{3,}", image.parent.name)
            assert re.fullmatch(r"image\d{13}(_[LR])?", image.stem)
            pixels = cv2.imread(str(image), cv2.IMREAD_UNCHANGED)
            assert pixels.shape == (128, 128, 3) and (pixels == pixels[..., :1]).all()
            label = json.loads(
                (written / split / "outputs_json" / image.parent.name / f"{image.stem}.json").read_text("utf-8")
            )
            assert set(label) == {
                "annotations", "attributes", "file_id", "filename", "parent_path", "last_modifier_id", "metadata",
                "last_workers",
            }  # fmt: skip
            assert label["metadata"] == {"height": 3060, "width": 3060}
            assert label["filename"] == f"{image.stem}.jpg"
            assert [a["label"] for a in label["annotations"]] == sorted(
                (a["label"] for a in label["annotations"]), key=HAND_BONES.index
            )
            assert {a["label"] for a in label["annotations"]} == set(HAND_BONES)
            for annotation in label["annotations"]:
                assert set(annotation) == {"id", "type", "attributes", "points", "label"}
                assert annotation["type"] == "poly_seg" and annotation["attributes"] == {}
                points = np.array(annotation["points"])
                assert points.ndim == 2 and points.shape[1] == 2 and points.dtype.kind == "i"
    assert not subjects["train"] & subjects["test"]
    numbers = sorted(int(name[2:]) for name in subjects["train"] | subjects["test"])
    assert numbers[-1] > len(numbers)  # gaps


def test_meta_data_has_the_real_columns(written: Path) -> None:
    meta = pandas.read_excel(written / "meta_data.xlsx")
    assert list(meta.columns) == ["ID", "나이", "성별", "체중(몸무게)", "키(신장)", "Unnamed: 5"]
    assert len(meta) == 12 and meta["ID"].is_unique
    assert set(meta["성별"].str.replace("_x0008_", "").str.strip()) <= {"남", "여"}
    assert meta["나이"].between(18, 95).all() and meta["키(신장)"].between(130, 200).all()


def test_file_order_does_not_tell_the_side() -> None:
    plan = phantom._plan(PhantomSet(200, 0, 128, 1))
    first = [min(subject.stems, key=lambda side: subject.stems[side]) for subject in plan]
    assert 0.35 < np.mean([side == "L" for side in first]) < 0.65
    named = [subject for subject in plan if any(stem.endswith(("_L", "_R")) for stem in subject.stems.values())]
    assert 0 < len(named) < 100
    assert all(subject.stems[side].endswith(f"_{side}") for subject in named for side in "LR")


@pytest.mark.parametrize(("train", "test"), [(400, 144), (8, 4), (25, 9)])
def test_bent_shares_are_exact(train: int, test: int) -> None:
    plan = phantom._plan(PhantomSet(train, test, 128, 5))
    assert sum(subject.bent for subject in plan if subject.split == "train") == round(0.12 * train)
    assert sum(subject.bent for subject in plan if subject.split == "test") == round(0.55 * test)
    assert len({subject.identity for subject in plan}) == len({subject.number for subject in plan}) == train + test


def test_result_does_not_depend_on_workers(written: Path, tmp_path: Path) -> None:
    write_phantom_set(tmp_path / "set", WANTED, workers=2)
    assert tree(tmp_path / "set") == tree(written)


def test_matches_only_its_own_arguments(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert phantom_matches(written, WANTED)
    for name in ("train_subjects", "test_subjects", "size", "seed"):
        assert not phantom_matches(written, replace(WANTED, **{name: getattr(WANTED, name) + 1}))
    assert not phantom_matches(tmp_path / "nothing", WANTED)
    (tmp_path / "phantom.json").write_text("{broken")
    assert not phantom_matches(tmp_path, WANTED)
    monkeypatch.setattr(phantom, "VERSION", phantom.VERSION + 1)
    assert not phantom_matches(written, WANTED)


def test_existing_root_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    with pytest.raises(FileProblem, match="exists"):
        write_phantom_set(root, WANTED)
    assert list(tmp_path.iterdir()) == [root] and not list(root.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_nothing_is_left_of_an_interrupted_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    calls = []

    def failing(*arguments: object) -> Phantom:
        calls.append(arguments)
        if len(calls) > 2:
            raise error
        return draw_phantom(0, 0, "R", 128, False)

    monkeypatch.setattr(phantom, "draw_phantom", failing)
    with pytest.raises(error):
        write_phantom_set(tmp_path / "set", WANTED)
    assert len(calls) == 3 and not list(tmp_path.iterdir())


def test_what_a_killed_drawing_left_goes_with_the_next(tmp_path: Path) -> None:
    dead, alive = (tmp_path / f".set.{pid}-0badcafe.part" for pid in (2**22 + 1, os.getpid()))
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "half.png").write_bytes(b"x")
    write_phantom_set(tmp_path / "set", PhantomSet(train_subjects=2, test_subjects=1, size=128, seed=1), workers=0)
    assert not dead.exists() and alive.exists(), "another process draws there"
