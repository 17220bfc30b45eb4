"""Every name of model/ at small size: shapes, gradients, layouts, costs, options, published sizes, pretrained weights.

`make test` runs the smallest variant of each family, `make test-full` every name that --list_models prints.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from config import Config, ConfigProblem
from engine import settings
from engine.names import all_names, resolve, stems
from model.checkpoint import read_checkpoint, save_weights
from model.cost import parameters, training_bytes
from model.describe import agrees, count_published
from model.losses import build_loss
from model.network import NORMALIZE, OPTIONAL, Network, build

CLASSES = ("Radius", "Ulna", "Lunate")

WHOLE = {"dataset_file": "dataset.dataset", "inference_file": "inference.inference"}
TWO_STAGE = {
    **WHOLE,
    "first_model": "model.model_simple_unet", "first_size": 64, "second_model": "model.model_simple_unet",
    "second_classes": ("Lunate",), "second_share": 0.5, "second_size": 32, "base_channels": 2,
}

SMALLEST: dict[str, tuple[str, dict[str, Any]]] = {
    "model_attention_unet": ("", {"base_channels": 4}),
    "model_deeplabv3": ("resnet18", {}),
    "model_deeplabv3plus": ("resnet18", {}),
    "model_dpt": ("vit_tiny_patch16_224", {}),
    "model_fcn": ("resnet50", {}),
    "model_fpn": ("resnet18", {}),
    "model_hrnet": ("w18", {}),
    "model_hrnet_ocr": ("w18", {}),
    "model_linknet": ("resnet18", {}),
    "model_manet": ("resnet18", {}),
    "model_nnunet": ("", {"base_channels": 4}),
    "model_pan": ("resnet18", {}),
    "model_pspnet": ("resnet18", {}),
    "model_resunet": ("", {"base_channels": 4}),
    "model_segformer": ("b0", {}),
    "model_simple_unet": ("", {"base_channels": 4}),
    "model_swinunetr": ("tiny", {}),
    "model_two_stage": ("", TWO_STAGE),
    "model_unet": ("resnet18", {}),
    "model_unet3plus": ("", {"base_channels": 4}),
    "model_unetplusplus": ("resnet18", {}),
    "model_upernet": ("resnet18", {}),
}
"""Family -> its smallest variant, and settings that make it smaller still."""

QUICK = {f"model.{stem}" + (f"_{variant}" if variant else ""): values for stem, (variant, values) in SMALLEST.items()}


def settings_of(name: str, **values: Any) -> Config:
    needed = {"model_file": name, "classes": CLASSES, **(TWO_STAGE if "two_stage" in name else {})}
    return settings.replace(Config(), {**needed, **QUICK.get(name, {}), **values})


def network_of(name: str, **values: Any) -> Network:
    torch.manual_seed(0)
    return build(settings_of(name, **values))


def options_of(name: str) -> tuple[str, ...]:
    options: tuple[str, ...] = resolve("model", name).load().OPTIONS
    return options


def picture(*size: int, count: int = 2) -> Tensor:
    return torch.rand((count, 1, *size), generator=torch.Generator().manual_seed(1))


def outputs(network: Network, grey: Tensor) -> list[Tensor]:
    """Logits, fine to coarse, with the same random dropping each time."""
    torch.manual_seed(3)
    out = network(grey)
    return [out] if isinstance(out, Tensor) else list(out)


def gradients(network: Network, grey: Tensor) -> dict[str, Tensor | None]:
    network.zero_grad()
    generator = torch.Generator().manual_seed(2)
    total = [(o * torch.randn(o.shape, generator=generator)).sum() for o in outputs(network.train(), grey)]
    torch.stack(total).sum().backward()
    return {name: p.grad for name, p in network.named_parameters()}


def awake(network: Network) -> Network:
    """nnU-Net begins with residual branches that multiply by 0."""
    for key, parameter in network.named_parameters():
        if parameter.ndim == 1 and not parameter.any() and key.endswith("weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return network


@dataclass(frozen=True)
class Case:
    name: str
    original: Network

    def network(self, training: bool = False) -> Network:
        return copy.deepcopy(self.original).train(training)


@pytest.fixture(
    scope="module",
    params=[
        *QUICK,
        *(pytest.param(n, marks=pytest.mark.full) for n in all_names("model") if n not in QUICK),
    ],
)
def case(request: pytest.FixtureRequest) -> Case:
    """pytest runs all tests of one case in a row, so each network is built once."""
    return Case(request.param, awake(network_of(request.param)))


def test_every_family_is_here() -> None:
    assert sorted(SMALLEST) == stems("model")
    assert set(QUICK) <= set(all_names("model"))


def test_any_size_and_the_same_every_time(case: Case) -> None:
    network = case.network()
    with torch.no_grad():
        for size in ((65, 83), (128, 96), (17, 40)):
            logits = network(picture(*size))
            assert logits.shape == (2, len(CLASSES), *size) and torch.isfinite(logits).all()
            assert torch.equal(network(picture(*size)), logits)
        alone = network(picture(65, 83)[:1])
        torch.testing.assert_close(alone, network(picture(65, 83))[:1], atol=1e-3, rtol=1e-3)


def test_gradient_reaches_every_parameter_also_in_batches_of_one(case: Case) -> None:
    for count in (2, 1):
        found = gradients(case.network(), picture(65, 83, count=count))
        assert not [name for name, gradient in found.items() if gradient is None]
        assert not [name for name, gradient in found.items() if gradient is not None and not gradient.isfinite().all()]
        if count == 2:
            assert not [name for name, gradient in found.items() if gradient is not None and not gradient.any()]


def test_the_state_survives_a_checkpoint(case: Case, tmp_path: Path) -> None:
    """nnU-Net holds most tensors under several names; safetensors refuses those."""
    cfg, network = settings_of(case.name), case.network(training=True)
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
    assert path.stat().st_size < sum(unique.values()) + 400_000, "shared tensors are written once"


def test_one_step_of_adam_lowers_the_loss_of_one_image(case: Case) -> None:
    cfg, network = settings_of(case.name), case.network(training=True)
    loss, optimizer = build_loss(cfg), torch.optim.Adam(network.parameters(), 1e-4)
    grey, bits = picture(64, 96, count=1), torch.zeros((1, 1, 64, 96), dtype=torch.int32)
    bits[..., 10:50, 20:60] = 0b011
    bits[..., 30:60, 40:90] |= 0b100
    before = loss(outputs(network, grey), bits)
    before.backward()
    optimizer.step()
    with torch.no_grad():
        assert loss(outputs(network, grey), bits) < before


def test_memory_layout_does_not_matter(case: Case) -> None:
    grey, network = picture(65, 83), case.network()
    with torch.no_grad():
        one = network(grey)
        other = network.to(memory_format=torch.contiguous_format)(grey)
    torch.testing.assert_close(one, other, atol=1e-3 * float(one.abs().max()), rtol=0)


def test_the_input_is_grey_normalised_and_padded_in_black(case: Case) -> None:
    network = case.network()
    seen: list[Tensor] = []
    network.body.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        network(torch.zeros(1, 1, 65, 83))
        network(torch.ones(1, 1, 65, 83))
    height, width = network.padded(65, 83)
    assert all(x.shape == (1, 1, height, width) for x in seen)
    assert height % network.stride == width % network.stride == 0 and min(height, width) >= network.least
    mean, std = NORMALIZE["dataset"]
    black = torch.tensor(-mean / std)
    torch.testing.assert_close(seen[0], black.expand_as(seen[0]))
    torch.testing.assert_close(seen[1][..., :65, :83], torch.tensor((1 - mean) / std).expand(1, 1, 65, 83))
    torch.testing.assert_close(seen[1][..., 65:, :], black.expand_as(seen[1][..., 65:, :]))


def test_three_channels(case: Case) -> None:
    network = network_of(case.name, in_channels=3).eval()
    grey = picture(65, 83)
    with torch.no_grad():
        assert torch.equal(network(grey), network(grey.expand(-1, 3, -1, -1)))
    more = parameters(network) - parameters(case.original)
    assert more > 0, "the stem takes three"


@pytest.mark.parametrize("kind", ["batch", "group", "instance"])
def test_normalisation_layers_by_choice(case: Case, kind: str) -> None:
    network = awake(network_of(case.name, norm=kind))
    kept = {"batch": nn.BatchNorm2d, "group": nn.GroupNorm, "instance": nn.InstanceNorm2d}[kind]
    norms = [m for m in network.modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d))]
    assert all(isinstance(norm, kept) for norm in norms)
    found = gradients(network, picture(64, 96, count=1))
    assert all(gradient is not None and gradient.isfinite().all() for gradient in found.values())
    if kind != "batch":  # no statistics of a batch: one image does not change another's result
        with torch.no_grad():
            alone, both = (outputs(network, picture(64, 96)[:n])[0][:1] for n in (1, 2))
        random = any(isinstance(m, nn.BatchNorm1d) or "drop" in type(m).__name__.lower() for m in network.modules())
        assert random or torch.allclose(alone, both, atol=1e-3)


@pytest.mark.full
def test_gradient_checkpointing_changes_nothing_but_memory(case: Case) -> None:
    plain, saving = case.network(), network_of(case.name, grad_checkpoint=True)
    saving.load_state_dict(plain.state_dict())
    grey = picture(64, 96)
    one, other = gradients(plain, grey), gradients(saving, grey)
    for name, gradient in one.items():
        assert gradient is not None
        scale = float(gradient.abs().max())
        torch.testing.assert_close(other[name], gradient, atol=1e-3 * scale + 1e-6, rtol=1e-3, msg=name)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(saving.get_buffer(name), buffer, msg=name)
    assert training_bytes(saving, 192) < 0.9 * training_bytes(plain, 192)


def test_the_count_is_the_published_one(case: Case) -> None:
    name = resolve("model", case.name)
    published = getattr(name.load(), "PUBLISHED", {}).get(name.variant)
    if published is None:
        assert name.variant not in getattr(name.load(), "PUBLISHED", {})
        return
    count = count_published(name, published)
    assert agrees(count, published), f"{count:,} here, {published.parameters:,} by {published.source}"


def test_deep_supervision(case: Case) -> None:
    if "deep_supervision" not in options_of(case.name):
        with pytest.raises(ConfigProblem, match="deep_supervision True has no meaning"):
            network_of(case.name, deep_supervision=True)
        return
    network, grey = awake(network_of(case.name, deep_supervision=True)), picture(65, 83)
    logits = network.train()(grey)
    assert isinstance(logits, list) and len(logits) > 1
    assert logits[0].shape == (2, len(CLASSES), 65, 83)
    heights = [part.shape[-2] for part in logits]
    assert heights == sorted(heights, reverse=True)
    assert all(part.shape[:2] == (2, len(CLASSES)) and part.isfinite().all() for part in logits)
    found = gradients(network, grey)
    assert not [name for name, gradient in found.items() if gradient is None or not gradient.any()]
    with torch.no_grad():
        final = network.eval()(grey)
        assert isinstance(final, Tensor) and final.shape == (2, len(CLASSES), 65, 83)
    bits = torch.ones((2, 1, 65, 83), dtype=torch.int32)
    assert torch.isfinite(build_loss(settings_of(case.name))(logits, bits))


def test_options_without_meaning_are_errors(case: Case) -> None:
    strange = {"base_channels": 12, "dropout": 0.25, "pretrained": True, "first_size": 96}
    for option in sorted(set(OPTIONAL) & set(strange) - set(options_of(case.name))):
        with pytest.raises(ConfigProblem, match=rf"{option} .* has no meaning for {case.name}, which follows"):
            build(settings_of(case.name, **{option: strange[option]}))


def test_no_two_families_are_one_network_under_two_names() -> None:
    shapes = {
        name: sorted(tuple(tensor.shape) for tensor in network_of(name).state_dict().values()) for name in QUICK
    }
    for one, other in combinations(shapes, 2):
        assert shapes[one] != shapes[other], f"{one} and {other}"
