"""--init_from: start from the weights of another network, as far as they fit.

Files: our best.safetensors and last.pt, and state dicts of timm, segmentation_models_pytorch, torchvision, nnU-Net and
others that keep their names. Names differ by what stands before them (`conv1.weight` of timm is
`body.encoder.model.conv1.weight` here), so the pair of beginnings is taken, one off the file's names and one onto them,
under which most tensors fit by name and shape. `_` and `.` count as the same: timm names `stages.0` of a network
`stages_0` where that is an encoder.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import safe_globals

from config import Config, ConfigProblem
from engine import settings
from engine.files import FileProblem
from engine.run_state import load_pickle
from model.checkpoint import FORMAT, read_checkpoint
from model.network import Network, build

CONTAINERS = ("state_dict", "network_weights", "network", "model", "state_dict_ema")
"""Keys under which training states hold the weights, ours among them."""

LEAST = 2 / 3
"""What must come: this share of the file's tensors or of the network's parameters. A file for an encoder alone comes
nearly whole but fills little of a network with a large decoder; a file with much besides comes in part but fills the
network. Names and shapes that agree by chance stay below: 52 % of ResNet-50's tensors fit a U-Net on ResNet-34."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of names that are copied but not counted: --norm takes them away from a network that else is the same."""

NUMPY_SCALAR = np.float64(0).__reduce__()[0]
NUMPY: list[Any] = [
    # nnU-Net's checkpoints log losses as NumPy scalars; these build numbers and can't run code.
    *((NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64, np.bool_)),
]
"""What a pickle may hold besides tensors and Python's plain values; of NumPy 1 and 2."""


@dataclass(frozen=True)
class Report:
    """What came from a file."""

    path: Path
    matched: tuple[str, ...]
    """The network's tensors that were replaced whole; those with several names under one."""
    heads: dict[str, str]
    """Those of which the rows of some classes were -> the classes."""
    left_out: dict[str, str]
    """The file's tensors that found no place -> the reason."""
    missing: tuple[str, ...]
    """The network's tensors that stayed as they began."""
    share: float
    """Share of the network's parameters in `matched`, 0 to 1."""

    def text(self) -> str:
        """A few lines for people."""
        lines = [f"{self.path}: {len(self.matched)} tensors fit, {self.share:.1%} of the network's parameters"]
        groups = {
            "by class name": _first([f"{name} ({classes})" for name, classes in self.heads.items()]),
            "left out": _first([f"{name} ({reason})" for name, reason in self.left_out.items()]),
            "as they began": _first(self.missing),
        }
        return "\n".join([*lines, *(f"  {what}, {names}" for what, names in groups.items() if names)])


@dataclass(frozen=True)
class _File:
    """What a file holds."""

    path: Path
    weights: dict[str, Tensor]
    classes: tuple[str, ...] = ()
    """Where it is ours."""
    rows: dict[str, int] = field(default_factory=dict)
    """Tensors that depend on its classes -> rows for each class, 0 where they don't lie in rows."""


def init_from(network: Network, path: Path, classes: Sequence[str]) -> Report:
    """Put the weights of `path` into `network` where they fit; the rest of it stays as it began.

    Filters for three channels are summed for one, those for one are divided among three. Layers that make logits are
    copied class by class, by name, from a checkpoint of ours that has other classes.

    Args:
        network: on any device; changed in place, and not at all where an error is raised.
        path: .safetensors, or a pickle (.pt, .pth), of which tensors and plain values are read and code is never run.
        classes: names of the network's outputs.

    Raises:
        FileProblem: missing, damaged, a pickle of code, without tensors, or little of it fits.
    """
    file = _read(path, tuple(classes))
    state: dict[str, Tensor] = network.state_dict()
    # nnU-Net holds a tensor under two to four names; here each has its first.
    first = {tensor.data_ptr(): name for name, tensor in reversed(state.items())}
    values, heads, left_out = _placed(file, state, first, classes)
    matched = tuple(name for name in values if name not in heads)
    sizes = {first[p.data_ptr()]: p.numel() for p in network.parameters()}
    share = sum(sizes.get(name, 0) for name in matched) / sum(sizes.values())
    missing = tuple(name for name in reversed(first.values()) if name not in values)
    report = Report(path, matched, heads, left_out, missing, share)
    _check_enough(report)
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)
    return report


