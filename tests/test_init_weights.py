"""model/init_weights.py: what fits of a foreign file arrives, the rest is named, and code never runs."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from config import Config
from engine import settings
from engine.files import FileProblem
from model.checkpoint import FORMAT, save_weights
from model.init_weights import Report, init_from
from model.network import Network, build

CLASSES = ("Radius", "Ulna", "Lunate")
OWN = "model.model_simple_unet_half"
PLAIN = "model.model_simple_unet"
RESNET = "model.model_unet_resnet18"


def settings_of(name: str, **values: Any) -> Config:
    small = {"model.model_nnunet": {"base_channels": 1}, OWN: {"base_channels": 4}, PLAIN: {"base_channels": 4}}
    return settings.replace(Config(), {"model_file": name, "classes": CLASSES, **small.get(name, {}), **values})


def network_of(name: str, seed: int = 0, **values: Any) -> Network:
    torch.manual_seed(seed)
    return build(settings_of(name, **values))


def start(network: Network, path: Path, classes: tuple[str, ...] = CLASSES) -> Report:
    """Start from a file and check what holds for every one."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    report = init_from(network, path, classes)
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in report.missing)
    assert not {*report.matched} & {*report.missing} and not {*report.heads} & {*report.missing}
    places = {tensor.data_ptr() for tensor in after.values()}
    assert len(report.matched) + len(report.heads) + len(report.missing) == len(places)
    assert str(path) in report.text() and len(report.text().splitlines()) <= 4
    return report


def contiguous(network: Network) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in network.state_dict().items()}


def resnet18(**options: Any) -> dict[str, Tensor]:
    torch.manual_seed(7)
    state: dict[str, Tensor] = timm.create_model("resnet18", pretrained=False, **options).state_dict()
    return state


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("timm") / "resnet18.safetensors"
    save_file(resnet18(), path, {"format": "pt"})
    return path


@pytest.mark.parametrize(
    ("name", "beginning"),
    [(RESNET, "body.encoder."), ("model.model_unet_tu-resnet18", "body.encoder.model.")],
)
def test_timm_weights_for_an_encoder(name: str, beginning: str, timm_file: Path) -> None:
    network, theirs = network_of(name), resnet18()
    report = start(network, timm_file)
    state = network.state_dict()
    assert report.left_out.keys() == {"fc.weight", "fc.bias"} and len(report.matched) == len(theirs) - 2
    for key, tensor in theirs.items():
        if key == "conv1.weight":
            torch.testing.assert_close(state[beginning + key], tensor.sum(1, keepdim=True))
        elif not key.startswith("fc."):
            assert torch.equal(state[beginning + key], tensor), key
    decoder = sum(p.numel() for n, p in network.named_parameters() if not n.startswith(beginning))
    assert report.share == pytest.approx(1 - decoder / sum(p.numel() for p in network.parameters()))
    said = report.text()
    assert "left out, 2: fc.bias (no such tensor here), fc.weight" in said and f"{report.share:.1%}" in said
    assert "as they began" in said and "body.decoder" in said


def test_names_with_numbers_that_timm_writes_two_ways(tmp_path: Path) -> None:
    """`stages.0` of a network is `stages_0` of an encoder."""
    theirs = timm.create_model("convnext_atto", pretrained=False).state_dict()
    assert "stages.0.blocks.0.norm.weight" in theirs
    save_file(theirs, tmp_path / "x.safetensors")
    network = network_of("model.model_unet_tu-convnext_atto")
    report = start(network, tmp_path / "x.safetensors")
    assert set(report.left_out) == {n for n in theirs if n.startswith("head.")}
    ours = network.state_dict()["body.encoder.model.stages_3.blocks.1.conv_dw.weight"]
    assert torch.equal(ours, theirs["stages.3.blocks.1.conv_dw.weight"])


