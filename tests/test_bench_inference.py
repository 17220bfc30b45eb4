"""benchmarks/ of masks, Dice, stitching, ensembles: peers and stand-ins do what they should, differences show."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import (
    bench_ensemble,
    bench_metric,
    bench_rle,
    bench_stitch,
    competition_way,
    ensemble_sides,
    fastest,
    painted,
)
from benchmarks.case import Case
from benchmarks.ready_network import Ready, logits_of
from benchmarks.same import Different
from config import HAND_BONES
from dataset.readers import Record, read_competition
from engine.bits import pack
from engine.rle import encode_bits
from inference.metrics import count_bits, dice_from_counts
from inference.submission import SubmissionWriter

TINY = Case(size=128, window=64, subjects=1, windows=1, batch=1, workers=0)
K = len(HAND_BONES)


def noise(n_classes: int, height: int, width: int, seed: int) -> NDArray[np.int32]:
    """Packed masks, from empty to full."""
    share = torch.linspace(0.0, 1.0, n_classes).view(-1, 1, 1) ** 2
    values = torch.rand((n_classes, height, width), generator=torch.Generator().manual_seed(seed))
    return pack(share - values, 0.0).numpy()


def discs(case: Case) -> NDArray[np.int32]:
    """A disc a class."""
    row, column = torch.meshgrid(torch.arange(case.size), torch.arange(case.size), indexing="ij")
    middles = torch.rand((K, 2, 1, 1), generator=torch.Generator().manual_seed(3)) * case.size
    return pack(case.size / 8 - torch.hypot(row - middles[:, 0], column - middles[:, 1]), 0.0).numpy()


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_the_competitions_functions_are_ours_on_planes(n_classes: int, height: int, width: int, seed: int) -> None:
    bits = noise(n_classes, height, width, seed)
    masks = competition_way.planes(bits, n_classes)
    texts = competition_way.encode_all(masks)
    assert texts == encode_bits(bits, n_classes) == competition_way.encode_all(masks.view(np.uint8))
    assert np.array_equal(competition_way.decode_all(texts, height, width), masks)
    other = noise(n_classes, height, width, seed + 100)
    tensors = (torch.from_numpy(competition_way.planes(b, n_classes))[None].double() for b in (bits, other))
    ours = dice_from_counts(count_bits(other, bits, n_classes))
    np.testing.assert_allclose(competition_way.dice(*tensors)[0].numpy(), ours, rtol=1e-12)


def test_the_competitions_rows_are_our_csv(tmp_path: Path) -> None:
    images = {"a.png": noise(K, 20, 30, 1), "b.png": noise(K, 7, 5, 2)}
    rows = ((name, competition_way.planes(bits, K)) for name, bits in images.items())
    competition_way.write_rows(tmp_path / "theirs.csv", rows, HAND_BONES)
    with SubmissionWriter(tmp_path / "ours.csv", list(images), HAND_BONES) as writer:
        for name, bits in images.items():
            writer.write(name, bits)
    assert (tmp_path / "theirs.csv").read_bytes() == (tmp_path / "ours.csv").read_bytes()


def test_the_fastest_way_is_taken_and_all_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    ways = {name: lambda name=name: calls.append(name) for name in ("slow", "quick", "middling")}
    times = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(fastest, "milliseconds", lambda work: next(times))
    assert fastest.fastest(ways) == ("quick", "slow: 3 ms; quick: 1 ms; middling: 2 ms")
    assert calls == ["slow", "quick", "middling"], "each is warmed once"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, of NumPy 2
def test_rle_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_rle, "REPEATS", 1)
    rows = bench_rle.rows(noise(K, 40, 30, 0), K)
    assert [row.peer for row in rows] == [
        *(bench_rle.COMPETITION, bench_rle.COPIED, bench_rle.VIEWED),
        *(bench_rle.COMPETITION, bench_rle.DECODED),
    ]
    assert all(row.ratio for row in rows) and "29 x 40 x 30" in rows[0].case


@pytest.mark.parametrize("broken", ["encode", "decode"])
def test_another_text_or_mask_is_found(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function = getattr(competition_way, broken)
    wrong = {"encode": lambda mask: function(~mask.astype(bool)), "decode": lambda *a: 1 - function(*a)}[broken]
    monkeypatch.setattr(competition_way, broken, wrong)
    with pytest.raises(Different, match="competition's function: the masks or their texts differ"):
        bench_rle.rows(noise(3, 8, 9, 1), 3)


def test_metric_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_metric, "REPEATS", 1)
    bits = discs(TINY)
    bits[0] &= ~np.int32(1 << 5)  # an empty mask in both
    rows = bench_metric.rows(np.roll(bits, 2, 2), bits, K)
    assert {row.peer for row in rows} == {bench_metric.MONAI, bench_metric.NUMPY, bench_metric.COMPETITION}
    assert all(row.ratio for row in rows)
    monkeypatch.setattr(competition_way, "dice", lambda truth, predicted: torch.zeros(1, K))
    with pytest.raises(Different, match="competition's function: Dice differs from ours by"):
        bench_metric.rows(bits, bits, K)


def test_a_dice_of_nan_is_a_difference() -> None:
    with pytest.raises(Different, match="not rounding"):
        bench_metric.agree("someone", np.array([0.5, np.nan]), np.array([0.5, 0.5]))


def test_logits_are_above_0_inside_of_masks() -> None:
    bits = discs(TINY)
    logits = logits_of(bits, K)
    assert np.array_equal(pack(logits, 0.0).numpy(), bits)
    assert logits.abs().max() == 12 and (logits[:, :, 1:] - logits[:, :, :-1]).abs().max() < 1.1


def test_the_ready_network_answers_for_windows_and_gives_each_answer_once() -> None:
    logits = torch.randn((3, 40, 48), generator=torch.Generator().manual_seed(0))
    network, picture = Ready(logits), Ready.places(40, 48)
    windows = torch.cat([picture[..., y : y + 16, x : x + 16] for y, x in ((0, 0), (24, 32))])
    made = network(windows)
    for answer, part in zip(made, (logits[:, :16, :16], logits[:, 24:, 32:]), strict=True):
        offset = answer - part
        assert offset.std() < 1e-6 and offset.abs().max() < 1.5
    assert not torch.allclose(made[0] - logits[:, :16, :16], made[1] - logits[:, 24:, 32:]), "each has its own"
    network.get_ready()
    first = network(windows)
    first.zero_()  # as MONAI does
    assert torch.equal(network(windows), made), "made again, as it was given away"


@pytest.fixture
def tiny_logits(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    logits = logits_of(discs(TINY), K)
    monkeypatch.setattr(bench_stitch, "example", lambda case: logits)
    return logits


@pytest.mark.parametrize("name", bench_stitch.MONAI_WAYS)
def test_all_ways_to_stitch_give_our_masks(name: str, tiny_logits: Tensor) -> None:
    assert bench_stitch.differing(tiny_logits, name, TINY) <= 2
    ours = bench_stitch.masks_of(bench_stitch.our_way(Ready(tiny_logits), TINY), TINY)
    assert np.bitwise_count(ours ^ pack(tiny_logits, 0.0).numpy()).sum() > 100, "the windows' own offsets don't show"


def test_another_blend_is_found(tiny_logits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs is made with sigma 0.3 still."""
    network = Ready(tiny_logits)
    write = bench_stitch.MONAI_WAYS[bench_stitch.SMALLEST](network, TINY)
    monkeypatch.setitem(bench_stitch.WAYS, bench_stitch.SMALLEST, lambda network, case: write)
    monkeypatch.setattr(bench_stitch, "SIGMA", 0.125)
    with pytest.raises(Different, match="masks differ from ours by more than rounding"):
        bench_stitch.differing(tiny_logits, bench_stitch.SMALLEST, TINY)


