"""Write a trained network for other programs, checked against torch:

python scripts/export.py --exp_name X [--format onnx|torchscript|state_dict] [--output FILE]
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from config import Config, ConfigProblem
from engine import flags, settings
from engine.files import FileProblem, atomic_path
from inference.command import check_settings, weights_file
from inference.settings import full_names

if TYPE_CHECKING:
    from torch import Tensor, nn

    from model.checkpoint import Checkpoint
    from model.network import Network

DESCRIPTION = """Write the network of a checkpoint as an ONNX, TorchScript or safetensors file and check it against
torch. --output names the file; else it lies beside the checkpoint. Images have the size that inference gives the
network: window_size, or the whole image's with inference_file inference.inference."""

TOLERANCE = 1e-3
"""Largest difference of a logit from torch's, as a share of the largest logit (at least 1). Sums in another order
differ by about 1e-5."""
MASK_TOLERANCE = 1e-3
"""Largest share of pixels whose thresholded mask differs."""
OPSET = 20
"""ONNX operator set: torch's default."""
LARGEST = 2**31 - 2**24
"""Bytes of weights: an ONNX file in one piece is below 2 GiB, graph and metadata included."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")
"""Packages for the format onnx."""
SUFFIXES = {"onnx": ".onnx", "torchscript": ".torchscript.pt", "state_dict": ".state_dict.safetensors"}


@dataclass(frozen=True)
class Commands:
    """Flags that are no settings."""

    format: Literal["onnx", "torchscript", "state_dict"] = "onnx"
    """onnx: for onnxruntime and others, and for --checkpoint of the inference commands. torchscript: for C++, by
    torch.jit. state_dict: weights by the architecture's own names, as timm, SMP and nnU-Net load them."""


@dataclass(frozen=True)
class Job:
    """What is exported."""

    network: Network
    cfg: Config
    side: int
    """Height and width of an image, px."""
    header: dict[str, str]
    """What the file says about the network."""
    output: Path

    def images(self, count: int, *, dark: bool = False) -> Tensor:
        """Random grey values, (count, 1, side, side) float32; evenly in [0, 1], or mostly dark as radiographs are.

        Networks are traced with the ones and checked with the others, where values that tracing froze show.
        """
        import torch

        grey = torch.rand(count, 1, self.side, self.side, generator=torch.Generator().manual_seed(int(dark)))
        return grey**3 if dark else grey


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code: 0, 1 for a problem with files, 2 for a wrong command line."""
    first, _ = flags.parse(argv, Commands, DESCRIPTION)
    return flags.run_command(lambda: _command(argv, first.cfg))


def _command(argv: list[str], asked: Config) -> int:
    from model.checkpoint import Checkpoint
    from model.onnx_file import read_trained

    checkpoint = read_trained(weights_file(asked))
    if not isinstance(checkpoint, Checkpoint):
        raise FileProblem(f"{checkpoint.path} is an export already: give the checkpoint that it was exported from.")
    parsed, commands = flags.parse(argv, Commands, DESCRIPTION, base=checkpoint.cfg)
    cfg = check_settings(full_names(parsed.cfg), checkpoint.cfg)
    output = Path(cfg.inference.output or checkpoint.path.with_suffix(SUFFIXES[commands.format]))
    if commands.format == "onnx" and output.suffix.lower() != SUFFIXES["onnx"]:
        raise ConfigProblem(f"output is {output}, but inference knows ONNX files by their end: give a name in .onnx.")
    write = {"onnx": _write_onnx, "torchscript": _write_torchscript, "state_dict": _write_state_dict}[commands.format]
    with atomic_path(output, overwrite=False) as temporary:
        said = write(_job(checkpoint, cfg, output), temporary)
    print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB\n{said}")
    return 0


def _job(checkpoint: Checkpoint, cfg: Config, output: Path) -> Job:
    from torch import nn

    from inference.build import build_predictor
    from model.checkpoint import header_of

    # Features are computed again in training only, but tracers stumble over how.
    plain = dataclasses.replace(checkpoint, cfg=settings.replace(checkpoint.cfg, {"grad_checkpoint": False}))
    # Files of this one run are nothing that an inference with the exported file should repeat.
    files = {name: settings.get(checkpoint.cfg, name) for name in ("checkpoint", "input", "output")}
    header = header_of(settings.replace(cfg, files), checkpoint.score, checkpoint.epoch)
    header["classes"] = json.dumps(cfg.data.classes)
    return Job(plain.network(), cfg, build_predictor(cfg, nn.Identity()).window, header, output)


def _write_onnx(job: Job, path: Path) -> str:
    from model.onnx_file import read_onnx, seal

    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise FileProblem(
            f"format onnx needs {', '.join(missing)}, not installed here: pip install {' '.join(missing)} in the "
            f"versions that requirements.txt pins, or give --format torchscript."
        )
    size = sum(tensor.nbytes for tensor in (*job.network.parameters(), *job.network.buffers()))
    if size > LARGEST:
        raise ConfigProblem(
            f"{job.cfg.model.model_file} has {size / 2**30:.1f} GiB of weights, but an ONNX file holds less than 2: "
            f"give --format torchscript."
        )
    program = _any_batch_program(job) or _onnx_program(job, 1, None)
    program.model.metadata_props.update(job.header)
    program.save(path, external_data=False)
    seal(path)
    network = read_onnx(path).network()
    found = _check(network, job, counts=(2, 1) if network.any_batch else (1,))
    many = "any number of images" if network.any_batch else "one image"
    return (
        f"opset {OPSET}, IR version {program.model.ir_version}; {_call(job, many)}\n{found}\n"
        f"use: python inference/inference.py --checkpoint {job.output}"
    )


def _any_batch_program(job: Job) -> Any:
    """torch's ONNXProgram for any number of images; None where the network's shapes or steps depend on that number."""
    import torch

    try:
        program = _onnx_program(job, 2, ({0: torch.export.Dim("images")},))
    except ConfigProblem:
        return None
    # The last of the exporter's attempts writes down the number that it was shown, and says nothing.
    return None if isinstance(program.model.graph.inputs[0].shape[0], int) else program


def _onnx_program(job: Job, count: int, dynamic_shapes: Any) -> Any:
    """torch's ONNXProgram, shown `count` images.

    Raises:
        ConfigProblem: the exporter can't follow the network.
    """
    import torch

    try:
        with _silence():
            program = torch.onnx.export(
                job.network,
                (job.images(count),),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic_shapes,
                input_names=["grey"],
                output_names=["logits"],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0][:200]
        raise ConfigProblem(
            f"torch's ONNX exporter can't follow {job.cfg.model.model_file} ({reason}): give --format torchscript."
        ) from None
    assert program is not None, "dynamo=True returns a program"
    # The exporter's notes for debugging hold paths and source lines of this machine.
    program.model.graph.metadata_props.clear()
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    return program


@contextmanager
def _silence() -> Iterator[None]:
    """The exporter makes several attempts and prints whole programs where one fails; the last one's error says why."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _write_torchscript(job: Job, path: Path) -> str:
    import torch
    from torch.jit._trace import TracerWarning

    with warnings.catch_warnings(), torch.no_grad():
        # torch.jit is deprecated, but other programs still read its files.
        warnings.filterwarnings("ignore", r".*is deprecated", FutureWarning)
        # Decisions by an image's size become constants: meant so, the size is fixed.
        warnings.simplefilter("ignore", TracerWarning)
        traced = torch.jit.trace(job.network, job.images(1), check_trace=False)
        torch.jit.save(traced, str(path), _extra_files={"settings.json": json.dumps(job.header)})
        found = _check(torch.jit.load(str(path)), job, counts=(1,))
    return (
        f"{_call(job, 'one image')}; settings in its extra file settings.json\n{found}\n"
        f'use: logits = torch.jit.load("{job.output}")(grey)'
    )


