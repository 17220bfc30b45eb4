"""inference/job.py: what a folder holds, what resuming does, what is refused."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from test_inference_kill import CFG, CLASSES, NAMES, RECORDS, infer, prediction, tree

from config import HAND_BONES, Config
from dataset.labels import read_label
from dataset.readers import Record, read_competition
from engine import settings
from engine.files import FileProblem
from inference import part_file
from inference.job import CSV_NAME, JOB_NAME, Identity, Job
from inference.metrics import DiceTable, count_bits, dice_from_counts
from inference.part_file import ALL, Part
from inference.probs import ProbsFolder
from inference.scores import Scores
from inference.submission import SubmissionWriter

PLAIN = settings.replace(Config(), {"classes": CLASSES})
PARTIAL = "out.partial"


def job(folder: Path, cfg: Config = CFG, records: list[Record] = RECORDS, **values: Any) -> Job:
    return Job(folder, records, cfg, ["sha"], "probs", **values)


def predicted(record: Record, image: Any, bits: NDArray[np.int32], probs: Any) -> Any:
    """A prediction with nothing found."""
    return SimpleNamespace(record=record, image=image, bits=bits, probs=probs, findings=(), hands=(), cutting=0.0)


def stopped(folder: Path, count: int, cfg: Config = CFG, **values: Any) -> Path:
    """An inference that failed after `count` images; its working folder."""
    with pytest.raises(KeyError), job(folder, cfg, **values) as begun:
        for record in begun.todo[:count]:
            begun.write(prediction(record))
        raise KeyError
    return folder.with_name(PARTIAL)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    assert infer(folder)
    return folder


# --- what is written


def test_everything_that_is_asked_for(tmp_path: Path) -> None:
    image = np.full((60, 60), 90, np.uint8)
    asked = {"save_masks": "class", "save_overlay": True, "classes": ("a", "b", "c"), "shard": "1/1"}
    cfg = settings.replace(CFG, asked)
    with job(tmp_path / "out", cfg) as begun:
        assert begun.todo == RECORDS
        for record in begun.todo:
            bits = np.zeros((1, 60, 60), np.int32)
            bits[0, 10:30, 20:40] = 5
            probs = dataclasses.replace(prediction(record).probs, classes=("a", "b", "c"))
            begun.write(predicted(record, image, bits, probs))
        results = begun.finish()
    assert results is not None and results.folder == tmp_path / "out" and results.table is results.scores is None
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "no working folder stays"
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        CSV_NAME, "bones.csv", "config.json", JOB_NAME, "masks", "overlays", "probs",
    }
    masks = [cv2.imread(str(out / "masks" / Path(NAMES[0]).stem / f"{label}.png"), 0) for label in "abc"]
    assert [int((mask == 255).sum()) for mask in masks] == [400, 0, 400]
    assert sorted(path.stem for path in (out / "overlays").iterdir()) == sorted(Path(name).stem for name in NAMES)
    assert ProbsFolder(out / "probs").keys() == tuple(sorted(record.key for record in RECORDS))
    saved, _ = settings.from_record(json.loads((out / "config.json").read_text()), "config.json")
    assert saved == settings.replace(cfg, {"shard": ""}), "the same for all parts"


def test_the_csv_is_the_writers(undisturbed: Path, tmp_path: Path) -> None:
    with SubmissionWriter(tmp_path / "x.csv", NAMES, CLASSES) as writer:
        for record in RECORDS:
            writer.write(record.name, prediction(record).bits)
    assert (tmp_path / "x.csv").read_bytes() == (undisturbed / CSV_NAME).read_bytes()


def test_findings_are_listed_in_order(undisturbed: Path) -> None:
    with open(undisturbed / "bones.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    expected = [
        [record.name, found.label, "split", "2", "50 25"]
        for record in RECORDS
        for found in prediction(record).findings
    ]
    assert rows == [["image_name", "class", "what", "components", "areas"], *expected] and len(rows) > 4


def test_only_what_is_asked_for(tmp_path: Path) -> None:
    with job(tmp_path / "out", PLAIN) as begun:
        for record in begun.todo:
            begun.write(prediction(record))
        begun.finish()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {CSV_NAME, "config.json", JOB_NAME}


@pytest.mark.parametrize("metrics", [(), ("iou", "confusion")])
def test_scores_are_those_of_the_masks(metrics: tuple[str, ...], phantom_root: Path, tmp_path: Path) -> None:
    records = read_competition(phantom_root, "test")
    cfg = settings.replace(Config(), {"metrics": metrics})
    table, scores = DiceTable(HAND_BONES), Scores(HAND_BONES, metrics, 3.0)
    with job(tmp_path / "out", cfg, records) as begun:
        for record in begun.todo:
            truth = read_label(record, HAND_BONES, 128, 128)
            bits = np.roll(truth, 2, 1)
            begun.write(predicted(record, None, bits, None))
            table.add(record.key, dice_from_counts(count_bits(bits, truth, 29)))
            if metrics:
                scores.add(record.key, bits, truth)
        results = begun.finish()
    assert results is not None and results.table is not None
    assert 0.3 < results.table.mean() == table.mean() < 0.99
    assert (tmp_path / "out/per_class.csv").is_file()
    names = {path.name for path in (tmp_path / "out").iterdir()} & {"scores.csv", "confusion.csv"}
    if metrics:
        assert results.scores is not None and results.scores.text() == scores.text()
        assert names == {"scores.csv", "confusion.csv"}
    else:
        assert results.scores is None and names == set()
    with job(tmp_path / "out", cfg, records, resume=True) as again:
        complete = again.finish()
    assert complete is not None and complete.table is not None and complete.table.mean() == table.mean()


def test_records_of_which_one_has_no_label_have_no_score(phantom_root: Path, tmp_path: Path) -> None:
    labelled = read_competition(phantom_root, "test")[:2]
    records = [labelled[0], dataclasses.replace(labelled[1], label=None)]
    with job(tmp_path / "out", PLAIN, records) as begun:
        for record in begun.todo:
            bits = np.zeros((1, 128, 128), np.int32)
            begun.write(predicted(record, None, bits, None))
        results = begun.finish()
    assert results is not None and results.table is None and not (tmp_path / "out/per_class.csv").exists()


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    bits = np.zeros((1, 256, 256), np.int32)
    bits[0, ::2, ::2] = 7  # three masks of 16 384 runs: 0.4 MB of text an image
    records = [Record(Path(f"/x/{i}.png"), None, str(i)) for i in range(24)]

    def write(some: list[Record]) -> None:
        for record in some:
            begun.write(predicted(record, None, bits, None))

    with job(tmp_path / "out", PLAIN, records) as begun:
        write(records[:4])
        tracemalloc.start()
        write(records[4:])
        kept, peak = tracemalloc.get_traced_memory()
        begun.finish()
        merged = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    size = (tmp_path / "out" / CSV_NAME).stat().st_size
    assert size > 9e6 and kept < size / 100
    assert max(peak, merged) < size / 2


# --- what resuming keeps


@pytest.mark.parametrize("count", range(1, len(NAMES) + 1))
def test_resuming_does_the_others_only(count: int, undisturbed: Path, tmp_path: Path) -> None:
    partial = stopped(tmp_path / "out", count)
    csv_path = ALL.csv(partial)
    with open(csv_path, "ab") as file:
        file.write(b'"a, ')
    with job(tmp_path / "out", resume=True) as again:
        assert list(again.todo) == RECORDS[count:]
        assert csv_path.read_bytes()[-1:] == b"\n"
        for record in again.todo:
            again.write(prediction(record))
        assert again.finish() is not None
    assert tree(tmp_path / "out") == tree(undisturbed)


def test_a_complete_inference_stays_as_it_is(undisturbed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    assert infer(undisturbed, resume=True)
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before
    assert [path.name for path in undisturbed.parent.iterdir()] == ["out"]


def test_what_a_killed_process_left_of_moved_results_goes(undisturbed: Path, tmp_path: Path) -> None:
    """Its parts must not be taken for those of a new inference, whose masks would be missing."""
    partial = stopped(tmp_path / "out", 2)
    (partial / "results").rename(tmp_path / "elsewhere")
    assert infer(tmp_path / "out")
    assert tree(tmp_path / "out") == tree(undisturbed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "out"]


# --- several parts


def test_parts_that_are_missing_are_named(undisturbed: Path, tmp_path: Path) -> None:
    for index in (2, 0):
        with job(tmp_path / "out", part=Part(index, 3)) as begun:
            for record in begun.todo:
                begun.write(prediction(record))
            assert begun.finish() is None
            assert Part(1, 3) in begun.missing() and Part(index, 3) not in begun.missing()
    assert not (tmp_path / "out").exists()
    assert infer(tmp_path / "out", Part(1, 3))
    assert tree(tmp_path / "out") == tree(undisturbed)


def test_more_parts_than_images(undisturbed: Path, tmp_path: Path) -> None:
    ended = [infer(tmp_path / "out", Part(index, 6)) for index in range(6)]
    assert ended == [False] * 5 + [True]
    assert tree(tmp_path / "out") == tree(undisturbed)


def test_one_process_a_part(tmp_path: Path) -> None:
    with job(tmp_path / "out", part=Part(0, 2)) as first:
        first.write(prediction(first.todo[0]))
        for resume in (False, True):
            with (
                pytest.raises(FileProblem, match=r"Another process writes part 1 of 2 of .*: wait for it, or give"),
                job(tmp_path / "out", part=Part(0, 2), resume=resume),
            ):
                pass
        with job(tmp_path / "out", part=Part(1, 2)) as second:
            assert list(second.todo) == RECORDS[2:]
        first.write(prediction(first.todo[1]))
        assert first.finish() is None


# --- what is refused


def test_going_on_must_be_asked_for(tmp_path: Path) -> None:
    stopped(tmp_path / "out", 3)
    with pytest.raises(FileProblem, match=r"out\.partial holds 3 of 4 images of part 1 of 1, .* go on with --resume"):
        infer(tmp_path / "out")
    assert infer(tmp_path / "out", resume=True)


def test_an_inference_that_fails_at_its_first_image_leaves_nothing(tmp_path: Path) -> None:
    stopped(tmp_path / "out", 0)
    assert list(tmp_path.iterdir()) == []
    stopped(tmp_path / "out", 0, part=Part(0, 2))
    assert [path.name for path in tmp_path.iterdir()] == [PARTIAL], "others may be at work on theirs"
    assert not infer(tmp_path / "out", Part(0, 2)), "nothing was there to go on with"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cfg": settings.replace(CFG, {"threshold": 0.4})}, r"threshold is 0\.4, not 0\.5"),
        ({"cfg": settings.replace(CFG, {"stride": 256, "post_process": ()})}, r"post_process is .*; stride is 256"),
        ({"cfg": settings.replace(CFG, {"ensemble_models": ({"path": "x"},)})}, r"ensemble_models is \[\{'path': 'x'"),
        ({"cfg": settings.replace(CFG, {"amp": False})}, r"amp is False, not True"),
        ({"checkpoints": ["other"]}, r"the weights are others \(by their SHA-256\)"),
        ({"records": RECORDS[::-1]}, r"the images are others, or in another order"),
        ({"part": Part(0, 2)}, r"it is split into 2 parts, not 1"),
    ],
)
def test_another_inference_is_refused(values: dict[str, Any], said: str, undisturbed: Path, tmp_path: Path) -> None:
    partial = stopped(tmp_path / "out", 3)
    before = tree(partial)
    chosen = {"cfg": CFG, "records": RECORDS, "checkpoints": ["sha"], **values}
    for folder in (tmp_path / "out", undisturbed):
        begun = Job(folder, scale="probs", resume=True, **chosen)
        with pytest.raises(FileProblem, match=rf"is of another inference: {said}.*Remove it, or choose another"), begun:
            pass
    assert tree(partial) == before


def test_what_may_differ(tmp_path: Path) -> None:
    stopped(tmp_path / "out", 2)
    others = {"window_batch": 1, "checkpoint": "y", "output": "z", "device": "cpu", "shard": "1/1"}
    moved = settings.replace(CFG, others)
    elsewhere = [dataclasses.replace(record, image=Path("/y") / record.name) for record in RECORDS]
    with job(tmp_path / "out", moved, elsewhere, resume=True) as again:
        assert len(again.todo) == 2


def test_identity_is_read_back_or_refused(tmp_path: Path) -> None:
    identity = Identity.of(CFG, ["a", "b"], RECORDS, 3)
    path = tmp_path / "job.json"
    path.write_text(identity.text(), encoding="utf-8")
    assert Identity.read(path) == identity and identity.differences(identity) == []
    for text in ("", "[1]", "{}", identity.text()[:-10]):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(FileProblem, match=r"is not readable as the description of an inference .*: remove the"):
            Identity.read(path)


@pytest.mark.parametrize("content", ["file", "folder", "results"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_final_folder_is_never_overwritten(content: str, resume: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if content == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine.txt" if content == "folder" else out / CSV_NAME).write_text("mine")
    with pytest.raises(FileProblem, match=r"out exists and is never overwritten: .* choose another folder"):
        infer(out, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_final_folder_that_appears_meanwhile_is_not_overwritten(undisturbed: Path, tmp_path: Path) -> None:
    with job(tmp_path / "out") as begun:
        for record in begun.todo:
            begun.write(prediction(record))
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")
        with pytest.raises(FileProblem, match="out exists and is never overwritten"):
            begun.finish()
    (tmp_path / "out" / "mine").unlink()
    assert infer(tmp_path / "out", resume=True), "an empty folder is no obstacle, and nothing was lost"
    assert tree(tmp_path / "out") == tree(undisturbed)


@pytest.mark.parametrize("values", [{"save_masks": "packed"}, {"save_overlay": True}, {"save_probs": True}])
def test_images_whose_files_would_have_one_name(values: dict[str, Any], tmp_path: Path) -> None:
    records = [Record(Path("/x/a.png"), None, "1"), Record(Path("/x/a.jpg"), None, "2")]
    with pytest.raises(FileProblem, match=r"'a\.png' and 'a\.jpg' would share files of one name: rename"):
        job(tmp_path / "out", settings.replace(PLAIN, values), records)
    job(tmp_path / "out", PLAIN, records)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], "no image was given"),
        ([Record(Path("/x/a.png"), None, "1"), Record(Path("/y/a.png"), None, "2")], "are both named 'a.png'"),
    ],
)
def test_names_that_a_csv_cannot_hold(records: list[Record], said: str, tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=said):
        job(tmp_path / "out", PLAIN, records)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["rows", "masks"])
def test_a_full_disk_keeps_what_is_there(
    where: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    grow = part_file._Growing.append

    def half(file: Any, rows: Any) -> None:
        grow(file, list(rows)[:1])
        full()

    sentence = r"The disk is full: 2 of 4 images of part 1 of 1 are kept in .*out\.partial\. Free .* with --resume"
    with pytest.raises(FileProblem, match=sentence), job(tmp_path / "out") as begun:
        for record in begun.todo[:2]:
            begun.write(prediction(record))
        with monkeypatch.context() as patch:
            if where == "rows":
                patch.setattr(part_file._Growing, "append", half)
            else:
                patch.setattr(np, "savez_compressed", full)
            begun.write(prediction(begun.todo[2]))
    assert infer(tmp_path / "out", resume=True)
    assert tree(tmp_path / "out") == tree(undisturbed)


def test_another_error_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: Any) -> None:
        raise PermissionError("no")

    monkeypatch.setattr("inference.job.write_masks", forbidden)
    with pytest.raises(PermissionError, match="no"), job(tmp_path / "out") as begun:
        begun.write(prediction(begun.todo[0]))


def test_images_come_in_order_and_all(tmp_path: Path) -> None:
    with job(tmp_path / "out", PLAIN) as begun:
        with pytest.raises(FileProblem, match=r"image 'c\.png' is not the next after 0: write every image once"):
            begun.write(prediction(RECORDS[3]))
        begun.write(prediction(RECORDS[0]))
        with pytest.raises(RuntimeError, match="part 1 of 1 has 1 of 4 images: write all of them"):
            begun.finish()
