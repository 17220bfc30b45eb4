"""dataset/pseudo.py, dataset/runs.py: predicted labels train like drawn ones of the same masks, and never leak."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from reference import SMALL_LOADER, pack
from test_executors import EXECUTORS, compare, module_of, needs

from config import HAND_BONES, Config, ConfigProblem
from dataset.batches import Batch, Loader
from dataset.images import image_shape, read_image
from dataset.jpeg_tree import write_tree
from dataset.labels import class_boxes, rasterise, read_label
from dataset.pseudo import pseudo_images, pseudo_records
from dataset.readers import Pseudo, Record, read_competition
from dataset.runs import Runs
from dataset.samples import read_shapes
from dataset.selection import select
from dataset.switches import switches_of
from dataset.ultrasound import write_ultrasound
from engine import settings
from engine.files import FileProblem
from engine.presets import PRESETS
from engine.rle import encode_bits, parse_runs, runs_of_bits

HEADER = ["image_name", "class", "rle"]
SOURCES = ("csv", "class", "packed")
Rows = list[list[str]]


def truth_of(record: Record) -> NDArray[np.int32]:
    return read_label(record, HAND_BONES, *image_shape(record.image))


def rows_of(records: list[Record]) -> Rows:
    return [
        [record.name, name, rle]
        for record in records
        for name, rle in zip(HAND_BONES, encode_bits(truth_of(record), 29), strict=True)
    ]


def write_rows(path: Path, rows: Rows) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def write_source(folder: Path, kind: str, records: list[Record]) -> Path:
    """What a network that is always right would predict, as the inference commands write it."""
    if kind == "csv":
        write_rows(folder / "submission.csv", [HEADER, *rows_of(records)])
        return folder / "submission.csv"
    masks = folder / kind
    masks.mkdir()
    for record in records:
        bits = truth_of(record)
        if kind == "packed":
            np.savez_compressed(masks / f"{record.image.stem}.npz", bits=bits, classes=np.array(json.dumps(HAND_BONES)))
            continue
        (masks / record.image.stem).mkdir()
        for k, name in enumerate(HAND_BONES):
            mask = ((bits[0] >> k) & 1).astype(np.uint8) * 255
            assert cv2.imwrite(str(masks / record.image.stem / f"{name}.png"), mask)
    return masks


@pytest.fixture(scope="session")
def predicted(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sources of pseudo-labels for the test split, one of each kind. Read them, don't change them."""
    folder = tmp_path_factory.mktemp("predicted")
    return {kind: write_source(folder, kind, read_competition(phantom_root, "test")) for kind in SOURCES}


@pytest.fixture
def root(phantom_root: Path, tmp_path: Path) -> Path:
    root = tmp_path / "set"
    shutil.copytree(phantom_root, root, ignore=shutil.ignore_patterns("cache"))
    return root


def settings_of(root: Path, source: Path | str, executor: str = "dataset", **values: Any) -> Config:
    chosen = {"data_root": str(root), "pseudo": str(source), "dataset_file": f"dataset.{executor}", **values}
    return settings.replace(Config(), {**SMALL_LOADER, **chosen})


def batches_of(cfg: Config, records: list[Record] | None = None) -> list[Batch]:
    switches = switches_of(cfg)
    loader: Loader = module_of(cfg).build(records or select(cfg, switches)[0], cfg, switches)
    try:
        return list(loader.epoch(1))
    finally:
        loader.close()


# --- labels


@pytest.mark.parametrize("kind", SOURCES)
def test_a_predicted_label_is_the_label_of_its_masks(kind: str, phantom_root: Path, predicted: dict[str, Path]) -> None:
    labelled = read_competition(phantom_root, "test")
    records = pseudo_records(settings_of(phantom_root, predicted[kind], pseudo_weight=0.25))
    assert [record.image for record in records] == [record.image for record in labelled]
    rng = np.random.default_rng(0)
    for record, twin in zip(pickle.loads(pickle.dumps(records)), labelled, strict=True):
        assert record.pseudo is not None and record.weight == 0.25 and twin.weight == 1
        shapes, truth = read_shapes(record, HAND_BONES), truth_of(twin)
        np.testing.assert_array_equal(rasterise(shapes, HAND_BONES, 128, 128, ""), truth)
        np.testing.assert_array_equal(class_boxes(shapes), class_boxes(read_shapes(twin, HAND_BONES)))
        top, bottom, left, right = (int(x) for x in np.sort(rng.integers(0, 129, (2, 2)), 1).ravel())
        part = rasterise(shapes, HAND_BONES, 128, 128, "", (top, bottom, left, right))
        np.testing.assert_array_equal(part, truth[:, top:bottom, left:right])


