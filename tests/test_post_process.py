"""inference/post_process.py, components.py and outlines.py against SciPy and OpenCV on full planes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import competition_rle, pack
from scipy import ndimage

from config import HAND_BONES, ConfigProblem
from engine.files import FileProblem
from engine.rle import decode_rle, parse_runs
from inference import post_process
from inference.post_process import Finding, Step, apply, apply_to_runs, low_threshold, parse_steps

ROOT = Path(__file__).resolve().parent.parent
FEW = settings(derandomize=True, max_examples=60, deadline=None)
EIGHT = np.ones((3, 3), int)
Plane = NDArray[np.bool_]


def names(k: int) -> list[str]:
    return [f"bone {i}" for i in range(k)]


def unpacked(bits: NDArray[np.int32], k: int) -> Plane:
    return np.stack([bits[i // 32] >> (i % 32) & 1 for i in range(k)]).astype(bool)


def processed(masks: Plane, *texts: str, low: Plane | None = None) -> Plane:
    """(K, H, W) masks after the steps; the words that went in have not changed, and others come out."""
    k = len(masks)
    bits = pack(masks)
    kept = bits.copy()
    out, _ = apply(bits, names(k), parse_steps(texts, names(k)), None if low is None else pack(low))
    assert out is not bits and not np.shares_memory(out, bits)
    np.testing.assert_array_equal(bits, kept)
    return unpacked(out, k)


def found(masks: Plane, *texts: str) -> tuple[Finding, ...]:
    classes = names(len(masks))
    return apply(pack(masks), classes, parse_steps(texts, classes))[1]


# The plain way: one full plane, SciPy and OpenCV.


def areas(mask: Plane) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels from 1 up, in the order of first pixels, and the areas of all labels, the background's 0 first."""
    labels = ndimage.label(mask, EIGHT)[0].astype(np.int64)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels, sizes


def plain_min_area(mask: Plane, area: float) -> Plane:
    labels, sizes = areas(mask)
    return (sizes >= area)[labels] & mask


def plain_largest(mask: Plane) -> Plane:
    labels, sizes = areas(mask)
    best = np.flatnonzero(sizes == sizes.max())
    first = min(best, key=lambda label: int(np.flatnonzero(labels.ravel() == label)[0]))
    return (labels == first) & mask


def disc(radius: float) -> Plane:
    y, x = np.mgrid[-int(radius) : int(radius) + 1, -int(radius) : int(radius) + 1]
    return np.asarray(np.hypot(y, x) <= radius)


def plain_open(mask: Plane, radius: float) -> Plane:
    eroded = ndimage.binary_erosion(mask, disc(radius), border_value=1)
    return np.asarray(ndimage.binary_dilation(eroded, disc(radius)))


def plain_close(mask: Plane, radius: float) -> Plane:
    dilated = ndimage.binary_dilation(mask, disc(radius))
    return np.asarray(ndimage.binary_erosion(dilated, disc(radius), border_value=1))


def plain_hull(mask: Plane) -> Plane:
    if not mask.any():
        return mask
    corners = cv2.convexHull(np.argwhere(mask)[:, ::-1].astype(np.int32))
    inside = [cv2.pointPolygonTest(corners, (x, y), False) >= 0 for y, x in np.ndindex(mask.shape)]
    return np.array(inside).reshape(mask.shape)


def plain_smooth(mask: Plane, sigma: float) -> Plane:
    side = 2 * int(np.ceil(3 * sigma)) + 1
    blurred = cv2.GaussianBlur(mask.astype(np.uint8) * 255, (side, side), sigma, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred > 127)


def plain_rows(mask: Plane, top: float, bottom: float) -> Plane:
    middles = (np.arange(len(mask)) + 0.5) / len(mask)
    return mask & ((middles >= top) & (middles <= 1 - bottom))[:, None]


