"""What only a GPU can show: `make test-gpu`. The same contract as tests/test_executors.py, with batches on the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from config import Config
from dataset.batches import Batch
from dataset.jpeg_tree import write_tree
from dataset.selection import select
from dataset.switches import switches_of
from engine import settings
from engine.names import resolve

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]

ON_GPU = ("dataset_dali", "dataset_resident")


def load(root: Path, name: str, device: str, epoch: int = 0, **values: Any) -> list[Batch]:
    base = {"image_size": 96, "window_size": 48, "stride": 32, "batch_size": 4, "workers": 2, "n_folds": 3}
    cfg = settings.replace(
        Config(), {**base, "data_root": str(root), "dataset_file": f"dataset.{name}", "device": device, **values}
    )
    switches = switches_of(cfg)
    loader = resolve("dataset", cfg.data.dataset_file).load().build(select(cfg, switches)[0], cfg, switches, device)
    try:
        return list(loader.epoch(epoch))
    finally:
        loader.close()


@pytest.mark.parametrize("augment", ["light", "hand"])
@pytest.mark.parametrize("switches", ["", "_sliding", "_flip_crop_sliding", "_preprocessed"])
@pytest.mark.parametrize("executor", ON_GPU)
def test_samples_made_on_the_gpu_are_those_of_the_host(
    executor: str, switches: str, augment: str, phantom_root: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "jpeg"
    if "preprocessed" in switches:
        write_tree(phantom_root, tree, 95, None, 2, False)
    values = {"augment": augment, "preprocessed_dir": str(tree)}
    expected = load(phantom_root, f"dataset{switches}", "cpu", 1, **values)
    for x, y in zip(load(phantom_root, f"{executor}{switches}", "cuda", 1, **values), expected, strict=True):
        assert x.images.is_cuda and x.bits.is_cuda and x.keys == y.keys
        assert torch.equal(x.bits.cpu(), y.bits)
        difference = (x.images.cpu().int() - y.images.int()).abs()
        # nvJPEG's inverse transform may differ from libjpeg's by a level, which effects can enlarge.
        assert difference.float().mean() < 1 and (augment == "hand" or difference.max() <= 3)


@pytest.mark.parametrize("executor", ON_GPU)
def test_clahe_on_the_gpu_is_nearly_that_of_the_host(executor: str, phantom_root: Path) -> None:
    expected = load(phantom_root, "dataset_clahe", "cpu", augment="none")
    for x, y in zip(load(phantom_root, f"{executor}_clahe", "cuda", augment="none"), expected, strict=True):
        assert torch.equal(x.bits.cpu(), y.bits)
        assert (x.images.cpu().int() - y.images.int()).abs().float().mean() < 1


@pytest.mark.parametrize("executor", ON_GPU)
def test_epochs_keep_no_memory(executor: str, phantom_root: Path) -> None:
    load(phantom_root, f"{executor}_sliding", "cuda")
    before = torch.cuda.memory_allocated()
    load(phantom_root, f"{executor}_sliding", "cuda", 1)
    assert torch.cuda.memory_allocated() <= before
