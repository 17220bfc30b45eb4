"""model/model_two_stage.py: the region lies where the first network finds it, and what the second draws comes back
there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from config import Config, ConfigProblem
from engine import settings
from inference.command import main
from model.checkpoint import save_weights
from model.model_two_stage import FADE, TwoStage
from model.network import Built, Network, build

CLASSES = ("Radius", "Ulna", "Lunate")
FOUND = 2
"""Channel that the second network draws again."""


def settings_of(**values: Any) -> Config:
    small = {
        "model_file": "model.model_two_stage",
        "classes": CLASSES,
        "second_classes": CLASSES[FOUND:],
        "dataset_file": "dataset.dataset",
        "inference_file": "inference.inference",
        "base_channels": 2,
        "first_size": 64,
        "second_size": 32,
    }
    return settings.replace(Config(), {**small, **values})


def network_of(**values: Any) -> Network:
    torch.manual_seed(0)
    return build(settings_of(**values))


def body_of(network: Network) -> TwoStage:
    assert isinstance(network.body, TwoStage)
    return network.body


class Bright(nn.Module):
    """Stands for a first network that knows the answer: class FOUND where the image is bright, nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        found = (x - 0.5) * 40
        return torch.cat([torch.full_like(found, -20.0)] * FOUND + [found], 1)


class Same(nn.Module):
    """Stands for a second network that draws what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Silent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, -20.0).expand(-1, len(CLASSES), -1, -1)


def two_stage(first: nn.Module, second: nn.Module, share: float = 0.3, side: int = 64) -> TwoStage:
    stages = (Network(Built(part, 8), 1, (0.0, 1.0)) for part in (first, second))
    return TwoStage(*stages, 64, side, share, [FOUND])


def spot(height: int, width: int, x: float, y: float, radius: float) -> Tensor:
    """(1, 1, height, width): 1 in a disc around (x, y) px, else 0."""
    rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    return (torch.hypot(columns - x, rows - y) < radius).float()[None, None]


def region_px(net: TwoStage, image: Tensor) -> Tensor:
    """Centre of the square (N, 2), px across and down."""
    seen: list[Tensor] = []
    net.first.register_forward_hook(lambda module, args, logits: seen.append(logits))
    net(image)
    height, width = image.shape[-2:]
    coarse = seen[0][..., : round(height * 64 / max(height, width, 64)), : round(width * 64 / max(height, width, 64))]
    return (net.centre(coarse, net.half_side(height, width)) + 1) / 2 * torch.tensor([width, height])


def test_the_region_lies_where_the_first_network_finds_the_classes() -> None:
    places = ((100.0, 90.0), (150.0, 170.0), (70.0, 120.0))
    images = torch.cat([spot(256, 200, x, y, 15) for x, y in places])
    centre = region_px(two_stage(Bright(), Same()), images)
    # A pixel of the reduced image is four of the whole.
    torch.testing.assert_close(centre, torch.tensor(places), atol=1.0, rtol=0)


def test_the_region_stays_in_the_image_and_in_its_middle_where_nothing_is_found() -> None:
    net = two_stage(Bright(), Same(), share=0.5)
    corner = torch.cat([spot(256, 200, 5, 250, 10), spot(256, 200, 195, 5, 10), torch.zeros(1, 1, 256, 200)])
    expected = torch.tensor([[64.0, 192.0], [136.0, 64.0], [100.0, 128.0]])
    torch.testing.assert_close(region_px(net, corner), expected, atol=0.1, rtol=0)
    wide = two_stage(Bright(), Same(), share=1.0)
    torch.testing.assert_close(region_px(wide, spot(256, 200, 20, 20, 10))[0], torch.tensor([100.0, 128.0]))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("size", [(256, 256), (256, 180), (150, 301)])
def test_what_the_second_network_draws_comes_back_to_its_place(size: tuple[int, int], half: bool) -> None:
    """An image of each pixel's own position: any shift would show. Autocast must not round positions."""
    height, width = size
    down = torch.arange(height)[:, None].expand(size) / height
    across = torch.arange(width).expand(size) / width
    images = torch.stack([down, across])[:, None]
    net = two_stage(Silent(), Same(), share=0.4, side=128)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        drawn = (net(images) + 20)[:, FOUND]
    inside = slice(height // 2 - 40, height // 2 + 40), slice(width // 2 - 40, width // 2 + 40)
    assert (drawn[0] - down)[inside].abs().max() * height < 0.02
    assert (drawn[1] - across)[inside].abs().max() * width < 0.02


def test_nothing_changes_outside_the_square_and_in_other_classes() -> None:
    network = network_of()
    body, image = body_of(network), torch.rand(1, 1, 200, 160, generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []
    body.second.register_forward_hook(lambda module, args, logits: torch.full_like(logits, 7.0))
    body.first.register_forward_hook(lambda module, args, logits: seen.append(logits))
    with torch.no_grad():
        merged = network.eval()(image)
    small = seen[0][..., :128, :102]  # 200 x 160 px reduced to a long side of two strides
    alone = F.interpolate(small, size=(200, 160), mode="bilinear", align_corners=False)
    changed = merged - alone
    assert not changed[:, :FOUND].any()
    rows, columns = changed[0, FOUND].nonzero().T
    side = 0.3 * 200
    for places in (rows, columns):
        assert side * (1 - FADE) < places.max() - places.min() + 1 <= side
    torch.testing.assert_close(changed[0, FOUND].max(), torch.tensor(7.0))
    steps = changed[0, FOUND].diff(dim=0).abs().max(), changed[0, FOUND].diff(dim=1).abs().max()
    assert max(steps) < 7 / (FADE * side / 2) * 2, "smooth at the border"


def test_both_networks_learn_the_classes_in_the_region() -> None:
    network = network_of().train()
    body = body_of(network)
    logits = network(torch.rand(2, 1, 96, 96, generator=torch.Generator().manual_seed(1)))
    middle = logits[:, FOUND, 40:56, 40:56]
    middle.sum().backward()
    for part in (body.first, body.second):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())
        assert max(p.grad.abs().max() for p in part.parameters() if p.grad is not None) > 0


def test_the_sum_begins_at_the_class_prior() -> None:
    state = network_of().state_dict()
    assert (state["body.first.body.head.bias"] == -4.6).all() and not state["body.second.body.head.bias"].any()


@pytest.mark.parametrize(
    ("first", "second", "sizes"),
    [
        ({"first_size": 100}, {"second_size": 100}, (128, 112)),
        ({"first_model": "simple_unet"}, {"second_model": "simple_unet_quarter"}, (64, 128)),
    ],
)
def test_sizes_fit_the_networks(first: dict[str, Any], second: dict[str, Any], sizes: tuple[int, int]) -> None:
    network = network_of(**first, **second)
    body = body_of(network)
    assert (body.first_size, body.second_size) == sizes
    seen: list[tuple[int, ...]] = []
    for part in (body.first, body.second):
        part.body.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[-2:])))
    with torch.no_grad():
        assert network.eval()(torch.rand(1, 1, 300, 170)).shape == (1, 3, 300, 170)
    assert max(seen[0]) == sizes[0] and seen[1] == (sizes[1], sizes[1])