@pytest.mark.parametrize("n_classes", [1, 32, 40])
def test_runs_are_drawn_where_they_are(n_classes: int) -> None:
    """Full rows, so that runs go on in the next one; empty masks; the second word."""
    rng = np.random.default_rng(n_classes)
    names = tuple(f"class-{k:02}" for k in range(n_classes))
    for density in (0.0, 0.3, 0.95, 1.0):
        masks = rng.random((n_classes, 7, 11)) < density
        bits = pack(masks)
        runs = runs_of_bits(bits, n_classes)
        for own, text in zip(runs, encode_bits(bits, n_classes), strict=True):
            np.testing.assert_array_equal(own, parse_runs(text))
        shapes = Runs(dict(zip(names, runs, strict=True)), 7, 11)
        for region in ((0, 7, 0, 11), (2, 5, 3, 4), (6, 7, 0, 11), (5, 5, 2, 9), (5, 3, 2, 9)):
            top, bottom, left, right = region
            np.testing.assert_array_equal(rasterise(shapes, names, 7, 11, "", region), bits[:, top:bottom, left:right])
        places = [np.nonzero(mask) for mask in masks if mask.any()]
        expected = [[x.min(), y.min(), x.max(), y.max()] for y, x in places]
        np.testing.assert_array_equal(class_boxes(shapes), np.array(expected).reshape(-1, 4))


def test_classes_in_another_order(phantom_root: Path, predicted: dict[str, Path], tmp_path: Path) -> None:
    """Masks are told by names, not by places."""
    images = read_competition(phantom_root, "test")
    write_rows(tmp_path / "turned.csv", [HEADER, *(row for image in images for row in rows_of([image])[::-1])])
    turned = HAND_BONES[::-1]
    for source in (tmp_path / "turned.csv", predicted["packed"], predicted["class"]):
        for classes in (HAND_BONES, turned):
            record = pseudo_records(settings_of(phantom_root, source, classes=classes))[1]
            drawn = rasterise(read_shapes(record, classes), classes, 128, 128, "")
            np.testing.assert_array_equal(drawn, read_label(images[1], classes, 128, 128))


def test_a_truth_is_never_a_prediction(phantom_root: Path, predicted: dict[str, Path]) -> None:
    with pytest.raises(AssertionError):
        read_label(pseudo_records(settings_of(phantom_root, predicted["csv"]))[0], HAND_BONES, 128, 128)


# --- training


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_they_train_like_labels_of_the_same_masks(
    executor: str, kind: str, phantom_root: Path, predicted: dict[str, Path]
) -> None:
    """Same pixels, same labels, same order; only the weights differ."""
    needs(executor)
    name, mode = ("_sliding", "balanced") if kind == "csv" else ("", "random")
    cfg = settings_of(phantom_root, predicted[kind], executor + name, window_mode=mode, pseudo_weight=0.25)
    train, val = select(cfg, switches_of(cfg))
    labelled = read_competition(phantom_root, "test")
    got, expected = batches_of(cfg), batches_of(cfg, [*train[: -len(labelled)], *labelled])
    compare(got, expected)
    pseudo = {record.key for record in labelled}
    for batch, twin in zip(got, expected, strict=True):
        assert batch.weights.dtype == torch.float32 and twin.weights.tolist() == [1] * 4
        assert batch.weights.tolist() == [0.25 if key in pseudo else 1 for key in batch.keys]
    assert {key for batch in got for key in batch.keys} == {record.key for record in train}
    assert not {record.key for record in val} & pseudo


@pytest.mark.parametrize(("own", "mixed"), [(0.25, 0.25), (2.0, 1.0)])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_mix_has_the_smaller_weight(
    executor: str, own: float, mixed: float, phantom_root: Path, predicted: dict[str, Path]
) -> None:
    """Of two images, each takes from the other."""
    needs(executor)
    cfg = settings_of(phantom_root, predicted["csv"], executor, pseudo_weight=own, batch_size=2)
    train = select(cfg, switches_of(cfg))[0]
    pair = [train[0], train[-1]]
    assert sorted(batches_of(cfg, pair)[0].weights.tolist()) == sorted([own, 1])
    for mixer in ("mixup", "cutmix", "copy_paste"):
        strength = (1.0, 2.0, 1.0) if mixer == "copy_paste" else (0.3, 0.5, 1.0)
        always = settings.replace(cfg, {mixer: strength})
        assert batches_of(always, pair)[0].weights.tolist() == [mixed, mixed]


