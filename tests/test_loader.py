"""dataset/dataset.py: the same samples whatever the workers, the batch size or the step a run resumes from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import config
from config import Config, ConfigProblem
from dataset.dataset import VARIANTS, Batch, Loader, Order, Samples, build, read_label, split
from dataset.images import read_image
from dataset.readers import read_competition
from engine.files import FileProblem

BASE: dict[str, Any] = {
    "image_size": 96,
    "window_size": 48,
    "stride": 32,
    "windows_per_image": 3,
    "batch_size": 4,
    "workers": 0,
    "device": "cpu",
    "n_folds": 3,
}


def settings_of(root: Path, **values: Any) -> Config:
    return config.replace(Config(), {**BASE, "data_root": str(root), **values})


def loader_of(root: Path, variant: str = "sliding", **values: Any) -> Loader:
    cfg = settings_of(root, **values)
    return build(split(cfg, variant)[0], cfg, variant)


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images) and torch.equal(x.bits, y.bits) and x.keys == y.keys
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_batches(variant: str, phantom_root: Path) -> None:
    loader = loader_of(phantom_root, variant)
    batches = list(loader.epoch(0))
    side, samples = (48, 8 * 3) if "sliding" in variant else (96, 8)
    assert len(loader) == len(batches) == samples // 4
    for batch in batches:
        assert batch.images.shape == (4, 1, side, side) and batch.images.dtype == torch.uint8
        assert batch.bits.shape == (4, 1, side, side) and batch.bits.dtype == torch.int32
        assert len(batch.keys) == 4
    keys = [key for batch in batches for key in batch.keys]
    assert len(set(keys)) == 8 and all(keys.count(key) == samples // 8 for key in set(keys))
    assert any(batch.bits.any() for batch in batches)


def test_worker_processes_change_nothing(phantom_root: Path) -> None:
    """Nor does an epoch that was left in the middle."""
    alone, helped = loader_of(phantom_root), loader_of(phantom_root, workers=2)
    abandoned = helped.epoch(0)
    next(abandoned)
    abandoned.close()
    for epoch, first in ((0, 0), (5, 2)):
        assert equal(list(alone.epoch(epoch, first)), list(helped.epoch(epoch, first)))


def test_batch_size_changes_nothing(phantom_root: Path) -> None:
    def samples(batch_size: int) -> list[tuple[bytes, bytes, str]]:
        batches = loader_of(phantom_root, batch_size=batch_size).epoch(3)
        return [
            (image.numpy().tobytes(), bits.numpy().tobytes(), key)
            for batch in batches
            for image, bits, key in zip(batch.images, batch.bits, batch.keys, strict=True)
        ]

    whole = samples(1)
    for batch_size in (2, 5, 24):
        part = samples(batch_size)
        assert part == whole[: len(part)] and len(part) == 24 // batch_size * batch_size


@pytest.mark.parametrize("variant", ["", "sliding"])
def test_resuming_in_mid_epoch(variant: str, phantom_root: Path) -> None:
    whole = list(loader_of(phantom_root, variant, batch_size=2).epoch(1))
    for step in range(len(whole) + 1):
        assert equal(list(loader_of(phantom_root, variant, batch_size=2).epoch(1, first_step=step)), whole[step:])


def test_seed_and_epoch_matter(phantom_root: Path) -> None:
    first = list(loader_of(phantom_root).epoch(0))
    assert equal(first, list(loader_of(phantom_root).epoch(0)))
    assert not equal(first, list(loader_of(phantom_root).epoch(1)))
    assert not equal(first, list(loader_of(phantom_root, seed=7).epoch(0)))


def test_other_records_change_no_sample(phantom_root: Path) -> None:
    """Keyed by name: leaving one image out must not change the augmentation of the others."""
    cfg = settings_of(phantom_root)
    records = split(cfg, "")[0]
    all_of_them, fewer = Samples(records, cfg, 32), Samples(records[1:], cfg, 32)
    a, b = all_of_them[(2, 3, 1)], fewer[(2, 2, 1)]
    assert not isinstance(a, FileProblem) and not isinstance(b, FileProblem)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2]


def test_an_epoch_draws_nothing_from_torchs_generator(phantom_root: Path) -> None:
    """Else dropout of a run resumed in mid-epoch would differ from one that never stopped."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(loader_of(phantom_root, workers=workers).epoch(0, first_step=5))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("records", "windows", "batch_size"), [(7, 1, 2), (5, 3, 4), (4, 2, 8), (3, 1, 1)])
