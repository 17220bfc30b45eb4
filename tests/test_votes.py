"""inference/votes.py and scripts/ensemble_hard.py: votes on runs are votes on masks, exact in weights and ties."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import competition_rle, pack

from config import ConfigProblem
from engine.files import FileProblem
from engine.rle import decode_rle, parse_runs, runs_to_text
from inference.submission import SubmissionWriter, read_submission
from inference.submission_file import SubmissionFile
from inference.votes import needed_weight, vote_runs, vote_submissions, vote_weights
from scripts.ensemble_hard import main

CLASSES = ("Radius", "Ulna")
SIZE = (5, 7)

decimals = st.integers(0, 40).map(lambda n: n / 20)
shares = st.none() | st.integers(1, 20).map(lambda n: n / 20)


@st.composite
def elections(draw: st.DrawFn) -> tuple[NDArray[np.bool_], list[str], NDArray[np.float64]]:
    """Masks (N, 5, 7), their texts, in which some runs touch, and weights that tie often."""
    n = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks = rng.random((n, *SIZE)) < draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))
    texts = [cut(competition_rle(mask), rng) for mask in masks]
    weights = draw(st.lists(decimals, min_size=n, max_size=n).filter(any) | st.just([1.0] * n))
    return masks, texts, np.array(weights)


def cut(text: str, rng: np.random.Generator) -> str:
    """The same pixels, some runs cut in two that touch."""
    runs = []
    for first, end in parse_runs(text):
        middle = int(rng.integers(first, end))
        runs += [(first, middle), (middle, end)] if middle > first else [(first, end)]
    return " ".join(f"{first + 1} {end - first}" for first, end in runs)


def winners(masks: NDArray[np.bool_], weights: NDArray[np.float64], share: float | None) -> NDArray[np.bool_]:
    """The vote on masks, in fractions of the decimals that were written."""
    exact = [Fraction(repr(float(weight))) for weight in weights]
    total, won = sum(exact), np.zeros(masks.shape[1:], bool)
    for place in np.ndindex(won.shape):
        votes = sum((w for w, mask in zip(exact, masks, strict=True) if mask[place]), Fraction())
        won[place] = votes > total / 2 if share is None else votes >= Fraction(repr(share)) * total
    return won


@settings(derandomize=True, max_examples=300, deadline=None)
@given(elections(), shares)
def test_votes_on_runs_are_votes_on_masks(
    election: tuple[NDArray[np.bool_], list[str], NDArray[np.float64]], share: float | None
) -> None:
    masks, texts, weights = election
    found = vote_runs([parse_runs(text) for text in texts], weights, needed_weight(weights, share))
    assert found.dtype == np.int64 and found.shape[1:] == (2,)
    # The competition's text of the mask is canonical: an equal one has no empty and no touching runs.
    assert runs_to_text(found) == competition_rle(winners(masks, weights, share))


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_text_of_runs(seed: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((11, 13)) < density
    text = competition_rle(mask)
    assert runs_to_text(parse_runs(text)) == text


def test_text_keeps_touching_runs_and_large_numbers() -> None:
    for text in ("", "1 2 3 2", "9 1", "10 1", "999999999999 1", "1 1 99 1"):
        assert runs_to_text(parse_runs(text)) == text
    pairs = np.array([[0, 2, 9], [5, 6, 9]], np.int64)
    assert runs_to_text(pairs[:, :2]) == "1 2 6 1"  # rows that do not follow each other in memory


def vote(texts: list[str], weights: list[float], share: float | None = None) -> str:
    table = np.array(weights)
    return runs_to_text(vote_runs([parse_runs(text) for text in texts], table, needed_weight(table, share)))


THREE = ["1 10", "6 10", "9 3"]


@pytest.mark.parametrize(
    ("weights", "share", "expected"),
    [
        ([1, 1, 1], None, "6 6"),
        ([1, 1, 1], 2 / 3, "6 6"),
        ([1, 1, 1], 0.666666667, "6 6"),
        ([1, 1, 1], 0.67, "9 2"),
        ([1, 1, 1], 1, "9 2"),
        ([1, 1, 1], 1 / 3, "1 15"),
        ([1 / 3, 1 / 3, 1 / 3], None, "6 6"),
        ([0.45, 0.45, 0.1], None, "6 6"),
        ([0.45, 0.45, 0.1], 0.55, "6 6"),
        ([0.45, 0.45, 0.1], 0.9, "6 5"),
        ([0.3, 0.1, 0.2], None, "6 5"),  # 0.3 ties with 0.1 + 0.2
        ([0.3, 0.1, 0.2], 0.5, "1 11"),
        ([2, 1, 1], None, "6 5"),  # a tie of 2 and 1 + 1 gives no pixel
        ([2, 1, 1], 0.5, "1 11"),
        ([3, 1, 1], None, "1 10"),
        ([0, 0, 0.000000001], None, "9 3"),
        ([1000, 1000, 0.0], None, "6 5"),
        ([1000, 1000, 0.000000001], None, "6 6"),
    ],
)
def test_ties_and_rounding(weights: list[float], share: float | None, expected: str) -> None:
    assert vote(THREE, weights, share) == expected


@pytest.mark.parametrize("n", range(1, 31))
def test_every_number_of_equal_votes_can_be_asked_for(n: int) -> None:
    ladder = [f"{k + 1} {n - k}" for k in range(n)]  # pixel i (from 1) has i votes
    for k in range(1, n + 1):
        for weight in (1.0, 0.1, 1 / n):
            assert vote(ladder, [weight] * n, k / n) == f"{k} {n - k + 1}"


def test_a_thousand_heavy_members_are_counted_exactly() -> None:
    weights = np.full(1000, 1000.0)
    runs = [np.array([[0, 1 + (i < 500)]], np.int64) for i in range(1000)]
    assert vote_runs(runs, weights, needed_weight(weights)).tolist() == [[0, 1]]
    weights[0] += -1e-9
    weights[999] -= 2e-9  # now the first 500 are heavier by a billionth
    assert vote_runs(runs, weights, needed_weight(weights)).tolist() == [[0, 2]]


def test_nothing_but_empty_masks() -> None:
    assert vote(["", "", ""], [1, 1, 1]) == ""
    assert vote([""], [1], 0.000000001) == ""


@pytest.mark.parametrize(
    ("weights", "needed", "sentence"),
    [
        ([1.0], 1.0, "There are 2 masks and 1 weights, but every mask needs one."),
        ([1.0, 1.0], 0.0, "needed is 0.0, but must be above 0, or pixels without any vote would win."),
        ([1.0, 1.0], 1e-10, "needed is 1e-10, but must be above 0"),
        ([1.0, -1.0], 1.0, "-1 is out of range, every weight must lie between 0 and 1000."),
        ([1.0, float("nan")], 1.0, "nan is out of range"),
        ([1.0, 1001.0], 1.0, "1001 is out of range"),
    ],
)
def test_votes_refuse(weights: list[float], needed: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        vote_runs([parse_runs("1 1")] * 2, np.array(weights), needed)


def test_weights_by_class() -> None:
    table = vote_weights(CLASSES, 3, (), {"Ulna": [0, 1, 0.5]})
    assert table.tolist() == [[1, 1, 1], [0, 1, 0.5]]
    assert vote_weights(CLASSES, 2, (2, 1), {}).tolist() == [[2, 1], [2, 1]]


@pytest.mark.parametrize(
    ("weights", "by_class", "sentence"),
    [
        ((2, 1), {}, "weights: 2 were given for 3 CSVs, but every CSV needs one."),
        ((2, 1), {"Radius": [1, 1, 1], "Ulna": [1, 1, 1]}, "weights: 2 were given for 3 CSVs"),
        ((0, 0, 0), {}, "weights: All 3 are 0, but one or more must be above."),
        ((1, 1, float("inf")), {}, "weights: inf is out of range, every weight must lie between 0 and 1000."),
        ((), {"Ulna": [1, 1]}, "class_weights of 'Ulna': 2 were given for 3 CSVs"),
        ((), {"Ulna": [0, 0, 0]}, "class_weights of 'Ulna': All 3 are 0"),
        ((), {"ulnar": [1, 1, 1]}, "class_weights: 'ulnar' is no class (did you mean Ulna?). The CSVs have Radius"),
    ],
)
def test_weights_are_checked(weights: tuple[float, ...], by_class: dict[str, list[float]], sentence: str) -> None:
    with pytest.raises(ConfigProblem, match=re.escape(sentence)):
        vote_weights(CLASSES, 3, weights, by_class)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan")])
def test_the_share_is_checked(share: float) -> None:
    with pytest.raises(ConfigProblem, match=r"vote_threshold is .*, but must be above 0 and at most 1"):
        needed_weight(np.ones(3), share)


def write(path: Path, names: list[str], masks: NDArray[np.bool_], classes: tuple[str, ...] = CLASSES) -> Path:
    with SubmissionWriter(path, names, classes) as writer:
        for name, image in zip(names, masks, strict=True):
            writer.write(name, pack(image))
    return path


@pytest.fixture
def csvs(tmp_path: Path) -> tuple[list[Path], NDArray[np.bool_]]:
    """Three CSVs of three images, and their masks (member, image, class, H, W); the others list theirs otherwise."""
    masks = np.random.default_rng(5).random((3, 3, 2, *SIZE)) < 0.5
    paths = [
        write(tmp_path / "0.csv", ["c.png", "a.png", "b.png"], masks[0]),
        write(tmp_path / "1.csv", ["b.png", "c.png", "a.png"], masks[1][[2, 0, 1]]),
        write(tmp_path / "2.csv", ["c.png", "a.png", "b.png"], masks[2][:, ::-1], CLASSES[::-1]),
    ]
    return paths, masks


def voted(path: Path) -> NDArray[np.bool_]:
    images = list(read_submission(path, CLASSES))
    assert [image.name for image in images] == ["c.png", "a.png", "b.png"]
    return np.array([[decode_rle(rle, *SIZE) for rle in image.rles.values()] for image in images])


def test_images_and_classes_meet_by_name(tmp_path: Path, csvs: tuple[list[Path], NDArray[np.bool_]]) -> None:
    paths, masks = csvs
    files = [SubmissionFile(path) for path in paths]
    assert vote_submissions(files, tmp_path / "out.csv", vote_weights(CLASSES, 3, (), {})) == 3
    assert (voted(tmp_path / "out.csv") == (masks.sum(0) >= 2)).all()


def test_one_csv_wins_alone(tmp_path: Path, csvs: tuple[list[Path], NDArray[np.bool_]]) -> None:
    paths, _ = csvs
    vote_submissions([SubmissionFile(paths[0])], tmp_path / "out.csv", np.ones((2, 1)))
    assert (tmp_path / "out.csv").read_bytes() == paths[0].read_bytes()


def test_the_command(
    tmp_path: Path, csvs: tuple[list[Path], NDArray[np.bool_]], capsys: pytest.CaptureFixture[str]
) -> None:
    paths, masks = csvs
    given, out = [str(path) for path in paths], tmp_path / "new" / "out.csv"
    by_class = {"Radius": [0, 1, 0]}
    (tmp_path / "weights.json").write_text(json.dumps(by_class))
    for number, table in enumerate((json.dumps(by_class), str(tmp_path / "weights.json"))):
        output = out.with_stem(f"out{number}")
        assert main([*given, "--output", str(output), "--weights", "1", "3", "1", "--class_weights", table]) == 0
        assert capsys.readouterr().out == f"{output}: 3 images, 2 classes, votes of 3 CSVs\n"
        assert (voted(output) == masks[1]).all()
    assert main([*given, "--output", str(out), "--vote_threshold", "1"]) == 0
    assert (voted(out) == masks.all(0)).all()
    before = out.read_bytes()
    assert main([*given, "--output", str(out)]) == 1
    assert "exists and is never overwritten" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (["--weights", "2", "1"], 2, "weights: 2 were given for 3 CSVs"),
        (["--vote_threshold", "2"], 2, "vote_threshold is 2.0, but must be above 0 and at most 1"),
        (["--class_weights", '{"Radius": 1}'], 2, "class_weights: '{\"Radius\": 1}' is not JSON of classes and their"),
        (["--class_weights", '{"Radius": [1, '], 2, "is not JSON of classes and their weights"),
        (["--class_weights", "none.json"], 1, "none.json cannot be read (No such file or directory): give a JSON file"),
    ],
)
def test_a_wrong_command_line_has_one_sentence(
    tmp_path: Path, csvs: tuple[list[Path], NDArray[np.bool_]], capsys: pytest.CaptureFixture[str],
    flags: list[str], code: int, sentence: str,
) -> None:  # fmt: skip
    out = tmp_path / "out.csv"
    assert left_with([*map(str, csvs[0]), "--output", str(out), *flags]) == code
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not out.exists()


def left_with(argv: list[str]) -> int:
    """The exit code."""
    try:
        return main(argv)
    except SystemExit as left:
        assert isinstance(left.code, int)
        return left.code


def test_no_csv_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert left_with(["--output", str(tmp_path / "out.csv")]) == 2
    assert "No CSV was given: name the submissions to vote over." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("a.png", "d.png", "1.csv lacks image 'a.png' of "),
        ("Ulna", "Lunate", "1.csv lacks class 'Ulna' of "),
        ("b.png,Ulna,", "b.png,Ulna,NaN ", "1.csv, line 3, image 'b.png', class 'Ulna': RLE holds 'NaN', but"),
        ("b.png,Ulna,", "b.png,Ulna,7 ", "1.csv, line 3, image 'b.png', class 'Ulna': RLE "),
        ("c.png,Ulna", "a.png,Ulna", "1.csv, line 5: image 'c.png' ends after 1 of 2 classes, 'Ulna' is missing"),
    ],
)
def test_a_bad_member_stops_the_vote(
    tmp_path: Path, csvs: tuple[list[Path], NDArray[np.bool_]], capsys: pytest.CaptureFixture[str],
    old: str, new: str, sentence: str,
) -> None:  # fmt: skip
    paths, _ = csvs
    paths[1].write_text(paths[1].read_text().replace(old, new))
    assert left_with([*map(str, paths), "--output", str(tmp_path / "out.csv")]) == 1
    assert sentence in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.csv", "1.csv", "2.csv"]


def test_an_additional_image_stops_the_vote(tmp_path: Path, csvs: tuple[list[Path], NDArray[np.bool_]]) -> None:
    paths, masks = csvs
    more = SubmissionFile(write(tmp_path / "more.csv", ["a.png", "b.png", "c.png", "d.png"], masks[0][[0, 1, 2, 0]]))
    with pytest.raises(FileProblem, match=re.escape(f"{paths[0]} lacks image 'd.png' of {more.path}, 1 in all")):
        vote_submissions([SubmissionFile(paths[0]), more], tmp_path / "out.csv", np.ones((2, 2)))
    assert not (tmp_path / "out.csv").exists()
