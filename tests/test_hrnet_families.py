"""HRNet, HRNet-OCR, FCN and Swin UNETR: what tests/test_zoo.py can't know of them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.segmentation import FCN_ResNet50_Weights, FCN_ResNet101_Weights
from torchvision.models.segmentation.fcn import FCNHead

from config import Config, ConfigProblem
from engine import settings
from engine.names import resolve
from model import model_fcn, model_hrnet, model_hrnet_ocr, model_swinunetr
from model.cost import parameters
from model.describe import agrees, count_published
from model.model_hrnet_ocr import regions
from model.network import Network, build

CLASSES = ("Radius", "Ulna", "Lunate")

HRNETS = ("model.model_hrnet_w18", "model.model_hrnet_ocr_w18")


def network_of(name: str, **values: Any) -> Network:
    torch.manual_seed(0)
    return build(settings.replace(Config(), {"model_file": name, "classes": CLASSES, **values}))


def picture(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def no_network(*args: Any, **kwargs: Any) -> None:
    raise OSError("Network is unreachable")


def check_loaded(found: dict[str, Tensor], rgb: dict[str, Tensor], channels: int) -> None:
    """Every tensor arrived; a grey image counts as three equal channels."""
    for key, tensor in found.items():
        given = rgb[key]
        if key == "conv1.weight" and channels == 1:
            torch.testing.assert_close(tensor, given.sum(1, keepdim=True))
        else:
            assert torch.equal(tensor, given), key


@pytest.mark.parametrize("name", HRNETS)
def test_hrnet_takes_the_weights_of_timm(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own: Any = network_of(name, in_channels=3).body.encoder
    rgb = own.state_dict()
    with torch.device("meta"):
        assert rgb.keys() <= timm.create_model("hrnet_w18").state_dict().keys()
    rgb = {key: torch.rand_like(tensor) if tensor.is_floating_point() else tensor for key, tensor in rgb.items()}
    save_file({key: tensor.contiguous() for key, tensor in rgb.items()}, tmp_path / "model.safetensors")
    monkeypatch.setattr(
        "timm.models._hub.hf_hub_download", lambda repo_id, filename, **other: str(tmp_path / "model.safetensors")
    )
    for channels in (1, 3):
        encoder: Any = network_of(name, pretrained=True, in_channels=channels).body.encoder
        check_loaded(encoder.state_dict(), rgb, channels)


def test_fcn_takes_the_weights_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the folder that torch.hub keeps its downloads in."""
    torch.manual_seed(5)
    rgb = resnet50().state_dict()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(rgb, folder / "resnet50-0676ba61.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for channels in (1, 3):
        network: Any = network_of("model.model_fcn_resnet50", pretrained=True, in_channels=channels)
        check_loaded(network.body.backbone.state_dict(), rgb, channels)


@pytest.mark.parametrize("name", [*HRNETS, "model.model_fcn_resnet50"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_without_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("timm.models._hub.hf_hub_download", no_network)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", no_network)
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(ConfigProblem, match=r"could not be loaded \(Network is unreachable\).*--no_pretrained"):
        network_of(name, pretrained=True)


def test_swin_unetr_has_no_weights_to_load() -> None:
    with pytest.raises(ConfigProblem, match=r"pretrained True has no meaning for model.model_swinunetr"):
        network_of("model.model_swinunetr", pretrained=True)


def test_known_weights_are_names_of_the_libraries() -> None:
    known = [*timm.list_pretrained("hrnet*"), "ResNet50_Weights.IMAGENET1K_V1", "ResNet101_Weights.IMAGENET1K_V1"]
    for module in (model_hrnet, model_hrnet_ocr, model_fcn):
        for variant in module.VARIANTS:
            assert set(module.weights(variant)) <= set(known) and module.weights(variant)


@pytest.mark.parametrize("module", [model_hrnet, model_hrnet_ocr, model_fcn])
def test_published_sizes(module: Any) -> None:
    stem = module.__name__.removeprefix("model.")
    for variant, published in module.PUBLISHED.items():
        with torch.device("meta"):
            count = count_published(resolve("model", f"{stem}_{variant}"), published)
        assert agrees(count, published), (stem, variant, count)


def test_what_torchvision_states_counts_an_auxiliary_head() -> None:
    head = sum(p.numel() for p in FCNHead(1024, 21).parameters())
    assert head == model_fcn.AUXILIARY
    for variant, stated in {"resnet50": FCN_ResNet50_Weights, "resnet101": FCN_ResNet101_Weights}.items():
        assert model_fcn.PUBLISHED[variant].parameters + head == stated.DEFAULT.meta["num_params"]


@pytest.mark.parametrize("name", HRNETS)
def test_hrnet_exchanges_bilinearly_and_starts_in_range(name: str) -> None:
    network = network_of(name).eval()
    modes = [part.mode for part in network.modules() if isinstance(part, nn.Upsample)]
    assert len(modes) == 31 and set(modes) == {"bilinear"}
    with torch.no_grad():
        assert network(picture(1, 1, 64, 64)).abs().max() < 100, "float16 overflows at 65504"


def test_a_region_is_the_weighted_mean_of_its_pixels() -> None:
    pixels, maps = picture(2, 5, 6, 7), 4 * picture(2, 3, 6, 7)
    maps[:, 1] = 2.5  # no preference: the plain mean
    maps[:, 2] = maps[:, 0] + 7  # another height of the same map
    maps[1, 0, 4, 3] = 99.0  # one pixel alone
    out = regions(pixels, maps)
    assert out.shape == (2, 5, 3, 1)
    torch.testing.assert_close(out[:, :, 1, 0], pixels.mean((2, 3)))
    torch.testing.assert_close(out[0, :, 0], out[0, :, 2])
    torch.testing.assert_close(out[1, :, 0, 0], pixels[1, :, 4, 3])
    weights = maps[0, 0].double().exp()
    mean = (pixels[0] * weights).sum((1, 2)) / weights.sum()
    torch.testing.assert_close(out[0, :, 0, 0], mean.float())


def test_regions_keep_their_digits_in_float16() -> None:
    pixels = picture(1, 2, 512, 512).half()
    found = regions(pixels, torch.zeros(1, 1, 512, 512).half())[0, :, 0, 0]
    torch.testing.assert_close(found.float(), pixels.float().mean((2, 3))[0], atol=2e-3, rtol=0)


def test_the_auxiliary_head_is_trained_when_asked() -> None:
    name, grey = "model.model_hrnet_ocr_w18", picture(1, 1, 65, 83)
    network = network_of(name, deep_supervision=True)
    logits, auxiliary = network.train()(grey)
    assert logits.shape == auxiliary.shape == (1, 3, 65, 83)
    assert isinstance(network.eval()(grey), Tensor)
    assert isinstance(network_of(name).train()(grey), Tensor)
    extra = network.state_dict().keys() - network_of(name).state_dict().keys()
    assert extra == {"body.auxiliary.3.bias"}


def test_one_class_of_one_image_trains() -> None:
    name, one = "model.model_hrnet_ocr_w18", {"classes": ("Radius",)}
    network = network_of(name, **one).train()
    network(picture(1, 1, 32, 32)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    with pytest.raises(ConfigProblem, match=r"norm 'instance' with 1 class .* give --norm group"):
        network_of(name, norm="instance", **one)


@pytest.mark.parametrize(
    "name", ["model.model_hrnet_ocr_w18", "model.model_fcn_resnet50", "model.model_swinunetr_tiny"]
)
def test_dropout(name: str) -> None:
    for dropout in (0.0, 0.5):
        network = network_of(name, dropout=dropout)
        shares = [part.p for part in network.modules() if isinstance(part, (nn.Dropout, nn.Dropout2d))]
        assert shares and max(shares) == dropout


def test_swin_unetr_comes_in_three_sizes_and_is_listed_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {variant: f"model.model_swinunetr_{variant}".rstrip("_") for variant in model_swinunetr.VARIANTS}
    count = {variant: parameters(network_of(name)) for variant, name in names.items()}
    assert count["tiny"] < count[""] < count["base"]
    monkeypatch.setitem(sys.modules, "monai", None)
    assert runpy.run_path(model_swinunetr.__file__)["VARIANTS"] == model_swinunetr.VARIANTS
