"""model/cost.py: what is counted is what torch really holds and does."""

from __future__ import annotations

import torch

from config import Config
from engine import settings
from model.cost import LiveBytes, cost, parameters
from model.network import Network, build


def network_of(*classes: str) -> Network:
    torch.manual_seed(0)
    values = {"model_file": "model.model_simple_unet", "base_channels": 4, "classes": classes or ("a", "b")}
    return build(settings.replace(Config(), values))


def test_counted_bytes_are_those_that_torch_really_holds() -> None:
    with LiveBytes() as live:
        a = torch.zeros(1000)
        view = a.view(10, 100)
        assert (live.now, live.peak) == (4000, 4000)
        b = a * 2
        b += view.flatten()
        assert (live.now, live.peak) == (8000, 8000)
        del b
        assert (live.now, live.peak) == (4000, 8000)
        del a
        assert live.now == 4000, "the view keeps the storage"
        del view
    assert live.now == 0


def test_the_meta_device_counts_what_the_cpu_holds() -> None:
    network = network_of()
    with torch.no_grad(), LiveBytes() as live:
        network.eval()(torch.rand(1, 1, 128, 128))
    counted = cost(network, 128)
    # The same operations; a CPU's kernels may add a copy in another layout.
    assert counted.inference_bytes <= live.peak <= 1.5 * counted.inference_bytes
    assert counted.parameters == parameters(network) and counted.training_bytes > counted.inference_bytes


def test_the_count_of_operations() -> None:
    """Two more classes are two more 1 x 1 filters of the head."""
    few, many = (cost(network_of(*classes), 64) for classes in ("a", "abc"))
    assert many.flops - few.flops == 2 * 2 * 4 * 64 * 64
    assert many.parameters - few.parameters == 2 * 5
