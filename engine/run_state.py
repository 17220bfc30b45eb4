"""What a killed run continues from: last.pt and the one before it, each known by its SHA-256.

The digest is written before the file gets its name, so at no moment is a whole file unknown or a broken one believed.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from engine.files import FileProblem, atomic_path, write_json

FORMAT = "bone-segmentation 1"

LAST, PREVIOUS, MANIFEST = "last.pt", "previous.pt", "manifest.json"

KEPT = 100
"""Digests in the manifest. Two are of last.pt and previous.pt; a write that is killed before its file has the name adds
one of nothing, and many in a row must not push those two out."""


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write last.pt atomically; the one that was there becomes previous.pt.

    Args:
        state: tensors and plain values: what `weights_only` reads back.

    Raises:
        FileProblem: the disk is full; what was there stays.
    """
    last = folder / LAST
    with atomic_path(last) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)
        write_json(folder / MANIFEST, {"sha256": [*_known(folder), _digest(temporary)][-KEPT:]})
        if last.exists():
            os.replace(last, folder / PREVIOUS)


def has_state(folder: Path) -> bool:
    """Whether a run in this folder has saved anything."""
    return (folder / LAST).exists() or (folder / PREVIOUS).exists()


def newest_state(folder: Path) -> tuple[dict[str, Any], str]:
    """The newest state that is whole, and a sentence that says which one and why.

    Raises:
        FileProblem: there is none; says what is wrong with each.
    """
    faults = []
    for path in (folder / LAST, folder / PREVIOUS):
        try:
            state = read_state(path)
        except FileProblem as problem:
            faults.append(str(problem))
            continue
        return state, " ".join([*faults, f"Resuming from {path}."])
    if not has_state(folder):
        raise FileProblem(f"{folder / LAST} does not exist, so there is nothing to resume: leave out --resume.")
    raise FileProblem(" ".join(faults))


def read_state(path: Path) -> dict[str, Any]:
    """A training state as tensors and plain values; code in it is refused, never run.

    Where the file was copied without its manifest, only the checksums inside it are compared.

    Raises:
        FileProblem: missing, truncated, damaged, a pickle of code, or of something else.
    """
    if not path.is_file():
        raise FileProblem(f"{path} does not exist: give the experiment's name with --exp_name, or train it first.")
    known = _known(path.parent)
    if known and _digest(path) not in known:
        raise FileProblem(
            f"{path} is empty, truncated or damaged (its SHA-256 is not in {MANIFEST}): copy it again, or start anew "
            f"with --overwrite."
        )
    try:
        state = load_pickle(path)
    except pickle.UnpicklingError:
        raise FileProblem(
            f"{path} is damaged, or a pickle of code, which is never run: give the last.pt of an experiment."
        ) from None
    except Exception as error:  # a damaged pickle or zip raises any kind
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise FileProblem(
            f"{path} is empty, truncated or damaged ({reason}): copy it again, or start anew with --overwrite."
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise FileProblem(f"{path} is no training state of this framework: give the last.pt of an experiment.")
    return state


def load_pickle(path: Path) -> Any:
    """What torch.save wrote: tensors and plain values, on the CPU.

    Raises:
        pickle.UnpicklingError: it holds code, or is damaged.
        Exception: of any other kind where it is damaged.
    """
    if zipfile.is_zipfile(path):  # torch itself doesn't look at the checksums that it writes
        with zipfile.ZipFile(path) as archive:
            if part := archive.testzip():
                raise zipfile.BadZipFile(f"checksum of {part}")
    return torch.load(path, map_location="cpu", weights_only=True)


def _known(folder: Path) -> list[str]:
    """Digests of whole files; none where there is no manifest."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(digest) for digest in found]


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
