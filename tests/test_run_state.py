"""engine/run_state.py: the newest whole state wins, whatever was killed, cut or flipped; code never runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import run_state
from engine.files import FileProblem, remove_leftovers
from engine.run_state import FORMAT, LAST, MANIFEST, PREVIOUS, newest_state, read_state, write_state


def state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {"position": {"step": step}, "network": {"weight": torch.randn(500, generator=generator)}}


def step_of(found: dict[str, Any]) -> int:
    step: int = found["position"]["step"]
    assert torch.equal(found["network"]["weight"], state(step)["network"]["weight"])
    return step


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (1, 2, 3):
        write_state(tmp_path, state(step))
    return tmp_path


def test_the_last_two_are_kept_and_the_last_wins(folder: Path) -> None:
    assert sorted(os.listdir(folder)) == [LAST, MANIFEST, PREVIOUS]
    found, said = newest_state(folder)
    assert step_of(found) == 3 and said == f"Resuming from {folder / LAST}."
    assert step_of(read_state(folder / PREVIOUS)) == 2


def test_a_damaged_one_gives_way_to_the_one_before_it(folder: Path) -> None:
    path = folder / LAST
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):  # also in bytes that torch and zip don't look at
        flipped = bytearray(whole)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        found, said = newest_state(folder)
        assert step_of(found) == 2
        assert f"{path} is empty, truncated or damaged" in said and said.endswith(f"Resuming from {folder / PREVIOUS}.")
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert step_of(newest_state(folder)[0]) == 2
    path.unlink()
    found, said = newest_state(folder)
    assert step_of(found) == 2 and "does not exist" in said


def test_nothing_whole_names_both(folder: Path) -> None:
    for name in (LAST, PREVIOUS):
        (folder / name).write_bytes(b"PK broken")
    with pytest.raises(FileProblem, match=r"last\.pt is empty.*previous\.pt is empty"):
        newest_state(folder)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="nothing to resume: leave out --resume"):
        newest_state(tmp_path)


os_replace = os.replace


class Killed(BaseException):
    """kill -9 in the middle of a write: nothing after it happens."""


@pytest.mark.parametrize("victim", ["torch.save", "write_json", "os.replace"])
def test_killed_in_every_phase_of_a_write(victim: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is done up to a call and no further, a whole state is found, and the next write works."""

    def killed(*args: Any, **kwargs: Any) -> None:
        raise Killed

    owner, name = {
        "torch.save": (torch, "save"),
        "write_json": (run_state, "write_json"),
        "os.replace": (os, "replace"),
    }[victim]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(Killed):
            write_state(folder, state(4))
    assert step_of(newest_state(folder)[0]) == 3
    write_state(folder, state(5))
    assert step_of(newest_state(folder)[0]) == 5


def test_killed_between_the_two_renames(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.replace, []

    def replace(source: Any, target: Any) -> None:
        calls.append(target)
        if Path(target).name == LAST:
            raise Killed
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            write_state(folder, state(4))
    assert not (folder / LAST).exists()
    assert step_of(newest_state(folder)[0]) == 3


def test_many_killed_writes_in_a_row_lose_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        patch.setattr(run_state.os, "replace", lambda source, target: killed() if Path(target).name == PREVIOUS else (
            os_replace(source, target)
        ))
        for step in range(4, 24):
            with pytest.raises(Killed):
                write_state(folder, state(step))
    assert step_of(newest_state(folder)[0]) == 3
    assert step_of(read_state(folder / PREVIOUS)) == 2


def test_without_its_manifest_a_file_is_taken_by_its_own_checksums(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    assert step_of(newest_state(folder)[0]) == 3
    data = bytearray((folder / LAST).read_bytes())
    data[len(data) // 2] ^= 255
    (folder / LAST).write_bytes(data)
    assert step_of(newest_state(folder)[0]) == 2
    (folder / MANIFEST).write_text("no JSON")
    assert step_of(newest_state(folder)[0]) == 2


def test_another_format(tmp_path: Path) -> None:
    torch.save({"format": "other", "x": 1}, tmp_path / LAST)
    with pytest.raises(FileProblem, match="no training state of this framework"):
        newest_state(tmp_path)
    torch.save({"format": FORMAT}, tmp_path / LAST)
    assert newest_state(tmp_path)[0] == {"format": FORMAT}


def test_leftovers_of_killed_writes_are_removed(folder: Path) -> None:
    (folder / ".last.pt.abc.part").write_bytes(b"x" * 1000)
    (folder / "inference" / ".test.abc.part").mkdir(parents=True)
    (folder / "inference" / ".test.abc.part" / "submission.csv").write_text("half a")
    remove_leftovers(folder)
    assert os.listdir(folder / "inference") == []
    (folder / "inference").rmdir()
    assert sorted(os.listdir(folder)) == [LAST, MANIFEST, PREVIOUS]
