"""dataset/images.py: every type and depth decodes, and half a file never does."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, RLELossless

from dataset.images import IMAGE_SUFFIXES, read_image, scale_to_uint8
from engine.files import FileProblem


def picture(height: int = 90, width: int = 70) -> NDArray[np.uint8]:
    """Smooth (so that lossy types stay near) and using the whole range."""
    noise = np.random.default_rng(0).random((height, width)).astype(np.float32)
    return scale_to_uint8(cv2.GaussianBlur(noise, (0, 0), 3))


GREY = picture()
DEEP = GREY.astype(np.uint16) * 257


def encode(suffix: str, image: NDArray[Any], *options: int) -> bytes:
    return cv2.imencode(suffix, image, list(options))[1].tobytes()


def dicom(pixels: NDArray[Any], bits: int, photometric: str = "MONOCHROME2", rle: bool = False, **tags: Any) -> bytes:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = DigitalXRayImageStorageForPresentation, "1.2.3"
    frames = int(tags.get("NumberOfFrames", 1)) > 1
    ds.Rows, ds.Columns = pixels.shape[1:3] if frames else pixels.shape[:2]
    ds.SamplesPerPixel = 3 if photometric == "RGB" else 1
    ds.PhotometricInterpretation = photometric
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    if photometric == "RGB":
        ds.PlanarConfiguration = 0
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.PixelData = pixels.tobytes()
    if rle:
        ds.compress(RLELossless)
    file = io.BytesIO()
    pydicom.dcmwrite(file, ds, enforce_file_format=True)
    return file.getvalue()


def tiff(image: NDArray[np.uint8], deflate: bool, rows: int) -> bytes:
    """A TIFF whose directory comes first and whose pixels come last, the other way round from OpenCV's writer."""
    height, width = image.shape
    strips = [image[top : top + rows].tobytes() for top in range(0, height, rows)]
    if deflate:
        strips = [zlib.compress(strip) for strip in strips]
    n, entries = len(strips), 9
    lists_at = 8 + 2 + 12 * entries + 4
    offsets = np.cumsum([lists_at + 8 * n, *(len(s) for s in strips[:-1])])
    short, long = 3, 4
    tags = [
        (256, short, 1, width),
        (257, short, 1, height),
        (258, short, 1, 8),
        (259, short, 1, 8 if deflate else 1),
        (262, short, 1, 1),
        (273, long, n, lists_at),
        (277, short, 1, 1),
        (278, short, 1, rows),
        (279, long, n, lists_at + 4 * n),
    ]
    out = b"II*\0" + struct.pack("<IH", 8, entries) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return out + struct.pack(f"<I{n}I{n}I", 0, *offsets, *(len(s) for s in strips)) + b"".join(strips)


def with_exif_thumbnail(jpeg: bytes) -> bytes:
    """A whole JPEG, end marker and all, in the header of another."""
    content = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + encode(".jpg", GREY[:24, :24])
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


