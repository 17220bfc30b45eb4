"""dataset/jpeg_tree.py, dataset/clahe.py and scripts/preprocess_to_jpeg.py: what is written, what is kept, what is
refused."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from config import ConfigProblem
from dataset import jpeg_tree
from dataset.clahe import Clahe
from dataset.images import read_image
from dataset.jpeg_tree import INDEX, Report, open_tree, write_tree
from dataset.readers import Record, read_folder
from engine import files
from engine.files import FileProblem, write_json
from scripts import preprocess_to_jpeg

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def root(phantom_root: Path, tmp_path: Path) -> Path:
    """Two training images and two test images of the phantom, to be changed at will."""
    copy = tmp_path / "set"
    for split in ("train", "test"):
        subject = min((phantom_root / split / "DCM").iterdir())
        shutil.copytree(subject, copy / split / "DCM" / subject.name)
    return copy


def write(root: Path, quality: int = 95, clahe: Clahe | None = None, overwrite: bool = False) -> Report:
    return write_tree(root, root / "jpeg", quality, clahe, 2, overwrite)


def originals(root: Path) -> list[Record]:
    return [record for split in ("train", "test") for record in read_folder(root / split / "DCM")]


def jpegs(root: Path) -> list[Path]:
    tree = open_tree(root / "jpeg")
    return [tree.image(record, root) for record in originals(root)]


def index(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "jpeg" / INDEX).read_text("utf-8"))
    return content


def times(root: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in jpegs(root)]


def start_of_frame(data: bytes) -> tuple[int, int, int, int, int]:
    """Marker, bits a sample, height, width and components of a JPEG, segment by segment (ITU T.81, B.2.2)."""
    assert data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9"
    at = 2
    while True:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        assert data[at] == 0xFF
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            body = data[at + 4 : at + 2 + length]
            return marker, body[0], int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big"), body[5]
        at += 2 + length


def grey(path: Path) -> NDArray[np.int64]:
    """Of a file, by another library."""
    return np.asarray(Image.open(path).convert("L")).astype(np.int64)


# --- what is written


@pytest.mark.parametrize("quality", [1, 30, 95, 100])
def test_every_image_becomes_a_gray_baseline_jpeg_at_the_same_place(root: Path, quality: int) -> None:
    report = write(root, quality)
    assert report.written == len(report.images) == len(originals(root)) == 4 and not report.failed
    for record, path in zip(originals(root), jpegs(root), strict=True):
        assert path == (root / "jpeg" / record.image.relative_to(root)).with_suffix(".jpg")
        assert start_of_frame(path.read_bytes()) == (0xC0, 8, 128, 128, 1)
    found = {path for path in (root / "jpeg").rglob("*") if path.is_file() and not path.name.startswith(".")}
    assert found == {*jpegs(root), root / "jpeg" / INDEX}


def test_the_markers_of_other_jpegs_tell_them_apart() -> None:
    image = np.zeros((16, 24), np.uint8)
    progressive = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    assert start_of_frame(progressive)[0] == 0xC2
    colour = cv2.imencode(".jpg", cv2.merge([image] * 3))[1].tobytes()
    assert start_of_frame(colour) == (0xC0, 8, 16, 24, 3)


@pytest.mark.parametrize("clahe", [None, Clahe(2.0, 4)])
def test_the_error_is_the_one_that_another_library_finds(root: Path, clahe: Clahe | None) -> None:
    report = write(root, 70, clahe)
    means, most = [], 0
    for record, path in zip(originals(root), jpegs(root), strict=True):
        wanted = read_image(record.image)
        difference = np.abs(grey(path) - (clahe.apply(wanted) if clahe else wanted))
        entry = report.images[record.image.relative_to(root).as_posix()]
        assert entry.mean_error == pytest.approx(difference.mean(), rel=1e-9) and entry.max_error == difference.max()
        assert (entry.size, entry.jpeg_size) == (record.image.stat().st_size, path.stat().st_size)
        means.append(difference.mean())
        most = max(most, int(difference.max()))
    assert 0 < report.mean_error == pytest.approx(np.mean(means)) and report.max_error == most
    assert report.bytes_before == sum(record.image.stat().st_size for record in originals(root))
    assert report.bytes_after == sum(path.stat().st_size for path in jpegs(root))


def test_a_better_quality_has_a_smaller_error(root: Path) -> None:
    coarse, fine = write(root, 50), write(root, 95, overwrite=True)
    assert fine.mean_error < coarse.mean_error and fine.bytes_after > coarse.bytes_after


def test_the_bytes_do_not_depend_on_the_threads(root: Path) -> None:
    trees = []
    for workers in (0, 1, 4):
        write_tree(root, root / f"jpeg{workers}", 95, Clahe(2.0, 8), workers, False)
        trees.append([path.read_bytes() for path in sorted((root / f"jpeg{workers}").rglob("*.j*"))])
    assert len(trees[0]) == 5 and trees[0] == trees[1] == trees[2]


def test_any_split_type_and_size(root: Path) -> None:
    folder = root / "val" / "DCM" / "ID900"
    folder.mkdir(parents=True)
    deep = np.tile(np.arange(50, dtype=np.uint16) * 1000, (3, 1))
    for name, image in (("a.b.tif", deep), ("c.BMP", deep[:1, :1].astype(np.uint8))):
        assert cv2.imwrite(str(folder / name), image)
    assert write(root, 100).written == 6
    tree = open_tree(root / "jpeg")
    wide, tiny = (read_image(tree.image(record, root)) for record in read_folder(root / "val" / "DCM"))
    assert wide.shape == (3, 50) and tiny.shape == (1, 1)
    assert np.abs(wide.astype(int) - read_image(folder / "a.b.tif")).max() <= 2


def test_threads_leave_the_umask_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the process's: asked for (which sets it) by two threads at once, it would stay 0."""
    before, real = os.umask(0o027), os.umask

    def umask(mask: int) -> int:
        assert files._UMASK.locked()
        return real(mask)

    monkeypatch.setattr(os, "umask", umask)
    try:
        write(root)
    finally:
        now = real(before)
    assert now == 0o027
    assert {path.stat().st_mode & 0o777 for path in [*jpegs(root), root / "jpeg" / INDEX]} == {0o640}


