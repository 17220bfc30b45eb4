"""The resident executor: what is its own. The contract of all executors is tests/test_executors.py."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import SMALL_LOADER

from config import HAND_BONES, Config, ConfigProblem
from dataset import dataset, dataset_resident
from dataset.batches import Batch
from dataset.dataset_resident import ResidentLoader, build, index_map
from dataset.frame import View, fit_frame
from dataset.labels import rasterise
from dataset.plan import Plan, Tone
from dataset.readers import Record, read_competition
from dataset.selection import select
from dataset.switches import switches_of
from dataset.warp import label_region, label_steps, warp_bits, warp_image
from engine import settings
from engine.files import FileProblem


def settings_of(root: Path, variant: str = "", **values: Any) -> Config:
    name = f"dataset.dataset_resident{variant}"
    return settings.replace(Config(), {**SMALL_LOADER, "data_root": str(root), "dataset_file": name, **values})


def loader_of(cfg: Config) -> ResidentLoader:
    switches = switches_of(cfg)
    return build(select(cfg, switches)[0], cfg, switches)


def batches_of(cfg: Config, epoch: int = 0, first_step: int = 0) -> list[Batch]:
    loader = loader_of(cfg)
    try:
        return list(loader.epoch(epoch, first_step))
    finally:
        loader.close()


def reference_of(cfg: Config, epoch: int = 0) -> list[Batch]:
    cfg = settings.replace(cfg, {"dataset_file": cfg.data.dataset_file.replace("_resident", "")})
    switches = switches_of(cfg)
    return list(dataset.build(select(cfg, switches)[0], cfg, switches).epoch(epoch))


def compare(cfg: Config, grey_levels: int = 1) -> None:
    expected = reference_of(cfg, epoch=1)
    got = batches_of(cfg, epoch=1)
    assert [x.keys for x in got] == [y.keys for y in expected]
    assert [x.skipped for x in got] == [y.skipped for y in expected]
    assert any(y.bits.any() for y in expected)
    for x, y in zip(got, expected, strict=True):
        assert x.images.dtype == y.images.dtype and x.bits.is_contiguous()
        assert torch.equal(x.bits, y.bits)
        assert (x.images.int() - y.images.int()).abs().max() <= grey_levels


QUIET: dict[str, Any] = {"noise": (0.0, 0.0, 0.0)}
"""Without noise the set light has no effects, and all is done on the device."""


@pytest.mark.parametrize("variant", ["", "_sliding", "_flip", "_crop", "_clahe", "_sliding_flip_crop_clahe"])
def test_the_samples_of_the_reference(variant: str, phantom_root: Path) -> None:
    # The tone's curve is applied to grey values that may differ by one.
    compare(settings_of(phantom_root, variant, augment="light", **QUIET), grey_levels=2)
    compare(settings_of(phantom_root, variant, augment="none"), grey_levels=1)


@pytest.mark.parametrize("image_size", [32, 64, 100, 200])
def test_stored_images_are_reduced(image_size: int, phantom_root: Path) -> None:
    cfg = settings_of(phantom_root, image_size=image_size, window_size=32, stride=32, augment="none")
    memory = loader_of(cfg).memory
    assert memory is not None
    factor = max(1, 128 // image_size)
    assert [memory.load(i)[1].shape for i in range(8)] == [(128 // factor, 128 // factor)] * 8
    compare(cfg)


def test_two_words_of_classes(phantom_root: Path) -> None:
    names = (*(f"other-{i}" for i in range(10)), *HAND_BONES)
    cfg = settings_of(phantom_root, "_sliding", classes=names, augment="none")
    compare(cfg)
    assert batches_of(cfg)[0].bits.shape == (4, 2, 48, 48)


def test_more_than_256_codes(phantom_root: Path, tmp_path: Path) -> None:
    """Ten half planes and stripes cut an image into hundreds of combinations; other images of the batch stay narrow."""
    root = tmp_path / "set"
    shutil.copytree(phantom_root, root, ignore=shutil.ignore_patterns("cache"))
    bad = select(cfg := settings_of(root, augment="light", **QUIET), switches_of(cfg))[0][2]
    assert bad.label is not None
    entries = []
    for k, name in enumerate(HAND_BONES[:10]):
        step = 2 ** (k % 5 + 2)
        boxes = [(start, start + step // 2 - 1) for start in range(0, 128, step)]
        for low, high in boxes:
            box = [[low, 0], [high, 0], [high, 127], [low, 127]]
            entries.append({"label": name, "points": box if k < 5 else [[y, x] for x, y in box]})
    bad.label.write_text(json.dumps({"annotations": entries}), encoding="utf-8")
    memory = loader_of(cfg).memory
    assert memory is not None and list(memory.high) == [2]
    compare(cfg, grey_levels=2)


@pytest.mark.parametrize("words", [1, 2])
def test_index_maps_give_the_words_back(words: int) -> None:
    rng = np.random.default_rng(words)
    for codes, kind in ((200, np.uint8), (2000, np.int32)):
        values = rng.integers(-(2**31), 2**31, (codes, words)).astype(np.int32)
        bits = np.ascontiguousarray(values[rng.integers(0, codes, (50, 70))].transpose(2, 0, 1))
        indices, table = index_map(bits)
        assert indices.shape == (50, 70) and indices.dtype == kind
        assert not table[0].any(), "background is there, though it does not occur"
        np.testing.assert_array_equal(table[indices].transpose(2, 0, 1), bits)


@pytest.mark.parametrize("mirrored", [False, True])
def test_any_matrix_on_noise(mirrored: bool, tmp_path: Path) -> None:
    """Borders, far outside, enlarged, images of several sizes in a batch: bits exactly, greys within one level."""
    rng = np.random.default_rng(5)
    shapes = [(70, 40), (33, 90), (64, 64)]
    views = [View(shape, 3, 2, shape[0] - 9, shape[1] - 4, mirrored) for shape in shapes]
    frames = [fit_frame(view, size, 32) for view, size in zip(views, (50, 30, 20), strict=True)]
    greys = [rng.integers(0, 256, (h // f.reduction, w // f.reduction)) for f in frames for h, w in [f.view.file]]
    images = [grey.astype(np.uint8) for grey in greys]
    assert {frame.reduction for frame in frames} == {1, 2, 3}
    labels = []
    for i, (height, width) in enumerate(shapes):
        points = [[[int(x), int(y)] for x, y in rng.integers(0, (width, height), (5, 2))] for _ in range(20)]
        entries = [{"label": HAND_BONES[k], "points": p} for k, p in enumerate(points)]
        (tmp_path / f"{i}.json").write_text(json.dumps({"annotations": entries}), encoding="utf-8")
        labels.append(Record(Path(f"{i}.png"), tmp_path / f"{i}.json", str(i)))

    class Held:
        def load(self, index: int) -> tuple[Any, Any]:
            return frames[index], images[index]

    need = sum((h + 3) * (w + 3) for h, w in shapes)
    memory = dataset_resident.Memory(labels, Held(), Config(), "cpu", (need, need))
    for factor in (0.05, 0.7, 3.0, 40.0):
        plans = []
        for frame in frames:
            matrix = factor * rng.uniform(-1, 1, (2, 3))
            centre = (frame.frame_width / 2, frame.frame_height / 2) - matrix[:, :2] @ (15.5, 15.5)
            plans.append(Plan(np.column_stack([matrix[:, :2], centre + 9 * matrix[:, 2]]), 32, Tone()))
        got_images, got_bits = memory.gather([0, 1, 2], plans)
        for i, (plan, frame) in enumerate(zip(plans, frames, strict=True)):
            expected = warp_image(images[i], plan, frame).astype(int)
            assert np.abs(got_images[i, 0].numpy().astype(int) - expected).max() <= 1
            steps = label_steps(plan, frame)
            whole = rasterise(memory.polygons[i], HAND_BONES, *shapes[i], "")
            top, bottom, left, right = region = label_region(steps, *shapes[i])
            np.testing.assert_array_equal(got_bits[i], warp_bits(whole[:, top:bottom, left:right], region, steps))


# --- effects and mixers, on the host

ELASTIC: dict[str, Any] = {"elastic": (0.01, 0.02, 0.7), "noise": (0.02, 0.02, 0.5)}
MIXERS: dict[str, Any] = {"mixup": (0.3, 0.5, 0.4), "cutmix": (0.2, 0.4, 0.4)}


@pytest.mark.parametrize("variant", ["", "_sliding"])
@pytest.mark.parametrize("effects", [ELASTIC, MIXERS, {**ELASTIC, **MIXERS}, {"noise": (0.02, 0.02, 1.0)}])
def test_effects_are_those_of_the_reference(variant: str, effects: dict[str, Any], phantom_root: Path) -> None:
    compare(settings_of(phantom_root, variant, augment="none", **effects), grey_levels=2)


def test_labels_stay_on_the_device_under_filters(phantom_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = settings_of(phantom_root, augment="none", blur=(1.0, 1.0, 1.0))
    loader, shapes = loader_of(cfg), []
    finish = loader.samples.finish

    def watch(*job: Any) -> Any:
        shapes.append(job[3].shape)
        return finish(*job)

    monkeypatch.setattr(loader.samples, "finish", watch)
    assert all(batch.bits.any() for batch in loader.epoch(0))
    assert shapes == [(0, 0, 0)] * 8


# --- epochs


def test_resuming_and_abandoned_epochs(phantom_root: Path) -> None:
    cfg = settings_of(phantom_root, "_sliding", augment="hand")
    loader = loader_of(cfg)
    whole = list(loader.epoch(2))
    abandoned = loader.epoch(0)
    next(abandoned)
    del abandoned
    for first in (0, 3, len(whole)):
        rest = list(loader.epoch(2, first))
        assert [x.keys for x in rest] == [y.keys for y in whole[first:]]
        for x, y in zip(rest, whole[first:], strict=True):
            assert torch.equal(x.images, y.images) and torch.equal(x.bits, y.bits)


def test_files_are_read_once(phantom_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(phantom_root, root, ignore=shutil.ignore_patterns("cache"))
    cfg = settings_of(root, "_sliding", window_mode="balanced", augment="heavy", **MIXERS)
    expected = batches_of(cfg)
    loader = loader_of(cfg)
    shutil.rmtree(root)
    for x, y in zip(loader.epoch(0), expected, strict=True):
        assert torch.equal(x.images, y.images) and torch.equal(x.bits, y.bits)


def test_the_disk_cache_may_be_the_source(phantom_root: Path, tmp_path: Path) -> None:
    cfg = settings_of(phantom_root, "_sliding", cache="disk", cache_dir=str(tmp_path))
    for x, y in zip(batches_of(cfg), batches_of(settings.replace(cfg, {"cache": "none"})), strict=True):
        assert torch.equal(x.images, y.images)
    assert list(tmp_path.glob("*.u8"))


# --- memory


def test_a_cache_in_memory_is_refused(phantom_root: Path) -> None:
    with pytest.raises(ConfigProblem, match=r"cache is ram, but .* would have them twice: give --cache none or"):
        loader_of(settings_of(phantom_root, cache="ram"))


def test_too_little_memory_is_refused_with_numbers(phantom_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any image is read. Eight images and labels of 131 x 131 px with their rims are 274 576 bytes."""

    def read(*_: Any) -> None:
        raise AssertionError("an image was read")

    cfg = settings_of(phantom_root, image_size=128)
    monkeypatch.setattr(dataset_resident, "gigabytes", str)
    monkeypatch.setattr(dataset_resident, "free_bytes", lambda device: 2 * 274576)
    loader_of(cfg).close()
    monkeypatch.setattr(dataset_resident, "free_bytes", lambda device: 2 * 274576 - 1)
    monkeypatch.setattr(dataset_resident, "in_order", read)
    with pytest.raises(FileProblem, match=r"needs 274576 on the cpu device .* may take 274575: half .* --cache disk"):
        loader_of(cfg)


