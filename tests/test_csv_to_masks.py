"""csv_to_masks, masks_to_csv and inference/mask_files.py: there and back again, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from config import HAND_BONES
from dataset.labels import rasterise, read_polygons
from dataset.readers import Record, read_competition
from engine.files import FileProblem
from engine.rle import decode_bits
from inference.mask_files import whole_folder, write_masks
from inference.submission import SubmissionWriter
from scripts import csv_to_masks, masks_to_csv

CLASSES = ("Radius", "Ulna", "Capitate")
HEAD = "image_name,class,rle\n"
A = ["a.png,Radius,1 2 20 1\n", "a.png,Ulna,\n", "a.png,Capitate,3 4\n"]
GOOD = HEAD + "".join([*A, "b.png,Radius,18 1\n", "b.png,Ulna,1 18\n", "b.png,Capitate,\n"])


def csv_file(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def records(phantom_root: Path) -> list[Record]:
    return read_competition(phantom_root, "test")


@pytest.fixture(scope="module")
def hands(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The labels as a CSV."""
    path = tmp_path_factory.mktemp("csv") / "hands.csv"
    with SubmissionWriter(path, [record.name for record in records], HAND_BONES) as writer:
        for record in records:
            assert record.label is not None
            polygons = read_polygons(record.label, HAND_BONES)
            writer.write(record.name, rasterise(polygons, HAND_BONES, 128, 128, ""))
    return path


@pytest.mark.parametrize("kind", ["class", "packed"])
def test_round_trip_is_byte_identical(
    kind: str, hands: Path, records: list[Record], phantom_root: Path, tmp_path: Path
) -> None:
    masks, source = tmp_path / "masks", ["--data_root", str(phantom_root)]
    assert csv_to_masks.main([str(hands), "--output", str(masks), "--format", kind, *source]) == 0
    suffix = "" if kind == "class" else ".npz"
    assert {path.name for path in masks.iterdir()} == {f"{record.image.stem}{suffix}" for record in records}
    for number, flags in enumerate((source, ["--like", str(hands)])):
        back = tmp_path / f"back{number}.csv"
        assert masks_to_csv.main([str(masks), "--output", str(back), *flags]) == 0
        assert back.read_bytes() == hands.read_bytes()
    again = tmp_path / "again"
    flags = ["--format", kind, "--height", "128", "--width", "128"]
    assert csv_to_masks.main([str(back), "--output", str(again), *flags]) == 0
    files = [path.relative_to(masks) for path in sorted(masks.rglob("*")) if path.is_file()]
    assert len(files) == (116 if kind == "class" else 4)
    assert all((masks / path).read_bytes() == (again / path).read_bytes() for path in files)


def test_masks_without_a_list_are_pngs_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv, masks, back = csv_file(tmp_path / "a.csv", GOOD), str(tmp_path / "m"), tmp_path / "back.csv"
    assert csv_to_masks.main([str(csv), "--output", masks, "--height", "4", "--width", "5"]) == 0
    mask = cv2.imread(f"{masks}/a/Radius.png", cv2.IMREAD_UNCHANGED)
    assert mask.shape == (4, 5) and mask.ravel()[[0, 1, 2, 19]].tolist() == [255, 255, 0, 255]
    assert masks_to_csv.main([masks, "--output", str(back), "--classes", *CLASSES]) == 0
    assert back.read_text() == GOOD
    assert masks_to_csv.main([masks, "--output", str(back), "--classes", *CLASSES]) == 1
    assert f"{back} exists and is never overwritten" in capsys.readouterr().err and back.read_text() == GOOD


