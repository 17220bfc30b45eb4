"""Stands in for run_exp.py: counts steps, saves each, stops when told to, goes on with --resume.

Every start and end is a line of `journal.txt` in the working folder: what is lost or run twice shows there.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from pathlib import Path

FLAGS = argparse.ArgumentParser()
FLAGS.add_argument("--exp_name")
FLAGS.add_argument("--steps", type=int, default=10)
FLAGS.add_argument("--pause", type=float, default=0.1, help="seconds a step")
FLAGS.add_argument("--gpus", type=int, default=1)
FLAGS.add_argument("--needs", nargs="*", default=[], help="experiments that must be done")
FLAGS.add_argument("--fail", action="store_true")
FLAGS.add_argument("--resume", action="store_true")
FLAGS.add_argument("--no_overwrite", action="store_true")
TOLD: list[int] = []


def say(name: str, what: str) -> None:
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "?")
    place = f"{socket.gethostname()} {os.environ.get('RAY_NODE', '')}"
    with open("journal.txt", "a", encoding="utf-8") as file:
        file.write(f"{time.time():.2f}|{name}|{what}|{os.getpid()}|{seen}|{place}\n")


def main() -> int:
    chosen = FLAGS.parse_args()
    name, folder = chosen.exp_name, Path("checkpoints") / chosen.exp_name
    signal.signal(signal.SIGTERM, lambda signum, frame: TOLD.append(signum))
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "last.pt"
    if state.exists() != chosen.resume:
        say(name, "wrong resume")
        return 2
    (folder / "config.json").write_text("{}")
    step = int(state.read_text()) if chosen.resume else 0
    say(name, f"start {step}")
    missing = [other for other in chosen.needs if not (Path("checkpoints") / other / "done").exists()]
    if chosen.fail or missing:
        say(name, f"failed {missing}")
        return 1
    while step < chosen.steps:
        if TOLD:
            say(name, f"saved {step}")
            return 75
        time.sleep(chosen.pause)
        step += 1
        part = folder / "last.part"
        part.write_text(str(step))
        part.rename(state)
    (folder / "done").touch()
    say(name, "done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
