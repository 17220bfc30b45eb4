"""Look at what a loader gives: set sizes, batch shapes, grey values, samples a second.

    python scripts/test_dataloader.py --preset demo [--dataset_file dataset.dataset_sliding_clahe] [--batches 3]

takes every setting of run_exp.py.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from config import Config
from engine import flags, settings
from inference.settings import full_names

DESCRIPTION = """Print set sizes, batch shapes and speed of the loader that --dataset_file names, with the settings of
run_exp.py."""


@dataclass(frozen=True)
class Commands:
    """Flags that are no settings."""

    batches: int = 3
    """Batches to load."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    parsed, commands = flags.parse(argv, Commands, DESCRIPTION)
    return flags.run_command(lambda: _show(full_names(parsed.cfg), commands.batches))


def _show(cfg: Config, batches: int) -> int:
    settings.check(cfg)
    from dataset.selection import select
    from dataset.switches import switches_of
    from engine.bits import unpack
    from engine.devices import pick_device
    from engine.names import resolve

    switches, device = switches_of(cfg), pick_device(cfg)
    train, val = select(cfg, switches)
    print(f"{cfg.data.dataset_file}: {len(train)} training and {len(val)} validation images")
    start = time.monotonic()
    loader = resolve("dataset", cfg.data.dataset_file).load().build(train, cfg, switches, device)
    try:
        print(f"{len(loader)} steps of {cfg.train.batch_size} an epoch, built in {time.monotonic() - start:.1f} s")
        for number, batch in enumerate(islice(loader.epoch(0), batches), 1):
            masks = unpack(batch.bits, len(cfg.data.classes))
            shown = int(masks.flatten(2).any(2).any(0).sum())
            print(
                f"batch {number}: images {tuple(batch.images.shape)} {batch.images.dtype} on {batch.images.device}, "
                f"grey {int(batch.images.min())} to {int(batch.images.max())}, mean {batch.images.float().mean():.1f}; "
                f"bits {tuple(batch.bits.shape)} {batch.bits.dtype}, {shown} of {len(cfg.data.classes)} classes; "
                f"{', '.join(batch.keys[:4])}{' …' if len(batch.keys) > 4 else ''}"
            )
        seconds, count = time.monotonic() - start, min(batches, len(loader)) * cfg.train.batch_size
        print(f"{count} samples in {seconds:.1f} s, start of workers included")
    finally:
        loader.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