def test_options_go_to_the_stages_that_follow_them() -> None:
    dropouts = [m for m in network_of(dropout=0.5).modules() if isinstance(m, nn.Dropout2d)]
    assert {m.p for m in dropouts} == {0.5} and len(dropouts) == 8
    mixed = network_of(second_model="model_unet_resnet18", base_channels=4)
    assert body_of(mixed).first.state_dict()["body.head.weight"].shape[1] == 4
    assert any(isinstance(m, nn.GroupNorm) for m in body_of(network_of(norm="group")).second.modules())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"dataset_file": "dataset.dataset_dali_Sliding"}, "dataset_file .* give --dataset_file dataset.dataset."),
        ({"inference_file": "inference.inference_sliding"}, "give --inference_file inference.inference."),
        ({"second_classes": ("Lunte",)}, r"Lunte \(did you mean Lunate\?\), not in classes: .*--second_classes"),
        ({"second_classes": Config().model.second_classes}, "Trapezium.* not in classes"),
        ({"second_classes": ()}, "second_classes is empty"),
        ({"second_classes": ("Ulna", "Ulna")}, "at least one class, each once"),
        ({"first_model": "model_two_stage"}, "first_model model.model_two_stage has two stages itself"),
        ({"second_model": "Two_Stage"}, "second_model model.model_two_stage has two stages itself"),
        ({"first_model": "model_unet_resnet35"}, "first_model: .*did you mean .*resnet34"),
        ({"second_model": "model_unt"}, "second_model: .*did you mean .*model_unet"),
        ({"second_model": "model_unet_tu-vit_tiny_patch16_224"}, "second_model: .*does not work as encoder"),
        ({"pretrained": True}, "pretrained True has no meaning for model.model_simple_unet_quarter nor"),
        ({"deep_supervision": True}, "deep_supervision True has no meaning for model.model_two_stage"),
    ],
)
def test_what_cannot_work_is_said_at_once(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigProblem, match=said):
        network_of(**values)


def test_a_sliding_style_is_refused_for_a_trained_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = settings_of(image_size=64, window_size=64, stride=32)
    save_weights(tmp_path / "best.safetensors", build(cfg).state_dict(), cfg, 0.5, 1)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "hand.png")
    argv = ["--checkpoint", str(tmp_path / "best.safetensors"), "--input", str(tmp_path / "hand.png")]
    with pytest.raises(SystemExit) as left:
        main([*argv, "--output", str(tmp_path / "out")], style="inference.inference_sliding")
    assert left.value.code == 2
    assert "inference_file inference.inference_sliding cuts windows" in capsys.readouterr().err
    assert main([*argv, "--output", str(tmp_path / "out")]) == 0 and (tmp_path / "out" / "submission.csv").exists()
