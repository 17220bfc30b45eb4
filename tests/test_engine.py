"""engine/: whole files, progress, metrics.csv, packed bits."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from config import Config, ConfigProblem
from engine import files, progress
from engine.bits import n_words, pack, unpack
from engine.devices import half_kinds, half_type, pick_device
from engine.files import FileProblem, atomic_path, is_disk_full, write_json, write_text
from engine.record import COLUMNS, Metrics
from engine.settings import replace

DISK_FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 128 vs 64"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
]


def raiser(error: BaseException) -> Callable[..., Any]:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    return fail


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["link", "no link"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """File systems with and without hard links (exFAT, some network and FUSE ones)."""
    if request.param == "no link":
        monkeypatch.setattr(os, "link", raiser(OSError(errno.EPERM, "Operation not permitted")))
    return str(request.param)


# --- files that are whole or absent


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_written_file_is_there_alone_with_the_users_mode(tmp_path: Path, overwrite: bool, links: str) -> None:
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "new" / "x.bin", overwrite=overwrite) as temporary:
            assert temporary.parent == tmp_path / "new"  # another file system could not be renamed from
            assert not (tmp_path / "new" / "x.bin").exists()
            temporary.write_bytes(b"abc")
    finally:
        assert os.umask(before) == 0o027
    assert names_in(tmp_path / "new") == ["x.bin"]
    assert (tmp_path / "new" / "x.bin").read_bytes() == b"abc"
    assert (tmp_path / "new" / "x.bin").stat().st_mode & 0o777 == 0o640


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
    assert path.read_text() == "half"


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), OSError(errno.EIO, "I/O")])
def test_an_error_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, error: BaseException, overwrite: bool) -> None:
    path = tmp_path / "x.txt"
    if overwrite:
        path.write_text("old")
    with pytest.raises(type(error)) as raised, atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_text("half")
        raise error
    assert raised.value is error
    assert names_in(tmp_path) == (["x.txt"] if overwrite else [])
    assert not overwrite or path.read_text() == "old"


def test_an_existing_file_is_never_replaced_unless_asked(tmp_path: Path, links: str) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(FileProblem, match=re.escape(f"{path} exists")):
        write_text(path, "new", overwrite=False)
    assert (path.read_text(), names_in(tmp_path)) == ("old", ["x.txt"])


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path, links: str) -> None:
    path = tmp_path / "x.txt"
    with (
        pytest.raises(FileProblem, match=re.escape(f"{path} exists")),
        atomic_path(path, overwrite=False) as temporary,
    ):
        temporary.write_text("mine")
        path.write_text("theirs")
    assert (path.read_text(), names_in(tmp_path)) == ("theirs", ["x.txt"])


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
def test_hard_links_are_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(os, "link", raiser(OSError(code, os.strerror(code))))
    write_text(tmp_path / "x.txt", "new", overwrite=False)
    assert ((tmp_path / "x.txt").read_text(), names_in(tmp_path)) == ("new", ["x.txt"])


def test_without_links_a_failed_rename_leaves_no_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", raiser(OSError(errno.EPERM, "Operation not permitted")))
    monkeypatch.setattr(os, "replace", raiser(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        write_text(tmp_path / "x.txt", "new", overwrite=False)
    assert names_in(tmp_path) == []


def test_other_errors_of_linking_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", raiser(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        write_text(tmp_path / "x.txt", "new", overwrite=False)
    assert names_in(tmp_path) == []


def test_the_callers_own_file_exists_error_is_not_taken_for_ours(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError), atomic_path(tmp_path / "x.txt"):
        (tmp_path / "other").mkdir()
        (tmp_path / "other").mkdir()
    assert names_in(tmp_path) == ["other"]


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("error", DISK_FULL, ids=repr)
def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path, error: Exception, overwrite: bool) -> None:
    path = tmp_path / "last.pt"
    if overwrite:
        path.write_text("old")
    with (
        pytest.raises(FileProblem, match=re.escape(f"disk is full: {path} was not written")),
        atomic_path(path, overwrite=overwrite) as temporary,
    ):
        temporary.write_text("half")
        raise error
    assert names_in(tmp_path) == (["last.pt"] if overwrite else [])
    assert not overwrite or path.read_text() == "old"


@pytest.mark.parametrize("function", ["os.fsync", "os.replace", "tempfile.mkstemp", "pathlib.Path.write_text"])
def test_the_disk_may_be_full_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"old")
    monkeypatch.setattr(function, raiser(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(FileProblem, match=re.escape(str(path))):
        write_json(path, {"a": 1})
    monkeypatch.undo()
    assert (path.read_bytes(), names_in(tmp_path)) == (b"old", ["x.json"])


def test_other_errors_are_no_full_disk() -> None:
    for error in (OSError(errno.EACCES, "x"), RuntimeError("shapes differ"), ValueError("unexpected pos")):
        assert not is_disk_full(error)


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"hand": "手", "lr": 1e-4, "list": [1, None, True]}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text("utf-8")
    assert json.loads(text) == value
    assert "手" in text
    assert text.endswith("}\n")


def test_the_folder_is_flushed_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a power loss can lose the rename; the file comes first, or the name could point at nothing."""
    done: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        real_fsync(handle)

    def rename(source: Any, target: Any) -> None:
        done.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(files.os, "replace", rename)
    write_text(tmp_path / "x", "new")
    assert done == ["file", "rename", "folder"]