def test_order_is_a_permutation_without_its_remainder(records: int, windows: int, batch_size: int) -> None:
    order = Order(records, windows, batch_size, seed=3)
    order.epoch = 2
    batches = list(order)
    assert len(batches) == len(order) == records * windows // batch_size
    assert all(len(batch) == batch_size for batch in batches)
    keys = [key for batch in batches for key in batch]
    assert len(set(keys)) == len(keys), "nothing twice"
    assert set(keys) <= {(2, i, w) for i in range(records) for w in range(windows)}
    assert list(order) == batches
    order.epoch = 3
    if records * windows > 4:
        assert [key[1:] for batch in order for key in batch] != [key[1:] for key in keys]


def test_every_sample_gets_its_turn_over_the_epochs() -> None:
    order, seen = Order(5, 1, 4, seed=0), set()
    for epoch in range(20):
        order.epoch = epoch
        seen |= {key[1] for batch in order for key in batch}
    assert seen == set(range(5))


def test_too_few_samples(phantom_root: Path) -> None:
    with pytest.raises(ConfigProblem, match=r"batch_size 9 is more than the 8 training samples .* lower --batch_size"):
        loader_of(phantom_root, "", batch_size=9)


@pytest.mark.parametrize("variant", ["", "sliding"])
def test_without_augmentation_samples_are_the_image_and_its_labels(variant: str, phantom_root: Path) -> None:
    """Whole images come back as they are, windows are cut out of them."""
    none = dict.fromkeys(("rotate", "scale", "shift", "flip", "brightness", "contrast", "gamma", "noise"), 0.0)
    cfg = settings_of(phantom_root, image_size=128, **none)
    records = split(cfg, variant)[0]
    loader = build(records, cfg, variant)
    by_key = {record.key: record for record in records}
    for batch in loader.epoch(0):
        for image, bits, key in zip(batch.images.numpy(), batch.bits.numpy(), batch.keys, strict=True):
            source = read_image(by_key[key].image)
            truth = read_label(by_key[key], cfg.data.classes, *source.shape)
            if variant == "":
                np.testing.assert_array_equal(image[0], source)
                np.testing.assert_array_equal(bits, truth)
            else:
                x, y = cv2.minMaxLoc(cv2.matchTemplate(source, image[0], cv2.TM_SQDIFF))[2]
                np.testing.assert_array_equal(image[0], source[y : y + 48, x : x + 48])
                np.testing.assert_array_equal(bits, truth[:, y : y + 48, x : x + 48])


def test_split_of_the_configured_fold(phantom_root: Path) -> None:
    cfg = settings_of(phantom_root)
    train, val = split(cfg, "sliding")
    assert len(train) == 8 and len(val) == 4
    assert not {r.subject for r in train} & {r.subject for r in val}
    one_less = settings_of(phantom_root, exclude=(train[0].key,))
    left = {r.key for part in split(one_less, "sliding_exclude") for r in part}
    assert left == {r.key for r in [*train, *val]} - {train[0].key}
    with pytest.raises(ConfigProblem, match="exclude: no training image is called"):
        split(settings_of(phantom_root, exclude=("ID999/x",)), "")


def test_two_words_of_classes(phantom_root: Path) -> None:
    names = (*(f"other-{i}" for i in range(10)), *config.HAND_BONES)
    cfg = settings_of(phantom_root, classes=names, batch_size=8)
    shifted = next(loader_of(phantom_root, "", classes=names, batch_size=8).epoch(0)).bits.numpy().view(np.uint32)
    plain = next(loader_of(phantom_root, "", batch_size=8).epoch(0)).bits.numpy().view(np.uint32)
    assert len(cfg.data.classes) == 39 and shifted.shape[1] == 2
    both = shifted[:, 0].astype(np.uint64) | (shifted[:, 1].astype(np.uint64) << np.uint64(32))
    np.testing.assert_array_equal(both >> np.uint64(10), plain[:, 0])


@pytest.fixture
def spoilt_root(phantom_root: Path, tmp_path: Path) -> Path:
    root = tmp_path / "spoilt"
    shutil.copytree(phantom_root, root)
    return root


def problem_of(loader: Loader) -> str:
    # Not with pytest.raises, which keeps the frames and with them the workers, until a collection waits 5 s for each.
    try:
        list(loader.epoch(0))
    except FileProblem as problem:
        return str(problem)
    raise AssertionError("no problem was found")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("what", ["image", "label"])
def test_a_bad_file_is_one_sentence_from_any_process(what: str, workers: int, spoilt_root: Path) -> None:
    """A DataLoader would wrap it into 'Caught FileProblem in DataLoader worker process 0' and a traceback."""
    for record in read_competition(spoilt_root, "train"):
        path = record.image if what == "image" else record.label
        assert path is not None
        path.write_bytes(path.read_bytes()[:200])
    said = problem_of(loader_of(spoilt_root, workers=workers))
    assert "\n" not in said and "DataLoader" not in said
    assert str(spoilt_root) in said
    assert ("truncated PNG" if what == "image" else "is not JSON") in said
