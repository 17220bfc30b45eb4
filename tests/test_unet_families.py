"""The U-Nets that are written out, and nnU-Net's plans: what is special about each; test_zoo.py tests the rest."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from config import Config, ConfigProblem
from engine import settings
from engine.names import resolve
from model.cost import cost, parameters
from model.model_attention_unet import AttentionGate
from model.model_nnunet import stages
from model.model_resunet import ResidualUnit
from model.model_unet3plus import FullScaleStage
from model.network import Network, build

CLASSES = ("Radius", "Ulna", "Lunate")


def settings_of(name: str, **values: Any) -> Config:
    return settings.replace(Config(), {"model_file": name, "classes": CLASSES, **values})


def network_of(name: str, **values: Any) -> Network:
    torch.manual_seed(0)
    return build(settings_of(name, **values))


def at_full_size(name: str, **values: Any) -> nn.Module:
    """The architecture alone, without memory for its weights."""
    found = resolve("model", name)
    with torch.device("meta"):
        body: nn.Module = found.load().build(found.variant, settings_of(name, **values)).body
    return body


def layout(body: nn.Module) -> list[str]:
    return [f"{name} {tuple(tensor.shape)}" for name, tensor in body.state_dict().items()]


def noise(*size: int, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("patch", "planned"), [(7, 1), (8, 2), (448, 7), (512, 8), (896, 8), (1024, 9), (1280, 9), (2048, 10)]
)
def test_stages_as_nnunet_plans_them(patch: int, planned: int) -> None:
    """Figures of nnU-Net's own planner."""
    assert stages(patch) == planned
    assert 4 <= patch / 2 ** (planned - 1) < 8


@pytest.mark.parametrize(
    ("variant", "count", "blocks"),
    [("plain", 9, None), ("plain_2048", 10, None), ("resenc_m", 9, [1, 3, 4, *[6] * 6]),
     ("resenc_l", 10, [1, 3, 4, *[6] * 7])],
)
def test_nnunet_variants_follow_the_plan(variant: str, count: int, blocks: list[int] | None) -> None:
    body = at_full_size(f"model.model_nnunet_{variant}")
    assert body.encoder.output_channels == [32, 64, 128, 256, *[512] * (count - 4)]
    assert body.encoder.strides == [[1, 1], *[[2, 2]] * (count - 1)] or body.encoder.strides == [1, *[2] * (count - 1)]
    kernels = {m.kernel_size for m in body.encoder.modules() if isinstance(m, nn.Conv2d)}
    assert kernels - {(1, 1)} == {(3, 3)}
    if blocks is None:
        assert [len(stage[0].convs) for stage in body.encoder.stages] == [2] * count
        assert [len(stage.convs) for stage in body.decoder.stages] == [2] * (count - 1)
    else:
        assert [len(stage.blocks) for stage in body.encoder.stages] == blocks
        assert [len(stage.convs) for stage in body.decoder.stages] == [1] * (count - 1)


def test_nnunet_supervises_all_scales_but_the_coarsest() -> None:
    network = network_of("model.model_nnunet", base_channels=2, deep_supervision=True).train()
    logits = network(torch.rand(1, 1, 128, 256))
    assert [tuple(part.shape[-2:]) for part in logits] == [(128 >> i, 256 >> i) for i in range(7)]
    assert len(network.body.decoder.stages) == 8
    assert isinstance(network.eval()(torch.rand(1, 1, 128, 256)), Tensor)


@pytest.mark.parametrize(
    ("name", "outputs"), [("model.model_nnunet", 7), ("model.model_attention_unet", 4), ("model.model_unet3plus", 5)]
)
def test_heads_of_coarse_scales_exist_only_when_asked(name: str, outputs: int) -> None:
    """A network trained without them starts one with them, and both predict from the same layers."""
    plain, deep = (network_of(name, base_channels=2, deep_supervision=d).eval() for d in (False, True))
    missing, unexpected = deep.load_state_dict(plain.state_dict(), strict=False)
    assert len(missing) == 2 * (outputs - 1) and not unexpected
    assert all("heads." in key or "seg_layers." in key for key in missing)
    grey = torch.rand(1, 1, 64, 96)
    with torch.no_grad():
        assert torch.equal(plain(grey), deep(grey))
    assert len(deep.train()(grey)) == outputs and isinstance(plain.train()(grey), Tensor)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("model.model_simple_unet", 100083154),
        ("model.model_simple_unet_half", 661338283),
        ("model.model_simple_unet_quarter", 2557693432),
    ],
)
def test_earlier_checkpoints_fit(name: str, digest: int) -> None:
    """Names and shapes of all tensors, as the first checkpoints of these networks hold them."""
    body = at_full_size(name, classes=Config().data.classes)
    assert zlib.crc32("\n".join(layout(body)).encode()) == digest


