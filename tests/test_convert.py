"""scripts/convert.py and inference/conversions.py: what comes back is what was put in; nothing is lost in silence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray
from pycocotools import mask as api
from pycocotools.coco import COCO

from config import HAND_BONES
from dataset.labels import read_polygons
from engine.conversions import shapes
from scripts import convert

ROOT = Path(__file__).resolve().parent.parent
SOME = settings(derandomize=True, max_examples=60, deadline=None)
Mask = NDArray[np.uint8]


# Commands


def run(*words: object) -> int:
    try:
        return convert.main([str(word) for word in words])
    except SystemExit as stop:
        return int(stop.code or 0)


def formats(source: str, target: str, *more: object) -> tuple[object, ...]:
    return "--source_format", source, "--target_format", target, *more


def holed(n: int) -> Mask:
    """A ring around a grain, and a diagonal line that meets it."""
    mask = np.zeros((48, 40), np.uint8)
    cv2.circle(mask, (18, 20), 12 + n, 1, 4)
    cv2.circle(mask, (18, 20), 2, 1, -1)
    cv2.line(mask, (30, 30), (36, 44), 1, 1)
    return mask


@pytest.fixture(scope="module")
def hands(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects' training images and one's test images, of a phantom without the cache of other tests."""
    root = tmp_path_factory.mktemp("hands") / "data"
    for split, count in (("train", 2), ("test", 1)):
        for kind in ("DCM", "outputs_json"):
            for subject in sorted((phantom_root / split / kind).iterdir())[:count]:
                shutil.copytree(subject, root / split / kind / subject.name)
    return root


