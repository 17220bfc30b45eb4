"""Members that vote, band by band, on the grid of the image file: sizes, styles and architectures may differ.

Soft voting is the mean of the members' probabilities, what weighted boxes fusion (Solovyev et al. 2021,
arXiv:1910.13302) is for boxes: every member's opinion counts by its weight and its confidence. One band of each member
exists at a time. Where not all networks fit into the device's memory, members come there one after the other and add
to one half-precision map of the image, never to a stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from config import Config
from dataset.frame import Frame, fit_frame, fit_image
from dataset.sources import Preparation
from engine.files import FileProblem
from inference.forward import Blend
from inference.masks import SUREST, limits_of, on_file
from inference.predictor import Predictor
from inference.rows import AT_ONCE, aligned

Vote = Literal["soft", "hard", "logit"]


@dataclass(frozen=True)
class Prepared:
    """An image as one member sees it: its frame, and grey values (frame_height, frame_width) uint8."""

    frame: Frame
    grey: NDArray[np.uint8]


class Member:
    """A network with its style and its preparation of images."""

    def __init__(self, predictor: Predictor, network: nn.Module, cfg: Config) -> None:
        self.predictor = predictor
        self.network = network
        self.preparation = Preparation.of(cfg)
        chosen = cfg.inference
        self.size = None if chosen.full_size else chosen.resize_to or cfg.window.image_size

    @property
    def sees(self) -> tuple[object, ...]:
        """Members of which this is equal see the same."""
        return self.preparation, self.size, self.predictor.window

    def prepare(self, image: NDArray[np.uint8]) -> Prepared:
        """Prepare a (H, W) uint8 image as for training: CLAHE, the hand's box, its side, its size."""
        view = self.preparation.view(image)
        frame = fit_frame(view, self.size or max(view.height, view.width), self.predictor.window)
        return Prepared(frame, fit_image(self.preparation.stored(image, frame), frame))

    def bands(self, prepared: Prepared, device: str) -> Iterator[Tensor]:
        """Bands of the image file, (K, rows, W) logits or probabilities."""
        grey = torch.from_numpy(prepared.grey).to(device)[None, None].float() / 255
        return on_file(self.predictor.bands(grey), prepared.frame, self.predictor.blend)


class Ensemble:
    """One member or several, with one answer.

    Args:
        weights: (members, K), not negative; they are divided by their sum for each class.
        thresholds: probabilities, one a class. hard: what makes a member's mask.
        vote_threshold: hard: share of the weight that a pixel needs; 0 is more than half.
        in_turn: members come to the device one after the other.
    """

    def __init__(
        self,
        members: Sequence[Member],
        thresholds: Sequence[float],
        *,
        weights: NDArray[np.float64] | None = None,
        vote: Vote = "soft",
        vote_threshold: float = 0.0,
        in_turn: bool = False,
    ) -> None:
        self.members = list(members)
        self.thresholds = tuple(thresholds)
        given = np.ones((len(members), len(thresholds))) if weights is None else np.asarray(weights, np.float64)
        assert given.shape == (len(members), len(thresholds)) and (given >= 0).all() and (given.sum(0) > 0).all()
        self.weights = torch.from_numpy((given / given.sum(0)).astype(np.float32))
        self.vote: Vote = vote
        self.vote_threshold = vote_threshold
        self.in_turn = in_turn

    @property
    def blend(self) -> Blend:
        """What the ensemble's maps are; hard voting gives shares of votes, which are probabilities too."""
        if len(self.members) == 1 and self.vote != "hard":
            return self.members[0].predictor.blend
        return "logits" if self.vote == "logit" else "probs"

    def to(self, device: str) -> None:
        """Move all networks to the device; where they don't fit, they will come there one after the other."""
        try:
            for member in self.members:
                member.network.to(device)
        except torch.OutOfMemoryError as error:
            problem = error.with_traceback(None)
        else:
            return
        self.step_down(problem)

    def step_down(self, error: torch.OutOfMemoryError) -> None:
        """Need less memory from now on: members one after the other.

        Raises:
            FileProblem: they are so already, or there is one only.
        """
        if self.in_turn or len(self.members) == 1:
            raise FileProblem(
                f"Memory ran out with a single window ({str(error).splitlines()[0][:160]}): lower --window_size, or "
                f"--image_size where the whole image is predicted at once, or give --device cpu."
            ) from None
        self.in_turn = True
        for member in self.members:
            member.network.to("cpu")
        torch.cuda.empty_cache()
        print("memory ran out: members predict one after the other from now on", flush=True)

    def limits(self, device: str) -> Tensor:
        """(K,) above which a pixel belongs to a class, on the scale of `blend`."""
        if self.vote != "hard":
            return limits_of(self.thresholds, self.blend).to(device)
        # Sums of weights are rounded: 3 of 5 must have a share of 0.6, and 1 of 2 no more than half.
        needed = self.vote_threshold - 1e-6 if self.vote_threshold else 0.5 + 1e-6
        return limits_of([needed] * len(self.thresholds), self.blend).to(device)

    def prepare(self, image: NDArray[np.uint8]) -> list[Prepared]:
        """The image as each member sees it; what several see alike is made once."""
        made: dict[tuple[object, ...], Prepared] = {}
        for member in self.members:
            if member.sees not in made:
                made[member.sees] = member.prepare(image)
        return [made[member.sees] for member in self.members]

    def bands(self, prepared: Sequence[Prepared], device: str) -> Iterator[Tensor]:
        """Bands of the image file, (K, rows, W) on the scale of `blend`."""
        if len(self.members) == 1 and self.vote != "hard":
            yield from self.members[0].bands(prepared[0], device)
        elif self.in_turn:
            yield from self._in_turn(prepared, device)
        else:
            weights = self.weights.to(device)
            streams = [member.bands(seen, device) for member, seen in zip(self.members, prepared, strict=True)]
            for parts in aligned(streams):
                total = torch.zeros_like(parts[0])
                for member, part, weight in zip(self.members, parts, weights, strict=True):
                    total.addcmul_(self._ballot(member, part), weight[:, None, None])
                yield total

    def _in_turn(self, prepared: Sequence[Prepared], device: str) -> Iterator[Tensor]:
        shape = (len(self.thresholds), *prepared[0].frame.view.file)
        total = torch.zeros(shape, dtype=torch.float16, device=device)
        for member, seen, weight in zip(self.members, prepared, self.weights.to(device), strict=True):
            member.network.to(device)
            done = 0
            for band in member.bands(seen, device):
                rows = total[:, done : done + band.shape[1]]
                rows += (self._ballot(member, band) * weight[:, None, None]).half()
                done += band.shape[1]
            member.network.to("cpu")
        for part in total.split(AT_ONCE, 1):
            yield part.float()

    def _ballot(self, member: Member, band: Tensor) -> Tensor:
        """What the member's band adds to the vote, on the vote's scale."""
        scale = member.predictor.blend
        if self.vote == "hard":
            limits = limits_of(self.thresholds, scale).to(band.device)
            return (band > limits[:, None, None]).float()
        if self.vote == "soft":
            return band.sigmoid() if scale == "logits" else band
        return band if scale == "logits" else torch.logit(band, eps=SUREST)
