"""inference/submission.py: bytes as pandas writes them, whole files or none, and a sentence for every bad one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import competition_rle, pack

import inference.submission as submission
from config import HAND_BONES
from engine.files import FileProblem
from inference.csv_check import Rules, check_submission
from inference.rle import decode_bits, encode_bits
from inference.submission import SubmissionWriter, read_submission

CLASSES = ("Radius", "Ulna", "Capitate")
NAMES = ("a.png", "b.png")
GOOD = """image_name,class,rle
a.png,Radius,1 2 20 1
a.png,Ulna,
a.png,Capitate,3 4
b.png,Radius,18 1
b.png,Ulna,1 18
b.png,Capitate,
"""


def write_good(path: Path) -> None:
    with SubmissionWriter(path, NAMES, CLASSES) as writer:
        writer.write("a.png", decode_bits(["1 2 20 1", "", "3 4"], 4, 5))
        writer.write("b.png", decode_bits(["18 1", "1 18", ""], 6, 3))


def with_pandas(path: Path, names: Sequence[str], classes: Sequence[str], images: list[NDArray[np.bool_]]) -> None:
    rows = [
        (n, c, competition_rle(m)) for n, i in zip(names, images, strict=True) for c, m in zip(classes, i, strict=True)
    ]
    columns = list(zip(*rows, strict=True))
    frame = pd.DataFrame({"image_name": columns[0], "class": columns[1], "rle": columns[2]})
    frame.to_csv(path, index=False)


names = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\"), min_size=1, max_size=8),
    min_size=1, max_size=4, unique=True,
)  # fmt: skip


@settings(derandomize=True, max_examples=40, deadline=None)
@given(names, names, st.integers(0, 2**32 - 1))
def test_bytes_equal_pandas(tmp_path_factory: pytest.TempPathFactory, n: list[str], c: list[str], seed: int) -> None:
    folder = tmp_path_factory.mktemp("csv")
    rng = np.random.default_rng(seed)
    images = [rng.random((len(c), *rng.integers(1, 9, 2))) < rng.choice([0, 0.1, 0.5, 1]) for _ in n]
    with_pandas(folder / "pandas.csv", n, c, images)
    with SubmissionWriter(folder / "ours.csv", n, c) as writer:
        for name, masks in zip(n, images, strict=True):
            writer.write(name, pack(masks))
    assert (folder / "ours.csv").read_bytes() == (folder / "pandas.csv").read_bytes()
    read = list(read_submission(folder / "ours.csv", c))
    assert [image.name for image in read] == n
    for image, masks in zip(read, images, strict=True):
        assert image.rles == dict(zip(c, map(competition_rle, masks), strict=True))
    sizes = {name: masks.shape[1:] for name, masks in zip(n, images, strict=True)}
    counts = check_submission(folder / "ours.csv", Rules(tuple(c), tuple(n), sizes))
    assert (counts.images, counts.rows, counts.faults) == (len(n), len(n) * len(c), [])
    assert counts.empty == sum(not mask.any() for masks in images for mask in masks)


def test_hand_with_quoted_names(tmp_path: Path) -> None:
    n = ['image, "left".png', "사진_R.png"]
    rng = np.random.default_rng(3)
    images = [rng.random((29, 40, 50)) < 0.4, np.zeros((29, 31, 30), bool)]
    with_pandas(tmp_path / "pandas.csv", n, HAND_BONES, images)
    with SubmissionWriter(tmp_path / "ours.csv", n, HAND_BONES) as writer:
        for name, masks in zip(n, images, strict=True):
            writer.write(name, pack(masks))
    assert (tmp_path / "ours.csv").read_bytes() == (tmp_path / "pandas.csv").read_bytes()
    frame = pd.read_csv(tmp_path / "ours.csv")
    assert len(frame) == 58
    assert list(frame["rle"].isna()) == [False] * 29 + [True] * 29


def test_good_file_is_written_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "out" / "good.csv"
    write_good(path)
    assert path.read_text() == GOOD
    assert [image.line for image in read_submission(path)] == [2, 5]
    assert list(read_submission(path)) == list(read_submission(path, CLASSES))


def test_windows_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(GOOD.replace("\n", "\r\n").encode())
    assert [image.rles["Ulna"] for image in read_submission(tmp_path / "x.csv")] == ["", "1 18"]
    assert [image.rles["Capitate"] for image in read_submission(tmp_path / "x.csv")] == ["3 4", ""]


def test_existing_target_is_refused_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("precious")
    with pytest.raises(FileProblem, match="exists and is never overwritten"), SubmissionWriter(path, NAMES, CLASSES):
        pytest.fail("entered")
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_appears_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    with SubmissionWriter(path, NAMES[:1], CLASSES) as writer:
        writer.write("a.png", decode_bits(["", "", ""], 4, 5))
        assert not path.exists()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("CUDA out of memory"), OSError(28, "No space left")])
def test_nothing_is_left_after_an_exception(tmp_path: Path, error: BaseException | type[BaseException]) -> None:
    with (
        pytest.raises((KeyboardInterrupt, RuntimeError, FileProblem)),
        SubmissionWriter(tmp_path / "s.csv", NAMES, CLASSES) as writer,
    ):
        writer.write("a.png", decode_bits(["", "", ""], 4, 5))
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        (["a.png"], "1 of 2 images are missing, the first is 'b.png': write all of them."),
        ([], "2 of 2 images are missing, the first is 'a.png': write all of them."),
        (["b.png"], "image 'b.png' came where 'a.png' was expected: write every image once, in the order of the names"),
        (["a.png", "a.png"], "image 'a.png' came where 'b.png' was expected"),
        (["a.png", "c.png"], "image 'c.png' came where 'b.png' was expected"),
        (["a.png", "b.png", "b.png"], "image 'b.png' came where the end was expected"),
        (["a.png", "b.png", "the end"], "image 'the end' came where the end was expected"),
    ],
)
def test_writer_wants_every_image_once_in_order(tmp_path: Path, written: list[str], sentence: str) -> None:
    with (
        pytest.raises(FileProblem, match=re.escape(f"s.csv: {sentence}")),
        SubmissionWriter(tmp_path / "s.csv", NAMES, CLASSES) as writer,
    ):
        for name in written:
            writer.write(name, decode_bits(["", "", "1 1"], 4, 5))
    assert list(tmp_path.iterdir()) == []


def test_writer_refuses_bits_of_other_classes(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="with 3 classes, bits from 3 up of word 0 must be 0"),
        SubmissionWriter(tmp_path / "s.csv", NAMES, CLASSES) as writer,
    ):
        writer.write("a.png", decode_bits(["", "", "", "1 1"], 4, 5))
    assert list(tmp_path.iterdir()) == []


def test_writer_notices_a_wrong_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one(bits: NDArray[np.int32], n_classes: int) -> list[str]:
        return encode_bits(np.roll(bits, 1, axis=2), n_classes)

    monkeypatch.setattr(submission, "encode_bits", off_by_one)
    with (
        pytest.raises(
            FileProblem, match=re.escape("the RLE of image 'a.png' does not decode to its masks, which is a")
        ),
        SubmissionWriter(tmp_path / "s.csv", NAMES, CLASSES) as writer,
    ):
        writer.write("a.png", decode_bits(["1 1", "", ""], 4, 5))
    assert list(tmp_path.iterdir()) == []


def test_writer_writes_inside_with_only(tmp_path: Path) -> None:
    writer = SubmissionWriter(tmp_path / "s.csv", NAMES, CLASSES)
    with pytest.raises(RuntimeError, match="inside `with SubmissionWriter"):
        writer.write("a.png", decode_bits(["", "", ""], 4, 5))
    with pytest.raises(FileProblem, match="2 of 2 images are missing"), writer:
        pass
    with pytest.raises(RuntimeError, match="inside `with SubmissionWriter"):
        writer.write("a.png", decode_bits(["", "", ""], 4, 5))


@pytest.mark.parametrize(
    ("names", "classes", "sentence"),
    [
        (["a.png", "b.png", "a.png"], CLASSES, "image 1 and image 3 are both named 'a.png', but a submission tells"),
        (NAMES, ["Radius", "Radius"], "class 1 and class 2 are both named 'Radius', but"),
        (["ID001/a.png"], CLASSES, "image_name 'ID001/a.png' is a path, but the leaderboard wants base names"),
        (["ID001\\a.png"], CLASSES, "image_name 'ID001\\\\a.png' is a path"),
        ([""], CLASSES, "image 1 is named '', but a name must be one line of UTF-8 text"),
        (["a\nb.png"], CLASSES, "image 1 is named 'a\\nb.png', but"),
        (["\udcbb\udce7.png"], CLASSES, "image 1 is named '\\udcbb\\udce7.png', but"),
        ([], CLASSES, "no image was given, but a submission needs one or more: check the image list."),
        (NAMES, [], "no class was given, but"),
    ],
)
def test_writer_refuses_names(tmp_path: Path, names: list[str], classes: Sequence[str], sentence: str) -> None:
    with pytest.raises(FileProblem, match=re.escape(f"s.csv: {sentence}")):
        SubmissionWriter(tmp_path / "s.csv", names, classes)


A, B = GOOD.splitlines(keepends=True)[1:4], GOOD.splitlines(keepends=True)[4:]
HEAD = "image_name,class,rle\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "s.csv, line 1: the header is '', but must be 'image_name,class,rle': write the CSV without an index"),
        (GOOD.replace("image_name,", ",image_name,"), "line 1: the header is ',image_name,class,rle', but must be"),
        ("\ufeff" + GOOD, "line 1: the header is '\\ufeffimage_name,class,rle', but must be"),
        (
            GOOD.replace("a.png,Ulna,\n", "a.png,Ulna\n"),
            "line 3: the row has 2 fields, but must have 3 (image_name, cl",
        ),
        (GOOD.replace("a.png,Ulna,\n", "\na.png,Ulna,\n"), "line 3: the row has 0 fields, but must have 3"),
        (
            GOOD.replace("a.png,Ulna,\n", 'a.png,"Ulna"x,\n'),
            "s.csv, line 3: ',' expected after '\"', so this is not CSV",
        ),
        (GOOD + '"', "line 8: unexpected end of data, so this is not CSV: write it again."),
        (
            HEAD + "".join(A[:1] + A[2:] + B),
            "line 3: class 'Capitate' of image 'a.png' came where 'Ulna' should, which",
        ),
        (HEAD + "".join(A[::-1] + B), "line 2: class 'Capitate' of image 'a.png' came where 'Radius' should"),
        (HEAD + "".join(A[:2] + B), "line 4: image 'a.png' ends after 2 of 3 classes, 'Capitate' is missing"),
        (HEAD + "".join(A + B[:2]), "line 7: image 'b.png' ends after 2 of 3 classes, 'Capitate' is missing"),
        (
            HEAD + "".join(A + A[2:] + B),
            "line 5: class 'Capitate' of image 'a.png' is there twice, but must be there on",
        ),
        (HEAD + "".join(A + A + B), "line 5: class 'Radius' of image 'a.png' is there twice"),
        (
            GOOD.replace("b.png,Ulna", "b.png,ulna"),
            "line 6: class 'ulna' of image 'b.png' is unknown, but must be one of ",
        ),
        (
            GOOD + "b.png,Lunate,\n",
            "line 8: class 'Lunate' of image 'b.png' is unknown, but must be one of 3 from 'Rad",
        ),
        (
            HEAD + "".join(A + B + A),
            "line 8: image 'a.png' begins again, but the rows of an image must follow each other",
        ),
    ],
)
def test_reader_refuses(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "s.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FileProblem, match=re.escape(sentence)) as caught:
        list(read_submission(path, CLASSES))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_reader_takes_the_first_images_classes_for_all(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text(HEAD + "".join(A + B[:2]))
    reader = read_submission(path)
    assert tuple(next(reader).rles) == CLASSES
    with pytest.raises(FileProblem, match=r"image 'b\.png' ends after 2 of 3 classes, 'Capitate' is missing"):
        next(reader)


def test_reader_refuses_what_is_no_text_file(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_bytes(HEAD.encode() + b"\xbb\xe7.png,Radius,\n")
    with pytest.raises(FileProblem, match=r"s\.csv is not UTF-8 text"):
        list(read_submission(tmp_path / "s.csv"))
    with pytest.raises(FileProblem, match=r"none\.csv cannot be read \(No such file or directory\)"):
        list(read_submission(tmp_path / "none.csv"))
    with pytest.raises(FileProblem, match="cannot be read"):
        list(read_submission(tmp_path))
    with pytest.raises(FileProblem, match="class 1 and class 2 are both named 'Ulna'"):
        list(read_submission(tmp_path / "s.csv", ["Ulna", "Ulna"]))


def test_fields_beyond_the_csv_modules_default_limit(tmp_path: Path) -> None:
    noise = np.zeros((1, 300, 300), bool)
    noise[:, :, ::2] = True
    with SubmissionWriter(tmp_path / "s.csv", ["noise.png"], ["bone"]) as writer:
        writer.write("noise.png", pack(noise))
    (image,) = read_submission(tmp_path / "s.csv")
    assert len(image.rles["bone"]) > 131_072
    assert check_submission(tmp_path / "s.csv", Rules(("bone",), sizes=(300, 300))).runs == 45_000
