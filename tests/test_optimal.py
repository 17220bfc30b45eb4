from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from test_fit_weights import Store, bones, brute, example, sources

from config import ConfigProblem
from engine.files import FileProblem
from inference.combined import Source, common_keys
from inference.cross_fit import CrossFit
from inference.fit_report import Report
from inference.fit_weights import collect, fit_classes
from inference.fitted import Evidence, read_fitted, write_fitted
from inference.optimal import METHODS, METRICS, Options, optimise
from inference.probs import ProbsFolder, ProbsWriter

GOOD_AND_BAD = [(1.5, 0.2), (0.2, 1.5), (1.5, 1.5)]
"""Noise of three members at two bones."""


def named(report: Report) -> dict[str, Evidence]:
    return {found.name: found for found in report.fitted.evidence}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("method", METHODS)
def test_weights_of_a_known_best_member_clear_their_noise(method: str, metric: str) -> None:
    noises: Sequence[float | tuple[float, float]] = GOOD_AND_BAD if method != "global" else [0.2, 1.5, 1.5]
    report = optimise(bones(0, noises, images=24), Options(method, metric))
    found = named(report)["together"]
    assert found.used and found.clears and 0 < found.low < found.gain < found.high
    assert found.gain == pytest.approx(found.dice - found.simple_dice)
    weights = np.array(report.fitted.weights)
    best = [1, 0] if method != "global" else [0, 0]
    assert weights.argmax(0).tolist() == best and weights.max(0).min() > 0.6
    assert "clears its noise" in report.text()


def test_members_that_can_be_exchanged_are_noise() -> None:
    cleared = []
    for seed in range(12):
        options = Options("class", METRICS[seed % 2], seed=seed)
        report = optimise(bones(seed, [0.8, 0.8, 0.8], images=24), options)
        found = named(report)
        cleared += [found[name].clears for name in ("members", "weights")]
        if not any(found[name].used for name in ("members", "weights")):
            assert report.fitted.weights is None
    assert sum(cleared) <= 1  # of 24 at 2.5 %


def test_what_is_noise_is_left_off_unless_forced() -> None:
    stores = bones(3, [0.8, 0.8, 0.8], images=24)
    plain = optimise(stores, Options("best"))
    assert plain.fitted.weights is None and plain.fitted.thresholds is None and plain.fitted.post_process == ()
    assert [found.used for found in plain.fitted.evidence] == [False] * 5
    assert plain.levels == (128, 128)
    assert plain.text().count("noise: left off") == 4 and "nothing is used" in plain.text()
    forced = optimise(stores, Options("best", post_process=(("largest",),), force=("weights", "post_process")))
    found = named(forced)
    assert forced.fitted.weights is not None and forced.fitted.post_process == ("largest",)
    assert found["weights"].used and found["weights"].forced and not found["weights"].clears
    assert "noise: forced" in forced.text() and not found["threshold"].used
    assert found["together"].dice < found["together"].simple_dice  # the price of forcing


def test_the_cross_fitted_dice_is_that_of_fits_without_the_scored_subjects() -> None:
    stores = bones(4, GOOD_AND_BAD, images=12)
    report = optimise(stores, Options("class", "dice", n_folds=3, seed=5))
    keys = common_keys(stores)
    cross = CrossFit(keys, 3, 5)
    values = np.stack([[dense(store, key) for key in keys] for _, store in stores])
    truth = np.stack([stores[0].store.read(key).true_histograms.sum(1) for key in keys])
    assert truth.min() > 0
    masks = truth_masks(stores[0].store, keys)
    _, hard = collect(stores, keys)
    expected = np.empty((12, 2))
    for fold in range(3):
        weights = fit_classes(hard, np.flatnonzero(cross.fold_of != fold), np.full(3, 1 / 3))
        held = cross.fold_of == fold
        expected[held] = brute(values, masks, weights)[held]
    assert named(report)["weights"].dice == pytest.approx(expected.mean(), abs=1e-12)
    assert named(report)["weights"].simple_dice == pytest.approx(brute(values, masks, np.full((3, 2), 1 / 3)).mean())


def test_a_bias_is_mended_by_thresholds() -> None:
    stores = bones(6, [0.5], images=24)
    for _, store in stores:
        for image in store._images.values():
            for plane in image.values:
                plane[:] = np.clip(plane.astype(int) - 60, 0, 255)
    report = optimise(stores, Options("equal"))
    found = named(report)
    assert found["threshold"].clears and report.fitted.thresholds is not None and report.fitted.weights is None
    assert max(report.fitted.thresholds) < 0.4
    means = report.curves.mean(0)
    assert means[0, report.levels[0] - 1] > means[0, 127]


