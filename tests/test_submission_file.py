"""inference/submission_file.py: any image of a CSV by its name, whoever wrote it; two files side by side."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.files import FileProblem
from inference.submission import HEADER, parse_image
from inference.submission_file import SubmissionFile, check_alike

CLASSES = ("Radius", "Ulna")
GOOD = """image_name,class,rle
b.png,Radius,1 2 20 1
b.png,Ulna,
a.png,Radius,18 1
a.png,Ulna,1 18
"""
LINES = GOOD.splitlines(keepends=True)
HEAD, B, A = LINES[0], "".join(LINES[1:3]), "".join(LINES[3:])


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_what_is_known_of_a_file(tmp_path: Path) -> None:
    file = SubmissionFile(written(tmp_path / "s.csv", GOOD))
    assert (file.path, file.classes, file.names) == (tmp_path / "s.csv", CLASSES, ("b.png", "a.png"))
    assert "a.png" in file and "c.png" not in file
    assert file.read("a.png").rles == {"Radius": "18 1", "Ulna": "1 18"}
    assert file.read("b.png").rles == {"Radius": "1 2 20 1", "Ulna": ""}
    assert file.read("a.png").line == 4


fields = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6) | st.sampled_from(
    ['a"b', "a,b", "사진", " x "]
)
tables = st.tuples(
    st.lists(fields | st.just("a\nb"), min_size=1, max_size=5, unique=True),
    st.lists(fields, min_size=1, max_size=4, unique=True),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(tables)
def test_any_order_gives_what_reading_from_the_top_gives(
    tmp_path_factory: pytest.TempPathFactory, table: tuple[list[str], list[str], str, int]
) -> None:
    names, classes, line_end, quoting = table
    path = tmp_path_factory.mktemp("csv") / "s.csv"
    keys = [(name, label) for name in names for label in classes]
    rows = [(*key, "" if i % 3 else f"{i + 1} {i + 2}") for i, key in enumerate(keys)]
    pd.DataFrame(rows, columns=HEADER).to_csv(path, index=False, lineterminator=line_end, quoting=quoting)
    file = SubmissionFile(path)
    images = list(file)
    assert (file.names, file.classes) == (tuple(names), tuple(classes))
    assert [(i.name, c, rle) for i in images for c, rle in i.rles.items()] == rows
    assert [file.read(image.name) for image in reversed(images)] == images[::-1]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_the_last_line_may_lack_its_end(tmp_path: Path, line_end: str) -> None:
    text = GOOD.replace("\n", line_end).removesuffix(line_end)
    file = SubmissionFile(written(tmp_path / "s.csv", text))
    assert file.read("a.png").rles["Ulna"] == "1 18"
    assert parse_image(file.path, file.read("a.png"))["Ulna"].tolist() == [[0, 18]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (HEAD, "s.csv holds no images, only a header: write it again."),
        (GOOD.replace("rle", "EncodedPixels"), "line 1: the header is 'image_name,class,EncodedPixels', but must be"),
        (GOOD.replace("a.png,Ulna,1 18\n", ""), "line 5: image 'a.png' ends after 1 of 2 classes, 'Ulna' is missing"),
        (GOOD.replace("a.png,Ulna", "a.png,Lunate"), "line 5: class 'Lunate' of image 'a.png' is unknown, but must be"),
        (GOOD.replace("a.png,Radius", "a.png,Ulna", 1), "line 4: class 'Ulna' of image 'a.png' came where 'Rad"),
        (HEAD + B + A + B, "line 6: image 'b.png' begins again, but the rows of an image must follow each other"),
        (GOOD.replace("b.png,Ulna,", "b.png,Ulna"), "line 3: the row has 2 fields, but must have 3"),
        (GOOD.replace("\n", "\r"), r"line 1: the header is 'image_name,class,rle\rb.png,Radius,1 2"),
        (GOOD.replace("1 18", '"1 18'), "line 5: unexpected end of data, so this is not CSV: write it again."),
        ("PK\x03\x04\n", "line 1: the header is 'PK"),
    ],
)
def test_a_bad_file_gets_its_sentence_at_once(tmp_path: Path, text: str, sentence: str) -> None:
    path = written(tmp_path / "s.csv", text)
    with pytest.raises(FileProblem, match=re.escape(sentence)) as caught:
        SubmissionFile(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("NaN", "RLE holds 'NaN', but starts and lengths must be whole numbers from 1 up."),
        ("8 1 20", "RLE ends with the start 20, but every start must be followed by a length."),
        ("3 4 5 1", "RLE holds a run from pixel 5 after one to pixel 6, but runs must be sorted and must not overlap."),
        ("20 2", "RLE holds the run '20 2', but runs must end at the last pixel, 20, or before."),
    ],
)
def test_a_bad_text_names_line_image_and_class(tmp_path: Path, text: str, sentence: str) -> None:
    file = SubmissionFile(written(tmp_path / "s.csv", GOOD.replace("1 18", text)))
    with pytest.raises(FileProblem, match=re.escape(f"{file.path}, line 5, image 'a.png', class 'Ulna': {sentence}")):
        parse_image(file.path, file.read("a.png"), 20)
    assert parse_image(file.path, file.read("b.png"), 20)["Ulna"].shape == (0, 2)


def test_given_classes_are_demanded(tmp_path: Path) -> None:
    path = written(tmp_path / "s.csv", GOOD)
    assert SubmissionFile(path, CLASSES).classes == CLASSES
    with pytest.raises(FileProblem, match=r"class 'Radius' of image 'b\.png' came where 'Ulna' should"):
        SubmissionFile(path, CLASSES[::-1])
    with pytest.raises(FileProblem, match="holds no images, only a header"):
        SubmissionFile(written(path, HEAD), CLASSES)


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    file = SubmissionFile(written(tmp_path / "s.csv", GOOD))
    with pytest.raises(FileProblem, match=r"s\.csv holds no image 'c\.png' among its 2: give CSVs of the same images"):
        file.read("c.png")


@pytest.mark.parametrize("change", [lambda text: text[: len(HEAD + B)], lambda text: text.replace("a.png", "c.png")])
def test_a_file_that_changes_under_its_reader_is_noticed(tmp_path: Path, change: Callable[[str], str]) -> None:
    file = SubmissionFile(written(tmp_path / "s.csv", GOOD))
    written(tmp_path / "s.csv", change(GOOD))
    with pytest.raises(FileProblem, match=r"has no image 'a\.png' on line 4 any more: it was changed while"):
        file.read("a.png")


def test_files_are_alike_in_any_order(tmp_path: Path) -> None:
    first = SubmissionFile(written(tmp_path / "1.csv", GOOD))
    turned = HEAD + "a.png,Ulna,\na.png,Radius,\nb.png,Ulna,\nb.png,Radius,\n"
    check_alike(first, SubmissionFile(written(tmp_path / "2.csv", turned)))


@pytest.mark.parametrize(
    ("text", "first_lacks", "what"),
    [
        (HEAD + B, False, "image 'a.png'"),
        (GOOD + A.replace("a.png", "c.png"), True, "image 'c.png'"),
        (GOOD.replace("Ulna", "Lunate"), False, "class 'Ulna'"),
        (HEAD + "b.png,Radius,\na.png,Radius,\n", False, "class 'Ulna'"),
    ],
)
def test_unlike_files_name_what_is_in_one_only(tmp_path: Path, text: str, first_lacks: bool, what: str) -> None:
    first = SubmissionFile(written(tmp_path / "1.csv", GOOD))
    other = SubmissionFile(written(tmp_path / "2.csv", text))
    lacking, having = (first, other) if first_lacks else (other, first)
    with pytest.raises(FileProblem, match=re.escape(f"{lacking.path} lacks {what} of {having.path}, 1 in all: give")):
        check_alike(first, other)
