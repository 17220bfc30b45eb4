"""engine/moves.py and the two commands that use it: nothing is lost, and all can be undone, wherever it was killed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import moves
from engine.files import FileProblem
from engine.moves import Step, carry_out, journal_beside, steps_back, undo
from inference.probs import ImageProbs, ProbsWriter
from scripts import move_annotated, select_frames_for_manual
from scripts.select_frames_for_manual import brightness, uncertainty

ROOT = Path(__file__).resolve().parent.parent


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def folders_of(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_dir()}


def three(root: Path, action: moves.Action = "move") -> list[Step]:
    """Steps of three files into a new folder with another in it."""
    steps = []
    for name in ("a.png", "b.png", "x/c.png"):
        (root / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "from" / name).write_text(name)
        steps.append(Step(action, root / "from" / name, root / "to" / "here" / name))
    return steps


@pytest.mark.parametrize("action", ["move", "copy"])
def test_there_and_back(action: moves.Action, tmp_path: Path) -> None:
    steps, journal = three(tmp_path, action), tmp_path / "j.json"
    before, folders = files_of(tmp_path), folders_of(tmp_path)
    carry_out(steps, journal)
    assert [step.target.read_text() for step in steps] == ["a.png", "b.png", "x/c.png"]
    assert [step.source.exists() for step in steps] == [action == "copy"] * 3
    assert undo(journal) == 3
    assert {name: data for name, data in files_of(tmp_path).items() if name != "j.json.undone"} == before
    assert folders_of(tmp_path) == folders, "folders that were made are gone"
    with pytest.raises(FileProblem, match=r"j\.json cannot be read \(No such file or directory\)"):
        undo(journal)


class Killed(BaseException):
    """As good as kill -9: nothing catches it."""


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.sampled_from(["move", "copy"]), st.integers(0, 12), st.integers(0, 12), st.booleans())
def test_a_kill_anywhere_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, action: moves.Action, first: int, second: int, links: bool
) -> None:
    """Killed before any call that changes a file, then undone, which is killed too, and undone again."""
    root = tmp_path_factory.mktemp("kill")
    steps, journal = three(root, action), root / "j.json"
    before = files_of(root)

    def killed_after(count: int, work: object, *args: object) -> None:
        calls = iter(range(count))
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in ((os, "link"), (os, "replace"), (Path, "unlink"), (Path, "rename"), (Path, "rmdir")):
                real = getattr(owner, name)

                def call(*words: object, _real: object = real, _name: str = name, **more: object) -> object:
                    if _name == "link" and not links:
                        raise OSError(errno.EPERM, "no links here")
                    if str(words[0]).endswith(".part") and _name == "unlink":
                        return _real(*words, **more)  # type: ignore[operator]
                    if next(calls, None) is None:
                        raise Killed
                    return _real(*words, **more)  # type: ignore[operator]

                patch.setattr(owner, name, call)
            with contextlib.suppress(Killed):
                work(*args)  # type: ignore[operator]

    killed_after(first, carry_out, steps, journal)
    held = set(files_of(root).values())
    assert held >= set(before.values()), "each file is somewhere"
    if journal.exists():
        killed_after(second, undo, journal)
        if journal.exists():
            undo(journal)
    left = {name: data for name, data in files_of(root).items() if not name.startswith("j.json")}
    assert {name: data for name, data in left.items() if not name.endswith(".part")} == before


def test_nothing_is_overwritten_or_half_begun(tmp_path: Path) -> None:
    steps = three(tmp_path)
    steps[2].target.parent.mkdir(parents=True)
    steps[2].target.write_text("mine")
    before = files_of(tmp_path)
    with pytest.raises(FileProblem, match=r"c\.png exists or is wanted twice, and is never overwritten"):
        carry_out(steps, tmp_path / "j.json")
    with pytest.raises(FileProblem, match="exists or is wanted twice"):
        carry_out([steps[0], Step("move", steps[1].source, steps[0].target)], tmp_path / "j.json")
    steps[0].source.unlink()
    with pytest.raises(FileProblem, match=r"a\.png is no file any more: run the command again"):
        carry_out(steps[:1], tmp_path / "j.json")
    assert files_of(tmp_path) == {name: data for name, data in before.items() if name != "from/a.png"}


def test_a_target_that_appears_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, journal = three(tmp_path), tmp_path / "j.json"
    before, real = files_of(tmp_path), moves._do

    def late(step: Step) -> None:
        if step.target.name == "b.png":
            step.target.write_text("theirs")
        real(step)

    monkeypatch.setattr(moves, "_do", late)
    with pytest.raises(FileProblem, match=r"b\.png has appeared meanwhile and is never overwritten"):
        carry_out(steps, journal)
    monkeypatch.setattr(moves, "_do", real)
    assert steps_back(journal)[1] == [f"{steps[1].target} stays: {steps[1].source} is there too, and is another file."]
    assert undo(journal) == 1 and journal.exists(), "the journal waits until all is back"
    steps[1].target.unlink()
    assert undo(journal) == 0 and not journal.exists()
    assert {name: data for name, data in files_of(tmp_path).items() if not name.startswith("j.json")} == before


def test_what_people_have_done_since_stays(tmp_path: Path) -> None:
    steps, journal = three(tmp_path, "copy"), tmp_path / "j.json"
    carry_out(steps, journal)
    steps[0].target.write_text("painted on")
    steps[1].source.unlink()
    steps[2].target.unlink()
    steps[2].source.unlink()
    assert undo(journal) == 0
    assert steps_back(journal)[1] == [
        f"{steps[2].source} is neither there nor at {steps[2].target}: it was moved or deleted since.",
        f"{steps[1].target} stays: {steps[1].source}, of which it is a copy, is gone.",
        f"{steps[0].target} stays: {steps[0].source} is there too, and is another file.",
    ]
    assert steps[0].target.read_text() == "painted on" and steps[1].target.exists()


def test_links_are_moved_as_such(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_text("real")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    carry_out([Step("move", tmp_path / "link.png", tmp_path / "to" / "link.png")], tmp_path / "j.json")
    assert (tmp_path / "to" / "link.png").is_symlink() and (tmp_path / "real.png").read_text() == "real"
    assert undo(tmp_path / "j.json") == 1 and (tmp_path / "link.png").is_symlink()


def test_a_folder_that_became_a_link_loses_nothing(tmp_path: Path) -> None:
    steps, journal = three(tmp_path, "copy"), tmp_path / "j.json"
    carry_out(steps, journal)
    (tmp_path / "to" / "here").rename(tmp_path / "old")
    (tmp_path / "to" / "here").symlink_to(tmp_path / "from")
    before = files_of(tmp_path)
    assert undo(journal) == 0 and files_of(tmp_path) == before


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON", '{"format": "moves-1", "files": [[1]], "folders": []}'])
def test_files_that_are_no_journal(text: str, tmp_path: Path) -> None:
    (tmp_path / "j.json").write_text(text)
    with pytest.raises(FileProblem, match=r"j\.json is no journal of moved files: give the one that was printed"):
        undo(tmp_path / "j.json")


def test_journals_have_numbers_of_their_own(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        path = journal_beside(tmp_path / "to")
        names.append(path.name)
        path.write_text("")
        path.rename(path.with_name(path.name + moves.UNDONE)) if len(names) == 1 else None
    assert names == [f"to.journal-{n}.json" for n in (1, 2, 3)]


# move_annotated.py


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five images, labelled in all ways but two, and a mask of none of them."""
    root = tmp_path / "data"
    for name in ("1.jpg", "2.png", "3.png", "s/4.png", "5.png", "6.png", "1-2.png"):
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    for name in ("1.png", "2_mask.png", "3-0.png", "99.png", "s/4_mask.png"):
        path = root / "masks_manual" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mask")
    (root / "images" / "5.json").write_text("{}")
    return root