@pytest.fixture(scope="module")
def ringed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masks of two classes with holes and several components, and images in folders."""
    root = tmp_path_factory.mktemp("ringed")
    for n, name in enumerate(("ID1/a", "ID2/b")):
        (root / "images" / name).parent.mkdir(parents=True)
        cv2.imwrite(str(root / "images" / f"{name}.png"), np.full((48, 40), 50 + n, np.uint8))
        folder = root / "masks" / name[-1]
        folder.mkdir(parents=True)
        for k, label in enumerate(("Radius", "Ulna")):
            cv2.imwrite(str(folder / f"{label}.png"), 255 * np.roll(holed(n), 3 * k, 1))
    return root


CLASSES = ("--classes", "Radius", "Ulna")


def files_of(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def same_pixels(one: Path, other: Path) -> bool:
    names = sorted(path.relative_to(one) for path in one.rglob("*.png"))
    assert names == sorted(path.relative_to(other) for path in other.rglob("*.png")) and names
    return all(
        np.array_equal(cv2.imread(str(one / name), 0), cv2.imread(str(other / name), 0)) for name in names
    )


BACK = {
    "competition": ("data", ""),
    "labelme": ("data", ""),
    "coco": ("coco", "annotations/instances_train.json"),
    "yolo": ("yolo", ""),
    "nnunet": ("nnunet", ""),
    "csv": ("csv", ""),
}
"""Target format -> as what and where in it it is read again."""


@pytest.mark.parametrize("kind", [*BACK, "coco_polygons"])
def test_masks_with_holes_go_there_and_back(kind: str, ringed: Path, tmp_path: Path) -> None:
    there = tmp_path / {"nnunet": "Dataset001_x", "csv": "a.csv"}.get(kind, "there")
    images = ("--images", ringed / "images")
    target, *polygons = ("coco", "--coco_polygons") if kind == "coco_polygons" else (kind,)
    assert run(ringed / "masks", there, *formats("masks", target), *images, *CLASSES, *polygons) == 0
    source, inside = BACK[target]
    if target in ("coco", "csv"):
        images = ("--images", there / "images" / "train" if target == "coco" else ringed / "images")
    elif target in BACK:
        images = ()
    if target == "csv":
        assert there.read_text().startswith("image_name,class,rle\na.png,Radius,")
    assert run(there / inside, tmp_path / "back", *formats(source, "masks"), *images, *CLASSES) == 0
    assert same_pixels(ringed / "masks", tmp_path / "back")


def test_polygons_keep_their_vertices(hands: Path, tmp_path: Path) -> None:
    for kind in ("labelme", "yolo"):
        assert run(hands, tmp_path / kind, *formats("data", kind)) == 0
        back = tmp_path / f"{kind} back"
        flags = ("--splits", "train", "--classes", *HAND_BONES)
        assert run(tmp_path / kind, back, *formats("yolo" if kind == "yolo" else "data", "competition"), *flags) == 0
        labels = sorted((hands / "train" / "outputs_json").rglob("*.json"))
        assert len(labels) == 4
        for label in labels:
            was = read_polygons(label, HAND_BONES)
            now = read_polygons(back / "train" / label.relative_to(hands / "train"), HAND_BONES)
            assert was.keys() == now.keys()
            for name in was:
                assert all(np.array_equal(a, b) for a, b in zip(was[name], now[name], strict=True))
        assert files_of(hands / "train" / "DCM") == files_of(back / "train" / "DCM")


def test_hands_go_through_every_format_to_the_same_csv(hands: Path, tmp_path: Path) -> None:
    ring = [("data", "coco"), ("coco", "nnunet"), ("nnunet", "yolo"), ("yolo", "labelme"), ("data", "csv")]
    assert run(hands, tmp_path / "first.csv", *formats("data", "csv")) == 0
    place: Path = hands
    for number, (source, target) in enumerate(ring):
        there = tmp_path / {"nnunet": "Dataset001_x", "csv": "last.csv"}.get(target, str(number))
        images = ("--images", place / "images" / "train") if source == "coco" else ()
        inside = place / "annotations" / "instances_train.json" if source == "coco" else place
        classes = ("--classes", *HAND_BONES)
        assert run(inside, there, *formats(source, target), *images, *classes) == 0
        place = there
    assert place.read_bytes() == (tmp_path / "first.csv").read_bytes()


def test_the_coco_api_reads_what_is_written(hands: Path, tmp_path: Path) -> None:
    for polygons in ((), ("--coco_polygons",)):
        there = tmp_path / f"coco{len(polygons)}"
        assert run(hands, there, *formats("data", "coco", "--splits", "train", "test"), *polygons) == 0
        for split, count in (("train", 4), ("test", 2)):
            data = COCO(there / "annotations" / f"instances_{split}.json")
            assert [c["name"] for c in data.loadCats(data.getCatIds())] == list(HAND_BONES)
            assert len(data.imgs) == count and len(data.anns) == 29 * count
            for image in data.imgs.values():
                label = hands / split / "outputs_json" / Path(image["file_name"]).with_suffix(".json")
                drawn = read_polygons(label, HAND_BONES)
                for annotation in data.loadAnns(data.getAnnIds(image["id"])):
                    name = HAND_BONES[annotation["category_id"] - 1]
                    mask = data.annToMask(annotation)
                    runs = shapes.draw(drawn[name], *mask.shape)
                    assert np.array_equal(np.concatenate([np.arange(*run) for run in runs]), np.flatnonzero(mask))
                    assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
                    assert annotation["bbox"] == list(cv2.boundingRect(mask))
                assert (there / "images" / split / image["file_name"]).is_file()


def test_nnunet_gets_grey_images_and_regions(hands: Path, tmp_path: Path) -> None:
    there = tmp_path / "Dataset101_Hand"
    assert run(hands, there, *formats("data", "nnunet", "--splits", "train", "test")) == 0
    told = json.loads((there / "dataset.json").read_text())
    assert told["numTraining"] == 4 and told["file_ending"] == ".png" and len(told["channel_names"]) == 1
    assert told["regions_class_order"] == list(range(1, 30))
    assert list(told["labels"]) == ["background", *HAND_BONES]
    assert all(type(own) is int or len(own) > 1 for own in told["labels"].values()), "nnU-Net drops lists of one"
    assert {path.name for path in there.iterdir()} == {"dataset.json", "imagesTr", "labelsTr", "imagesTs", "labelsTs"}
    for case, name in told["image_names"].items():
        kind, split = ("Tr", "train") if (there / "imagesTr" / f"{case}_0000.png").exists() else ("Ts", "test")
        grey = cv2.imread(str(there / f"images{kind}" / f"{case}_0000.png"), cv2.IMREAD_UNCHANGED)
        assert grey.ndim == 2 and np.array_equal(grey, cv2.imread(str(hands / split / "DCM" / name), 0))


def test_images_without_labels_are_for_nnunets_test_only(
    hands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(hands, root)
    shutil.rmtree(root / "test" / "outputs_json")
    both = ("--splits", "train", "test")
    assert run(root, tmp_path / "Dataset001_x", *formats("data", "nnunet", *both)) == 0
    assert len(list((tmp_path / "Dataset001_x" / "imagesTs").iterdir())) == 2
    assert not (tmp_path / "Dataset001_x" / "labelsTs").exists()
    assert run(root, tmp_path / "yolo", *formats("data", "yolo", *both)) == 1
    assert "has no label, and without one it would count as an image of nothing" in capsys.readouterr().err
    assert not (tmp_path / "yolo").exists()


def test_images_are_copied_linked_or_left(ringed: Path, tmp_path: Path) -> None:
    flags = (*formats("masks", "yolo"), "--images", ringed / "images", *CLASSES)
    for how in ("copy", "link", "none"):
        assert run(ringed / "masks", tmp_path / how, *flags, "--image_files", how) == 0
    original = ringed / "images" / "ID1" / "a.png"
    copy, link = (tmp_path / how / "images" / "train" / "ID1" / "a.png" for how in ("copy", "link"))
    assert copy.read_bytes() == original.read_bytes() and not copy.is_symlink()
    assert link.resolve() == original.resolve()
    assert not (tmp_path / "none" / "images").exists() and (tmp_path / "none" / "data.yaml").exists()


def write_coco(path: Path, annotations: list[dict[str, object]]) -> Path:
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 6, "width": 8}],
        "categories": [{"id": 3, "name": "Radius"}, {"id": 2, "name": "Ulna"}],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": 3, "iscrowd": 0, **own} for i, own in enumerate(annotations)
        ],
    }
    path.write_text(json.dumps(content))
    return path


LEFT, RIGHT = [0, 0, 3, 0, 3, 3, 0, 3], [3, 0, 6, 0, 6, 3, 3, 3]


def test_coco_as_others_write_it(tmp_path: Path) -> None:
    rle = {"size": [6, 8], "counts": [12, 6, 30]}
    parts = [{"segmentation": [LEFT, [5, 5, 8, 5, 8, 6]]}, {"segmentation": rle, "category_id": 2}]
    path = write_coco(tmp_path / "a.json", parts)
    assert run(path, tmp_path / "m", *formats("coco", "masks", "--image_files", "none")) == 0
    radius, ulna = (cv2.imread(str(tmp_path / "m" / "a" / f"{name}.png"), 0) > 0 for name in ("Radius", "Ulna"))
    expected = api.decode(api.merge(api.frPyObjects([LEFT, [5, 5, 8, 5, 8, 6]], 6, 8)))
    assert np.array_equal(radius, expected > 0) and radius[:3, :3].all() and not radius[:3, 3:].any()
    assert ulna.sum() == 6 and ulna[:, 2].all()


@pytest.mark.parametrize("target", ["yolo", "labelme", "competition", "masks"])
def test_names_that_would_share_a_label(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_coco(tmp_path / "a.json", [{"segmentation": [LEFT]}])
    content = json.loads(path.read_text())
    content["images"].append({**content["images"][0], "id": 9})
    path.write_text(json.dumps(content))
    assert run(path, tmp_path / "out", *formats("coco", target, "--image_files", "none")) == 1
    assert "holds two images of one file_name" in capsys.readouterr().err
    content["images"].pop()
    content["images"].append({"id": 8, "file_name": "a.jpg", "height": 6, "width": 8})
    path.write_text(json.dumps(content))
    assert run(path, tmp_path / "out", *formats("coco", target, "--image_files", "none")) == 1
    said = capsys.readouterr().err
    assert "'a.png' and 'a.jpg' would share" in said and sorted(p.name for p in tmp_path.iterdir()) == ["a.json"]


def test_masks_of_images_in_several_folders(
    hands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(hands / "test", root / "train")
    for kind in ("DCM", "outputs_json"):
        (subject,) = (root / "train" / kind).iterdir()
        shutil.copytree(subject, subject.with_name("ID999"))
    assert run(root, tmp_path / "m", *formats("data", "masks")) == 1
    said = capsys.readouterr().err
    assert "would share files of one name: rename one of them." in said and "ID999/" in said
    assert run(root, tmp_path / "a.csv", *formats("data", "csv")) == 1
    assert "tells them apart by name only: rename one." in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("annotations", "sentence"),
    [
        (
            [{"segmentation": [LEFT]}, {"segmentation": [RIGHT]}],
            "'a.png', Radius: instances of one class touch and become one.",
        ),
        (
            [{"segmentation": [LEFT], "iscrowd": 1}],
            "annotation 0: a crowd, which means that nobody knows, is left out.",
        ),
    ],
)
def test_nothing_is_lost_unless_allowed(
    annotations: list[dict[str, object]], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, there = write_coco(tmp_path / "a.json", annotations), tmp_path / "m"
    flags = (path, there, *formats("coco", "masks", "--image_files", "none"))
    assert run(*flags) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}") and sentence in said and said.endswith("Give --lossy to go on without.\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json"], "nothing is left behind"
    assert run(*flags, "--lossy") == 0
    assert "lost: " in capsys.readouterr().out and (there / "a" / "Radius.png").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"segmentation": []}, "annotation 0: it has no segmentation, only a box"),
        ({"segmentation": [[1, 2, 3, 4]]}, "annotation 0: a polygon must be x y x y"),
        ({"segmentation": [[1, 2, 3, 4, 5, None]]}, "annotation 0: a polygon must be x y x y"),
        ({"segmentation": [["x"]]}, "annotation 0: could not convert"),
        ({"segmentation": {"size": [8, 6], "counts": "0"}}, "its mask is of size [8, 6], but the image of [6, 8]"),
        ({"segmentation": {"size": [6, 8], "counts": [9]}}, "annotation 0: counts add up to 9, but the image has 48"),
        ({"segmentation": {"size": [6, 8]}}, "annotation 0: its mask has no counts"),
        ({"category_id": 9, "segmentation": [LEFT]}, "annotation 0 is of an unknown image or category"),
        ({"id": "x", "segmentation": [LEFT]}, "annotations hold the id 'x', which is no number or there twice"),
    ],
)
def test_coco_that_is_wrong(
    change: dict[str, object], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_coco(tmp_path / "a.json", [change])
    assert run(path, tmp_path / "m", *formats("coco", "masks", "--image_files", "none")) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}: ") and sentence in said and said.count("\n") == 1
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("[]", "holds no JSON object"), ("{", "is not JSON"), ("{}", "has no list 'categories'")],
)
def test_files_that_are_no_coco(text: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(text)
    assert run(tmp_path / "a.json", tmp_path / "m", *formats("coco", "masks")) == 1
    assert sentence in capsys.readouterr().err


def yolo_set(root: Path, line: str, names: str = "names: [Radius, Ulna]") -> Path:
    for folder in ("images", "labels"):
        (root / folder / "train").mkdir(parents=True)
    cv2.imwrite(str(root / "images" / "train" / "a.png"), np.zeros((10, 20), np.uint8))
    cv2.imwrite(str(root / "images" / "train" / "bare.png"), np.zeros((10, 20), np.uint8))
    (root / "labels" / "train" / "a.txt").write_text(line)
    (root / "data.yaml").write_text(names)
    return root


def test_yolo_as_others_write_it(tmp_path: Path) -> None:
    # Vertices at whole pixels, as shares of the size, with six digits; names as a map; one image without a text file.
    line = "1 0.100000 0.2 0.4 0.200000 0.4 0.6 0.1 0.6\n\n"
    root = yolo_set(tmp_path / "yolo", line, "path: .\nnames:\n  0: Radius\n  1: Ulna\n")
    assert run(root, tmp_path / "m", *formats("yolo", "masks")) == 0
    ulna = cv2.imread(str(tmp_path / "m" / "a" / "Ulna.png"), 0) > 0
    assert ulna[2:7, 2:9].all() and ulna.sum() == 35
    assert not any(cv2.imread(str(path), 0).any() for path in (tmp_path / "m" / "bare").iterdir())


@pytest.mark.parametrize(
    ("line", "names", "sentence"),
    [
        ("2 0 0 1 0 1 1", "", "a.txt, line 1: a line must be the number of a class, 0 to 1, and a polygon."),
        ("x", "", "a.txt, line 1: a line must be the number of a class"),
        ("\n0.5 0 0 1 0 1 1", "", "a.txt, line 2: a line must be the number of a class"),
        ("0 0.5 0.5 0.2 0.2", "", "a.txt, line 1 is a box and no outline"),
        ("0 0.5 0.5 0.2", "", "a.txt, line 1: a polygon must be x y x y"),
        ("0 0 0 1 0 1 1.5", "", "a.txt, line 1: a polygon must be x y x y"),
        ("0 0 0 1 0 1 nan", "", "a.txt, line 1: a polygon must be x y x y"),
        ("", "names: 3", "data.yaml has no names of classes, numbered from 0"),
        ("", "names: {1: Radius}", "data.yaml has no names of classes, numbered from 0"),
        ("", "names: [Radius, Radius]", "class name 'Radius' is empty or there twice"),
        ("", "names: []", "data.yaml names no classes"),
        ("", "{", "data.yaml is not YAML"),
        ("0 0 0 .4 0 .4 .4\n0 .4 0 .9 0 .9 .4", "", "a.txt: Radius: instances of one class touch and become one."),
    ],
)
def test_yolo_that_is_wrong(
    line: str, names: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = yolo_set(tmp_path / "yolo", line, names or "names: [Radius, Ulna]")
    assert run(root, tmp_path / "m", *formats("yolo", "masks")) == 1
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and not (tmp_path / "m").exists()


def test_lone_labels_of_yolo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = yolo_set(tmp_path / "yolo", "")
    (root / "labels" / "train" / "c.txt").write_text("")
    assert run(root, tmp_path / "m", *formats("yolo", "masks")) == 1
    assert f"c.txt has no image in {root}/images/train: add it" in capsys.readouterr().err
    assert run(root, tmp_path / "m", *formats("yolo", "masks", "--splits", "val")) == 1
    assert "val holds no images" in capsys.readouterr().err


def nnunet_set(root: Path, numbers: NDArray[np.uint8], **told: object) -> Path:
    (root / "labelsTr").mkdir(parents=True)
    cv2.imwrite(str(root / "labelsTr" / "case.png"), numbers)
    labels = {"background": 0, "Radius": 1, "Ulna": [2, 3], "ignore": 4}
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".png", **told}))
    return root


def test_nnunet_as_others_write_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = nnunet_set(tmp_path / "n", np.array([[0, 1, 2, 3]], np.uint8))
    flags = formats("nnunet", "masks", "--image_files", "none")
    assert run(root, tmp_path / "m", *flags) == 0
    radius, ulna = (cv2.imread(str(tmp_path / "m" / "case" / f"{name}.png"), 0) for name in ("Radius", "Ulna"))
    assert radius.tolist() == [[0, 255, 0, 0]] and ulna.tolist() == [[0, 0, 255, 255]]
    for numbers, sentence in (
        ([[4]], "case.png: pixels that nnU-Net is to ignore become background."),
        ([[9]], "case.png holds the number 9, which is no class in dataset.json."),
        ([[[1, 2, 3]]], "case.png is no label map"),
    ):
        cv2.imwrite(str(root / "labelsTr" / "case.png"), np.array(numbers, np.uint8))
        assert run(root, tmp_path / "m2", *flags) == 1 and sentence in capsys.readouterr().err
    for told, sentence in (
        ({"labels": {"background": 0, "a": "1"}}, "class 'a' must be a number from 1 up or a list of such, but is '1'"),
        ({"file_ending": ".nii.gz"}, "file_ending '.nii.gz' is none of 2D images"),
        ({"image_names": {"case": "../x.png"}}, "'../x.png' is no path of an image below a folder"),
    ):
        shutil.rmtree(root)
        assert run(nnunet_set(root, np.zeros((1, 1), np.uint8), **told), tmp_path / "m2", *flags) == 1
        assert sentence in capsys.readouterr().err
    assert run(root, tmp_path / "m2", *flags, "--splits", "val") == 2
    assert run(root, tmp_path / "m2", *flags, "--splits", "test") == 1


def test_colours_and_depth_are_not_lost_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "labels"
    root.mkdir()
    label = {"imageHeight": 4, "imageWidth": 6, "shapes": [{"label": "Ulna", "points": [[0, 0], [3, 0], [3, 3]]}]}
    (root / "a.json").write_text(json.dumps(label))
    there, flags = tmp_path / "Dataset001_x", formats("data", "nnunet")
    for picture in (np.full((4, 6), 300, np.uint16), np.full((4, 6, 3), (1, 2, 3), np.uint8)):
        cv2.imwrite(str(root / "a.png"), picture)
        assert run(root, there, *flags) == 1
        assert "a.png: colours or more than 8 bits become 8-bit grey for nnU-Net." in capsys.readouterr().err
    assert run(root, there, *flags, "--lossy") == 0 and (there / "imagesTr" / "a_0000.png").exists()


def test_labels_of_other_images_are_refused(ringed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "coco"
    assert run(ringed / "masks", there, *formats("masks", "coco"), "--images", ringed / "images", *CLASSES) == 0
    cv2.imwrite(str(there / "images" / "train" / "ID2" / "b.png"), np.zeros((40, 48), np.uint8))
    flags = formats("coco", "yolo", "--images", there / "images" / "train")
    assert run(there / "annotations" / "instances_train.json", tmp_path / "m", *flags) == 1
    assert "b.png is 48 x 40 px, but its labels are of 40 x 48: give the images" in capsys.readouterr().err
    assert run(there / "annotations" / "instances_train.json", tmp_path / "m", *formats("coco", "yolo")) == 1
    assert "image 'ID1/a.png' has no file: give --images, or --image_files none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (formats("data", "masks", "--splits", "train", "test"), "splits names 2, but masks can't tell them apart"),
        (formats("csv", "yolo", "--splits", "train", "test"), "splits names 2, but csv can't tell them apart"),
        (formats("data", "yolo", "--splits", "train", "train"), "but must name one split or more, each once"),
        (formats("data", "yolo", "--images", "."), "images is for masks, csv and coco; data holds its own"),
        (formats("masks", "yolo", "--images", "nowhere"), "images is nowhere, but must be the folder of the images"),
        (formats("csv", "yolo"), "masks must be a folder and csv a file"),
        (formats("data", "yolo", "--coco_polygons"), "coco_polygons has no effect on yolo"),
        (formats("data", "nnunet"), "nnU-Net wants a folder called like Dataset101_Hand, not 'out': call it so."),
    ],
)
def test_flags_that_are_wrong(
    words: tuple[object, ...], sentence: str, hands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(hands, tmp_path / "out", *words) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_nnunet_has_no_val(hands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    shutil.copytree(hands, root)
    (root / "test").rename(root / "val")
    assert run(root, tmp_path / "Dataset001_x", *formats("data", "nnunet", "--splits", "train", "val")) == 2
    assert "splits holds 'val', but nnU-Net knows train and test only" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_csv_needs_its_images(ringed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--images", ringed / "images")
    assert run(ringed / "masks", tmp_path / "a.csv", *formats("masks", "csv"), *flags, *CLASSES) == 0
    assert run(tmp_path / "a.csv", tmp_path / "m", *formats("csv", "masks")) == 2
    assert "a CSV does not know the sizes of its images" in capsys.readouterr().err
    assert run(tmp_path / "a.csv", tmp_path / "m", *formats("csv", "masks"), "--images", ringed / "images" / "ID1") == 1
    assert "holds 'b.png' (1 in all), which is no image in" in capsys.readouterr().err


def test_outputs_and_classes_are_looked_at_first(
    hands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    assert run(hands, tmp_path / "there", *formats("data", "yolo")) == 1
    assert "there exists and is never overwritten" in capsys.readouterr().err
    assert (tmp_path / "there" / "mine").read_text() == "mine"
    path = write_coco(tmp_path / "a.json", [])
    assert run(path, tmp_path / "m", *formats("coco", "masks", "--classes", "Radius", "Ulan")) == 1
    assert "'Ulna' is no class (did you mean Ulan?). Correct it or set --classes." in capsys.readouterr().err


def test_classes_can_be_put_in_another_order(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "a.json", [{"segmentation": [LEFT]}])
    flags = formats("coco", "yolo", "--image_files", "none")
    assert run(path, tmp_path / "y", *flags, *CLASSES) == 0
    assert (tmp_path / "y" / "labels" / "train" / "a.txt").read_text().startswith("0 ")
    assert run(path, tmp_path / "z", *flags) == 0, "by the ids"
    assert (tmp_path / "z" / "labels" / "train" / "a.txt").read_text().startswith("1 ")


def test_shapes_that_yolo_cannot_hold_are_traced(tmp_path: Path) -> None:
    """Vertices outside of the image, and polygons of one class that meet: the pixels stay."""
    root = tmp_path / "data"
    for folder in ("DCM", "outputs_json"):
        (root / "train" / folder).mkdir(parents=True)
    cv2.imwrite(str(root / "train" / "DCM" / "a.png"), np.zeros((30, 20), np.uint8))
    polygons = {"Radius": [[[-5, 4], [9, 4], [9, 12]]], "Ulna": [[[2, 2], [8, 2], [8, 8]], [[8, 8], [14, 8], [14, 20]]]}
    label = [{"label": name, "points": points} for name, several in polygons.items() for points in several]
    (root / "train" / "outputs_json" / "a.json").write_text(json.dumps({"annotations": label}))
    assert run(root, tmp_path / "direct", *formats("data", "masks")) == 0
    assert run(root, tmp_path / "yolo", *formats("data", "yolo")) == 0
    assert run(tmp_path / "yolo", tmp_path / "back", *formats("yolo", "masks")) == 0
    assert same_pixels(tmp_path / "direct", tmp_path / "back")


def test_the_command_starts_without_what_it_does_not_need() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "scripts" / "convert.py"), "--help"],
        cwd=ROOT / "scripts",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--coco_polygons" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "numba", "cv2", "numpy", "yaml"}