def test_stitching_rows(tiny_logits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_stitch, "peak_apart", lambda name, case: 1.0 if name == bench_stitch.OURS else 2.0)
    time, memory = bench_stitch.rows(TINY, 2)
    assert time.unit == "ms" and len(time.ours) == len(time.theirs) == 2 and "pixels of all masks differ" in time.note
    assert memory.unit == "MB" and memory.ratio == 2


def freed_and_kept() -> None:
    """Leave 120 MB that malloc keeps for whoever asks next, as a long test run before this one may."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]

    def filled(size: int) -> int:
        address: int = libc.malloc(size)
        ctypes.memset(address, 1, size)
        return address

    libc.free(filled(31_000_000))  # from now on, blocks of this size are no longer mapped one by one
    blocks = [filled(20_000_000) for _ in range(6)]
    above = [libc.malloc(100) for _ in range(20_000)]
    for address in (*blocks, *above[:-1]):
        libc.free(address)


@pytest.mark.parametrize("before", [lambda: None, freed_and_kept])
def test_peak_memory_is_what_the_way_takes(
    before: Callable[[], None], tiny_logits: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 MB for a moment."""
    before()

    def way(network: Ready, case: Case) -> bench_stitch.Write:
        return lambda path: np.ones(50_000_000, np.uint8).sum()

    monkeypatch.setitem(bench_stitch.WAYS, "greedy", way)
    assert 45 < bench_stitch.peak("greedy", TINY) < 60


