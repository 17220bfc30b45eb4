"""inference/pipeline.py, overlay.py and baseline.py: records -> CSV, masks, pictures, Dice."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import config
from config import Config, ConfigProblem
from dataset.clahe import Clahe
from dataset.images import read_image
from dataset.labels import read_label
from dataset.order import Shard
from dataset.readers import Record, read_competition, read_folder
from dataset.sources import Preparation
from engine import settings
from engine.files import FileProblem
from inference.baseline import mean_mask_dice
from inference.build import single
from inference.ensemble import Ensemble
from inference.job import Job
from inference.mask_files import write_png
from inference.overlay import class_colours, draw_overlay
from inference.pipeline import answers, draw_example, fill, predict, validate
from inference.post_process import apply, parse_steps
from inference.rle import decode_bits

CLASSES = ("Ulna", "Radius", "Lunate")


class Grades(nn.Module):
    """Class k holds the pixels brighter than (k + 1) / 4, so classes overlap."""

    def __init__(self, n_classes: int = 3) -> None:
        super().__init__()
        self.n_classes = n_classes

    def forward(self, x: Tensor) -> Tensor:
        limits = torch.arange(1, self.n_classes + 1).view(1, -1, 1, 1) / (self.n_classes + 1)
        return (x - limits) * 30


def settings_of(**values: Any) -> Config:
    base = {"classes": CLASSES, "image_size": 64, "window_size": 32, "stride": 16, "device": "cpu"}
    return settings.replace(Config(), {**base, **values})


def write_image(path: Path, height: int, width: int, seed: int = 0) -> Path:
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    grey = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), grey)
    return path


SIZES = {"a.png": (64, 64), "b.png": (90, 50), "sub/c.jpg": (33, 140), "sub/d.bmp": (20, 21), "e.webp": (200, 130)}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for seed, (name, size) in enumerate(SIZES.items()):
        write_image(tmp_path / "images" / name, *size, seed)
    return tmp_path / "images"


def run(cfg: Config, records: list[Record], folder: Path, network: nn.Module | None = None) -> Any:
    ensemble = single(cfg, network or Grades(len(cfg.data.classes)))
    with Job(folder, records, cfg, [], cfg.inference.blend) as job:
        results = fill(job, [(ensemble, records)], cfg, "cpu")
    assert results is not None
    return results.table


def masks_of(bits: NDArray[np.int32], n_classes: int) -> NDArray[np.bool_]:
    return np.stack([(bits[k // 32].view(np.uint32) >> np.uint32(k % 32)) & 1 for k in range(n_classes)]).astype(bool)


def csv_masks(path: Path, sizes: dict[str, tuple[int, int]]) -> dict[tuple[str, str], NDArray[np.bool_]]:
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image_name", "class", "rle"]
    return {(name, label): masks_of(decode_bits([rle], *sizes[name]), 1)[0] for name, label, rle in rows[1:]}


@pytest.mark.parametrize("style", ["inference.inference", "inference.inference_sliding"])
def test_everything_that_is_written(style: str, images: Path, tmp_path: Path) -> None:
    cfg = settings_of(save_masks="class", save_overlay=True, inference_file=style)
    records, out = read_folder(images), tmp_path / "new" / "out"
    assert run(cfg, records, out) is None, "no labels, no Dice"
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "job.json", "masks", "overlays", "submission.csv"]
    assert [p.name for p in out.parent.iterdir()] == ["out"], "no temporary folder stays"
    saved, _ = settings.from_record(json.loads((out / "config.json").read_text()), "config.json")
    assert saved == cfg
    sizes = {Path(name).name: size for name, size in SIZES.items()}
    masks = csv_masks(out / "submission.csv", sizes)
    assert list(masks) == [(record.name, label) for record in records for label in CLASSES], "the leaderboard's order"
    predictor = single(cfg, Grades())
    for prediction in predict(predictor, records, cfg, "cpu"):
        name, stem, size = prediction.record.name, prediction.record.image.stem, sizes[prediction.record.name]
        assert prediction.image.shape == size and prediction.bits.shape == (1, *size)
        for label, mask in zip(CLASSES, masks_of(prediction.bits, 3), strict=True):
            np.testing.assert_array_equal(masks[name, label], mask)
            png = cv2.imread(str(out / "masks" / stem / f"{label}.png"), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(png, mask * np.uint8(255))
        overlay = cv2.imread(str(out / "overlays" / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
        assert overlay.ndim == 3 and overlay.shape[0] * size[1] == overlay.shape[1] * size[0]
    # At the size of the frame a pixel's grey value alone decides.
    grey = read_image(images / "a.png") / 255
    for k, label in enumerate(CLASSES):
        np.testing.assert_array_equal(masks["a.png", label], grey > (k + 1) / 4)


def test_packed_masks_of_two_words(images: Path, tmp_path: Path) -> None:
    classes = tuple(f"bone {k}" for k in range(35))
    cfg = settings_of(classes=classes, save_masks="packed")
    records = read_folder(images / "b.png")
    run(cfg, records, tmp_path / "out")
    with np.load(tmp_path / "out/masks/b.npz") as file:
        bits, names = file["bits"], json.loads(str(file["classes"]))
    assert tuple(names) == classes and bits.dtype == np.int32 and bits.shape == (2, 90, 50)
    written = csv_masks(tmp_path / "out/submission.csv", {"b.png": (90, 50)})
    for label, mask in zip(classes, masks_of(bits, 35), strict=True):
        np.testing.assert_array_equal(written["b.png", label], mask)
    assert masks_of(bits, 35)[34].sum() < masks_of(bits, 35)[0].sum()


@pytest.mark.parametrize("resize_to", [0, 40, 100])
def test_resize_to_changes_the_frame_and_not_the_masks_size(resize_to: int, images: Path) -> None:
    cfg = settings_of(resize_to=resize_to)
    for prediction in predict(single(cfg, Grades()), read_folder(images), cfg, "cpu"):
        relative = prediction.record.image.relative_to(images).as_posix()
        assert prediction.bits.shape[1:] == SIZES[relative]
        truth = prediction.image / 255 > 0.5
        mask = masks_of(prediction.bits, 3)[1]
        assert (mask == truth).mean() > 0.9


@pytest.mark.parametrize("content", ["file", "folder", "results"])
def test_results_are_never_overwritten(content: str, images: Path, tmp_path: Path) -> None:
    cfg, records, out = settings_of(), read_folder(images), tmp_path / "out"
    if content == "results":
        run(cfg, records, out)
    elif content == "folder":
        out.mkdir()
        (out / "submission.csv").write_text("mine")
    else:
        out.write_text("mine")
    before = out.read_text() if out.is_file() else (out / "submission.csv").read_text()
    with pytest.raises(FileProblem, match=r"out exists and is never overwritten: .* choose another folder"):
        run(cfg, records, out)
    assert (out.read_text() if out.is_file() else (out / "submission.csv").read_text()) == before
    (tmp_path / "empty").mkdir()
    run(cfg, records, tmp_path / "empty")
    assert (tmp_path / "empty/submission.csv").is_file()


def test_an_unreadable_image_in_the_middle_costs_nothing_but_the_time_to_mend_it(images: Path, tmp_path: Path) -> None:
    broken, cfg = images / "b.png", settings_of(save_masks="class", save_overlay=True)
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-30])
    records = read_folder(images)
    assert records[0].image != broken
    with pytest.raises(FileProblem, match=r"b\.png is a truncated PNG"):
        run(cfg, records, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "out.partial"]
    broken.write_bytes(whole)
    with Job(tmp_path / "out", records, cfg, [], "logits", resume=True) as job:
        assert [record.name for record in job.todo] == [record.name for record in records[1:]]
        fill(job, [(single(cfg, Grades()), records)], cfg, "cpu")
    run(cfg, records, tmp_path / "again")
    for kind in ("*.csv", "masks/*/*.png", "overlays/*.png"):
        found, expected = (sorted((tmp_path / name).glob(kind)) for name in ("out", "again"))
        assert [p.read_bytes() for p in found] == [p.read_bytes() for p in expected] and found


def test_two_images_of_one_name(images: Path, tmp_path: Path) -> None:
    write_image(images / "sub/a.png", 30, 30)
    with pytest.raises(FileProblem, match=r"a\.png"):
        run(settings_of(), read_folder(images), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("values", [{"save_masks": "class"}, {"save_masks": "packed"}, {"save_overlay": True}])
def test_masks_of_a_png_and_a_jpg_of_one_stem(values: dict[str, Any], images: Path, tmp_path: Path) -> None:
    """Their rows in the CSV differ, but their masks would overwrite each other."""
    write_image(images / "a.jpg", 30, 30)
    with pytest.raises(FileProblem, match=r"'a\.jpg' and 'a\.png' would share files of one name"):
        run(settings_of(**values), read_folder(images), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run(settings_of(), read_folder(images), tmp_path / "out")


def brute_dice(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    both = (prediction & truth).sum((1, 2), dtype=np.float64)
    return (2 * both + 1e-4) / (prediction.sum((1, 2)) + truth.sum((1, 2)) + 1e-4)


def test_validation_is_the_score_of_the_csv(phantom_root: Path, tmp_path: Path) -> None:
    """Dice by hand on the masks that the CSV holds, mean over images, then over classes."""
    cfg = settings_of(classes=config.HAND_BONES, data_root=str(phantom_root))
    records = read_competition(phantom_root, "test")
    table = validate(single(cfg, Grades(29)), records, cfg, "cpu")
    scored = run(cfg, records, tmp_path / "out")
    assert scored.mean() == table.mean() and (tmp_path / "out/per_class.csv").is_file()
    sizes = {record.name: read_image(record.image).shape for record in records}
    masks = csv_masks(tmp_path / "out/submission.csv", sizes)  # type: ignore[arg-type]
    by_hand = []
    for record in records:
        truth = masks_of(read_label(record, config.HAND_BONES, *sizes[record.name]), 29)
        by_hand.append(brute_dice(np.stack([masks[record.name, label] for label in config.HAND_BONES]), truth))
    np.testing.assert_allclose(table.mean(), np.mean(np.mean(by_hand, 0)), rtol=1e-12)
    np.testing.assert_allclose(table.per_class()[0], np.mean(by_hand, 0), rtol=1e-12)
    assert 0 < table.mean() < 0.5
    draw_example(single(cfg, Grades(29)), records, cfg, "cpu", table, tmp_path / "example.png")
    picture = cv2.imread(str(tmp_path / "example.png"))
    assert picture.shape[1] == 2 * picture.shape[0], "truth beside prediction"


def test_some_records_without_label(phantom_root: Path, tmp_path: Path) -> None:
    cfg = settings_of(classes=config.HAND_BONES)
    labelled = read_competition(phantom_root, "test")[:2]
    mixed = [labelled[0], Record(labelled[1].image, None, labelled[1].subject)]
    assert run(cfg, mixed, tmp_path / "out") is None


def test_overlays() -> None:
    bits = np.zeros((2, 40, 60), np.int32)
    bits[0, 10:20, 10:30], bits[1, 15:30, 20:50] = -(2**31), 1
    image = np.full((40, 60), 100, np.uint8)
    before = image.copy(), bits.copy()
    picture = draw_overlay(image, bits, [f"c{k}" for k in range(33)], "title")
    assert picture.dtype == np.uint8 and picture.ndim == 3 and max(picture.shape) >= 1024
    assert picture.shape[0] * 60 == picture.shape[1] * 40
    factor = picture.shape[0] // 40
    outside, first, second = (picture[y * factor, x * factor].astype(int) for y, x in ((35, 5), (13, 13), (25, 40)))
    assert (outside == 100).all() and (first != 100).any() and (second != 100).any() and (first != second).any()
    np.testing.assert_array_equal(before[0], image)
    np.testing.assert_array_equal(before[1], bits)
    large = draw_overlay(np.zeros((1200, 30), np.uint8), np.zeros((1, 1200, 30), np.int32), ["x"])
    assert large.shape == (1200, 30, 3) and not large.any()
    assert len(set(class_colours(29))) == 29


def test_write_png_is_whole(tmp_path: Path) -> None:
    write_png(tmp_path / "sub/x.png", np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "sub/x.png")).ravel(), range(48))
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["x.png"]


def hand(folder: Path, name: str, annotations: list[dict[str, Any]]) -> Record:
    folder.mkdir(exist_ok=True)
    image, label = folder / f"{name}.png", folder / f"{name}.json"
    cv2.imwrite(str(image), np.zeros((100, 80), np.uint8))
    label.write_text(json.dumps({"annotations": annotations}))
    return Record(image, label, name)


def box(label: str, x: int, y: int, side: int) -> dict[str, Any]:
    return {"label": label, "points": [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]}


def test_mean_mask_dice(phantom_root: Path, tmp_path: Path) -> None:
    cfg = settings_of()
    same = [box("Ulna", 10, 10, 20), box("Radius", 30, 40, 30), box("Lunate", 12, 50, 12)]
    train = [hand(tmp_path, f"train{i}", same) for i in range(4)]
    assert mean_mask_dice(train, [hand(tmp_path, "test", same)], cfg) == pytest.approx(1, abs=1e-6)
    other = [box("Radius", 10, 10, 20), box("Ulna", 30, 40, 30)]
    assert mean_mask_dice(train, [hand(tmp_path, "other", other)], cfg) < 0.4
    bones = settings_of(classes=config.HAND_BONES)
    hands = read_competition(phantom_root, "train"), read_competition(phantom_root, "test")
    assert 0 < mean_mask_dice(*hands, bones) < 1


@pytest.mark.filterwarnings("error")
def test_mean_mask_dice_of_unlabelled_hands(tmp_path: Path) -> None:
    """No bone at all, or not the first one."""
    empty = hand(tmp_path, "empty", [])
    partial = [hand(tmp_path, f"partial{i}", [box("Radius", 30, 40, 30)]) for i in range(3)]
    assert mean_mask_dice([empty, *partial], [*partial[:1], empty], settings_of()) > 0.8


@pytest.mark.parametrize("switches", ["flip", "clahe", "flip_clahe", "crop", "crop_flip"])
def test_images_are_prepared_as_for_training_and_masks_come_back(switches: str, phantom_root: Path) -> None:
    """A network that sees each pixel alone finds the same masks in a mirrored hand as in the hand."""
    records = read_competition(phantom_root, "train")[:4]
    values = {"image_size": 128, "window_size": 64, "clahe_clip": 3.0, "clahe_tiles": 4}
    plain = settings_of(dataset_file="dataset.dataset_sliding", **values)
    cfg = settings_of(dataset_file=f"dataset.dataset_sliding_{switches}", **values)
    predictor, mirrored = single(cfg, Grades()), 0
    pairs = zip(predict(predictor, records, plain, "cpu"), predict(predictor, records, cfg, "cpu"), strict=True)
    for before, after in pairs:
        np.testing.assert_array_equal(after.image, before.image, "the picture that is shown stays what it was")
        view = Preparation.of(cfg).view(before.image)
        mirrored += view.mirrored
        grey = Clahe(3.0, 4).apply(before.image) if "clahe" in switches else before.image
        expected = np.stack([grey / 255 > (k + 1) / 4 for k in range(3)])
        found = masks_of(after.bits, 3)
        box = (slice(None), slice(view.top, view.top + view.height), slice(view.left, view.left + view.width))
        if "crop" not in switches:
            np.testing.assert_array_equal(found, expected)
            continue
        assert view.height < 128 or view.width < 128
        outside = np.ones_like(found)
        outside[box] = False
        assert not found[outside].any()
        assert (found[box] != expected[box]).mean() < 0.05, "enlarged and shrunk again: edges may move"
    assert ("flip" in switches) == (0 < mirrored < 4)


@pytest.mark.parametrize("shape", [(20, 50), (1, 1), (31, 400)])
def test_pictures_too_small_to_look_for_a_hand_are_used_whole(shape: tuple[int, int], tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", *shape)
    cfg = settings_of(dataset_file="dataset.dataset_sliding_crop_flip")
    (prediction,) = predict(single(cfg, Grades()), read_folder(tmp_path), cfg, "cpu")
    assert prediction.bits.shape == (1, *shape)


def test_shards_score_every_image_once(phantom_root: Path) -> None:
    records = read_competition(phantom_root, "train")[:5]
    cfg = settings_of(image_size=64, window_size=64, classes=config.HAND_BONES)
    predictor = single(cfg, Grades(29))
    whole = validate(predictor, records, cfg, "cpu")
    parts = [validate(predictor, records, cfg, "cpu", Shard(rank, 2)) for rank in (0, 1)]
    assert [len(part) for part in parts] == [3, 2]
    together = np.average([part.per_class()[0] for part in parts], axis=0, weights=[3, 2])
    np.testing.assert_allclose(together, whole.per_class()[0], rtol=1e-12)


def test_post_processing_is_part_of_every_prediction(images: Path) -> None:
    """Of validation as well, which goes the same way."""
    cfg, records = settings_of(), read_folder(images)
    plain = list(predict(single(cfg, Grades()), records, cfg, "cpu"))
    steps = parse_steps(("largest", "fill_holes"), CLASSES)
    changed = settings.replace(cfg, {"post_process": ("largest", "fill_holes", "one_bone")})
    found = list(predict(single(changed, Grades()), records, changed, "cpu"))
    differ = 0
    for before, after in zip(plain, found, strict=True):
        np.testing.assert_array_equal(after.bits, apply(before.bits, CLASSES, steps)[0])
        differ += int(not np.array_equal(before.bits, after.bits))
        empty = [name for k, name in enumerate(CLASSES) if not masks_of(after.bits, 3)[k].any()]
        assert [finding.label for finding in after.findings] == empty, "the largest component is never split"
    assert differ


def test_hysteresis_sees_the_masks_at_the_lower_threshold(images: Path) -> None:
    cfg, records = settings_of(threshold=0.9), read_folder(images)
    low = settings.replace(cfg, {"threshold": 0.2})
    grown = settings.replace(cfg, {"post_process": ("hysteresis=0.2",)})
    seeds, wide, found = (list(predict(single(c, Grades()), records, c, "cpu")) for c in (cfg, low, grown))
    steps = parse_steps(("hysteresis=0.2",), CLASSES)
    for seed, low_mask, both in zip(seeds, wide, found, strict=True):
        np.testing.assert_array_equal(both.bits, apply(seed.bits, CLASSES, steps, low_mask.bits)[0])
    assert any(not np.array_equal(a.bits, b.bits) for a, b in zip(seeds, found, strict=True))


def test_a_hysteresis_that_adds_nothing_is_refused_before_anything_is_predicted() -> None:
    cfg = settings_of(post_process=("hysteresis=0.4",), threshold=0.3, optimal_thresholds={"Lunate": 0.4})
    with pytest.raises(ConfigProblem, match=r"hysteresis=0\.4 .*highest is 0\.4"):
        single(cfg, Grades())
    single(settings.replace(cfg, {"optimal_thresholds": {"Lunate": 0.5}}), Grades())
    with pytest.raises(ConfigProblem, match="largst"):
        single(settings_of(post_process=("largst",)), Grades())


def test_stored_probabilities_are_those_behind_the_masks(phantom_root: Path) -> None:
    records = read_competition(phantom_root, "train")[:2]
    for blend in ("logits", "probs"):
        cfg = settings.replace(Config(), {**SMALL, "save_probs": True, "blend": blend})
        for prediction in predict(single(cfg, Grades(29)), records, cfg, "cpu"):
            probs, masks = prediction.probs, masks_of(prediction.bits, 29)
            assert probs is not None and probs.key == prediction.record.key
            truth = masks_of(read_label(prediction.record, config.HAND_BONES, *prediction.image.shape), 29)
            for k, (top, left, height, width) in enumerate(probs.boxes.tolist()):
                dense = np.zeros(prediction.image.shape, np.uint8)
                dense[top : top + height, left : left + width] = probs.values[k]
                assert masks[k][dense > 128].all() and not masks[k][dense < 127].any()
                assert probs.true_histograms is not None and probs.true_histograms[k].sum() == truth[k].sum()
    unlabelled = [Record(records[0].image, None, "x")]
    (prediction,) = predict(single(cfg, Grades(29)), unlabelled, cfg, "cpu")
    assert prediction.probs is not None and prediction.probs.true_histograms is None


SMALL = {"image_size": 64, "window_size": 32, "stride": 16, "device": "cpu"}


def test_memory_that_runs_out_costs_no_image(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Hungry(Grades):
        """No more than two windows, and at first no second network beside it."""

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 2 or not ensemble.in_turn:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")
            return super().forward(x)

    cfg, records = settings_of(), read_folder(images)
    plain = Ensemble([single(cfg, Grades()).members[0] for _ in range(2)], [0.5] * 3)
    hungry = single(cfg, Hungry()).members[0]
    ensemble = Ensemble([hungry, single(cfg, Grades()).members[0]], [0.5] * 3)
    found, expected = (list(predict(each, records, cfg, "cpu")) for each in (ensemble, plain))
    for ours, theirs in zip(found, expected, strict=True):
        assert np.mean(ours.bits != theirs.bits) < 0.01, "half precision adds up, where members come in turn"
    out = capsys.readouterr().out
    assert "window_batch 1" in out and "one after the other" in out
    ensemble.in_turn = False
    with pytest.raises(FileProblem, match="Memory ran out with a single window"):
        list(predict(Ensemble([hungry], [0.5] * 3), records, cfg, "cpu"))


def test_the_network_does_not_wait_for_what_is_done_with_its_masks(images: Path) -> None:
    """An answer is complete only when it is called; the next images are decoded meanwhile."""
    cfg, records = settings_of(post_process=("one_bone",)), read_folder(images)
    found = list(answers(single(cfg, Grades()), records, cfg, "cpu"))
    expected = list(predict(single(cfg, Grades()), records, cfg, "cpu"))
    for answer, prediction in zip(found, expected, strict=True):
        np.testing.assert_array_equal(answer().bits, prediction.bits)