@pytest.mark.parametrize(
    ("container", "wrapper"),
    [
        ("", ""),
        ("state_dict", "module."),
        ("model", "_orig_mod."),
        ("network_weights", "_orig_mod.module."),
        ("state_dict_ema", "body."),
        ("network", "module.body."),
    ],
)
def test_wrapped_state_dicts(container: str, wrapper: str, tmp_path: Path) -> None:
    donor = network_of(OWN, seed=1).body.state_dict()
    content: Any = OrderedDict((wrapper + name, tensor) for name, tensor in donor.items())
    path = tmp_path / "last.pth"
    torch.save({container: content, "epoch": 3} if container else content, path)
    network = network_of(OWN)
    report = start(network, path)
    assert report.share == 1 and not report.left_out and not report.missing
    assert all(torch.equal(network.state_dict()[f"body.{name}"], tensor) for name, tensor in donor.items())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_library_network_with_another_decoder(tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp  # slow, and with warnings that users can't mend

    torch.manual_seed(3)
    donor = smp.FPN("resnet18", encoder_weights=None, classes=5).state_dict()
    torch.save({"state_dict": donor}, tmp_path / "fpn.pt")
    network = network_of(RESNET, in_channels=3)
    report = start(network, tmp_path / "fpn.pt")
    assert torch.equal(network.state_dict()["body.encoder.conv1.weight"], donor["encoder.conv1.weight"])
    assert all(name.startswith("body.encoder.") for name in report.matched)
    assert report.left_out["segmentation_head.0.weight"].startswith("5 x 128 x 1 x 1, here 3 x 16 x 3 x 3")


def test_filters_for_one_channel_are_divided_among_three(tmp_path: Path) -> None:
    save_file(resnet18(in_chans=1), tmp_path / "grey.safetensors")
    network = network_of(RESNET, in_channels=3)
    start(network, tmp_path / "grey.safetensors")
    theirs, ours = resnet18(in_chans=1)["conv1.weight"], network.state_dict()["body.encoder.conv1.weight"]
    torch.testing.assert_close(ours, theirs.expand(-1, 3, -1, -1) / 3)


def test_another_norm_than_the_files(timm_file: Path) -> None:
    """GroupNorm has no running statistics; that is no reason to refuse."""
    report = start(network_of(RESNET, norm="group"), timm_file)
    assert "body.encoder.layer4.1.bn2.weight" in report.matched
    assert "layer4.1.bn2.running_mean" in report.left_out


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nnunet_checkpoint(tmp_path: Path) -> None:
    """As nnU-Net's trainer writes it: NumPy scalars in its log, plain values besides, tensors under several names."""
    donor = network_of("model.model_nnunet", seed=1).body.state_dict()
    assert len({tensor.data_ptr() for tensor in donor.values()}) < len(donor)
    donor["decoder.seg_layers.0.weight"] = torch.zeros(2, 1, 1, 1)
    donor["decoder.seg_layers.0.bias"] = torch.zeros(2)
    content = {
        "network_weights": donor,
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"train_losses": [np.float32(0.5), np.float64(0.25)], "epoch_end_timestamps": [1.0, np.int64(2)]},
        "_best_ema": np.float64(0.9),
        "current_epoch": 1000,
        "init_args": {"plans": {"patch_size": [512, 512]}, "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }
    path = tmp_path / "checkpoint_final.pth"
    torch.save(content, path)
    network = network_of("model.model_nnunet")
    report = start(network, path)
    state = network.state_dict()
    assert report.left_out["decoder.seg_layers.0.weight"] == "2 x 1 x 1 x 1, here 3 x 1 x 1 x 1"
    assert len(report.left_out) == 2 and report.share > 0.99
    assert all(torch.equal(state[f"body.{name}"], t) for name, t in donor.items() if "seg_layers" not in name)


def test_numpy_1_wrote_other_names(tmp_path: Path) -> None:
    donor = network_of(OWN, seed=1).state_dict()
    torch.save({"state_dict": donor, "best": np.float64(1)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "x.pth").read_bytes()
    assert data.count(b"numpy._core.multiarray") == 1
    (tmp_path / "x.pth").write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert start(network_of(OWN), tmp_path / "x.pth").share == 1


def own_files(tmp_path: Path, name: str, **values: Any) -> tuple[dict[str, Tensor], list[Path]]:
    """A network's tensors, and its best.safetensors and last.pt."""
    network, cfg = network_of(name, seed=1, **values), settings_of(name, **values)
    save_weights(tmp_path / "best.safetensors", network.state_dict(), cfg, 0.5, 1)
    state = {"format": FORMAT, "config": settings.to_record(cfg), "network": network.state_dict(), "scaler": {}}
    torch.save(state, tmp_path / "last.pt")
    return network.state_dict(), [tmp_path / "best.safetensors", tmp_path / "last.pt"]


@pytest.mark.parametrize("name", [OWN, "model.model_nnunet"])
def test_own_checkpoints_come_whole(name: str, tmp_path: Path) -> None:
    donor, paths = own_files(tmp_path, name)
    for path in paths:
        network = network_of(name)
        report = start(network, path)
        assert report.share == 1 and not report.left_out and not report.missing and not report.heads
        assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in donor.items())


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        (PLAIN, ("Lunate", "Hamate")),
        (OWN, ("Lunate", "Ulna", "Radius")),
        (OWN, ("Capitate", "Radius", "Hamate", "Lunate", "x")),
        ("model.model_nnunet", ("Lunate", "Hamate")),
    ],
)
def test_heads_follow_the_names_of_classes(name: str, classes: tuple[str, ...], tmp_path: Path) -> None:
    """Also where a class has several rows (2 x 2 unfolded pixels), or the same classes come in another order."""
    donor, paths = own_files(tmp_path, name)
    grey = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    source = network_of(name)
    source.load_state_dict(donor)
    begun = network_of(name, classes=classes)
    for path in paths:
        network = network_of(name, classes=classes)
        report = start(network, path, classes)
        common = [c for c in classes if c in CLASSES]
        heads = {key for key, t in donor.items() if t.shape != begun.state_dict()[key].shape}
        if len(common) < len(classes):
            assert {f"{len(common)} of {len(classes)} classes"} == set(report.heads.values())
            assert {*report.heads} <= heads and f"({len(common)} of {len(classes)} classes)" in report.text()
        else:
            assert report.share == 1 and not report.heads
        assert not report.left_out and not report.missing
        with torch.no_grad():
            logits, expected = network.eval()(grey), source.eval()(grey)
        for k, c in enumerate(classes):
            if c in CLASSES:
                torch.testing.assert_close(logits[:, k], expected[:, CLASSES.index(c)])