def test_clahe_is_opencvs_and_leaves_its_input_alone() -> None:
    image = np.random.default_rng(0).integers(0, 80, (65, 43)).astype(np.uint8)
    before = image.copy()
    out = Clahe(3.0, 4).apply(image)
    np.testing.assert_array_equal(out, cv2.createCLAHE(3.0, (4, 4)).apply(before))
    np.testing.assert_array_equal(image, before)
    assert out.dtype == np.uint8 and out.std() > 1.5 * image.std()
    for shape in ((1, 1), (3, 200), (8, 8)):
        assert Clahe(2.0, 8).apply(np.zeros(shape, np.uint8)).shape == shape


def test_a_tree_tells_what_is_baked_in(root: Path) -> None:
    write(root)
    assert open_tree(root / "jpeg").clahe is None
    write(root, clahe=Clahe(2, 8), overwrite=True)
    assert open_tree(root / "jpeg").clahe == Clahe(2.0, 8)


# --- what is kept


def test_a_second_call_writes_nothing(root: Path) -> None:
    first = write(root)
    before = times(root)
    second = write(root)
    assert (second.written, dict(second.images)) == (0, dict(first.images)) and times(root) == before


def test_overwrite_with_the_same_settings_goes_on(root: Path) -> None:
    write(root)
    assert write(root, overwrite=True).written == 0


