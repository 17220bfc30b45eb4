"""The phantom: drawn hand radiographs with 29 labelled, overlapping bones, in the competition's own formats.

`draw_phantom` draws one, `write_phantom_set` writes a tree like the competition's (its test half with labels too, since
the phantom knows the truth), `phantom_matches` tells whether a tree on disk is the one that the arguments ask for.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import psutil

from config import HAND_BONES
from dataset.phantom_body import draw_body
from dataset.phantom_draw import DEFAULT_STYLES, SIDES, Phantom, draw_phantom, mirrored
from dataset.phantom_styles import check_styles, style_of
from engine.files import FileProblem, write_json
from engine.progress import progress

__all__ = ["SIDES", "VERSION", "Phantom", "PhantomSet", "draw_phantom", "phantom_matches", "write_phantom_set"]

VERSION = 4
"""Of the renderer: raise it when pictures or labels change, so that sets on disk no longer match."""

BENT_SHARE = {"train": 0.12, "test": 0.55}
"""Subjects with a bent wrist, as in the competition (12 % of train, 50-60 % of test)."""

NAMED_SHARE = 0.1
"""Subjects whose file names end in _R / _L; the others' names don't tell the side."""

FIRST_TEST_SUBJECT = 100_000
"""Test subjects count from here, so that the test set stays the same when the train set grows."""

SIZE_BEFORE_RESIZING = 3060
"""What the real labels' metadata says for every image, whatever the PNG's size."""

RECORD = "phantom.json"

Sides = Literal["both", "right"]

META_COLUMNS = ("ID", "나이", "성별", "체중(몸무게)", "키(신장)", "Unnamed: 5")
"""ID, age (years), sex, weight (kg), height (cm), free note; names as in the competition's file."""


@dataclass(frozen=True)
class Subject:
    """Where one subject's two images go."""

    split: str
    number: int
    identity: str
    bent: bool
    stems: dict[str, str]
    """Side -> file stem."""


