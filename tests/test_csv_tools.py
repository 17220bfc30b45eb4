"""compare_csv, score_csv, csv_to_masks, masks_to_csv, visualize_csv and what they stand on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import pack

from config import HAND_BONES
from dataset.labels import rasterise, read_polygons
from dataset.readers import Record, read_competition
from engine.files import FileProblem
from engine.rle import decode_bits, runs_of_bits
from inference.csv_masks import FolderMasks, by_name, open_masks, unique_stems
from inference.csv_scores import count_runs, score_submission
from inference.mask_files import write_masks
from inference.metrics import DiceTable, count_bits, dice_from_counts
from inference.submission import SubmissionWriter
from scripts import compare_csv, csv_to_masks, masks_to_csv, score_csv, visualize_csv

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ("Radius", "Ulna", "Capitate")
HEAD = "image_name,class,rle\n"
A = ["a.png,Radius,1 2 20 1\n", "a.png,Ulna,\n", "a.png,Capitate,3 4\n"]
B = ["b.png,Radius,18 1\n", "b.png,Ulna,1 18\n", "b.png,Capitate,\n"]
GOOD = HEAD + "".join(A + B)

BAD = {
    "a missing row": (HEAD + "".join(A + B[:2]), "line 7: image 'b.png' ends after 2 of 3 classes"),
    "an odd count": (GOOD.replace("3 4", "3 4 9"), "line 4, image 'a.png', class 'Capitate': RLE ends with the st"),
    "overlapping runs": (GOOD.replace("3 4", "3 4 6 1"), "class 'Capitate': RLE holds a run from pixel 6 after one"),
    "NaN": (GOOD.replace("3 4", "NaN"), "class 'Capitate': RLE holds 'NaN', but starts and lengths must be whole"),
    "another header": (GOOD.replace("rle", "mask"), "line 1: the header is 'image_name,class,mask', but must be"),
    "no images": (HEAD, "holds no images, only a header"),
}
"""Text of a CSV -> what each tool says of it."""


def csv_file(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def truth(record: Record) -> NDArray[np.int32]:
    assert record.label is not None
    return rasterise(read_polygons(record.label, HAND_BONES), HAND_BONES, 128, 128, "")


def write_shifted(path: Path, records: Sequence[Record], shift: int) -> Path:
    """The labels of the records, moved to the right, with one mask missing."""
    with SubmissionWriter(path, [record.name for record in records], HAND_BONES) as writer:
        for record in records:
            bits = np.roll(truth(record), shift, 2)
            bits[0] &= ~np.int32(1 << 7)
            writer.write(record.name, bits)
    return path


@pytest.fixture(scope="module")
def records(phantom_root: Path) -> list[Record]:
    return read_competition(phantom_root, "test")


@pytest.fixture(scope="module")
def shifted(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shifted(tmp_path_factory.mktemp("csv") / "shifted.csv", records, 2)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 40), st.sampled_from([0, 0.1, 0.5, 1]), st.integers())
def test_counts_of_runs_equal_counts_of_masks(height: int, width: int, k: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed % 2**32)
    pred, true = (pack(rng.random((k, height, width)) < share) for _ in range(2))
    counts = count_runs(runs_of_bits(pred, k), runs_of_bits(true, k))
    np.testing.assert_array_equal(counts, count_bits(pred, true, k))
    assert counts.dtype == np.int64


def test_touching_runs_count_as_joined_ones() -> None:
    one, parts = np.array([[0, 6]]), np.array([[0, 2], [2, 3], [3, 6]])
    assert count_runs([parts, one], [one, parts]).tolist() == [[6, 6], [6, 6], [6, 6]]


def test_a_submission_scores_as_inference_scores_it(records: list[Record], shifted: Path) -> None:
    expected = DiceTable(HAND_BONES)
    for record in records:
        true = truth(record)
        pred = np.roll(true, 2, 2)
        pred[0] &= ~np.int32(1 << 7)
        expected.add(record.key, dice_from_counts(count_bits(pred, true, 29)))
    table = score_submission(shifted, records, HAND_BONES)
    assert table.names() == expected.names() and table.mean() == expected.mean()
    np.testing.assert_array_equal(table.per_class(), expected.per_class())


def test_score_against_labels_from_everywhere(
    records: list[Record], shifted: Path, phantom_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.csv"
    with SubmissionWriter(labels, [record.name for record in records], HAND_BONES) as writer:
        for record in records:
            writer.write(record.name, truth(record))
            write_masks(tmp_path / "packed", record.image.stem, truth(record), HAND_BONES, "packed")
    outputs = []
    for flags in (["--data_root", phantom_root], ["--labels", labels], ["--labels", tmp_path / "packed"]):
        folder = tmp_path / f"out{len(outputs)}"
        assert score_csv.main([str(shifted), *map(str, flags), "--worst", "2", "--output", str(folder)]) == 0
        outputs.append(capsys.readouterr().out.replace(str(folder), "out"))
        assert {path.name for path in folder.iterdir()} == {"per_class.csv", "images.csv"}
    assert outputs[0] == outputs[1] == outputs[2]
    table = score_submission(shifted, records, HAND_BONES)
    assert outputs[0].startswith(table.text() + f"\nDice {table.mean():.4f} of {shifted} over 4 images\nworst images")
    read = DiceTable.from_images_csv(tmp_path / "out0" / "images.csv")
    np.testing.assert_array_equal(read.per_class(), table.per_class())
    assert (tmp_path / "out0" / "per_class.csv").read_text().startswith("class,mean,std,min,worst_image\nfinger-1,")


def test_compare_pairs_by_key_and_not_by_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = csv_file(tmp_path / "a.csv", GOOD)
    other_order = [*(B[k].replace("1 18", "1 9") for k in (2, 0, 1)), *(A[k] for k in (2, 0, 1))]
    second = csv_file(tmp_path / "b.csv", HEAD + "".join(other_order))
    output = tmp_path / "out.csv"
    assert compare_csv.main([str(first), str(second), "--output", str(output)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "class       mean     min  image",
        "Radius    1.0000  1.0000  a.png",
        "Ulna      0.8333  0.6667  b.png",
        "Capitate  1.0000  1.0000  a.png",
        f"Dice 0.9444 between {first} and {second} over 2 images",
        "most different images (mean, lowest class):",
        "  b.png  0.8889  (Ulna 0.6667)",
        "  a.png  1.0000  (Radius 1.0000)",
        f"per image:  {output}",
    ]
    assert output.read_text().startswith("image,Radius,Ulna,Capitate\na.png,1.0,1.0,1.0\nb.png,1.0,0.66666")
    assert compare_csv.main([str(first), str(second), "--output", str(output)]) == 1
    assert f"{output} exists and is never overwritten" in capsys.readouterr().err


def test_images_of_one_file_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = csv_file(tmp_path / "a.csv", GOOD), csv_file(tmp_path / "b.csv", HEAD + "".join(B))
    for pair in ([first, second], [second, first]):
        assert compare_csv.main(list(map(str, pair))) == 1
        message = f"{second} has no image 'a.png' of {first} (1 of 2 in all): add what is missing, or give --common"
        assert message in capsys.readouterr().err
        assert compare_csv.main([*map(str, pair), "--common", "--worst", "0"]) == 0
        assert "over 1 images" in capsys.readouterr().out
    third = csv_file(tmp_path / "c.csv", HEAD + "".join(A))
    assert compare_csv.main([str(second), str(third), "--common"]) == 1
    assert "have no image in common" in capsys.readouterr().err
    assert score_csv.main([str(third), "--labels", str(first), "--classes", *CLASSES]) == 1
    assert f"{third} has no image 'b.png'" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "sentence"), BAD.values(), ids=list(BAD))
def test_each_tool_has_a_sentence_for_a_bad_csv(
    text: str, sentence: str, tmp_path: Path, phantom_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = str(csv_file(tmp_path / "bad.csv", text)), str(csv_file(tmp_path / "good.csv", GOOD))
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((6, 6), np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((6, 6), np.uint8))
    out = str(tmp_path / "out")
    for main, flags in (
        (compare_csv.main, [bad, good]),
        (compare_csv.main, [good, bad]),
        (score_csv.main, [bad, "--labels", good, "--classes", *CLASSES]),
        (csv_to_masks.main, [bad, "--output", out, "--height", "6", "--width", "6"]),
        (visualize_csv.main, [bad, "--images", str(tmp_path), "--output", out]),
        (visualize_csv.main, [good, "--images", str(tmp_path), "--output", out, "--against", bad]),
    ):
        assert main(flags) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"error: {bad}") and sentence in said and said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "bad.csv", "good.csv"]


def test_masks_of_another_size(tmp_path: Path, records: list[Record], shifted: Path, phantom_root: Path) -> None:
    bad = csv_file(tmp_path / "bad.csv", shifted.read_text().replace("finger-1,", "finger-1,16384 2 ", 1))
    with pytest.raises(FileProblem, match=r"line 2, image .*, class 'finger-1': RLE holds .*16384"):
        score_submission(bad, records, HAND_BONES)
    write_masks(tmp_path / "masks", records[0].image.stem, pack(np.zeros((29, 9, 8), bool)), HAND_BONES, "packed")
    masks = open_masks(tmp_path / "masks", "test", HAND_BONES)
    with pytest.raises(FileProblem, match=r"npz is for 8 x 9 px, but the image has 16384 px in all: give masks of its"):
        masks.runs(records[0].name, 128 * 128)
    with pytest.raises(FileProblem, match=r"json is for 128 x 128 px, but the image has 72 px in all"):
        open_masks(phantom_root, "test", HAND_BONES).runs(records[0].name, 72)


def test_other_classes(tmp_path: Path, shifted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = csv_file(tmp_path / "good.csv", GOOD)
    other = csv_file(tmp_path / "other.csv", GOOD.replace("Ulna", "ulna"))
    assert compare_csv.main([str(good), str(other)]) == 1
    assert f"{other}, line 3: class 'ulna' of image 'a.png' is unknown, but must be one of 3" in capsys.readouterr().err
    lacking = csv_file(tmp_path / "lacking.csv", HEAD + "".join(A[:2] + B))
    assert score_csv.main([str(lacking), "--labels", str(good), "--classes", *CLASSES]) == 1
    assert f"{lacking}, line 4: image 'a.png' ends after 2 of 3 classes, 'Capitate' is" in capsys.readouterr().err


def test_pictures(
    records: list[Record], shifted: Path, phantom_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ["--images", str(phantom_root / "test" / "DCM")]
    assert visualize_csv.main([str(shifted), *images, "--output", str(tmp_path / "one"), "--limit", "2"]) == 0
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == sorted(r.name for r in records[:2])
    for number, against in enumerate((phantom_root, shifted)):
        flags = ["--names", records[1].name, "--against", str(against), "--output", str(tmp_path / f"two{number}")]
        assert visualize_csv.main([str(shifted), *images, *flags]) == 0
    one, labels, same = (
        cv2.imread(str(tmp_path / folder / records[1].name)) for folder in ("one", "two0", "two1")
    )
    assert one.shape == (1024, 1024, 3) and labels.shape == same.shape == (1024, 2048, 3)
    title = 40  # rows of the titles
    left, right = np.split(same[title:], 2, axis=1)
    np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(right, one[title:])
    np.testing.assert_array_equal(labels[title:, 1024:], one[title:])
    assert (labels[title:, :1024] != one[title:]).any(), "the labels lie elsewhere"
    assert visualize_csv.main([str(shifted), *images, "--output", str(tmp_path / "one")]) == 1
    assert "one exists and is never overwritten" in capsys.readouterr().err


def test_pictures_need_their_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = csv_file(tmp_path / "a.csv", GOOD)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 5), np.uint8))
    flags = [str(csv), "--images", str(tmp_path), "--output", str(tmp_path / "out")]
    assert visualize_csv.main(flags) == 1
    assert "'b.png' (1 in all) is not in the images given: leave it out by --names." in capsys.readouterr().err
    assert csv_to_masks.main(flags) == 1
    assert "holds 'b.png', which is none of the images given" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert visualize_csv.main([*flags, "--names", "a.png"]) == 0


@pytest.mark.parametrize(
    ("main", "flags", "message"),
    [
        (compare_csv.main, ["a.csv", "b.csv", "--worst", "-1"], "worst is -1, but must be 0 or more."),
        (score_csv.main, ["a.csv"], "labels come from data_root or from labels, but none is given: give one of them."),
        (score_csv.main, ["a.csv", "--data_root", "x", "--labels", "y"], "but both are given"),
        (score_csv.main, ["a.csv", "--data_root", "x", "--worst", "-1"], "worst is -1"),
        (csv_to_masks.main, ["a.csv", "--height", "0"], "the size is 2048 x 0 px"),
        (csv_to_masks.main, ["a.csv", "--height", "5", "--images", "x"], "leave --height and --width out"),
        (masks_to_csv.main, ["m", "--like", "a.csv", "--images", "x"], "like and the images both say"),
        (visualize_csv.main, ["a.csv"], "images come from data_root or from images, but none is given"),
        (visualize_csv.main, ["a.csv", "--limit", "-1"], "limit is -1"),
    ],
)
def test_wrong_flags(main: object, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(main)
    with pytest.raises(SystemExit) as left:
        main(flags)
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_a_wrong_name(shifted: Path, phantom_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        visualize_csv.main([str(shifted), "--data_root", str(phantom_root), "--names", "nobody"])
    assert left.value.code == 2 and "names: 'nobody' is no image of" in capsys.readouterr().err


def test_sources_refuse_what_they_cannot_tell_apart(tmp_path: Path, phantom_root: Path) -> None:
    with pytest.raises(FileProblem, match=r"nothing does not exist: give a CSV, a folder of masks, or the folder of a"):
        open_masks(tmp_path / "nothing", "test", CLASSES)
    with pytest.raises(FileProblem, match="is a competition tree without val/DCM: give another --split"):
        open_masks(phantom_root, "val", CLASSES)
    twins = [Record(Path(f"{subject}/a.png"), None, subject) for subject in ("x", "y")]
    with pytest.raises(FileProblem, match=r"x/a\.png and y/a\.png have one name, and a CSV tells images by their"):
        by_name(twins)
    with pytest.raises(FileProblem, match=r"x\.csv: 'a\.png' and 'a\.jpg' would share files of one name"):
        unique_stems(["a.png", "a.jpg"], Path("x.csv"))
    with pytest.raises(FileProblem, match=r"a\.png has no label \(2 images in all\), so it has no Dice: add it\."):
        score_submission(csv_file(tmp_path / "a.csv", GOOD), twins, CLASSES)
    write_masks(tmp_path / "m", "a", decode_bits(["", "", ""], 4, 5), CLASSES, "packed")
    assert FolderMasks(tmp_path / "m", CLASSES, ["a.tif", "b.png"]).names == ("a.tif",)


TOOLS = ("compare_csv", "score_csv", "check_csv", "csv_to_masks", "masks_to_csv", "visualize_csv")


@pytest.mark.parametrize("name", TOOLS)
def test_runs_by_path_from_anywhere_and_help_waits_for_nothing(name: str, tmp_path: Path) -> None:
    script = [sys.executable, "-X", "importtime", str(ROOT / "scripts" / f"{name}.py"), "--help"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "Exit codes" in done.stdout and "tyro" in imported
    assert not {"torch", "numpy", "numba", "cv2"} & imported


def test_no_tool_imports_torch() -> None:
    modules = "csv_check, inference.csv_masks, inference.csv_scores, inference.mask_files, inference.overlay"
    code = f"import sys, inference.{modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
