"""Masks and pictures as files: folders of them are there whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.files import FileProblem, atomic_path

Kind = Literal["class", "packed"]
"""One PNG per class, or one .npz per image: `save_masks` without "none"."""


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture, (H, W) or (H, W, 3) uint8 BGR; atomic, replaces an older file."""
    ok, data = cv2.imencode(".png", picture)
    assert ok, "PNG encoding of a uint8 array cannot fail"
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def write_masks(folder: Path, stem: str, bits: NDArray[np.int32], classes: Sequence[str], kind: Kind) -> None:
    """Write the masks of one image as `<stem>/<class>.png` (0 and 255), or as `<stem>.npz`.

    The .npz holds `bits`, the packed words int32 (ceil(K / 32), H, W), and `classes`, a JSON list of K names. Files are
    atomic, and replace older ones.

    Raises:
        FileProblem: the stem or a class can't be the name of a file.
    """
    # Names may come from someone else's CSV: "../x" must not lead out of the folder.
    for name in (stem, *(classes if kind == "class" else ())):
        if Path(name).name != name or "\\" in name or name in ("", ".", ".."):
            raise FileProblem(f"{folder}: {name!r} can't be the name of a file: rename the image or the class.")
    if kind == "packed":
        with atomic_path(folder / f"{stem}.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, bits=bits, classes=np.array(json.dumps(classes)))
        return
    for k, name in enumerate(classes):
        mask = ((bits[k // 32] >> (k % 32)) & 1).astype(np.uint8) * np.uint8(255)
        write_png(folder / stem / f"{name}.png", mask)


def check_new(path: Path) -> None:
    """Raise FileProblem where `path` exists; an empty folder counts as absent."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileProblem(f"{path} exists and is never overwritten: move it away or choose another folder.")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` on success; on any error nothing is left behind.

    Raises:
        FileProblem: `folder` exists and is not empty.
    """
    check_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp makes it private, but teams share servers
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
