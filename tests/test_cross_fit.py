from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from config import ConfigProblem
from engine.files import FileProblem
from inference.cross_fit import CrossFit


def keys(hands: list[int]) -> list[str]:
    """Images of subjects that have so many each."""
    return [f"ID{s}/{s}-{i}" for s, n in enumerate(hands) for i in range(n)]


@given(hands=st.lists(st.integers(1, 3), min_size=2, max_size=15), data=st.data(), seed=st.integers(0, 1000))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_subjects_never_part_between_fit_and_score(hands: list[int], data: st.DataObject, seed: int) -> None:
    n_folds = data.draw(st.integers(2, len(hands)))
    images = data.draw(st.permutations(keys(hands)))
    subjects = [key.split("/")[0] for key in images]
    cross = CrossFit(images, n_folds, seed)
    trains = cross.fit(lambda number, chosen: {subjects[i] for i in chosen})
    scored: list[int] = []

    def score(fold: int, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        assert not {subjects[i] for i in chosen} & trains[fold]
        assert {subjects[i] for i in chosen} | trains[fold] == set(subjects)
        scored.extend(chosen.tolist())
        return np.stack([chosen, np.full(len(chosen), fold)], 1).astype(np.float64)

    table = cross.held_out(score)
    assert sorted(scored) == table[:, 0].tolist() == list(range(len(images)))
    assert table[:, 1].tolist() == cross.fold_of.tolist()
    assert trains[-1] == set(subjects) and len(trains) == n_folds + 1
    sizes = [len({s for s, f in zip(subjects, cross.fold_of, strict=True) if f == fold}) for fold in range(n_folds)]
    assert max(sizes) - min(sizes) <= 1


def test_folds_follow_from_the_seed_and_not_from_the_order_of_images() -> None:
    names = keys([2] * 10)
    one, other = CrossFit(names, 5, 1), CrossFit(names[::-1], 5, 1)
    assert one.fold_of.tolist() == other.fold_of.tolist()[::-1]
    assert one.fold_of.tolist() != CrossFit(names, 5, 2).fold_of.tolist()


def test_the_interval_covers_the_true_gain_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    simple = np.zeros((40, 1))
    hits = 0
    for seed in range(200):
        # Hands of one subject are alike: what a bootstrap over images would take for 40 samples are 20.
        subjects = np.repeat(rng.normal(0.01, 0.02, 20), 2)
        found = CrossFit(keys([2] * 20), 5, seed).gain(subjects[:, None], simple)
        assert found.low <= found.gain <= found.high
        hits += found.low <= 0.01 <= found.high
    assert 0.92 <= hits / 200 <= 0.98


def test_no_difference_and_too_few_subjects_do_not_clear() -> None:
    table = np.random.default_rng(0).random((12, 3))
    cross = CrossFit(keys([2] * 6), 3, 0)
    same = cross.gain(table, table)
    assert (same.gain, same.low, same.high, same.clears) == (0, 0, 0, False)
    assert cross.gain(table + 0.01, table).clears
    assert not cross.gain(table - 0.01, table).clears
    few = CrossFit(keys([3] * 4), 2, 0).gain(table + 0.01, table)
    assert few.low > 0 and not few.clears


def test_the_gain_is_the_mean_over_images_then_classes() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.random((7, 4)), rng.random((7, 4))
    found = CrossFit(keys([1, 2, 1, 3]), 2, 0).gain(one, other)
    assert found.gain == pytest.approx(one.mean(0).mean() - other.mean(0).mean())


def test_one_subject_and_one_image_are_refused() -> None:
    with pytest.raises(FileProblem, match=r"takes two or more, but there are 2 images and 1 subjects: .*--save_probs"):
        CrossFit(keys([2]), 5, 0)
    with pytest.raises(FileProblem, match="there are 1 images and 1 subjects"):
        CrossFit(keys([1]), 2, 0)
    with pytest.raises(FileProblem, match="there are 0 images and 0 subjects"):
        CrossFit([], 2, 0)


@pytest.mark.parametrize("n_folds", [0, 1, 4])
def test_folds_that_the_subjects_do_not_allow(n_folds: int) -> None:
    with pytest.raises(ConfigProblem, match=f"has {n_folds} folds, but with 3 subjects it must have 2 to 3"):
        CrossFit(keys([2, 2, 2]), n_folds, 0)
