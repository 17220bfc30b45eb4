"""Where images come from: files, prepared in the same way for training and for inference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from config import Config, ConfigProblem
from dataset.clahe import Clahe
from dataset.frame import Frame, View, fit_frame, reduce_image
from dataset.hand import SMALLEST, find_hand
from dataset.images import read_image
from dataset.jpeg_tree import open_tree
from dataset.readers import Record
from dataset.switches import Switches, switches_of


@dataclass(frozen=True)
class Preparation:
    """What happens to every image before anything else, in training and at inference."""

    clahe: Clahe | None
    crop: bool
    flip: bool

    @staticmethod
    def of(cfg: Config) -> Preparation:
        """The preparation that the dataset's name asks for."""
        switches = switches_of(cfg)
        clahe = Clahe(cfg.data.clahe_clip, cfg.data.clahe_tiles) if switches.clahe else None
        return Preparation(clahe, switches.crop, switches.flip)

    @property
    def looks(self) -> bool:
        """Whether the view depends on the picture, not only on its size."""
        return self.crop or self.flip

    def view(self, image: NDArray[np.uint8]) -> View:
        """The part of an unprepared (H, W) uint8 image that is used; all of one too small to find a hand in."""
        view = View.whole(image.shape)
        if not self.looks or min(image.shape) < SMALLEST:
            return view
        hand = find_hand(image)
        left, top, right, bottom = hand.box if self.crop else (0, 0, view.width, view.height)
        return View(view.file, top, left, bottom - top, right - left, self.flip and hand.side == "left")

    def stored(self, image: NDArray[np.uint8], frame: Frame) -> NDArray[np.uint8]:
        """An image of a file, (H, W) uint8, as it is stored for its frame."""
        return reduce_image(self.clahe.apply(image) if self.clahe else image, frame.reduction)


class Source(Protocol):
    """Stored images by index."""

    def load(self, index: int) -> tuple[Frame, NDArray[np.uint8]]:
        """The frame and the stored image, (h, w) uint8; don't write into it.

        Raises:
            FileProblem: the file can't be used; names it.
        """
        ...


class Files:
    """Images decoded from their files, or from the JPEG tree, every time.

    Raises:
        ConfigProblem: the JPEG tree holds another CLAHE than the settings ask for.
        FileProblem: there is no JPEG tree, though _preprocessed asks for it.
    """

    def __init__(self, records: Sequence[Record], cfg: Config, switches: Switches, side: int) -> None:
        self.records = list(records)
        self.cfg = cfg
        self.side = side
        self.preparation = Preparation.of(cfg)
        self.views: dict[int, View] = {}
        self.tree = None
        if switches.preprocessed:
            root = Path(cfg.data.data_root)
            self.tree = open_tree(Path(cfg.data.preprocessed_dir or root / "jpeg"))
            if self.tree.clahe is not None:
                self._check_baked()
                self.preparation = dataclasses.replace(self.preparation, clahe=None)

    def _check_baked(self) -> None:
        assert self.tree is not None
        if self.tree.clahe != self.preparation.clahe:
            raise ConfigProblem(
                f"the JPEG tree has {self.tree.clahe} baked in, but {self.cfg.data.dataset_file} asks for "
                f"{self.preparation.clahe or 'no CLAHE'}: add or leave out _clahe, set --clahe_clip and --clahe_tiles, "
                f"or write another tree."
            )

    def path(self, index: int) -> Path:
        """The file that is decoded."""
        record = self.records[index]
        return self.tree.image(record, Path(self.cfg.data.data_root)) if self.tree else record.image

    def frame(self, index: int, image: NDArray[np.uint8] | None = None) -> Frame:
        """The frame of an image; `image` is its decoded file, where that is at hand."""
        view = self.views.get(index)
        if view is None:
            # The hand is looked for in the original, as at inference, not in what CLAHE or JPEG made of it.
            if image is None or (self.tree and self.preparation.looks):
                image = read_image(self.records[index].image)
            view = self.views[index] = self.preparation.view(image)
        return fit_frame(view, self.cfg.window.image_size, self.side)

    def load(self, index: int) -> tuple[Frame, NDArray[np.uint8]]:
        """See Source."""
        image = read_image(self.path(index))
        frame = self.frame(index, image)
        return frame, self.preparation.stored(image, frame)
