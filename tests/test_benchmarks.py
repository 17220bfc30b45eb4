"""benchmarks/: the command, rows, JSON and table, and that all sides of the loader benchmark read the same samples."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as command
from benchmarks import gpu_rows, machine, same, usual_way
from benchmarks.case import Case
from benchmarks.measure import in_turn, milliseconds
from benchmarks.our_way import settings, write_jpegs
from benchmarks.rows import MORE_IS_BETTER, Row, record, table
from benchmarks.stages import our_stages, usual_stages
from benchmarks.throughput import Peer, compare, fastest, rate_of
from benchmarks.usual_way import PLAIN, TRIED, UsualDataset
from benchmarks.workers import Peaks, probe
from dataset.readers import Record, read_competition
from dataset.switches import switches_of
from engine.flags import run_command

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("engine", "dataset", "model", "inference", "scripts")
@dataclass(frozen=True)
class Elsewhere(Case):
    """A case whose images lie in a given folder."""

    place: Path = Path()

    @property
    def root(self) -> Path:
        return self.place


TINY = Case(size=128, window=64, subjects=6, windows=1, batch=2, workers=0)


@pytest.fixture
def records(phantom_root: Path) -> list[Record]:
    return read_competition(phantom_root, "train")


def fake(rows: list[Row]) -> SimpleNamespace:
    """A benchmark that remembers how it was run."""
    runs: list[bool] = []
    return SimpleNamespace(DESCRIPTION="a fake", runs=runs, run=lambda quick: runs.append(quick) or rows)


def test_without_a_name_every_benchmark_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "loader" in command.names()
    assert [line.split()[0] for line in lines] == command.names()
    assert all(len(line) > len(name) + 10 for line, name in zip(lines, command.names(), strict=True))


@pytest.mark.parametrize("name", command.names())
def test_a_benchmark_has_one_line_and_a_run(name: str) -> None:
    module = command.load(name)
    assert module.DESCRIPTION and "\n" not in module.DESCRIPTION
    assert callable(module.run)


def test_an_unknown_name_names_the_near_one_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run_command(lambda: command.main(["loadr"]))
    assert left.value.code == 2
    assert "did you mean loader" in capsys.readouterr().err


def test_a_run_prints_a_table_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        Row("decode", "them", "ms", (3.0, 1.0, 2.0), (8.0, 4.0, 6.0), "One thread."),
        Row("decode", "a GPU", "samples/s", note="No GPU."),
    ]
    benchmark = fake(rows)
    monkeypatch.setattr(command, "load", lambda name: benchmark)
    assert command.main(["fake", "--quick", "--json", str(tmp_path / "new" / "out.json")]) == 0
    assert benchmark.runs == [True]
    screen = capsys.readouterr().out
    assert "2 (1..3)" in screen and "3.00" in screen and "not measured" in screen and "No GPU." in screen
    written = json.loads((tmp_path / "new" / "out.json").read_text("utf-8"))
    assert written["rows"] == [
        {"benchmark": "fake", "case": "decode", "peer": "them", "unit": "ms", "ours": 2.0, "theirs": 6.0, "ratio": 3.0},
        {
            "benchmark": "fake",
            "case": "decode",
            "peer": "a GPU",
            "unit": "samples/s",
            "ours": None,
            "theirs": None,
            "ratio": None,
        },
    ]
    assert written["spread"] == [
        {"case": "decode", "peer": "them", "ours": [1.0, 3.0], "theirs": [4.0, 8.0]},
        {"case": "decode", "peer": "a GPU", "ours": None, "theirs": None},
    ]
    assert written["notes"] == ["One thread.", "No GPU."]
    assert written["quick"] is True and written["date"]
    assert written["machine"]["cores"] >= 1 and {"cpu", "gpu", "packages"} <= written["machine"].keys()


def test_a_full_run_is_not_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = fake([Row("a", "b", "ms", (1.0,), (1.0,))])
    monkeypatch.setattr(command, "load", lambda name: benchmark)
    assert command.main(["fake"]) == 0
    assert benchmark.runs == [False]


@pytest.mark.parametrize("unit", MORE_IS_BETTER)
def test_the_ratio_is_above_1_where_we_are_ahead(unit: str) -> None:
    better, worse = ((6.0,), (2.0,)) if MORE_IS_BETTER[unit] else ((2.0,), (6.0,))
    assert Row("case", "peer", unit, better, worse).ratio == pytest.approx(3)
    assert Row("case", "peer", unit, worse, better).ratio == pytest.approx(1 / 3)
    assert Row("case", "peer", unit, better, better).ratio == 1


def test_rates_are_better_when_high_and_costs_when_low() -> None:
    assert {unit for unit, more in MORE_IS_BETTER.items() if more} == {"samples/s"}


@pytest.mark.parametrize(("ours", "theirs"), [((), (1.0,)), ((1.0,), ()), ((), ()), ((0.0,), (1.0,))])
def test_there_is_no_ratio_without_two_numbers(ours: tuple[float, ...], theirs: tuple[float, ...]) -> None:
    row = Row("case", "peer", "ms", ours, theirs)
    assert row.ratio is None
    assert record("x", [row])["rows"][0]["ratio"] is None


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="'furlongs' is not known: add it"):
        Row("case", "peer", "furlongs")


def test_a_note_is_shown_once() -> None:
    rows = [Row("a", "b", "ms", note="Same."), Row("c", "d", "ms", note="Same.")]
    assert table(rows).count("Same.") == 1


def test_sides_take_turns() -> None:
    calls: list[str] = []

    def side(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    numbers = in_turn({"us": lambda: side("us"), "them": lambda: side("them")}, 3)
    assert calls == ["us", "them"] * 3
    assert numbers == {"us": (1.0, 3.0, 5.0), "them": (2.0, 4.0, 6.0)}


def test_milliseconds_calls_once_and_is_not_negative() -> None:
    calls: list[int] = []
    assert milliseconds(lambda: calls.append(1)) >= 0
    assert calls == [1]


def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Six samples of 250 000 + 1 000 000 bytes."""
    for _ in range(3):
        yield torch.zeros(2, 1, 500, 500, dtype=torch.uint8), torch.zeros(2, 1, 500, 500, dtype=torch.int32)


