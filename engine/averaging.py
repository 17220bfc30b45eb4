"""Averages of a network's weights over training: exponential (EMA), and equal over the last epochs (SWA).

torch's AveragedModel waits for the GPU at every update and has no warm-up of the decay; timm's ModelEmaV3 averages a
tensor that has several names (nnU-Net's encoder) once for each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn


class Average:
    """A copy of a network that holds the average of its weights and running statistics; integers are copied.

    Exponential: average = d * average + (1 - d) * weights, with d = min(decay, (1 + t) / (10 + t)) at update t, from 0.
    Without that warm-up (as in TensorFlow's ExponentialMovingAverage), short runs would keep much of the first, random
    weights. Equal: the mean of all updates (Izmailov et al. 2018, arXiv:1803.05407), whose running statistics
    `refresh_statistics` then computes.

    Args:
        network: the plain network, before DistributedDataParallel or torch.compile wraps it.
        decay: 0 to 1 (0.999, say); None for the equal average.
    """

    def __init__(self, network: nn.Module, decay: float | None) -> None:
        self.network = deepcopy(network).eval().requires_grad_(False)
        """The averaged network, in evaluation mode."""
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights of `network`: after each step of the optimizer (EMA), after each epoch (SWA)."""
        pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        whole = [pair for pair in pairs if not pair[0].is_floating_point()]
        torch._foreach_lerp_([own for own, _ in floats], [new for _, new in floats], self.share())
        if whole:
            torch._foreach_copy_([own for own, _ in whole], [new for _, new in whole])
        self.updates += 1

    def share(self) -> float:
        """Weight of the next update, 0 to 1."""
        if self.decay is None:
            return 1 / (1 + self.updates)
        return 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint. The tensors are the average's own: write them before the next update."""
        return {"updates": self.updates, "network": self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict()`.

        Raises:
            RuntimeError, KeyError: it is of another network, or of something else.
        """
        self.network.load_state_dict(state["network"])
        self.updates = state["updates"]


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    """Each parameter and buffer once, however many names it has."""
    yield from network.parameters()
    yield from network.buffers()


def refresh_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of batch normalisation to their mean over `batches`: an average of weights has other
    features than any of them had.

    With several processes, each takes its own share of the batches, and the layers must be synchronised ones.

    Args:
        batches: what the network takes, grey values (N, 1, H, W) in [0, 1] on its device; an epoch's, or some hundred.

    Raises:
        ValueError: no batch, which would leave no statistics.
    """
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        raise ValueError("The statistics of normalisation need at least one batch: there is none.")
    update_bn(chain([first], rest), network)
