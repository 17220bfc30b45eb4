"""The sides of the ensemble benchmark: image files -> the competition's CSV, or only the forward passes in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks import competition_way, our_way
from benchmarks.case import Case
from benchmarks.painted import Reader
from config import Config
from dataset.readers import Record
from engine import settings
from engine.devices import half_type
from inference.build import build_predictor, thresholds_of
from inference.ensemble import Ensemble, Member
from inference.forward import run_network
from inference.job import CSV_NAME, Job
from inference.pipeline import fill
from model.network import build

Side = Callable[[Sequence[Record], Path], Path]
"""Predicts the images, and writes a CSV into a folder that does not exist yet: its path."""


@dataclass(frozen=True)
class Task:
    """What the members do, and where. Windows overlap by half; each is seen as it is and mirrored."""

    case: Case
    models: tuple[str, ...]
    device: str

    def settings(self, model: str, *, amp: bool) -> Config:
        """Everything else at its default."""
        values = {"model_file": f"model.{model}", "stride": self.case.window // 2, "device": self.device}
        views = {"tta_mode": "flip", "tta_unseen": "allow"}
        return settings.replace(our_way.settings("PNG", self.case), {**values, **views, "amp": amp})

    def networks(self) -> list[nn.Module]:
        """Untrained, but they mark what is painted."""
        torch.manual_seed(0)
        bodies = [build(self.settings(model, amp=True)) for model in self.models]
        return [
            Reader(body, len(self.case.classes)).eval().requires_grad_(False).to(self.device) for body in bodies
        ]


def ours(networks: Sequence[nn.Module], task: Task, *, amp: bool) -> Side:
    """The inference commands' way, from the ensemble on."""
    configs = [task.settings(model, amp=amp) for model in task.models]
    members = [
        Member(build_predictor(cfg, network), network, cfg) for cfg, network in zip(configs, networks, strict=True)
    ]
    ensemble = Ensemble(members, thresholds_of(configs[0]))

    def side(records: Sequence[Record], folder: Path) -> Path:
        with Job(folder, records, configs[0], [], "vote soft") as job:
            fill(job, [(ensemble, records)], configs[0], task.device)
        return folder / CSV_NAME

    return side


def monai(networks: Sequence[nn.Module], task: Task, batch: int, *, amp: bool) -> Side:
    """MONAI's sliding window, `batch` windows at a time, and around it what the competition's teams do."""
    from monai.inferers.inferer import SlidingWindowInferer  # here: it takes a second

    case = task.case
    inferer = SlidingWindowInferer(
        (case.window, case.window),
        batch,
        overlap=0.5,
        mode="gaussian",
        sigma_scale=task.settings(task.models[0], amp=amp).window.gaussian_sigma,
        cache_roi_weight_map=True,
        device=torch.device(task.device),
    )

    def predict(records: Sequence[Record]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        for record in records:
            pixels = cv2.imread(str(record.image), cv2.IMREAD_GRAYSCALE)
            grey = torch.from_numpy(pixels).to(task.device)[None, None].float() / 255
            yield record.name, (_mean(networks, inferer, grey)[0] > 0.5).cpu().numpy()

    def side(records: Sequence[Record], folder: Path) -> Path:
        folder.mkdir()
        half = torch.autocast("cuda", half_type("cuda")) if amp and task.device == "cuda" else nullcontext()
        with torch.no_grad(), half:
            competition_way.write_rows(folder / CSV_NAME, predict(records), case.classes)
        return folder / CSV_NAME

    return side


def _mean(networks: Sequence[nn.Module], inferer: Callable[[Tensor, nn.Module], Tensor], grey: Tensor) -> Tensor:
    """Mean probability (1, K, H, W) over networks, of the mean logit over both views."""
    total: Tensor | None = None
    for network in networks:
        logits = inferer(grey, network)
        logits += inferer(grey.flip(-1), network).flip(-1)
        probs = logits.mul_(0.5).sigmoid_()
        total = probs if total is None else total.add_(probs)
    assert total is not None
    return total.div_(len(networks))


def bare(networks: Sequence[nn.Module], side: Side, records: Sequence[Record], folder: Path) -> Side:
    """The forward passes in half precision that another side makes for the first record, for every record."""
    batches: list[tuple[nn.Module, torch.Size]] = []

    def note(network: nn.Module, inputs: Any) -> None:
        batches.append((network, inputs[0].shape))

    with ExitStack() as stack:
        for network in networks:
            stack.callback(network.register_forward_pre_hook(note).remove)
        side(records[:1], folder)
    device = next(networks[0].parameters()).device
    inputs = {shape: torch.rand(shape, device=device) for _, shape in batches}

    def forward(records: Sequence[Record], folder: Path) -> Path:
        for _ in records:
            for network, shape in batches:
                run_network(network, inputs[shape], half=("cuda",))
        return folder

    return forward
