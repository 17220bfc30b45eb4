"""engine/optim.py: names, groups, learning rates of groups, saved states, a frozen encoder."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import engine.optim
from config import ConfigProblem, Train
from engine.optim import build_optimizer, encoder_of, freeze, optimizer_names, restore, set_lr

USUAL = (
    "adamw", "adam", "sgd", "momentum", "adamp", "sgdp", "lion", "radam", "nadam", "nadamw", "lamb", "lars", "adan",
    "adabelief", "adafactor", "adopt", "rmsprop", "madgrad", "muon", "lookahead_adamw",
)  # fmt: skip

BASE = Train(lr=1e-3, weight_decay=0.3)


class Body(nn.Module):
    """A small network with an encoder, some of it fixed by name."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), Embedding())
        self.decoder = nn.ModuleDict({"encoder": self.encoder})  # a second name, as in nnU-Net
        self.head = nn.Conv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x))
        return out


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 4, 1, 1))
        self.scale = nn.Parameter(torch.randn(1, 4, 1, 1))

    def no_weight_decay(self) -> set[str]:
        return {"pos*"}

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.position


class Network(nn.Module):
    """Wrapped as every network here is."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(Body()).to(memory_format=torch.channels_last)


def headless() -> Network:
    return Network(nn.Sequential(nn.Conv2d(2, 3, 3)))


def step(net: nn.Module, optimizer: torch.optim.Optimizer, count: int = 1) -> float:
    """Steps towards a fixed target; returns the last loss before its step."""
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(2, 2, 6, 6, generator=generator), torch.randn(2, 3, 4, 4, generator=generator)
    value = 0.0
    for _ in range(count):
        loss = (net(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()
    return value


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# --- names


def test_every_listed_optimizer_can_be_built() -> None:
    names = optimizer_names()
    assert {*USUAL[:-1], "adanw", "kron"} <= set(names)
    assert "adahessian" not in names
    for name in names:
        built = build_optimizer(headless(), Train(optimizer=name))
        assert len(built.param_groups) == 2


@pytest.mark.parametrize(
    ("name", "kind"), [("AdamW", "AdamW"), ("SGD", "SGD"), ("LION", "Lion"), ("Lookahead_SGD", "Lookahead")]
)
def test_names_have_any_case(name: str, kind: str) -> None:
    assert type(build_optimizer(network(), replace(BASE, optimizer=name))).__name__ == kind


@pytest.mark.parametrize("name", ["adamm", "", "lookahead_", "foo_adamw", "lookahead_lookahead_adamw"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigProblem, match=r"is unknown.*--list_optimizers has all"):
        build_optimizer(network(), replace(BASE, optimizer=name))


def test_near_names_are_named() -> None:
    with pytest.raises(ConfigProblem, match=r"'adamww' is unknown \(did you mean adamw"):
        build_optimizer(network(), replace(BASE, optimizer="adamww"))


@pytest.mark.parametrize(
    ("name", "why"), [("LBFGS", "the loss several"), ("adahessian", "derivatives"), ("lookahead_lbfgs", "the loss")]
)
def test_what_the_loop_cannot_do_is_refused(name: str, why: str) -> None:
    with pytest.raises(ConfigProblem, match=f"{why}.*such as adamw"):
        build_optimizer(network(), replace(BASE, optimizer=name))


def test_packages_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.optim.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigProblem, match="package bitsandbytes, which is not installed"):
        build_optimizer(network(), replace(BASE, optimizer="bnbadam"))


def test_momentum_for_an_optimizer_without_is_refused() -> None:
    with pytest.raises(ConfigProblem, match=r"momentum 0\.9 has no meaning for optimizer 'adamw'"):
        build_optimizer(network(), replace(BASE, optimizer="adamw", momentum=0.9))
    assert build_optimizer(network(), replace(BASE, optimizer="sgd", momentum=0.9)).param_groups[0]["momentum"] == 0.9


def test_sgd_is_nnunets() -> None:
    for group in build_optimizer(network(), replace(BASE, optimizer="SGD")).param_groups:
        assert (group["momentum"], group["nesterov"]) == (0.99, True)


@pytest.mark.parametrize(("name", "fused"), [("adamw", True), ("adam", True), ("sgd", True), ("lion", None)])
def test_the_fused_kind_where_there_is_one(name: str, fused: bool | None) -> None:
    assert build_optimizer(network(), replace(BASE, optimizer=name)).param_groups[0].get("fused") is fused


# --- groups


def test_groups_are_encoder_and_rest_with_and_without_decay() -> None:
    net = network()
    names = {id(p): name for name, p in net.named_parameters()}
    groups = build_optimizer(net, replace(BASE, encoder_lr=0.1)).param_groups
    found = {(g["lr_scale"], g["weight_decay"]): {names[id(p)] for p in g["params"]} for g in groups}
    encoder = "body.encoder."
    assert found == {
        (0.1, 0.3): {encoder + "0.weight", encoder + "3.scale"},
        (0.1, 0.0): {encoder + "0.bias", encoder + "1.weight", encoder + "1.bias", encoder + "3.position"},
        (1.0, 0.3): {"body.head.weight"},
        (1.0, 0.0): {"body.head.bias"},
    }


def test_no_weight_decay_means_none() -> None:
    net = network()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    build_optimizer(net, BASE).step()
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"body.encoder.0.weight", "body.encoder.3.scale", "body.head.weight"}


def test_set_lr_scales_the_encoders() -> None:
    optimizer = build_optimizer(network(), replace(BASE, encoder_lr=0.25))
    assert sorted(g["lr"] for g in optimizer.param_groups) == [0.25e-3, 0.25e-3, 1e-3, 1e-3]
    set_lr(optimizer, 8.0)
    assert sorted(g["lr"] for g in optimizer.param_groups) == [2.0, 2.0, 8.0, 8.0]


@pytest.mark.parametrize("options", [{"encoder_lr": 0.1}, {"freeze_encoder": 2}])
def test_a_network_without_encoder_takes_no_settings_of_one(options: dict[str, Any]) -> None:
    assert encoder_of(headless()) is None
    with pytest.raises(ConfigProblem, match="has no encoder of its own: leave both out"):
        build_optimizer(headless(), replace(BASE, **options))
    with pytest.raises(ConfigProblem, match="freeze_encoder has no meaning"):
        freeze(headless(), True)
    freeze(headless(), False)


def test_encoders_are_found_in_body_or_network() -> None:
    net = network()
    assert encoder_of(net) is net.body.encoder
    assert encoder_of(net.body) is net.body.encoder
    net.body.encoder, net.body.backbone = None, nn.Identity()  # type: ignore[assignment]
    assert encoder_of(net) is net.body.backbone


# --- steps and saved states


@pytest.mark.parametrize("name", USUAL)
def test_steps_lower_a_quadratic(name: str) -> None:
    net = network()
    optimizer = build_optimizer(net, Train(optimizer=name, lr=1e-3, weight_decay=0.0))
    first = step(net, optimizer)
    assert step(net, optimizer, 12) < first


@pytest.mark.parametrize("name", USUAL)
def test_going_on_from_a_checkpoint_is_bit_identical(name: str) -> None:
    train = replace(BASE, optimizer=name, encoder_lr=0.5)
    one, file = network(), io.BytesIO()
    optimizer = build_optimizer(one, train)
    step(one, optimizer, 7)  # lookahead's slow weights are in it from the sixth on
    torch.save({"network": one.state_dict(), "optimizer": optimizer.state_dict()}, file)
    step(one, optimizer, 7)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    two = network(1)
    two.load_state_dict(saved["network"])
    again = build_optimizer(two, train)
    restore(again, saved["optimizer"])
    step(two, again, 7)
    assert equal(one, two)


def test_a_restored_optimizer_follows_the_settings_of_now() -> None:
    old = build_optimizer(network(), replace(BASE, optimizer="sgd", encoder_lr=0.5))
    new = build_optimizer(network(), Train(optimizer="sgd", encoder_lr=0.1, weight_decay=0.2, momentum=0.8, lr=1.0))
    restore(new, old.state_dict())
    assert {(g["lr_scale"], g["weight_decay"], g["momentum"]) for g in new.param_groups} == {
        (0.1, 0.2, 0.8), (0.1, 0.0, 0.8), (1.0, 0.2, 0.8), (1.0, 0.0, 0.8),
    }  # fmt: skip
    set_lr(new, 2.0)
    assert sorted(g["lr"] for g in new.param_groups) == [0.2, 0.2, 2.0, 2.0]


def test_a_state_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="parameter group"):
        restore(build_optimizer(headless(), BASE), build_optimizer(network(), BASE).state_dict())


# --- a frozen encoder


def test_a_frozen_encoder_stays_as_it_is_and_learns_again() -> None:
    net = network()
    optimizer = build_optimizer(net, BASE)
    step(net, optimizer, 2)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    freeze(net.train(), True)
    step(net, optimizer, 3)
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"body.head.weight", "body.head.bias"}
    freeze(net.train(), False)
    step(net, optimizer)
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(before)


def test_freezing_leaves_dropout_and_the_rest_in_training_mode() -> None:
    net = Network(nn.ModuleDict({"encoder": nn.Sequential(nn.BatchNorm2d(2), nn.Dropout()), "head": nn.BatchNorm2d(2)}))
    net.body.encoder = net.body["encoder"]  # type: ignore[index]
    freeze(net.train(), True)
    assert [module.training for module in net.body.encoder] == [False, True]  # type: ignore[union-attr]
    assert net.body["head"].training and all(p.requires_grad for p in net.body["head"].parameters())  # type: ignore[index]


def test_a_frozen_start_needs_no_other_optimizer() -> None:
    """The groups hold the frozen parameters too, so that the same optimizer goes on when they learn."""
    net = network()
    freeze(net, True)
    held = [p for group in build_optimizer(net, BASE).param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in net.parameters()} and len(held) == len(list(net.parameters()))
