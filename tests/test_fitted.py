from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.files import FileProblem
from inference.fitted import Evidence, Fitted, Member, read_fitted, write_fitted

EVIDENCE = Evidence(
    "weights", "by dice", 0.97, 0.96, 0.01, 0.005, 0.015, 0.01, 0.005, 0.015, clears=True, used=True, forced=False
)
FITTED = Fitted(
    ("Radius", "Ulna"),
    (Member("checkpoints/a", ("aa", "ab")), Member("checkpoints/b", ("bb",))),
    ((0.25, 1.0), (0.75, 0.0)),
    (0.4, 0.6),
    ("largest", "min_area=50"),
    (EVIDENCE,),
)


@pytest.mark.parametrize(
    "fitted", [FITTED, replace(FITTED, weights=None, thresholds=None, post_process=(), evidence=())]
)
def test_a_file_reads_back_as_it_was_written(fitted: Fitted, tmp_path: Path) -> None:
    path = tmp_path / "fitted.json"
    write_fitted(path, fitted)
    assert read_fitted(path) == fitted
    write_fitted(path, FITTED)  # a new fit replaces the older one
    assert read_fitted(path) == FITTED


def test_a_fit_belongs_to_its_checkpoints_and_classes() -> None:
    good = [("aa", "ab"), ("bb",)]
    FITTED.check(["Radius", "Ulna"], good)
    again = "fit again with inference/optimize.py"
    with pytest.raises(FileProblem, match=f"checkpoints of checkpoints/a have changed since the fit: {again}"):
        FITTED.check(["Radius", "Ulna"], [("aa", "ac"), ("bb",)])
    with pytest.raises(FileProblem, match=f"checkpoints of checkpoints/a have changed since the fit: {again}"):
        FITTED.check(["Radius", "Ulna"], good[::-1])
    with pytest.raises(FileProblem, match=f"fitted for 2 members, but the ensemble has 1: {again}"):
        FITTED.check(["Radius", "Ulna"], good[:1])
    with pytest.raises(FileProblem, match=f"fitted for the classes Radius, Ulna, but the ensemble has Ulna: {again}"):
        FITTED.check(["Ulna"], good)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": [[0.25, 1.0]]}, "weights must be 2 members' of 2 classes each"),
        ({"weights": [[0.25], [0.75]]}, "weights must be 2 members' of 2 classes each"),
        ({"weights": [[0.25, 1.5], [0.75, -0.5]]}, "weights must be 0 or more"),
        ({"weights": [[0.25, float("nan")], [0.75, 0.0]]}, "weights must be 0 or more"),
        ({"weights": [[0.25, 1.0], [0.7, 0.0]]}, "weights of a class must sum to 1"),
        ({"thresholds": [0.5]}, "thresholds are 1, but there are 2 classes"),
        ({"thresholds": [0.5, 1.0]}, "thresholds must lie between 0 and 1"),
        ({"thresholds": ["half", 0.5]}, "could not convert"),
        ({"members": ["a", "b"]}, "indices"),
        ({"evidence": [{"name": "weights"}]}, "missing"),
        ({"version": 2}, "is of version 2, but must be of version 1"),
    ],
)
def test_a_changed_file_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "fitted.json"
    write_fitted(path, FITTED)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FileProblem, match=f"fitted.json.*{said}.*: fit again with inference/optimize.py"):
        read_fitted(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", "\x00\xff"])
def test_a_damaged_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "fitted.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FileProblem, match=r"is no result of a fit .*: fit again with inference/optimize.py"):
        read_fitted(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"fitted.json cannot be read \(No such file or directory\): fit again"):
        read_fitted(tmp_path / "fitted.json")
