"""engine/conversions: masks, polygons and run lengths, against OpenCV and the COCO API."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as api

from config import ConfigProblem
from dataset.images import read_image
from engine.conversions import coco_masks as coco
from engine.conversions import shapes
from engine.conversions.labelled import Labelled, Losses, checked_name
from engine.conversions.nnunet import NnunetSource, NnunetTarget
from engine.conversions.shapes import Box, Points, Runs
from engine.conversions.yolo import YoloTarget
from engine.files import FileProblem

SOME = settings(derandomize=True, max_examples=60, deadline=None)
Mask = NDArray[np.uint8]


@st.composite
def masks(draw: st.DrawFn, side: int = 12) -> Mask:
    """Any mask: grains, holes in holes, lines, all and nothing."""
    height, width = draw(st.integers(1, side)), draw(st.integers(1, side))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask = (rng.random((height, width)) < draw(st.sampled_from([0.0, 0.2, 0.5, 0.7, 0.85, 1.0]))).astype(np.uint8)
    if draw(st.booleans()):  # parts larger than a pixel, with whole rows and columns in them
        mask = mask.repeat(draw(st.integers(1, 3)), 0).repeat(draw(st.integers(1, 3)), 1)
    return mask


def runs_of(mask: Mask) -> Runs:
    flat = np.pad(mask.reshape(-1), 1)
    return np.flatnonzero(flat[1:] != flat[:-1]).astype(np.int64).reshape(-1, 2)


def mask_of(runs: Runs, shape: tuple[int, ...]) -> Mask:
    mask = np.zeros(shape, np.uint8)
    for begin, end in runs.tolist():
        mask.reshape(-1)[begin:end] = 1
    return mask


def filled(polygons: list[Points], shape: tuple[int, ...]) -> Mask:
    """By OpenCV, one by one."""
    mask = np.zeros(shape, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(mask, [polygon], 1)
    return mask


# Shapes


@SOME
@given(masks())
def test_an_outline_is_filled_to_the_very_mask(mask: Mask) -> None:
    runs, (height, width) = runs_of(mask), mask.shape
    polygons = shapes.outline(runs, width)
    assert np.array_equal(filled(polygons, mask.shape), mask)
    assert np.array_equal(shapes.draw(polygons, height, width), runs)
    assert len(polygons) == cv2.connectedComponents(mask, connectivity=8)[0] - 1
    assert all(len(polygon) >= 3 for polygon in polygons)


@SOME
@given(masks())
def test_pixel_edges_are_filled_to_the_very_mask_by_the_coco_api(mask: Mask) -> None:
    polygons = shapes.edges(runs_of(mask), mask.shape[1])
    flat = [polygon.reshape(-1).astype(float).tolist() for polygon in polygons]
    drawn = api.decode(api.merge(api.frPyObjects(flat, *mask.shape))) if flat else np.zeros_like(mask)
    assert np.array_equal(drawn, mask)


@SOME
@given(masks())
def test_boxes_hold_masks(mask: Mask) -> None:
    runs = runs_of(mask)
    box = shapes.box_of(runs, mask.shape[1])
    assert np.array_equal(shapes.ends_of(box, mask.shape[1]).reshape(-1, 2), runs)
    assert not box.plane.size or (box.plane[[0, -1]].any(1).all() and box.plane[:, [0, -1]].any(0).all())
    cut = np.array([[p, p + 1] for a, b in runs.tolist() for p in range(a, b)], np.int64).reshape(-1, 2)
    assert np.array_equal(shapes.box_of(cut, mask.shape[1]).plane, box.plane), "runs may touch"


@SOME
@given(masks(), st.integers(0, 2**32), st.integers(1, 4))
def test_union_tells_whether_parts_meet(mask: Mask, seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [mask * (rng.random(mask.shape) < 0.4) for _ in range(n)]
    runs, apart = shapes.union([runs_of(part) for part in parts], mask.shape[1])
    assert np.array_equal(mask_of(runs, mask.shape), np.bitwise_or.reduce(parts))
    grown = [cv2.dilate(part, np.ones((3, 3), np.uint8)) for part in parts]
    assert apart == all(not (grown[i] & parts[j]).any() for i in range(n) for j in range(i))


@SOME
@given(
    st.lists(st.tuples(st.integers(-9, 30), st.integers(-9, 30)), min_size=3, max_size=7),
    st.integers(1, 20),
    st.integers(1, 20),
)
def test_polygons_are_cut_off_as_opencv_cuts_them(points: list[tuple[int, int]], height: int, width: int) -> None:
    polygon, shape = np.array(points, np.int32), (height, width)
    assert np.array_equal(mask_of(shapes.draw([polygon], *shape), shape), filled([polygon], shape))


# COCO's masks


@SOME
@given(masks())
def test_coco_run_lengths_are_the_apis(mask: Mask) -> None:
    runs, (height, width) = runs_of(mask), mask.shape
    text = api.encode(np.asfortranarray(mask))["counts"].decode()
    counts = coco.to_counts(runs, height, width)
    assert coco.compress(counts) == text and coco.decompress(text) == counts
    assert np.array_equal(coco.from_counts(counts, height, width), runs)


@SOME
@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=9))
def test_any_counts_survive_their_text(counts: list[int]) -> None:
    assert coco.decompress(coco.compress(counts)) == counts


@SOME
@given(
    st.lists(st.tuples(st.floats(-6, 26), st.floats(-6, 26)), min_size=3, max_size=8),
    st.integers(1, 20),
    st.integers(1, 20),
)
def test_coco_polygons_are_filled_as_by_the_api(points: list[tuple[float, float]], height: int, width: int) -> None:
    polygon = np.array(points)
    fine = (coco.FINE * polygon + 0.5).astype(np.int64)
    polygon = polygon[(fine != np.roll(fine, 1, 0)).any(1)]  # the API divides by 0 where a vertex repeats
    if len(polygon) < 3:
        return
    drawn = api.decode(api.frPyObjects([polygon.reshape(-1).tolist()], height, width)[0])
    assert np.array_equal(mask_of(coco.fill(polygon, height, width), (height, width)), drawn)


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ([3, 2], "add up to 5, but the image has 6"),
        ([7, -1], "whole numbers from 0 up"),
        ([True, 5], "whole numbers from 0 up"),
        ([3.0, 3], "whole numbers from 0 up"),
    ],
)
def test_counts_that_are_none(counts: list[int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        coco.from_counts(counts, 2, 3)


@pytest.mark.parametrize(
    ("text", "sentence"), [("0 1", "hold ' '"), ("0\x7f", "hold"), ("o", "end within"), ("o" * 20, "hold")]
)
def test_texts_that_are_no_counts(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        coco.decompress(text)


# nnU-Net's label maps


@settings(SOME, max_examples=25)
@given(st.lists(masks(6), min_size=1, max_size=5), st.integers(1, 40))
def test_overlapping_classes_survive_a_label_map(
    tmp_path_factory: pytest.TempPathFactory, parts: list[Mask], n_classes: int
) -> None:
    planes = [np.zeros((20, 20), np.uint8) for _ in range(n_classes)]
    for i, part in enumerate(parts):
        for k in range(i, n_classes, 2):  # many at once
            planes[k][: part.shape[0], : part.shape[1]] |= part
    classes = tuple(f"class {k}" for k in range(n_classes))
    found = {name: runs_of(plane) for name, plane in zip(classes, planes, strict=True)}
    root = tmp_path_factory.mktemp("nnunet") / "Dataset001_x"
    target = NnunetTarget(root, root.name, classes, "none", read_image, Losses(False))
    target.add(Labelled("ID1/a.png", "train", 20, 20, found, None))
    target.finish()
    labels = json.loads((root / "dataset.json").read_text())
    numbers = cv2.imread(str(root / "labelsTr" / "ID1__a.png"), cv2.IMREAD_UNCHANGED)
    for name, plane in zip(classes, planes, strict=True):
        assert np.array_equal(np.isin(numbers, labels["labels"][name]), plane > 0)
    everything = {n for own in labels["labels"].values() for n in (own if isinstance(own, list) else [own])}
    assert everything == set(range(len(everything))), "nnU-Net wants consecutive numbers"
    (image,) = NnunetSource(root, ["train"], (), Losses(False))
    assert image.name == "ID1/a.png" and image.shapes is not None
    assert all(np.array_equal(image.shapes.get(name, np.empty((0, 2))), found[name]) for name in classes)


@SOME
@given(st.integers(1, 2**16), st.integers(1, 2**16), st.integers(0, 2**32))
def test_vertices_survive_ultralytics_arithmetic(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, seed: int
) -> None:
    """It reads shares as single precision, multiplies by the size and cuts off."""
    points = np.random.default_rng(seed).integers(0, (width, height), (9, 2)).astype(np.int32)
    root = tmp_path_factory.mktemp("yolo")
    YoloTarget(root, ("a",), "none").add(Labelled("x.png", "train", height, width, {"a": [points]}, None))
    shares = np.array((root / "labels" / "train" / "x.txt").read_text().split()[1:], np.float32).reshape(-1, 2)
    assert np.array_equal((shares * np.array((width, height), np.float32)).astype(np.int32), points)


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "a\\b.png", "", ".", None, "a/../../b.png", "a\0"])
def test_names_that_lead_out_of_the_folder(name: object) -> None:
    with pytest.raises(FileProblem, match="is no path of an image below a folder"):
        checked_name(name, Path("x.json"))
    assert checked_name("a//b/./c.png", Path("x.json")) == "a/b/c.png"


def test_link_is_nothing_for_nnunet() -> None:
    with pytest.raises(ConfigProblem, match="image_files is link, but images are written anew for nnU-Net"):
        NnunetTarget(Path("x"), "Dataset001_x", ("a",), "link", read_image, Losses(False))


def test_boxes_of_full_rows_and_columns() -> None:
    assert coco.to_counts(np.array([[0, 6]]), 2, 3) == [0, 6]
    assert coco.to_counts(np.empty((0, 2), np.int64), 2, 3) == [6]
    assert shapes.ends_of(Box(np.ones((2, 3), np.uint8), 1, 0), 3).tolist() == [3, 9]


def test_names_that_nnunet_keeps_for_itself() -> None:
    with pytest.raises(FileProblem, match="class 'ignore' has a name that nnU-Net keeps for itself: rename it"):
        NnunetTarget(Path("x"), "Dataset001_x", ("a", "ignore"), "none", read_image, Losses(False))