PLAIN: dict[str, Callable[[Plane], Plane]] = {
    "min_area=4": lambda mask: plain_min_area(mask, 4),
    "largest": plain_largest,
    "fill_holes": lambda mask: np.asarray(ndimage.binary_fill_holes(mask)),
    "open=1": lambda mask: plain_open(mask, 1),
    "open=2.5": lambda mask: plain_open(mask, 2.5),
    "close=1": lambda mask: plain_close(mask, 1),
    "close=3": lambda mask: plain_close(mask, 3),
    "convex": plain_hull,
    "smooth=1.5": lambda mask: plain_smooth(mask, 1.5),
    "area_frac=0.05": lambda mask: plain_min_area(mask, 0.05 * mask.size),
    "cut_top=0.25": lambda mask: plain_rows(mask, 0.25, 0),
    "cut_bottom=0.3": lambda mask: plain_rows(mask, 0, 0.3),
}


def noise(k: int, height: int, width: int, density: float, seed: int) -> Plane:
    """Masks of single pixels and, where rough ones are larger, of blobs; most touch the border."""
    rng = np.random.default_rng(seed)
    rough = rng.random((k, -(-height // 3), -(-width // 3))).repeat(3, 1).repeat(3, 2)[:, :height, :width]
    fine = rng.random((k, height, width))
    return np.asarray(np.where(rng.random((k, 1, 1)) < 0.5, rough, fine) < density)


MASKS = st.builds(
    noise,
    st.sampled_from([1, 3, 32, 33]),
    st.integers(1, 14),
    st.integers(1, 14),
    st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.7, 0.95, 1.0]),
    st.integers(0, 2**32 - 1),
)


@pytest.mark.parametrize("text", PLAIN)
@settings(FEW, max_examples=25)
@given(masks=MASKS)
def test_a_step_equals_the_plain_way_on_full_planes(text: str, masks: Plane) -> None:
    expected = np.stack([PLAIN[text](mask) for mask in masks])
    np.testing.assert_array_equal(processed(masks, text), expected)


@FEW
@given(masks=MASKS, share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_hysteresis_keeps_low_components_that_hold_a_pixel_of_the_mask(masks: Plane, share: float, seed: int) -> None:
    mask = masks & (np.random.default_rng(seed).random(masks.shape) < share)
    expected = [ndimage.binary_propagation(m, EIGHT, mask=low) for m, low in zip(mask, masks, strict=True)]
    np.testing.assert_array_equal(processed(mask, "hysteresis=0.3", low=masks), np.stack(expected))


@FEW
@given(masks=MASKS, other=st.integers(0, 2**32 - 1))
def test_hysteresis_loses_nothing_that_earlier_steps_have_added(masks: Plane, other: int) -> None:
    low = noise(*masks.shape, 0.3, other)
    expected = [ndimage.binary_propagation(m, EIGHT, mask=both) for m, both in zip(masks, masks | low, strict=True)]
    np.testing.assert_array_equal(processed(masks, "hysteresis=0.3", low=low), np.stack(expected))


@FEW
@given(masks=MASKS)
def test_one_bone_lists_what_is_missing_or_split_and_changes_nothing(masks: Plane) -> None:
    expected = []
    for name, mask in zip(names(len(masks)), masks, strict=True):
        sizes = sorted(areas(mask)[1][1:].tolist(), reverse=True)
        if len(sizes) != 1:
            most = tuple(sizes[: post_process.MOST_AREAS])
            expected.append(Finding(name, "split" if sizes else "missing", len(sizes), most))
    assert found(masks, "one_bone") == tuple(expected)
    np.testing.assert_array_equal(processed(masks, "one_bone"), masks)


@FEW
@given(masks=MASKS, share=st.floats(0, 1))
def test_the_largest_component_is_kept_where_nothing_else_is(masks: Plane, share: float) -> None:
    """The ultrasound workflow: a band of depths, components of some area, and what to do where both remove all."""
    steps = [f"cut_top={share:.3f}", "cut_bottom=0.2", "area_frac=0.1"]
    strict = processed(masks, *steps)
    expected = [kept if kept.any() else plain_largest(mask) for kept, mask in zip(strict, masks, strict=True)]
    np.testing.assert_array_equal(processed(masks, *steps, "or_largest"), np.stack(expected))


@settings(FEW, max_examples=20)
@given(masks=MASKS, texts=st.lists(st.sampled_from(sorted(PLAIN)), max_size=4))
def test_steps_are_done_in_the_order_given(masks: Plane, texts: list[str]) -> None:
    expected = masks
    for text in texts:
        expected = np.stack([PLAIN[text](mask) for mask in expected])
    np.testing.assert_array_equal(processed(masks, *texts), expected)


@FEW
@given(masks=MASKS, text=st.sampled_from([text for text in PLAIN if "smooth" not in text]))
def test_a_second_time_changes_nothing(masks: Plane, text: str) -> None:
    once = processed(masks, text)
    np.testing.assert_array_equal(processed(once, text), once)


@FEW
@given(masks=MASKS)
def test_runs_in_and_out_are_those_of_the_words(masks: Plane) -> None:
    k, height, width = masks.shape
    steps = parse_steps(["min_area=4", "close=1"], names(k))
    runs = [parse_runs(competition_rle(mask)) for mask in masks]
    changed, _ = apply_to_runs(runs, height, width, names(k), steps)
    for old, new, mask, expected in zip(runs, changed, masks, processed(masks, "min_area=4", "close=1"), strict=True):
        np.testing.assert_array_equal(new, parse_runs(competition_rle(expected)))
        assert (new is old) == np.array_equal(mask, expected)


def test_touching_runs_and_runs_over_the_end_of_a_row_are_read() -> None:
    """4 px wide: `1 2 3 2` is one row, `4 2` ends a row and begins the next, which makes no neighbours of the two."""
    steps = parse_steps(["one_bone", "min_area=2"], ["row", "corner"])
    runs = [parse_runs("1 2 3 2"), parse_runs("4 2 12 1")]
    changed, findings = apply_to_runs(runs, 3, 4, ["row", "corner"], steps)
    assert changed[0] is runs[0] and changed[1].shape == (0, 2)
    assert findings == (Finding("corner", "split", 3, (1, 1, 1)),)


def test_components_are_8_connected_and_holes_4_connected() -> None:
    mask = decode_rle("2 1 5 1 7 1 10 1", 4, 4)[None]  # a ring of four pixels that meet at corners
    assert found(mask, "one_bone") == ()
    np.testing.assert_array_equal(processed(mask, "fill_holes")[0], decode_rle("2 1 5 3 10 1", 4, 4))


def test_a_bone_that_the_border_cuts_keeps_its_outline_there() -> None:
    mask = np.zeros((1, 20, 30), bool)
    mask[0, 8:, 3:9] = True
    corners = processed(mask, "open=2")[0] != mask[0]
    assert corners.any() and not corners[10:].any(), "only the two corners inside of the image are rounded"
    assert not (processed(mask, "smooth=1")[0] != mask[0])[12:].any()


def test_smoothing_is_about_a_gaussian_in_floating_point() -> None:
    rng = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(rng.random((200, 200)), 3) > 0.5
    blurred = ndimage.gaussian_filter(mask.astype(float), 3, truncate=3, mode="nearest")
    clear = abs(blurred - 0.5) > 0.02
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(processed(mask[None], "smooth=3")[0][clear], (blurred > 0.5)[clear])


def test_the_hull_is_of_the_class_and_not_of_each_component() -> None:
    mask = np.zeros((1, 9, 9), bool)
    mask[0, 0, 0] = mask[0, 0, 8] = mask[0, 8, 0] = True
    np.testing.assert_array_equal(processed(mask, "convex")[0], np.add.outer(range(9), range(9)) <= 8)


@FEW
@given(corners=st.tuples(*[st.tuples(st.integers(0, 149), st.integers(0, 199))] * 3))
@example(corners=((0, 0), (14, 122), (14, 0)))  # 7 / 14 of 122 is less than 61 in floating point
@example(corners=((0, 0), (14, 58), (0, 58)))  # and of 58 more than 29
def test_the_hull_of_three_pixels_is_the_triangle_to_the_last_pixel(corners: tuple[tuple[int, int], ...]) -> None:
    """In whole numbers: a pixel's centre is on the same side of all edges, or on one."""
    mask = np.zeros((150, 200), bool)
    for corner in corners:
        mask[corner] = True
    y, x = np.mgrid[:150, :200]
    sides = [
        (x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)
        for (y0, x0), (y1, x1) in zip(corners, (*corners[1:], corners[0]), strict=True)
    ]
    inside = (np.min(sides, axis=0) >= 0) | (np.max(sides, axis=0) <= 0)
    ys, xs = zip(*corners, strict=True)
    inside &= (y >= min(ys)) & (y <= max(ys)) & (x >= min(xs)) & (x <= max(xs))  # three pixels in a line
    np.testing.assert_array_equal(processed(mask[None], "convex")[0], inside)


def test_a_hull_thinner_than_a_pixel_has_no_empty_runs() -> None:
    runs = [parse_runs("1 1 14 1")]  # 4 px wide: three rows down, one column to the right
    hull, _ = apply_to_runs(runs, 4, 4, ["bone"], parse_steps(["convex"], ["bone"]))
    assert hull[0] is runs[0]


@pytest.mark.parametrize("text", [*(text for text in PLAIN if "cut" not in text), "one_bone", "or_largest"])
@pytest.mark.parametrize("shape", [(33, 1, 1), (29, 5, 1), (29, 1, 5), (65, 12, 9)])
def test_full_and_empty_masks_stay(text: str, shape: tuple[int, int, int]) -> None:
    masks = np.zeros(shape, bool)
    masks[::2] = True
    small = text == "min_area=4" and masks[0].size < 4
    expected = masks & (not small)
    np.testing.assert_array_equal(processed(masks, text), expected)


def test_a_megapixel_of_noise() -> None:
    masks = np.random.default_rng(1).random((2, 1024, 1024)) < [[[0.2]], [[0.5]]]
    np.testing.assert_array_equal(
        processed(masks, "min_area=4", "fill_holes"),
        np.stack([ndimage.binary_fill_holes(plain_min_area(mask, 4)) for mask in masks]),
    )
    first, second = found(masks, "one_bone")
    assert first.components == ndimage.label(masks[0], EIGHT)[1] and len(first.areas) == post_process.MOST_AREAS
    assert second.areas[0] == areas(masks[1])[1].max()


def test_limits_of_single_classes() -> None:
    steps = parse_steps(["min_area=50,Pisiform=20", "Open=2"], HAND_BONES)
    limits = [20.0 if name == "Pisiform" else 50.0 for name in HAND_BONES]
    assert steps == (Step("min_area", tuple(limits)), Step("open", (2.0,) * 29))
    masks = np.ones((2, 5, 6), bool)
    np.testing.assert_array_equal(processed(masks, "min_area=31,bone 1=30").any((1, 2)), [False, True])


def test_shares_of_single_classes() -> None:
    masks = np.ones((2, 5, 6), bool)
    masks[:, 3:] = False
    kept = processed(masks, "area_frac=0.61,bone 1=0.6").any((1, 2))
    np.testing.assert_array_equal(kept, [False, True])


def test_low_threshold_is_that_of_hysteresis() -> None:
    assert low_threshold(parse_steps(["largest", "hysteresis=0.25"], HAND_BONES)) == 0.25
    assert low_threshold(parse_steps(["largest", "open=1"], HAND_BONES)) is None


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["min_aera=50"], "step 'min_aera=50' is unknown (did you mean min_area?): there are min_area=50, largest, "),
        ([""], "step '' is unknown: there are"),
        (["area_frac=2"], "'2' must be a number from 0 to 1, as in area_frac=0.001."),
        (["cut_top"], "step 'cut_top': '' must be a number from 0 to 1, as in cut_top=0.1."),
        (["or_largest=1"], "step 'or_largest=1' takes no value: write or_largest."),
        (["largest=2"], "step 'largest=2' takes no value: write largest."),
        (["open"], "step 'open': '' must be a number from 1 to 50, as in open=2."),
        (["close=51"], "step 'close=51': '51' must be a number from 1 to 50, as in close=2."),
        (["smooth=nan"], "step 'smooth=nan': 'nan' must be a number from 0.5 to 50, as in smooth=3."),
        (["hysteresis=1"], "step 'hysteresis=1': '1' must be a number from 0.001 to 0.999, as in hysteresis=0.3."),
        (["open=2,Ulna=3"], "step 'open=2,Ulna=3': '2,Ulna=3' must be a number from 1 to 50"),
        (["min_area=-1"], "step 'min_area=-1': '-1' must be a number from 0 to 1e+09, as in min_area=50."),
        (["min_area=5,Pisifrom=2"], "'Pisifrom' is none of the classes (did you mean Pisiform?)."),
        (["min_area=5,20"], "step 'min_area=5,20': '20' is none of the classes."),
        (["min_area=5,Ulna=x"], "step 'min_area=5,Ulna=x': 'x' must be a number from 0 to 1e+09"),
        (["min_area=5,Ulna=2,Ulna=3"], "step 'min_area=5,Ulna=2,Ulna=3' names Ulna twice: leave out one of them."),
        (["one_bone", "largest", "one_bone"], "step 'one_bone' is given 2 times, but must be given once: drop one."),
        (["hysteresis=0.3", "hysteresis=0.2"], "step 'hysteresis' is given 2 times"),
    ],
)
def test_wrong_steps(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigProblem) as raised:
        parse_steps(texts, HAND_BONES)
    assert message in str(raised.value)


