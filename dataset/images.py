"""Radiograph files -> gray uint8 arrays, strictly: half a file is an error, not a gray area."""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.files import FileProblem

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".dcm")


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode PNG, JPEG, TIFF, BMP, WebP or DICOM, 8 or 16 bit, gray or colour.

    Returns:
        (H, W) uint8, bright bones on a dark ground. Deeper data is scaled by the DICOM window or by its own range.

    Raises:
        FileProblem: missing, empty, truncated or undecodable; names the file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileProblem(f"{path} cannot be read ({error.strerror}): check the path and its permissions.") from None
    if path.suffix.casefold() == ".dcm" or data[128:132] == b"DICM":
        return _read_dicom(path)
    if fault := _fault(data):
        raise FileProblem(f"{path} is {fault}: fetch the file again or remove it from the set.")
    try:
        # ANYDEPTH keeps 16 bits; GRAYSCALE of three equal channels is exact.
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    except cv2.error:
        image = None
    if image is None:
        raise FileProblem(f"{path} is not a readable image: fetch the file again or remove it from the set.")
    if image.dtype != np.uint8:
        return scale_to_uint8(image.astype(np.float32))
    return np.asarray(image, dtype=np.uint8)


def scale_to_uint8(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Map the range of `values` to 0..255; a constant image becomes 0."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    return np.asarray(np.rint((values - low) * (255.0 / (high - low))), dtype=np.uint8)


def _read_dicom(path: Path) -> NDArray[np.uint8]:
    """First frame, through the modality LUT and the file's own window; MONOCHROME1 is inverted."""
    try:
        import pydicom
        from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
    except ImportError:
        raise FileProblem(f"{path} is DICOM, which needs pydicom: pip install pydicom.") from None
    try:
        file = pydicom.dcmread(path)
        pixels = apply_modality_lut(file.pixel_array, file)
        if "WindowWidth" in file or "VOILUTSequence" in file:
            pixels = apply_voi_lut(pixels, file)
        values = np.asarray(pixels, dtype=np.float32)
    except Exception as error:  # pydicom raises many kinds for broken files, all of which mean the same to the user
        raise FileProblem(f"{path} is not a readable DICOM image ({error}): convert it or remove it.") from error
    if int(file.get("NumberOfFrames", 1) or 1) > 1:
        values = values[0]
    if values.ndim == 3:
        values = values.mean(axis=2)
    image = scale_to_uint8(values)
    return 255 - image if file.PhotometricInterpretation == "MONOCHROME1" else image


def _fault(data: bytes) -> str:
    """What is wrong with the container ("" where nothing is). OpenCV decodes half a JPEG without complaint."""
    if not data:
        return "empty"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_fault(data)
    if data.startswith(b"\xff\xd8"):
        # Entropy-coded data never holds FF D9, so the last end marker must follow the last start of a scan; a
        # thumbnail in the header has its own, earlier.
        return "" if data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") else "a truncated JPEG"
    if data.startswith(b"BM") and int.from_bytes(data[2:6], "little") > len(data):
        return "a truncated BMP"
    if data.startswith(b"RIFF") and int.from_bytes(data[4:8], "little") + 8 > len(data):
        return "a truncated WebP"
    return ""


def _png_fault(data: bytes) -> str:
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            return "a truncated PNG"
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return "a damaged PNG (checksum)"
        if data[at + 4 : at + 8] == b"IEND":
            return ""
        at = end
    return "a truncated PNG"