@pytest.mark.parametrize("family", ["simple_unet", "attention_unet", "unet3plus", "resunet"])
def test_a_number_in_the_name_fixes_the_channels(family: str) -> None:
    name = f"model.model_{family}"
    assert layout(at_full_size(f"{name}_64")) == layout(at_full_size(name, base_channels=64))
    assert layout(at_full_size(f"{name}_64", base_channels=64)) == layout(at_full_size(f"{name}_64"))
    with pytest.raises(ConfigProblem, match=f"base_channels 16 contradicts {name}_64, which has 64: leave it out"):
        at_full_size(f"{name}_64", base_channels=16)


@pytest.mark.parametrize("name", ["nnunet_resenc_m", "simple_unet_half", "attention_unet"])
def test_dropout_of_whole_channels(name: str) -> None:
    network = network_of(f"model.model_{name}", base_channels=2, dropout=0.5)
    assert any(isinstance(m, nn.Dropout2d) and m.p == 0.5 for m in network.modules())
    grey = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        assert not torch.equal(network.train()(grey), network(grey))


@pytest.mark.parametrize("name", ["nnunet_resenc_m", "attention_unet", "unet3plus"])
def test_three_channels_batches_of_one_and_cost(name: str) -> None:
    values = {"base_channels": 2, "in_channels": 3, "deep_supervision": True}
    network = network_of(f"model.model_{name}", **values).train()
    count = parameters(network)
    assert network(torch.rand(1, 3, 65, 83))[0].shape == (1, 3, 65, 83)
    used = cost(network, 64)
    assert used.parameters == count and used.flops > 0 and used.training_bytes > used.inference_bytes > 0


def test_an_attention_gate_weighs_the_skip() -> None:
    torch.manual_seed(0)
    gate, x, g = AttentionGate(6, 10).eval(), noise(2, 6, 8, 12), noise(2, 10, 4, 6, seed=2)
    with torch.no_grad():
        attention = gate.attention(x, g)
        assert attention.shape == (2, 1, 8, 12) and 0 < attention.min() < attention.max() < 1
        assert not torch.equal(gate.attention(x, g + 1), attention), "the coarser scale decides with"
        torch.testing.assert_close(gate(x, g), gate.output(x * attention))
        gate.psi.bias.fill_(-1e4)
        torch.testing.assert_close(gate(x, g), gate.output(torch.zeros_like(x)))


def test_attention_gates_stand_on_all_skips_but_the_finest() -> None:
    body = at_full_size("model.model_attention_unet_64")
    assert [gate.psi.in_channels for gate in body.gates] == [512, 256, 128]
    assert [gate.phi.in_channels for gate in body.gates] == [1024, 512, 256]


@pytest.mark.parametrize("scale", range(4))
def test_full_scale_stages_see_every_scale(scale: int) -> None:
    torch.manual_seed(0)
    stage = FullScaleStage(scale, [2, 4, 6, 8, 10], 3).eval()
    features = [noise(1, 2 * j + 2, 32 >> j, 48 >> j, seed=j) for j in range(5)]
    with torch.no_grad():
        plain = stage(*features)
        assert plain.shape == (1, 15, 32 >> scale, 48 >> scale)
        for j in range(5):
            changed = [f + 1 if i == j else f for i, f in enumerate(features)]
            assert not torch.equal(stage(*changed), plain)


def test_unet3plus_outputs_are_full_size() -> None:
    network = network_of("model.model_unet3plus", base_channels=2, deep_supervision=True).train()
    assert [tuple(part.shape) for part in network(torch.rand(2, 1, 65, 83))] == [(2, 3, 65, 83)] * 5


def test_resunet_is_the_papers_table() -> None:
    """Seven units, and 7.8 M parameters in their 3 x 3 convolutions."""
    body = at_full_size("model.model_resunet_64", in_channels=3)
    units = [m for m in body.modules() if isinstance(m, ResidualUnit)]
    assert [unit.shortcut.out_channels for unit in units] == [64, 128, 256, 512, 256, 128, 64]
    convs = [m for m in body.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convs) == 14 and round(sum(conv.weight.numel() for conv in convs) / 1e6, 1) == 7.8


@pytest.mark.parametrize("stride", [1, 2])
def test_a_residual_unit_adds_to_a_strided_projection(stride: int) -> None:
    torch.manual_seed(0)
    unit, x = ResidualUnit(4, 6, stride).eval(), noise(1, 4, 16, 24)
    with torch.no_grad():
        nn.init.zeros_(unit.residual[-1].weight)
        expected = nn.functional.conv2d(x, unit.shortcut.weight, stride=stride)
        torch.testing.assert_close(unit(x), expected)
