"""model/checkpoint.py: what is damaged or foreign is refused, what is code never runs."""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from config import Config
from engine import settings
from engine.files import FileProblem
from engine.run_state import read_state
from model.checkpoint import FORMAT, check_classes, read_checkpoint, save_weights

CFG = settings.replace(
    Config(), {"model_file": "model.model_simple_unet", "base_channels": 1, "classes": ("Ulna", "Radius")}
)


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn((2, 3, 3, 3), generator=generator).to(memory_format=torch.channels_last),
        "a.bias": torch.randn(5, generator=generator),
        "half": torch.randn(4, generator=generator).bfloat16(),
        "steps": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "best.safetensors"
    save_weights(path, weights(), CFG, 0.87654321, 12)
    return path


class Code:
    """A pickle of it creates a file when it is loaded as pickles are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def refused(path: Path, said: str = "", state: bool = False) -> str:
    with pytest.raises(FileProblem) as problem:
        (read_state if state else read_checkpoint)(path)
    message = str(problem.value)
    assert str(path) in message and "\n" not in message and said in message, message
    return message


def test_round_trip(checkpoint: Path) -> None:
    moved = checkpoint.rename(checkpoint.parent / "renamed.bin")
    read = read_checkpoint(moved)
    assert (read.path, read.cfg, read.score, read.epoch) == (moved, CFG, 0.87654321, 12)
    assert read.weights.keys() == weights().keys()
    for name, tensor in weights().items():
        assert torch.equal(read.weights[name], tensor) and read.weights[name].dtype == tensor.dtype
    assert os.listdir(checkpoint.parent) == ["renamed.bin"], "no temporary file stays"


def test_a_shared_tensor_is_written_once(tmp_path: Path) -> None:
    tensor = torch.randn(50_000)
    save_weights(tmp_path / "x", {"one": tensor, "two": tensor, "other": tensor.clone()}, CFG, 0.5, 1)
    assert read_checkpoint(tmp_path / "x").weights.keys() == {"one", "other"}
    assert (tmp_path / "x").stat().st_size < 2.2 * tensor.nbytes


def test_missing_and_empty(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "does not exist: train the experiment first, or give --checkpoint")
    refused(tmp_path, "does not exist")
    (tmp_path / "empty").touch()
    refused(tmp_path / "empty", "is empty: copy it again")


def test_truncated(checkpoint: Path) -> None:
    data = checkpoint.read_bytes()
    for cut in (1, 7, 8, 9, 100, len(data) // 2, len(data) - 100, len(data) - 1):
        checkpoint.write_bytes(data[:cut])
        refused(checkpoint, "copy it again")


def test_one_flipped_byte_anywhere(checkpoint: Path) -> None:
    """Weights, their names and shapes, settings, score: what is accepted must be the same to the last value."""
    data, whole = checkpoint.read_bytes(), read_checkpoint(checkpoint)
    header = 8 + struct.unpack("<Q", data[:8])[0]
    places = [*range(0, header, 3), *range(header, len(data), 5)]
    rng = np.random.default_rng(0)
    refusals = 0
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= int(rng.choice([1, 2, 16, 32, 255]))
        checkpoint.write_bytes(damaged)
        try:
            read = read_checkpoint(checkpoint)
        except FileProblem as problem:
            assert "\n" not in str(problem)
            refusals += 1
            continue
        assert (read.cfg, read.score, read.epoch) == (whole.cfg, whole.score, whole.epoch), place
        assert read.weights.keys() == whole.weights.keys()
        assert all(torch.equal(read.weights[name], tensor) for name, tensor in whole.weights.items()), place
    assert refusals > 0.9 * len(places)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("Ulna", "Lunate"), "class 1 is 'Radius', not 'Lunate'"),
        (("Radius", "Ulna"), "class 0 is 'Ulna', not 'Radius'"),
        (("Ulna",), "2 classes, not 1"),
        (("Ulna", "Radius", "Lunate"), "2 classes, not 3"),
    ],
)
def test_another_class_list(classes: tuple[str, ...], said: str, checkpoint: Path) -> None:
    read = read_checkpoint(checkpoint)
    check_classes(read, ("Ulna", "Radius"))
    with pytest.raises(FileProblem) as problem:
        check_classes(read, classes)
    assert str(checkpoint) in str(problem.value) and said in str(problem.value)
    assert "leave out --classes" in str(problem.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["pickle", "old torch", "torch"])
def test_code_is_never_run(how: str, tmp_path: Path) -> None:
    path, trap = tmp_path / "model.pt", tmp_path / "was-run"
    content = {"format": FORMAT, "state_dict": Code(trap)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    refused(path, "is a pickle")
    refused(path, "pickle of code, which is never run", state=True)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Code(trap)))
    assert trap.exists(), "the trap works"


def test_plain_weights_in_a_pickle(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "give the best.safetensors of an experiment")
    refused(tmp_path / "model.pt", "is no training state of this framework", state=True)


def test_safetensors_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for metadata in (None, {"format": "pt"}, {"format": "bone-segmentation 999"}):
        save_file({"x": torch.zeros(3)}, path, metadata=metadata)
        refused(path, "holds weights without the settings of their network")
    save_file({"x": torch.zeros(3)}, path, metadata={"format": FORMAT})
    refused(path, "is damaged")
    path.write_text("hello, I am a text file and no checkpoint at all")
    refused(path, "no safetensors file")


def test_settings_of_another_version(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = settings.to_record(CFG)
    record["train"]["momentumm"] = 0.5
    monkeypatch.setattr(settings, "to_record", lambda cfg: json.loads(json.dumps(record)))
    save_weights(checkpoint, weights(), CFG, 0.5, 1)
    refused(checkpoint, "of another version of this code")


def test_weights_of_another_network(checkpoint: Path) -> None:
    with pytest.raises(FileProblem, match=r"best\.safetensors does not fit model\.model_simple_unet .*train again"):
        read_checkpoint(checkpoint).network()
    read = read_checkpoint(checkpoint)
    from model.network import build

    state = build(CFG).state_dict()
    other = replace(read, weights={**state, "body.head.bias": torch.zeros(99)})
    with pytest.raises(FileProblem, match="does not fit"):
        other.network()
    assert replace(read, weights=dict(state)).network() is not None


@pytest.fixture
def state_file(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    state = {"format": FORMAT, "network": weights(), "position": {"epoch": 3}, "generator": torch.get_rng_state()}
    torch.save(state, path)
    return path


def test_training_state(state_file: Path) -> None:
    state = read_state(state_file)
    assert state["position"] == {"epoch": 3} and torch.equal(state["network"]["a.bias"], weights()["a.bias"])


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_damaged_training_states(state_file: Path, tmp_path: Path) -> None:
    refused(tmp_path / "absent.pt", "does not exist", state=True)
    data = state_file.read_bytes()
    for cut in (0, 1, 10, len(data) // 3, len(data) // 2, len(data) * 9 // 10, len(data) - 1):
        state_file.write_bytes(data[:cut])
        assert "best.safetensors" not in refused(state_file, "last.pt", state=True)
    whole, places = read_state(_write(state_file, data)), range(0, len(data), 31)
    refusals = 0
    for place in places:  # torch.load alone reads most of these without complaint
        flipped = bytearray(data)
        flipped[place] ^= 255
        try:
            state = read_state(_write(state_file, bytes(flipped)))
        except FileProblem:
            refusals += 1
            continue
        assert state["position"] == whole["position"] and torch.equal(state["generator"], whole["generator"])
        assert all(torch.equal(state["network"][name], tensor) for name, tensor in whole["network"].items())
    assert refusals > 0.7 * len(places)
    state_file.write_text("no state")
    refused(state_file, state=True)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors' own writer reports a full disk as an error of its own kind, which nobody would catch."""

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FileProblem, match=r"disk is full.*best\.safetensors"):
        save_weights(tmp_path / "best.safetensors", {"x": torch.zeros(3)}, Config(), 0.5, 1)
    assert list(tmp_path.iterdir()) == []
