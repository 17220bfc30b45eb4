"""Shards merge to the CSV that one process writes: merge_submissions, and scripts/merge_csv.py."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import pack

from engine.files import FileProblem
from inference.submission import SubmissionWriter
from inference.submission_file import merge_submissions
from scripts.merge_csv import main

CLASSES = ("Radius", "Ulna", "Capitate")


def write(path: Path, names: list[str]) -> Path:
    """Each image's masks follow from its name."""
    with SubmissionWriter(path, names, CLASSES) as writer:
        for name in names:
            rng = np.random.default_rng(sum(name.encode()))
            writer.write(name, pack(rng.random((3, 9, 7)) < rng.choice([0, 0.3, 1])))
    return path


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.permutations([f"{i}, 사진.png" for i in range(6)]), st.lists(st.integers(1, 5), unique=True), st.booleans())
def test_parts_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], cuts: list[int], shuffled: bool
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    whole = write(folder / "whole.csv", order)
    from_the_top = sorted(order) if shuffled else order
    edges = [0, *sorted(cuts), len(order)]
    parts = [write(folder / f"{a}.csv", from_the_top[a:b]) for a, b in pairwise(edges)]
    if shuffled:
        parts.reverse()
    assert merge_submissions(parts, folder / "out.csv", whole if shuffled else None) == 6
    assert (folder / "out.csv").read_bytes() == whole.read_bytes()


def test_parts_written_by_others_become_ours(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.csv", ["a.png", "b.png"])
    quoted = write(tmp_path / "b.csv", ["b.png"]).read_text().replace("\n", "\r\n").replace("b.png", '"b.png"')
    (tmp_path / "b.csv").write_bytes(quoted.encode())
    merge_submissions([write(tmp_path / "a.csv", ["a.png"]), tmp_path / "b.csv"], tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes() == whole.read_bytes()


def test_a_part_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("image_name,class,rle\n")
    with pytest.raises(FileProblem, match=r"none\.csv holds no images, only a header: write it again"):
        merge_submissions([write(tmp_path / "a.csv", ["a.png"]), tmp_path / "none.csv"], tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_an_image_in_two_parts_is_refused(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.csv", ["a.png", "b.png"]), write(tmp_path / "2.csv", ["c.png", "b.png"])
    with pytest.raises(FileProblem, match=re.escape(f"Image 'b.png' is in {one} and in {two}, but parts must hold")):
        merge_submissions([one, two], tmp_path / "out.csv")
    assert sorted(tmp_path.iterdir()) == [one, two]


def test_parts_of_other_classes_are_refused(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.csv", ["a.png"]), write(tmp_path / "2.csv", ["b.png"])
    text = two.read_text()
    two.write_text(text.replace("Ulna", "Lunate"))
    with pytest.raises(FileProblem, match=r"2\.csv, line 3: class 'Lunate' of image 'b\.png' is unknown, but must be"):
        merge_submissions([one, two], tmp_path / "out.csv")
    two.write_text("".join(text.splitlines(keepends=True)[:3]))
    with pytest.raises(FileProblem, match=r"image 'b\.png' ends after 2 of 3 classes, 'Capitate' is missing"):
        merge_submissions([one, two], tmp_path / "out.csv")
    assert sorted(tmp_path.iterdir()) == [one, two]


@pytest.mark.parametrize(
    ("sample", "sentence"),
    [
        (["b.png", "a.png", "c.png"], "Image 'c.png' (1 in all) is in {}, but in no part: give all the parts"),
        (["b.png"], "Image 'a.png' (1 in all) is in the parts, but not in {}: give all the parts"),
    ],
)
def test_the_sample_must_hold_the_same_images(tmp_path: Path, sample: list[str], sentence: str) -> None:
    part, like = write(tmp_path / "1.csv", ["a.png", "b.png"]), write(tmp_path / "like.csv", sample)
    with pytest.raises(FileProblem, match=re.escape(sentence.format(like))):
        merge_submissions([part], tmp_path / "out.csv", like)
    assert not (tmp_path / "out.csv").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = write(tmp_path / "1.csv", ["a.png"]), write(tmp_path / "2.csv", ["b.png"])
    like, out = write(tmp_path / "like.csv", ["b.png", "a.png"]), tmp_path / "new" / "out.csv"
    assert main([str(one), str(two), "--output", str(out), "--like", str(like)]) == 0
    assert capsys.readouterr().out == f"{out}: 2 images from 2 parts\n"
    assert out.read_bytes() == like.read_bytes()
    assert main([str(one), "--output", str(out)]) == 1
    assert "exists and is never overwritten" in capsys.readouterr().err
    assert out.read_bytes() == like.read_bytes()
    with pytest.raises(SystemExit) as left:
        main(["--output", str(tmp_path / "none.csv")])
    assert left.value.code == 2
    assert "No part was given: name the CSVs of the shards." in capsys.readouterr().err
