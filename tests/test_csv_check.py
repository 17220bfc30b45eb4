"""inference/csv_check.py and scripts/check_csv.py: every finding with its place, faults apart from warnings."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import pack

from config import HAND_BONES
from dataset.readers import read_competition
from engine.files import FileProblem
from inference.csv_check import Rules, check_submission, usual_areas
from inference.csv_masks import CsvMasks, open_masks
from inference.submission import SubmissionWriter
from scripts import check_csv

CLASSES = ("Radius", "Ulna", "Capitate")
HEAD = "image_name,class,rle\n"
A = ["a.png,Radius,1 2 20 1\n", "a.png,Ulna,4 1\n", "a.png,Capitate,3 4\n"]
B = ["b.png,Radius,18 1\n", "b.png,Ulna,1 18\n", "b.png,Capitate,2 1\n"]
GOOD = HEAD + "".join(A + B)
RULES = Rules(CLASSES, ("a.png", "b.png"), {"a.png": (4, 5), "b.png": (6, 3)})


def found(path: Path, text: str, rules: Rules = RULES) -> list[str]:
    path.write_text(text, encoding="utf-8", newline="")
    return [f"{finding.severity}: {finding}" for finding in check_submission(path, rules).findings]


def test_a_good_file_is_counted_and_nothing_is_found(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text(GOOD)
    report = check_submission(path, RULES)
    assert (report.images, report.rows, report.empty, report.runs, report.findings) == (2, 6, 0, 7, [])
    assert check_submission(path, Rules(CLASSES)) == report
    assert found(path, GOOD.replace("\n", "\r\n")) == []


AGAIN = HEAD + "".join(A + B[:1] + A[2:] + B[1:])
TWICE = GOOD.replace("a.png,Ulna,4 1\n", "a.png,Ulna,4 1\na.png,Ulna,4 1\n")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (HEAD, ["there are no images, only a header", "image 'a.png': is missing", "image 'b.png': is missing"]),
        (HEAD + "".join(A), ["image 'b.png': is missing: predict it too."]),
        (HEAD + "".join(B + A), ["line 2, image 'b.png': comes too early: write the CSV in the order of the list"]),
        (
            GOOD.replace("b.png", "b.jpeg"),
            ["line 5, image 'b.jpeg': is not an expected image", "image 'b.png': is missing"],
        ),
        (
            AGAIN,
            [
                "line 6, image 'a.png': begins again, but its rows must follow those of line 2.",
                "line 6, image 'a.png', class 'Capitate': is there again, but must be there once: drop a row.",
                "line 7, image 'b.png': begins again, but its rows must follow those of line 5.",
            ],
        ),
        (HEAD + "".join(A[:1] + B), ["line 2, image 'a.png': has no row of Ulna, Capitate: an empty mask needs one"]),
        (HEAD + "".join(A + B[::-1]), ["line 5, image 'b.png', class 'Capitate': comes too early: the classes must"]),
        (
            GOOD.replace("b.png,Ulna", "b.png,ulna"),
            ["line 5, image 'b.png': has no row of Ulna", "line 6, image 'b.png', class 'ulna': is no class (did you"],
        ),
        (TWICE, ["line 4, image 'a.png', class 'Ulna': is there again, but must be there once"]),
        (
            GOOD.replace("a.png,Ulna,4 1\n", "a.png,Ulna\n\n"),
            ["line 2, image 'a.png': has no row of Ulna", "line 3: the row has 2", "line 4: the row has 0 fields"],
        ),
        (GOOD.replace("20 1", "20 2"), ["line 2, image 'a.png', class 'Radius': RLE holds the run '20 2', but runs"]),
        (GOOD.replace("3 4", "3 4 9"), ["line 4, image 'a.png', class 'Capitate': RLE ends with the start 9, but ev"]),
        (GOOD.replace("3 4", "3 4 6 1"), ["line 4, image 'a.png', class 'Capitate': RLE holds a run from pixel 6 af"]),
        (GOOD.replace("3 4", "nan"), ["line 4, image 'a.png', class 'Capitate': RLE holds 'nan', but starts and len"]),
        (
            GOOD.replace("20 1", "20 2").replace("1 18", "x"),
            ["line 2, image 'a.png', class 'Radius': RLE", "line 6, image 'b.png', class 'Ulna': RLE holds 'x'"],
        ),
        (GOOD + '"', [": unexpected end of data, so this is not CSV: write it again. What comes behind it was"]),
    ],
)
def test_every_fault_is_listed(tmp_path: Path, text: str, sentences: list[str]) -> None:
    listed = found(tmp_path / "s.csv", text)
    assert len(listed) == len(sentences)
    for finding, sentence in zip(listed, sentences, strict=True):
        assert finding.startswith("fault: ") and sentence in finding and "\n" not in finding


def test_rows_sorted_by_class_are_told_of_once_an_image(tmp_path: Path) -> None:
    listed = found(tmp_path / "s.csv", HEAD + "".join(row for pair in zip(A, B, strict=True) for row in pair))
    assert [finding.split(": ")[1] for finding in listed] == ["line 4, image 'a.png'", "line 5, image 'b.png'"]


def test_what_cannot_be_checked_at_all_is_raised(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("id,label,rle\n")
    with pytest.raises(FileProblem, match="line 1: the header is 'id,label,rle', but must be"):
        check_submission(path, RULES)
    path.write_bytes(HEAD.encode() + b"\xbb\xe7.png,Radius,\n")
    with pytest.raises(FileProblem, match="is not UTF-8 text"):
        check_submission(path, RULES)
    with pytest.raises(FileProblem, match=r"none\.csv cannot be read"):
        check_submission(tmp_path / "none.csv", RULES)


def test_empty_masks_and_odd_areas_are_warnings(tmp_path: Path) -> None:
    rules = Rules(CLASSES, areas={"Radius": (2.0, 8.0), "Ulna": (0.6, 9.0)})
    assert found(tmp_path / "s.csv", GOOD.replace("a.png,Ulna,4 1", "a.png,Ulna,"), rules) == [
        "warning: line 3, image 'a.png', class 'Ulna': its mask is empty.",
        "warning: line 5, image 'b.png', class 'Radius': its mask has 1 px, but 2 to 8 are usual by the training "
        "labels.",
        "warning: line 6, image 'b.png', class 'Ulna': its mask has 18 px, but 1 to 9 are usual by the training "
        "labels.",
    ]


@pytest.mark.parametrize("factor", [0.5, 1, 2])
def test_masks_of_another_width_are_noticed(tmp_path: Path, factor: float) -> None:
    height = width = 400
    y, x = np.mgrid[:height, :width]
    discs = np.stack([(y - 200) ** 2 + (x - c) ** 2 < 6400 for c in (90, 200, 300)])
    path = tmp_path / "s.csv"
    with SubmissionWriter(path, ["a.png"], CLASSES) as writer:
        writer.write("a.png", pack(discs))
    size = (int(height / factor), int(width * factor))
    listed = check_submission(path, Rules(CLASSES, sizes=size)).findings
    if factor == 1:
        assert not listed
    else:
        assert [str(one) for one in listed] == [
            f"line 2, image 'a.png': its runs repeat every 400 px, but it is {size[1]} wide: were its masks of another "
            "size?"
        ]
        assert listed[0].severity == "warning"


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.lists(st.integers(500, 5000), min_size=4, max_size=40))
def test_usual_areas_reach_a_factor_of_two_beyond_the_quartiles(
    tmp_path_factory: pytest.TempPathFactory, areas: list[int]
) -> None:
    path = tmp_path_factory.mktemp("areas") / "s.csv"
    path.write_text(HEAD + "".join(f"{i}.png,Radius,1 {area}\n{i}.png,Ulna,\n" for i, area in enumerate(areas)))
    limits = usual_areas(CsvMasks(path))
    assert set(limits) == {"Radius"}, "no limits for what is never there"
    low, high = limits["Radius"]
    assert low <= np.quantile(areas, 0.25) / 1.999 and high >= np.quantile(areas, 0.75, method="lower") * 1.999
    if max(areas) < 1.999 * min(areas):
        assert low <= min(areas) and max(areas) <= high


def test_one_mislabelled_hand_does_not_widen_the_limits(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    areas = [*range(1000, 1100, 5), 3, 90_000]
    path.write_text(HEAD + "".join(f"{i}.png,Radius,1 {area}\n" for i, area in enumerate(areas)))
    low, high = usual_areas(CsvMasks(path))["Radius"]
    assert 450 < low < 550 and 2000 < high < 2300


def write_labels(path: Path, root: Path, split: str) -> None:
    records = read_competition(root, split)
    labels = open_masks(root, split, HAND_BONES)
    rows = [
        f"{record.name},{label}," + " ".join(f"{a + 1} {b - a}" for a, b in runs.tolist()) + "\n"
        for record in records
        for label, runs in zip(HAND_BONES, labels.runs(record.name), strict=True)
    ]
    path.write_text(HEAD + "".join(rows))


def test_command(phantom_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.csv"
    write_labels(path, phantom_root, "test")
    whole = ["--data_root", str(phantom_root), "--areas", str(phantom_root)]
    assert check_csv.main([str(path), *whole]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r".*: 4 images, 116 rows \(0 empty masks\), \d+ runs; 0 faults, \d+ warnings", last)
    images = ["--images", str(phantom_root / "test" / "DCM")]
    for flags in (images, ["--like", str(path), "--height", "128", "--width", "128"]):
        assert check_csv.main([str(path), *flags]) == 0
        assert "0 faults, 0 warnings" in capsys.readouterr().out
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-29]).replace("Lunate,", "Lunate,5 0 "))
    assert check_csv.main([str(path), *whole, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    faults = [finding for finding in report["findings"] if finding["severity"] == "fault"]
    assert [(f["line"], f["label"]) for f in faults] == [(26, "Lunate"), (55, "Lunate"), (84, "Lunate"), (0, "")]
    assert faults[-1]["image"] == lines[-1].split(",")[0] and faults[-1]["detail"] == "is missing: predict it too."


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--height", "5"], "the size is 0 x 5 px: give both --height and --width."),
        (["--data_root", "d", "--like", "x"], "the images say names and sizes already"),
        (["--data_root", "d", "--images", "x"], "images come from data_root or from images, but both are given"),
    ],
)
def test_wrong_flags(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        check_csv.main(["s.csv", *flags])
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_a_missing_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_csv.main([str(tmp_path / "s.csv")]) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/s.csv cannot be read (No such file or directory): give the path of a submission CSV.\n"
    )
