"""dataset/check.py: every kind of fault is found, all at once, and only once looked for."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

from config import HAND_BONES
from dataset import check
from dataset.check import Fault, Verdict, check_data, table, write_bad_files


@pytest.fixture
def root(phantom_root: Path, tmp_path: Path) -> Path:
    """The phantom set, to be changed at will."""
    copy = tmp_path / "set"
    shutil.copytree(phantom_root, copy, ignore=shutil.ignore_patterns("cache"))
    return copy


def look(root: Path, cache: Path | None = None, **options: Any) -> Verdict:
    return check_data(root, HAND_BONES, None, cache, 1, **options)


def images(root: Path, split: str = "train") -> list[Path]:
    return sorted((root / split / "DCM").rglob("*.png"))


def label(image: Path) -> Path:
    return Path(str(image).replace("/DCM/", "/outputs_json/")).with_suffix(".json")


def below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def edit(path: Path, change: Callable[[dict[str, dict[str, Any]]], None]) -> None:
    """Change a label file by its annotations, label -> annotation."""
    content = json.loads(path.read_text("utf-8"))
    by_label = {entry["label"]: entry for entry in content["annotations"]}
    change(by_label)
    path.write_text(json.dumps(content | {"annotations": list(by_label.values())}), encoding="utf-8")


def only(verdict: Verdict) -> Fault:
    (fault,) = verdict.faults
    return fault


def test_a_clean_tree(phantom_root: Path) -> None:
    verdict = look(phantom_root)
    assert verdict.faults == () and verdict.ok
    seen = verdict.summary
    assert (seen.images, seen.labels, seen.subjects, seen.cached) == (16, 16, 8, 0)
    assert seen.sizes == {(128, 128): 16} and seen.seconds > 0
    text = table(verdict)
    assert "16 images (16 of 128 x 128), 16 labels, 8 subjects" in text and text.endswith("data: nothing is wrong")


def test_a_test_split_may_lack_labels_or_be_absent(root: Path) -> None:
    shutil.rmtree(root / "test/outputs_json")
    assert look(root).ok and look(root).summary.labels == 12
    shutil.rmtree(root / "test")
    assert look(root).faults == () and look(root).summary.images == 12


# How files go together: each kind of fault, planted once.


def test_an_odd_size(root: Path) -> None:
    image = images(root)[3]
    cv2.imwrite(str(image), cv2.copyMakeBorder(cv2.imread(str(image)), 0, 0, 0, 32, cv2.BORDER_CONSTANT))
    verdict = look(root)
    assert verdict.ok
    assert only(verdict) == Fault("warning", "odd size", below(root, image), "is 160 x 128, others are 128 x 128.")


def test_sets_of_many_sizes_have_no_odd_one(root: Path) -> None:
    for image in images(root)[:3]:
        cv2.imwrite(str(image), cv2.copyMakeBorder(cv2.imread(str(image)), 0, 32, 0, 0, cv2.BORDER_CONSTANT))
    verdict = look(root)
    assert verdict.faults == () and "13 of 128 x 128, 3 of 128 x 160" in table(verdict)


def test_a_missing_class(root: Path) -> None:
    """A polygon without area does not show its class."""
    first, second = (label(image) for image in images(root)[:2])
    edit(first, lambda entries: entries.pop("Pisiform") and None)
    edit(second, lambda entries: entries["Ulna"].update(points=[[10, 10], [20, 20], [30, 30]]))
    faults = [fault for fault in look(root).faults if fault.kind != "degenerate polygon"]
    assert [(f.severity, f.kind, f.path) for f in faults] == [
        ("error", "class missing", below(root, path)) for path in (first, second)
    ]
    assert faults[0].detail == "Pisiform is shown by 15 of 16 labels, but not by this one: add it or exclude the image."


def test_a_class_that_many_labels_lack(root: Path) -> None:
    for image in images(root)[:2]:
        edit(label(image), lambda entries: entries.pop("Pisiform") and None)
    verdict = look(root)
    fault = only(verdict)
    assert verdict.ok and (fault.kind, fault.path) == ("class in few labels", below(root, label(images(root)[0])))
    assert fault.detail == "Pisiform is shown by 14 of 16 labels: this is the first without."


def test_a_class_that_no_label_shows(phantom_root: Path) -> None:
    fault = only(check_data(phantom_root, [*HAND_BONES, "Patella"], None, None, 1))
    assert (fault.severity, fault.kind) == ("error", "class in no label")
    assert fault.detail == "Patella is shown by 0 of 16 labels: set --classes to those that are there."


def test_missing_partners(root: Path) -> None:
    first, second = images(root)[0], images(root)[5]
    label(first).unlink()
    second.unlink()
    found = {f.kind: f for f in look(root).faults}
    assert found["image without label"].path == below(root, first)
    assert below(root, label(first)) in found["image without label"].detail
    assert found["label without image"].path == below(root, label(second))
    assert below(root, second) in found["label without image"].detail
    assert found["subject without two images"].path == below(root, second.parent)
    assert found.keys() == {"image without label", "label without image", "subject without two images"}
    assert [found[kind].severity for kind in sorted(found)] == ["error", "error", "warning"]


def test_no_images(tmp_path: Path) -> None:
    verdict = look(tmp_path)
    fault = only(verdict)
    assert not verdict.ok and (fault.kind, fault.path) == ("no images", "train/DCM")
    assert "0 images (none readable)" in table(verdict)


@pytest.mark.parametrize(("split", "severity"), [("train", "warning"), ("test", "error")])
def test_a_double_name(split: str, severity: str, root: Path) -> None:
    first, second = images(root, split)[0], images(root, split)[-1]
    label(second).rename(label(second).with_stem(first.stem))
    second.rename(second.with_name(first.name))
    fault = only(look(root))
    assert (fault.severity, fault.kind, fault.path) == (severity, "double name", below(root, first))
    assert below(root, second.with_name(first.name)) in fault.detail


@pytest.mark.parametrize(("split", "other"), [("train", 5), ("test", 0), ("train", 1)])
def test_double_pixels(split: str, other: int, root: Path) -> None:
    first, second = images(root)[0], images(root, split)[other]
    cv2.imwrite(str(second), cv2.imread(str(first)), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert first.read_bytes() != second.read_bytes(), "the pixels are compared, not the files"
    fault = only(look(root))
    same_subject = first.parent == second.parent
    assert (fault.severity, fault.kind) == ("warning" if same_subject else "error", "double pixels")
    assert {fault.path, below(root, second)} == {below(root, first), below(root, second)}
    assert below(root, second) in fault.detail and ("leak" in fault.detail) is not same_subject


def test_a_subject_in_two_splits(root: Path) -> None:
    train, test = images(root)[0].parent, images(root, "test")[0].parent
    for kind in ("DCM", "outputs_json"):
        (root / "test" / kind / test.name).rename(root / "test" / kind / train.name)
    fault = only(look(root))
    assert (fault.severity, fault.kind, fault.path) == ("error", "subject in two splits", below(root, train))
    assert "is in test too" in fault.detail


def test_a_subject_in_two_folds(phantom_root: Path) -> None:
    folds = {"training": {"ID001", "ID002"}, "validation": ["ID003"]}
    assert check_data(phantom_root, HAND_BONES, folds, None, 1).ok
    fault = only(check_data(phantom_root, HAND_BONES, folds | {"validation": ["ID002"]}, None, 1))
    assert (fault.severity, fault.kind, fault.path) == ("error", "subject in two folds", "ID002")
    assert fault.detail == "is in folds training and validation: split by subject."


def mirror(path: Path, size: int = 128) -> None:
    def change(entries: dict[str, dict[str, Any]]) -> None:
        for entry in entries.values():
            entry["points"] = [[size - 1 - x, y] for x, y in entry["points"]]

    edit(path, change)


def test_mirrored_labels(root: Path) -> None:
    """As one of the competition's; the file name tells where there is one that does."""
    first, second = images(root)[:2]
    mirror(label(first))
    fault = only(look(root))
    assert (fault.severity, fault.kind, fault.path) == ("warning", "equal sides", below(root, first))
    assert below(root, second) in fault.detail
    side = fault.detail[-len("X: is one mirrored?")]
    assert not look(root, alike=False).faults, "in a set of right hands all pairs are such"
    wrong = {"L": "R", "R": "L"}[side]
    for path in (label(first), first):
        path.rename(path.with_stem(f"{first.stem}_{wrong}"))
    found = {f.kind: f for f in look(root).faults}
    assert found.keys() == {"equal sides", "side against name"}
    assert found["side against name"].detail.startswith(f"its label shows the side {side}: is it mirrored?")


