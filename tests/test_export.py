"""scripts/export.py and model/onnx_file.py: exported networks are the trained ones, or nothing is written."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from config import HAND_BONES, Config, ConfigProblem
from engine import settings
from engine.files import FileProblem
from inference import command
from model import onnx_file
from model.checkpoint import Checkpoint, read_checkpoint, save_weights
from model.network import Built, Network, build
from model.onnx_file import OnnxNetwork, read_trained, seal
from scripts import export

ROOT = Path(export.__file__).parent.parent
WHOLE, SLIDING = "inference.inference", "inference.inference_sliding"
TINY = {"model_file": "model.model_simple_unet_quarter", "base_channels": 4, "image_size": 96, "window_size": 64,
        "stride": 32, "device": "cpu"}  # fmt: skip
CLASSES = ("Radius", "Ulna", "Lunate")


def checkpoint_at(path: Path, **values: Any) -> Path:
    """A checkpoint of random weights whose masks cover about half of an image."""
    cfg = settings.replace(Config(), {**TINY, **values})
    torch.manual_seed(0)
    state = build(cfg).state_dict()
    if "body.head.bias" in state:
        state["body.head.bias"] += 4.6
    save_weights(path, state, cfg, 0.75, 3)
    return path


def run(main: Callable[[list[str]], int], *argv: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(a) for a in argv])
        except SystemExit as left:
            assert isinstance(left.code, int)
            code = left.code
    return code, out.getvalue(), err.getvalue()


def refused(code: int, said: str, *argv: object) -> None:
    found = run(export.main, *argv)
    assert found[0] == code and said in found[2] and not found[1], found
    assert found[2].startswith("error: ") and found[2].count("\n") == 1, "one sentence"


def images(count: int, side: int = 64) -> Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(1))


def logits(network: nn.Module, grey: Tensor) -> Tensor:
    with torch.inference_mode():
        out: Tensor = network(grey)
    return out


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_at(tmp_path_factory.mktemp("trained") / "best.safetensors")


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file for windows of 64 px. Read it, don't change it."""
    path = tmp_path_factory.mktemp("exported") / "a.onnx"
    code, out, err = run(export.main, "--checkpoint", checkpoint, "--output", path, "--threshold", 0.4)
    assert code == 0 and not err, err
    assert "opset 20, IR version 10; takes any number of images of 1 x 64 x 64" in out
    assert "masks in 0.0000% of their pixels" in out and f"--checkpoint {path}" in out
    assert list(path.parent.iterdir()) == [path], "one file, nothing else"
    return path


# --- ONNX as a member


def predicted(path: Path, style: str, root: Path, folder: Path) -> tuple[list[list[str]], NDArray[np.int32]]:
    """Image and class of every row of the CSV, and the packed masks of all images."""
    flags = ["--inference_file", style, "--data_root", root, "--output", folder, "--save_masks", "packed"]
    flags += ["--resize_to", 64] if style == WHOLE else []
    code, _, err = run(command.main, "--checkpoint", path, "--threshold", 0.5, *flags)
    assert code == 0, err
    rows = [line.split(",")[:2] for line in (folder / "submission.csv").read_text().splitlines()]
    return rows, np.stack([np.load(file)["bits"] for file in sorted((folder / "masks").iterdir())])


@pytest.mark.parametrize("style", [WHOLE, SLIDING])
def test_inference_finds_the_masks_of_the_checkpoint(
    style: str, checkpoint: Path, exported: Path, phantom_root: Path, tmp_path: Path
) -> None:
    rows, bits = predicted(checkpoint, style, phantom_root, tmp_path / "torch")
    again, same = predicted(exported, style, phantom_root, tmp_path / "onnx")
    assert rows == again and len(rows) == 1 + 4 * len(HAND_BONES)
    share = np.bitwise_count(bits).mean() / len(HAND_BONES)
    assert 0.1 < share < 0.9, "masks to compare"
    # A logit within rounding of the threshold may fall to either side.
    assert np.bitwise_count(bits ^ same).mean() / len(HAND_BONES) < 1e-5


@pytest.mark.parametrize(
    ("values", "side"),
    [
        ({"inference_file": SLIDING}, 64),
        ({"inference_file": WHOLE}, 96),
        ({"inference_file": WHOLE, "resize_to": 48}, 48),
    ],
)
def test_the_size_is_that_of_the_inference(values: dict[str, Any], side: int, checkpoint: Path) -> None:
    trained = read_checkpoint(checkpoint)
    job = export._job(trained, settings.replace(trained.cfg, values), Path("a.onnx"))
    assert job.side == side and job.images(2).shape == job.images(2, dark=True).shape == (2, 1, side, side)


def test_the_file_says_all_that_a_checkpoint_says(checkpoint: Path, exported: Path) -> None:
    trained, read = read_checkpoint(checkpoint), read_trained(exported)
    assert (read.path, read.score, read.epoch) == (exported, 0.75, 3)
    assert read.cfg == settings.replace(trained.cfg, {"threshold": 0.4}), "output and checkpoint are of one run only"
    metadata = onnxruntime.InferenceSession(exported).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(HAND_BONES) and len(metadata["sha256"]) == 64
    for place in (ROOT, Path(torch.__file__).parent):
        assert str(place).encode() not in exported.read_bytes(), "paths of this machine are nobody's business"
    assert isinstance(read_trained(checkpoint), Checkpoint)