def test_free_memory_of_the_host() -> None:
    assert dataset_resident.free_bytes("cpu") > 2**20


def test_closing_frees_the_memory(phantom_root: Path) -> None:
    loader = loader_of(settings_of(phantom_root, augment="medium"))
    assert loader.memory is not None
    held: list[Any] = [weakref.ref(tensor) for tensor in (loader.memory.greys, loader.memory.codes)]
    held.append(weakref.ref(loader.memory))
    batches = loader.epoch(0)
    next(batches)
    del batches
    loader.close()
    gc.collect()
    assert not any(ref() for ref in held)
    with pytest.raises(AssertionError, match="closed"):
        next(loader.epoch(0))


# --- bad files


@pytest.fixture
def spoilt(phantom_root: Path, tmp_path: Path) -> Path:
    root = tmp_path / "spoilt"
    shutil.copytree(phantom_root, root, ignore=shutil.ignore_patterns("cache"))
    return root


@pytest.mark.parametrize("what", ["image", "label", "outside"])
def test_bad_files_are_found_at_loading(what: str, spoilt: Path) -> None:
    cfg = settings_of(spoilt)
    record = select(cfg, switches_of(cfg))[0][3]
    path = record.image if what == "image" else record.label
    assert path is not None
    if what == "outside":
        entry = {"label": "Radius", "points": [[500, 500], [600, 500], [600, 600]]}
        path.write_text(json.dumps({"annotations": [entry]}), encoding="utf-8")
    else:
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FileProblem, match=str(path)):
        loader_of(cfg)
    skip = settings.replace(cfg, {"bad_image": "skip", "augment": "none", **MIXERS})
    compare(skip)  # also where a mixer's donor is the bad one
    assert sum(len(batch.skipped) for batch in batches_of(skip)) > 0


def test_skip_needs_one_good_image(spoilt: Path) -> None:
    for record in read_competition(spoilt, "train"):
        record.image.write_bytes(b"")
    with pytest.raises(FileProblem, match=r"none of the 8 training images can be read: .* is empty"):
        loader_of(settings_of(spoilt, bad_image="skip"))