# --- progress


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_yields_all_items_in_order(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    assert list(progress.progress(range(5), "reading")) == [0, 1, 2, 3, 4]
    assert list(progress.progress(iter("abc"), "reading")) == ["a", "b", "c"]
    assert list(progress.progress([], "reading")) == []
    said = capsys.readouterr()
    assert said.out == ""
    assert ("reading" in said.err) == terminal  # a quick phase leaves no line in a log


def test_progress_is_plain_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    list(progress.progress(range(6), "epoch 1/2", unit="steps"))
    list(progress.progress(iter(range(3)), "reading", unit="files"))
    list(progress.progress(iter(range(3)), "known", total=3))
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1/2: 2/6 steps, 0.10 steps/s",
        "epoch 1/2: 4/6 steps, 0.10 steps/s",
        "reading: 2 files, 0.10 files/s",
        "known: 2/3 it, 0.10 it/s",
    ]


def test_progress_reads_one_item_ahead_at_most() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for i in range(5):
            read.append(i)
            yield i

    for item in progress.progress(items(), "x", total=5):
        assert read[-1] == item


# --- metrics.csv


def row(epoch: int, **changes: float | None) -> dict[str, float | None]:
    values: dict[str, float | None] = dict.fromkeys(COLUMNS, 0.5)
    return values | {"epoch": epoch, "step": epoch * 10} | changes


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_are_whole_after_every_row(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.csv"
    metrics = Metrics(path, 0)
    assert not path.exists()
    for epoch in range(3):
        metrics.add(**row(epoch, val_dice=None if epoch == 1 else 0.25, lr=1.23456789e-5))
        assert [r["epoch"] for r in read_rows(path)] == [str(e) for e in range(epoch + 1)]
    rows = read_rows(path)
    assert tuple(rows[0]) == COLUMNS
    assert [r["val_dice"] for r in rows] == ["0.25", "", "0.25"]
    assert float(rows[0]["lr"]) == pytest.approx(1.23456789e-5, rel=1e-5)
    assert names_in(path.parent) == ["metrics.csv"]


@pytest.mark.parametrize("first", [0, 1, 3, 9])
def test_resuming_drops_the_rows_that_are_computed_again(tmp_path: Path, first: int) -> None:
    path = tmp_path / "metrics.csv"
    metrics = Metrics(path, 0)
    for epoch in range(4):
        metrics.add(**row(epoch, val_dice=None if epoch == 1 else 0.25))
    before = read_rows(path)
    resumed = Metrics(path, first)
    assert read_rows(path) == before
    resumed.add(**row(first))
    after = read_rows(path)
    assert [int(r["epoch"]) for r in after] == [e for e in range(4) if e < first] + [first]
    assert after[:-1] == before[:first]


def test_large_steps_are_not_rounded(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.csv", 0)
    metrics.add(**row(1, step=12_345_678))
    assert read_rows(tmp_path / "metrics.csv")[0]["step"] == "12345678"


def test_a_forgotten_or_unknown_column_is_our_own_mistake(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.csv", 0)
    with pytest.raises(AssertionError):
        metrics.add(epoch=1)
    with pytest.raises(AssertionError):
        metrics.add(**row(1), speed=3.0)


# --- packed bits and the device


@pytest.mark.parametrize("classes", [1, 29, 31, 32, 33, 64, 65])
def test_bits_come_back(classes: int) -> None:
    maps = torch.randn(classes, 5, 7, generator=torch.Generator().manual_seed(classes))
    bits = pack(maps, 0.25)
    assert (bits.dtype, tuple(bits.shape)) == (torch.int32, (n_words(classes), 5, 7))
    assert torch.equal(unpack(bits[None], classes)[0], maps > 0.25)


def test_every_class_may_have_its_own_threshold() -> None:
    maps = torch.zeros(33, 2, 2)
    limits = torch.where(torch.arange(33) % 3 == 0, -1.0, 1.0)
    assert unpack(pack(maps, limits)[None], 33)[0, :, 0, 0].tolist() == [k % 3 == 0 for k in range(33)]
    assert not pack(maps, 0.0).any()  # above, not at


def test_the_device_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def device(name: str) -> str:
        return pick_device(replace(Config(), {"device": name}))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device("auto") == device("cpu") == "cpu"
    with pytest.raises(ConfigProblem, match="--device cpu"):
        device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (device("auto"), device("cuda"), device("cpu")) == ("cuda", "cuda", "cpu")


def test_half_precision_is_where_it_is_asked_for_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds(**values: bool) -> tuple[str, ...]:
        return half_kinds(replace(Config(), values).train)

    for avx, amx in ((True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert kinds() == ("cuda",)
        assert kinds(amp_cpu=True) == ("cuda", "cpu")
        assert kinds(amp=False, amp_cpu=True) == ("cpu",)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert kinds(amp=False, amp_cpu=True) == ()
    assert half_type("cpu") is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert half_type("cuda") is torch.float16
