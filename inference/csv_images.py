"""The images that a CSV is about, as the CSV tools' flags name them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from config import ConfigProblem, also

if TYPE_CHECKING:
    from dataset.readers import Record


@dataclass(frozen=True)
class ImageFlags:
    """Where the images lie; for tools that don't need them, only where they must be known."""

    data_root: Annotated[str, also("data_dir")] = ""
    """Folder of the data, of which --split is taken; its layout is told from the names of its files."""
    split: str = "test"
    """Split of data_root."""
    images: str = ""
    """Image file or folder of images, instead of data_root."""

    @property
    def given(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self.data_root or self.images)

    def records(self) -> list[Record]:
        """The images, sorted as the competition sorts them.

        Raises:
            ConfigProblem: both data_root and images are given, or none is.
            FileProblem: there are no images.
        """
        from config import Config
        from dataset.layouts import AUTO, read_split
        from dataset.readers import read_folder
        from engine import settings

        if bool(self.data_root) == bool(self.images):
            said = "both are given" if self.images else "none is given"
            raise ConfigProblem(f"images come from data_root or from images, but {said}: give one of them.")
        if self.images:
            return read_folder(Path(self.images))
        return read_split(settings.replace(Config(), {"data_root": self.data_root, "classes": AUTO}), self.split)