def test_workers_and_caches_change_nothing(root: Path, predicted: dict[str, Path]) -> None:
    cfg = settings_of(root, predicted["csv"], "dataset_sliding")
    expected = batches_of(cfg)
    for values in ({"workers": 2}, {"cache": "ram"}, {"cache": "disk"}, {"cache": "disk", "workers": 1}):
        got = batches_of(settings.replace(cfg, values))
        compare(got, expected)
        assert [batch.weights.tolist() for batch in got] == [batch.weights.tolist() for batch in expected]


def test_folds_share_a_disk_cache(root: Path, predicted: dict[str, Path]) -> None:
    """And runs without pseudo-labels keep theirs."""
    cfg = settings_of(root, predicted["csv"], cache="disk")
    batches_of(settings.replace(cfg, {"pseudo": ""}))
    first = {path: path.stat().st_mtime_ns for path in (root / "cache").glob("*.u8")}
    batches_of(cfg)
    both = {path: path.stat().st_mtime_ns for path in (root / "cache").glob("*.u8")}
    assert len(first) == 1 and len(both) == 2 and first.items() <= both.items()
    batches_of(settings.replace(cfg, {"fold": "1"}))
    assert {path: path.stat().st_mtime_ns for path in (root / "cache").glob("*.u8")} == both


def test_the_jpeg_tree_holds_the_splits_only(root: Path, predicted: dict[str, Path], tmp_path: Path) -> None:
    write_tree(root, root / "jpeg", 95, None, 1, False)
    cfg = settings_of(root, predicted["csv"], "dataset_preprocessed")
    assert any(0.5 in batch.weights.tolist() for batch in batches_of(cfg))
    split = settings.replace(cfg, {"pseudo_images": str(root / "test" / "DCM")})
    assert [record.key for record in pseudo_images(split)] == [record.key for record in pseudo_images(cfg)]
    shutil.copytree(root / "test" / "DCM", tmp_path / "elsewhere")
    with pytest.raises(ConfigProblem, match=r"pseudo_images is .*elsewhere, but the JPEG tree .* leave _preprocessed"):
        select(settings.replace(cfg, {"pseudo_images": str(tmp_path / "elsewhere")}), switches_of(cfg))


@pytest.mark.parametrize("change", [b"", b"image_name,class,rle\n", b'"'])
def test_a_csv_that_changes_during_the_run(
    change: bytes, root: Path, predicted: dict[str, Path], tmp_path: Path
) -> None:
    source = tmp_path / "own.csv"
    shutil.copy(predicted["csv"], source)
    record = pseudo_records(settings_of(root, source))[1]
    source.write_bytes(change)
    with pytest.raises(FileProblem, match=r"own\.csv has changed since the run began .*start the run again"):
        read_shapes(record, HAND_BONES)
    source.unlink()
    with pytest.raises(FileProblem, match=r"own\.csv cannot be read"):
        read_shapes(record, HAND_BONES)


def test_an_image_that_changes_during_the_run(root: Path, predicted: dict[str, Path]) -> None:
    shapes = read_shapes(pseudo_records(settings_of(root, predicted["csv"]))[0], HAND_BONES)
    with pytest.raises(FileProblem, match="there is of a 128 x 128 image, which is now 130 x 120: start the run again"):
        rasterise(shapes, HAND_BONES, 120, 130, "there")


# --- what must not leak


def test_none_validates(phantom_root: Path, predicted: dict[str, Path]) -> None:
    for fold in ("0", "1", "none"):
        cfg = settings_of(phantom_root, predicted["csv"], fold=fold)
        train, val = select(cfg, switches_of(cfg))
        plain = select(settings.replace(cfg, {"pseudo": ""}), switches_of(cfg))
        assert val == plain[1] and train[: len(plain[0])] == plain[0]
        assert [r.pseudo is not None for r in train] == [False] * len(plain[0]) + [True] * 4


