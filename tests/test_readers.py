"""dataset/readers.py and dataset/splits.py: files paired by path, subjects never on both sides."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import ConfigProblem
from dataset.readers import KNOWN_BAD_LABELS, Record, leave_out, read_competition, read_folder
from dataset.splits import check_disjoint, fold_split
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
        records = read_competition(phantom_root, split)  # type: ignore[arg-type]
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


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.sets(st.integers(1, 99), min_size=2, max_size=30), st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_folds(subjects: set[int], n_folds: int, seed: int) -> None:
    records = records_of(*sorted(subjects))
    if len(subjects) < n_folds:
        with pytest.raises(ConfigProblem, match=r"n_folds is .* subjects: lower --n_folds"):
            fold_split(records, n_folds, 0, seed)
        return
    held_out: list[str] = []
    for fold in range(n_folds):
        train, val = fold_split(records, n_folds, fold, seed)
        assert fold_split(list(reversed(records)), n_folds, fold, seed)[1] == list(reversed(val)), "order is no matter"
        assert sorted(r.key for r in [*train, *val]) == sorted(r.key for r in records)
        assert not {r.subject for r in train} & {r.subject for r in val}
        assert train and len(val) // 2 in (len(subjects) // n_folds, -(-len(subjects) // n_folds))
        held_out += [r.key for r in val]
    assert sorted(held_out) == sorted(r.key for r in records), "every record validates in exactly one fold"


def test_the_seed_decides_the_folds() -> None:
    records = records_of(*range(20))
    splits = {tuple(r.key for r in fold_split(records, 5, 0, seed)[1]) for seed in range(10)}
    assert len(splits) > 5


def test_a_subject_on_both_sides_fails_loudly() -> None:
    records = records_of(1, 2)
    check_disjoint(records[:2], records[2:])
    with pytest.raises(ConfigProblem, match=r"subjects ID001 \(1 in all\) are in training and validation: split by"):
        check_disjoint(records[:1], records[1:])
