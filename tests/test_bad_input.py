"""Masks and labels as people have them: other sizes, colours, palettes, depths, pages; each works or says why not."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dataset.findings import look_at, stamp_of
from dataset.images import read_image
from dataset.labels import read_label, read_labelme
from dataset.masks import read_mask
from dataset.readers import Record
from engine.files import FileProblem

SHAPE = (20, 30)
TRUTH = np.zeros(SHAPE, bool)
TRUTH[4:15, 6:25] = True
OTHER = np.zeros(SHAPE, bool)
OTHER[14:19, 2:28] = True


def put(folder: Path, data: bytes, name: str = "a_mask.png") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def encoded(picture: NDArray[Any], suffix: str = ".png", *options: int) -> bytes:
    return cv2.imencode(suffix, picture, list(options))[1].tobytes()


def pillow(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def coloured(*parts: tuple[NDArray[np.bool_], tuple[int, ...]]) -> NDArray[np.uint8]:
    picture = np.zeros((*SHAPE, len(parts[0][1])), np.uint8)
    for mask, colour in parts:
        picture[mask] = colour
    return picture


def palette(indices: NDArray[np.generic], colours: list[int]) -> bytes:
    image = Image.fromarray(np.asarray(indices, np.uint8)).convert("P")
    image.putpalette(colours + [0] * (768 - len(colours)))
    return pillow(image, "PNG")


GREY = TRUTH.astype(np.uint8)

WORKS: dict[str, tuple[bytes, str]] = {
    "0/255": (encoded(GREY * 255), ".png"),
    "0/1": (encoded(GREY), ".png"),
    "0/127": (encoded(GREY * 127), ".png"),
    "one bit": (pillow(Image.fromarray(TRUTH), "PNG"), ".png"),
    "one bit TIFF": (pillow(Image.fromarray(TRUTH), "TIFF"), ".tif"),
    "three channels": (encoded(np.dstack([GREY * 255] * 3)), ".png"),
    "blue": (encoded(coloured((TRUTH, (255, 0, 0)))), ".png"),
    "dark green": (encoded(coloured((TRUTH, (0, 90, 0)))), ".png"),
    "transparent": (encoded(coloured((~TRUTH, (255, 255, 255, 0)), (TRUTH, (0, 0, 255, 255)))), ".png"),
    "palette black and red": (palette(GREY, [0, 0, 0, 128, 0, 0]), ".png"),
    "palette black and near black": (palette(GREY, [0, 0, 0, 0, 0, 9]), ".png"),
    "16 bit 0/65535": (encoded(GREY.astype(np.uint16) * 65535), ".png"),
    "16 bit 0/255": (encoded(GREY.astype(np.uint16) * 255), ".tif"),
    "float 0/1": (encoded(GREY.astype(np.float32), ".tiff"), ".tiff"),
    "float 0/255": (encoded(GREY.astype(np.float32) * 255, ".tiff"), ".tiff"),
    "JPEG": (encoded(GREY * 255, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 95), ".jpg"),
    "red JPEG": (encoded(coloured((TRUTH, (0, 0, 255))), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 100), ".jpg"),
    "BMP": (encoded(GREY * 255, ".bmp"), ".bmp"),
    "WebP": (encoded(GREY * 255, ".webp", cv2.IMWRITE_WEBP_QUALITY, 101), ".webp"),
}


@pytest.mark.parametrize("kind", WORKS)
def test_masks_that_work(kind: str, tmp_path: Path) -> None:
    data, suffix = WORKS[kind]
    found = read_mask(put(tmp_path, data, f"a_mask{suffix}"))
    assert found.dtype == bool
    assert np.count_nonzero(found ^ TRUTH) <= (12 if "red JPEG" in kind else 0)


def test_an_empty_mask_and_a_full_one(tmp_path: Path) -> None:
    assert not read_mask(put(tmp_path, encoded(GREY * 0))).any()
    assert read_mask(put(tmp_path, encoded(GREY * 0 + 1))).all()


def test_soft_edges_are_cut_in_the_middle(tmp_path: Path) -> None:
    soft = cv2.GaussianBlur(GREY * 255, (0, 0), 1.5)
    np.testing.assert_array_equal(read_mask(put(tmp_path, encoded(soft))), soft > 127)
    red = np.dstack([soft * 0, soft * 0, soft])
    np.testing.assert_array_equal(read_mask(put(tmp_path, encoded(red))), soft > 127)


MULTI = (TRUTH.astype(np.uint8) + 2 * (OTHER & ~TRUTH)).astype(np.uint8)
REFUSED: dict[str, tuple[bytes, str, str]] = {
    "label map": (encoded(MULTI), ".png", r"several values beside 0 and none above 127\.5 \(the highest is 2\)"),
    "palette of classes": (palette(MULTI, [0, 0, 0, 128, 0, 0, 0, 128, 0]), ".png", "shows 2 colours beside black"),
    "two colours": (
        encoded(coloured((OTHER, (0, 255, 255)), (TRUTH, (0, 0, 255)))), ".png", "shows 2 colours beside black"
    ),
    "16-bit label map": (encoded(MULTI.astype(np.uint16)), ".tif", "several values beside 0"),
    "below 0": (encoded(GREY.astype(np.float32) - 0.5, ".tiff"), ".tiff", "values below 0 or that are no numbers"),
    "NaN": (encoded(np.where(TRUTH, np.nan, 0).astype(np.float32), ".tiff"), ".tiff", "that are no numbers"),
    "only transparency": (encoded(coloured((TRUTH, (0, 0, 0, 255)))), ".png", "only its transparency shows something"),
    "no image": (b"masks", ".png", "is not a readable mask"),
    "empty file": (b"", ".png", "is empty: fetch the file again"),
    "half a file": (encoded(GREY * 255)[:-20], ".png", "is a truncated PNG"),
    "DICOM": (b"\0" * 128 + b"DICM", ".dcm", "is not a readable mask"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_masks_that_say_why_not(kind: str, tmp_path: Path) -> None:
    data, suffix, said = REFUSED[kind]
    path = put(tmp_path, data, f"a_mask{suffix}")
    with pytest.raises(FileProblem, match=said) as problem:
        read_mask(path)
    assert str(problem.value).startswith(str(path)) and "\n" not in str(problem.value)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(1, 255), st.integers(0, 255), st.sampled_from(["grey", "bgr"]))
def test_two_values_work_unless_both_are_dark(
    tmp_path_factory: pytest.TempPathFactory, high: int, low: int, kind: str
) -> None:
    """What lies at half and below is background only where something lies above."""
    high, low = max(high, low), min(high, low)
    picture = np.where(TRUTH, high, low).astype(np.uint8)
    data = encoded(picture if kind == "grey" else np.dstack([picture] * 3))
    path = put(tmp_path_factory.getbasetemp(), data, "two_values.png")
    if high > 127 or low in (0, high):
        np.testing.assert_array_equal(read_mask(path), picture > (127 if high > 127 else 0))
    else:
        with pytest.raises(FileProblem, match="several values"):
            read_mask(path)


# --- sizes


def record_with(folder: Path, mask: NDArray[Any], shape: tuple[int, int] = SHAPE) -> Record:
    image = put(folder, encoded(np.resize(np.arange(250, dtype=np.uint8), shape)), "a.png")
    path = put(folder, encoded(mask))
    return Record(image, path, "a", None, "masks", (("bone", path),))


@pytest.mark.parametrize("factor", [2, 3, 0.5])
def test_a_mask_of_a_copy_is_resized(factor: float, tmp_path: Path) -> None:
    size = (round(SHAPE[1] * factor), round(SHAPE[0] * factor))
    record = record_with(tmp_path, cv2.resize(GREY * 255, size, interpolation=cv2.INTER_NEAREST_EXACT))
    bits = read_label(record, ["bone"], *SHAPE)
    assert np.count_nonzero((bits[0] != 0) ^ TRUTH) <= (0 if factor > 1 else 60)
    finding = look_at(tmp_path, record, ["bone"], stamp_of(record))
    assert [(f.severity, f.kind) for f in finding.faults] == [("warning", "mask of another size")]
    assert finding.faults[0].detail == f"is {size[0]} x {size[1]} px, and is resized to its image's 30 x 20."


def test_a_mask_of_another_image(tmp_path: Path) -> None:
    record = record_with(tmp_path, GREY.T * 255)
    with pytest.raises(FileProblem, match=r"a_mask\.png is 20 x 30 px, but its image is 30 x 20, which is no enlarg"):
        read_label(record, ["bone"], *SHAPE)
    (fault,) = look_at(tmp_path, record, ["bone"], stamp_of(record)).faults
    assert (fault.severity, fault.kind, fault.path) == ("error", "unreadable label", "a_mask.png")


def test_an_unreadable_image_is_one_fault(tmp_path: Path) -> None:
    record = record_with(tmp_path, GREY)
    record.image.write_bytes(b"")
    (fault,) = look_at(tmp_path, record, ["bone"], stamp_of(record)).faults
    assert fault.kind == "unreadable image"


def test_classes_in_one_word_and_beyond(tmp_path: Path) -> None:
    classes = [f"c{k}" for k in range(35)]
    record = record_with(tmp_path, GREY)
    path = put(tmp_path, encoded(OTHER.astype(np.uint8)), "b.png")
    record = Record(record.image, path, "a", None, "masks", (("c3", record.masks[0][1]), ("c34", path)))
    bits = read_label(record, classes, *SHAPE)
    assert bits.shape == (2, *SHAPE)
    np.testing.assert_array_equal(bits[0], TRUTH * 8)
    np.testing.assert_array_equal(bits[1], OTHER * 4)


# --- images: several pages, depths


def pages(kind: str, count: int, **options: Any) -> bytes:
    frames = [Image.fromarray(np.full(SHAPE, 40 * k, np.uint8)) for k in range(count)]
    return pillow(frames[0], kind, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize(("kind", "suffix"), [("TIFF", ".tif"), ("WEBP", ".webp"), ("PNG", ".png")])
def test_several_pages_or_frames(kind: str, suffix: str, tmp_path: Path) -> None:
    path = put(tmp_path, pages(kind, 3), f"a{suffix}")
    for read in (read_image, read_mask):
        with pytest.raises(FileProblem, match="holds several pages or frames, but must be one image: save the one"):
            read(path)
    assert read_image(put(tmp_path, pages(kind, 1), f"b{suffix}")).shape == SHAPE


def test_a_preview_is_no_page(tmp_path: Path) -> None:
    data = bytearray(pages("TIFF", 2))
    second = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[second : second + 2], "little")
    second = int.from_bytes(data[second + 2 + 12 * count : second + 6 + 12 * count], "little")
    tags = [int.from_bytes(data[second + 2 + 12 * k : second + 4 + 12 * k], "little") for k in range(2)]
    assert tags == [256, 257], "the first entry becomes NewSubfileType, a smaller copy"
    data[second + 2 : second + 14] = (254).to_bytes(2, "little") + b"\4\0" + b"\1\0\0\0" + b"\1\0\0\0"
    assert read_image(put(tmp_path, bytes(data), "a.tif")).shape == SHAPE


@pytest.mark.parametrize("kind", [np.uint16, np.float32, np.float64])
def test_deep_tiffs(kind: type, tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, SHAPE[0] * SHAPE[1]).reshape(SHAPE)
    values = (ramp * (4000 if kind is np.uint16 else 1)).astype(kind)
    found = read_image(put(tmp_path, encoded(values, ".tiff"), "a.tiff"))
    assert np.abs(found - 255 * ramp).max() <= 1


# --- labelme


def labelme(folder: Path, shapes: list[dict[str, Any]], **more: Any) -> Record:
    record = record_with(folder, GREY)
    content = {"shapes": shapes, "imageHeight": SHAPE[0], "imageWidth": SHAPE[1], "imageData": None} | more
    return Record(record.image, put(folder, json.dumps(content).encode(), "a.json"), "a", None, "labelme")


SQUARE = {"label": "knee", "points": [[6.2, 4.9], [24.7, 4.1], [24.3, 14.6], [6.9, 14.2]], "shape_type": "polygon"}


def test_polygons_and_rectangles(tmp_path: Path) -> None:
    rectangle = {"label": "knee", "points": [[24.7, 14.2], [6.1, 4.8]], "shape_type": "rectangle"}
    for shape in (SQUARE, rectangle, {**SQUARE, "shape_type": None}):
        np.testing.assert_array_equal(read_label(labelme(tmp_path, [shape]), ["knee"], *SHAPE)[0], TRUTH)
    assert not read_label(labelme(tmp_path, []), ["knee"], *SHAPE).any()


def test_embedded_image_data_is_not_needed(tmp_path: Path) -> None:
    data = base64.b64encode(encoded(GREY)).decode()
    record = labelme(tmp_path, [SQUARE], imageData=data, imageHeight=None, imageWidth=None)
    np.testing.assert_array_equal(read_label(record, ["knee"], *SHAPE)[0], TRUTH)


@pytest.mark.parametrize(
    ("shape", "more", "said"),
    [
        ({**SQUARE, "label": "knees"}, {}, r"label 'knees' is no class \(did you mean knee\?\)"),
        ({**SQUARE, "label": 3}, {}, "label 3 is no name"),
        ({**SQUARE, "shape_type": "circle"}, {}, "knee is a circle, but must be a polygon or a rectangle"),
        ({**SQUARE, "points": [[1, 1]]}, {}, "a polygon has 1 points and needs three"),
        ({**SQUARE, "points": None}, {}, "points must be a list"),
        ({**SQUARE, "points": [[1, "x"], [2, 2]], "shape_type": "rectangle"}, {}, "points must be a list"),
        ({**SQUARE, "points": [[90, 90], [99, 90], [99, 99]]}, {}, "lies outside the 30 x 20 image"),
        (SQUARE, {"imageWidth": 60, "imageHeight": 40}, r"drawn on an image of 60 x 40 px, but a\.png is 30 x 20"),
    ],
)
def test_labelme_files_that_say_why_not(shape: dict[str, Any], more: dict[str, Any], said: str, tmp_path: Path) -> None:
    record = labelme(tmp_path, [shape], **more)
    with pytest.raises(FileProblem, match=said):
        read_label(record, ["knee"], *SHAPE)


def test_what_the_look_says_of_labelme(tmp_path: Path) -> None:
    record = labelme(tmp_path, [SQUARE, {**SQUARE, "label": "fibula"}])
    finding = look_at(tmp_path, record, ["knee", "tibia"], stamp_of(record))
    assert finding.classes == ["knee"]
    assert [(f.kind, f.path) for f in finding.faults] == [("extra label", "a.json")]
    for content, said in ((b"{", "is not JSON"), (b"{}", "has no list 'shapes': it is no labelme file")):
        put(tmp_path, content, "a.json")
        with pytest.raises(FileProblem, match=rf"a\.json {said}"):
            read_labelme(record, ["knee"])