# All together.


def test_many_faults_at_once(root: Path, tmp_path: Path) -> None:
    own = images(root)
    own[0].write_bytes(b"")
    own[1].write_bytes(own[1].read_bytes()[:200])
    label(own[2]).write_text("{")
    label(own[3]).unlink()
    edit(label(own[4]), lambda entries: entries["Ulna"].update(points=[[500, 500], [600, 500], [600, 600]]))
    own[7].unlink()
    shutil.copy(images(root, "test")[0], own[8])
    verdict = look(root)
    assert sorted(fault.kind for fault in verdict.faults) == [
        "double pixels",
        "image without label",
        "label without image",
        "polygon outside",
        "subject without two images",
        "unreadable image",
        "unreadable image",
        "unreadable label",
    ]
    assert [f.severity for f in verdict.faults] == ["error"] * 7 + ["warning"] and not verdict.ok
    text = table(verdict)
    assert "error    unreadable image: 2" in text and text.endswith("data: errors 7, warnings 1")
    assert all(fault.detail in text for fault in verdict.faults)

    write_bad_files(tmp_path / "new" / "bad_files.csv", verdict)
    with open(tmp_path / "new" / "bad_files.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Fault(**row) for row in rows] == list(verdict.faults)  # type: ignore[arg-type]


def test_the_table_shows_the_first_few_of_many(root: Path) -> None:
    for image in images(root)[:8]:
        image.write_bytes(b"")
    lines = table(look(root)).splitlines()
    assert lines[1] == "error    unreadable image: 8" and lines[5].strip() == "and 5 more" and len(lines) == 7


def test_images_that_are_left_out_are_not_looked_at(root: Path) -> None:
    image = images(root)[3]
    image.write_bytes(b"")
    key = f"{image.parent.name}/{image.stem}"
    verdict = look(root, exclude=[key])
    assert verdict.faults == () and verdict.summary.images == 15


def test_another_split(root: Path) -> None:
    moved = images(root)[0].parent.name
    for kind in ("DCM", "outputs_json"):
        (root / "val" / kind).mkdir(parents=True)
        (root / "train" / kind / moved).rename(root / "val" / kind / moved)
    splits = ("train", "val", "test")
    assert look(root, splits=splits).summary.images == 16 and look(root, splits=splits).ok
    label(images(root, "val")[0]).unlink()
    assert only(look(root, splits=splits)).kind == "image without label"


def test_the_number_of_workers_does_not_matter(root: Path) -> None:
    images(root)[0].write_bytes(b"")
    label(images(root)[2]).write_text("{")
    assert check_data(root, HAND_BONES, None, None, 3).faults == look(root).faults


# What is remembered.


def test_unchanged_files_are_not_looked_at_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = root / "cache" / "check.json"
    edit(label(images(root)[2]), lambda entries: entries.pop("Pisiform") and None)
    first = look(root, cache)
    before = cache.stat().st_mtime_ns
    monkeypatch.setattr(check, "look_at", None)  # would fail if it were called
    again = look(root, cache)
    assert again.faults == first.faults and (first.summary.cached, again.summary.cached) == (0, 16)
    assert cache.stat().st_mtime_ns == before, "nothing new, nothing written"


@pytest.mark.parametrize("which", ["image", "label"])
def test_a_changed_file_is_looked_at_again(which: str, root: Path, tmp_path: Path) -> None:
    cache, image = tmp_path / "check.json", images(root)[2]
    assert look(root, cache).ok
    path = image if which == "image" else label(image)
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(b"\0" * len(content))  # of the same length
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    verdict = look(root, cache)
    assert only(verdict).kind == f"unreadable {which}" and verdict.summary.cached == 15
    path.write_bytes(content)
    verdict = look(root, cache)
    assert verdict.ok and verdict.summary.cached == 15
    assert look(root, cache).summary.cached == 16


def test_unreadable_files_are_not_remembered(root: Path, tmp_path: Path) -> None:
    """What keeps a file from being read may go without a change of the file."""
    images(root)[2].write_bytes(b"")
    assert not look(root, tmp_path / "check.json").ok
    verdict = look(root, tmp_path / "check.json")
    assert not verdict.ok and verdict.summary.cached == 15


def test_other_classes_are_another_look(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "check.json"
    assert look(root, cache).ok
    fewer = check_data(root, HAND_BONES[:-1], None, cache, 1)
    assert fewer.summary.cached == 0 and {fault.kind for fault in fewer.faults} == {"extra label"}


def test_removed_and_added_images(root: Path, tmp_path: Path) -> None:
    cache, gone = tmp_path / "check.json", images(root)[0].parent
    look(root, cache)
    for kind in ("DCM", "outputs_json"):
        (root / "train" / kind / gone.name).rename(tmp_path / kind)
    assert look(root, cache).summary.cached == 14
    assert len(json.loads(cache.read_text("utf-8"))["images"]) == 14
    for kind in ("DCM", "outputs_json"):
        (tmp_path / kind).rename(root / "train" / kind / gone.name)
    verdict = look(root, cache)
    assert verdict.summary.cached == 14 and verdict.ok


NO_FAULTS = json.dumps({"version": 1, "classes": HAND_BONES, "images": {"a.png": {"side": "L"}}})


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"version": 1}', NO_FAULTS])
def test_a_damaged_memory_is_ignored_and_written_anew(content: str, root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "check.json"
    look(root, cache)
    whole = cache.read_text("utf-8")
    cache.write_text(content)
    assert look(root, cache).summary.cached == 0
    assert cache.read_text("utf-8") == whole


def test_a_memory_that_cannot_be_written(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert look(root, tmp_path / "file" / "check.json").ok
    assert "check.json can't be written" in capsys.readouterr().err


def test_an_interrupted_look_goes_on_from_there(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(items: Iterable[Any], *_: Any) -> Iterator[Any]:
        yield from itertools.islice(items, 5)
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "progress", interrupted)
    with pytest.raises(KeyboardInterrupt):
        look(root, tmp_path / "check.json")
    monkeypatch.undo()
    assert look(root, tmp_path / "check.json").summary.cached == 5
