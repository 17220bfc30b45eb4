"""An experiment's best weights in half precision, small enough to be shipped.

python scripts/release_weights.py checkpoints/phantom_training checkpoints/phantom
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import BEST
from engine.flags import run_command

DESCRIPTION = """Write the best weights of an experiment into another folder, in half precision: half the size, and read
by every command as before. The settings inside name the new folder. Exit codes: 0 done, 1 a file is wrong, 2 a flag is
wrong."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    experiment: tyro.conf.Positional[Path]
    """Folder of the experiment."""
    folder: tyro.conf.Positional[Path]
    """Folder to write best.safetensors into."""
    overwrite: bool = False
    """Replace the one that is there."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: _command(chosen))


def _command(chosen: Flags) -> int:
    import torch

    from engine import settings
    from engine.files import FileProblem
    from model.checkpoint import read_checkpoint, save_weights

    path = chosen.folder / BEST
    if path.exists() and not chosen.overwrite:
        raise FileProblem(f"{path} exists: give --overwrite, or another folder.")
    found = read_checkpoint(chosen.experiment / BEST)
    weights = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in found.weights.items()}
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise FileProblem(f"{found.path}: {name} has values beyond 65504, too large for half precision.")
    places = {"exp_name": chosen.folder.name, "output_dir": str(chosen.folder.parent)}
    save_weights(path, weights, settings.replace(found.cfg, places), found.score, found.epoch)
    print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
