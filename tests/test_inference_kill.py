"""inference/job.py: killed at every change of a file and resumed, the results are those of an undisturbed inference.

Run as a program, this file forks one process after the other (nothing has to be imported again), lets it kill itself by
SIGKILL at a given change, starts a second one that resumes, and prints what it found as JSON.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from config import Config
from dataset.readers import Record
from engine import settings
from inference import part_file
from inference.job import CSV_NAME, JOB_NAME, Job
from inference.overlapped import Behind
from inference.part_file import ALL, Part
from inference.post_process import Finding
from inference.probs import VALUES, ImageProbs

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ("Ulna", 'odd, "one"', "Lunate")
NAMES = ("b.png", 'a, "1".jpg', "뼈.bmp", "c.png")
RECORDS = [Record(Path("/x", f"ID{i // 2}", name), None, f"ID{i // 2}") for i, name in enumerate(NAMES)]
CFG = settings.replace(
    Config(), {"classes": CLASSES, "save_masks": "packed", "save_probs": True, "post_process": ("one_bone",)}
)
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link")
"""Audit events, raised before the change; `open` is one too where it is for writing."""


# --- what a process does


def prediction(record: Record) -> Any:
    """Masks, findings and probabilities that follow from the name."""
    rng = np.random.default_rng(zlib.crc32(record.name.encode()))
    height, width = (int(n) for n in rng.integers(20, 50, 2))
    dense = np.kron(rng.random((3, 10, 10)) < 0.4, np.ones((1, 5, 5), bool))[:, :height, :width]
    bits = (dense << np.arange(3)[:, None, None]).sum(0, dtype=np.int32)[None]
    split = tuple(Finding(name, "split", 2, (50, 25)) for name in CLASSES if rng.random() < 0.6)
    boxes = np.tile(np.array([0, 0, height, width], np.int32), (3, 1))
    counts = np.zeros((3, VALUES), np.int64)
    values = tuple(plane.astype(np.uint8) * np.uint8(200) for plane in dense)
    probs = ImageProbs(record.key, record.name, height, width, CLASSES, boxes, values, None, counts, None)
    return SimpleNamespace(record=record, image=None, bits=bits, findings=split, hands=(), probs=probs, cutting=0.0)


def infer(folder: Path, part: Part = ALL, resume: bool = False) -> bool:
    """Whether this process has ended the whole inference."""
    with Job(folder, RECORDS, CFG, ["sha"], "probs", part, resume) as job:
        with Behind() as behind:
            for record in job.todo:
                behind.put(partial(job.write, prediction(record)))
        return job.finish() is not None


class Killer:
    """Counts the changes of files below a folder, and kills the process in the middle of the last one it may make."""

    def __init__(self, folder: Path, last: int) -> None:
        self.folder, self.last, self.count = str(folder), last, 0
        sys.addaudithook(self._hook)  # for good, which is why the process is a fork
        part_file.open = self._open  # type: ignore[attr-defined]

    def is_last(self) -> bool:
        self.count += 1
        return self.count == self.last

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in CHANGES
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(path, (str, os.PathLike)) and bool(flags & (os.O_WRONLY | os.O_RDWR))
        if changes and os.fspath(arguments[0]).startswith(self.folder) and self.is_last():
            die()

    def _open(self, path: Path, mode: str, **more: Any) -> Any:
        return Torn(path, mode, self) if more.get("buffering") == 0 else builtins.open(path, mode, **more)


class Torn(io.FileIO):
    """A file whose last write is cut in the middle."""

    def __init__(self, path: Path, mode: str, killer: Killer) -> None:
        super().__init__(path, mode)
        self.killer = killer

    def write(self, data: Any) -> int:
        if self.killer.is_last():
            super().write(data[: len(data) // 2])
            die()
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        if self.killer.is_last():
            die()
        return super().truncate(size)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# --- what the program does


def start(work: Callable[[], object]) -> int:
    """A process that does `work`; it ends with 0, or with 1 after an error."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ending(pid: int) -> int:
    """Exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(folder: Path, last: int = 0, part: Part = ALL, resume: bool = False) -> int:
    """How a process ended that inferred a part and made `last` changes at the most; 0 is no limit."""

    def work() -> None:
        if last:
            Killer(folder.parent, last)
        infer(folder, part, resume)

    return ending(start(work))


def changes(folder: Path, part: Part = ALL) -> int:
    """How many changes of files an undisturbed inference makes."""
    told = folder.parent.with_name("count")

    def work() -> None:
        killer = Killer(folder.parent, -1)
        infer(folder, part)
        told.write_text(str(killer.count))

    assert ending(start(work)) == 0
    return int(told.read_text())


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; job.json, which tells the number of parts, apart."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != JOB_NAME}


class Trials:
    """Inferences in new folders, compared with an undisturbed one."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0
        self.found: dict[str, Any] = {"kills": 0, "torn": 0, "merging": 0, "moved": 0, "wrong": [], "leftovers": []}
        assert run(self.new()) == 0
        self.expected = tree(self.folder)

    def new(self) -> Path:
        self.count += 1
        self.folder = self.root / str(self.count) / "out"
        self.folder.parent.mkdir()
        return self.folder

    def kill(self, last: int, part: Part = ALL, resume: bool = False) -> None:
        """One process that is killed, and what it leaves."""
        code = run(self.folder, last, part, resume)
        assert code == -signal.SIGKILL, (code, last)
        self.found["kills"] += 1
        working = self.folder.with_name("out.partial")
        csv = part.csv(working)
        self.found["torn"] += csv.exists() and csv.read_bytes()[-1:] not in (b"", b"\n")
        self.found["merging"] += all(p.done(working).exists() for p in parts_of(part.count))
        self.found["moved"] += self.folder.exists()
        if self.folder.exists() and tree(self.folder) != self.expected:
            self.found["wrong"].append(f"{last}: the final folder was there and not whole")

    def compare(self, what: object) -> None:
        """Look at the results, and remove them."""
        if tree(self.folder) != self.expected:
            self.found["wrong"].append(str(what))
        self.found["leftovers"] += [path.name for path in self.folder.parent.iterdir() if path.name != "out"]
        self.found["leftovers"] += [path.name for path in self.folder.rglob("*") if path.name.endswith(".part")]
        shutil.rmtree(self.folder.parent)


