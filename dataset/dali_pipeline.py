"""The DALI graph: encoded files and plans in, warped windows out. Only this file imports nvidia.dali.

Its operators on the CPU were compared to OpenCV's (DALI 2.4, OpenCV 5.0): decoding and CLAHE are equal, the warp
differs by one grey level in 4 of 100 000 pixels. On a GPU nothing has been measured.
"""

# DALI's own types are half there where it is installed, and absent where it isn't.
# mypy: disable-error-code="no-untyped-call, attr-defined"

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, math, types
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from dataset.clahe import Clahe
from dataset.dali_drafts import Draft
from dataset.images import read_image
from engine.files import FileProblem

GREY = 255.0

A = TypeVar("A")
R = TypeVar("R")


def build_graph(
    batch_size: int, size: int, clahe: Clahe | None, reduces: bool, device: str, threads: int
) -> Pipeline:
    """The pipeline: inputs encoded, squares, matrix and tone of a Draft; output (N, size, size, 1) uint8 on `device`.

    Args:
        reduces: whether images may be stored smaller than their files; without it the squares are not used.
        device: "cpu", "cuda" or "cuda:1".
        threads: of DALI on the host, where it decodes PNG also for a GPU.
    """
    on_gpu = device != "cpu"
    # A deeper queue would ask for two batches before the first one comes out, which an epoch of one step doesn't have.
    # More may still be scheduled ahead.
    pipeline = Pipeline(batch_size, threads, _device_id(device), prefetch_queue_depth=1)
    with pipeline:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        image = fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu", output_type=types.GRAY)
        if clahe:
            image = fn.clahe(image, clip_limit=clahe.clip, tiles_x=clahe.tiles, tiles_y=clahe.tiles)
        if reduces:
            image = _reduce(image, fn.external_source(name="squares", dtype=types.INT32, ndim=1))
        matrix = fn.external_source(name="matrix", dtype=types.FLOAT, ndim=2)
        window = fn.warp_affine(
            image, matrix=matrix, size=(size, size), interp_type=types.INTERP_LINEAR, fill_value=0
        )
        tone = fn.external_source(name="tone", dtype=types.FLOAT, ndim=1)
        pipeline.set_outputs(_curve(window, tone.gpu() if on_gpu else tone))
    pipeline.build()
    return pipeline


def _device_id(device: str) -> int | None:
    if device == "cpu":
        return None
    index = torch.device(device).index
    return torch.cuda.current_device() if index is None else index


def _reduce(image: Any, squares: Any) -> Any:
    """Averages of squares, as dataset.frame.reduce_image."""
    # Without a fill value a warp repeats the border: up to whole squares.
    size = fn.cast(fn.stack(squares[0] * squares[1], squares[2] * squares[3]), dtype=types.FLOAT)
    whole = fn.warp_affine(image, matrix=(1, 0, 0, 0, 1, 0), size=size, interp_type=types.INTERP_NN)
    means = fn.reductions.mean(fn.reshape(whole, shape=squares, layout=""), axes=[1, 3], keep_dims=True)
    # A cast rounds.
    return fn.reshape(fn.cast(means, dtype=types.UINT8), src_dims=[0, 2, 3], layout="HWC")


def _curve(window: Any, tone: Any) -> Any:
    """dataset.plan.Tone."""
    levels = (math.pow(window / GREY, tone[0]) - 0.5) * tone[1] + 0.5 + tone[2]
    # A cast rounds, and clips to what the type can hold.
    return fn.cast(levels * GREY, dtype=types.UINT8)


class Warper:
    """Runs the graph; batches may be started before those ahead of them are taken.

    Args: see build_graph.
    """

    def __init__(
        self, batch_size: int, size: int, clahe: Clahe | None, reduces: bool, device: str, threads: int
    ) -> None:
        self.pipeline = build_graph(batch_size, size, clahe, reduces, device, threads)
        self.inputs = ("encoded", "matrix", "tone", "squares") if reduces else ("encoded", "matrix", "tone")
        self.device = device
        self.started: deque[Sequence[Draft]] = deque()

    def start(self, drafts: Sequence[Draft]) -> None:
        """Decode and warp a full batch in the background.

        Raises:
            FileProblem: see take.
        """
        self.started.append(drafts)
        self._call(self._feed, drafts)

    def take(self) -> Tensor:
        """Windows of the batch that was started first: (N, 1, size, size) uint8 on the device.

        Raises:
            FileProblem: DALI can't decode an image; names it. The Warper can't be used after it.
        """
        stream = None if self.device == "cpu" else torch.cuda.current_stream(self.device)
        images = self._call(self._copy, stream)
        self.started.popleft()
        return images.movedim(-1, 1)

    def drain(self) -> None:
        """Forget the batches that were started and not taken."""
        while self.started:
            self.take()

    def close(self) -> None:
        """End DALI's threads; the Warper can't be used after it."""
        del self.pipeline

    def _feed(self, drafts: Sequence[Draft]) -> None:
        for name in self.inputs:
            self.pipeline.feed_input(name, [np.asarray(getattr(draft, name)) for draft in drafts])
        self.pipeline.schedule_run()

    def _copy(self, stream: torch.cuda.Stream | None) -> Tensor:
        (windows,) = self.pipeline.share_outputs(stream)
        # A copy in torch's own memory: DALI's is used again as soon as it is released.
        images = from_dlpack(windows.as_tensor()).clone()
        self.pipeline.release_outputs()
        return images

    def _call(self, function: Callable[[A], R], argument: A) -> R:
        """function(argument); an error of DALI, which names no file, becomes a FileProblem that does."""
        try:
            return function(argument)
        except RuntimeError as error:
            said = " ".join(str(error).split())[:300]
        # Not above: the new error would hold DALI's, and with it the pipeline and its threads.
        raise self._problem(said)

    def _problem(self, said: str) -> FileProblem:
        """What is wrong with the images that DALI has, found by decoding them on the host."""
        paths = dict.fromkeys(draft.path for drafts in self.started for draft in drafts)
        for path in paths:
            try:
                read_image(path)
            except FileProblem as problem:
                return FileProblem(str(problem))
        return FileProblem(
            f"DALI fails on one of {', '.join(str(path) for path in paths)} ({said}): give --dataset_file "
            f"dataset.dataset, or write JPEGs with scripts/preprocess_to_jpeg.py and add _preprocessed."
        )
