"""engine/averaging.py: exponential and equal averages of weights, their state, their running statistics."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from engine.averaging import Average, refresh_statistics
from model.recompute import recompute


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def moves(count: int, seed: int = 7) -> list[dict[str, Tensor]]:
    """Weights of some networks, one after the other."""
    made = []
    for i in range(count):
        net = network(seed + i)
        net(torch.randn(2, 1, 8, 8))
        made.append(net.state_dict())
    return made


def averaged(average: Average, states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    net = network()
    for state in states:
        net.load_state_dict(state)
        average.update(net)
    return average.network.state_dict()


@pytest.mark.parametrize("decay", [0.0, 0.05, 0.4, 0.999])
def test_exponential_is_the_formula(decay: float) -> None:
    states = moves(6)
    expected = {name: tensor.double() for name, tensor in network().state_dict().items()}
    for t, state in enumerate(states):
        kept = min(decay, (1 + t) / (10 + t))
        for name, tensor in state.items():
            expected[name] = kept * expected[name] + (1 - kept) * tensor.double()
    expected["1.num_batches_tracked"] = states[-1]["1.num_batches_tracked"]
    found = averaged(Average(network(), decay), states)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor.to(found[name].dtype), atol=1e-6, rtol=1e-5, msg=name)


def test_the_decay_warms_up() -> None:
    average, shares = Average(network(), 0.9), []
    for _ in range(100):
        shares.append(average.share())
        average.update(network())
    assert shares[0] == pytest.approx(0.9)
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(0.1)


def test_equal_is_torchs_mean() -> None:
    states, theirs, net = moves(5), AveragedModel(network()), network()
    for state in states:
        net.load_state_dict(state)
        theirs.update_parameters(net)
    found = averaged(Average(network(), None), states)
    for name, parameter in theirs.module.named_parameters():
        torch.testing.assert_close(found[name], parameter)
        torch.testing.assert_close(found[name], torch.stack([s[name] for s in states]).mean(0))


@pytest.mark.parametrize("decay", [None, 0.5])
def test_what_stands_still_stays_to_the_bit(decay: float | None) -> None:
    net = network()
    average = Average(net, decay)
    for _ in range(5):
        average.update(net)
    assert all(torch.equal(a, b) for a, b in zip(average.network.parameters(), net.parameters(), strict=True))
    assert torch.equal(average.network.get_buffer("1.running_var"), net.get_buffer("1.running_var"))


@pytest.mark.parametrize("decay", [None, 0.9])
def test_going_on_from_a_checkpoint_is_bit_identical(decay: float | None) -> None:
    states = moves(8)
    straight = averaged(Average(network(), decay), states)
    first, file = Average(network(), decay), io.BytesIO()
    averaged(first, states[:3])
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = Average(network(99), decay)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.updates == 3
    found = averaged(second, states[3:])
    assert all(torch.equal(found[name], tensor) for name, tensor in straight.items())


def test_a_state_of_another_network_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        Average(network(), 0.9).load_state_dict(Average(nn.Sequential(nn.Conv2d(1, 3, 3)), 0.9).state_dict())


class Shared(nn.Module):
    """One layer under two names, as nnU-Net's decoder holds the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 2)
        self.decoder = nn.ModuleDict({"encoder": self.encoder})


def test_a_tensor_with_two_names_is_averaged_once() -> None:
    net = Shared()
    average = Average(net, 0.05)
    before = net.encoder.weight.detach().clone()
    with torch.no_grad():
        net.encoder.weight.add_(1)
    average.update(net)
    torch.testing.assert_close(average.network.get_parameter("encoder.weight"), before + 0.95)
    assert average.network.encoder is average.network.decoder["encoder"]  # type: ignore[index]


def test_the_average_is_apart_from_the_network() -> None:
    net = network()
    average = Average(net.train(), 0.5)
    assert not any(module.training for module in average.network.modules())
    assert not any(p.requires_grad for p in average.network.parameters())
    assert all(p.requires_grad for p in net.parameters()) and net.training
    theirs = {tensor.data_ptr() for tensor in net.state_dict().values()}
    assert not theirs & {tensor.data_ptr() for tensor in average.network.state_dict().values()}


def test_a_copy_with_gradient_checkpointing_runs_its_own_blocks() -> None:
    net = network()
    recompute([net[0]])
    average = Average(net, 0.5)
    grey = torch.randn(1, 1, 8, 8)
    expected = average.network(grey)
    with torch.no_grad():
        net[0].weight.zero_()
    assert torch.equal(average.network(grey), expected)


# --- running statistics


def test_statistics_are_the_mean_over_batches() -> None:
    net = network().eval()
    batches = [torch.randn(3, 1, 8, 8) for _ in range(4)]
    with torch.no_grad():
        features = [net[0](batch) for batch in batches]
    refresh_statistics(net, iter(batches))
    mean = torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0)
    variance = torch.stack([f.var((0, 2, 3)) for f in features]).mean(0)
    torch.testing.assert_close(net[1].running_mean, mean)
    torch.testing.assert_close(net[1].running_var, variance)
    assert net[1].momentum == 0.1
    assert not net.training and all(p.grad is None for p in net.parameters())


def test_statistics_of_no_batch_are_refused() -> None:
    net = network()
    net(torch.randn(2, 1, 8, 8))
    before = net[1].running_mean.clone()
    with pytest.raises(ValueError, match="at least one batch"):
        refresh_statistics(net, [])
    assert torch.equal(net[1].running_mean, before)