def test_images_without_labels_are_moved_and_come_back(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(data)
    assert move_annotated.main(["--data_root", str(data), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert f"move {data}/images/6.png -> {data}/raw_unlabelled/6.png\n" in said
    assert said.endswith("dry run: 2 files, nothing was done\n") and files_of(data) == before
    assert move_annotated.main(["--data_root", str(data)]) == 0
    journal = data / "raw_unlabelled.journal-1.json"
    assert capsys.readouterr().out == f"to undo this: --undo {journal}\n2 files are in {data}/raw_unlabelled\n"
    assert sorted(path.name for path in (data / "raw_unlabelled").iterdir()) == ["1-2.png", "6.png"]
    assert move_annotated.main(["--data_root", str(data)]) == 0
    assert capsys.readouterr().out == "nothing to do\n"
    assert move_annotated.main(["--undo", str(journal), "--dry_run"]) == 0
    assert "dry run: 2 files, nothing was undone" in capsys.readouterr().out and journal.exists()
    assert move_annotated.main(["--undo", str(journal)]) == 0
    assert capsys.readouterr().out == "2 files undone\n"
    assert {name: data for name, data in files_of(data).items() if not name.endswith(".undone")} == before
    assert move_annotated.main(["--data_root", str(data)]) == 0
    assert "raw_unlabelled.journal-2.json" in capsys.readouterr().out


def test_undoing_in_part_is_an_error(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert move_annotated.main(["--data_root", str(data)]) == 0
    (data / "images" / "6.png").write_text("another one")
    capsys.readouterr()
    assert move_annotated.main(["--undo", str(data / "raw_unlabelled.journal-1.json")]) == 1
    said = capsys.readouterr().out
    assert said.startswith("1 files undone\n") and "6.png stays" in said
    assert (data / "images" / "6.png").read_text() == "another one"


def test_a_wrong_folder_moves_nothing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(data)
    (data / "images" / "5.json").rename(data / "5.json")
    assert move_annotated.main(["--data_root", str(data), "--mask_dir", "mask"]) == 1
    assert "mask holds no label of any image in" in capsys.readouterr().err
    assert move_annotated.main(["--data_root", str(data), "--image_dir", "image"]) == 1
    assert "image holds no images: set --data_root and --image_dir." in capsys.readouterr().err
    (data / "5.json").rename(data / "images" / "5.json")
    assert files_of(data) == before


# select_frames_for_manual.py


def test_brightness_is_the_mean_of_the_brightest_of_the_band() -> None:
    image = np.zeros((100, 40), np.uint8)
    image[:30] = image[60:] = 255  # outside of the band
    assert brightness(image) == 0
    image[30:60].reshape(-1)[:30] = 200  # of 1200 pixels in the band the brightest 60 count
    assert brightness(image) == 100
    assert brightness(np.full((1, 1), 7, np.uint8)) == 7


def test_uncertainty_is_between_sure_and_doubtful() -> None:
    def of(*values: tuple[int, int]) -> float:
        histogram = np.zeros((1, 256), np.int64)
        histogram[0, 0] = 1_000_000
        for q, count in values:
            histogram[0, q] += count
        return uncertainty(histogram)

    assert of() == 0 and of((255, 5000)) == 0
    assert of((255, 5000), (128, 500)) < of((255, 5000), (128, 900)) < of((100, 5000)) == pytest.approx(1)
    assert of((100, 2)) < 0.01, "two doubtful pixels are no bone"
    assert of((128, 5000)) == pytest.approx(127 / 128)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Twelve frames, brighter by number in the band, the other way round elsewhere."""
    root = tmp_path / "data"
    (root / "raw_unlabelled").mkdir(parents=True)
    for n in range(12):
        frame = np.full((40, 30), 240 - 10 * n, np.uint8)
        frame[12:24] = 10 * n
        cv2.imwrite(str(root / "raw_unlabelled" / f"{n}.png"), frame)
    return root


def test_the_brightest_frames_are_copied(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, flags = files_of(raw), ["--data_root", str(raw), "--n", "3"]
    assert select_frames_for_manual.main([*flags, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("brightness of 12 images, the best 3:\n  110.0000  11.png\n  100.0000  10.png\n")
    assert "dry run: 3 files" in said and files_of(raw) == before
    assert select_frames_for_manual.main(flags) == 0
    assert sorted(path.name for path in (raw / "to_label").iterdir()) == ["10.png", "11.png", "9.png"]
    assert select_frames_for_manual.main(flags) == 0, "the next ones"
    assert len(list((raw / "to_label").iterdir())) == 6
    for number in (2, 1):
        assert select_frames_for_manual.main(["--undo", str(raw / f"to_label.journal-{number}.json")]) == 0
    assert {name: data for name, data in files_of(raw).items() if not name.endswith(".undone")} == before
    assert not (raw / "to_label").exists()


def store(folder: Path, doubts: dict[str, int]) -> Path:
    """Probabilities of one class: 100 sure pixels, and so many doubtful ones."""
    writer = ProbsWriter(folder, ["bone"], ["sha"], "logits")
    for name, doubtful in doubts.items():
        values = np.zeros((40, 30), np.uint8)
        values.reshape(-1)[:100] = 255
        values.reshape(-1)[100 : 100 + doubtful] = 128
        counts = np.bincount(values.reshape(-1), minlength=256)[None]
        box = np.array([[0, 0, 40, 30]], np.int32)
        stem = Path(name).stem
        writer.write(ImageProbs(f"{stem}/{stem}", name, 40, 30, ("bone",), box, (values,), None, counts, None))
    return folder


def test_frames_are_chosen_by_uncertainty(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probs = store(tmp_path / "probs", {f"{n}.png": (7 * n) % 12 for n in range(12)})
    flags = ["--data_root", str(raw), "--n", "2", "--probs", str(probs)]
    assert select_frames_for_manual.main(flags) == 0
    assert sorted(path.name for path in (raw / "to_label").iterdir()) == ["10.png", "5.png"], "7 n mod 12 is 10 and 11"
    assert capsys.readouterr().out.startswith("uncertainty of 12 images, the best 2:\n")
    next(probs.rglob("3.probs")).unlink()
    assert select_frames_for_manual.main(flags) == 1
    assert "3.png (1 in all): predict them with --save_probs." in capsys.readouterr().err


def test_selection_refuses(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        select_frames_for_manual.main(["--data_root", str(raw), "--n", "0"])
    assert stop.value.code == 2 and "n is 0, but must be 1 or more." in capsys.readouterr().err
    assert select_frames_for_manual.main(["--data_root", str(raw), "--raw_dir", "none"]) == 1
    assert "none holds no images that are not in" in capsys.readouterr().err
    (raw / "raw_unlabelled" / "0.png").write_bytes(b"")
    assert select_frames_for_manual.main(["--data_root", str(raw)]) == 1
    assert "0.png is empty" in capsys.readouterr().err and not (raw / "to_label").exists()


@pytest.mark.parametrize("script", ["move_annotated", "select_frames_for_manual"])
def test_commands_run_inside_their_folder_and_start_fast(script: str) -> None:
    command = [sys.executable, "-X", "importtime", f"{script}.py", "--help"]
    done = subprocess.run(command, cwd=ROOT / "scripts", capture_output=True, text=True, check=True)
    assert "--dry_run" in done.stdout and "--undo" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "numba", "cv2", "numpy"}


def test_journals_are_plain_json(tmp_path: Path) -> None:
    carry_out(three(tmp_path)[:1], tmp_path / "j.json")
    told = json.loads((tmp_path / "j.json").read_text())
    assert told["files"] == [["move", f"{tmp_path}/from/a.png", f"{tmp_path}/to/here/a.png"]]
    assert told["folders"] == [f"{tmp_path}/to", f"{tmp_path}/to/here"]