@dataclass(frozen=True)
class PhantomSet:
    """What decides a set of phantoms: the same values give the same bytes.

    Raises:
        ConfigProblem: no such style.
    """

    train_subjects: int
    """Each has two images; 12 % of the subjects, rounded, have bent wrists."""
    test_subjects: int
    """Likewise, but 55 %."""
    size: int
    """Of the square images, pixels, 128 to 2048."""
    seed: int
    styles: tuple[str, ...] = DEFAULT_STYLES
    """Names of dataset.phantom_styles.STYLES; each subject has one of them, drawn evenly."""
    sides: Sides = "both"
    """right mirrors left hands, and no file name tells a side."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "styles", check_styles(self.styles))

    def record(self) -> dict[str, Any]:
        """What is written beside the set, as JSON values."""
        return {"version": VERSION, **dataclasses.asdict(self), "styles": list(self.styles)}


def write_phantom_set(root: Path, wanted: PhantomSet, workers: int = 0) -> None:
    """Write a set of phantoms to `root` as the competition's tree (docs/data.md), whole or not at all.

    Args:
        root: must not exist; its parent is made.
        workers: processes to draw with; 0 draws in this one. The result does not depend on it.

    Raises:
        FileProblem: `root` exists.
    """
    root = Path(root)
    if root.exists():
        raise FileProblem(f"{root} exists and is never overwritten: remove it or choose another folder.")
    root.parent.mkdir(parents=True, exist_ok=True)
    for old in root.parent.glob(f".{root.name}.*.part"):
        if not psutil.pid_exists(int(old.name.split(".")[-2].split("-")[0])):
            shutil.rmtree(old, ignore_errors=True)  # of a drawing that was killed
    subjects = _plan(wanted)
    partial = root.parent / f".{root.name}.{os.getpid()}-{os.urandom(4).hex()}.part"
    partial.mkdir()
    try:
        jobs = [(partial, subject, side, wanted) for subject in subjects for side in SIDES]
        for _ in progress(_done(jobs, workers), "drawing phantoms", total=len(jobs), unit="image"):
            pass
        _write_meta(partial / "meta_data.xlsx", subjects, wanted)
        write_json(partial / RECORD, wanted.record())
        os.sync()  # one for thousands of files: after a power loss the renamed folder must not hold empty ones
        if root.exists():  # appeared meanwhile; rename would silently replace an empty folder
            raise FileProblem(f"{root} has appeared meanwhile and is never overwritten.")
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def phantom_matches(root: Path, wanted: PhantomSet) -> bool:
    """True where `root` holds the set that `write_phantom_set` would write today."""
    try:
        found = json.loads((Path(root) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == wanted.record())


def _plan(wanted: PhantomSet) -> list[Subject]:
    """Identities (with gaps, train and test mixed), bent wrists and file names of all subjects."""
    total = wanted.train_subjects + wanted.test_subjects
    rng = np.random.default_rng((wanted.seed, 0x5E7))
    identities = rng.permutation(np.sort(rng.choice(np.arange(1, int(total * 1.3) + 2), total, replace=False)))
    subjects = []
    counts = {"train": (wanted.train_subjects, 0), "test": (wanted.test_subjects, FIRST_TEST_SUBJECT)}
    for split, (count, first) in counts.items():
        bent = np.zeros(count, bool)
        bent[rng.permutation(count)[: round(BENT_SHARE[split] * count)]] = True
        own, identities = np.sort(identities[:count]), identities[count:]
        for index, (identity, is_bent) in enumerate(zip(own, bent, strict=True)):
            time = 1_661_130_000_000 + int(identity) * 7_919_000 + int(rng.integers(0, 3_000_000))
            times = (time, time + int(rng.integers(20_000, 120_000)))
            telling = rng.random() < NAMED_SHARE and wanted.sides == "both"
            order = rng.permutation(len(SIDES))
            stems = {
                side: f"image{times[place]}" + (f"_{side}" if telling else "")
                for side, place in zip(SIDES, order, strict=True)
            }
            subjects.append(Subject(split, first + index, f"ID{int(identity):03d}", bool(is_bent), stems))
    return subjects


def _done(jobs: list[tuple[Path, Subject, str, PhantomSet]], workers: int) -> Iterator[None]:
    """Draw every job, here or in `workers` processes, and yield after each."""
    if not workers:
        for job in jobs:
            _draw_and_write(*job)
            yield
        return
    # Not multiprocessing.Pool: that one waits for ever when a worker is killed for memory.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        futures: list[Future[None]] = [executor.submit(_draw_and_write, *job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    cv2.setNumThreads(1)  # one core per worker: OpenCV's own threads would fight over them
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent stops the workers


def _draw_and_write(root: Path, subject: Subject, side: str, wanted: PhantomSet) -> None:
    """Write one image and its labels. `root` is private to the set being written, so plain writes will do."""
    phantom = draw_phantom(wanted.seed, subject.number, side, wanted.size, subject.bent, wanted.styles)
    if wanted.sides == "right" and side == "L":
        phantom = mirrored(phantom)
    stem = subject.stems[side]
    for kind, suffix in (("DCM", ".png"), ("outputs_json", ".json")):
        path = root / subject.split / kind / subject.identity / (stem + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".png":
            if not cv2.imwrite(str(path), cv2.cvtColor(phantom.image, cv2.COLOR_GRAY2BGR)):
                raise FileProblem(f"{path} could not be written: is the disk full or read-only?")
        else:
            text = json.dumps(_label(phantom, subject, stem), ensure_ascii=False)
            path.write_text(text, encoding="utf-8")


def _label(phantom: Phantom, subject: Subject, stem: str) -> dict[str, Any]:
    """The label file of the competition; only `label` and `points` carry meaning."""

    def identifier(*parts: object) -> str:
        digits = np.random.default_rng([ord(letter) for letter in "/".join(map(str, parts))]).bytes(12)
        return digits.hex()

    return {
        "annotations": [
            {
                "id": identifier(stem, name, number),
                "type": "poly_seg",
                "attributes": {},
                "points": polygon.tolist(),
                "label": name,
            }
            for name in HAND_BONES
            for number, polygon in enumerate(phantom.polygons[name])
        ],
        "attributes": {},
        "file_id": identifier(stem),
        "filename": f"{stem}.jpg",
        "parent_path": f"/{subject.split}/{subject.identity}",
        "last_modifier_id": identifier("phantom"),
        "metadata": {"height": SIZE_BEFORE_RESIZING, "width": SIZE_BEFORE_RESIZING},
        "last_workers": {},
    }


def _write_meta(path: Path, subjects: list[Subject], wanted: PhantomSet) -> None:
    """One row per subject, with the oddities of the real file: some sexes carry an Excel escape or a blank."""
    import pandas  # here: half a second that every drawing process would pay

    rows = []
    for subject in sorted(subjects, key=lambda subject: subject.identity):
        style = style_of(wanted.seed, subject.number, wanted.styles)
        body = draw_body(np.random.default_rng((wanted.seed, subject.number)), style)
        rng = np.random.default_rng((wanted.seed, subject.number, 9))
        height = round(float(170 * body.size + rng.normal(0, 3)))
        weight = round(float((height / 100) ** 2 * 22.5 * body.flesh))
        sex = ("남" if body.sex == "M" else "여") + ("", "", " ")[rng.integers(3)]
        sex = ("", "_x0008_")[rng.random() < 0.3] + sex
        rows.append((subject.identity, body.age, sex, weight, height, None))
    pandas.DataFrame(rows, columns=list(META_COLUMNS)).to_excel(path, index=False)
