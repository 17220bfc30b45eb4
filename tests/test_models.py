"""What all networks share: grey values, names, pretrained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from config import Config, ConfigProblem
from engine import settings
from engine.names import all_names
from model.checkpoint import read_checkpoint, save_weights
from model.network import Network, build
from model.smp_decoders import library


def settings_of(name: str, **values: Any) -> Config:
    return settings.replace(Config(), {"model_file": name, "classes": ("Radius", "Ulna", "Lunate"), **values})


def network_of(name: str, **values: Any) -> Network:
    torch.manual_seed(0)
    return build(settings_of(name, **values))


def picture(*size: int) -> Tensor:
    return torch.rand((2, 1, *size), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("how", ["unit", "dataset", "imagenet", "image"])
def test_grey_values_as_the_network_sees_them(how: str) -> None:
    cfg = settings.replace(Config(), {"model_file": "model.model_simple_unet_quarter", "normalize": how})
    network, seen = build(cfg).eval(), list[Tensor]()
    network.body.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    grey = torch.rand(3, 1, 128, 128, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.3, 0.0])[
        :, None, None, None
    ]
    with torch.no_grad():
        network(grey)
    if how == "image":
        flat = seen[0][:2].flatten(1)
        assert flat.mean(1).abs().max() < 1e-4 and (flat.std(1) - 1).abs().max() < 0.02
        assert not seen[0][2].any(), "a blank image has no spread to divide by"
    else:
        mean, std = {"unit": (0, 1), "dataset": (0.124, 0.168), "imagenet": (0.449, 0.226)}[how]
        torch.testing.assert_close(seen[0], (grey - mean) / std)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("model.model_nnunet", marks=pytest.mark.full),
        *("model.model_simple_unet", "model.model_simple_unet_quarter"),
    ],
)
def test_base_channels_and_dropout(name: str) -> None:
    count = {c: sum(p.numel() for p in network_of(name, base_channels=c).parameters()) for c in (4, 8)}
    assert count[8] > 1.5 * count[4], "nnU-Net stops doubling at 512 channels"
    network, grey = network_of(name, dropout=0.5), picture(64, 64)
    assert any(isinstance(m, torch.nn.Dropout2d) and m.p == 0.5 for m in network.modules())
    with torch.no_grad():
        assert not torch.equal(network.train()(grey), network(grey))
        assert torch.equal(network.eval()(grey), network(grey))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("model.model_unet_resnet35", "resnet34"),
        ("model.model_nnunet_resnec_m", "resenc_m"),
        ("model.model_simple_unet_quater", "quarter"),
        ("model.model_deeplabv3plus_resnt50", "resnet50"),
        ("model.model_nnunt", "model_nnunet"),
        ("model.model_deeplabv4", "model_deeplabv3"),
    ],
)
def test_unknown_names_suggest_near_ones(name: str, near: str) -> None:
    with pytest.raises(ConfigProblem, match=rf"did you mean .*{near}"):
        build(settings.replace(Config(), {"model_file": name}))


def test_names_without_case_and_prefix() -> None:
    assert isinstance(network_of("Simple_UNet_Half", base_channels=2), Network)
    assert len(all_names("model")) == len(set(all_names("model"))) >= 15


def no_network(*args: Any, **kwargs: Any) -> None:
    raise OSError("Network is unreachable")


@pytest.mark.parametrize(
    "name",
    ["model.model_unet_resnet18", "model.model_deeplabv3plus_resnet18", "model.model_unet_tu-mobilenetv3_small_050"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pretrained_without_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library().encoders, "hf_hub_download", no_network)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", no_network)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", no_network)
    with pytest.raises(ConfigProblem) as problem:
        build(settings_of(name, pretrained=True))
    said = str(problem.value)
    assert "could not be loaded (Network is unreachable)" in said and "--no_pretrained" in said and "\n" not in said


@pytest.mark.parametrize("family", ["model.model_unet_resnet18", "model.model_deeplabv3plus_resnet18"])
def test_pretrained_weights_and_the_one_channel_stem(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's file, from this disk: all its tensors arrive, the stem as the sum of its RGB filters."""
    torch.manual_seed(5)
    rgb = library().encoders.get_encoder("resnet18", in_channels=3, weights=None).state_dict()
    rgb["fc.weight"], rgb["fc.bias"] = torch.zeros(1000, 512), torch.zeros(1000)
    save_file(rgb, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(
        library().encoders, "hf_hub_download", lambda repo_id, filename, revision: str(tmp_path / filename)
    )
    encoder = network_of(family, pretrained=True).body.encoder.state_dict()
    torch.testing.assert_close(encoder["conv1.weight"], rgb["conv1.weight"].sum(1, keepdim=True))
    for key, tensor in encoder.items():
        if key != "conv1.weight":
            assert torch.equal(tensor, rgb[key]), key
    # A grey image counts as three equal channels.
    grey = picture(32, 32)
    stem = torch.nn.functional.conv2d
    torch.testing.assert_close(
        stem(grey, encoder["conv1.weight"]), stem(grey.expand(-1, 3, -1, -1), rgb["conv1.weight"]), atol=1e-4, rtol=1e-4
    )


def test_a_checkpoint_of_a_pretrained_network_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.model_unet_resnet18"
    save_weights(tmp_path / "x", network_of(name).state_dict(), settings_of(name, pretrained=True), 0.5, 1)
    monkeypatch.setattr(library().encoders, "hf_hub_download", no_network)
    assert isinstance(read_checkpoint(tmp_path / "x").network(), Network)