def spoil(masks: Path, what: str) -> None:
    """Make a folder of masks wrong in one way."""
    if what == "missing class":
        (masks / "a" / "Ulna.png").unlink()
    elif what == "unknown class":
        (masks / "a" / "Ulan.png").write_bytes((masks / "a" / "Ulna.png").read_bytes())
    elif what == "other size":
        cv2.imwrite(str(masks / "a" / "Ulna.png"), np.zeros((5, 4), np.uint8))
    elif what == "grey":
        cv2.imwrite(str(masks / "a" / "Ulna.png"), np.arange(20, dtype=np.uint8).reshape(4, 5))
    elif what == "unknown file":
        (masks / "notes.txt").write_text("?")
    elif what == "no png":
        (masks / "a" / "notes.txt").write_text("?")
    elif what == "damaged":
        (masks / "b.npz").write_bytes(b"PK")
    elif what == "twice":
        write_masks(masks, "a", decode_bits(["", "", ""], 4, 5), CLASSES, "packed")
    elif what == "other image":
        (masks / "a").rename(masks / "c")
    elif what == "missing image":
        (masks / "b.npz").unlink()


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("missing class", "m/a: class 'Ulna' (1 in all) is missing, but an empty mask must be there too"),
        ("unknown class", "m/a: 'Ulan' is no class (did you mean Ulna?)"),
        ("other size", "m/a/Ulna.png is 4 x 5 px, but Capitate.png beside it 5 x 4: masks of one image must have its"),
        ("grey", "m/a/Ulna.png has more than two grey values, so it is no mask"),
        ("unknown file", "m/notes.txt is neither a folder of class PNGs nor a packed .npz: move it away."),
        ("no png", "m/a/notes.txt is no PNG of a class: move it away."),
        ("damaged", "m/b.npz holds no packed masks ("),
        ("twice", "m/a and {}/m/a.npz are both masks of 'a.png': remove one."),
        ("other image", "m has no masks of image 'a.png' (1 in all): add them."),
        ("missing image", "m has no masks of image 'b.png' (1 in all): add them."),
    ],
)
def test_masks_to_csv_refuses(what: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    like, masks = csv_file(tmp_path / "like.csv", GOOD), tmp_path / "m"
    write_masks(masks, "a", decode_bits(["1 2", "", ""], 4, 5), CLASSES, "class")
    write_masks(masks, "b", decode_bits(["1 2", "", ""], 4, 5), CLASSES, "packed")
    spoil(masks, what)
    out = tmp_path / "out.csv"
    assert masks_to_csv.main([str(masks), "--output", str(out), "--like", str(like), "--classes", *CLASSES]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}/{sentence.format(tmp_path)}") and said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["like.csv", "m"], "nothing is written"


def test_masks_of_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    like = csv_file(tmp_path / "like.csv", HEAD + "".join(A))
    for stem in "ac":
        write_masks(tmp_path / "m", stem, decode_bits(["", "", ""], 4, 5), CLASSES, "packed")
    flags = ["--output", str(tmp_path / "out.csv"), "--classes", *CLASSES]
    assert masks_to_csv.main([str(tmp_path / "m"), *flags, "--like", str(like)]) == 1
    assert "m has masks of 'c.png' (1 in all), which is no image here: remove them." in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert masks_to_csv.main([str(tmp_path / "empty"), *flags]) == 1
    assert "empty holds no masks: give a folder as --save_masks" in capsys.readouterr().err


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--output", str(tmp_path / "m" / "x"), "--height", "4", "--width", "5"]
    for number, text in enumerate((GOOD.replace("Ulna", "../Ulna"), GOOD.replace("b.png", ".."))):
        bad = csv_file(tmp_path / f"{number}.csv", text)
        assert csv_to_masks.main([str(bad), *flags]) == 1
        assert "can't be the name of a file: rename the image or the class." in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["0.csv", "1.csv", "m"]


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "x") as folder:
        (folder / "a").write_text("a")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with whole_folder(tmp_path / "x") as folder:
        (folder / "a").write_text("a")
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "a"]
    with pytest.raises(FileProblem, match="x exists and is never overwritten"), whole_folder(tmp_path / "x"):
        pass
