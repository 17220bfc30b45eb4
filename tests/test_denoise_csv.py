"""scripts/denoise_csv.py: the steps of a CSV are those of its masks, and what is wrong gets its sentence."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from reference import pack

from engine.rle import decode_bits
from inference.post_process import apply, parse_steps
from inference.submission import SubmissionWriter, read_submission
from scripts import denoise_csv

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "denoise_csv.py"
CLASSES = ("Radius", "Ulna", "Pisiform")
SIZES = {"a.png": (20, 30), "b.png": (24, 16)}
Masks = NDArray[np.bool_]


def masks_of(name: str) -> Masks:
    """A bone in every class, with a hole and a speck in Radius; Ulna is missing in b.png, Pisiform is split."""
    masks = np.zeros((3, *SIZES[name]), bool)
    masks[:, 4:11, 3:12] = True
    masks[0, 6, 6] = False
    masks[0, 15, 1] = True
    masks[1] &= name != "b.png"
    masks[2, 15:18, 9:13] = name == "b.png"
    return masks


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.csv"
    with SubmissionWriter(path, list(SIZES), CLASSES) as writer:
        for name in SIZES:
            writer.write(name, pack(masks_of(name)))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for number, (name, size) in enumerate(SIZES.items()):
        (folder / f"ID{number}").mkdir(parents=True)
        cv2.imwrite(str(folder / f"ID{number}" / name), np.zeros(size, np.uint8))
    return folder


def run(source: Path, *flags: str) -> int:
    return denoise_csv.main([str(source), "--output", str(source.parent / "out.csv"), *flags])


def failure(capsys: pytest.CaptureFixture[str], source: Path, *flags: str) -> str:
    """The sentence of a command that fails and leaves nothing behind."""
    before = sorted(source.parent.iterdir())
    try:
        assert run(source, *flags) == 1
    except SystemExit as left:
        assert left.code == 2
    assert sorted(source.parent.iterdir()) == before
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


def test_masks_are_those_of_the_steps(source: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["min_area=5,Pisiform=20", "fill_holes", "one_bone"]
    report = source.parent / "bones.csv"
    assert run(source, "--images", str(images), "--report", str(report), "--steps", *texts) == 0
    for image in read_submission(source.parent / "out.csv", CLASSES):
        expected, _ = apply(pack(masks_of(image.name)), CLASSES, parse_steps(texts, CLASSES))
        np.testing.assert_array_equal(decode_bits(list(image.rles.values()), *SIZES[image.name]), expected)
    assert report.read_text() == "image_name,class,what,components,areas\nb.png,Ulna,missing,0,\n"
    assert capsys.readouterr().out.splitlines() == [
        f"{source.parent / 'out.csv'}: 2 images, 3 of 6 rows changed (50.0%)",
        "class       rows  removed px  added px",
        "Radius         2           2         2",
        "Pisiform       1          12         0",
        "one_bone: bones missing: 1, split: 0, in 1 images; most often Ulna (1)",
    ]


def test_masks_that_do_not_change_keep_their_text(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = source.read_text().replace("b.png,Ulna,", "b.png,Ulna,1 2 3 1")  # touching runs
    with open(source, "w", newline="") as file:  # as others write CSV
        csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows(csv.reader(io.StringIO(plain)))
    assert run(source, "--height", "20", "--width", "30", "--steps", "min_area=1") == 0
    assert (source.parent / "out.csv").read_bytes() == plain.encode()
    assert capsys.readouterr().out.endswith("0 of 6 rows changed (0.0%)\nno mask has changed\n")


def test_it_runs_by_path_from_anywhere(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(source), "--output", "out.csv", "--steps", "largest", "--width", "30"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("out.csv: 2 images, ") and not done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "min_aera=5"], "step 'min_aera=5' is unknown (did you mean min_area?)"),
        (["--steps", "min_area=5,Pisifrom=2"], "'Pisifrom' is none of the classes (did you mean Pisiform?)"),
        (["--steps", "hysteresis=0.3"], "hysteresis needs probabilities, and a CSV has none"),
        (["--steps"], "steps is empty: give what is to be done"),
        (["--steps", "largest", "--height", "0"], "height is 0, but must lie between 1 and 65536 px."),
        (["--steps", "largest", "--width", "70000"], "width is 70000, but must lie between 1 and 65536 px."),
        (["--steps", "largest", "--report", "{}/x.csv"], "report holds what one_bone finds, which is none of"),
        (["--steps", "one_bone", "--report", "{}/out.csv"], "output and report are both {}/out.csv: give two files."),
        (["--steps", "one_bone", "--report", "{}/in.csv"], "{}/in.csv exists and is never overwritten"),
        (["--steps", "largest", "--height", "2", "--width", "3"], "in.csv, line 2, image 'a.png', class 'Radius': RLE"),
        (["--steps", "largest", "--images", "{}/none"], "{}/none does not exist"),
    ],
)
def test_wrong_flags(flags: list[str], message: str, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = source.parent
    assert message.format(folder) in failure(capsys, source, *(flag.format(folder) for flag in flags))


def test_images_that_are_missing_or_there_twice(
    source: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--images", str(images), "--steps", "largest")
    (images / "ID1" / "b.png").rename(images / "ID1" / "a.png")
    assert "a.png have one name: give a folder that holds the right one only" in failure(capsys, source, *flags)
    (images / "ID1" / "a.png").unlink()
    assert f"{images} lacks 1 of 2 images, such as 'b.png'" in failure(capsys, source, *flags)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("image_name,class,rle", "image,class,rle", "line 1: the header is 'image,class,rle'"),
        ("b.png,Ulna,\n", "", "line 6: class 'Pisiform' of image 'b.png' came where 'Ulna' should"),
        ("b.png,Ulna,\n", "b.png,Ulan,\n", "line 6: class 'Ulan' of image 'b.png' is unknown"),
        ("b.png,Ulna,\n", "b.png,Ulna,5\n", "line 6, image 'b.png', class 'Ulna': RLE ends with the start 5"),
        ("b.png,Ulna,\n", "b.png,Ulna,nan\n", "line 6, image 'b.png', class 'Ulna': RLE holds 'nan'"),
        ("b.png,Ulna,\n", "b.png,Ulna,1 5 3 2\n", "line 6, image 'b.png', class 'Ulna': RLE holds a run from pixel 3"),
    ],
)
def test_bad_csvs(old: str, new: str, message: str, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source.write_text(source.read_text().replace(old, new))
    assert message in failure(capsys, source, "--height", "24", "--width", "30", "--steps", "largest")


def test_an_output_that_exists_is_kept(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source.parent / "out.csv").write_text("mine")
    assert "out.csv exists and is never overwritten" in failure(capsys, source, "--steps", "largest")
    assert (source.parent / "out.csv").read_text() == "mine"


def test_help_waits_for_nothing_and_work_not_for_torch(source: Path) -> None:
    code = (
        "import sys; from scripts import denoise_csv; print({'numpy', 'numba', 'cv2', 'torch'} & set(sys.modules)); "
        f"denoise_csv.main([{str(source)!r}, '--output', {str(source.parent / 'out.csv')!r}, '--steps', 'convex']); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    first, *_, last = done.stdout.splitlines()
    assert (first, last) == ("set()", "False")