@pytest.mark.parametrize("damage", ["deleted", "truncated", "not in the index"])
def test_one_lost_jpeg_is_written_again(root: Path, damage: str) -> None:
    write(root)
    before, path = times(root), jpegs(root)[2]
    data = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        content = index(root)
        del content["images"][originals(root)[2].image.relative_to(root).as_posix()]
        (root / "jpeg" / INDEX).write_text(json.dumps(content))
    if damage != "truncated":
        with pytest.raises(FileProblem, match=r"missing: run python scripts/preprocess_to_jpeg\.py"):
            jpegs(root)
    assert write(root).written == 1 and path.read_bytes() == data
    assert [a == b for a, b in zip(times(root), before, strict=True)] == [True, True, False, True]


@pytest.mark.parametrize("change", ["time", "size"])
def test_a_changed_original_is_noticed_and_converted_again(root: Path, change: str) -> None:
    write(root)
    path = originals(root)[1].image
    status = path.stat()
    if change == "size":
        assert cv2.imwrite(str(path), np.full((30, 40), 7, np.uint8))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + (change == "time")))
    with pytest.raises(FileProblem, match=rf"{path.name} has changed since .*run python scripts.*--quality 95"):
        jpegs(root)
    assert write(root).written == 1
    assert read_image(jpegs(root)[1]).shape == ((30, 40) if change == "size" else (128, 128))


def test_removed_originals_leave_the_index(root: Path) -> None:
    write(root)
    originals(root)[0].image.unlink()
    report = write(root)
    assert report.written == 0 and len(report.images) == len(index(root)["images"]) == 3


