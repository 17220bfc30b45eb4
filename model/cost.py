"""What a network costs: parameters, FLOPs and memory. Counted on the meta device, so nothing is computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from model.network import Network


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations inside it make: those alive `now`, and their largest sum, `peak`.

    A storage counts once, however many tensors share it; what lay there before does not count. What a kernel allocates
    inside itself is not seen: on a GPU the allocator's own counters see that as well.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive[key] = weakref.ref(storage, self._forget(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> Callable[[Any], None]:
        def forget(reference: Any) -> None:
            del self._alive[key]
            self.now -= size

        return forget


@dataclass(frozen=True)
class Cost:
    """One image of side x side px."""

    parameters: int
    flops: int
    """Of a forward pass; a multiplication and an addition are two."""
    inference_bytes: int
    """Largest sum of activations and logits alive at once, float32, without gradients."""
    training_bytes: int
    """The same over a forward and a backward pass, gradients of the weights included; weights not."""


def cost(network: Network, side: int) -> Cost:
    """Count a network at images of `side` px. It is moved to the meta device, so it is of no use afterwards."""
    network = network.to("meta")
    grey = torch.empty(1, 1, side, side, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as flops, LiveBytes() as inference:
        network.eval()(grey)
    return Cost(parameters(network), flops.get_total_flops(), inference.peak, training_bytes(network, side))


def training_bytes(network: Network, side: int) -> int:
    """See Cost. The network is moved to the meta device."""
    network = network.to("meta").train()
    with LiveBytes() as training:
        logits = network(torch.empty(1, 1, side, side, device="meta"))
        torch.stack([part.sum() for part in ([logits] if isinstance(logits, Tensor) else logits)]).sum().backward()
    peak: int = training.peak
    return peak


def parameters(network: Network) -> int:
    """Numbers that training changes; a tensor under several names counts once."""
    return sum(p.numel() for p in network.parameters())