def test_wrong_words() -> None:
    bits, steps = np.zeros((1, 4, 5), np.int32), parse_steps(["hysteresis=0.3"], HAND_BONES)
    with pytest.raises(ValueError, match="needs the low masks: make them at low_threshold"):
        apply(bits, HAND_BONES, steps)
    with pytest.raises(ValueError, match=r"low has shape \(1, 5, 4\) and bits \(1, 4, 5\)"):
        apply(bits, HAND_BONES, steps, bits.transpose(0, 2, 1))
    with pytest.raises(ValueError, match="bits is int64 of shape"):
        apply(bits.astype(np.int64), HAND_BONES, ())
    with pytest.raises(ValueError, match="pixels of a class above the last"):
        apply(bits - 1, HAND_BONES, ())


def test_words_that_are_no_contiguous_array() -> None:
    masks = noise(3, 9, 12, 0.4, 5)
    turned = np.ascontiguousarray(pack(masks).transpose(0, 2, 1)).transpose(0, 2, 1)
    out, _ = apply(turned, names(3), parse_steps(["min_area=4"], names(3)))
    np.testing.assert_array_equal(unpacked(out, 3), processed(masks, "min_area=4"))


def test_findings_as_csv_and_as_a_line(tmp_path: Path) -> None:
    findings = [Finding("Ulna", "missing", 0, ()), Finding("Radius, left", "split", 2, (70, 3))]
    rows = post_process.finding_rows("a.png", findings) + post_process.finding_rows("b.png", findings[:1])
    path = tmp_path / "bones.csv"
    post_process.write_findings(path, rows)
    assert path.read_text() == (
        'image_name,class,what,components,areas\na.png,Ulna,missing,0,\na.png,"Radius, left",split,2,70 3\n'
        "b.png,Ulna,missing,0,\n"
    )
    line = "bones missing: 2, split: 1, in 2 images; most often Ulna (2), Radius, left (1)"
    assert post_process.describe_findings(rows) == line
    assert post_process.describe_findings([]) == "no bone is missing or split"
    with pytest.raises(FileProblem, match="exists and is never overwritten"):
        post_process.write_findings(path, [])


def test_importing_it_waits_for_no_large_library() -> None:
    code = "import sys, inference.post_process; print({'torch', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