class Silent(nn.Module):
    """Logits of 0."""

    def forward(self, grey: Tensor) -> Tensor:
        return torch.zeros(len(grey), K, *grey.shape[-2:])


def test_what_is_painted_is_read() -> None:
    masks = competition_way.planes(discs(TINY), K)
    grey = torch.from_numpy(painted.painted(masks))[None, None].float() / 255
    for kind in (torch.float32, torch.bfloat16):
        logits = painted.Reader(Silent().to(kind), K)(grey.to(kind))[0].float()
        found = competition_way.planes(pack(logits, 0.0).numpy(), K)
        assert (found.sum(0) <= 1).all() and np.array_equal(found.any(0), masks.any(0))
        assert np.array_equal(found[-1], masks[-1]), "the last one is above all others"


@pytest.fixture
def ensemble(phantom_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[list[Record], Path]:
    """Two painted images, and a folder for results."""
    monkeypatch.setattr(painted, "draw", lambda case: read_competition(phantom_root, "train")[:2])
    return painted.paint(TINY, tmp_path / "images"), tmp_path


TASK = ensemble_sides.Task(TINY, ("model_simple_unet_quarter",) * 2, "cpu")


def test_both_ensembles_find_what_is_painted(ensemble: tuple[list[Record], Path]) -> None:
    records, folder = ensemble
    networks = TASK.networks()
    sides = {
        "ours": ensemble_sides.ours(networks, TASK, amp=False),
        "MONAI": ensemble_sides.monai(networks, TASK, 9, amp=False),
    }
    texts = {name: side(records, folder / name).read_text() for name, side in sides.items()}
    assert texts["ours"] == texts["MONAI"] and texts["ours"].count("\n") == 1 + 2 * K
    bits = bench_ensemble.masks_of(sides["ours"](records[:1], folder / "one"), TINY)
    picture = cv2.imread(str(records[0].image), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(painted.painted(competition_way.planes(bits, K)), picture) and picture.any()


def test_the_bare_passes_are_ours(ensemble: tuple[list[Record], Path]) -> None:
    records, folder = ensemble
    networks = TASK.networks()
    shapes: list[torch.Size] = []
    for network in networks:
        network.register_forward_pre_hook(lambda network, inputs: shapes.append(inputs[0].shape))
    forward = ensemble_sides.bare(networks, ensemble_sides.ours(networks, TASK, amp=True), records, folder / "a")
    windows = list(shapes)
    assert sum(shape[0] for shape in windows) == 2 * 9 * 2, "windows times views times members"
    shapes.clear()
    forward(records, folder)
    assert shapes == windows * 2


def test_ensemble_rows(phantom_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(painted, "draw", lambda case: read_competition(phantom_root, "train")[:1])
    rows = bench_ensemble.rows(TASK, 1)
    assert [(row.case.rpartition(": ")[2], row.peer, row.unit) for row in rows] == list(bench_ensemble.PLANNED)
    assert all(row.ours and row.theirs for row in rows[:3])
    assert all(not row.ours and "On a CPU" in row.note for row in rows[3:])


def test_members_that_differ_are_found(ensemble: tuple[list[Record], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    records, folder = ensemble
    ours = ensemble_sides.ours
    monkeypatch.setattr(bench_ensemble, "monai", lambda networks, task, batch, amp: ours([shifted], one, amp=amp))
    one = ensemble_sides.Task(TINY, TASK.models[:1], "cpu")
    shifted = painted.Reader(Silent(), K)
    shifted.greys += 3 * painted.STEP
    with pytest.raises(Different, match="pixels of all masks differ from ours"):
        bench_ensemble.agree(one.networks(), records[:1], one, bench_ensemble.Places(folder))


def test_what_crosses_to_the_host_is_counted() -> None:
    """With tensors that have a device but no memory: there may be no GPU."""
    with FakeTensorMode(), bench_ensemble.ToHost() as counted:
        there = torch.zeros((3, 5), device="cuda")
        here = torch.zeros(7)
        assert counted.bytes == 0
        there.half().cpu()
        here.add(1).clone()
        assert counted.bytes == 30
        here[:5].copy_(there[0])
    assert counted.bytes == 50


def test_without_a_gpu_the_rows_are_there_without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = bench_ensemble.run(quick=False)
    assert [row.unit for row in rows] == [unit for _, _, unit in bench_ensemble.PLANNED]
    assert all(not row.ours and row.ratio is None and "there is no GPU" in row.note for row in rows)
    assert all("3 members, 2048 px, windows of 1024, GPU" in row.case for row in rows)
