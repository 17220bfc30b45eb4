"""dataset/cache.py: the same samples as from the files, built once, safely, and again when inputs change."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from reference import SMALL_LOADER

from config import Config
from dataset import cache as module
from dataset.batches import Batch, sample_side
from dataset.cache import Cached, open_source
from dataset.dataset import build
from dataset.images import image_shape, read_image
from dataset.readers import Record, read_competition
from dataset.selection import select
from dataset.sources import Files, Source
from dataset.switches import switches_of
from engine import settings
from engine.files import FileProblem


@pytest.fixture
def root(phantom_root: Path, tmp_path: Path) -> Path:
    root = tmp_path / "set"
    shutil.copytree(phantom_root, root, ignore=shutil.ignore_patterns("cache"))
    return root


def settings_of(root: Path, **values: Any) -> Config:
    base = {**SMALL_LOADER, "data_root": str(root), "dataset_file": "dataset.dataset_sliding"}
    return settings.replace(Config(), {**base, **values})


def records_of(cfg: Config) -> list[Record]:
    return select(cfg, switches_of(cfg))[0]


def source_of(cfg: Config) -> Source:
    switches = switches_of(cfg)
    return open_source(records_of(cfg), cfg, switches, sample_side(cfg, switches))


def batches_of(cfg: Config) -> list[Batch]:
    loader = build(records_of(cfg), cfg, switches_of(cfg))
    try:
        return list(loader.epoch(1))
    finally:
        loader.close()


def pixel_files(root: Path) -> list[Path]:
    return sorted((root / "cache").glob("*.u8"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.parametrize("name", ["dataset_sliding", "dataset_clahe", "dataset_crop_flip_sliding"])
def test_the_samples_are_those_of_the_files(name: str, kind: str, workers: int, root: Path) -> None:
    values = {"dataset_file": f"dataset.{name}", "image_size": 60, "window_size": 40, "augment": "hand"}
    plain = batches_of(settings_of(root, **values))
    for _ in range(2):  # built, then found
        cached = batches_of(settings_of(root, cache=kind, workers=workers, **values))
        assert len(plain) == len(cached)
        for a, b in zip(plain, cached, strict=True):
            assert a.keys == b.keys and torch.equal(a.images, b.images) and torch.equal(a.bits, b.bits)


def test_none_reads_files(root: Path) -> None:
    assert isinstance(source_of(settings_of(root)), Files)
    assert not (root / "cache").exists()


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_images_are_not_decoded_again(kind: str, root: Path) -> None:
    source = source_of(settings_of(root, cache=kind))
    shutil.rmtree(root / "train" / "DCM")
    assert isinstance(source, Cached)
    for index in range(8):
        frame, image = source.load(index)
        assert image.shape == (128, 128) and image.dtype == np.uint8 and frame.view.file == (128, 128)


def test_images_are_stored_reduced(root: Path) -> None:
    cfg = settings_of(root, cache="disk", image_size=40, window_size=40)
    frame, image = source_of(cfg).load(0)
    source = read_image(records_of(cfg)[0].image)
    assert frame.reduction == 3 and image.shape == (43, 43)
    expected = np.pad(source, (0, 1), mode="edge").reshape(43, 3, 43, 3).mean((1, 3))
    assert np.abs(image - expected).max() <= 0.5
    assert sum(path.stat().st_size for path in pixel_files(root)) == 12 * 43 * 43 + 1


def test_built_once_and_shared_by_folds_and_windows(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source_of(settings_of(root, cache="disk"))
    said = capfd.readouterr().err
    assert "12 images" in said and "GB" in said, "all training images, and how much disk they need"
    stamps = [(path, path.stat().st_mtime_ns) for path in pixel_files(root)]
    assert len(stamps) == 1
    for values in ({"fold": 1}, {"window_size": 64}, {"dataset_file": "dataset.dataset"}, {"seed": 3}, {}):
        source_of(settings_of(root, cache="disk", **values))
    assert [(path, path.stat().st_mtime_ns) for path in pixel_files(root)] == stamps
    assert "images" not in capfd.readouterr().err


def test_another_size_or_preparation_is_another_file(root: Path) -> None:
    for values in (
        {},
        {"image_size": 64},
        {"dataset_file": "dataset.dataset_clahe"},
        {"dataset_file": "dataset.dataset_clahe", "clahe_clip": 3.0},
        {"dataset_file": "dataset.dataset_crop"},
    ):
        source_of(settings_of(root, cache="disk", **values))
    assert len(pixel_files(root)) == 5


@pytest.mark.parametrize("change", ["pixels", "new", "gone", "table", "cut", "deleted"])
def test_rebuilt_when_inputs_change_or_it_is_damaged(change: str, root: Path) -> None:
    cfg = settings_of(root, cache="disk")
    source_of(cfg)
    before, first = pixel_files(root)[0], records_of(cfg)[0]
    if change == "pixels":
        picture = read_image(first.image)
        picture[0, 0] ^= 255
        assert cv2.imwrite(str(first.image), picture)
    elif change == "new":
        assert first.label is not None
        shutil.copy(first.image, first.image.with_name("another.png"))
        shutil.copy(first.label, first.label.with_name("another.json"))
    elif change == "gone":
        assert first.label is not None
        first.image.unlink()
        first.label.unlink()
    elif change == "table":
        before.with_name(next(before.parent.glob("*.json")).name).write_text("{")
    elif change == "cut":
        before.write_bytes(before.read_bytes()[:100])
    else:
        before.unlink()
    source = source_of(cfg)
    after = pixel_files(root)
    assert len(after) == 1 and (after[0] == before) == (change in ("table", "cut", "deleted"))
    for index, record in enumerate(records_of(cfg)):
        np.testing.assert_array_equal(source.load(index)[1], read_image(record.image))


def test_a_run_keeps_the_file_that_it_has_mapped(root: Path) -> None:
    cfg = settings_of(root, cache="disk")
    old = source_of(cfg)
    before = old.load(0)[1].copy()
    first = records_of(cfg)[0].image
    assert cv2.imwrite(str(first), 255 - before)
    source_of(cfg)
    np.testing.assert_array_equal(old.load(0)[1], before)


def test_two_runs_that_build_at_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first, and finds its file."""
    cfg, builds, real = settings_of(root, cache="disk"), [], module._build

    def counted(*args: Any) -> Any:
        builds.append(1)
        return real(*args)

    monkeypatch.setattr(module, "_build", counted)
    threads = [threading.Thread(target=source_of, args=(cfg,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1 and len(pixel_files(root)) == 1


def test_what_a_killed_build_left_is_removed(root: Path) -> None:
    cfg = settings_of(root, cache="disk")
    source_of(cfg)
    path = pixel_files(root)[0]
    part = path.with_name(f".{path.name}.abc.part")
    part.write_bytes(b"half")
    path.unlink()
    source_of(cfg)
    assert not part.exists() and path.exists()


def test_too_little_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=12 * 128 * 128 - 1))
    with pytest.raises(FileProblem, match=r"needs 0\.00 GB in .*cache, free are 0\.00 GB: .*--cache_dir"):
        source_of(settings_of(root, cache="disk"))
    assert not pixel_files(root)
    with pytest.raises(FileProblem, match=r"of shared memory, free are .*--shm-size.*--cache disk"):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=8 * 128 * 128 - 1))
        source_of(settings_of(root, cache="ram"))


