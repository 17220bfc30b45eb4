"""A key -> a sample, by the plan: the code that all executors share.

An executor may replace how the image is warped; labels, effects and mixers are always made here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from config import Config
from dataset.frame import Frame, View, fit_frame
from dataset.labels import Shapes, class_boxes, rasterise, read_shapes
from dataset.mixing import mix
from dataset.order import Key
from dataset.plan import DISTORTIONS, FILTERS, MIXERS, Boxes, Cell, Plan, draw_plan, generator, grid_side
from dataset.readers import Record
from dataset.sources import Source
from dataset.warp import label_region, label_steps, warp_bits, warp_image
from engine.files import FileProblem

Grey = NDArray[np.uint8]
Bits = NDArray[np.int32]

S = TypeVar("S")

DONOR = 2**31
"""Added to the window's number for the donor's random numbers: a donor is no sample of the epoch."""


class Unfit(FileProblem):
    """A good file that an executor can't take: never skipped, as the other executors would train on it."""


def _load_kernels() -> None:
    """Call the compiled kernels once: workers forked later share them, which saves each 0.9 s and 80 MB."""
    frame = fit_frame(View.whole((4, 4)), 4, 4)
    steps = label_steps(Plan(np.eye(2, 3), 4), frame)
    square = np.array([[0, 0], [3, 0], [3, 3]], np.int32)
    warp_bits(rasterise({"any": [square]}, ["any"], 4, 4, ""), (0, 4, 0, 4), steps)


@dataclass(frozen=True)
class Sample:
    """One training sample."""

    grey: Grey
    """(size, size) uint8."""
    bits: Bits
    """(words, size, size) int32."""
    key: str
    """subject/stem of its image."""
    weight: float
    """In the loss; 1 where people drew its label."""
    skipped: str = ""
    """What was wrong with the image in whose place it stands."""


class Samples:
    """Samples by key (epoch, record, window); no state but what has been read before, so any worker makes any sample.

    Args:
        side: height and width of a sample, px.
        n_windows: samples of each image and epoch; 1 for whole images.
    """

    def __init__(self, records: Sequence[Record], cfg: Config, side: int, sliding: bool, source: Source) -> None:
        self.records = list(records)
        self.cfg = cfg
        self.side = side
        self.mode = cfg.window.window_mode if sliding else "random"
        self.source = source
        self.polygons: dict[int, Shapes] = {}
        _load_kernels()
        if any(getattr(cfg.augment, name)[2] > 0 for name in (*DISTORTIONS, *FILTERS)):
            # Here and not with the first sample: it takes a second, which every worker would pay again.
            import dataset.effects  # noqa: F401

    def sample(self, key: Key) -> Sample:
        """The sample of a key; with `bad_image` skip, that of the next image where this one can't be read.

        Raises:
            FileProblem: an image or label can't be used; names it.
        """
        return self.or_next(self._make, key)

    def or_next(self, make: Callable[[Key, str], S], key: Key) -> S:
        """make(key, ""); with `bad_image` skip, where a file is bad, make(key of the next image, what was wrong)."""
        epoch, index, window = key
        count, skipped = len(self.records), ""
        for step in range(count):
            try:
                return make((epoch, (index + step) % count, window), skipped)
            except FileProblem as problem:
                if self.cfg.data.bad_image == "error" or isinstance(problem, Unfit):
                    raise
                skipped = skipped or str(problem)
        raise FileProblem(f"none of the {count} training images can be read: {skipped}")

    def plan(self, key: Key, frame: Frame) -> Plan:
        """All that happens to the sample of a key."""
        epoch, index, window = key
        cfg = self.cfg
        rng = generator(cfg.run.seed, epoch, self.records[index].key, window)
        return draw_plan(
            rng,
            frame,
            self.side,
            cfg.augment,
            cell=Cell(window % DONOR, grid_side(cfg.window), cfg.window.stride) if self.mode == "grid" else None,
            boxes=self._boxes(index, frame) if self.mode == "balanced" else None,
        )

    def bits(self, index: int, plan: Plan, frame: Frame) -> Bits:
        """Packed label of a plan before its effects: (words, size, size) int32."""
        height, width = frame.view.file
        steps = label_steps(plan, frame)
        region = label_region(steps, height, width)
        where = str(self.records[index].label)
        packed = rasterise(self._shapes(index), self.cfg.data.classes, height, width, where, region)
        return warp_bits(packed, region, steps)

    def finish(self, key: Key, plan: Plan, grey: Grey, bits: Bits) -> tuple[Grey, Bits]:
        """The effects and mixers of a plan on the warped image and label."""
        if not plan.effects:
            return grey, bits
        if any(effect.name not in MIXERS for effect in plan.effects):
            from dataset.effects import apply_effects

            grey, bits = apply_effects(grey, bits, plan.effects)
        mixers = [effect for effect in plan.effects if effect.name in MIXERS]
        if mixers and key[2] < DONOR:  # a donor takes from nobody
            donor = self._make(self._donor(key))
            for effect in mixers:
                grey, bits = mix(grey, bits, donor.grey, donor.bits, effect)
        return grey, bits

    def weight(self, key: Key, plan: Plan) -> float:
        """Of a sample in the loss. One that takes from a donor has the smaller weight: its label is no surer."""
        own = self.records[key[1]].weight
        if key[2] < DONOR and any(effect.name in MIXERS for effect in plan.effects):
            return min(own, self.records[self._donor(key)[1]].weight)
        return own

    def _make(self, key: Key, skipped: str = "") -> Sample:
        frame, stored = self.source.load(key[1])
        plan = self.plan(key, frame)
        grey, bits = self.finish(key, plan, warp_image(stored, plan, frame), self.bits(key[1], plan, frame))
        return Sample(grey, bits, self.records[key[1]].key, self.weight(key, plan), skipped)

    def _donor(self, key: Key) -> Key:
        """Another image's sample, drawn evenly; the same for all mixers."""
        epoch, index, window = key
        rng = generator(self.cfg.run.seed, epoch, self.records[index].key, window + DONOR)
        step = 1 + int(rng.integers(max(len(self.records) - 1, 1)))
        return epoch, (index + step) % len(self.records), window + DONOR

    def _shapes(self, index: int) -> Shapes:
        if index not in self.polygons:
            self.polygons[index] = read_shapes(self.records[index], self.cfg.data.classes)
        return self.polygons[index]

    def _boxes(self, index: int, frame: Frame) -> Boxes:
        """Boxes of the image's classes in frame pixels."""
        boxes = class_boxes(self._shapes(index))
        matrix = frame.to_file()
        corners = [(boxes[:, i : i + 2] - matrix[:, 2]) / np.diag(matrix) for i in (0, 2)]
        return np.concatenate([np.minimum(*corners), np.maximum(*corners)], axis=1)