# --- stopped half-way


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_stopped_call_goes_on_where_it_was(
    root: Path, stop: BaseException, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if overwrite:
        write(root, quality=40)
    lock, calls = threading.Lock(), 0
    real = jpeg_tree._encode

    def encode(image: NDArray[np.uint8], quality: int, source: Path) -> bytes:
        nonlocal calls
        with lock:
            calls += 1
            if calls == 3:
                raise stop
        return real(image, quality, source)

    with monkeypatch.context() as patched:
        patched.setattr(jpeg_tree, "_encode", encode)
        with pytest.raises(type(stop)):
            write_tree(root, root / "jpeg", 95, None, 1, overwrite)
    done = len(index(root)["images"])
    assert done == 2 and index(root)["quality"] == 95 and not index(root)["complete"]
    with pytest.raises(FileProblem, match=r"unfinished: run python scripts/\S+ .*--quality 95, which goes on"):
        open_tree(root / "jpeg")
    # The same command: an --overwrite that was stopped must not begin anew, nor take JPEGs of the old settings.
    assert write_tree(root, root / "jpeg", 95, None, 1, overwrite).written == 4 - done
    for record, path in zip(originals(root), jpegs(root), strict=True):
        wanted = cv2.imencode(".jpg", read_image(record.image), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        assert path.read_bytes() == wanted.tobytes()


def test_a_full_disk_is_no_fault_of_the_original(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write(root)
    jpegs(root)[0].unlink()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileProblem, match="disk is full"):
        write(root)
    assert not index(root)["failed"]


def test_the_index_is_saved_while_the_work_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill -9 leaves: neither `except` nor `finally` runs."""
    monkeypatch.setattr(jpeg_tree, "SECONDS_BETWEEN_SAVES", 0.0)
    real, states = write_json, []

    def save(path: Path, content: dict[str, Any]) -> None:
        real(path, content)
        states.append((content["complete"], len(content["images"])))

    monkeypatch.setattr(jpeg_tree, "write_json", save)
    write(root)
    assert states == [(False, 0), (False, 1), (False, 2), (False, 3), (False, 4), (True, 4)]


def test_temporary_files_of_a_killed_call_are_removed(root: Path) -> None:
    write(root)
    part = jpegs(root)[0].parent / ".image.jpg.abcd.part"
    part.write_bytes(b"half a JPEG")
    write(root)
    assert not part.exists()


# --- originals that are wrong


def test_a_corrupt_original_is_reported_and_the_others_are_written(root: Path) -> None:
    records = originals(root)
    bad, data = records[1].image, records[1].image.read_bytes()
    bad.write_bytes(data[: len(data) // 2])
    report = write(root)
    name = bad.relative_to(root).as_posix()
    assert report.written == len(report.images) == 3
    assert list(report.failed) == [name] and str(bad) in report.failed[name]
    tree = open_tree(root / "jpeg")  # finished: training may leave the bad image out
    assert all(tree.image(record, root).exists() for record in records if record.image != bad)
    with pytest.raises(FileProblem, match=r"truncated PNG.*Then run python scripts"):
        tree.image(records[1], root)
    bad.write_bytes(data)
    report = write(root)
    assert (report.written, report.failed) == (1, {}) and len(jpegs(root)) == 4


def test_an_original_beyond_jpegs_limit(root: Path) -> None:
    path = originals(root)[0].image
    assert cv2.imwrite(str(path), np.zeros((1, 65501), np.uint8))
    report = write(root)
    assert report.written == 3
    assert "65501 x 1 px" in report.failed[path.relative_to(root).as_posix()]


def test_two_originals_of_one_jpeg_are_refused(root: Path) -> None:
    path = originals(root)[0].image
    shutil.copy(path, path.with_suffix(".PNG"))
    with pytest.raises(FileProblem, match="same JPEG: rename or remove"):
        write(root)
    assert not (root / "jpeg").exists()


def test_a_root_without_images(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="point --data_root"):
        write(tmp_path)
    (tmp_path / "train" / "DCM").mkdir(parents=True)
    with pytest.raises(FileProblem, match="holds no image"):
        write(tmp_path)


# --- what is refused


@pytest.mark.parametrize(
    ("quality", "clahe", "said"),
    [(90, None, "--quality 90 "), (95, Clahe(3.0, 8), r"--clahe_clip 3\.0 --clahe_tiles 8")],
)
def test_other_settings_are_refused(root: Path, quality: int, clahe: Clahe | None, said: str) -> None:
    write(root)
    before = times(root)
    with pytest.raises(ConfigProblem, match=rf"written with --quality 95 .*{said}.*--overwrite.*another --output"):
        write(root, quality, clahe)
    assert times(root) == before
    assert write(root, quality, clahe, overwrite=True).written == 4
    assert (index(root)["quality"], index(root)["clahe"]) == (quality, clahe and dataclasses.asdict(clahe))


def test_a_tree_of_another_version(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root)
    monkeypatch.setattr(jpeg_tree, "VERSION", jpeg_tree.VERSION + 1)
    with pytest.raises(FileProblem, match=r"another version .*--overwrite"):
        open_tree(root / "jpeg")
    with pytest.raises(ConfigProblem, match=r"\(version 1\).*\(version 2\)"):
        write(root)
    assert write(root, overwrite=True).written == 4


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": {"a": {"size": 1}}}', '{"images": []}'])
def test_a_damaged_index(root: Path, content: str) -> None:
    write(root)
    (root / "jpeg" / INDEX).write_text(content)
    for call in (lambda: open_tree(root / "jpeg"), lambda: write(root)):
        with pytest.raises(FileProblem, match=r"is damaged: run .*--overwrite"):
            call()
    assert write(root, overwrite=True).written == 4


def test_a_missing_tree_and_images_from_elsewhere(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"jpeg_tree\.json cannot be read .*run python scripts"):
        open_tree(root / "jpeg")
    write(root)
    tree, record = open_tree(root / "jpeg"), originals(root)[0]
    with pytest.raises(FileProblem, match="is not below"):
        tree.image(dataclasses.replace(record, image=tmp_path / "x.png"), root)
    with pytest.raises(FileProblem, match="cannot be read"):
        tree.image(dataclasses.replace(record, image=record.image.with_name("absent.png")), root)


def test_folders_that_are_no_tree_are_left_alone(root: Path, tmp_path: Path) -> None:
    for output in (root, root / "train"):
        for overwrite in (False, True):
            with pytest.raises(ConfigProblem, match="no JPEG tree"):
                write_tree(root, output, 95, None, 1, overwrite)
    with pytest.raises(ConfigProblem, match="among the originals"):
        write_tree(root, root / "train" / "DCM" / "jpeg", 95, None, 1, False)
    assert len(list(root.rglob("*"))) == 10  # two splits: split, DCM, subject, two images
    (tmp_path / "empty").mkdir()
    assert write_tree(root, tmp_path / "empty", 95, None, 1, False).written == 4


def test_two_calls_at_once(root: Path) -> None:
    write(root)
    with open(root / "jpeg" / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FileProblem, match="another process"):
            write(root)


# --- the command


def command(*argv: str) -> int:
    try:
        return preprocess_to_jpeg.main(list(argv))
    except SystemExit as left:
        assert isinstance(left.code, int)
        return left.code


def test_the_command_by_its_path(root: Path, tmp_path: Path) -> None:
    script = str(ROOT / "scripts" / "preprocess_to_jpeg.py")
    done = subprocess.run(
        [sys.executable, script, "--data-root", str(root), "--clahe", "--clahe-clip=3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 images, 4 of them written now" in done.stdout and "CLAHE 3 in 8 x 8 tiles, quality 95" in done.stdout
    assert open_tree(root / "jpeg").clahe == Clahe(3.0, 8)


def test_the_command_prints_error_and_bytes(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--data_dir", str(root), "--output", str(tmp_path / "out"), "--quality", "80", "--workers", "1"]
    assert command(*argv) == 0 and command(*argv) == 0
    report = write_tree(root, tmp_path / "out", 80, None, 1, False)
    said = capsys.readouterr().out
    assert said.count(f"{report.mean_error:.3f} grey levels on average, {report.max_error} at most") == 2
    assert said.count(f"({report.bytes_after / report.bytes_before:.2f})") == 2
    assert "CLAHE" not in said and "4 images, 0 of them written now\n" in said


def test_corrupt_originals_are_listed_at_the_end(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for record in originals(root)[::2]:
        record.image.write_bytes(b"no image")
    assert command("--data_root", str(root)) == 1
    said = capsys.readouterr()
    assert "2 images, 2 of them written now" in said.out and "2 images have no JPEG" in said.err
    assert all(str(record.image) in said.err for record in originals(root)[::2])
    for record in originals(root):
        record.image.write_bytes(b"")
    assert command("--data_root", str(root)) == 1
    assert "0 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--quality", "0"], "quality is 0, but must lie between 1 and 100"),
        (["--quality", "101"], "quality is 101"),
        (["--workers", "0"], "workers is 0"),
        (["--clahe_tiles", "0"], "clahe_tiles is 0"),
        (["--clahe_clip", "nan"], "clahe_clip is nan"),
        (["--qualty", "90"], "qualty"),
    ],
)
def test_wrong_flags(root: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--data_root", str(root), *flags) == 2
    assert said in capsys.readouterr().err
    assert not (root / "jpeg").exists()


def test_exit_codes_of_what_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--data_root", str(root / "absent")) == 1
    assert "point --data_root" in capsys.readouterr().err
    assert command("--data_root", str(root), "--output", str(root / "train")) == 2
    assert "no JPEG tree" in capsys.readouterr().err


def test_help_is_instant_and_names_every_flag() -> None:
    code = """import sys; from scripts.preprocess_to_jpeg import main
try: main(["--help"])
finally: print("SLOW", *({"cv2", "numpy", "torch", "pandas"} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "SLOW"
    for field in dataclasses.fields(preprocess_to_jpeg.Flags):
        assert f"--{field.name}" in done.stdout
