"""Cut a folder of labelled images into training, validation and test images:

python scripts/make_splits.py --data_root DATA [--mask_dir masks_manual] [--shares 0.8 0.1 0.1] [--subject_pattern …]
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from config import Config, ConfigProblem
from engine import flags, settings

DESCRIPTION = """Write <split_dir>/train.txt, val.txt and test.txt, which loaders read instead of split folders.

All images of a subject are in one split (subject_pattern says what a subject is), split_seed shuffles the subjects.
Images without a label are in none. Takes every setting of run_exp.py. Existing files are never replaced."""

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Commands:
    """Flags that are no settings."""

    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of the images that train, validate and test; together 1."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    parsed, commands = flags.parse(argv, Commands, DESCRIPTION)
    return flags.run_command(lambda: _command(parsed.cfg, commands.shares))


def _command(cfg: Config, shares: tuple[float, float, float]) -> int:
    if min(shares) < 0 or not shares[0] or abs(sum(shares) - 1) > 1e-6:
        said = " ".join(f"{share:g}" for share in shares)
        raise ConfigProblem(f"shares is {said}, but must be three numbers that sum to 1, the first above 0.")
    from dataset.layouts import AUTO, find_layout, has_split, pair_split  # after --help, which must not wait for numba
    from dataset.splits import cut
    from inference.mask_files import whole_folder

    cfg = settings.replace(cfg, {"classes": AUTO})
    data, root = cfg.data, Path(cfg.data.data_root)
    if find_layout(cfg) == "competition" or (root / "train").is_dir() or has_split(cfg, "val"):
        raise ConfigProblem(f"{root} is cut into splits already, by folders or by lists in {data.split_dir}/.")
    pairs = pair_split(cfg, "train")
    labelled = dataclasses.replace(
        pairs, records=[record for record in pairs.records if record.label], unlabelled=[]
    ).complete()
    if not labelled:
        raise ConfigProblem(f"{root} has no labelled images: set --image_dir and --mask_dir to their folders.")
    splits = cut(labelled, dict(zip(SPLITS, shares, strict=True)), data.split_seed)
    top = root / data.image_dir if (root / data.image_dir).is_dir() else root
    with whole_folder(root / data.split_dir) as folder:
        for split, records in splits.items():
            lines = [record.image.relative_to(top).as_posix() + "\n" for record in records]
            (folder / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    for split, records in splits.items():
        subjects = len({record.subject for record in records})
        print(f"{root / data.split_dir / split}.txt: {len(records)} images of {subjects} subjects")
    if left := len(pairs.records) - len(labelled):
        print(f"{left} images without a label are in none")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
