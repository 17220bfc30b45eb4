"""The contract of all executors: the same samples, whatever makes them, however many workers, ranks or restarts."""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from reference import SMALL_LOADER

import config
from config import Config, ConfigProblem
from dataset.batches import Batch, Loader
from dataset.clahe import Clahe
from dataset.images import read_image
from dataset.jpeg_tree import write_tree
from dataset.labels import read_label
from dataset.order import ALONE, Shard
from dataset.readers import Record, read_competition
from dataset.selection import select
from dataset.switches import SWITCHES, read_switches, switches_of
from engine import settings
from engine.files import FileProblem
from engine.names import Name, resolve, stems

EXECUTORS = tuple(stem.removeprefix("dataset.") for stem in stems("dataset"))
REFERENCE = "dataset"


COMBINATIONS = [
    "",
    *SWITCHES,
    "sliding_clahe",
    "crop_sliding",
    "flip_crop_sliding_clahe",
    "preprocessed_clahe_sliding",
    "exclude_preprocessed_flip_crop_clahe_sliding",
]


@pytest.fixture(scope="session")
def data(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantoms with a JPEG tree beside them."""
    root = tmp_path_factory.mktemp("executors") / "set"
    shutil.copytree(phantom_root, root, ignore=shutil.ignore_patterns("cache"))
    write_tree(root, root / "jpeg", 95, None, 1, False)
    return root


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    yield
    gc.collect()
    assert not multiprocessing.active_children()


def needs(executor: str) -> None:
    if executor == "dataset_dali" and importlib.util.find_spec("nvidia.dali") is None:
        pytest.skip("nvidia-dali-cuda120 is not installed")


def settings_of(root: Path, name: str, **values: Any) -> Config:
    chosen = {"data_root": str(root), "dataset_file": f"dataset.{name}", **values}
    return settings.replace(Config(), {**SMALL_LOADER, **chosen})


def name_of(executor: str, combination: str) -> str:
    return f"{executor}_{combination}" if combination else executor


def module_of(cfg: Config) -> ModuleType:
    return resolve("dataset", cfg.data.dataset_file).load()


def load(cfg: Config, epoch: int = 0, first_step: int = 0, shard: Shard = ALONE) -> list[Batch]:
    switches = switches_of(cfg)
    loader: Loader = module_of(cfg).build(select(cfg, switches)[0], cfg, switches, "cpu", shard)
    try:
        return list(loader.epoch(epoch, first_step))
    finally:
        loader.close()


def compare(a: list[Batch], b: list[Batch], grey_levels: int = 0) -> None:
    assert [x.keys for x in a] == [y.keys for y in b]
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.bits, y.bits)
        assert (x.images.int() - y.images.int()).abs().max() <= grey_levels


@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize("executor", [e for e in EXECUTORS if e != REFERENCE])
def test_every_executor_gives_the_reference_samples(executor: str, combination: str, data: Path) -> None:
    needs(executor)
    expected = load(settings_of(data, name_of(REFERENCE, combination)), epoch=1)
    assert any(batch.bits.any() for batch in expected)
    compare(load(settings_of(data, name_of(executor, combination)), epoch=1), expected, grey_levels=2)


@pytest.mark.parametrize("augment", ["none", "medium", "heavy", "hand"])
@pytest.mark.parametrize("executor", [e for e in EXECUTORS if e != REFERENCE])
def test_every_executor_augments_alike(executor: str, augment: str, data: Path) -> None:
    """Effects act on images that may differ by 2 levels, and some enlarge differences; labels never differ."""
    needs(executor)
    mixers = dict.fromkeys(("copy_paste", "mixup", "cutmix"), (0.3, 0.5, 0.3)) if augment == "heavy" else {}
    for combination in ("", "sliding"):
        expected = load(settings_of(data, name_of(REFERENCE, combination), augment=augment, **mixers))
        got = load(settings_of(data, name_of(executor, combination), augment=augment, **mixers))
        assert [x.keys for x in got] == [y.keys for y in expected]
        for x, y in zip(got, expected, strict=True):
            if "copy_paste" not in mixers:
                assert torch.equal(x.bits, y.bits)
            assert (x.bits != y.bits).float().mean() < 1e-3
            assert (x.images.int() - y.images.int()).abs().float().mean() < 1


@pytest.mark.parametrize("mode", ["random", "grid", "balanced"])
@pytest.mark.parametrize("executor", [e for e in EXECUTORS if e != REFERENCE])
def test_every_executor_cuts_the_same_windows(executor: str, mode: str, data: Path) -> None:
    needs(executor)
    expected = load(settings_of(data, f"{REFERENCE}_sliding", window_mode=mode))
    compare(load(settings_of(data, f"{executor}_sliding", window_mode=mode)), expected, grey_levels=2)


@pytest.mark.parametrize("image_size", [32, 64, 100, 200])
@pytest.mark.parametrize("executor", [e for e in EXECUTORS if e != REFERENCE])
def test_every_executor_resizes_alike(executor: str, image_size: int, data: Path) -> None:
    """Of 128 px phantoms: reduced by whole numbers, shrunk a little, enlarged."""
    needs(executor)
    sizes = {"image_size": image_size, "window_size": 32}
    expected = load(settings_of(data, REFERENCE, **sizes))
    compare(load(settings_of(data, executor, **sizes)), expected, grey_levels=2)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_batches(executor: str, data: Path) -> None:
    needs(executor)
    for combination, side, samples in (("sliding", 48, 8 * 3), ("", 96, 8)):
        batches = load(settings_of(data, name_of(executor, combination)))
        assert len(batches) == samples // 4
        for batch in batches:
            assert batch.images.shape == (4, 1, side, side) and batch.images.dtype == torch.uint8
            assert batch.bits.shape == (4, 1, side, side) and batch.bits.dtype == torch.int32
            assert len(batch.keys) == 4 and not batch.skipped
        keys = [key for batch in batches for key in batch.keys]
        assert len(set(keys)) == 8 and all(keys.count(key) == samples // 8 for key in set(keys))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_worker_processes_and_abandoned_epochs_change_nothing(executor: str, data: Path) -> None:
    needs(executor)
    alone = settings_of(data, f"{executor}_sliding")
    cfg = settings.replace(alone, {"workers": 2})
    switches = switches_of(cfg)
    loader: Loader = module_of(cfg).build(select(cfg, switches)[0], cfg, switches)
    try:
        abandoned = loader.epoch(0)
        next(abandoned)
        del abandoned
        for epoch, first in ((0, 0), (5, 2)):
            compare(list(loader.epoch(epoch, first)), load(alone, epoch, first))
    finally:
        loader.close()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_ranks_share_an_epoch(executor: str, data: Path) -> None:
    """Two ranks see what one with twice the batch would: nothing lost, nothing doubled."""
    needs(executor)
    name = f"{executor}_sliding"
    for batch_size in (2, 5):
        whole = load(settings_of(data, name, batch_size=2 * batch_size), epoch=2)
        parts = [load(settings_of(data, name, batch_size=batch_size), 2, shard=Shard(rank, 2)) for rank in (0, 1)]
        assert len(whole) == len(parts[0]) == len(parts[1]) == 24 // (2 * batch_size)
        for together, first, second in zip(whole, *parts, strict=True):
            assert together.keys == first.keys + second.keys
            assert torch.equal(together.bits, torch.cat([first.bits, second.bits]))
            assert (together.images.int() - torch.cat([first.images, second.images]).int()).abs().max() == 0


@pytest.mark.parametrize("executor", EXECUTORS)
def test_resuming_in_mid_epoch(executor: str, data: Path) -> None:
    needs(executor)
    cfg = settings_of(data, f"{executor}_sliding", batch_size=6, augment="hand")
    whole = load(cfg, epoch=1)
    for step in (0, 1, 3, 4):
        compare(load(cfg, 1, step), whole[step:])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_seed_and_epoch_matter(executor: str, data: Path) -> None:
    needs(executor)
    cfg = settings_of(data, executor)
    first = load(cfg)
    for other in (load(cfg, epoch=1), load(settings.replace(cfg, {"seed": 7}))):
        assert [x.keys for x in other] != [x.keys for x in first]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_epoch_leaves_the_global_generators_alone(executor: str, data: Path) -> None:
    """Else dropout of a run resumed in mid-epoch would differ from one that never stopped."""
    needs(executor)
    for workers in (0, 1):
        cfg = settings_of(data, f"{executor}_sliding", workers=workers, augment="heavy")
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index] # noqa: NPY002
        load(cfg, 0, 5)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index] # noqa: NPY002
        assert random.getstate() == before[2]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_too_few_samples(executor: str, data: Path) -> None:
    needs(executor)
    with pytest.raises(ConfigProblem, match=r"batch_size 9 is more than the 8 training samples .* lower --batch_size"):
        load(settings_of(data, executor, batch_size=9))
    with pytest.raises(ConfigProblem, match=r"batch_size 5 on each of 2 ranks is more than the 8"):
        load(settings_of(data, executor, batch_size=5), shard=Shard(1, 2))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("sliding", [False, True])
def test_without_augmentation_samples_are_the_image_and_its_labels(executor: str, sliding: bool, data: Path) -> None:
    """Whole images come back as they are, windows are cut out of them."""
    needs(executor)
    name = f"{executor}_sliding" if sliding else executor
    cfg = settings_of(data, name, image_size=128, augment="none")
    by_key = {record.key: record for record in read_competition(data, "train")}
    for batch in load(cfg):
        for image, bits, key in zip(batch.images.numpy(), batch.bits.numpy(), batch.keys, strict=True):
            source = read_image(by_key[key].image)
            truth = read_label(by_key[key], cfg.data.classes, *source.shape)
            x, y = cv2.minMaxLoc(cv2.matchTemplate(source, image[0], cv2.TM_SQDIFF))[2] if sliding else (0, 0)
            side = image.shape[-1]
            np.testing.assert_array_equal(image[0], source[y : y + side, x : x + side])
            np.testing.assert_array_equal(bits, truth[:, y : y + side, x : x + side])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_two_words_of_classes(executor: str, data: Path) -> None:
    needs(executor)
    names = (*(f"other-{i}" for i in range(10)), *config.HAND_BONES)
    shifted = load(settings_of(data, executor, classes=names))[0].bits.numpy().view(np.uint32)
    plain = load(settings_of(data, executor))[0].bits.numpy().view(np.uint32)
    assert shifted.shape[1] == 2
    both = shifted[:, 0].astype(np.uint64) | (shifted[:, 1].astype(np.uint64) << np.uint64(32))
    np.testing.assert_array_equal(both >> np.uint64(10), plain[:, 0])


# --- the switches


def test_switches_come_in_any_order() -> None:
    words = list(SWITCHES)
    expected = read_switches(Name("dataset", "dataset", "_".join(words)))
    assert all(getattr(expected, word) for word in words)
    for seed in range(10):
        random.Random(seed).shuffle(words)
        assert read_switches(resolve("dataset", f"dataset.dataset_{'_'.join(words)}")) == expected
    assert read_switches(resolve("dataset", "dataset.dataset_dali_crop_sliding")).crop
    assert not any(vars(read_switches(resolve("dataset", "dataset"))).values())


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("slidin", r"'slidin' is no switch \(did you mean sliding\?\): dataset\.dataset may be followed by any of _sl"),
        ("clahe_clahe", "_clahe is there twice"),
        ("sliding_", "'' is no switch"),
    ],
)
def test_wrong_switches(variant: str, said: str) -> None:
    with pytest.raises(ConfigProblem, match=said):
        read_switches(Name("dataset", "dataset", variant))


def test_exclude_leaves_out_known_bad_labels(data: Path, tmp_path: Path) -> None:
    def keys(name: str, **values: Any) -> set[str]:
        cfg = settings_of(root, name, **values)
        return {record.key for part in select(cfg, switches_of(cfg)) for record in part}

    root = tmp_path / "set"
    shutil.copytree(data, root)
    everything = {record.key for record in read_competition(root, "train")}
    assert keys("dataset_exclude") == keys("dataset") == everything
    subject = sorted(everything)[0].split("/")[0]
    for folder, suffix in (("DCM", ".png"), ("outputs_json", ".json")):
        (root / "train" / folder / subject).rename(root / "train" / folder / "ID058")
        next((root / "train" / folder / "ID058").iterdir()).rename(
            root / "train" / folder / "ID058" / f"image1661392103627{suffix}"
        )
    now = {record.key for record in read_competition(root, "train")}
    assert keys("dataset_exclude") == now - {"ID058/image1661392103627"}
    other = sorted(now)[-1]
    assert keys("dataset_sliding", exclude=(other,)) == now - {other}
    with pytest.raises(ConfigProblem, match="exclude: no training image is called"):
        keys("dataset", exclude=("ID999/x",))


def test_flip_makes_all_hands_right_ones(data: Path) -> None:
    """The thumb's tip (the first bit) lies on one side of the little finger's (the sixteenth)."""
    sides = set()
    for name in ("dataset", "dataset_flip"):
        for batch in load(settings_of(data, name, augment="none")):
            for bits in batch.bits[:, 0].numpy():
                thumb, little = (np.nonzero(bits >> k & 1)[1].mean() for k in (0, 15))
                sides.add((name, bool(thumb < little)))
    assert sum(name == "dataset" for name, _ in sides) == 2, "both sides occur"
    assert sum(name == "dataset_flip" for name, _ in sides) == 1


def test_crop_enlarges_the_hand_and_loses_no_bone(data: Path) -> None:
    whole = load(settings_of(data, "dataset", augment="none"))
    cropped = load(settings_of(data, "dataset_crop", augment="none"))
    for a, b in zip(whole, cropped, strict=True):
        assert a.keys == b.keys
        for before, after in zip(a.bits[:, 0].numpy(), b.bits[:, 0].numpy(), strict=True):
            assert np.count_nonzero(after) > np.count_nonzero(before)
            assert set(np.flatnonzero([(after >> k & 1).any() for k in range(29)])) == set(range(29))


def test_clahe_acts_on_the_whole_image(data: Path) -> None:
    cfg = settings_of(data, "dataset_clahe", image_size=128, augment="none", clahe_clip=3.0, clahe_tiles=4)
    by_key = {record.key: record for record in read_competition(data, "train")}
    for batch in load(cfg):
        for image, key in zip(batch.images.numpy(), batch.keys, strict=True):
            source = read_image(by_key[key].image)
            np.testing.assert_array_equal(image[0], cv2.createCLAHE(3.0, (4, 4)).apply(source))


def test_preprocessed_reads_the_jpeg_tree(data: Path) -> None:
    cfg = settings_of(data, "dataset_preprocessed", image_size=128, augment="none")
    for batch in load(cfg):
        for image, key in zip(batch.images.numpy(), batch.keys, strict=True):
            found = list((data / "jpeg" / "train" / "DCM").glob(f"{key}.jpg"))
            np.testing.assert_array_equal(image[0], cv2.imread(str(found[0]), cv2.IMREAD_GRAYSCALE))


def test_clahe_that_is_baked_in_is_not_applied_again(data: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    write_tree(data, tree, 95, Clahe(2.0, 8), 1, False)
    baked = load(settings_of(data, "dataset_clahe_preprocessed", preprocessed_dir=str(tree), augment="none"))
    fresh = load(settings_of(data, "dataset_clahe", augment="none"))
    for a, b in zip(baked, fresh, strict=True):
        assert torch.equal(a.bits, b.bits)
        assert (a.images.int() - b.images.int()).abs().float().mean() < 3, "JPEG's loss"
    for name, values in (("dataset_preprocessed", {}), ("dataset_preprocessed_clahe", {"clahe_clip": 3.0})):
        with pytest.raises(ConfigProblem, match=r"the JPEG tree has .* baked in"):
            load(settings_of(data, name, preprocessed_dir=str(tree), **values))


def test_preprocessed_without_a_tree(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"preprocess_to_jpeg\.py"):
        load(settings_of(data, "dataset_preprocessed", preprocessed_dir=str(tmp_path / "none")))


# --- bad files


@pytest.fixture
def spoilt(data: Path, tmp_path: Path) -> Path:
    root = tmp_path / "spoilt"
    shutil.copytree(data, root)
    return root


def training_records(root: Path) -> list[Record]:
    cfg = settings_of(root, "dataset")
    return select(cfg, switches_of(cfg))[0]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("what", ["image", "label"])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_bad_file_is_one_sentence_from_any_process(executor: str, workers: int, what: str, spoilt: Path) -> None:
    """A DataLoader would wrap it into 'Caught FileProblem in DataLoader worker process 0' and a traceback."""
    needs(executor)
    bad = training_records(spoilt)[3]
    path = bad.image if what == "image" else bad.label
    assert path is not None
    cut(path)
    said = ""
    try:
        load(settings_of(spoilt, f"{executor}_sliding", workers=workers, batch_size=2))
    except FileProblem as problem:  # not with pytest.raises, which keeps the frames and with them the workers
        said = str(problem)
    assert "\n" not in said and "DataLoader" not in said
    assert str(path) in said
    assert ("truncated PNG" if what == "image" else "is not JSON") in said


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_skip_puts_the_next_image_in_its_place(
    executor: str, workers: int, spoilt: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    needs(executor)
    records = training_records(spoilt)
    cfg = settings_of(spoilt, f"{executor}_sliding", workers=workers, batch_size=2, bad_image="skip")
    before = load(cfg)
    cut(records[3].image)
    after = load(cfg)
    assert [len(batch.keys) for batch in after] == [2] * 12
    assert records[3].key not in [key for batch in after for key in batch.keys]
    stands_in = {records[3].key: records[4].key}
    assert [[stands_in.get(k, k) for k in b.keys] for b in before] == [b.keys for b in after]
    assert sum(len(batch.skipped) for batch in after) == 3
    said = capfd.readouterr().err
    assert said.count(str(records[3].image)) == 1 and "skipped: " in said and "truncated PNG" in said


@pytest.mark.parametrize("executor", EXECUTORS)
def test_skip_cannot_go_on_without_any_image(executor: str, spoilt: Path) -> None:
    needs(executor)
    for record in training_records(spoilt):
        cut(record.image)
    with pytest.raises(FileProblem, match="none of the 8 training images can be read"):
        load(settings_of(spoilt, executor, bad_image="skip"))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_exception_in_the_loop_leaves_nothing_behind(executor: str, data: Path) -> None:
    """No process, no shared memory: the fixture looks for processes, this for what they share."""
    needs(executor)
    shared = Path("/dev/shm")
    before = set(os.listdir(shared)) if shared.is_dir() else set()
    cfg = settings_of(data, f"{executor}_sliding", workers=2)
    switches = switches_of(cfg)
    loader: Loader = module_of(cfg).build(select(cfg, switches)[0], cfg, switches)
    try:
        for _ in loader.epoch(0):
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    finally:
        loader.close()
    gc.collect()
    assert not multiprocessing.active_children()
    assert (set(os.listdir(shared)) if shared.is_dir() else set()) <= before