def test_the_call_of_a_network(checkpoint: Path, exported: Path) -> None:
    network, ours = read_trained(exported).network().to("cpu").eval(), read_checkpoint(checkpoint).network()
    for count in (1, 2, 5):
        grey = images(count)
        out = logits(network, grey)
        assert out.dtype == torch.float32 and out.shape == (count, 29, 64, 64)
        torch.testing.assert_close(out, logits(ours, grey), atol=1e-5, rtol=1e-5)
    strided = images(2).permute(0, 1, 3, 2)
    torch.testing.assert_close(logits(network, strided), logits(ours, strided), atol=1e-5, rtol=1e-5)


def test_another_size_is_refused(exported: Path, phantom_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem, match=r"takes images of 64 x 64 px, not 64 x 32: .*export its checkpoint again"):
        read_trained(exported).network()(torch.zeros(1, 1, 64, 32))
    flags = ("--data_root", phantom_root, "--output", tmp_path / "out", "--window_size", 32)
    code, _, err = run(command.main, "--checkpoint", exported, *flags)
    assert code == 2 and "takes images of 64 x 64 px, not 32 x 32" in err
    assert not list(tmp_path.iterdir())


def test_the_gpu_is_used_where_onnxruntime_can(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = "CPUExecutionProvider", "CUDAExecutionProvider"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider", cuda, cpu])
    assert onnx_file._providers(True) == [cuda, cpu] and onnx_file._providers(False) == [cpu]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cpu])
    assert onnx_file._providers(True) == [cpu]


# --- files that are refused


def unreadable(path: Path, said: str) -> None:
    with pytest.raises(FileProblem) as problem:
        read_trained(path)
    assert str(path) in str(problem.value) and said in str(problem.value) and "\n" not in str(problem.value)


