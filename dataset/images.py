"""Radiograph files -> gray uint8 arrays, strictly: half a file is an error, not a gray area."""

from __future__ import annotations

import re
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from dataset.png import SIGNATURE, decode_gray
from engine.files import FileProblem

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".dcm")

TIFF = (b"II*\0", b"MM\0*")
"""How a TIFF begins."""

# OpenCV prints pages about a broken file, where we raise one sentence.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode PNG, JPEG, TIFF, BMP, WebP or DICOM, 8 or 16 bit, gray or colour.

    Returns:
        (H, W) uint8, bright bones on a dark ground. Deeper data is scaled by the DICOM window or by its own range.

    Raises:
        FileProblem: missing, empty, truncated or undecodable; names the file.
    """
    data = read_encoded(path)
    if is_dicom(path, data):
        return _read_dicom(path)
    try:
        image: NDArray[Any] | None = decode_gray(data) if data.startswith(SIGNATURE) else None
        if image is None:
            # ANYDEPTH keeps 16 bits; GRAYSCALE of three equal channels is exact.
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    except (cv2.error, ValueError):
        image = None
    if image is None:
        raise FileProblem(f"{path} is not a readable image: fetch the file again or remove it from the set.")
    if image.dtype != np.uint8:
        if not np.isfinite(image).all():
            raise FileProblem(f"{path} holds values that are no numbers (NaN or infinity): export it again.")
        return scale_to_uint8(image.astype(np.float32))
    return np.asarray(image, dtype=np.uint8)


def read_encoded(path: Path) -> bytes:
    """An image file as it is, its container checked: for decoders that take half a file without complaint.

    Raises:
        FileProblem: missing, empty, truncated, or of several pages or frames; names the file. What is inside of a
            DICOM file is not checked.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileProblem(f"{path} cannot be read ({error.strerror}): check the path and its permissions.") from None
    if is_dicom(path, data):
        return data
    if fault := _fault(data):
        raise FileProblem(f"{path} is {fault}: fetch the file again or remove it from the set.")
    if _is_animated(data) or (data.startswith(TIFF) and len(_tiff_pages(data)) > 1):
        raise FileProblem(
            f"{path} holds several pages or frames, but must be one image: save the one that is meant as a file."
        )
    return data


def is_dicom(path: Path, data: bytes) -> bool:
    """Whether a file of this name and content is DICOM."""
    return path.suffix.casefold() == ".dcm" or data[128:132] == b"DICM"


def image_shape(path: Path) -> tuple[int, int]:
    """Height and width of an image file, from its first bytes where those of PNG and JPEG tell.

    Raises:
        FileProblem: the file can't be read, or must be decoded and can't be.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
    except OSError as error:
        raise FileProblem(f"{path} cannot be read ({error.strerror}): check the path and its permissions.") from None
    turned = b"Exif" in head or b"eXIf" in head  # a camera's note that the picture is to be rotated
    if head.startswith(SIGNATURE) and len(head) >= 24 and not turned:
        return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
    if head.startswith(b"\xff\xd8") and not turned and (start := _jpeg_frame(head)):
        return int.from_bytes(head[start + 5 : start + 7], "big"), int.from_bytes(head[start + 7 : start + 9], "big")
    height, width = read_image(path).shape
    return height, width


def scale_to_uint8(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Map the range of `values` to 0..255; a constant image becomes 0."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    return np.asarray(np.rint((values - low) * (255.0 / (high - low))), dtype=np.uint8)


_DICOM = threading.Lock()
"""pydicom tells of a cut file by a warning, and warnings can't be caught in two threads at once."""


def _read_dicom(path: Path) -> NDArray[np.uint8]:
    """First frame, through the modality LUT and the file's own window; MONOCHROME1 is inverted."""
    try:
        import pydicom
    except ImportError:
        raise FileProblem(f"{path} is DICOM, which needs pydicom: pip install pydicom.") from None
    try:
        with _DICOM, warnings.catch_warnings():
            warnings.filterwarnings("error", "End of file reached")  # pydicom only warns of a cut encapsulated image
            file = pydicom.dcmread(path)
        image = _dicom_grey(file)
    except Exception as error:  # pydicom raises many kinds for broken files, all of which mean the same to the user
        raise FileProblem(
            f"{path} is not a readable DICOM image ({_first_line(error)}): convert it or remove it."
        ) from error
    return 255 - image if file.PhotometricInterpretation == "MONOCHROME1" else image