def _check_enough(report: Report) -> None:
    placed, left_out = (
        [name for name in names if not name.endswith(STATISTICS)]
        for names in ((*report.matched, *report.heads), report.left_out)
    )
    share = len(placed) / max(1, len(placed) + len(left_out))
    if max(share, report.share) < LEAST:
        raise FileProblem(
            f"{report.path} hardly fits: {share:.0%} of its tensors found a place and {report.share:.0%} of the "
            f"network's parameters came, but one of the two must be {LEAST:.0%} (no place for {_first(left_out)}): "
            f"give --init_from a file of the same architecture or encoder."
        )


def _placed(
    file: _File, state: Mapping[str, Tensor], first: Mapping[int, str], classes: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """New values by the network's names; of these the parts of heads, with their classes; what is left out, and why."""
    values, heads, left_out = dict[str, Tensor](), dict[str, str](), dict[str, str]()
    names = {_plain(name): name for name in state}
    off, onto = _beginnings(file.weights, state)
    common = [name for name in classes if name in file.classes]
    for name, tensor in file.weights.items():
        plain = _plain(name)
        target = names.get(onto + plain.removeprefix(off)) if plain.startswith(off) else None
        if target is None:
            left_out[name] = "no such tensor here"
            continue
        old, target = state[target], first[state[target].data_ptr()]
        if name not in file.rows:
            if _fits(tensor.shape, old.shape):
                values[target] = _with_channels(tensor, old)
            else:
                left_out[name] = f"{_size(tensor)}, here {_size(old)}"
        elif common and old.shape == (file.rows[name] * len(classes), *tensor.shape[1:]):
            values[target] = _by_class(tensor, old, file, classes)
            if len(common) < len(classes):
                heads[target] = f"{len(common)} of {len(classes)} classes"
        else:
            left_out[name] = "made for other classes"
    placed = {file.weights[name].data_ptr() for name in file.weights if name not in left_out}
    return values, heads, {n: why for n, why in left_out.items() if file.weights[n].data_ptr() not in placed}


def _beginnings(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[str, str]:
    """What to take off the plain names of a file and what to put in its place, so that most tensors fit."""
    here = {_plain(name): tensor.shape for name, tensor in state.items()}
    there = {_plain(name): tensor.shape for name, tensor in weights.items()}

    def fitting(pair: tuple[str, str]) -> int:
        off, onto = pair
        pairs = ((shape, here.get(onto + name[len(off) :])) for name, shape in there.items() if name.startswith(off))
        return sum(other is not None and _fits(shape, other) for shape, other in pairs)

    # Of equals the shortest. A network's part with less than a twentieth of its tensors is no encoder.
    return max(((off, onto) for off in _starts(there, 0.2) for onto in _starts(here, 0.05)), key=fitting)


def _starts(names: Collection[str], share: float) -> list[str]:
    """"", "a.", "a.b.", … where at least this share of the names begins so; short ones first."""
    counts = Counter(name[: i + 1] for name in names for i, letter in enumerate(name) if letter == ".")
    return sorted(["", *(start for start, count in counts.items() if count >= share * len(names))], key=len)


def _first(names: Sequence[str]) -> str:
    """Their number and the first ones; nothing where there are none."""
    return f"{len(names)}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}" if names else ""


def _plain(name: str) -> str:
    return name.replace("_", ".")


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one value"


def _fits(shape: torch.Size, here: torch.Size) -> bool:
    """Equal, or filters that differ in the input's channels, 1 and 3."""
    stem = len(shape) == len(here) == 4 and {shape[1], here[1]} == {1, 3} and shape[2:] == here[2:]
    return shape == here or (stem and shape[0] == here[0])


def _with_channels(tensor: Tensor, old: Tensor) -> Tensor:
    """So that three equal channels count as one: filters summed, or divided evenly."""
    if tensor.shape == old.shape:
        return tensor
    return tensor.sum(1, keepdim=True) if old.shape[1] == 1 else (tensor / 3).expand_as(old)


def _by_class(tensor: Tensor, old: Tensor, file: _File, classes: Sequence[str]) -> Tensor:
    """`old` with the rows of those classes that the file has."""
    new = old.detach().clone()
    by_class, theirs = new.unflatten(0, (len(classes), -1)), tensor.unflatten(0, (len(file.classes), -1))
    for i, name in enumerate(classes):
        if name in file.classes:
            by_class[i] = theirs[file.classes.index(name)]
    return new


def _read(path: Path, classes: tuple[str, ...]) -> _File:
    """What `path` holds; `classes` are the network's.

    Raises:
        FileProblem: see init_from.
    """
    if not path.is_file():
        raise FileProblem(f"{path} does not exist: give --init_from a file of weights.")
    with open(path, "rb") as start:
        head = start.read(9)
    # A safetensors file begins with its header's length, eight bytes that may look like those of a pickle.
    pickled = head[8:] != b"{" and (head[:2] == b"PK" or head[:1] == b"\x80")
    cfg, content = _unpickled(path) if pickled else _safetensors(path)
    while inner := next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None):
        content = inner
    weights = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise FileProblem(
            f"{path} holds no tensors by name, nor under {', '.join(CONTAINERS)}: save the network's state_dict()."
        )
    if cfg is None or cfg.data.classes == classes:
        return _File(path, weights)
    return _File(path, weights, cfg.data.classes, _rows(cfg, weights))


def _safetensors(path: Path) -> tuple[Config | None, Mapping[str, Any]]:
    """Settings, where the file is ours, and tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            ours = (file.metadata() or {}).get("format") == FORMAT
            tensors = {} if ours else {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise FileProblem(
            f"{path} is damaged, or neither safetensors nor a pickle of torch ({reason}): copy it again."
        ) from None
    if not ours:
        return None, tensors
    checkpoint = read_checkpoint(path)
    return checkpoint.cfg, checkpoint.weights


def _unpickled(path: Path) -> tuple[Config | None, Mapping[str, Any]]:
    """Settings, where the file is a training state of ours, and all that it holds."""
    try:
        with safe_globals(NUMPY):
            content = load_pickle(path)
    except pickle.UnpicklingError:
        raise FileProblem(
            f"{path} is damaged, or a pickle of code, which is never run: save the network's state_dict() instead."
        ) from None
    except Exception as error:  # a damaged pickle or zip raises any kind
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise FileProblem(f"{path} is truncated or damaged ({reason}): copy it again.") from None
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        return None, content if isinstance(content, Mapping) else {}
    try:
        return settings.from_record(content["config"], str(path))[0], content
    except ConfigProblem as error:
        raise FileProblem(f"{error} The file is of another version of this code.") from None


def _rows(cfg: Config, weights: Mapping[str, Tensor]) -> dict[str, int]:
    """The tensors that depend on the classes, and their rows for each: those that grow with one class more."""
    more = max(cfg.data.classes, key=len) + "+"  # longer than any, so another one
    grown = build(settings.replace(cfg, {"classes": (*cfg.data.classes, more), "pretrained": False})).state_dict()
    rows = {}
    for name, tensor in weights.items():
        if name in grown and grown[name].shape != tensor.shape:
            in_rows = grown[name].shape[1:] == tensor.shape[1:]
            rows[name] = len(grown[name]) - len(tensor) if in_rows else 0
    return rows
