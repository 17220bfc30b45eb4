"""Small runs that are killed again and again, resumed until they end, and compared with one that never was."""

from __future__ import annotations

import importlib
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.phases import PHASES, Aim, Watch
from benchmarks.victim import KILLED, Ending, attempt
from benchmarks.wholeness import differences, leftovers, unreadable
from engine import settings

RUN = """--preset smoke --phantom_train 3 --phantom_test 1 --phantom_size 128 --n_folds 3 --image_size 64
    --window_size 64 --stride 32 --windows_per_image 8 --batch_size 2 --accumulate 2 --epoch 3 --val_interval 1
    --model simple_unet_quarter --base_channels 8 --dropout 0.2 --ema_decay 0.8 --swa_epochs 1 --device cpu
    --save_minutes 0.001 --keep_top 1 --save_interval 2 --best_per_class --threshold 0.1 --wandb off""".split()  # noqa: SIM905
"""16 steps an epoch, and all that a state must hold."""

SAVE_MINUTES = (0.0, 1.0)
"""In place of the limits for users, who may save every 0.6 s: such an epoch takes less."""

PRELOADED = (
    *("dataset.dataset", "dataset.dataset_dali", "inference.inference_sliding", "model.model_simple_unet"),
    *("train_dali", "torch.utils.tensorboard", "engine.notify", "pandas", "openpyxl", "dataset.effects", "report.page"),
)
"""What runs import as they go."""

KILLS_OF_A_RUN = 6
"""At most; then it may end."""
WHOLE = "whole"


@dataclass
class Found:
    """What the kills have shown."""

    kills: Counter[str] = field(default_factory=Counter)
    """Phase -> kills in it."""
    timed: int = 0
    """Of these, at random times."""
    runs: int = 0
    seconds: float = 0.0
    """Of the uninterrupted run."""
    unreadable: list[str] = field(default_factory=list)
    """Files after a kill that are not whole."""
    stuck: list[str] = field(default_factory=list)
    """Runs that could not be continued."""
    leftovers: list[str] = field(default_factory=list)
    """Temporary files that are still there at the end."""
    different: list[str] = field(default_factory=list)
    """Results that are not those of the uninterrupted run."""


class Killer:
    """Kills runs with one set of flags; all that they write lies in `root`.

    The process must have no threads: it forks the runs.
    """

    def __init__(self, root: Path, flags: Sequence[str], seed: int) -> None:
        self.root, self.flags = root, [*RUN, *flags]
        self.watch, self.random, self.found = Watch(), random.Random(seed), Found()
        self.moments: dict[str, int] = {}
        settings.LIMITS["save_minutes"] = SAVE_MINUTES
        for name in PRELOADED:
            importlib.import_module(name)

    def kill(self, kills: int) -> Found:
        """Kill so many times: first once in each phase, then at a random time and in the rarest phase by turns.

        Raises:
            RuntimeError: a run fails that nobody has killed.
        """
        whole = self.live(WHOLE, None)
        if whole.code:
            raise RuntimeError(f"The uninterrupted run failed: {self.last_words(WHOLE)}")
        self.found.seconds, self.moments = whole.seconds, whole.moments
        while (done := self.found.kills.total()) < kills:
            self.one_run(min(KILLS_OF_A_RUN, kills - done))
            print(f"{self.found.kills.total()}/{kills} kills, {self.found.runs} runs", file=sys.stderr, flush=True)
        self.found.leftovers = leftovers(self.root)
        return self.found

    def one_run(self, kills: int) -> None:
        """Kill a new run up to so many times, let it end, and compare."""
        found, name = self.found, f"run{self.found.runs}"
        found.runs += 1
        said: list[str] = []
        for number in range(kills + 1):
            kill = self.next_kill() if number < kills else None
            ending = self.live(name, kill)
            if ending.code != KILLED:
                if isinstance(kill, Aim):  # never came so far: what is done already has fewer moments
                    self.moments[kill.phase] = max(1, ending.moments[kill.phase])
                break
            said.append(f"{ending.phase} ({kill})")
            found.kills[ending.phase] += 1
            found.timed += isinstance(kill, float)
            found.unreadable += [f"{fault}, killed in {said[-1]}" for fault in unreadable(self.root / name)]
        if ending.code:
            found.stuck.append(f"{name}, killed in {', '.join(said)}: {self.last_words(name)}")
            return
        found.different += differences(self.root / name, self.root / WHOLE)

    def next_kill(self) -> Aim | float:
        """A moment of a phase that no kill has hit yet; after that, every other time, a random time."""
        kills, counts = self.found.kills, self.moments
        if min(kills[phase] for phase in PHASES) and kills.total() % 2:
            return self.random.uniform(0, self.found.seconds)
        phase = min((phase for phase in PHASES if counts[phase]), key=lambda phase: kills[phase])
        # Rather early ones: a resumed run has fewer moments left than the whole one had.
        return Aim(phase, 1 + int(counts[phase] * self.random.random() ** 2))

    def live(self, name: str, kill: Aim | float | None) -> Ending:
        """A process of the run `name`: its first one, or one that resumes it."""
        data = "drawn" if name == "run0" else "data"  # so that drawing, too, is killed
        begun = (self.root / name / "config.json").exists()
        places = ["--exp_name", name, "--output_dir", str(self.root), "--data_root", str(self.root / data)]
        argv = [*self.flags, *places, *(["--resume"] if begun else [])]
        return attempt(argv, self.root / f"{name}.log", self.watch, kill)

    def last_words(self, name: str) -> str:
        """The last line that the run has printed."""
        return (self.root / f"{name}.log").read_text(encoding="utf-8").strip().rpartition("\n")[2]
