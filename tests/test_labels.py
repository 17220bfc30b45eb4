"""dataset/labels.py against the official mask: cv2.fillPoly on the full canvas, class by class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from config import HAND_BONES
from dataset.labels import rasterise, read_polygons
from engine.bits import n_words
from engine.files import FileProblem

FEW = settings(derandomize=True, max_examples=150, deadline=None)


def official(polygons: list[NDArray[np.int32]], height: int, width: int) -> NDArray[np.bool_]:
    union = np.zeros((height, width), bool)
    for polygon in polygons:
        union |= cv2.fillPoly(np.zeros((height, width), np.uint8), [polygon], 1).astype(bool)
    return union


def masks(bits: NDArray[np.int32], n_classes: int) -> NDArray[np.bool_]:
    return np.stack([(bits[k // 32].view(np.uint32) >> np.uint32(k % 32)) & 1 for k in range(n_classes)]).astype(bool)


@st.composite
def canvases(draw: st.DrawFn, margin: int = 15) -> tuple[int, int, list[list[NDArray[np.int32]]]]:
    """Height, width and for each of some classes one to three polygons, with vertices inside and a little outside."""
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    point = st.tuples(st.integers(-margin, width + margin), st.integers(-margin, height + margin))
    polygon = st.lists(point, min_size=3, max_size=9).map(lambda points: np.array(points, np.int32))
    groups = draw(st.lists(st.lists(polygon, min_size=1, max_size=3), min_size=1, max_size=4))
    return height, width, groups


@FEW
@given(canvases(), st.sampled_from([0, 28, 31, 32, 34]))
def test_bit_equal_to_fillpoly(canvas: tuple[int, int, list[list[NDArray[np.int32]]]], first: int) -> None:
    height, width, groups = canvas
    classes = [f"class {k}" for k in range(39)]
    polygons = {classes[first + i]: group for i, group in enumerate(groups)}
    every = [polygon for group in groups for polygon in group]
    if any(not official([polygon], height, width).any() for polygon in every):
        with pytest.raises(FileProblem, match=r"label\.json.*outside the"):
            rasterise(polygons, classes, height, width, "label.json")
        return
    bits = rasterise(polygons, classes, height, width, "label.json")
    assert bits.shape == (2, height, width) and bits.dtype == np.int32
    expected = np.zeros((39, height, width), bool)
    for i, group in enumerate(groups):
        expected[first + i] = official(group, height, width)
    np.testing.assert_array_equal(masks(bits, 39), expected)


@pytest.mark.parametrize("n_classes", [1, 29, 31, 32, 33, 64, 65])
def test_words_and_the_sign_bit(n_classes: int) -> None:
    classes = [f"c{k}" for k in range(n_classes)]
    squares = {c: [np.array([[k, 0], [k + 3, 0], [k + 3, 5], [k, 5]], np.int32)] for k, c in enumerate(classes)}
    bits = rasterise(squares, classes, 6, n_classes + 4, "x")
    assert bits.shape == (n_words(n_classes), 6, n_classes + 4)
    for k, mask in enumerate(masks(bits, n_classes)):
        np.testing.assert_array_equal(mask, official(squares[f"c{k}"], 6, n_classes + 4))
    spare = n_words(n_classes) * 32 - n_classes
    if spare:
        assert not (bits[-1].view(np.uint32) >> np.uint32(32 - spare)).any(), "bits above the last class are 0"


def test_polygons_of_one_label_are_joined() -> None:
    """One fillPoly call with both would cut out where they overlap."""
    a = np.array([[2, 2], [12, 2], [12, 12], [2, 12]], np.int32)
    b = a + 5
    mask = masks(rasterise({"x": [a, b]}, ["x"], 30, 30, "f"), 1)[0]
    np.testing.assert_array_equal(mask, official([a, b], 30, 30))
    assert mask[9, 9] and not cv2.fillPoly(np.zeros((30, 30), np.uint8), [a, b], 1)[9, 9]


def test_large_polygons_that_leave_the_image_on_all_sides() -> None:
    """The official mask, not that of the polygon clipped to the image: edges must not move."""
    rng = np.random.default_rng(5)
    for _ in range(50):
        polygon = rng.integers(-400, 900, (7, 2)).astype(np.int32)
        if official([polygon], 500, 430).any():
            bits = rasterise({"x": [polygon]}, ["x"], 500, 430, "f")
            np.testing.assert_array_equal(masks(bits, 1)[0], official([polygon], 500, 430))


@pytest.mark.parametrize(
    ("polygon", "outside"),
    [
        ([[-9, 2], [-1, 2], [-5, 8]], True),
        ([[20, 2], [25, 2], [22, 8]], True),
        ([[2, 10], [9, 10], [5, 30]], True),
        ([[-9, 5], [-9, -9], [5, -9]], True),  # across a corner: its box overlaps the image, it does not
        ([[-1, 2], [0, 3], [-1, 5]], False),
        ([[-50, -50], [70, -50], [70, 60], [-50, 60]], False),  # the whole image, without a vertex in it
    ],
)
def test_outside(polygon: list[list[int]], outside: bool) -> None:
    points = np.array(polygon, np.int32)
    if outside:
        with pytest.raises(FileProblem, match=r"label\.json: a polygon of Ulna .* lies outside the 20 x 10 image"):
            rasterise({"Ulna": [points]}, ["Ulna"], 10, 20, "label.json")
    else:
        mask = masks(rasterise({"Ulna": [points]}, ["Ulna"], 10, 20, "label.json"), 1)[0]
        np.testing.assert_array_equal(mask, official([points], 10, 20))


TRIANGLE = [[1, 1], [9, 1], [5, 8]]


def write(folder: Path, annotations: Any) -> Path:
    path = folder / "label.json"
    path.write_text(json.dumps({"annotations": annotations, "metadata": {"height": 3060, "width": 3060}}))
    return path


def test_reads_flat_nested_and_several(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [
            {"label": "finger-1", "points": TRIANGLE, "type": "poly_seg"},
            {"label": "Radius", "points": [TRIANGLE]},
            {"label": "Radius", "points": [TRIANGLE, [[4, 4], [6, 4], [6, 6]]]},
            {"label": "Ulna", "points": [[1.0, 1.0], [9.0, 1.0], [5.0, 8.0]]},
        ],
    )
    polygons = read_polygons(path, HAND_BONES)
    assert {name: len(group) for name, group in polygons.items()} == {"finger-1": 1, "Radius": 3, "Ulna": 1}
    for group in polygons.values():
        assert all(polygon.dtype == np.int32 for polygon in group)
        np.testing.assert_array_equal(group[0], TRIANGLE)
    assert read_polygons(write(tmp_path, []), HAND_BONES) == {}


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("Raduis", "label 'Raduis' is no class .did you mean Radius"),
        ("finger-20", "did you mean finger-2"),
        ("skull", "label 'skull' is no class. Correct it or set --classes"),
        (None, "label None is no class"),
        (["Ulna"], "is no class"),
    ],
)
def test_unknown_labels(label: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=rf"label\.json: .*{said}"):
        read_polygons(write(tmp_path, [{"label": label, "points": TRIANGLE}]), HAND_BONES)


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([[1, 1], [2, 2]], "a polygon has 2 points and needs three"),
        ([[[1, 1], [9, 1], [5, 8]], [[3, 3]]], "a polygon has 1 points and needs three"),
        ([], "points must be"),
        ([[]], "points must be"),
        ([[[]]], "points must be"),
        (None, "points must be"),
        ("1,1 2,2 3,3", "points must be"),
        ([1, 2, 3], "points must be"),
        ([[1, 2, 3]] * 3, "points must be"),
        ([[1, 2], [3, 4], [5]], "points must be"),
        ([["a", 2], [3, 4], [5, 6]], "points must be"),
        ([[1, 2], [3, float("nan")], [5, 6]], "points must be"),
        ([[1, 2], [3, float("inf")], [5, 6]], "points must be"),
        ([[1, 2], [3, 1e12], [5, 6]], "points must be"),
        ([[1, 2], None, [5, 6]], "points must be"),
    ],
)
def test_bad_points_name_file_and_label(points: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=rf"label\.json: Radius: .*{said}.*correct the file or exclude"):
        read_polygons(write(tmp_path, [{"label": "Radius", "points": points}]), HAND_BONES)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON"),
        (b'{"annotations": [', "is not JSON"),
        (b"\xff\xfe\x00binary", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "has no list 'annotations'"),
        (b"null", "has no list 'annotations'"),
        (b'{"shapes": []}', "has no list 'annotations'"),
        (b'{"annotations": {"label": "Ulna"}}', "has no list 'annotations'"),
        (b'{"annotations": ["Ulna"]}', "label None is no class"),
    ],
)
def test_files_of_another_format(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "label.json"
    path.write_bytes(content)
    with pytest.raises(FileProblem) as problem:
        read_polygons(path, HAND_BONES)
    assert str(path) in str(problem.value) and said in str(problem.value) and "\n" not in str(problem.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="cannot be read"):
        read_polygons(tmp_path / "absent.json", HAND_BONES)
