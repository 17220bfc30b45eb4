"""ONNX files that scripts/export.py writes, as trained networks for inference; needs onnxruntime alone.

A file's metadata say what a checkpoint's header says. Its last bytes are the SHA-256 of all before them, because
damaged weights load silently: as one more entry of the metadata, which the file's encoding (Protocol Buffers) allows to
be appended.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from config import ConfigProblem
from engine.files import FileProblem
from model.checkpoint import FORMAT, Trained, read_checkpoint, read_header

SUFFIX = ".onnx"

_SEAL = b"\x72\x4a\x0a\x06sha256\x12\x40"
"""Field 14 (metadata_props) of a ModelProto, 74 bytes: key "sha256", then a value of 64 bytes."""
_SEALED = len(_SEAL) + 64


@dataclass(frozen=True)
class OnnxFile(Trained):
    """An exported network."""

    session: Any
    """onnxruntime's InferenceSession."""

    def network(self) -> OnnxNetwork:
        """See Trained."""
        return OnnxNetwork(self.session, self.path)


class OnnxNetwork(nn.Module):
    """An exported network with the call of the one that it was: (N, 1, height, width) float32 grey values in [0, 1] ->
    (N, K, height, width) float32 logits on the same device, without gradients.

    Images on a GPU are computed there where onnxruntime can (package onnxruntime-gpu), else on the CPU.
    """

    def __init__(self, session: Any, path: Path) -> None:
        super().__init__()
        self.session = session
        self.path = path
        batch, _, self.height, self.width = session.get_inputs()[0].shape
        self.any_batch = not isinstance(batch, int)
        """Else the file takes one image at a time."""
        self.on_gpu = False

    def forward(self, grey: Tensor) -> Tensor:
        """
        Raises:
            ConfigProblem: images of another size than the file was exported for.
        """
        if grey.shape[1:] != (1, self.height, self.width):
            height, width = grey.shape[2:]
            raise ConfigProblem(
                f"{self.path} takes images of {self.height} x {self.width} px, not {height} x {width}: leave "
                f"window_size, image_size, resize_to and inference_file as they were when it was exported, or export "
                f"its checkpoint again with the new ones."
            )
        if grey.is_cuda != self.on_gpu:
            self.session.set_providers(_providers(grey.is_cuda))
            self.on_gpu = grey.is_cuda
        parts = [grey] if self.any_batch else list(grey.split(1))
        logits = [self.session.run(None, {"grey": part.detach().float().cpu().numpy()})[0] for part in parts]
        return torch.from_numpy(np.concatenate(logits)).to(grey.device)


def read_trained(path: Path) -> Trained:
    """A checkpoint, or an export of one where the name ends in .onnx.

    Raises:
        FileProblem: see read_checkpoint and read_onnx.
    """
    return read_onnx(path) if path.suffix.lower() == SUFFIX else read_checkpoint(path)


def seal(path: Path) -> None:
    """Append the SHA-256 of an ONNX file to its metadata."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with open(path, "ab") as file:
        file.write(_SEAL + digest.encode())


def read_onnx(path: Path) -> OnnxFile:
    """Read and verify an exported network.

    Raises:
        FileProblem: missing, truncated, damaged, not written by scripts/export.py, or onnxruntime is not installed.
    """
    if not path.is_file():
        raise FileProblem(f"{path} does not exist: write it with scripts/export.py, or give --checkpoint FILE.")
    data = path.read_bytes()
    content, end = data[:-_SEALED], data[-_SEALED:]
    if not end.startswith(_SEAL):
        raise FileProblem(
            f"{path} is truncated, or an ONNX file that scripts/export.py did not write (the SHA-256 at its end is "
            f"missing): copy it again, or export a checkpoint."
        )
    sha256 = hashlib.sha256(content).hexdigest()
    if end[len(_SEAL) :] != sha256.encode():
        raise FileProblem(f"{path} is damaged (its content doesn't match its SHA-256): copy it again.")
    session = _session(data, path)
    header = session.get_modelmeta().custom_metadata_map
    if header.get("format") != FORMAT:
        raise FileProblem(f"{path} was exported by another version of this code: export its checkpoint again.")
    return OnnxFile(path, *read_header(header, path), sha256, session)


def _session(data: bytes, path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise FileProblem(
            f"{path} needs the package onnxruntime, which is not installed: pip install onnxruntime in the version "
            f"that requirements.txt pins, or give the checkpoint that it was exported from."
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # its own default ignores OMP_NUM_THREADS
    try:
        return onnxruntime.InferenceSession(data, options, providers=_providers(False))
    except Exception as error:  # its errors have no common class below this
        raise FileProblem(
            f"{path} cannot be run by onnxruntime {onnxruntime.__version__} ({str(error).splitlines()[0][:200]}): "
            f"install the version that requirements.txt pins."
        ) from None


def _providers(gpu: bool) -> list[str]:
    """What onnxruntime shall compute with, first choice first."""
    import onnxruntime

    wanted = ["CUDAExecutionProvider"] if gpu else []
    return [*(name for name in wanted if name in onnxruntime.get_available_providers()), "CPUExecutionProvider"]