def test_subjects_that_validate_are_left_out(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another image of a subject: in this fold it validates, in the next it trains."""
    cfg = settings_of(root, tmp_path / "submission.csv", pseudo_images=str(tmp_path / "more"))
    val = select(settings.replace(cfg, {"pseudo": ""}), switches_of(cfg))[1]
    new = read_competition(root, "test")
    for record, subject in zip(new, [val[0].subject, "ID900", "ID901", "ID902"], strict=True):
        (tmp_path / "more" / subject).mkdir(parents=True)
        shutil.copy(record.image, tmp_path / "more" / subject)
    write_source(tmp_path, "csv", new)
    for _ in range(2):
        train = select(cfg, switches_of(cfg))[0]
        assert {r.subject for r in train if r.pseudo} == {"ID900", "ID901", "ID902"}
    said = capfd.readouterr().err
    assert said.count("pseudo: 1 of 4 images of") == 1 and "are of subjects that validate, and left out" in said
    other = settings.replace(cfg, {"fold": "1"})
    assert sum(r.pseudo is not None for r in select(other, switches_of(other))[0]) == 4


def test_nothing_is_left(phantom_root: Path, predicted: dict[str, Path]) -> None:
    cfg = settings_of(phantom_root, predicted["csv"], holdout="test")
    with pytest.raises(ConfigProblem, match=r"pseudo: 4 of 4 images .* are of subjects that validate: validate on"):
        select(cfg, switches_of(cfg))


@pytest.mark.parametrize("renamed", [True, False])
@pytest.mark.parametrize("side", [0, 1])
def test_labelled_images(renamed: bool, side: int, root: Path, tmp_path: Path) -> None:
    """A copy under another name and subject; or another picture of the same name."""
    cfg = settings_of(root, tmp_path / "submission.csv", pseudo_images=str(tmp_path / "more"))
    twin = select(settings.replace(cfg, {"pseudo": ""}), switches_of(cfg))[side][0]
    folder = tmp_path / "more" / ("X" if renamed else twin.subject)
    folder.mkdir(parents=True)
    new = replace(twin, image=folder / ("x.png" if renamed else twin.name))
    shutil.copy(twin.image if renamed else read_competition(root, "test")[0].image, new.image)
    write_source(tmp_path, "csv", [new])
    if side and not renamed:
        with pytest.raises(ConfigProblem, match="are of subjects that validate"):
            select(cfg, switches_of(cfg))
        return
    with pytest.raises(FileProblem, match=rf"{new.name} has a predicted .* already as {re.escape(str(twin.image))}"):
        select(cfg, switches_of(cfg))


def test_excluded_labels_may_be_predicted(root: Path, tmp_path: Path) -> None:
    """A bad label that is left out: the prediction may take its place."""
    cfg = settings_of(root, tmp_path / "submission.csv", pseudo_images=str(tmp_path / "more"))
    bad = select(settings.replace(cfg, {"pseudo": ""}), switches_of(cfg))[0][0]
    (tmp_path / "more" / bad.subject).mkdir(parents=True)
    shutil.copy(bad.image, tmp_path / "more" / bad.subject)
    write_source(tmp_path, "csv", [bad])
    train = select(settings.replace(cfg, {"exclude": (bad.key,)}), switches_of(cfg))[0]
    assert [record.key for record in train if record.pseudo] == [bad.key]
    assert [record.key for record in train].count(bad.key) == 1


# --- confidence


def test_confidence_of_rows(phantom_root: Path, tmp_path: Path) -> None:
    """The mean of an image's rows decides."""
    images = read_competition(phantom_root, "test")
    rows = rows_of(images)
    for n, row in enumerate(rows):
        row.append(str(0.5 + 0.1 * (n // 29) + (0.1 if n % 29 < 14 else -0.1 if n % 29 < 28 else 0)))
    write_rows(tmp_path / "s.csv", [[*HEADER, "confidence"], *rows])
    for limit, count in ((0.0, 4), (0.45, 4), (0.55, 3), (0.65, 2), (0.75, 1)):
        kept = pseudo_records(settings_of(phantom_root, tmp_path / "s.csv", pseudo_confidence=limit))
        assert [r.image for r in kept] == [r.image for r in images[4 - count :]]
        np.testing.assert_array_equal(
            rasterise(read_shapes(kept[0], HAND_BONES), HAND_BONES, 128, 128, ""), truth_of(images[4 - count])
        )
    with pytest.raises(ConfigProblem, match=r"pseudo_confidence is 0\.9, but the highest of .*s\.csv is 0\.8: lower"):
        pseudo_records(settings_of(phantom_root, tmp_path / "s.csv", pseudo_confidence=0.9))


def test_confidence_of_masks(phantom_root: Path, predicted: dict[str, Path], tmp_path: Path) -> None:
    images = read_competition(phantom_root, "test")
    shutil.copytree(predicted["packed"], tmp_path / "masks")
    rows = [["image_name", "confidence"], *([r.name, f"0.{k + 5}"] for k, r in enumerate(images))]
    write_rows(tmp_path / "masks" / "confidence.csv", rows)
    cfg = settings_of(phantom_root, tmp_path / "masks", pseudo_confidence=0.7)
    assert [r.image for r in pseudo_records(cfg)] == [r.image for r in images[2:]]
    for changed, said in (
        (rows[:-1], r"confidence\.csv lacks '.*png' \(1 images in all\): add a row"),
        ([*rows, rows[1]], r"line 6: '.*png' is there twice: remove it"),
        ([*rows, ["x.png", "1"]], r"line 6: 'x\.png' is no image: remove it"),
        ([["name", "confidence"], *rows[1:]], r"line 1: the header must be image_name,confidence"),
        ([], r"line 1: the header must be image_name,confidence"),
        ([*rows[:-1], [images[3].name, "1.5"]], r"line 5: confidence is '1\.5', but must be a number from 0 to 1"),
    ):
        write_rows(tmp_path / "masks" / "confidence.csv", changed)
        with pytest.raises(FileProblem, match=said):
            pseudo_records(cfg)


@pytest.mark.parametrize(("kind", "remedy"), [("csv", "a column confidence"), ("packed", r"add confidence\.csv")])
def test_a_source_without_confidence(kind: str, remedy: str, phantom_root: Path, predicted: dict[str, Path]) -> None:
    with pytest.raises(ConfigProblem, match=rf"pseudo_confidence is 0\.5, but .* states none: .*{remedy}, or leave"):
        pseudo_records(settings_of(phantom_root, predicted[kind], pseudo_confidence=0.5))


# --- sources that don't fit


def put(row: int, column: int, text: str) -> Callable[[Rows], Rows]:
    def change(rows: Rows) -> Rows:
        rows[row][column] = text
        return rows

    return change


FAULTY_ROWS: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "header": (put(0, 2, "mask"), r"line 1: the header is 'image_name,class,mask', but must be image_name,class,rle"),
    "empty": (lambda rows: [], r"line 1: the header is '', but"),
    "unknown class": (put(3, 1, "finger-33"), r"line 2, image .*'finger-33' is no class \(did you mean finger-3"),
    "class twice": (put(3, 1, "finger-2"), r"class 'finger-2' is there 2 times, but must be there once"),
    "class missing": (lambda rows: rows[:2] + rows[3:], r"line 2, image .*class 'finger-2' \(1 in all\) is missing"),
    "row twice": (lambda rows: [*rows, *rows[1:30]], r"line 118, image .* begins again"),
    "unknown image": (lambda rows: [*rows, ["x.png", "Ulna", ""]], r"line 118, image 'x\.png': there is no such image"),
    "image missing": (lambda rows: rows[:-29], r"has no rows of .*png \(1 images in all\): predict it too"),
    "fields": (lambda rows: [*rows[:4], rows[4][:2], *rows[5:]], r"line 5: the row has 2 fields, but the header has 3"),
    "too large": (put(5, 2, "16380 6"), r"line 6, class 'finger-5' of the 128 x 128 image .*'16380 6', but runs must"),
    "no number": (put(5, 2, "1 x"), r"line 6, class 'finger-5' .*whole numbers"),
}


@pytest.mark.parametrize("fault", FAULTY_ROWS)
def test_rows_that_do_not_fit(fault: str, phantom_root: Path, tmp_path: Path) -> None:
    change, said = FAULTY_ROWS[fault]
    write_rows(tmp_path / "s.csv", change([list(HEADER), *rows_of(read_competition(phantom_root, "test"))]))
    with pytest.raises(FileProblem, match=said):
        pseudo_records(settings_of(phantom_root, tmp_path / "s.csv"))


@pytest.mark.parametrize("text", ["", "high", "-0.1", "nan", "1.01"])
def test_wrong_confidences(text: str, phantom_root: Path, tmp_path: Path) -> None:
    rows = [[*row, text] for row in rows_of(read_competition(phantom_root, "test"))]
    write_rows(tmp_path / "s.csv", [[*HEADER, "confidence"], *rows])
    with pytest.raises(FileProblem, match=rf"line 2: confidence is '{text}', but must be a number from 0 to 1"):
        pseudo_records(settings_of(phantom_root, tmp_path / "s.csv"))


@pytest.mark.parametrize("data", [b"\xff\xfe", b'image_name,class,rle\n"a', b"image_name,class,rle\n\n"])
def test_no_csv(data: bytes, phantom_root: Path, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_bytes(data)
    with pytest.raises(FileProblem, match=r"s\.csv, line [12]: it is no row of a CSV in UTF-8"):
        pseudo_records(settings_of(phantom_root, tmp_path / "s.csv"))


def test_files_that_are_not_there(phantom_root: Path, predicted: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"nothing\.csv does not exist: give --pseudo a leaderboard CSV or a folder"):
        pseudo_records(settings_of(phantom_root, tmp_path / "nothing.csv"))
    with pytest.raises(FileProblem, match="nothing does not exist: give an image file or a folder of images"):
        pseudo_records(settings_of(phantom_root, predicted["csv"], pseudo_images=str(tmp_path / "nothing")))
    if os.geteuid():
        shutil.copy(predicted["csv"], tmp_path / "s.csv")
        (tmp_path / "s.csv").chmod(0)
        with pytest.raises(FileProblem, match=r"s\.csv cannot be read"):
            pseudo_records(settings_of(phantom_root, tmp_path / "s.csv"))


def test_two_images_of_one_name(root: Path, predicted: dict[str, Path], tmp_path: Path) -> None:
    first, second, *_ = read_competition(root, "test")
    for suffix, kind in ((".png", "csv"), (".bmp", "packed")):
        folder = tmp_path / kind
        for subject, name in (("A", first.name), ("B", f"{first.image.stem}{suffix}")):
            (folder / subject).mkdir(parents=True)
            shutil.copy(second.image, folder / subject / name)
        with pytest.raises(FileProblem, match=r"A/.* and .*B/.* are both called .* can't tell them apart: rename"):
            pseudo_records(settings_of(root, predicted[kind], pseudo_images=str(folder)))


def resized(path: Path) -> None:
    assert cv2.imwrite(str(path), np.zeros((128, 130), np.uint8))


def soft(path: Path) -> None:
    assert cv2.imwrite(str(path), np.arange(128 * 128, dtype=np.uint32).reshape(128, 128).astype(np.uint8))


FAULTY_MASKS: dict[str, tuple[Callable[[Path, str], object], str]] = {
    "no mask": (lambda masks, stem: shutil.rmtree(masks / stem), r"has neither .*/ nor .*\.npz \(1 images in all\)"),
    "no image": (lambda masks, stem: (masks / "x").mkdir(), r"masks/x has no image of this name"),
    "unknown class": (
        lambda masks, stem: (masks / stem / "Ulna.png").rename(masks / stem / "Ulma.png"),
        r"'Ulma' is no class \(did you mean Ulna",
    ),
    "class missing": (lambda masks, stem: (masks / stem / "Ulna.png").unlink(), r"'Ulna' \(1 in all\) is missing"),
    "size": (
        lambda masks, stem: resized(masks / stem / "Ulna.png"),
        r"Ulna\.png is 130 x 128 px, but its image is 128 x 128: give",
    ),
    "grey": (lambda masks, stem: soft(masks / stem / "Ulna.png"), r"Ulna\.png has more than two grey values"),
}


@pytest.mark.parametrize("fault", FAULTY_MASKS)
def test_masks_that_do_not_fit(fault: str, phantom_root: Path, predicted: dict[str, Path], tmp_path: Path) -> None:
    change, said = FAULTY_MASKS[fault]
    masks = tmp_path / "masks"
    shutil.copytree(predicted["class"], masks)
    change(masks, read_competition(phantom_root, "test")[0].image.stem)
    with pytest.raises(FileProblem, match=said):
        read_shapes(pseudo_records(settings_of(phantom_root, masks))[0], HAND_BONES)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"bits": np.zeros((1, 128, 130), np.int32)}, r"npz is 130 x 128 px, but its image is 128 x 128"),
        ({"classes": np.array(json.dumps(["Ulna"]))}, r"class 'finger-1' \(28 in all\) is missing"),
        ({"classes": np.array("Ulna")}, r"holds no packed masks \(Expecting value"),
        ({"bits": np.full((1, 128, 128), -1, np.int32)}, r"holds no packed masks \(bits holds pixels of a class above"),
        ({"bits": np.zeros((1, 128, 128), np.int64)}, r"holds no packed masks \(bits is int64 of shape"),
        (None, r"holds no packed masks \(.*write it again with --save_masks packed"),
    ],
)
def test_packed_masks_that_do_not_fit(
    content: dict[str, Any] | None, said: str, phantom_root: Path, predicted: dict[str, Path], tmp_path: Path
) -> None:
    masks = tmp_path / "masks"
    shutil.copytree(predicted["packed"], masks)
    path = sorted(masks.glob("*.npz"))[0]
    if content is None:
        path.write_bytes(path.read_bytes()[:100])
    else:
        whole = {"bits": np.zeros((1, 128, 128), np.int32), "classes": np.array(json.dumps(HAND_BONES)), **content}
        np.savez_compressed(path, **whole)
    with pytest.raises(FileProblem, match=said):
        for record in pseudo_records(settings_of(phantom_root, masks)):
            read_shapes(record, HAND_BONES)


