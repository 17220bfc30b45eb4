"""Families over segmentation_models_pytorch: names of encoders, pretrained weights, what is removed, and what differs
from the library. What every network must do is in test_zoo.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from config import Config, ConfigProblem
from engine import settings
from engine.names import resolve
from model.cost import parameters
from model.network import Network, build
from model.smp_decoders import encoder_name, known_weights, knows_encoder, library

FAMILIES = (
    "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "pan", "deeplabv3", "upernet", "segformer", "dpt"
)


def network_of(name: str, **values: Any) -> Network:
    torch.manual_seed(0)
    return build(settings.replace(Config(), {"model_file": name, "classes": ("Radius", "Ulna"), **values}))


def picture(*size: int, count: int = 1) -> Tensor:
    return torch.rand((count, 1, *size), generator=torch.Generator().manual_seed(1))


def body_of(name: str, **values: Any) -> Any:
    return network_of(name, **values).body


# --- names


@pytest.mark.parametrize(
    ("variant", "encoder"),
    [
        ("", "resnet34"),
        ("resnet18", "resnet18"),
        ("efficientnet-b4", "efficientnet-b4"),
        ("efficientnet_b4", "tu-efficientnet_b4"),
        ("tu-efficientnet_b4", "tu-efficientnet_b4"),
        ("tu-resnet18", "tu-resnet18"),
        ("mit_b5", "mit_b5"),
        ("hrnet_w48", "tu-hrnet_w48"),
        ("convnext_tiny.fb_in22k", "tu-convnext_tiny.fb_in22k"),
    ],
)
def test_an_encoder_is_the_librarys_own_where_there_is_one_else_timms(variant: str, encoder: str) -> None:
    assert encoder_name(variant) == encoder and knows_encoder(variant)


@pytest.mark.parametrize("variant", ["resnet35", "efficientnet_b99", "tu-convnext", "convnext_tiny.no_such_tag"])
def test_unknown_encoders(variant: str) -> None:
    assert not knows_encoder(variant)


def test_every_variant_in_the_tables_is_an_encoder() -> None:
    for family in (*FAMILIES, "deeplabv3plus"):
        module = resolve("model", family).load()
        assert all(module.accepts(variant) for variant in module.VARIANTS), family


def test_listing_names_imports_no_library_of_encoders() -> None:
    script = (
        f"import sys; from engine.names import resolve; [resolve('model', f).load().VARIANTS for f in {FAMILIES}];"
        "print([m for m in sys.modules if m in ('timm', 'segmentation_models_pytorch')])"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- pretrained weights


def test_known_weights_are_listed_and_the_first_is_what_pretrained_takes() -> None:
    assert known_weights("") == ("imagenet",)
    assert known_weights("resnet18")[0] == "imagenet" and "swsl" in known_weights("resnet18")
    assert "imagenet" not in known_weights("resnext101_32x32d") != ()
    default, *others = known_weights("convnext_tiny")
    assert default == "convnext_tiny.in12k_ft_in1k" and "convnext_tiny.fb_in22k" in others and default not in others
    assert known_weights("convnext_tiny.fb_in22k") == ("convnext_tiny.fb_in22k",)
    assert known_weights(next(n for n in timm.list_models("mobilenet*") if not timm.is_model_pretrained(n))) == ()
    assert resolve("model", "segformer").load().weights("b0") == known_weights("mit_b0")
    assert resolve("model", "dpt").load().weights("")[0].startswith("vit_base_patch16_224.")


def test_pretrained_without_any_weights_is_said() -> None:
    bare = next(n for n in timm.list_models("mobilenet*") if not timm.is_model_pretrained(n))
    with pytest.raises(ConfigProblem, match=f"no pretrained weights of tu-{bare} are known: give --no_pretrained"):
        network_of(f"unet_{bare}", pretrained=True)


@pytest.mark.parametrize(
    ("name", "stem"), [("unet_mobilenetv3_small_050", "conv_stem"), ("dpt_vit_tiny_patch16_224", "patch_embed.proj")]
)
def test_timms_one_channel_stem_is_the_sum_of_its_rgb_filters(
    name: str, stem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's file, from memory: all its tensors that the encoder has arrive, the stem as the sum of its filters."""
    torch.manual_seed(5)
    rgb = timm.create_model(name.partition("_")[2]).state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **kwargs: dict(rgb))
    encoder = body_of(name, pretrained=True).encoder.model.state_dict()
    stem += ".weight"
    torch.testing.assert_close(encoder.pop(stem), rgb[stem].sum(1, keepdim=True))
    assert len(encoder) > 100 and all(torch.equal(tensor, rgb[key]) for key, tensor in encoder.items())