def pillow(kind: str, image: NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


JPEG = encode(".jpg", GREY, cv2.IMWRITE_JPEG_QUALITY, 95)
SIZELESS_BMP = encode(".bmp", GREY)
SIZELESS_BMP = SIZELESS_BMP[:2] + bytes(4) + SIZELESS_BMP[6:]

FILES: dict[str, tuple[str, bytes, int]] = {
    "png": (".png", encode(".png", GREY), 0),
    "png interlaced chunks": (".PNG", pillow("PNG", GREY, optimize=True), 0),
    "png 16": (".png", encode(".png", DEEP), 0),
    "jpeg": (".jpg", JPEG, 6),
    "jpeg progressive": (".jpeg", encode(".jpg", GREY, cv2.IMWRITE_JPEG_PROGRESSIVE, 1), 6),
    "jpeg restarts": (".jpg", encode(".jpg", GREY, cv2.IMWRITE_JPEG_RST_INTERVAL, 2), 6),
    "jpeg thumbnail": (".jpg", with_exif_thumbnail(JPEG), 6),
    "tiff": (".tif", encode(".tif", GREY), 0),
    "tiff plain": (".tiff", encode(".tif", GREY, cv2.IMWRITE_TIFF_COMPRESSION, 1), 0),
    "tiff 16": (".tif", encode(".tif", DEEP), 0),
    "tiff big-endian": (".tif", pillow("TIFF", GREY), 0),
    "tiff lzw": (".tif", pillow("TIFF", GREY, compression="tiff_lzw"), 0),
    "tiff packbits": (".tif", pillow("TIFF", GREY, compression="packbits"), 0),
    "tiff jpeg": (".tif", pillow("TIFF", GREY, compression="jpeg"), 12),
    "tiff pixels last": (".tif", tiff(GREY, False, 45), 0),
    "tiff deflate last": (".tif", tiff(GREY, True, 16), 0),
    "bmp": (".bmp", encode(".bmp", GREY), 0),
    "bmp without size": (".bmp", SIZELESS_BMP, 0),
    "webp": (".webp", encode(".webp", GREY, cv2.IMWRITE_WEBP_QUALITY, 95), 8),
    "webp lossless": (".webp", encode(".webp", GREY, cv2.IMWRITE_WEBP_QUALITY, 101), 0),
    "dicom 8": (".dcm", dicom(GREY, 8), 0),
    "dicom 16": (".dcm", dicom(DEEP, 16), 0),
}
"""Name -> suffix, bytes and the largest grey level by which a lossy type may differ."""


def put(folder: Path, data: bytes, suffix: str = ".png") -> Path:
    path = folder / f"image{suffix}"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", FILES)
def test_every_type_decodes(name: str, tmp_path: Path) -> None:
    suffix, data, levels = FILES[name]
    assert suffix.casefold() in IMAGE_SUFFIXES
    image = read_image(put(tmp_path, data, suffix))
    assert image.dtype == np.uint8 and image.shape == GREY.shape
    assert np.abs(image.astype(int) - GREY).max() <= levels


def cuts(size: int) -> list[int]:
    return sorted({int(size * share) for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)} | {size - 2, size - 1})


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_one_sentence(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """OpenCV alone decodes half a JPEG into a gray area."""
    suffix, data, _ = FILES[name]
    for cut in cuts(len(data)):
        path = put(tmp_path, data[:cut], suffix)
        with pytest.raises(FileProblem) as problem:
            read_image(path)
        assert str(path) in str(problem.value) and "\n" not in str(problem.value), cut
        assert "fetch the file again" in str(problem.value) or "convert it" in str(problem.value)
    if suffix != ".dcm":
        assert capfd.readouterr().err == "", "libraries must not print beside our sentence"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_truncated_compressed_dicom(tmp_path: Path) -> None:
    data = dicom(DEEP, 16, rle=True)
    np.testing.assert_array_equal(read_image(put(tmp_path, data, ".dcm")), GREY)
    for cut in [*cuts(len(data))[:-2], len(data) - 8]:  # the last 8 bytes only say that the pixels are over
        with pytest.raises(FileProblem, match="DICOM"):
            read_image(put(tmp_path, data[:cut], ".dcm"))


@pytest.mark.parametrize(
    "tail", [b"garbage", b"\xff\xda\x00\x08 looks like a scan", JPEG, JPEG[: len(JPEG) // 2], bytes(100)]
)
def test_bytes_behind_the_end_of_a_jpeg_are_legal(tail: bytes, tmp_path: Path) -> None:
    whole = read_image(put(tmp_path, JPEG, ".jpg"))
    np.testing.assert_array_equal(read_image(put(tmp_path, JPEG + tail, ".jpg")), whole)


def test_a_jpeg_that_lost_its_picture_but_not_its_thumbnail(tmp_path: Path) -> None:
    data = with_exif_thumbnail(JPEG)
    for cut in range(len(data) - len(JPEG), len(data), 97):
        with pytest.raises(FileProblem):
            read_image(put(tmp_path, data[:cut], ".jpg"))


def test_a_damaged_png(tmp_path: Path) -> None:
    data = bytearray(FILES["png"][1])
    data[len(data) // 2] ^= 1
    with pytest.raises(FileProblem, match="damaged PNG"):
        read_image(put(tmp_path, bytes(data)))


def test_three_equal_channels_decode_exactly(tmp_path: Path) -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for suffix in (".png", ".bmp", ".tif"):
        image = read_image(put(tmp_path, encode(suffix, cv2.merge([every] * 3)), suffix))
        np.testing.assert_array_equal(image, every)
    np.testing.assert_array_equal(read_image(put(tmp_path, encode(".png", cv2.merge([every] * 4)))), every)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp", ".bmp"])
def test_colour_becomes_luminance(suffix: str, tmp_path: Path) -> None:
    colour = np.full((20, 30, 3), (10, 100, 200), np.uint8)  # blue, green, red
    image = read_image(put(tmp_path, encode(suffix, colour), suffix))
    expected = 0.114 * 10 + 0.587 * 100 + 0.299 * 200
    assert image.shape == (20, 30) and np.abs(image - expected).max() < 4


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_deep_images_are_scaled_by_their_own_range(suffix: str, tmp_path: Path) -> None:
    deep = np.array([[1000, 1500], [2000, 3000]], np.uint16)
    expected = np.array([[0, 64], [128, 255]])
    np.testing.assert_array_equal(read_image(put(tmp_path, encode(suffix, deep), suffix)), expected)
    colour = read_image(put(tmp_path, encode(suffix, cv2.merge([deep] * 3)), suffix))
    assert np.abs(colour.astype(int) - expected).max() <= 1
    flat = np.full((4, 5), 700, np.uint16)
    np.testing.assert_array_equal(read_image(put(tmp_path, encode(suffix, flat), suffix)), np.zeros((4, 5)))


def test_float_tiff(tmp_path: Path) -> None:
    values = np.array([[-1.0, 0.0], [0.5, 1.0]], np.float32)
    plain = (cv2.IMWRITE_TIFF_COMPRESSION, 1)
    image = read_image(put(tmp_path, encode(".tif", values, *plain), ".tif"))
    np.testing.assert_array_equal(image, [[0, 128], [191, 255]])
    values[0, 0] = np.nan
    with pytest.raises(FileProblem, match="no numbers"):
        read_image(put(tmp_path, encode(".tif", values, *plain), ".tif"))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (33, 57)])
def test_any_size_and_aspect(size: tuple[int, int], tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, size).astype(np.uint8)
    for suffix, data in ((".png", encode(".png", image)), (".bmp", encode(".bmp", image)), (".dcm", dicom(image, 8))):
        np.testing.assert_array_equal(read_image(put(tmp_path, data, suffix)), image)


RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)


def test_dicom_monochrome1_is_inverted(tmp_path: Path) -> None:
    plain = read_image(put(tmp_path, dicom(RAMP, 12), ".dcm"))
    assert plain.min() == 0 and plain.max() == 255
    inverted = read_image(put(tmp_path, dicom(RAMP, 12, "MONOCHROME1"), ".dcm"))
    np.testing.assert_array_equal(inverted, 255 - plain)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_dicom_of_10_to_16_bits_is_scaled(bits: int, tmp_path: Path) -> None:
    pixels = (np.linspace(0.1, 0.6, 400).reshape(20, 20) * (2**bits - 1)).astype(np.uint16)
    image = read_image(put(tmp_path, dicom(pixels, bits), ".dcm"))
    np.testing.assert_array_equal(image, scale_to_uint8(pixels.astype(np.float32)))
    signed = read_image(put(tmp_path, dicom(pixels.astype(np.int32).astype(np.int16) - 50, 16), ".dcm"))
    if bits < 16:
        np.testing.assert_array_equal(signed, image)


@pytest.mark.parametrize("pixels", [RAMP, RAMP // 4 + 1000], ids=["beyond", "within"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("rescale", [None, (1.0, 0.0), (2.0, -1024.0), (-1.0, 4095.0)])
def test_dicom_window(
    pixels: NDArray[np.uint16], photometric: str, rescale: tuple[float, float] | None, tmp_path: Path
) -> None:
    """DICOM PS3.3 C.11.2.1.2.1, to 0..255: also where the data fill only a part of the window."""
    centre, width = 1600.0, 2001.0
    slope, intercept = rescale or (1.0, 0.0)
    tags = {"RescaleSlope": slope, "RescaleIntercept": intercept} if rescale else {}
    data = dicom(pixels, 12, photometric, WindowCenter=centre, WindowWidth=width, **tags)
    x = pixels * slope + intercept
    expected = np.clip(((x - (centre - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)
    if photometric == "MONOCHROME1":
        expected = 255 - expected
    assert np.abs(read_image(put(tmp_path, data, ".dcm")) - expected).max() <= 0.51


def test_dicom_other_windows(tmp_path: Path) -> None:
    several = dicom(RAMP, 12, WindowCenter=[1000, 5], WindowWidth=[500, 5])
    first = dicom(RAMP, 12, WindowCenter=1000, WindowWidth=500)
    np.testing.assert_array_equal(
        read_image(put(tmp_path, several, ".dcm")), read_image(put(tmp_path, first, ".dcm"))
    )
    sigmoid = dicom(RAMP, 12, WindowCenter=1000, WindowWidth=500, VOILUTFunction="SIGMOID")
    expected = 255 / (1 + np.exp(-4 * (RAMP - 1000.0) / 500))
    assert np.abs(read_image(put(tmp_path, sigmoid, ".dcm")) - expected).max() <= 0.51
    step = dicom(RAMP, 12, WindowCenter=1000, WindowWidth=1)
    np.testing.assert_array_equal(read_image(put(tmp_path, step, ".dcm")), np.where(RAMP > 999.5, 255, 0))
    impossible = dicom(RAMP, 12, WindowCenter=1000, WindowWidth=0)
    with pytest.raises(FileProblem, match="Window Width"):
        read_image(put(tmp_path, impossible, ".dcm"))


def test_dicom_8_bit_stays_as_it_is(tmp_path: Path) -> None:
    dim = GREY // 4 + 20
    np.testing.assert_array_equal(read_image(put(tmp_path, dicom(dim, 8), ".dcm")), dim)


def test_dicom_colour_frames_and_missing_suffix(tmp_path: Path) -> None:
    colour = cv2.merge([GREY, GREY, GREY])
    np.testing.assert_array_equal(read_image(put(tmp_path, dicom(colour, 8, "RGB"), ".dcm")), GREY)
    frames = np.stack([GREY, GREY[::-1]])
    np.testing.assert_array_equal(read_image(put(tmp_path, dicom(frames, 8, NumberOfFrames=2), ".dcm")), GREY)
    np.testing.assert_array_equal(read_image(put(tmp_path, dicom(GREY, 8), ".png")), GREY)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"this is no image\n" * 20, b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xd9", b"BM"])
def test_no_image_at_all(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = put(tmp_path, content, suffix)
    with pytest.raises(FileProblem) as problem:
        read_image(path)
    assert str(path) in str(problem.value) and "\n" not in str(problem.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"absent\.png cannot be read"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(FileProblem, match="cannot be read"):
        read_image(tmp_path)
