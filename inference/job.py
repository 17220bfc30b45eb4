"""One inference over a list of images: it may be killed at any image, resumed, and shared by processes and machines.

While it runs, everything lies in `<folder>.partial`, beside the final folder:

    job.json                   what the inference is, see Identity
    part-0001-of-0004.csv      the rows of each part, see inference/part_file.py; .done beside it once it is whole
    bones-0001-of-0004.csv     missing and split bones of each part, where they are asked for; hands-… likewise
    results/                   masks, overlays, probs: what becomes the final folder

Whoever ends the last part writes the rest into `results` (submission.csv, lists of findings, Dice where there are
labels, config.json, job.json) and renames it: the final folder is there whole, or not at all. All of this can be done
again after a kill, and memory grows by the images' names only (and by their Dice).
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from config import Config
from dataset.readers import Record
from engine import settings
from engine.files import FileProblem, is_disk_full, remove_leftovers, write_json, write_text
from engine.progress import progress
from inference.csv_masks import CsvMasks, LabelMasks, draw_runs, unique_stems
from inference.csv_scores import score_submission
from inference.hands import hand_rows, hands_header
from inference.mask_files import check_new, write_masks, write_png
from inference.metrics import DiceTable
from inference.overlay import draw_overlay
from inference.part_file import ALL, Part, PartFile, join_findings
from inference.post_process import FINDINGS_HEADER, finding_rows
from inference.probs import ProbsWriter
from inference.scores import Scores
from inference.submission import check_names
from inference.submission_file import merge_submissions

if TYPE_CHECKING:
    from inference.pipeline import Prediction

CSV_NAME, JOB_NAME = "submission.csv", "job.json"

BONES, HANDS = "bones", "hands"
"""Lists of findings: missing and split bones, and the hands that were found, with the confidence of each bone."""

_SECTIONS = ("window", "inference", "ensemble")
_FIELDS = ("classes", "dataset_file", "clahe_clip", "clahe_tiles", "amp", "amp_cpu")
_NEUTRAL = ("window_batch", "windows_per_image", "window_mode", "checkpoint", "input", "output", "shard")
"""What may differ when an inference goes on: where files lie (checkpoints and images are compared themselves), what
only training reads, and what a machine can bear."""


def working_folder(folder: Path) -> Path:
    """Where an inference lies until it is whole."""
    return folder.with_name(f"{folder.name}.partial")


@dataclass(frozen=True)
class Identity:
    """What decides the results: two processes with the same one write parts of the same inference."""

    settings: dict[str, Any]
    """Those that matter here, as JSON values."""
    checkpoints: tuple[str, ...]
    """SHA-256 of each file of weights, in the order of the members."""
    images: str
    """SHA-256 of the list of images, subject/name."""
    parts: int

    @classmethod
    def of(cls, cfg: Config, checkpoints: Sequence[str], records: Sequence[Record], parts: int) -> Self:
        """The identity of an inference."""
        record = settings.to_record(cfg)
        flat = {name: value for section in _SECTIONS for name, value in record[section].items()}
        flat |= {name: record[settings.SECTION_OF[name]][name] for name in _FIELDS}
        images = hashlib.sha256("".join(f"{r.subject}/{r.name}\n" for r in records).encode("utf-8"))
        chosen = {name: value for name, value in flat.items() if name not in _NEUTRAL}
        return cls(chosen, tuple(checkpoints), images.hexdigest(), parts)

    def text(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file that holds `text`.

        Raises:
            FileProblem: it is missing, damaged or of another version.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(found["settings"], tuple(found["checkpoints"]), found["images"], found["parts"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FileProblem(
                f"{path} is not readable as the description of an inference ({error}): remove the folder {path.parent}."
            ) from None

    def differences(self, other: Identity) -> list[str]:
        """What differs in `other`, in words."""
        said = [
            f"{name} is {other.settings.get(name)!r}, not {self.settings.get(name)!r}"
            for name in sorted(self.settings.keys() | other.settings.keys())
            if self.settings.get(name) != other.settings.get(name)
        ]
        if self.checkpoints != other.checkpoints:
            said.append("the weights are others (by their SHA-256)")
        if self.images != other.images:
            said.append("the images are others, or in another order")
        if self.parts != other.parts:
            said.append(f"it is split into {other.parts} parts, not {self.parts}")
        return said


@dataclass(frozen=True)
class Results:
    """A finished inference."""

    folder: Path
    table: DiceTable | None
    """Dice of the CSV, where all images have labels."""
    scores: Scores | None
    """What `metrics` asks for beside it."""


@dataclass
class Stored:
    """What this process has put into the probability store."""

    images: int = 0
    size: int = 0
    seconds: float = 0.0

    def add(self, size: int, seconds: float) -> None:
        """Count an image of so many bytes."""
        self.images, self.size, self.seconds = self.images + 1, self.size + size, self.seconds + seconds

    def __str__(self) -> str:
        """Means of an image."""
        return f"{self.size / self.images / 1e6:.2f} MB and {1e3 * self.seconds / self.images:.0f} ms an image"


class Job:
    """Context manager: one process's part of an inference.

    Args:
        folder: the final one; never overwritten.
        records: all images of the inference, in the order of the CSV.
        checkpoints: SHA-256 of every file that the results follow from, beside settings and images.
        scale: of the probabilities that are stored, see ProbsWriter.
        part: of the images, for this process.
        resume: go on where an earlier process has stopped; a complete inference stays as it is.

    Raises:
        FileProblem: images whose names or files would collide; on entering, the folder exists and is not empty, another
            process holds the part, or what an earlier one left is of another inference, or there and not asked for.
    """

    def __init__(
        self,
        folder: Path,
        records: Sequence[Record],
        cfg: Config,
        checkpoints: Sequence[str],
        scale: str,
        part: Part = ALL,
        resume: bool = False,
    ) -> None:
        self.folder, self.part = folder, part
        self.todo: Sequence[Record] = ()
        """Records of the part that are not predicted yet; known once the job is entered."""
        self.stored = Stored()
        self._records, self._cfg, self._resume, self._scale = records, cfg, resume, scale
        self._identity = Identity.of(cfg, checkpoints, records, part.count)
        self._partial = working_folder(folder)
        self._results = self._partial / "results"
        self._mine = [records[i] for i in part.of_list(len(records))]
        self._file: PartFile | None = None
        self._stack = ExitStack()
        chosen, names = cfg.inference, [record.name for record in records]
        check_names(folder / CSV_NAME, names, cfg.data.classes)
        if chosen.save_overlay or chosen.save_probs or chosen.save_masks != "none":
            unique_stems(names, folder)

    def __enter__(self) -> Self:
        if self._resume and (self.folder / JOB_NAME).exists():  # complete
            self._check_same(self.folder)
            if not self._results.exists():
                self._remove_partial()  # of a process that was killed when it had moved the results away
            return self
        check_new(self.folder)
        self._open_partial()
        names, classes = [record.name for record in self._mine], self._cfg.data.classes
        with ExitStack() as stack:
            file = stack.enter_context(PartFile(self._partial, self.part, names, classes, self._lists))
            if file.written and not self._resume:
                raise FileProblem(
                    f"{self._partial} holds {file.written} of {len(names)} images of {self.part}, of an inference that "
                    "was stopped: go on with --resume, or remove the folder."
                )
            self._file, self.todo = file, self._mine[file.written :]
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if kind and self._file and not self._file.written and self.part == ALL:
            self._remove_partial()  # of an inference that failed at its first image, there is nothing to resume

    def write(self, prediction: Prediction) -> None:
        """Write everything that is asked for of the next image of `todo`; its rows of the CSV come last.

        Raises:
            FileProblem: not the next image, or the disk is full.
        """
        assert self._file is not None, "a complete inference has nothing to write"
        record, bits, classes, chosen = prediction.record, prediction.bits, self._cfg.data.classes, self._cfg.inference
        stem = record.image.stem
        with self._resumable():
            if chosen.save_masks != "none":
                write_masks(self._results / "masks", stem, bits, classes, chosen.save_masks)
            if chosen.save_overlay:
                picture = draw_overlay(prediction.image, bits, classes)
                write_png(self._results / "overlays" / f"{stem}.png", picture)
            if chosen.save_probs:
                assert prediction.probs is not None
                start = time.perf_counter()
                size = self._store.write(prediction.probs)
                self.stored.add(size, prediction.cutting + time.perf_counter() - start)
            found = {BONES: finding_rows(record.name, prediction.findings)}
            if chosen.find_hands:
                found[HANDS] = hand_rows(record.name, prediction.hands, classes)
            self._file.append(record.name, bits, found)

    def finish(self) -> Results | None:
        """End the part, and where all others have ended, the inference; None where they have not, see `missing`.

        Raises:
            RuntimeError: not all images of `todo` were written.
            FileProblem: the disk is full, the final folder has appeared meanwhile, or a label can't be read.
        """
        if self._file is not None:
            with self._resumable(), self._alone() as there:
                if there:
                    self._file.end()
                    return None if self.missing() else self._merge()
        return Results(self.folder, *self._scored(self.folder / CSV_NAME))

    def missing(self) -> list[Part]:
        """The parts that are not done."""
        return [part for part in self._parts() if not part.done(self._partial).exists()]

    @property
    def _lists(self) -> dict[str, Sequence[str]]:
        """Lists of findings that the settings ask for, and their headers."""
        chosen = self._cfg.inference
        bones: dict[str, Sequence[str]] = {BONES: FINDINGS_HEADER} if "one_bone" in chosen.post_process else {}
        return bones | ({HANDS: hands_header(self._cfg.data.classes)} if chosen.find_hands else {})

    @cached_property
    def _store(self) -> ProbsWriter:
        classes, checkpoints = self._cfg.data.classes, self._identity.checkpoints
        return ProbsWriter(self._results / "probs", classes, checkpoints, self._scale)

    def _parts(self) -> list[Part]:
        return [Part(index, self.part.count) for index in range(self.part.count)]

    def _open_partial(self) -> None:
        """Make the working folder, or join the one that is there."""
        job = self._partial / JOB_NAME
        if job.exists() and not self._results.exists():
            self._remove_partial()  # the same, and someone has moved the final folder away since
        self._results.mkdir(parents=True, exist_ok=True)
        if not job.exists():
            try:
                write_text(job, self._identity.text(), overwrite=False)
            except FileProblem:
                if not job.exists():  # else another process was quicker
                    raise
        self._check_same(self._partial)

    def _check_same(self, folder: Path) -> None:
        if said := Identity.read(folder / JOB_NAME).differences(self._identity):
            raise FileProblem(
                f"{folder} is of another inference: {'; '.join(said)}. Remove it, or choose another --output."
            )

    def _remove_partial(self) -> None:
        """Remove the working folder; job.json last, so that a kill in between leaves no part without its identity."""
        found = list(self._partial.glob("*"))
        for path in sorted(found, key=lambda path: path.name == JOB_NAME):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self._partial.rmdir()

    def _merge(self) -> Results:
        """Parts -> final folder."""
        folder, csv = self._results, self._results / CSV_NAME
        remove_leftovers(folder)
        if not csv.exists():  # else by a process that was killed in here
            parts = [part for part in self._parts() if part.of_list(len(self._records))]
            merge_submissions([part.csv(self._partial) for part in parts], csv)
        for kind, header in self._lists.items():
            paths = [part.list_of(self._partial, kind) for part in self._parts()]
            join_findings(paths, header, folder / f"{kind}.csv")
        table, scores = self._scored(csv)
        if table is not None:
            table.to_csv(folder / "per_class.csv")
        if scores is not None:
            scores.to_csv(folder)
        # How the work was shared is no property of the results.
        plain = settings.replace(self._cfg, {"shard": "", "resume": False})
        write_json(folder / "config.json", settings.to_record(plain))
        write_text(folder / JOB_NAME, self._identity.text())
        check_new(self.folder)
        folder.rename(self.folder)
        self._remove_partial()
        return Results(self.folder, table, scores)

    def _scored(self, csv: Path) -> tuple[DiceTable | None, Scores | None]:
        """Scores of the finished CSV, where all records have labels."""
        classes, chosen = self._cfg.data.classes, self._cfg.inference
        if not all(record.label for record in self._records):
            return None, None
        table = score_submission(csv, self._records, classes)
        if not chosen.metrics:
            return table, None
        scores = Scores(classes, chosen.metrics, chosen.surface_tolerance)
        predicted, truth = CsvMasks(csv, classes), LabelMasks(csv, self._records, classes)
        for record in progress(self._records, "scores", unit="images"):
            height, width = truth.shape(record.name)
            pair = [source.runs(record.name, height * width) for source in (predicted, truth)]
            scores.add(record.key, *(draw_runs(runs, classes, height, width) for runs in pair))
        return table, scores

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Wait until no other process ends its part; False where one has ended the inference meanwhile."""
        try:
            # Opened for writing, as network file systems want it; `locked` would make the folder again.
            file = open(self._partial / JOB_NAME, "rb+")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            yield False
            return
        with file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield self._results.exists()

    @contextmanager
    def _resumable(self) -> Iterator[None]:
        """Say of a full disk what is kept."""
        try:
            yield
        except (OSError, FileProblem) as error:
            cause = error.__cause__ or error
            if not is_disk_full(cause):
                raise
            assert self._file is not None
            raise FileProblem(
                f"The disk is full: {self._file.written} of {len(self._mine)} images of {self.part} are kept in "
                f"{self._partial}. Free some space and go on with --resume."
            ) from error