# --- encoders that do not fit


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deeplabv3plus_vgg11", "dilated mode.*a family that does not dilate it, such as model_unet"),
        ("unet_vit_tiny_patch16_224", "tu-vit_tiny_patch16_224 does not work as encoder of Unet"),
        ("dpt_resnet18", "resnet18 does not work as encoder of DPT"),
        ("unet_maxvit_tiny_tf_224", "must be divisible by window"),
    ],
)
def test_an_encoder_that_does_not_fit_says_why(name: str, message: str) -> None:
    with pytest.raises(ConfigProblem, match=message):
        network_of(name)


# --- what nothing uses


def test_a_network_that_uses_everything_keeps_the_librarys_names() -> None:
    ours = body_of("unet_resnet34").state_dict()
    theirs = library().Unet("resnet34", encoder_weights=None, in_channels=1, classes=2).state_dict()
    assert ours.keys() == theirs.keys() and all(ours[key].shape == theirs[key].shape for key in ours)


def test_layers_that_nothing_uses_are_gone_and_the_rest_computes_the_same() -> None:
    ours = body_of("unet_efficientnet-b0").eval()
    theirs = library().Unet("efficientnet-b0", encoder_weights=None, in_channels=1, classes=2).eval()
    gone = theirs.state_dict().keys() - ours.state_dict().keys()
    assert gone and all(key.startswith(("encoder._conv_head", "encoder._bn1")) for key in gone)
    ours.load_state_dict({key: tensor for key, tensor in theirs.state_dict().items() if key not in gone})
    with torch.no_grad():
        torch.testing.assert_close(ours(picture(64, 64)), theirs(picture(64, 64)))


@pytest.mark.parametrize("name", ["unet_resnest14d", "fpn_hrnet_w18_small", "unet_mobilenetv3_small_050"])
def test_batches_of_one_train_and_checkpointing_agrees_on_other_encoders(name: str) -> None:
    """ResNeSt normalises pooled values, HRNet writes into its lists, MobileNet changes features in place."""
    found: list[dict[str, Tensor]] = []
    for saving in (False, True):
        network = network_of(name, grad_checkpoint=saving).train()
        network(picture(64, 64)).square().mean().backward()
        found.append({key: p.grad for key, p in network.named_parameters() if p.grad is not None})
        assert len(found[-1]) == len(list(network.parameters()))
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, msg=key)


# --- single families


def test_u_net_plus_plus_supervises_the_nodes_of_its_top_row() -> None:
    supervised, plain = network_of("unet++_resnet18", deep_supervision=True), network_of("unet++_resnet18")
    state = supervised.state_dict()
    extra = state.keys() - plain.state_dict().keys()
    assert {key.split(".")[1] for key in extra} == {"heads"} and len(extra) == 2 * 3
    plain.load_state_dict({key: tensor for key, tensor in state.items() if key not in extra})
    grey = picture(65, 83, count=2)
    outputs = supervised.train()(grey)
    torch.testing.assert_close(outputs[0], plain.train()(grey))
    assert [tuple(o.shape) for o in outputs] == [(2, 2, 65, 83)] * 4
    # X^(0,1) sees the encoder's two finest maps alone, X^(0,3) all but the coarsest.
    for output, coarsest_used in zip(outputs[1:], ("layer3", "layer2", "layer1"), strict=True):
        supervised.zero_grad()
        output.sum().backward(retain_graph=True)
        stages = ("layer1", "layer2", "layer3", "layer4")
        weights = [supervised.get_parameter(f"body.encoder.{stage}.0.conv1.weight") for stage in stages]
        assert [s for s, w in zip(stages, weights, strict=True) if w.grad is not None][-1] == coarsest_used