def test_packed_masks_that_are_damaged_inside(root: Path, predicted: dict[str, Path], tmp_path: Path) -> None:
    """The header is whole, so it shows only when the masks are decoded; both readers say the same."""
    image = read_competition(root, "test")[0].image
    path = tmp_path / "x.npz"
    data = bytearray((predicted["packed"] / f"{image.stem}.npz").read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(FileProblem, match=r"x\.npz holds no packed masks"):
        read_shapes(Record(image, path, "x", Pseudo(0.5)), HAND_BONES)
    np.savez_compressed(path, bits=np.zeros((1, 64, 64), np.int32), classes=np.array(json.dumps(HAND_BONES)))
    with pytest.raises(FileProblem, match=r"x\.npz is 64 x 64 px, but its image is 128 x 128"):
        read_shapes(Record(image, path, "x", Pseudo(0.5)), HAND_BONES)


# --- statistics that say which masks are plausible


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Twenty labelled frames of ten videos, ten unlabelled ones with their masks; every third is not plausible."""
    root = tmp_path / "videos"
    write_ultrasound(root, 20, 128, 1)
    (root / "masks_pseudo_a").mkdir()
    lines = ["filename,area_frac,cy_rel,cx_rel,plausible"]
    for number, image in enumerate(sorted((root / "raw_unlabelled").iterdir())):
        plausible = int(number % 3 > 0)
        lines.append(f"{image.name},0.03,0.5,0.5,{plausible}")
        mask = np.zeros((128, 128), np.uint8)
        mask[30 + number : 40, 20:90] = 255
        if plausible:
            assert cv2.imwrite(str(root / "masks_pseudo_a" / image.name), mask)
    (root / "pseudo_stats_a.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def of_videos(root: Path, **values: Any) -> Config:
    chosen = {"data_root": str(root), "pseudo": str(root / "pseudo_stats_a.csv"), "holdout": "", "n_folds": 10}
    return settings.replace(Config(), {**PRESETS["ultrasound_small"], **chosen, **values})


def test_plausible_masks_train(videos: Path) -> None:
    cfg = of_videos(videos)
    names = sorted(path.name for path in (videos / "raw_unlabelled").iterdir())
    records = pseudo_records(cfg)
    assert [record.name for record in records] == [name for number, name in enumerate(names) if number % 3]
    assert [record.subject for record in records] == [record.name[:3] for record in records], "frames of known videos"
    for record in records:
        shapes = read_shapes(record, ("bone",))
        (word,) = rasterise(shapes, ("bone",), 128, 128, "")
        np.testing.assert_array_equal(word * 255, read_image(videos / "masks_pseudo_a" / record.name))
        assert record.weight == cfg.data.pseudo_weight
    assert pseudo_records(of_videos(videos, pseudo_confidence=1.0)) == records, "plausible is sure"
    stats = videos / "pseudo_stats_a.csv"
    stats.write_bytes(b"\xef\xbb\xbf" + stats.read_bytes().replace(b"\n", b"\r\n"))
    assert pseudo_records(cfg) == records, "as Excel saves it"
    assert len(pseudo_images(cfg)) == len(names), "a cache holds all, whatever is called plausible later"


def test_their_pictures_may_lie_elsewhere(videos: Path) -> None:
    (videos / "raw_unlabelled").rename(videos / "frames")
    records = pseudo_records(of_videos(videos, pseudo_images=str(videos / "frames")))
    assert len(records) == 6 and records[0].image.parent == videos / "frames"
    with pytest.raises(FileProblem, match=r"raw_unlabelled does not exist: give an image file or a folder of images\."):
        pseudo_records(of_videos(videos))


def test_videos_that_validate_or_are_tested_are_left_out(videos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = sorted(path.name for path in (videos / "images").iterdir())
    (videos / "splits").mkdir()
    found = {record.subject for record in pseudo_records(of_videos(videos))}
    val, test, *_ = sorted(found & {name[:3] for name in images})
    for split in ("train", "val", "test"):
        own = [n for n in images if split == {val: "val", test: "test"}.get(n[:3], "train")]
        (videos / "splits" / f"{split}.txt").write_text("\n".join(own) + "\n", encoding="utf-8")
    cfg = of_videos(videos, holdout="val")
    train, validated = select(cfg, switches_of(cfg))
    assert {record.subject for record in validated} == {val}
    assert {record.subject for record in train if record.pseudo} == found - {val, test}
    lost = sum(record.subject in (val, test) for record in pseudo_records(cfg))
    said = f"{lost} of 6 images of {videos}/pseudo_stats_a.csv are of subjects that validate or are tested"
    assert f"{said}, and left out" in capfd.readouterr().err


STATS_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a mask is missing": (
        lambda root: next((root / "masks_pseudo_a").iterdir()).unlink(),
        r"pseudo_stats_a\.csv calls it plausible: write it, or put 0 there\.",
    ),
    "a mask of another size": (
        lambda root: cv2.imwrite(str(min((root / "masks_pseudo_a").iterdir())), np.zeros((9, 9), np.uint8)),
        r"has another size than its image .*: predict it again\.",
    ),
    "a word": (lambda root: edit(root, ",1\n", ",yes\n"), r"line 3: plausible is 'yes', but must be 1 or 0"),
    "a short row": (lambda root: edit(root, ",0.5,1\n", ",1\n"), r"line 3: the row has 4 fields, but the header has 5"),
    "an image too many": (lambda root: edit(root, "p0", "q0"), r"line 2: 'q0.*' is no image of --pseudo_images"),
    "an image twice": (lambda root: edit(root, "", "", twice=True), r"line 3: 'p.*' is there twice: remove the row\."),
    "an image without a row": (
        lambda root: shutil.copy(min((root / "images").iterdir()), root / "raw_unlabelled" / "more.png"),
        r"pseudo_stats_a\.csv lacks 'more\.png' \(1 images in all\): predict it too\.",
    ),
    "another name": (
        lambda root: (root / "pseudo_stats_a.csv").rename(root / "numbers.csv"),
        r"numbers\.csv is about masks_pseudo… beside it, but its name lacks pseudo_stats: call it pseudo_stats…\.csv\.",
    ),
}


def edit(root: Path, old: str, new: str, twice: bool = False) -> None:
    """Change the first `old` of the statistics, or have their first image there twice."""
    path = root / "pseudo_stats_a.csv"
    header, first, *rest = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines = [header, first, first, *rest] if twice else [header, first, *rest]
    path.write_text("".join(lines).replace(old, new, 1) if old else "".join(lines), encoding="utf-8")


@pytest.mark.parametrize("fault", STATS_FAULTS)
def test_statistics_that_do_not_fit(fault: str, videos: Path) -> None:
    work, message = STATS_FAULTS[fault]
    work(videos)
    with pytest.raises(FileProblem, match=message):
        pseudo_records(of_videos(videos, pseudo=str(next(videos.glob("*.csv")))))


def test_statistics_without_use(videos: Path) -> None:
    with pytest.raises(ConfigProblem, match="is about masks of one class, but classes has 2: give one"):
        pseudo_records(of_videos(videos, classes=("a", "b")))
    path = videos / "pseudo_stats_a.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(",1\n", ",0\n"), encoding="utf-8")
    with pytest.raises(ConfigProblem, match=r"no image of .*pseudo_stats_a\.csv is plausible: train a better network"):
        pseudo_records(of_videos(videos))