def _write_state_dict(job: Job, path: Path) -> str:
    from safetensors.torch import load_file, save

    # Cloned: nnU-Net's modules hold tensors under several names, which safetensors refuses and nnU-Net expects.
    weights = {name: tensor.contiguous().clone() for name, tensor in job.network.body.state_dict().items()}
    # "pt" is what Hugging Face's libraries look for.
    path.write_bytes(save(weights, metadata={**job.header, "format": "pt"}))
    images = job.images(1, dark=True)
    before = _logits(job.network, images)
    for tensor in job.network.body.state_dict().values():
        tensor.zero_()
    job.network.body.load_state_dict(load_file(path))
    found = _compare(before, _logits(job.network, images), job)
    statistics = job.network.statistics
    grey = "(grey - {}) / {}".format(*statistics) if statistics else "(grey - mean) / standard deviation of each image"
    return (
        f"{len(weights)} tensors of {job.cfg.model.model_file}, settings in the header\n{found}\n"
        f'use: model.load_state_dict(safetensors.torch.load_file("{job.output}")); the model takes {grey}, grey in '
        f"[0, 1], heights and widths in multiples of {job.network.stride} px"
    )


def _call(job: Job, many: str) -> str:
    return (
        f"takes {many} of 1 x {job.side} x {job.side}, float32 grey values in [0, 1]; gives "
        f"{len(job.cfg.data.classes)} x {job.side} x {job.side} logits each"
    )


def _check(exported: nn.Module, job: Job, counts: tuple[int, ...]) -> str:
    """`_compare` over batches of `counts` images."""
    import torch

    batches = [job.images(count, dark=True) for count in counts]
    ours = torch.cat([_logits(job.network, images) for images in batches])
    return _compare(ours, torch.cat([_logits(exported, images) for images in batches]), job)


def _compare(ours: Tensor, theirs: Tensor, job: Job) -> str:
    """A sentence about how far the exported network's logits and masks are from torch's.

    Raises:
        FileProblem: farther than the tolerances.
    """
    from inference.masks import logit

    limit = logit(job.cfg.inference.threshold)
    difference, largest = float((ours - theirs).abs().max()), float(ours.abs().max())
    masks = float(((ours > limit) != (theirs > limit)).float().mean())
    found = (
        f"checked against torch on random grey values: logits up to {largest:.3g} differ by at most {difference:.2g}, "
        f"masks in {masks:.4%} of their pixels"
    )
    # Not a > b: a difference that is no number must not pass.
    if not (difference <= TOLERANCE * max(largest, 1.0) and masks <= MASK_TOLERANCE):
        raise FileProblem(
            f"{job.output} was not written: {found}; allowed are {TOLERANCE * max(largest, 1.0):.2g} and "
            f"{MASK_TOLERANCE:.1%}. Coarsest maps of a pixel or two, where instance normalisation magnifies rounding, "
            f"are the usual reason: give a larger size, or another --format."
        )
    return found


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    from inference.forward import run_network

    return run_network(network, images, half=())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
