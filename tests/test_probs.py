"""inference/probs.py: what a store keeps, that it comes back, and what is said of files that are not whole."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.bits import pack
from engine.files import FileProblem
from engine.rle import runs_of_bits
from inference import probs
from inference.probs import ImageProbs, ProbsFolder, ProbsWriter, from_dense, quantise

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ("a", "b", "c")
MEMBERS = ("1" * 64, "2" * 64)


def truth_of(q: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.int32]:
    """Packed labels that roughly follow q, (1, H, W)."""
    noisy = q.astype(np.int64) + rng.integers(-90, 90, q.shape) > 100
    return pack(torch.from_numpy(noisy.astype(np.float32)), 0.5).numpy()


def draw(seed: int, height: int = 23, width: int = 37, classes: int = 3) -> NDArray[np.uint8]:
    """q, (K, H, W): noise in a random rectangle of each class, some of them empty, full, or along the border."""
    rng = np.random.default_rng(seed)
    q = np.zeros((classes, height, width), np.uint8)
    for plane in q:
        (top, bottom), (left, right) = (np.sort(rng.integers(0, n + 1, 2)) for n in (height, width))
        part = plane[top:bottom, left:right]
        part[:] = rng.choice(np.array([0, 1, 2, 60, 127, 128, 200, 255], np.uint8), part.shape)
    return q


def image_of(q: NDArray[np.uint8], truth: NDArray[np.int32] | None = None, key: str = "ID1/x") -> ImageProbs:
    return from_dense(key, f"{key.split('/')[1]}.png", torch.from_numpy(q), CLASSES[: len(q)], truth)


def dense(image: ImageProbs) -> NDArray[np.uint8]:
    """q of the whole image, (K, H, W)."""
    q = np.zeros((len(image.classes), image.height, image.width), np.uint8)
    for plane, (top, left, height, width), values in zip(q, image.boxes, image.values, strict=True):
        plane[top : top + height, left : left + width] = values
    return q


def same(one: ImageProbs, other: ImageProbs) -> bool:
    """Equal, dtypes included."""

    def flat(image: ImageProbs) -> list[tuple[object, object]]:
        values = [getattr(image, field.name) for field in fields(image)]
        parts = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
        return [(p.dtype, p.tolist()) if isinstance(p, np.ndarray) else (type(p), p) for p in parts]

    return flat(one) == flat(other)


BELOW_HALF = float(np.nextafter(np.float32(0.5), np.float32(0)))


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
@example([BELOW_HALF, 0.5])
@settings(derandomize=True, max_examples=60, deadline=None)
def test_quantise_is_the_nearest_byte_and_128_is_a_half(values: list[float]) -> None:
    p = torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1)
    q = quantise(p)
    assert q.dtype == torch.uint8
    assert (q.double() / 255 - p.double()).abs().max() <= 0.5 / 255 + 1e-7
    assert torch.equal(q >= 128, p >= 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_quantise_rounds_in_float32_whatever_comes(dtype: torch.dtype) -> None:
    p = torch.linspace(0, 1, 4001, dtype=dtype).reshape(1, 1, -1)
    before = p.clone()
    assert torch.equal(quantise(p), torch.floor(p.float() * 255 + 0.5).to(torch.uint8))
    assert torch.equal(p, before)


@given(st.integers(0, 2**32 - 1))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_boxes_and_histograms_equal_brute_force(seed: int) -> None:
    q = draw(seed)
    truth = truth_of(q, np.random.default_rng(seed))
    image = image_of(q, truth)
    kept = dense(image)
    assert np.array_equal(np.where(kept > 1, kept, 0), np.where(q > 1, q, 0))
    assert ((kept == q) | ((q == 1) & (kept == 0))).all()
    assert image.true_histograms is not None
    for k, plane in enumerate(kept):
        ys, xs = np.nonzero(q[k] > 1)
        smallest = [ys.min(), xs.min(), np.ptp(ys) + 1, np.ptp(xs) + 1] if ys.size else [0, 0, 0, 0]
        assert image.boxes[k].tolist() == smallest
        mask = (truth[0] >> k & 1).astype(bool)
        assert np.array_equal(image.histograms[k], np.bincount(plane.ravel(), minlength=256))
        assert np.array_equal(image.true_histograms[k], np.bincount(plane[mask], minlength=256))


def test_half_of_the_store_is_half_of_the_probabilities() -> None:
    p = torch.rand((3, 31, 40), generator=torch.Generator().manual_seed(0))
    p[0, 0, :2] = torch.tensor([0.5, BELOW_HALF])
    image = from_dense("ID1/x", "x.png", quantise(p), CLASSES, None)
    assert np.array_equal(dense(image) >= 128, (p >= 0.5).numpy())


def test_classes_at_the_border_and_empty_ones() -> None:
    q = np.zeros((3, 8, 9), np.uint8)
    q[0, 0, 0] = q[0, 7, 8] = 255
    q[1, 7, :] = 2
    truth = np.full((1, 8, 9), 0b101, np.int32)
    image = image_of(q, truth)
    assert image.boxes.tolist() == [[0, 0, 8, 9], [7, 0, 1, 9], [0, 0, 0, 0]]
    assert image.values[2].size == 0
    assert image.true_histograms is not None
    assert image.true_histograms[:, [0, 2, 255]].tolist() == [[70, 0, 2], [0, 0, 0], [72, 0, 0]]
    assert image.histograms[2, 0] == 72


def test_more_classes_than_a_word_has_bits() -> None:
    rng = np.random.default_rng(0)
    q = rng.integers(0, 256, (40, 6, 7)).astype(np.uint8)
    truth = pack(torch.from_numpy(q.astype(np.float32)), 100.0).numpy()
    image = from_dense("ID1/x", "x.png", torch.from_numpy(q), [f"c{k}" for k in range(40)], truth)
    assert image.true_histograms is not None
    assert image.true_histograms.sum(1).tolist() == (q > 100).sum((1, 2)).tolist()


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("empty", [True, False])
def test_round_trip(tmp_path: Path, labelled: bool, empty: bool) -> None:
    q = np.zeros((3, 23, 37), np.uint8) if empty else draw(5)
    truth = truth_of(q, np.random.default_rng(1)) if labelled else None
    image = image_of(q, truth)
    writer = ProbsWriter(tmp_path, CLASSES, MEMBERS, "logits")
    writer.write(image)
    store = ProbsFolder(tmp_path)
    back = store.read("ID1/x")
    assert same(image, back)
    assert not back.histograms.flags.writeable and not back.boxes.flags.writeable
    assert (store.classes, store.members, store.scale) == (CLASSES, MEMBERS, "logits")
    assert store.bytes_per_image() == (tmp_path / "ID1" / "x.probs").stat().st_size
    if labelled:
        assert truth is not None and back.truth_runs is not None
        assert [r.tolist() for r in back.truth_runs] == [r.tolist() for r in runs_of_bits(truth, 3)]


def test_keys_are_sorted_and_an_image_can_be_written_again(tmp_path: Path) -> None:
    for key in ("ID2/b", "ID10/a", "ID2/a", "ID2/a"):
        ProbsWriter(tmp_path, CLASSES, MEMBERS, "logits").write(image_of(draw(len(key)), key=key))
    ProbsWriter(tmp_path, CLASSES, MEMBERS, "logits").write(image_of(draw(99), key="ID2/a"))
    store = ProbsFolder(tmp_path)
    assert store.keys() == ("ID10/a", "ID2/a", "ID2/b")
    assert same(store.read("ID2/a"), image_of(draw(99), key="ID2/a"))
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.probs", "a.probs", "b.probs"]


def written(folder: Path) -> Path:
    """A store of one image; returns its file."""
    ProbsWriter(folder, CLASSES, MEMBERS, "logits").write(image_of(draw(3)))
    return folder / "ID1" / "x.probs"


def test_every_truncated_or_changed_file_is_one_sentence(tmp_path: Path) -> None:
    path = written(tmp_path)
    store, data = ProbsFolder(tmp_path), path.read_bytes()
    places = range(0, len(data), max(1, len(data) // 50))
    flipped = [data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :] for at in places]
    for case in [*(data[:at] for at in places), *flipped]:
        path.write_bytes(case)
        with pytest.raises(FileProblem, match=r"x\.probs.*--save_probs again") as caught:
            store.read("ID1/x")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no file of probabilities: delete it"),
        (b"PK\x03\x04" + b"\xff" * 500, "no file of probabilities: delete it"),
        (b"bone-probs 2 0\nx", r"of version 2, but must be of version 1: delete it"),
        (b"bone-probs 1 0\nx", "damaged"),
    ],
)
def test_foreign_files(tmp_path: Path, data: bytes, message: str) -> None:
    written(tmp_path).write_bytes(data)
    with pytest.raises(FileProblem, match=message):
        ProbsFolder(tmp_path)
    with pytest.raises(FileProblem, match=message):
        ProbsWriter(tmp_path, CLASSES, MEMBERS, "logits")


def test_no_store_and_no_image(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileProblem, match="holds no probabilities: run inference with --save_probs"):
            ProbsFolder(folder)
    written(tmp_path)
    with pytest.raises(FileProblem, match=r"y\.probs cannot be read \(No such file"):
        ProbsFolder(tmp_path).read("ID1/y")


def test_a_file_under_another_name(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.with_name("y.probs").write_bytes(path.read_bytes())
    with pytest.raises(FileProblem, match="holds image 'ID1/x', but must hold 'ID1/y'"):
        ProbsFolder(tmp_path).read("ID1/y")


@pytest.mark.parametrize(
    ("classes", "members", "scale", "what"),
    [
        (("a", "b", "d"), MEMBERS, "logits", r"classes \(a, b, c\) than expected \(a, b, d\)"),
        (CLASSES, ("3" * 64,), "logits", r"checkpoints \(1{16}, 2{16}\) than expected \(3{16}\)"),
        (CLASSES, MEMBERS, "probabilities", r"scale \(logits\) than expected \(probabilities\)"),
    ],
)
def test_a_store_holds_one_inference(
    tmp_path: Path, classes: tuple[str, ...], members: tuple[str, ...], scale: str, what: str
) -> None:
    path = written(tmp_path / "one")
    with pytest.raises(FileProblem, match=f"made with other {what}, but a store holds one inference: give each"):
        ProbsWriter(tmp_path / "one", classes, members, scale)
    other = image_of(draw(3), key="ID0/y")
    object.__setattr__(other, "classes", classes)
    ProbsWriter(tmp_path / "two", classes, members, scale).write(other)
    (tmp_path / "two" / "ID1").mkdir()
    (tmp_path / "two" / "ID1" / "x.probs").write_bytes(path.read_bytes())
    with pytest.raises(FileProblem, match=f"made with other {what}, but a store holds one inference"):
        ProbsFolder(tmp_path / "two").read("ID1/x")


def test_wrong_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"values is torch.float32 of shape \(3, 4, 5\), but for 3 classes"):
        from_dense("ID1/x", "x.png", torch.zeros((3, 4, 5)), CLASSES, None)
    with pytest.raises(ValueError, match=r"uint8 of shape \(3, H, W\)"):
        from_dense("ID1/x", "x.png", torch.zeros((2, 4, 5), dtype=torch.uint8), CLASSES, None)
    with pytest.raises(ValueError, match=r"truth_bits is \(4, 6\) px and values is \(4, 5\)"):
        image_of(np.zeros((3, 4, 5), np.uint8), np.zeros((1, 4, 6), np.int32))
    with pytest.raises(ValueError, match="has other classes than the store"):
        ProbsWriter(tmp_path, ("a", "b"), MEMBERS, "logits").write(image_of(draw(0)))


def test_a_failed_write_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    writer = ProbsWriter(tmp_path, CLASSES, MEMBERS, "logits")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FileProblem, match="The disk is full"):
        writer.write(image_of(draw(4)))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["x.probs"]


def test_reading_needs_no_torch_and_no_matplotlib(tmp_path: Path) -> None:
    written(tmp_path)
    code = (
        "import sys; from inference.probs import ProbsFolder; import inference.thresholds;"
        f"ProbsFolder({str(tmp_path)!r}).read('ID1/x'); print({{'torch', 'matplotlib'}} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_file_is_the_same_every_time() -> None:
    origin = probs.Origin(CLASSES, MEMBERS, "logits")
    one, other = (probs._pack(image_of(draw(7)), origin) for _ in range(2))
    assert one == other