def test_u_net_plus_plus_supervises_nothing_where_the_encoder_has_no_map_at_stride_2() -> None:
    with pytest.raises(ConfigProblem, match="convnext_atto has no features there: leave it out"):
        network_of("unet++_convnext_atto", deep_supervision=True)


def test_ma_nets_attention_mixes_positions() -> None:
    attention = body_of("manet_resnet18").decoder.center
    x = torch.randn(1, 512, 2, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen, asked = attention.top_conv(x)[0].flatten(1), attention.center_conv(x)[0].flatten(1)
        values = attention.bottom_conv(x)[0].flatten(1)
        weight = torch.stack([asked[:, i] @ seen for i in range(6)]).flatten().softmax(0).view(6, 6)
        mixed = torch.stack([sum(weight[i, j] * values[:, j] for j in range(6)) for i in range(6)], 1)
        torch.testing.assert_close(attention(x), attention.out_conv(x + mixed.view(1, 512, 2, 3)))


@pytest.mark.parametrize(
    ("name", "stride", "dilations"),
    [("pspnet_resnet18", 8, ()), ("deeplabv3_resnet18", 8, (12, 24, 36)), ("deeplabv3plus_resnet18", 16, (6, 12, 18))],
)
def test_encoders_are_dilated_as_in_the_papers(name: str, stride: int, dilations: tuple[int, ...]) -> None:
    body = body_of(name).eval()
    with torch.no_grad():
        features = body.encoder(picture(64, 96))
    assert features[-1].shape[1:] == (512, 64 // stride, 96 // stride)
    assert sorted({m.dilation[0] for m in body.decoder.modules() if isinstance(m, nn.Conv2d)} - {1}) == list(dilations)


def test_deeplab_on_hrnet_looks_at_stride_4() -> None:
    network = network_of("deeplabv3plus_hrnet_w18_small")
    seen: list[Tensor] = []
    network.get_submodule("body.decoder.aspp").register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    logits = network.train()(picture(64, 96))
    assert logits.shape == (1, 2, 64, 96)
    assert seen[0].shape == (1, 16 + 32 + 64 + 128, 16, 24)
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    dilations = {m.dilation[0] for m in network.modules() if isinstance(m, nn.Conv2d)}
    assert dilations == {1, 24, 48, 72}


@pytest.mark.parametrize(
    "name", ["fpn_resnet18", "pspnet_resnet18", "deeplabv3plus_resnet18", "dpt_vit_tiny_patch16_224"]
)
def test_dropout_is_the_settings(name: str) -> None:
    def shares(dropout: float) -> list[float]:
        body = body_of(name, dropout=dropout)
        parts = (*body.decoder.modules(), *body.segmentation_head.modules())
        return [m.p for m in parts if isinstance(m, (nn.Dropout, nn.Dropout2d))]

    assert shares(0.0) == [0.0] and shares(0.3) == [0.3]


@pytest.mark.parametrize(
    ("encoder", "width", "published"), [("swin_tiny_patch4_window7_224", 384, 60), ("convnext_tiny", 384, 60)]
)
def test_upernet_counts_what_the_papers_of_its_encoders_say(encoder: str, width: int, published: int) -> None:
    """arXiv:2103.14030, Table 3, and arXiv:2201.03545, Table 5, in millions: with 150 classes and an auxiliary head of
    one 3 x 3 convolution of 256 channels, normalisation, and logits."""
    classes = tuple(f"class {k}" for k in range(150))
    network = network_of(f"upernet_{encoder}", in_channels=3, classes=classes)
    auxiliary = width * 256 * 9 + 2 * 256 + 256 * 150 + 150
    assert round((parameters(network) + auxiliary) / 1e6) == published
    if "swin" in encoder:
        with torch.no_grad():
            assert network.eval()(picture(65, 83)).shape == (1, 150, 65, 83)