def _dicom_grey(file: Any) -> NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut, apply_windowing

    pixels: NDArray[Any] = file.pixel_array
    if int(file.get("NumberOfFrames", 1) or 1) > 1:
        pixels = pixels[0]
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    elif file.get("VOILUTSequence"):
        pixels = apply_voi_lut(apply_modality_lut(pixels, file), file)
    elif None not in (file.get("WindowCenter"), file.get("WindowWidth")):
        shown = apply_windowing(apply_modality_lut(pixels, file), file)
        with np.errstate(over="ignore"):  # what the window makes of values far below and far above it
            black, white = apply_windowing(np.array([-1e9, 1e9]), file)
        return np.asarray(np.clip(np.rint((shown - black) * (255 / (white - black))), 0, 255), dtype=np.uint8)
    else:
        pixels = apply_modality_lut(pixels, file)
    return np.asarray(pixels if pixels.dtype == np.uint8 else scale_to_uint8(pixels.astype(np.float32)), dtype=np.uint8)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160].rstrip(".")


def _fault(data: bytes) -> str:
    """What is wrong with the container ("" where nothing is). OpenCV decodes half a JPEG without complaint."""
    if not data:
        return "empty"
    if data.startswith(SIGNATURE):
        return _png_fault(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg_fault(data)
    if data.startswith(TIFF) and -1 in _tiff_pages(data):
        return "a truncated TIFF"
    if data.startswith(b"BM") and int.from_bytes(data[2:6], "little") > len(data):
        return "a truncated BMP"
    if data.startswith(b"RIFF") and int.from_bytes(data[4:8], "little") + 8 > len(data):
        return "a truncated WebP"
    return ""


def _png_fault(data: bytes) -> str:
    at, view = len(SIGNATURE), memoryview(data)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            return "a truncated PNG"
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return "a damaged PNG (checksum)"
        if data[at + 4 : at + 8] == b"IEND":
            return ""
        at = end
    return "a truncated PNG"


_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""What begins a segment; other bytes after FF are stuffing and restarts inside of coded pixels."""


def _jpeg_frame(head: bytes) -> int:
    """Where the start of frame lies (ITU T.81, B.2.2): marker, length, bits a sample, height, width; 0 where not."""
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        if 0xC0 <= head[at + 1] <= 0xCF and head[at + 1] not in (0xC4, 0xC8, 0xCC):
            return at
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return 0


def _jpeg_fault(data: bytes) -> str:
    # Segment by segment: neither the end marker of a thumbnail in the header nor bytes behind the picture may count.
    at = 2
    while found := _JPEG_MARKER.search(data, at):
        if found[0] == b"\xff\xd9":
            return ""
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return "a truncated JPEG"


def _tiff_pages(data: bytes) -> list[int]:
    """Where the directories of a TIFF's images begin (TIFF 6.0, section 2), previews and masks left out; -1 at last
    where their chain does not end.

    libtiff checks the pixels, but not that this chain, mostly the file's last bytes, ends with 0.
    """
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    at, seen, pages = 4, set[int](), list[int]()
    while at not in seen:
        seen.add(at)
        if at + 4 > len(data):
            return [*pages, -1]
        start = int.from_bytes(data[at : at + 4], order)
        if not start:
            break
        count = int.from_bytes(data[start : start + 2], order)
        entries = (data[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count))
        # NewSubfileType: bit 0 is a smaller copy, bit 2 a transparency mask.
        kinds = (int.from_bytes(e[8:12], order) for e in entries if int.from_bytes(e[:2], order) == 254)
        pages += [] if any(kind & 5 for kind in kinds) else [start]
        at = start + 2 + 12 * count
    return pages


def _is_animated(data: bytes) -> bool:
    """Whether a whole PNG (APNG: a chunk acTL before the pixels) or WebP (a bit of its header) has several frames."""
    if data.startswith(SIGNATURE):
        return b"acTL" in data[: data.find(b"IDAT")]
    return data[8:16] == b"WEBPVP8X" and bool(data[20] & 2)