def test_steps_are_chosen_from_the_candidates() -> None:
    stores = bones(7, [0.3, 0.3], images=24)
    for _, store in stores:
        for image in store._images.values():
            for plane in image.values:
                plane[0, :] = 255  # a line far from the disc, in the mask of all
    report = optimise(stores, Options("equal", post_process=(("fill_holes",), ("largest",), ("hysteresis=0.3",))))
    found = named(report)
    assert report.fitted.post_process == ("largest",) and found["post_process"].clears
    assert found["post_process 2"].clears and not found["post_process 2"].used
    assert found["post_process 1"].added == 0
    assert found["together"].detail.endswith("post_process")
    assert "clears its noise, not used by itself" in report.text()


def test_one_member_has_no_weights_to_fit() -> None:
    report = optimise(bones(8, [0.5], images=12), Options("class"))
    assert list(named(report)) == ["threshold", "class_thresholds", "together"]


def test_a_fit_from_files_is_that_from_memory_and_goes_to_a_file(tmp_path: Path) -> None:
    stores = bones(9, [0.3, 1.2], images=10)
    from_files = []
    for name, store in stores:
        writer = ProbsWriter(tmp_path / name, store.classes, [name], "probabilities")
        for key in store.keys()[::-1]:
            writer.write(store.read(key))
        from_files.append(Source(name, ProbsFolder(tmp_path / name)))
    report = optimise(from_files, Options())
    expected = optimise(stores, Options())
    assert report.fitted.evidence == expected.fitted.evidence and report.fitted.weights == expected.fitted.weights
    assert np.array_equal(report.curves, expected.curves)
    write_fitted(tmp_path / "fitted.json", report.fitted)
    fitted = read_fitted(tmp_path / "fitted.json")
    assert asdict(fitted) == asdict(report.fitted)
    fitted.check(stores[0].store.classes, [("run0",), ("run1",)])
    assert json.loads((tmp_path / "fitted.json").read_text())["evidence"][0]["name"] == "members"


def test_the_text_says_when_there_are_too_few_subjects() -> None:
    report = optimise(bones(10, [0.2, 1.5], images=8), Options(n_folds=2))
    assert "With fewer than 5 subjects nothing clears its noise." in report.text()
    assert not any(found.clears for found in report.fitted.evidence)


def test_one_subject_gets_a_sentence() -> None:
    values, truth = example(0, images=2)
    with pytest.raises(FileProblem, match="but there are 2 images and 1 subjects: infer more"):
        optimise(sources(values, truth), Options())
    with pytest.raises(FileProblem, match="but there are 1 images and 1 subjects: infer more"):
        optimise(sources(values[:, :1], truth[:1]), Options())


def test_wrong_options_get_a_sentence() -> None:
    with pytest.raises(ConfigProblem, match=r"ensemble_weight_method is 'clas'.*one of equal, global, class, best"):
        Options("clas")
    with pytest.raises(ConfigProblem, match=r"ensemble_optim_metric is 'iou'.*one of soft_dice, dice"):
        Options(metric="iou")
    with pytest.raises(ConfigProblem, match=r"a forced choice is 'weight'.*one of members, weights, threshold"):
        Options(force=("weight",))
    with pytest.raises(ConfigProblem, match="step 'biggest' is unknown"):
        optimise(bones(0, [0.5], images=4), Options(post_process=(("biggest",),), n_folds=2))


def dense(store: Store, key: str) -> np.ndarray:
    """(K, H, W) of q."""
    image = store.read(key)
    planes = np.zeros((len(image.classes), image.height, image.width), np.uint8)
    for plane, (y, x, h, w), part in zip(planes, image.boxes.tolist(), image.values, strict=True):
        plane[y : y + h, x : x + w] = part
    return planes


def truth_masks(store: Store, keys: Sequence[str]) -> np.ndarray:
    """(I, K, H, W) of the labels."""
    masks = []
    for key in keys:
        image = store.read(key)
        flat = np.zeros((len(image.classes), image.height * image.width), bool)
        for plane, runs in zip(flat, image.truth_runs, strict=True):
            for first, after in runs.tolist():
                plane[first:after] = True
        masks.append(flat.reshape(-1, image.height, image.width))
    return np.stack(masks)
