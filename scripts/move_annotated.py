"""Part images with labels from those without:

python scripts/move_annotated.py --data_root ../data [--dry_run | --undo ../data/raw_unlabelled.journal-1.json]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from engine.files import FileProblem
from engine.flags import run_command
from engine.moves import MoveFlags, Step, run_steps

DESCRIPTION = """Move the images that nobody has labelled out of the folder of images. Labels are masks called as the
image (1.png), with _mask or -class behind it (1_mask.png, 1-0.png), or labelme's 1.json beside the image.

A journal is written first, which --undo takes. Exit codes: 0 done, 1 a file is wrong, 2 a flag is wrong."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    data_root: Path = Path("../data")
    """Folder of the three."""
    image_dir: str = "images"
    """Folder of all images."""
    mask_dir: str = "masks_manual"
    """Folder of the labels."""
    raw_dir: str = "raw_unlabelled"
    """Folder that images without a label are moved to."""
    move: tyro.conf.OmitArgPrefixes[MoveFlags] = field(default_factory=MoveFlags)
    """Dry run and undo."""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    chosen = tyro.cli(Flags, args=argv, description=DESCRIPTION, use_underscores=True)
    return run_command(lambda: run_steps(chosen.move, chosen.data_root / chosen.raw_dir, lambda: _steps(chosen)))


def _steps(chosen: Flags) -> list[Step]:
    """Raises FileProblem where there are no images, or no label is of one of them."""
    from dataset.match import class_owner, mask_owner  # after --help, which must not wait for OpenCV
    from dataset.readers import images_below, path_key

    images, masks = chosen.data_root / chosen.image_dir, chosen.data_root / chosen.mask_dir
    known = {path: path_key(path, images) for path in images_below(images)}
    if not known:
        raise FileProblem(f"{images} holds no images: set --data_root and --image_dir.")
    keys = set(known.values())
    labels = [path_key(path, masks) for path in (*images_below(masks), *masks.rglob("*.json"))]
    labelled = {mask_owner(key, keys) or class_owner(key, keys, ())[0] for key in labels}
    labelled |= {path_key(path, images) for path in images.rglob("*.json")}
    if not labelled & keys:
        raise FileProblem(f"{masks} holds no label of any image in {images}, so all would be moved: set --mask_dir.")
    target = chosen.data_root / chosen.raw_dir
    return [Step("move", path, target / path.relative_to(images)) for path, key in known.items() if key not in labelled]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