def test_the_probe_counts_bytes_of_a_sample() -> None:
    peaks, sent = probe(batches)
    assert sent == pytest.approx(1.25)
    assert peaks == Peaks()  # without workers


def test_peaks_keep_the_highest_and_forgive_ended_processes() -> None:
    peaks = Peaks()
    peaks.look(os.getpid())
    assert peaks.pss >= peaks.uss > 1
    kept = Peaks(1e9, 1e9)
    kept.look(os.getpid())
    kept.look(2**22 + 1)  # beyond the largest process number
    assert kept == Peaks(1e9, 1e9)


def test_the_rate_counts_whole_epochs_of_growing_number() -> None:
    seen: list[int] = []

    def epochs(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        seen.append(epoch)
        return batches(epoch)

    rate = rate_of(epochs, 0.0)
    assert rate() > 0 and rate() > 0
    assert seen == [1, 2]  # 0 is the probe's


def test_comparing_gives_every_peer_its_four_rows() -> None:
    peers = [Peer("x", lambda: batches, "How."), Peer("y", lambda: batches)]
    rows = compare({"from nothing": lambda: batches}, peers, 3, 0)
    assert [row.peer for row in rows] == ["x"] * 4 + ["y"] * 4
    assert [row.unit for row in rows[:4]] == ["samples/s", "MB/sample", "MB", "MB"]
    assert len(rows[0].ours) == len(rows[0].theirs) == 3
    assert rows[0].note == "How." and rows[1].ratio == 1
    assert rows[0].ours == rows[4].ours  # measured once, in turn with both


def test_the_fastest_is_one_of_those_tried() -> None:
    name, rates = fastest({"a": lambda: batches, "b": lambda: batches}, 0)
    assert name in ("a", "b")
    assert rates.startswith("a: ") and "; b: " in rates


@pytest.mark.parametrize("knobs", [PLAIN, *TRIED], ids=lambda knobs: knobs.name)
def test_the_usual_way_reads_what_we_read(records: list[Record], knobs: usual_way.Knobs) -> None:
    image, masks = UsualDataset(records, TINY, knobs, augment=False)[0]
    assert image.shape == (3, 128, 128) and masks.shape == (29, 128, 128)
    assert image.dtype == masks.dtype == (torch.uint8 if knobs.uint8 else torch.float32)
    assert masks.any()
    same.check("usual", image, masks, records, TINY)


@pytest.mark.parametrize("knobs", [PLAIN, *TRIED], ids=lambda knobs: knobs.name)
def test_the_usual_way_makes_windows(records: list[Record], knobs: usual_way.Knobs) -> None:
    found = list(usual_way.build(records, TINY, knobs)(0))
    assert len(found) == len(records) * TINY.windows // TINY.batch
    for images, masks in found:
        assert images.shape == (2, 3, 64, 64) and masks.shape == (2, 29, 64, 64)
        assert set(masks.unique().tolist()) <= {0, 1}


def test_a_wrong_label_bit_or_grey_value_is_found(records: list[Record]) -> None:
    image, masks = UsualDataset(records, TINY, TRIED[0], augment=False)[0]
    wrong = masks.clone()
    wrong[28, 0, 0] = 1 - wrong[28, 0, 0]
    with pytest.raises(same.Different, match="usual"):
        same.check("usual", image, wrong, records, TINY)
    darker = image.clone()
    darker[0, 5, 5] += 1 / 255
    with pytest.raises(same.Different, match="usual"):
        same.check("usual", darker, masks, records, TINY)


def test_monai_reads_what_we_read_and_makes_windows(records: list[Record]) -> None:
    pytest.importorskip("monai", reason="`make setup` installs it")
    from benchmarks import monai_way

    whole = monai_way.read(records[0], TINY)
    same.check("MONAI", whole["image"], whole["label"], records, TINY)
    for way in monai_way.TRIED:
        images, masks = next(iter(monai_way.build(records, TINY, way)(0)))
        assert images.shape == (2, 1, 64, 64) and masks.shape == (2, 29, 64, 64)
        assert masks.dtype == (torch.uint8 if way.uint8 else torch.float32)
        assert set(masks.unique().tolist()) <= {0, 1}


def test_our_settings_hold_the_case_and_nothing_more() -> None:
    cfg = settings("PNG", TINY)
    assert (cfg.window.image_size, cfg.window.window_size, cfg.train.batch_size) == (128, 64, 2)
    assert switches_of(cfg).sliding
    on = {name for name, value in vars(cfg.augment).items() if name != "augment" and value[2] > 0}
    assert on == {"rotate", "scale", "brightness", "contrast", "gamma"}
    assert not {name for name, value in vars(settings("PNG", TINY, augment=False).augment).items() if value[-1] == 1.0}
    assert switches_of(settings("JPEG", TINY)).preprocessed and settings("disk cache", TINY).data.cache == "disk"


def test_both_sides_have_the_same_stages(records: list[Record]) -> None:
    ours, theirs = our_stages(records[0], TINY), usual_stages(records[0], TINY, TRIED[0])
    assert list(ours) == list(theirs)
    assert all(measure() > 0 for measure in ours.values())


def test_gpu_rows_are_null_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = gpu_rows.rows([], TINY, 1, 0.1)
    assert rows and all(row.ratio is None and not row.ours for row in rows)
    assert all("there is no GPU" in row.note for row in rows)
    assert machine.machine()["gpu"] is None


def test_gpu_rows_can_be_measured(records: list[Record], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On the CPU, where their numbers mean nothing."""
    if find_spec("nvidia.dali") is None:
        pytest.skip("nvidia-dali-cuda120 is not installed")
    shutil.copytree(records[0].image.parents[3], tmp_path / "set")
    case = Elsewhere(**vars(TINY), place=tmp_path / "set")
    write_jpegs(case)
    monkeypatch.setattr(gpu_rows, "MODELS", {"small": "model.model_simple_unet_quarter"})
    monkeypatch.setattr(gpu_rows, "STEPS", 2)
    rows = gpu_rows.measured(read_competition(case.root, "train"), case, "cpu", 1, 0.01)
    assert [(row.case, row.peer, row.unit) for row in rows] == gpu_rows.planned()
    assert all(row.ours for row in rows)
    assert rows[-1].ours == (0.0,), "DALI's CLAHE on the CPU is OpenCV's"
    assert all(0 <= row.ours[0] <= 100 for row in rows if row.unit == "%")


def test_the_product_never_imports_the_benchmarks() -> None:
    peer = re.compile(r"^\s*(import|from) benchmarks\b", re.MULTILINE)
    product = [*ROOT.glob("*.py"), *(p for part in PRODUCT for p in (ROOT / part).rglob("*.py"))]
    assert len(product) > 20
    assert not [path for path in product if peer.search(path.read_text("utf-8"))]
