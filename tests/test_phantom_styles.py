"""Styles of phantoms: each is drawn, differs, can be held out, and reaches the set on disk and its readers."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from config import HAND_BONES, ConfigProblem
from dataset.labels import read_label
from dataset.phantom import Phantom, PhantomSet, draw_phantom, phantom_matches, write_phantom_set
from dataset.phantom_body import draw_body
from dataset.phantom_draw import mirrored
from dataset.phantom_styles import COMPETITION, STYLES, check_styles, style_of
from dataset.readers import read_competition

ROOT = Path(__file__).resolve().parent.parent


def hands(style: str, count: int = 6, size: int = 192, first: int = 0) -> list[Phantom]:
    return [draw_phantom(21, subject, "LR"[subject % 2], size, False, (style,)) for subject in range(first, count)]


def area(phantom: Phantom, name: str) -> int:
    if not phantom.polygons[name]:
        return 0
    return int(cv2.fillPoly(np.zeros(phantom.image.shape, np.uint8), phantom.polygons[name], 1).sum())


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_drawn_and_repeats(style: str) -> None:
    drawn = hands(style, 4)
    assert np.array_equal(drawn[0].image, hands(style, 1)[0].image)
    for phantom in drawn:
        assert tuple(phantom.polygons) == HAND_BONES
        assert phantom.image.std() > 10, "something is to be seen"
        for polygon in (polygon for polygons in phantom.polygons.values() for polygon in polygons):
            assert len(polygon) >= 3 and polygon.min() >= 0 and polygon.max() < 192
        assert sum(bool(polygons) for polygons in phantom.polygons.values()) >= 10


def test_another_size_is_the_same_hand_in_every_style() -> None:
    for style in STYLES:
        small, large = (hands(style, 1, size)[0].image for size in (192, 384))
        halved = cv2.resize(large, (192, 192), interpolation=cv2.INTER_AREA)
        low = [cv2.GaussianBlur(image, (0, 0), 2).ravel() for image in (small, halved)]  # grain is finer in the larger
        assert np.corrcoef(*low)[0, 1] > 0.97, style


def test_default_is_the_competition_s_look() -> None:
    drawn = [draw_phantom(4, subject, "LR"[subject % 2], 128, subject % 8 == 0) for subject in range(24)]
    assert np.array_equal(drawn[0].image, draw_phantom(4, 0, "L", 128, True, ("competition",)).image)
    shares = np.stack([phantom.image for phantom in drawn]) / 255
    assert abs(shares.mean() - 0.124) < 0.02
    assert abs(np.mean([share.std() for share in shares]) - 0.168) < 0.02


def test_competition_shows_every_bone_whole_and_the_others_may_not() -> None:
    absent = [name for phantom in hands("portable", 16, 128) for name in HAND_BONES if not phantom.polygons[name]]
    assert absent, "cropped views lose bones"
    assert not [name for phantom in hands("competition", 12, 128) for name in HAND_BONES if not phantom.polygons[name]]


def test_both_hands_and_all_of_a_subject_have_one_style() -> None:
    names = ("film", "dr")
    found = [style_of(5, subject, names) for subject in range(200)]
    assert found == [style_of(5, subject, names[::-1]) for subject in range(200)]
    assert 60 < sum(style is STYLES["film"] for style in found) < 140
    assert all(style in (STYLES["film"], STYLES["dr"]) for style in found), "what is left out is held out"


def test_children_have_open_physes_and_small_carpals() -> None:
    def carpals(style: str) -> float:
        phantom = draw_phantom(3, 2, "R", 384, False, (style,))
        return sum(area(phantom, name) for name in HAND_BONES[19:27]) / area(phantom, "finger-11")

    assert carpals("child") < 0.9 * carpals("dr")
    ages = [draw_body(np.random.default_rng(seed), STYLES["child"]) for seed in range(40)]
    assert all(5 <= body.age <= 17 for body in ages) and np.mean([body.growth < 1 for body in ages]) > 0.8
    assert np.corrcoef([body.age for body in ages], [body.size for body in ages])[0, 1] > 0.99
    assert all(draw_body(np.random.default_rng(seed), COMPETITION).growth == 1 for seed in range(40))


def test_old_shells_are_thinner() -> None:
    old, own = (
        np.mean([draw_body(np.random.default_rng(seed), STYLES[style]).cortex for seed in range(60)])
        for style in ("old", "dr")
    )
    assert old < 0.8 * own


def test_oblique_metacarpals_run_over_each_other() -> None:
    def overlap(style: str) -> float:
        found = []
        for phantom in hands(style, 8, 256):
            masks = [
                cv2.fillPoly(np.zeros(phantom.image.shape, np.uint8), phantom.polygons[f"finger-{number}"], 1)
                for number in (7, 11, 15, 19)
            ]
            several = np.sum(masks, axis=0)
            found.append((several > 1).sum() / max((several > 0).sum(), 1))
        return float(np.mean(found))

    assert overlap("oblique") > 2 * overlap("competition")


def test_what_the_collimator_cuts_off_is_not_labelled() -> None:
    seen = 0
    for phantom in hands("cr", 16, 192):
        bottom = max(polygon[:, 1].max() for polygons in phantom.polygons.values() for polygon in polygons)
        if bottom < 188:
            seen += 1
            assert len(np.unique(phantom.image[min(bottom + 4, 191) :])) < 12, "beyond the arm's end lies the rim"
    assert seen, "some pictures end on the forearm"


def test_set_records_its_styles_and_readers_cope_with_absent_bones(tmp_path: Path) -> None:
    root, plain = tmp_path / "set", PhantomSet(train_subjects=10, test_subjects=1, size=128, seed=4)
    wanted = replace(plain, styles=("portable", "child"))
    write_phantom_set(root, wanted)
    assert json.loads((root / "phantom.json").read_text())["styles"] == ["child", "portable"]
    assert wanted == replace(plain, styles=("child", "portable")) and phantom_matches(root, wanted)
    assert not phantom_matches(root, plain) and not phantom_matches(root, replace(plain, styles=("child",)))
    shown = []
    for record in read_competition(root, "train"):
        assert record.label is not None
        named = {entry["label"] for entry in json.loads(record.label.read_text("utf-8"))["annotations"]}
        word = int(np.bitwise_or.reduce(read_label(record, HAND_BONES, 128, 128)[0].ravel()))
        assert {name for k, name in enumerate(HAND_BONES) if word >> k & 1} == named
        shown.append(len(named))
    assert min(shown) < 29 == max(shown)


def test_right_sets_mirror_left_hands(tmp_path: Path) -> None:
    both = PhantomSet(train_subjects=2, test_subjects=1, size=128, seed=4)
    write_phantom_set(tmp_path / "set", replace(both, sides="right"))
    assert phantom_matches(tmp_path / "set", replace(both, sides="right"))
    assert not phantom_matches(tmp_path / "set", both)
    for record in read_competition(tmp_path / "set", "train"):
        bits = read_label(record, HAND_BONES, 128, 128)[0]
        columns = [np.nonzero(bits >> HAND_BONES.index(name) & 1)[1].mean() for name in ("finger-1", "finger-16")]
        assert columns[0] < columns[1], "the thumb is at the left"


def test_mirrored_labels_lie_on_their_bones() -> None:
    left = draw_phantom(4, 0, "L", 256, False)
    right = mirrored(left)
    assert right.side == "R" and mirrored(right).polygons["Hamate"][0].tolist() == left.polygons["Hamate"][0].tolist()
    for name in ("finger-7", "Radius"):
        first, second = (
            cv2.fillPoly(np.zeros((256, 256), np.uint8), hand.polygons[name], 1).astype(bool) for hand in (left, right)
        )
        assert (first ^ second[:, ::-1]).sum() <= 0.02 * first.sum()
        assert right.image[second].mean() == pytest.approx(left.image[first].mean(), rel=0.01)


@pytest.mark.parametrize(
    ("names", "said"),
    [((), "phantom_styles is empty"), (("dr", "chld"), r"'chld' \(did you mean child"), (("x",), "'x': styles are")],
)
def test_wrong_styles_are_named(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigProblem, match=said):
        check_styles(names)
    with pytest.raises(ConfigProblem, match=said):
        draw_phantom(0, 0, "R", 128, False, names)
    with pytest.raises(ConfigProblem, match=said):
        PhantomSet(train_subjects=1, test_subjects=1, size=128, seed=1, styles=names)


def test_documentation_has_every_style_and_parameter() -> None:
    text = (ROOT / "docs" / "phantom.md").read_text("utf-8")
    parameters = [field.name for field in fields(COMPETITION) if field.name != "about"]
    assert [name for name in (*STYLES, *parameters) if f"`{name}`" not in text] == []
