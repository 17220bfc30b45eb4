"""The DALI executor: what is its own. tests/test_executors.py holds it to the reference in all else."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("nvidia.dali", reason="nvidia-dali-cuda120 is not installed")

from config import Config, ConfigProblem
from dataset.batches import Batch, Loader
from dataset.clahe import Clahe
from dataset.dali_drafts import Draft, matrix_to_stored, squares
from dataset.dali_pipeline import Warper, build_graph
from dataset.dataset_dali import DaliLoader
from dataset.frame import View, fit_frame, reduce_image
from dataset.jpeg_tree import write_tree
from dataset.order import ALONE
from dataset.plan import Plan, Tone
from dataset.selection import select
from dataset.switches import SWITCHES, switches_of
from dataset.warp import warp_image
from engine import settings
from engine.files import FileProblem
from engine.names import resolve
from train import Trainer
from train_dali import DaliTrainer

BASE: dict[str, Any] = {
    "image_size": 64,
    "window_size": 48,
    "stride": 16,
    "windows_per_image": 2,
    "batch_size": 2,
    "workers": 0,
    "device": "cpu",
    "n_folds": 3,
}


@pytest.fixture(scope="module")
def data(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantoms with a JPEG tree that has CLAHE baked in."""
    root = tmp_path_factory.mktemp("dali") / "set"
    shutil.copytree(phantom_root, root, ignore=shutil.ignore_patterns("cache"))
    write_tree(root, root / "jpeg", 95, None, 1, False)
    write_tree(root, root / "equalised", 95, Clahe(2.0, 8), 1, False)
    return root


@pytest.fixture
def spoilt(data: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    root = tmp_path / "spoilt"
    shutil.copytree(data, root)
    return root


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    threads = n_threads()
    yield
    assert not multiprocessing.active_children()
    assert threads_end(threads + 1), "OpenCV starts one of its own"


def threads_end(most: int) -> bool:
    """Whether no more than so many are left after a while: some end a moment after what they work for."""
    end = time.monotonic() + 10
    while n_threads() > most and time.monotonic() < end:
        time.sleep(0.01)
    return n_threads() <= most


def n_threads() -> int:
    """Of all libraries; 0 where the system does not tell."""
    tasks = Path("/proc/self/task")
    return len(os.listdir(tasks)) if tasks.is_dir() else 0


def settings_of(root: Path, name: str, **values: Any) -> Config:
    return settings.replace(Config(), {**BASE, "data_root": str(root), "dataset_file": f"dataset.{name}", **values})


def open_loader(cfg: Config) -> Loader:
    switches = switches_of(cfg)
    module = resolve("dataset", cfg.data.dataset_file).load()
    loader: Loader = module.build(select(cfg, switches)[0], cfg, switches, "cpu", ALONE)
    return loader


def load(cfg: Config, epoch: int = 0, first_step: int = 0) -> list[Batch]:
    loader = open_loader(cfg)
    try:
        return list(loader.epoch(epoch, first_step))
    finally:
        loader.close()


def compare(a: list[Batch], b: list[Batch]) -> None:
    assert [x.keys for x in a] == [y.keys for y in b]
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.bits, y.bits)
        assert (x.images.int() - y.images.int()).abs().max() <= 2
        assert [*x.skipped] == [*y.skipped]


def image_of(root: Path, position: int) -> Path:
    cfg = settings_of(root, "dataset_dali")
    return select(cfg, switches_of(cfg))[0][position].image


# --- the samples


@pytest.mark.parametrize("switch", ["", *SWITCHES])
def test_every_switch_gives_the_reference_samples(switch: str, data: Path) -> None:
    ours, theirs = (load(settings_of(data, f"{name}_{switch}".rstrip("_"))) for name in ("dataset_dali", "dataset"))
    assert len(ours) == (8 if switch == "sliding" else 4)
    compare(ours, theirs)


@pytest.mark.parametrize("image_size", [40, 64, 100, 128, 200])
def test_whole_numbers_of_pixels_are_averaged_first(image_size: int, data: Path) -> None:
    """The phantoms have 128 px: reduced by 3, 2 and 1."""
    size = {"image_size": image_size, "window_size": 32, "augment": "none"}
    compare(load(settings_of(data, "dataset_dali", **size)), load(settings_of(data, "dataset", **size)))


def test_clahe_that_is_baked_in_is_not_applied_again(data: Path) -> None:
    tree = {"preprocessed_dir": str(data / "equalised")}
    names = ("dataset_dali_clahe_preprocessed", "dataset_clahe_preprocessed")
    compare(*(load(settings_of(data, name, **tree)) for name in names))


