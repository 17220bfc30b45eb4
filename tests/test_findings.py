"""dataset/findings.py: what is wrong with one image and its label, and which hand it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from config import HAND_BONES
from dataset.findings import Fault, Finding, look_at, recall, remember, stamp_of
from dataset.phantom import Phantom, draw_phantom
from dataset.readers import Record

SIZE = 128


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return draw_phantom(3, 0, "R", SIZE, False)


def annotations(polygons: dict[str, list[NDArray[np.int32]]]) -> list[dict[str, Any]]:
    return [{"label": name, "points": p.tolist()} for name, group in polygons.items() for p in group]


def written(root: Path, phantom: Phantom, entries: list[dict[str, Any]] | None = None) -> Record:
    """A record of the phantom with these annotations, its own by default."""
    record = Record(root / "a.png", root / "a.json", "a")
    cv2.imwrite(str(root / "a.png"), phantom.image)
    (root / "a.json").write_text(json.dumps({"annotations": entries or annotations(phantom.polygons)}))
    return record


def look(root: Path, record: Record) -> Finding:
    return look_at(root, record, HAND_BONES, stamp_of(record))


def only(finding: Finding) -> Fault:
    (fault,) = finding.faults
    return fault


def test_nothing_is_wrong(phantom: Phantom, tmp_path: Path) -> None:
    record = written(tmp_path, phantom)
    finding = look(tmp_path, record)
    assert finding.faults == [] and (finding.height, finding.width, finding.side) == (SIZE, SIZE, "R")
    assert finding.classes is not None and sorted(finding.classes) == sorted(HAND_BONES)
    unlabelled = look(tmp_path, Record(record.image, None, "a"))
    assert unlabelled.faults == [] and unlabelled.classes is None and unlabelled.side == ""
    assert unlabelled.pixels == finding.pixels
    other = written(tmp_path, draw_phantom(3, 1, "R", SIZE, False))
    assert look(tmp_path, other).pixels != finding.pixels


@pytest.mark.parametrize(
    ("keep", "detail"),
    [(-100, "is a truncated PNG: fetch"), (0, "is empty: fetch"), (None, "cannot be read (No such file or directory)")],
)
def test_an_unreadable_image(keep: int | None, detail: str, phantom: Phantom, tmp_path: Path) -> None:
    record = written(tmp_path, phantom)
    content = record.image.read_bytes()
    record.image.unlink() if keep is None else record.image.write_bytes(content[:keep])
    finding = look(tmp_path, record)
    fault = only(finding)
    assert (fault.severity, fault.kind, fault.path) == ("error", "unreadable image", "a.png")
    assert fault.detail.startswith(detail)
    assert (finding.height, finding.width, finding.pixels) == (0, 0, "") and finding.side == "R"


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "has no list 'annotations'"),
        ('{"annotations": [5]}', "label None is no class"),
        ('{"annotations": [{"label": 5}]}', "label 5 is no class"),
        ('{"annotations": [{"label": [5]}]}', "label [5] is no class"),
        ('{"annotations": [{"label": "Ulna", "points": [[1, 1], [2, 2]]}]}', "Ulna: a polygon has 2 points and needs"),
    ],
)
def test_an_unreadable_label(text: str, detail: str, phantom: Phantom, tmp_path: Path) -> None:
    record = written(tmp_path, phantom)
    (tmp_path / "a.json").write_text(text)
    finding = look(tmp_path, record)
    fault = only(finding)
    assert (fault.severity, fault.kind, fault.path) == ("error", "unreadable label", "a.json")
    assert fault.detail.startswith(detail) and finding.classes is None


def test_extra_labels(phantom: Phantom, tmp_path: Path) -> None:
    """All of them, and what is wrong with the others as well."""
    entries = annotations(phantom.polygons)
    points = entries[0]["points"]
    outside = {"label": "Ulna", "points": [[500, 500], [600, 500], [600, 600]]}
    extra = [{"label": "Ullna", "points": points}, {"label": "ring", "points": points}, outside]
    finding = look(tmp_path, written(tmp_path, phantom, entries + extra))
    assert [(f.severity, f.kind, f.path) for f in finding.faults[:2]] == [("error", "extra label", "a.json")] * 2
    assert [f.detail.split(":")[0] for f in finding.faults] == [
        "label 'Ullna' is no class (did you mean Ulna?)",
        "label 'ring' is no class",
        finding.faults[2].detail.split(":")[0],
    ]
    assert finding.faults[2].kind == "polygon outside"
    assert finding.classes is not None and sorted(finding.classes) == sorted(HAND_BONES)


@pytest.mark.parametrize(
    ("points", "severity", "kind", "detail"),
    [
        (
            [[500, 500], [600, 500], [600, 600]],
            *("error", "polygon outside"),
            "a polygon of Ulna (x 500 to 600, y 500 to 600) lies outside the 128 x 128 image; correct",
        ),
        ([[-1, 0], [40, 0], [40, 40]], "warning", "polygon reaches outside", "a polygon of Ulna (x -1 to 40, y 0 to"),
        ([[0, 0], [128, 0], [40, 40]], "warning", "polygon reaches outside", "a polygon of Ulna (x 0 to 128, y 0 to"),
        (
            [[10, 10], [20, 20], [30, 30]],
            *("warning", "degenerate polygon"),
            "a polygon of Ulna (x 10 to 30, y 10 to 30) has no area: correct or remove it.",
        ),
    ],
)
def test_polygons(points: Any, severity: str, kind: str, detail: str, phantom: Phantom, tmp_path: Path) -> None:
    entries = [entry for entry in annotations(phantom.polygons) if entry["label"] != "Ulna"]
    record = written(tmp_path, phantom, [*entries, {"label": "Ulna", "points": points}])
    finding = look(tmp_path, record)
    fault = only(finding)
    assert (fault.severity, fault.kind, fault.path) == (severity, kind, "a.json") and fault.detail.startswith(detail)
    assert finding.classes is not None and ("Ulna" in finding.classes) is (kind != "degenerate polygon")


def test_polygons_up_to_the_last_pixel_are_inside(phantom: Phantom, tmp_path: Path) -> None:
    corners = {"label": "Ulna", "points": [[0, 0], [SIZE - 1, 0], [SIZE - 1, SIZE - 1]]}
    assert look(tmp_path, written(tmp_path, phantom, [*annotations(phantom.polygons), corners])).faults == []


@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("side", ["L", "R"])
def test_the_side_of_a_label(side: str, bent: bool, tmp_path: Path) -> None:
    """At any rotation of the picture; mirrored it is the other, and without the thumb none."""
    for subject in range(2):
        phantom = draw_phantom(3, subject, side, SIZE, bent)

        def shown(matrix: tuple[tuple[int, int], tuple[int, int]], phantom: Phantom = phantom, lost: str = "") -> str:
            moved = {
                name: [polygon @ np.array(matrix).T for polygon in group]
                for name, group in phantom.polygons.items()
                if name != lost
            }
            return look(tmp_path, written(tmp_path, phantom, annotations(moved))).side

        for cosine, sine in ((1, 0), (0, 1), (-1, 0), (0, -1)):
            assert shown(((cosine, -sine), (sine, cosine))) == side
        assert shown(((-1, 0), (0, 1))) == {"L": "R", "R": "L"}[side]
        assert shown(((1, 0), (0, 1)), lost="finger-2") == ""


def test_what_is_remembered(phantom: Phantom, tmp_path: Path) -> None:
    entries = [*annotations(phantom.polygons), {"label": "ring", "points": [[1, 1], [2, 2], [1, 2]]}]
    finding = look(tmp_path, written(tmp_path, phantom, entries))
    assert finding.faults and len(finding.stamp) == 4
    cache = tmp_path / "new" / "check.json"
    assert recall(cache, HAND_BONES) == {}
    remember(cache, HAND_BONES, {"a.png": finding})
    assert recall(cache, HAND_BONES) == {"a.png": finding}
    assert recall(cache, HAND_BONES[:-1]) == {}
