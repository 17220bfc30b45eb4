"""Weights with their settings in one safetensors file: inference rebuilds the network from it alone.

The header holds the settings, the class names, the score and a SHA-256 of these and the weights (one flipped byte
otherwise loads silently). Files may be moved and renamed.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from config import Config, ConfigProblem
from engine import settings
from engine.files import FileProblem, atomic_path
from engine.run_state import FORMAT as FORMAT
from model.network import Network, build


@dataclass(frozen=True)
class Trained(ABC):
    """A trained network in a file: a checkpoint, or an export of one."""

    path: Path
    cfg: Config
    score: float
    """Validation Dice when it was written."""
    epoch: int
    sha256: str
    """Of the file's content: what was fitted for these weights names it."""

    @abstractmethod
    def network(self) -> nn.Module:
        """(N, 1, H, W) float32 grey values in [0, 1] -> logits (N, K, H, W) float32; in evaluation mode, on the CPU."""


@dataclass(frozen=True)
class Checkpoint(Trained):
    """What a file of weights holds."""

    weights: dict[str, Tensor]

    def network(self) -> Network:
        """The trained network in evaluation mode, on the CPU.

        Raises:
            FileProblem: the weights don't fit the network that the settings name.
        """
        # The weights are all there; fetching pretrained ones first would need the network for nothing.
        net = build(settings.replace(self.cfg, {"pretrained": False}))
        try:
            net.load_state_dict(_with_other_names(self.weights, net.state_dict()))
        except RuntimeError as error:
            first = str(error).splitlines()[1 if "\n" in str(error) else 0].strip()
            raise FileProblem(
                f"{self.path} does not fit {self.cfg.model.model_file} ({first[:200]}): it was written by another "
                f"version; use the code of its commit or train again."
            ) from None
        return net.eval()


def save_weights(path: Path, weights: Mapping[str, Tensor], cfg: Config, score: float, epoch: int) -> None:
    """Write a checkpoint atomically."""
    first_names = _first_names(weights)
    plain = {n: tensor.detach().to("cpu").contiguous() for n, tensor in weights.items() if first_names[n] == n}
    header = header_of(cfg, score, epoch)
    header["sha256"] = _digest(plain, header)
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(plain, metadata=header))  # save_file hides a full disk in an error of its own


def header_of(cfg: Config, score: float, epoch: int) -> dict[str, str]:
    """What a file says about its network."""
    record = json.dumps(settings.to_record(cfg))
    return {"format": FORMAT, "config": record, "score": repr(score), "epoch": str(epoch)}


def read_header(header: Mapping[str, str], path: Path) -> tuple[Config, float, int]:
    """Settings, score and epoch from what `header_of` wrote.

    Raises:
        FileProblem: settings of another version of this code.
    """
    try:
        cfg, _ = settings.from_record(json.loads(header["config"]), str(path))
    except ConfigProblem as error:
        raise FileProblem(f"{error} The file is of another version of this code.") from None
    return cfg, float(header["score"]), int(header["epoch"])


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        FileProblem: missing, truncated, damaged, a pickle, or not of this framework; names the file and the remedy.
    """
    if not path.is_file():
        raise FileProblem(f"{path} does not exist: train the experiment first, or give --checkpoint FILE.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise FileProblem(_why_unreadable(path, error)) from None
    if header.get("format") != FORMAT:
        raise FileProblem(
            f"{path} holds weights without the settings of their network: give a best.safetensors written here."
        )
    sha256 = header.pop("sha256", "")
    if sha256 != _digest(weights, header):
        raise FileProblem(f"{path} is damaged (its content doesn't match its SHA-256): copy it again.")
    return Checkpoint(path, *read_header(header, path), sha256, weights)


def check_classes(checkpoint: Trained, classes: tuple[str, ...]) -> None:
    """Raise FileProblem where the checkpoint was trained on another class list."""
    trained = checkpoint.cfg.data.classes
    if trained != classes:
        differ = next((i for i, (a, b) in enumerate(zip(trained, classes, strict=False)) if a != b), None)
        where = (
            f"{len(trained)} classes, not {len(classes)}"
            if differ is None
            else f"class {differ} is {trained[differ]!r}, not {classes[differ]!r}"
        )
        raise FileProblem(
            f"{checkpoint.path} was trained on another class list ({where}): leave out --classes, or take a checkpoint "
            f"of these classes."
        )


def _why_unreadable(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        head = file.read(4)
    if not head:
        return f"{path} is empty: copy it again or train again."
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return (
            f"{path} is a pickle (.pt), which can hold code and is not loaded: give the best.safetensors of an "
            f"experiment."
        )
    return f"{path} is truncated or no safetensors file ({str(error).splitlines()[0][:120]}): copy it again."


def _first_names(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> the first name of the same tensor; nnU-Net's modules hold most of theirs under two to four."""
    first: dict[tuple[int, torch.Size], str] = {}
    return {name: first.setdefault((tensor.data_ptr(), tensor.shape), name) for name, tensor in weights.items()}


def _with_other_names(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights`, which hold a shared tensor once, under all names that it has in `state`."""
    shared = {name: weights[first] for name, first in _first_names(state).items() if first in weights}
    return shared | dict(weights)


def _digest(weights: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].dtype} {tuple(weights[name].shape)}".encode())
        digest.update(weights[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