def draft(path: Path, size: int, image_size: int, plan: Plan) -> tuple[Draft, np.ndarray[Any, Any]]:
    """A draft of an image file, and the window that the reference makes of it."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    frame = fit_frame(View.whole(image.shape), image_size, size)
    tone = np.array([plan.tone.gamma, plan.tone.contrast, plan.tone.brightness], np.float32)
    encoded = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    made = Draft((0,) * 3, (0,) * 3, "", path, plan, encoded, squares(frame), matrix_to_stored(frame, plan), tone, "")
    return made, warp_image(reduce_image(image, frame.reduction), plan, frame)


def warp(drafts: list[Draft], size: int, reduces: bool = True) -> np.ndarray[Any, Any]:
    warper = Warper(len(drafts), size, None, reduces, "cpu", 1)
    warper.start(drafts)
    windows = warper.take().numpy()[:, 0]
    warper.close()
    return windows


def test_images_of_other_sizes_share_a_batch(tmp_path: Path) -> None:
    """Odd sizes, reduced by 1, 2 and 3, turned and shifted beyond the border."""
    rng = np.random.default_rng(0)
    drafts, expected = [], []
    for shape in ((50, 37), (101, 90), (67, 123)):
        path = tmp_path / f"{shape[0]}.png"
        cv2.imwrite(str(path), cv2.GaussianBlur(rng.integers(0, 256, shape).astype(np.uint8), (0, 0), 2))
        matrix = np.column_stack([np.eye(2) + rng.normal(0, 0.2, (2, 2)), rng.normal(0, 6, 2)])
        made, window = draft(path, 32, 40, Plan(matrix, 32))
        drafts.append(made)
        expected.append(window)
    assert [made.squares[1] for made in drafts] == [1, 2, 3]
    difference = np.abs(warp(drafts, 32).astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_the_curve_of_grey_values(tmp_path: Path) -> None:
    path = tmp_path / "ramp.png"
    cv2.imwrite(str(path), np.arange(256, dtype=np.uint8).reshape(16, 16))
    still = np.eye(2, 3)
    for gamma, contrast, brightness in ((1, 1, 0), (2, 1, 0), (0.5, 1.4, 0.2), (1.7, 0.6, -0.25), (0.57, 1.4, -0.3)):
        made, window = draft(path, 16, 16, Plan(still, 16, Tone(gamma, contrast, brightness)))
        difference = np.abs(warp([made], 16, reduces=False)[0].astype(int) - window)
        assert difference.max() <= 1 and (difference > 0).mean() < 0.02


# --- the graph


def chain(clahe: Clahe | None, reduces: bool, path: Path) -> list[str]:
    """Kinds of the operators that the image goes through, read from the built graph."""
    build_graph(2, 32, clahe, reduces, "cpu", 1).save_graph_to_dot_file(str(path))
    edges = [line.rstrip(";").split(" -> ") for line in path.read_text().splitlines() if " -> " in line]
    after, kinds = dict(edges), []
    node = "encoded"
    while node := after.get(node, ""):
        kinds.append(node.strip("_").rsplit("_", 1)[0])
    return kinds


def test_dali_itself_does_the_work(tmp_path: Path) -> None:
    plain = chain(None, False, tmp_path / "plain")
    assert plain[:2] == ["Image", "WarpAffine"]
    assert plain.count("ArithmeticGenericOp") == 7, "/ 255, power, - 0.5, * contrast, + 0.5, + brightness, * 255"
    assert plain[-2] == "Cast" and plain[-1].startswith("MakeContiguous")
    everything = chain(Clahe(3.0, 4), True, tmp_path / "everything")
    assert everything[:4] == ["Image", "Clahe", "WarpAffine", "Reshape"]
    assert [kind for kind in everything[4:] if kind in ("Mean", "WarpAffine")] == ["Mean", "WarpAffine"]


def test_the_graph_has_no_more_than_the_settings_need(data: Path) -> None:
    """No CLAHE where it isn't asked for or is in the JPEGs already, no averages where no image is larger."""
    for name, image_size, tree, expected in (
        ("dataset_dali", 128, "jpeg", (False, False)),
        ("dataset_dali", 64, "jpeg", (False, True)),
        ("dataset_dali_clahe", 128, "jpeg", (True, False)),
        ("dataset_dali_clahe_preprocessed", 128, "equalised", (False, False)),
    ):
        loader = open_loader(settings_of(data, name, image_size=image_size, preprocessed_dir=str(data / tree)))
        assert isinstance(loader, DaliLoader)
        next(loader.epoch(0))
        assert (loader.files.preparation.clahe is not None, loader.reduces) == expected
        assert loader.warper is not None and ("squares" in loader.warper.inputs) is loader.reduces
        loader.close()


# --- epochs


@pytest.mark.parametrize("workers", [0, 2])
def test_one_graph_serves_all_epochs_however_they_end(workers: int, data: Path) -> None:
    alone = settings_of(data, "dataset_dali_sliding")
    loader = open_loader(settings.replace(alone, {"workers": workers}))
    assert isinstance(loader, DaliLoader)
    graphs = set()
    for steps in (1, 2, 7):
        left = loader.epoch(3)
        for _ in range(steps):
            next(left)
        del left
        graphs.add(loader.warper)
    compare(list(loader.epoch(1)), expected := load(alone, 1))
    compare(list(loader.epoch(1, len(loader) - 1)), expected[-1:])  # an epoch of one step
    assert list(loader.epoch(1, len(loader))) == []
    assert graphs == {loader.warper}
    loader.close()