def test_damaged_and_foreign_files(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, path = exported.read_bytes(), tmp_path / "a.onnx"
    unreadable(path, "does not exist: write it with scripts/export.py")
    for cut in (0, 1, 50, 76, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        unreadable(path, "is truncated, or an ONNX file that scripts/export.py did not write")
    path.write_bytes(data[:-76])  # a valid ONNX file, as another program would write it
    assert onnxruntime.InferenceSession(path).get_inputs()[0].name == "grey"
    unreadable(path, "did not write")
    for place in range(0, len(data), len(data) // 100):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        unreadable(path, "copy it again")
    path.write_bytes(b"no network")
    seal(path)
    unreadable(path, "cannot be run by onnxruntime")
    path.write_bytes(data)
    monkeypatch.setattr(onnx_file, "FORMAT", "bone-segmentation 999")
    unreadable(path, "exported by another version of this code")


def test_without_onnxruntime(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    unreadable(exported, "needs the package onnxruntime, which is not installed: pip install onnxruntime")


def test_export_without_its_packages(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    flags = ("--checkpoint", checkpoint, "--output", tmp_path / "a.onnx")
    refused(1, "format onnx needs onnx, onnxscript, onnxruntime, not installed here: pip install onnx", *flags)
    assert not list(tmp_path.iterdir())


# --- networks that the exporter can't follow with any number of images, or not at all


class OneByOne(nn.Conv2d):
    """Asks for the number of images."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(OneByOne, self).forward(image) for image in x.split([1] * int(x.shape[0]))])


class Choosy(nn.Conv2d):
    """Decides by what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) > 0 else super().forward(-x)


def network_of(kind: type[nn.Conv2d]) -> Callable[[Checkpoint], Network]:
    torch.manual_seed(0)
    return lambda checkpoint: Network(Built(kind(1, 29, 3, padding=1), 1), 1, (0.0, 1.0)).eval()


def test_a_file_for_one_image_takes_several(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(OneByOne)(read_checkpoint(checkpoint))
    monkeypatch.setattr(Checkpoint, "network", lambda checkpoint: network)
    code, out, err = run(export.main, "--checkpoint", checkpoint, "--output", tmp_path / "a.onnx")
    assert code == 0 and "takes one image of 1 x 64 x 64" in out, err
    member = read_trained(tmp_path / "a.onnx").network()
    assert isinstance(member, OnnxNetwork) and not member.any_batch
    torch.testing.assert_close(logits(member, images(3)), logits(network, images(3)), atol=1e-5, rtol=1e-5)


def test_a_network_that_the_exporter_cannot_follow(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "network", network_of(Choosy))
    flags = ("--checkpoint", checkpoint, "--output", tmp_path / "a.onnx")
    refused(2, "ONNX exporter can't follow model.model_simple_unet_quarter", *flags)
    assert not list(tmp_path.iterdir())


# --- the other formats


def test_torchscript(checkpoint: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "sub" / "a.pt"
    code, out, err = run(export.main, "--checkpoint", checkpoint, "--format", "torchscript", "--output", path)
    assert code == 0 and not err and f'torch.jit.load("{path}")' in out
    assert not [w for w in recwarn if "jit" in str(w.message) or "trace" in str(w.message)]
    extra = {"settings.json": ""}
    with pytest.warns(FutureWarning, match="deprecated"):
        network = torch.jit.load(str(path), _extra_files=extra)
    said = json.loads(extra["settings.json"])
    trained = read_checkpoint(checkpoint)
    assert settings.from_record(json.loads(said["config"]), "")[0] == trained.cfg and said["score"] == "0.75"
    assert torch.equal(logits(network, images(1)), logits(trained.network(), images(1)))


@pytest.mark.parametrize(
    "values", [{}, {"model_file": "model.model_nnunet", "base_channels": 1}], ids=["simple_unet", "nnunet"]
)
def test_state_dict_has_the_architectures_own_names(values: dict[str, Any], tmp_path: Path) -> None:
    trained = read_checkpoint(checkpoint_at(tmp_path / "best.safetensors", **values, classes=CLASSES))
    code, out, err = run(export.main, "--checkpoint", trained.path, "--format", "state_dict")
    assert code == 0 and "(grey - 0.124) / 0.168" in out, err
    path = tmp_path / "best.state_dict.safetensors"
    network = build(trained.cfg).eval()
    names = network.body.state_dict().keys()
    assert load_file(path).keys() == names, "also where modules hold a tensor under several names"
    network.body.load_state_dict(load_file(path))
    assert torch.equal(logits(network, images(1)), logits(trained.network(), images(1)))
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert json.loads(header["classes"]) == list(CLASSES) and header["format"] == "pt"
    assert settings.from_record(json.loads(header["config"]), "")[0] == trained.cfg


def test_deep_supervision_and_recomputing_leave_no_trace(tmp_path: Path) -> None:
    values = {"model_file": "model.model_attention_unet", "deep_supervision": True, "grad_checkpoint": True}
    trained = read_checkpoint(checkpoint_at(tmp_path / "best.safetensors", **values, classes=CLASSES))
    code, out, err = run(export.main, "--checkpoint", trained.path, "--format", "torchscript")
    assert code == 0 and "gives 3 x 64 x 64 logits" in out, err
    with pytest.warns(FutureWarning, match="deprecated"):
        network = torch.jit.load(str(tmp_path / "best.torchscript.pt"))
    assert torch.equal(logits(network, images(1)), logits(trained.network(), images(1)))


# --- what is not written


class Wrong(nn.Module):
    """Logits that are off."""

    def __init__(self, network: nn.Module, by: float) -> None:
        super().__init__()
        self.network = network
        self.by = by

    def forward(self, grey: Tensor) -> Tensor:
        return self.network(grey) + self.by  # type: ignore[no-any-return]


@pytest.mark.parametrize(("by", "tolerance"), [(0.1, None), (math.nan, None), (math.nan, math.inf), (0.1, math.inf)])
def test_a_network_that_differs_is_not_written(
    by: float, tolerance: float | None, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too far in a logit; or in too many pixels of a mask; or no numbers at all."""
    network = read_checkpoint(checkpoint).network()
    monkeypatch.setattr(torch.jit, "load", lambda path: Wrong(network, by))
    if tolerance is not None:
        monkeypatch.setattr(export, "TOLERANCE", tolerance)
    path = tmp_path / "a.pt"
    flags = ("--checkpoint", checkpoint, "--format", "torchscript", "--output", path)
    refused(1, f"{path} was not written: checked against torch", *flags)
    assert not list(tmp_path.iterdir())


class Frozen(nn.Conv2d):
    """Computes with a number that tracing takes for a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - float(x.mean()))


def test_what_tracing_froze_is_seen(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "network", network_of(Frozen))
    path = tmp_path / "a.pt"
    refused(1, "was not written", "--checkpoint", checkpoint, "--format", "torchscript", "--output", path)
    assert not list(tmp_path.iterdir())


def test_what_is_asked_wrongly(
    checkpoint: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there.onnx"
    there.write_text("mine")
    refused(1, f"{there} exists and is never overwritten", "--checkpoint", checkpoint, "--output", there)
    refused(1, "is an export already: give the checkpoint", "--checkpoint", exported)
    refused(1, "does not exist: train the experiment first", "--exp_name", "x", "--output_dir", tmp_path)
    refused(2, "give a name in .onnx", "--checkpoint", checkpoint, "--output", tmp_path / "a.bin")
    refused(2, "The training decided this", "--checkpoint", checkpoint, "--base_channels", 8)
    code, _, err = run(export.main, "--checkpoint", checkpoint, "--format", "onx")
    assert code == 2 and "did you mean onnx" in err
    monkeypatch.setattr(export, "LARGEST", 1000)
    new = tmp_path / "a.onnx"
    refused(2, "GiB of weights, but an ONNX file holds less than 2", "--checkpoint", checkpoint, "--output", new)
    assert [p.name for p in tmp_path.iterdir()] == ["there.onnx"] and there.read_text() == "mine"


def test_help_waits_for_nothing() -> None:
    code = "import sys, scripts.export; print({'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
