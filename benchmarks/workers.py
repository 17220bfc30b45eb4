"""What a loader's worker processes cost beside time: memory, and bytes that they send."""

from __future__ import annotations

import multiprocessing
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from benchmarks.case import Epochs

SECONDS_BETWEEN_LOOKS = 0.02


@dataclass
class Peaks:
    """Highest figures of any one worker, MB. Its share of shared pages counts in PSS, and only its own in USS."""

    pss: float = 0.0
    uss: float = 0.0

    def look(self, pid: int) -> None:
        """Take in what process `pid` uses now; one that has ended counts no more."""
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
        except (FileNotFoundError, ProcessLookupError):
            return
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        self.pss = max(self.pss, kib.get("Pss", 0) * 1024 / 1e6)
        self.uss = max(self.uss, (kib.get("Private_Clean", 0) + kib.get("Private_Dirty", 0)) * 1024 / 1e6)


@dataclass
class Watch:
    """Context in which child processes that appear are watched."""

    peaks: Peaks = field(default_factory=Peaks)

    def __enter__(self) -> Peaks:
        self._before = {child.pid for child in multiprocessing.active_children()}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self.peaks

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(SECONDS_BETWEEN_LOOKS):
            for child in multiprocessing.active_children():
                if child.pid is not None and child.pid not in self._before:
                    self.peaks.look(child.pid)


def probe(epochs: Epochs) -> tuple[Peaks, float]:
    """Run epoch 0, which starts the workers: their peaks, and the MB of a sample that they send."""
    sent, samples = 0, 0
    with Watch() as peaks:
        for images, labels in epochs(0):
            sent += images.nbytes + labels.nbytes
            samples += len(images)
    return peaks, sent / samples / 1e6
