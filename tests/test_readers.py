"""dataset/readers.py: files paired by path, images left out by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from config import ConfigProblem
from dataset.readers import KNOWN_BAD_LABELS, Record, leave_out, pair_competition, read_competition, read_folder
from engine.files import FileProblem


def tree(root: Path, keys: list[str], split: str = "train", labels: bool = True) -> None:
    for key in keys:
        for folder, suffix in (("DCM", ".png"), *((("outputs_json", ".json"),) if labels else ())):
            path = root / split / folder / f"{key}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def records_of(*subjects: int) -> list[Record]:
    return [Record(Path(f"ID{s:03}/image{s}{side}.png"), None, f"ID{s:03}") for s in subjects for side in "ab"]


def test_competition_tree(tmp_path: Path) -> None:
    keys = ["ID002/image2_L", "ID001/image1", "ID001/image0_R", "ID010/image.with.dots"]
    tree(tmp_path, keys)
    (tmp_path / "train/DCM/ID001/.hidden.png").touch()
    (tmp_path / "train/DCM/ID001/notes.txt").touch()
    records = read_competition(tmp_path, "train")
    assert [r.key for r in records] == sorted(keys)
    for record in records:
        assert record.label is not None and record.label.stem == record.image.stem
        assert record.label.parent.name == record.image.parent.name == record.subject
        assert record.name == record.image.name


def test_subjects_of_the_phantom(phantom_root: Path) -> None:
    for split, subjects in (("train", 6), ("test", 2)):
        records = read_competition(phantom_root, split)
        assert len(records) == 2 * subjects and len({r.subject for r in records}) == subjects
        assert all(r.label is not None and r.label.is_file() for r in records)
        assert [r.image for r in records] == sorted(r.image for r in records)


def test_an_image_without_label(tmp_path: Path) -> None:
    tree(tmp_path, ["ID001/a", "ID001/b"])
    (tmp_path / "train/outputs_json/ID001/b.json").unlink()
    with pytest.raises(FileProblem, match=r"DCM/ID001/b\.png has no label .*outputs_json/ID001/b\.json: add it"):
        read_competition(tmp_path, "train")


def test_a_label_without_image(tmp_path: Path) -> None:
    tree(tmp_path, ["ID001/a", "ID001/b", "ID002/c"])
    (tmp_path / "train/DCM/ID001/b.png").unlink()
    with pytest.raises(FileProblem, match=r"outputs_json/ID001/b\.json has no image .*DCM/ID001/b\.png: add it"):
        read_competition(tmp_path, "train")
    (tmp_path / "train/DCM/ID002/c.png").unlink()
    with pytest.raises(FileProblem, match=r"b\.json \(and 1 more\) has no image"):
        read_competition(tmp_path, "train")


def test_labels_pair_by_folder_too(tmp_path: Path) -> None:
    tree(tmp_path, ["ID001/a", "ID002/b"])
    labels = tmp_path / "train/outputs_json"
    (labels / "ID002/b.json").rename(labels / "ID001/b.json")
    with pytest.raises(FileProblem, match=r"ID002/b\.png has no label"):
        read_competition(tmp_path, "train")


def test_a_test_split_without_labels(tmp_path: Path) -> None:
    tree(tmp_path, ["ID001/a", "ID001/b"], "test", labels=False)
    records = read_competition(tmp_path, "test")
    assert [r.label for r in records] == [None, None]


def test_another_split_needs_its_labels(tmp_path: Path) -> None:
    tree(tmp_path, ["ID001/a"], "val", labels=False)
    with pytest.raises(FileProblem, match=r"val/DCM/ID001/a\.png has no label .*val/outputs_json/ID001/a\.json"):
        read_competition(tmp_path, "val")
    tree(tmp_path, ["ID001/a"], "val")
    assert [r.key for r in read_competition(tmp_path, "val")] == ["ID001/a"]


def test_pairing_lists_everything_without_a_partner(tmp_path: Path) -> None:
    tree(tmp_path, ["ID001/a", "ID001/b", "ID002/c", "ID002/d"])
    for gone in ("outputs_json/ID001/a.json", "outputs_json/ID002/c.json", "DCM/ID001/b.png", "DCM/ID002/d.png"):
        (tmp_path / "train" / gone).unlink()
    pairs = pair_competition(tmp_path, "train")
    assert [r.key for r in pairs.records] == [r.key for r in pairs.unlabelled] == ["ID001/a", "ID002/c"]
    assert [path.stem for path in pairs.lone_labels] == ["b", "d"]
    nothing = pair_competition(tmp_path, "absent")
    assert (nothing.records, nothing.unlabelled, nothing.lone_labels) == ([], [], [])


@pytest.mark.parametrize("make", [False, True])
def test_no_images(make: bool, tmp_path: Path) -> None:
    if make:
        (tmp_path / "train/DCM/ID001").mkdir(parents=True)
    with pytest.raises(FileProblem, match=r"train/DCM holds no images: point --data_root .*--phantom"):
        read_competition(tmp_path, "train")


def test_folder_and_single_file(tmp_path: Path) -> None:
    names = ["b.PNG", "a.jpg", "sub/c.dcm", "sub/deep/d.webp", "e.tiff", "f.bmp", "g.jpeg", "h.tif"]
    for name in [*names, "notes.txt", ".hidden.png", "sub/._c.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    records = read_folder(tmp_path)
    assert [r.image.relative_to(tmp_path).as_posix() for r in records] == sorted(names)
    assert all(r.label is None for r in records)
    (single,) = read_folder(tmp_path / "a.jpg")
    assert single.image == tmp_path / "a.jpg" and single.label is None and single.name == "a.jpg"


def test_empty_and_absent_folders(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"absent does not exist: give an image file or a folder"):
        read_folder(tmp_path / "absent")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileProblem, match=r"holds no image: supported are \.png.*\.dcm"):
        read_folder(tmp_path)


def test_exclusion() -> None:
    records = records_of(1, 2, 3)
    kept = leave_out(records, ["ID002/image2a"], known_bad=False)
    assert kept == [r for r in records if r.key != "ID002/image2a"]
    assert leave_out(records, (), known_bad=False) == records


@pytest.mark.parametrize("entry", ["ID002/image2", "ID002/image2a.png", "ID02/image2a"])
def test_an_exclusion_that_matches_nothing(entry: str) -> None:
    with pytest.raises(ConfigProblem, match=rf"exclude: no training image is called '{entry}' \(did you mean .*ID00"):
        leave_out(records_of(1, 2, 3), ["ID001/image1a", entry], known_bad=True)


def test_known_bad_labels_are_left_out_where_they_are() -> None:
    bad = [Record(Path(f"x/{key}.png"), None, key.split("/")[0]) for key in KNOWN_BAD_LABELS[:2]]
    good = records_of(1, 2)
    assert leave_out([*good, *bad], (), known_bad=True) == good
    assert leave_out([*good, *bad], (), known_bad=False) == [*good, *bad]
    assert leave_out(good, (), known_bad=True) == good, "sets without them are fine"