def test_cache_dir(root: Path, tmp_path: Path) -> None:
    source_of(settings_of(root, cache="disk", cache_dir=str(tmp_path / "elsewhere")))
    assert list((tmp_path / "elsewhere").glob("*.u8")) and not (root / "cache").exists()


def test_a_folder_that_cannot_hold_it(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileProblem, match=r"can't hold the cache .*--cache_dir, or --cache none"):
        source_of(settings_of(root, cache="disk", cache_dir=str(tmp_path / "file" / "below")))


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_bad_image_is_named_when_it_is_wanted(kind: str, root: Path) -> None:
    cfg = settings_of(root, cache=kind, bad_image="skip")
    bad = records_of(cfg)[2].image
    bad.write_bytes(bad.read_bytes()[:100])
    source = source_of(cfg)
    with pytest.raises(FileProblem, match="truncated PNG") as problem:
        source.load(2)
    assert str(bad) in str(problem.value)
    source.load(3)


def test_a_worker_that_was_not_forked_maps_the_file_itself(root: Path) -> None:
    source = source_of(settings_of(root, cache="disk"))
    expected = source.load(1)[1]
    data = pickle.dumps(source)
    assert len(data) < 20_000, "not the pixels"
    np.testing.assert_array_equal(pickle.loads(data).load(1)[1], expected)


def test_shared_memory_is_gone_with_its_owner(root: Path) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir():
        pytest.skip("/dev/shm is of Linux")
    before = set(os.listdir(shared))
    process = multiprocessing.get_context("spawn").Process(target=_hold_and_die, args=(root,))
    process.start()
    process.join()
    assert process.exitcode == -9
    assert set(os.listdir(shared)) <= before


def _hold_and_die(root: Path) -> None:
    source_of(settings_of(root, cache="ram")).load(0)
    os.kill(os.getpid(), 9)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("shape", [(37, 53), (300, 20)])
def test_image_shape(suffix: str, shape: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    rng = np.random.default_rng(0)
    for channels in ((), (3,)):
        assert cv2.imwrite(str(path), rng.integers(0, 256, (*shape, *channels)).astype(np.uint8))
        assert image_shape(path) == shape == read_image(path).shape
    progressive = tmp_path / "p.jpg"
    assert cv2.imwrite(str(progressive), np.zeros(shape, np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    assert image_shape(progressive) == shape


def test_image_shape_of_a_turned_jpeg(tmp_path: Path) -> None:
    """A camera's note turns the picture when it is decoded; its first bytes don't know."""
    path = tmp_path / "x.jpg"
    assert cv2.imwrite(str(path), np.zeros((40, 60), np.uint8))
    data = path.read_bytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    assert read_image(path).shape == image_shape(path) == (60, 40)


def test_image_shape_of_no_image(tmp_path: Path) -> None:
    for content in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"text"):
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(FileProblem, match=r"x\.png"):
            image_shape(tmp_path / "x.png")
    with pytest.raises(FileProblem, match=r"y\.png"):
        image_shape(tmp_path / "y.png")


def test_the_table_is_json_for_people_too(root: Path) -> None:
    source_of(settings_of(root, cache="disk", dataset_file="dataset.dataset_crop"))
    table = json.loads(next((root / "cache").glob("*.json")).read_text())
    assert len(table["entries"]) == len(read_competition(root, "train")) == 12
    assert {"offset", "height", "width", "view", "problem"} == set(table["entries"][0])
