"""inference/part_file.py: how images are shared, and what of a part is kept after a kill."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from test_inference_kill import CLASSES, NAMES, RECORDS, prediction

from engine.files import FileProblem
from inference.part_file import ALL, Part, PartFile, join_findings, whole_findings, whole_images
from inference.post_process import FINDINGS_HEADER, finding_rows


@examples(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 50))
def test_parts_are_contiguous_and_equally_long(n: int, count: int) -> None:
    parts = [Part(index, count).of_list(n) for index in range(count)]
    assert [i for part in parts for i in part] == list(range(n))
    assert [len(part) for part in parts] == sorted(map(len, parts), reverse=True)
    assert len(parts[0]) - len(parts[-1]) <= 1


def test_shards_count_from_one() -> None:
    assert Part.of("") == ALL == Part(0, 1)
    assert Part.of("2/4") == Part(1, 4) and str(Part.of("2/4")) == "part 2 of 4"
    assert Part(1, 4).csv(Path("x")) == Path("x/part-0002-of-0004.csv")


def part_bytes() -> tuple[bytes, list[int]]:
    """The CSV of a part, and where in it the header and each image end."""
    text, ends = io.StringIO(newline=""), []
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("image_name", "class", "rle"))
    for name in NAMES:
        ends.append(len(text.getvalue().encode()))
        rows.writerows((name, label, rle) for label, rle in zip(CLASSES, ("1 20 40 7", "", "12 3"), strict=True))
    return text.getvalue().encode(), [*ends, len(text.getvalue().encode())]


@examples(derandomize=True, max_examples=100, deadline=None)
@given(st.integers(0, len(part_bytes()[0])), st.sampled_from([b"", b"\0" * 40, b"b.png,Ulna,1 2\n"]))
def test_a_torn_tail_is_dropped_and_whole_images_stay(
    tmp_path_factory: pytest.TempPathFactory, cut: int, after: bytes
) -> None:
    """Also where the file system has filled up the end of a file with something else."""
    data, ends = part_bytes()
    path = tmp_path_factory.getbasetemp() / "part.csv"
    path.write_bytes(data[:cut] + after)
    count = sum(end <= cut for end in ends) - 1
    assert whole_images(path, NAMES, CLASSES) == ((count, ends[count]) if count >= 0 else (0, 0))


@pytest.mark.parametrize(
    ("old", "new"),
    [("Ulna", "Radius"), ("뼈.bmp", "x.bmp"), ("12 3", "12"), ("1 20", "5 20 6"), ("12 3", "NaN"), ("12 3", "12 3,")],
)
def test_an_image_that_is_not_as_written_ends_what_is_kept(old: str, new: str, tmp_path: Path) -> None:
    data, ends = part_bytes()
    third = data[ends[2] : ends[3]].decode().replace(old, new, 1).encode()
    (tmp_path / "part.csv").write_bytes(data[: ends[2]] + third + data[ends[3] :])
    assert whole_images(tmp_path / "part.csv", NAMES, CLASSES) == (2, ends[2])


LISTS = {"bones": FINDINGS_HEADER}


def write_part(folder: Path, part: Part = ALL) -> None:
    mine = part.of_list(len(RECORDS))
    with PartFile(folder, part, [NAMES[i] for i in mine], CLASSES, LISTS) as file:
        for i in mine:
            found = prediction(RECORDS[i])
            file.append(NAMES[i], found.bits, {"bones": finding_rows(NAMES[i], found.findings)})
        file.end()


def test_findings_of_parts_are_those_of_the_whole(tmp_path: Path) -> None:
    parts = [Part(index, 3) for index in range(3)]
    for part in (ALL, *parts):
        write_part(tmp_path, part)
        assert part.done(tmp_path).exists()
    join_findings([part.list_of(tmp_path, "bones") for part in parts], FINDINGS_HEADER, tmp_path / "joined.csv")
    assert (tmp_path / "joined.csv").read_bytes() == ALL.list_of(tmp_path, "bones").read_bytes()


def test_findings_stay_with_the_images_that_are_kept(tmp_path: Path) -> None:
    path = ALL.list_of(tmp_path, "bones")
    assert whole_findings(path, FINDINGS_HEADER, NAMES) == 0, "there is no file"
    write_part(tmp_path)
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    ends = np.cumsum([len(line) for line in lines]).tolist()
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        assert whole_findings(path, FINDINGS_HEADER, NAMES) == max([end for end in ends if end <= cut], default=0)
    path.write_bytes(data)
    for kept in range(len(NAMES) + 1):
        rows = csv.reader(line.decode() for line in lines)
        mine = [row[0] in ("image_name", *NAMES[:kept]) for row in rows]
        assert mine == sorted(mine, reverse=True)
        assert whole_findings(path, FINDINGS_HEADER, NAMES[:kept]) == ends[sum(mine) - 1]


def test_rows_that_do_not_decode_to_the_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.submission.encode_bits", lambda bits, n_classes: ["1 1"] * n_classes)
    with PartFile(tmp_path, ALL, NAMES, CLASSES, {}) as file:
        with pytest.raises(FileProblem, match=r"the RLE of image 'b\.png' does not decode to its masks"):
            file.append("b.png", prediction(RECORDS[0]).bits, {})
        assert file.written == 0
    assert whole_images(ALL.csv(tmp_path), NAMES, CLASSES) == (0, 21)