def parts_of(count: int) -> list[Part]:
    return [Part(index, count) for index in range(count)]


def everywhere(trials: Trials) -> None:
    """Killed at every change; at some, the process that resumes is killed as well."""
    total = trials.found["changes"] = changes(trials.new())
    for last in range(1, total + 1):
        trials.new()
        trials.kill(last)
        if last % 9 == 0 and last < total // 2:
            trials.kill(1 + last // 3, resume=True)
        assert run(trials.folder, resume=True) == 0
        trials.compare(last)


def shards(trials: Trials) -> None:
    """Two parts: the second is killed at every fourth change, before the first is done or after it."""
    first, second = parts_of(2)
    assert run(trials.new(), part=first) == 0
    total = trials.found["changes"] = changes(trials.folder, second)
    for last in range(1, total + 1, 4):
        folder = trials.new()
        early = last % 8 == 1
        if early:
            assert run(folder, part=first) == 0
        # Without the first part there is nothing to merge, and the second one makes fewer changes.
        if early or last <= total // 3:
            trials.kill(last, second)
        assert run(folder, part=second, resume=True) == 0
        assert run(folder, part=first, resume=True) == 0  # also where it is done, and all is
        trials.compare(last)


def together(trials: Trials) -> None:
    """More processes at a time than there are images to share: all end well, and one of them merges."""
    for count in (2, 3, 7):
        folder = trials.new()
        pids = [start(partial(infer, folder, part)) for part in parts_of(count)]
        assert [ending(pid) for pid in pids] == [0] * count
        trials.compare(count)


SCENARIOS = {scenario.__name__: scenario for scenario in (everywhere, shards, together)}


def main() -> None:
    os.fsync = lambda file: None  # which a kill doesn't need, and a disk takes its time for
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as root:
        infer(Path(root) / "out")  # loads the compiled kernels, which every fork then has
    report = {}
    for name, scenario in SCENARIOS.items():
        with tempfile.TemporaryDirectory(dir=sys.argv[1]) as root:
            trials = Trials(Path(root))
            scenario(trials)
            report[name] = trials.found
    print(json.dumps(report))


if __name__ == "__main__":
    main()


# --- the tests


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    argv = [sys.executable, __file__, str(tmp_path_factory.mktemp("kills"))]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_the_results_are_the_same_bytes(scenario: str, report: dict[str, dict[str, Any]]) -> None:
    found = report[scenario]
    assert found["wrong"] == [] and found["leftovers"] == []


def test_it_was_killed_everywhere(report: dict[str, dict[str, Any]]) -> None:
    """Also in the middle of a row, while it merged, and after the results had got their name."""
    found = report["everywhere"]
    assert found["kills"] > found["changes"] > 60 and found["torn"] >= len(RECORDS)
    assert found["merging"] > 10 and found["moved"] >= 3
    assert report["shards"]["kills"] >= 10 and report["shards"]["merging"] >= 3


def test_what_is_compared_is_everything_that_is_written(tmp_path: Path) -> None:
    assert infer(tmp_path / "out")
    names = {name.partition("/")[0] for name in tree(tmp_path / "out")}
    assert names == {CSV_NAME, "bones.csv", "config.json", "masks", "probs"}
