"""Every family of model/ at small size: shapes, gradients, options, names, pretrained weights."""

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
from model.network import NORMALIZE, Network, build
from model.smp_decoders import smp

SMALL: dict[str, dict[str, Any]] = {
    "model.model_nnunet": {"base_channels": 4},
    "model.model_nnunet_resenc": {"base_channels": 4},
    "model.model_unet_resnet18": {},
    "model.model_unet_tu-mobilenetv3_small_050": {},
    "model.model_deeplabv3plus_resnet18": {},
    "model.model_simple_unet": {"base_channels": 4},
    "model.model_simple_unet_half": {"base_channels": 4},
    "model.model_simple_unet_quarter": {"base_channels": 4},
}
CLASSES = ("Radius", "Ulna", "Lunate")

every_model = pytest.mark.parametrize("name", SMALL)


def settings_of(name: str, **values: Any) -> Config:
    return settings.replace(Config(), {"model_file": name, "classes": CLASSES, **SMALL.get(name, {}), **values})


def network_of(name: str, **values: Any) -> Network:
    torch.manual_seed(0)
    return build(settings_of(name, **values))


def picture(*size: int) -> Tensor:
    return torch.rand((2, 1, *size), generator=torch.Generator().manual_seed(1))


@every_model
def test_odd_sizes_and_determinism(name: str) -> None:
    network = network_of(name).eval()
    with torch.no_grad():
        for size in ((65, 83), (64, 96), (17, 40)):
            logits = network(picture(*size))
            assert logits.shape == (2, len(CLASSES), *size) and torch.isfinite(logits).all()
            assert torch.equal(network(picture(*size)), logits)
        alone = network(picture(65, 83)[:1])
        torch.testing.assert_close(alone, network(picture(65, 83))[:1], atol=1e-4, rtol=1e-4)


@every_model
def test_gradient_reaches_every_parameter(name: str) -> None:
    network = network_of(name).train()
    for key, parameter in network.named_parameters():
        if key.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)  # nnU-Net begins with residual branches that multiply by 0
    logits = network(picture(65, 83))
    assert logits.shape == (2, len(CLASSES), 65, 83)
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    missing = [n for n, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not missing
    zero = [n for n, p in network.named_parameters() if p.grad is not None and not p.grad.any()]
    assert not zero


@every_model
def test_the_state_survives_a_checkpoint(name: str, tmp_path: Path) -> None:
    """nnU-Net holds most tensors under several names; safetensors refuses those."""
    cfg = settings_of(name)
    network = network_of(name).train()
    network(picture(64, 64))  # moves the running statistics
    path = tmp_path / "best.safetensors"
    save_weights(path, network.state_dict(), cfg, 0.75, 3)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.cfg, checkpoint.score, checkpoint.epoch) == (cfg, 0.75, 3)
    twin, state = checkpoint.network(), network.state_dict()
    assert not twin.training and twin.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in twin.state_dict().items())
    with torch.no_grad():
        assert torch.equal(twin(picture(65, 83)), network.eval()(picture(65, 83)))
    unique = {tensor.data_ptr(): tensor.nbytes for tensor in state.values()}
    assert path.stat().st_size < sum(unique.values()) + 200_000, "shared tensors are written once"


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


@every_model
def test_the_input_is_one_grey_channel(name: str) -> None:
    """Normalised inside; the margin up to the stride is black."""
    network = network_of(name).eval()
    assert sum(m.in_channels == 3 for m in network.modules() if isinstance(m, torch.nn.Conv2d)) == 0
    seen: list[Tensor] = []
    network.body.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        network(torch.zeros(1, 1, 65, 83))
        network(torch.ones(1, 1, 65, 83))
    assert all(x.shape[-2] % network.stride == x.shape[-1] % network.stride == 0 for x in seen)
    mean, std = NORMALIZE["dataset"]
    black = torch.tensor(-mean / std)
    torch.testing.assert_close(seen[0], black.expand_as(seen[0]))
    torch.testing.assert_close(seen[1][..., :65, :83], torch.tensor((1 - mean) / std).expand(1, 1, 65, 83))
    torch.testing.assert_close(seen[1][..., 65:, :], black.expand_as(seen[1][..., 65:, :]))


@pytest.mark.parametrize("name", ["model.model_nnunet", "model.model_simple_unet", "model.model_simple_unet_quarter"])
def test_base_channels_and_dropout(name: str) -> None:
    count = {c: sum(p.numel() for p in network_of(name, base_channels=c).parameters()) for c in (4, 8)}
    assert count[8] > 2 * count[4]
    network, grey = network_of(name, dropout=0.5), picture(64, 64)
    assert any(isinstance(m, torch.nn.Dropout2d) and m.p == 0.5 for m in network.modules())
    with torch.no_grad():
        assert not torch.equal(network.train()(grey), network(grey))
        assert torch.equal(network.eval()(grey), network(grey))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("model.model_unet_resnet18", "base_channels", 16),
        ("model.model_unet_resnet18", "dropout", 0.1),
        ("model.model_deeplabv3plus_resnet18", "dropout", 0.1),
        ("model.model_nnunet", "pretrained", True),
        ("model.model_simple_unet_half", "pretrained", True),
    ],
)
def test_an_option_without_meaning_is_an_error(name: str, option: str, value: Any) -> None:
    with pytest.raises(ConfigProblem, match=rf"{option} .* has no meaning for {name}: leave it out"):
        build(settings_of(name, **{option: value}))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("model.model_unet_resnet35", "resnet34"),
        ("model.model_nnunet_resnec", "resenc"),
        ("model.model_simple_unet_quater", "quarter"),
        ("model.model_deeplabv3plus_resnt50", "resnet50"),
        ("model.model_nnunt", "model_nnunet"),
        ("model.model_deeplabv3", "model_deeplabv3plus"),
    ],
)
def test_unknown_names_suggest_near_ones(name: str, near: str) -> None:
    with pytest.raises(ConfigProblem, match=rf"did you mean .*{near}"):
        build(settings.replace(Config(), {"model_file": name}))


def test_names_without_case_and_prefix() -> None:
    assert isinstance(network_of("Simple_UNet_Half", base_channels=2), Network)
    assert len(all_names("model")) == len(set(all_names("model"))) >= 15


def test_encoders_that_do_not_fit_are_one_sentence() -> None:
    for name in ("model.model_deeplabv3plus_vgg11", "model.model_unet_tu-vit_tiny_patch16_224"):
        with pytest.raises(ConfigProblem, match="does not work as encoder of"):
            build(settings_of(name))


def test_deeplab_needs_batches() -> None:
    with pytest.raises(ConfigProblem, match="give --batch_size 2 or more"):
        build(settings_of("model.model_deeplabv3plus_resnet18", batch_size=1))


def no_network(*args: Any, **kwargs: Any) -> None:
    raise OSError("Network is unreachable")


@pytest.mark.parametrize(
    "name",
    ["model.model_unet_resnet18", "model.model_deeplabv3plus_resnet18", "model.model_unet_tu-mobilenetv3_small_050"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pretrained_without_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smp.encoders, "hf_hub_download", no_network)
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
    rgb = smp.encoders.get_encoder("resnet18", in_channels=3, weights=None).state_dict()
    rgb["fc.weight"], rgb["fc.bias"] = torch.zeros(1000, 512), torch.zeros(1000)
    save_file(rgb, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(
        smp.encoders, "hf_hub_download", lambda repo_id, filename, revision: str(tmp_path / filename)
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
    monkeypatch.setattr(smp.encoders, "hf_hub_download", no_network)
    assert isinstance(read_checkpoint(tmp_path / "x").network(), Network)