def test_heads_without_a_class_in_common_stay(tmp_path: Path) -> None:
    _, paths = own_files(tmp_path, OWN)
    report = start(network_of(OWN, classes=("Hamate",)), paths[0], ("Hamate",))
    assert report.left_out == dict.fromkeys(["body.head.weight", "body.head.bias"], "made for other classes")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("model.model_unet_resnet34", "resnet50"),
        ("model.model_nnunet", "mobilenetv3_small_050"),
    ],
)
def test_little_that_fits_is_an_error_and_changes_nothing(name: str, other: str, tmp_path: Path) -> None:
    """Half of ResNet-50's names and shapes agree with ResNet-34's by chance."""
    save_file(timm.create_model(other, pretrained=False).state_dict(), tmp_path / "other.safetensors")
    network = network_of(name)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(FileProblem, match=r"hardly fits: .* must be 67% \(no place for .*\): give --init_from"):
        init_from(network, tmp_path / "other.safetensors", CLASSES)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


class Code:
    """A pickle of it creates a file when it is loaded as pickles are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def refused(path: Path) -> str:
    with pytest.raises(FileProblem) as problem:
        init_from(network_of(OWN), path, CLASSES)
    assert str(path) in str(problem.value) and "\n" not in str(problem.value)
    return str(problem.value)


@pytest.mark.parametrize("new", [True, False])
def test_code_is_never_run(new: bool, tmp_path: Path) -> None:
    state = {"state_dict": network_of(OWN).state_dict(), "x": Code(tmp_path / "ran")}
    torch.save(state, tmp_path / "evil.pt", _use_new_zipfile_serialization=new)
    assert "a pickle of code, which is never run: save the network's state_dict()" in refused(tmp_path / "evil.pt")
    torch.save(network_of(OWN), tmp_path / "whole.pt", _use_new_zipfile_serialization=new)
    assert "never run" in refused(tmp_path / "whole.pt")
    assert not (tmp_path / "ran").exists()


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    assert "does not exist: give --init_from" in refused(tmp_path / "absent")
    (tmp_path / "empty").touch()
    assert "is damaged, or neither safetensors nor a pickle" in refused(tmp_path / "empty")
    for i, content in enumerate(({"epoch": 3}, [torch.zeros(3)], {"state_dict": {"epoch": 3}}, {})):
        torch.save(content, tmp_path / f"{i}.pt")
        assert "holds no tensors by name" in refused(tmp_path / f"{i}.pt")


def test_damaged_files(tmp_path: Path) -> None:
    _, paths = own_files(tmp_path, OWN)
    foreign = tmp_path / "foreign.safetensors"
    save_file(contiguous(network_of(OWN)), foreign)
    for path in (*paths, foreign):
        data = path.read_bytes()
        for cut in (1, 8, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:cut])
            refused(path)
    paths[1].write_bytes(b"\x80\x02" + bytes(100))
    refused(paths[1])


def test_another_version_of_this_code(tmp_path: Path) -> None:
    _, paths = own_files(tmp_path, OWN)
    state = torch.load(paths[1], weights_only=True)
    torch.save({**state, "config": {"model": {"no_such_setting": 1}}}, paths[1])
    assert "no_such_setting" in refused(paths[1])


def test_a_safetensors_header_may_begin_as_a_pickle_does(tmp_path: Path) -> None:
    """Its first bytes are the header's length: 640 is 80 02."""
    donor = contiguous(network_of(OWN, seed=1))
    path = tmp_path / "x.safetensors"
    save_file(donor, path, {"note": ""})
    # The length is a multiple of 8, of which each step of the note takes one.
    missing = (0x280 - path.read_bytes()[0]) % 256
    save_file(donor, path, {"note": "x" * missing})
    assert path.read_bytes()[:1] == b"\x80"
    assert start(network_of(OWN), path).share == 1
