"""Windows through the network: in batches, in all their views, in half precision, within the memory there is."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from engine.devices import half_type
from inference.tta import PLAIN, View

Blend = Literal["logits", "probs"]


class Forward:
    """A network that answers for windows.

    Args:
        views: what is averaged for each window; only their flips, turns and intensities count.
        blend: what is averaged, and returned.
        half: kinds of device (cuda, cpu) on which it runs in half precision.
        batch: windows and views of windows that go through the network together. Where memory runs out it is halved.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        views: Sequence[View] = (PLAIN,),
        blend: Blend = "logits",
        half: Collection[str] = (),
        batch: int = 4,
    ) -> None:
        self.network = network
        self.views = tuple(views)
        self.blend = blend
        self.half = half
        self.batch = batch

    def __call__(self, windows: Sequence[Tensor]) -> Iterator[Tensor]:
        """(1, 1, h, w) float32 grey values in [0, 1] each -> in turn their (K, h, w) float32 logits or probabilities.

        Raises:
            torch.OutOfMemoryError: a single window does not fit either.
        """
        jobs = [(i, view) for i in range(len(windows)) for view in self.views]
        total: Tensor | None = None
        done = 0
        while done < len(jobs):
            inputs = [view.apply(windows[i]) for i, view in jobs[done : done + self.batch]]
            alike = next((j for j, seen in enumerate(inputs) if seen.shape != inputs[0].shape), len(inputs))
            answers = self._answers(torch.cat(inputs[:alike]))
            if answers is None:
                continue
            for (_, view), answer in zip(jobs[done : done + alike], answers, strict=True):
                values = view.undo(answer.sigmoid() if self.blend == "probs" else answer)
                if len(self.views) > 1:
                    share = 1 / len(self.views)
                    values = values * share if total is None else total.add_(values, alpha=share)
                total = values
                if view is self.views[-1]:
                    del answer, values  # nothing of this is kept while the network makes the next
                    yield total
                    total = None
            del answers
            done += alike

    def _answers(self, inputs: Tensor) -> Iterator[Tensor] | None:
        """(N, 1, h, w) -> N logits (K, h, w) float32; None where memory ran out and a smaller batch must be tried."""
        try:
            logits = run_network(self.network, inputs, self.half)
        except torch.OutOfMemoryError:
            if len(inputs) == 1:
                raise
            smaller = len(inputs) // 2
        else:
            return (answer.float() for answer in logits)
        torch.cuda.empty_cache()
        self.batch = smaller
        print(f"memory ran out: going on with window_batch {smaller}", flush=True)
        return None


def run_network(network: nn.Module, grey: Tensor, half: Collection[str]) -> Tensor:
    """Logits (N, K, H, W) without gradients, as the network gives them: half precision on the kinds in `half`."""
    kind = grey.device.type
    cast = torch.autocast(kind, half_type(kind)) if kind in half else nullcontext()
    with torch.no_grad(), cast:
        logits: Tensor = network(grey)
    return logits