def test_batches_keep_their_pixels(data: Path) -> None:
    """DALI uses its memory again."""
    loader = open_loader(settings_of(data, "dataset_dali_sliding", augment="none"))
    kept, copies = [], []
    for batch in loader.epoch(0):
        kept.append(batch.images)
        copies.append(batch.images.clone())
    loader.close()
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_the_same_training_loop(data: Path, tmp_path: Path) -> None:
    model = {"model_file": "model.model_simple_unet_quarter", "base_channels": 4, "output_dir": str(tmp_path)}
    losses = []
    for name, trainer in (("dataset_dali_sliding", DaliTrainer), ("dataset_sliding", Trainer)):
        run = trainer(settings_of(data, name, **model))
        run.run_epoch()
        run.loader.close()
        losses.append(run.at.loss_sum / run.at.step)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# --- what can't work


def test_importing_the_module_does_not_import_dali() -> None:
    code = "import sys, dataset.dataset_dali, train_dali; sys.exit('nvidia.dali' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_dali(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "dataset.dali_pipeline")
    said = r"needs NVIDIA DALI.*pip install nvidia-dali-cuda120==.*--dataset_file dataset\.dataset\."
    with pytest.raises(ConfigProblem, match=said):
        open_loader(settings_of(data, "dataset_dali"))
    with pytest.raises(ConfigProblem, match=said):
        DaliTrainer(settings_of(data / "nowhere", "dataset_dali"))


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_there_is_no_cache(cache: str, data: Path) -> None:
    with pytest.raises(ConfigProblem, match=f"cache is {cache}, but DALI decodes files itself: give --cache none"):
        open_loader(settings_of(data, "dataset_dali", cache=cache))


def deep_png() -> bytes:
    return bytes(cv2.imencode(".png", np.full((128, 128), 40_000, np.uint16))[1])


def deep_tiff() -> bytes:
    return bytes(cv2.imencode(".tif", np.full((128, 128), 40_000, np.uint16))[1])


def dicom() -> bytes:
    return bytes(128) + b"DICM"


@pytest.mark.parametrize("bad_image", ["error", "skip"])
@pytest.mark.parametrize(("content", "what"), [(deep_png, "deeper"), (deep_tiff, "deeper"), (dicom, "DICOM")])
def test_files_that_dali_would_spoil(content: Any, what: str, bad_image: str, spoilt: Path) -> None:
    """Also where bad files are skipped: these are good ones."""
    path = image_of(spoilt, 5)
    path.write_bytes(content())
    with pytest.raises(FileProblem, match=rf"{path.name} is {what}.*dataset\.dataset, or .*preprocess_to_jpeg\.py"):
        load(settings_of(spoilt, "dataset_dali", bad_image=bad_image))


def damage_pixels(path: Path) -> None:
    """A PNG whose checksums are right and whose compressed pixels are not."""
    import zlib

    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT")
    length = int.from_bytes(data[at - 4 : at], "big")
    data[at + 4 + length // 3 : at + 4 + length // 2] = bytes(length // 2 - length // 3)
    data[at + 4 + length : at + 8 + length] = zlib.crc32(data[at : at + 4 + length]).to_bytes(4, "big")
    path.write_bytes(data)


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_that_only_a_decoder_notices(workers: int, spoilt: Path) -> None:
    path = image_of(spoilt, 3)
    damage_pixels(path)
    loader = open_loader(settings_of(spoilt, "dataset_dali_sliding", workers=workers))
    threads = n_threads()
    with pytest.raises(FileProblem) as caught:
        list(loader.epoch(0))
    assert str(caught.value).startswith(f"{path} is not a readable image") and "\n" not in str(caught.value)
    # The exception keeps all frames, and still everything has ended.
    assert not multiprocessing.active_children()
    assert threads_end(threads + 1)


def test_what_only_dali_cannot_decode(spoilt: Path) -> None:
    path = image_of(spoilt, 3)
    Image.fromarray(np.eye(128, dtype=bool)).save(path, "TIFF")  # one bit a pixel
    with pytest.raises(FileProblem, match=rf"DALI fails on one of .*{path.name}.*dataset\.dataset"):
        load(settings_of(spoilt, "dataset_dali"))


@pytest.mark.parametrize("augment", [{}, {"mixup": (0.3, 0.5, 0.7)}])
def test_skipped_images_are_those_of_the_reference(augment: dict[str, Any], spoilt: Path) -> None:
    """Also where the bad image is the one that a mixer takes from."""
    damage_pixels(image_of(spoilt, 3))
    other = image_of(spoilt, 4)
    other.write_bytes(other.read_bytes()[:300])
    values = {"bad_image": "skip", **augment}
    for name in ("", "_sliding"):
        ours, theirs = (load(settings_of(spoilt, f"{stem}{name}", **values)) for stem in ("dataset_dali", "dataset"))
        assert any(batch.skipped for batch in ours)
        compare(ours, theirs)
