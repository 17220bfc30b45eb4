"""How files lie in a data set, as flags of the commands that read one without being a run. Imports nothing slow."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from config import Config, Data
from engine import settings


@dataclass(frozen=True)
class LayoutFlags:
    """A data set's layout: see docs/data.md."""

    layout: Literal["auto", "competition", "pairs", "mask_per_class", "labelme"] = "auto"
    """How files lie in the data set; auto looks which layout fits."""
    image_dir: str = Data().image_dir
    """Folder of the images in it."""
    mask_dir: str = Data().mask_dir
    """Folder of the masks in it."""
    split_dir: str = Data().split_dir
    """Folder in it with train.txt, val.txt and test.txt."""

    def config(self, root: Path) -> Config:
        """Settings with these and the data set `root`."""
        return settings.replace(Config(), {**asdict(self), "data_root": str(root)})
