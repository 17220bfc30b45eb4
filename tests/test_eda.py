"""Numbers of a data set, what looks wrong in it, and the page: on phantoms, clean and with planted faults."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openpyxl
import pytest
from layout_trees import TREES
from numpy.typing import NDArray

from config import HAND_BONES, Config
from dataset import statistics
from dataset.labels import read_label
from dataset.phantom import PhantomSet, write_phantom_set
from dataset.readers import Record, read_competition
from dataset.statistics import Item, items_of, measure, measure_all, measure_label, sum_up
from dataset.subjects import read_columns
from dataset.suspects import LIMIT, Table, deviations
from engine import settings
from engine.files import FileProblem
from report.case import MOST_BYTES
from report.eda import Exploration, explore, shown_first, summary_of, write_eda
from scripts import eda as command

ROOT = Path(__file__).resolve().parent.parent
SUBJECTS, SIZE = 20, 192
"""Of the clean set: 40 training images, px."""
FALSE_ALARMS = 2
"""At most, among the 44 x 29 sizes and places of the clean set and all that dataset/check.py looks at."""
MARKUP = '<img src=x onerror="window.broken=1">&amp;'
"""As a file's and as a class's name."""


def settings_of(root: Path, **values: object) -> Config:
    return settings.replace(Config(), {"data_root": str(root), **values})


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("eda") / "clean"
    write_phantom_set(root, PhantomSet(train_subjects=SUBJECTS, test_subjects=2, size=SIZE, seed=11), workers=2)
    return root


@pytest.fixture(scope="module")
def explored(clean: Path) -> Exploration:
    return explore(settings_of(clean), 0)


def value_of(text: str) -> Any:
    """The JSON of a script."""
    return json.loads(text[text.index("(") + 1 : text.rindex(");")])


# ---- numbers ----


def test_a_label_is_measured_as_a_plain_loop_would() -> None:
    rng = np.random.default_rng(0)
    planes = rng.random((35, 20, 30)) < 0.1  # two words
    planes[7] = False
    bits = np.zeros((2, 20, 30), np.uint32)
    for k, plane in enumerate(planes):
        bits[k // 32] |= plane.astype(np.uint32) << np.uint32(k % 32)
    image = rng.integers(0, 256, (20, 30)).astype(np.uint8)
    found = measure_label(bits.view(np.int32), image, 35)
    assert (found.areas == planes.sum((1, 2))).all()
    assert found.labelled == planes.any(0).sum() and found.several == (planes.sum(0) > 1).sum()
    pairs = np.einsum("ihw,jhw->ij", planes.astype(int), planes.astype(int))
    np.fill_diagonal(pairs, 0)
    assert (found.pairs == pairs).all()
    for k, plane in enumerate(planes):
        if k == 7:
            assert np.isnan(found.centres[k]).all() and np.isnan(found.greys[k])
        else:
            assert found.centres[k] == pytest.approx((np.argwhere(plane).mean(0) + 0.5) / (20, 30), rel=1e-5)
            assert found.greys[k] == pytest.approx(image[plane].mean(), rel=1e-5)


def test_sums_over_a_set(clean: Path, explored: Exploration) -> None:
    found = explored.statistics
    assert found.images == {"train": 2 * SUBJECTS, "test": 4} == found.labels
    assert {split: len(names) for split, names in found.subjects.items()} == {"train": SUBJECTS, "test": 2}
    assert found.sizes == {("train", SIZE, SIZE): 2 * SUBJECTS, ("test", SIZE, SIZE): 4}
    assert found.levels["train"].sum() == 2 * SUBJECTS * SIZE * SIZE
    assert found.means["test"].sum() == 4 and (found.shown == 2 * SUBJECTS + 4).all()
    assert found.heat.max() <= 2 * SUBJECTS + 4 and (found.heat.max((1, 2)) > 0).all()
    record = read_competition(clean, "train")[0]
    bits = read_label(record, HAND_BONES, SIZE, SIZE)
    row = [item.record.name for item in explored.table.items].index(record.name)
    assert explored.table.pixels[row, 27] == (bits[0] >> 27 & 1).sum()
    assert len(found.sides) >= 0.9 * len(explored.items)  # hands are recognised
    rows = {(pair["a"], pair["b"]) for pair in summary_of(explored, {})["overlaps"]}
    assert ("Triquetrum", "Pisiform") in rows and ("Radius", "finger-1") not in rows


def test_worker_processes_measure_the_same(clean: Path) -> None:
    items = items_of(settings_of(clean))[:9]
    alone, apart = (sum_up(measure_all(items, HAND_BONES, workers), HAND_BONES) for workers in (0, 1))
    assert (alone.pairs == apart.pairs).all() and (alone.heat == apart.heat).all()
    assert [item.path for item in apart.table().items] == [item.path for item in items]
    assert np.array_equal(alone.table().centres, apart.table().centres)


def test_images_are_asked_for_as_they_are_needed(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def remembered(item: Item, classes: object) -> None:
        seen.append(item.path)

    monkeypatch.setattr(statistics, "measure", remembered)
    next(measure_all(items_of(settings_of(clean)), HAND_BONES, 0), None)
    assert len(seen) == 2 * SUBJECTS + 4  # none was readable, so all were tried, one after the other
    monkeypatch.setattr(statistics, "measure", lambda item, classes: seen.append(item.path) or item)
    seen.clear()
    next(measure_all(items_of(settings_of(clean)), HAND_BONES, 0))
    assert len(seen) == 1


def test_the_table_of_subjects(clean: Path, explored: Exploration, tmp_path: Path) -> None:
    columns = {column.name: column for column in explored.columns}
    assert list(columns) == ["age", "sex", "weight", "height"]  # the free note holds nothing
    assert columns["sex"].values and sum(map(sum, columns["sex"].counts)) == SUBJECTS + 2
    assert not columns["age"].values and [sum(of) for of in columns["age"].counts] == [SUBJECTS, 2]
    path = tmp_path / "meta.csv"
    path.write_text("ID,age,site\nA,31,x\nB,,y\nC,old,y\n" + "".join(f"D{k},{k},x\n" for k in range(8)))
    subjects = {"A", "B", "C", *(f"D{k}" for k in range(8))}
    found = {column.name: column for column in read_columns(path, {"train": subjects})}
    assert found["age"].unknown == 2 and sum(found["age"].counts[0]) == 9
    assert found["site"].values == ("x", "y") and found["site"].counts == ((9, 2),)
    with pytest.raises(FileProblem, match="its column ID has none of the subjects"):
        read_columns(path, {"train": {"E"}})


def test_a_broken_table_of_subjects_is_a_finding(phantom_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(phantom_root, root, ignore=shutil.ignore_patterns("cache"))
    (root / "meta_data.xlsx").write_text("no table")
    found = explore(settings_of(root), 0)
    assert [one.kind for one in found.suspects] == ["unreadable table"] and found.columns == ()
    assert "meta_data.xlsx is no readable table" in found.suspects[0].detail


# ---- what looks wrong ----


def test_few_alarms_on_clean_phantoms(explored: Exploration) -> None:
    assert len(explored.suspects) <= FALSE_ALARMS
    assert np.isfinite(explored.deviations.size).all() and np.isfinite(explored.deviations.place).all()


def label_of(root: Path, number: int) -> Path:
    """Label file of a training image."""
    label = read_competition(root, "train")[number].label
    assert label is not None
    return label


def redraw(label: Path, change: Callable[[str, NDArray[np.float64]], NDArray[np.float64] | None]) -> None:
    """Change the points of each bone's polygons; None removes it."""
    content = json.loads(label.read_text(encoding="utf-8"))
    changed = [(entry, change(entry["label"], np.array(entry["points"], float))) for entry in content["annotations"]]
    content["annotations"] = [
        entry | {"points": np.rint(points).astype(int).tolist()} for entry, points in changed if points is not None
    ]
    label.write_text(json.dumps(content), encoding="utf-8")


def only(bone: str, change: Callable[[NDArray[np.float64]], NDArray[np.float64] | None]) -> Any:
    return lambda name, points: change(points) if name == bone else points


def exchange(root: Path) -> None:
    """The labels of a subject's two hands."""
    a, b = label_of(root, 0), label_of(root, 1)
    texts = b.read_bytes(), a.read_bytes()
    for path, text in zip((a, b), texts, strict=True):
        path.write_bytes(text)


def mirror(root: Path) -> None:
    redraw(label_of(root, 2), lambda _, points: points * (-1, 1) + (SIZE - 1, 0))


def move(root: Path) -> None:
    redraw(label_of(root, 5), only("finger-6", lambda points: points + (0, SIZE / 10)))


def remove(root: Path) -> None:
    redraw(label_of(root, 7), only("Pisiform", lambda _: None))


def blow_up(root: Path) -> None:
    redraw(label_of(root, 9), only("Lunate", lambda points: points.mean(0) + 1.6 * (points - points.mean(0))))


def swap_two(root: Path) -> None:
    label = label_of(root, 11)
    swapped = {"finger-4": "finger-16", "finger-16": "finger-4"}
    content = json.loads(label.read_text(encoding="utf-8"))
    for entry in content["annotations"]:
        entry["label"] = swapped.get(entry["label"], entry["label"])
    label.write_text(json.dumps(content), encoding="utf-8")


def copy(root: Path) -> None:
    records = read_competition(root, "train")
    shutil.copy(records[20].image, records[13].image)


FAULTS: list[tuple[Callable[[Path], None], set[tuple[str, int, str]]]] = [
    (exchange, {("other hand", 0, ""), ("other hand", 1, "")}),
    (mirror, {("other hand", 2, ""), ("equal sides", 2, "")}),
    (move, {("odd place", 5, "finger-6")}),
    (remove, {("class missing", 7, "")}),
    (blow_up, {("odd size", 9, "Lunate")}),
    (swap_two, {("odd place", 11, "finger-4"), ("odd place", 11, "finger-16")}),
    (copy, {("double pixels", 13, "")}),
]
"""What is done, and what must be found: kind, training image, class."""


@pytest.fixture(scope="module")
def faulty(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Exploration:
    """All faults at once: one must not hide another."""
    root = tmp_path_factory.mktemp("eda") / "faulty"
    shutil.copytree(clean, root, ignore=shutil.ignore_patterns("cache"))
    for plant, _ in FAULTS:
        plant(root)
    return explore(settings_of(root), 0)


@pytest.mark.parametrize(("plant", "wanted"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_planted_faults_are_found(plant: object, wanted: set[tuple[str, int, str]], faulty: Exploration) -> None:
    paths = [item.path for item in faulty.items]
    found = {(one.kind, paths.index(one.image), one.label) for one in faulty.suspects if one.image}
    assert wanted <= found


def test_planted_faults_raise_no_alarm_elsewhere(faulty: Exploration) -> None:
    paths = [item.path for item in faulty.items]
    planted = {number for _, wanted in FAULTS for _, number, _ in wanted} | {3, 12, 20}  # partners of 2 and 13
    assert len({paths.index(one.image) for one in faulty.suspects} - planted) <= FALSE_ALARMS
    assert len(faulty.suspects) < 20


def test_the_viewer_holds_what_is_suspicious_first(faulty: Exploration) -> None:
    suspicious = list(dict.fromkeys(one.image for one in faulty.suspects))
    assert [item.path for item in shown_first(faulty, 5)] == suspicious[:5]
    everything = [item.path for item in shown_first(faulty, None)]
    assert everything[: len(suspicious)] == suspicious and sorted(everything) == sorted(i.path for i in faulty.items)
    assert [one.severity for one in faulty.suspects] == sorted(one.severity for one in faulty.suspects)


def table_of(pixels: NDArray[np.int64], centres: NDArray[np.float32]) -> Table:
    items = tuple(Item("train", f"{n}.png", Record(Path(f"{n}.png"), None, str(n))) for n in range(len(pixels)))
    shapes = np.full((len(pixels), 2), 100)
    return Table(items, (pixels / 10_000).astype(np.float32), pixels, centres, shapes)


def test_one_class_is_judged_by_its_place_in_the_image() -> None:
    rng = np.random.default_rng(1)
    centres = rng.normal(0.5, 0.02, (40, 1, 2)).astype(np.float32)
    centres[7] = 0.9
    pixels = rng.normal(400, 20, (40, 1)).astype(np.int64)
    pixels[9] = 100
    found = deviations(table_of(pixels, centres))
    assert np.argwhere(found.place > LIMIT).tolist() == [[7, 0]]
    assert np.argwhere(found.size > LIMIT).tolist() == [[9, 0]]
    assert found.ratio[9, 0] == pytest.approx(0.25, abs=0.02) and found.off[7, 0] == pytest.approx(0.57, abs=0.03)


def test_turned_mirrored_and_larger_hands_are_no_fault() -> None:
    rng = np.random.default_rng(2)
    places = rng.uniform(-20, 20, (12, 2))
    images = []
    for _ in range(40):
        angle, scale = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        hand = places * (rng.choice((-1, 1)), 1) * scale + rng.normal(0, 0.2, places.shape)
        images.append((50 + hand @ turn) / 100)
    images[3][5] += 0.1
    found = deviations(table_of(np.full((40, 12), 50), np.array(images, np.float32)))
    assert np.argwhere(found.place > LIMIT).tolist() == [[3, 5]]


def test_nothing_is_said_of_few_labels_or_of_none() -> None:
    rng = np.random.default_rng(3)
    for n in (0, 1, 9):
        found = deviations(table_of(np.full((n, 6), 50), rng.random((n, 6, 2)).astype(np.float32)))
        assert np.isnan(found.place).all() and np.isnan(found.size).all()


def test_unreadable_files_are_findings_and_stop_nothing(phantom_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(phantom_root, root, ignore=shutil.ignore_patterns("cache"))
    records = read_competition(root, "train")
    records[0].image.write_bytes(records[0].image.read_bytes()[:500])
    label_of(root, 1).write_text("{")
    found = explore(settings_of(root), 0)
    assert {(one.kind, one.image) for one in found.suspects} == {
        ("unreadable image", f"train/DCM/{records[0].subject}/{records[0].name}"),
        ("unreadable label", f"train/DCM/{records[1].subject}/{records[1].name}"),
    }
    assert found.statistics.images["train"] == 11 and found.statistics.labels["train"] == 10
    assert measure(Item("train", "x", Record(root / "none.png", None, "")), HAND_BONES) is None
    summary = value_of((write_eda(tmp_path / "out", found).parent / "summary.js").read_text())
    names = [case["name"] for case in summary["cases"]]
    assert any(records[1].name in name for name in names) and not any(records[0].name in name for name in names)


# ---- every layout, the command and the page ----


@pytest.mark.parametrize("name", TREES)
def test_every_layout(name: str, phantom_root: Path, tmp_path: Path) -> None:
    layout, classes, write, flags = TREES[name]
    root = write(phantom_root, tmp_path / "tree")
    named = [] if len(classes) > 1 else ["--classes", *classes]
    assert run("--data_root", root, "--out", tmp_path / "out", "--workers", 0, *flags, *named) == 0
    summary = value_of((tmp_path / "out" / "summary.js").read_text())
    assert summary["layout"] == layout
    assert {split["name"]: split["images"] for split in summary["splits"]} == {"train": 8, "val": 4, "test": 4}
    assert [row["labels"] for row in summary["areas"]] == [16] * len(classes)
    if layout == "labelme":
        assert summary["classes"] == sorted(classes)
    assert all(row["pixels"][0] > 0 for row in summary["areas"])
    assert len(summary["maps"]) == len(classes) + 1 and len(summary["cases"]) == 16


def run(*arguments: object) -> int:
    try:
        return command.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_the_command_writes_page_and_list(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    shutil.copytree(clean, root, ignore=shutil.ignore_patterns("cache"))
    blow_up(root)
    out = tmp_path / "out"
    for worst in (3, 2):  # a page is replaced
        assert run("--data_root", root, "--out", out, "--worst", worst, "--workers", 0) == 0
    printed = capsys.readouterr().out
    with open(out / "suspects.csv", newline="") as file:
        row, *others = csv.DictReader(file)
    assert f"suspicious: {1 + len(others)} findings in " in printed and f" of {2 * SUBJECTS + 4} images\n" in printed
    assert f"page:       {out / 'index.html'}\n" in printed
    assert (row["kind"], row["class"], row["severity"]) == ("odd size", "Lunate", "warning")
    assert float(row["units"]) > LIMIT and "times what is usual" in row["detail"]
    cases = sorted((out / "cases").iterdir())
    assert len(cases) == 2 and all(len(path.read_text()) <= MOST_BYTES for path in cases)
    assert value_of(cases[0].read_text())["name"] == row["image"]
    assert value_of((out / "summary.js").read_text())["cases"][0]["note"].startswith("odd size of Lunate: ")


def test_a_preset_draws_its_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ("--phantom_train", 2, "--phantom_test", 1, "--phantom_size", 128, "--workers", 0)
    assert run("--preset", "smoke", *small, "--data_root", "data", "--all") == 0
    assert len(list(Path("eda_report/cases").iterdir())) == 6
    assert openpyxl.load_workbook("data/meta_data.xlsx").active is not None


def test_it_runs_from_inside_its_folder() -> None:
    line = [sys.executable, "eda.py", "--worst", "0"]
    done = subprocess.run(line, cwd=ROOT / "scripts", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "worst is 0" in done.stderr


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--worst", "0"], 2, "worst is 0, but must be 1 or more; --all holds all images."),
        (["--data_root", "nowhere"], 1, "nowhere/train/DCM holds no images, and no other layout fits"),
        (["--out", str(ROOT / "docs")], 1, "docs exists and is no report, so it is left alone"),
        (["--clases", "bone"], 2, "clases"),
    ],
)
def test_what_is_wrong_is_said(flags: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*flags) == code
    captured = capsys.readouterr()
    assert said in captured.err + captured.out


def test_a_set_without_labels_has_a_page_too(phantom_root: Path, tmp_path: Path) -> None:
    for record in read_competition(phantom_root, "test"):
        target = tmp_path / "set" / "test" / "DCM" / record.subject / record.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(record.image, target)
    found = explore(settings_of(tmp_path / "set"), 0)
    summary = value_of((write_eda(tmp_path / "out", found).parent / "summary.js").read_text())
    assert summary["splits"] == [{"name": "test", "images": 4, "labels": 0, "subjects": 2}]
    assert summary["maps"] == [] and len(summary["cases"]) == 4


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        # Containers run as root, for whom Chromium has no sandbox; the pages are our own.
        found = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


class Opened:
    """A page, and what it said or asked for, which must be nothing."""

    def __init__(self, browser: Any, folder: Path, **options: Any) -> None:
        self.page = browser.new_page(**({"viewport": {"width": 900, "height": 600}} | options))
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.said.append(request.url) if "http" in request.url[:4] else None)
        self.page.goto((folder / "index.html").as_uri())

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *error: object) -> None:
        self.page.close()
        assert self.said == []


@pytest.fixture(scope="module")
def page_folder(faulty: Exploration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eda(tmp_path_factory.mktemp("page") / "out", faulty, 6).parent


def test_the_page_leads_to_a_suspicious_bone(browser: Any, faulty: Exploration, page_folder: Path) -> None:
    with Opened(browser, page_folder) as page:
        headings = page.locator("#summary section h2").all_text_contents()
        assert headings == ["Suspicious labels", "Sizes", "Grey values", "Classes", "Overlaps", "Positions", "Subjects"]
        rows = page.locator("[aria-label='Suspicious labels'] tbody tr")
        assert rows.count() == len(faulty.suspects)
        page.locator("[aria-label='Suspicious labels'] a").first.press("Enter")  # from the keyboard
        page.wait_for_function("() => document.querySelector('.status').textContent.includes(': 1 of 6')")
        first = faulty.suspects[0]
        assert first.image in page.locator(".status").text_content()
        assert first.detail in page.locator("#viewer .note").first.text_content()
        assert page.get_by_label("Labels (2)").is_checked()
        page.keyboard.press("b")
        page.wait_for_function("() => location.hash.includes('class=')")
        page.get_by_role("link", name="Summary").click()
        assert page.locator("#summary").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_screens_do_not_scroll_sideways(browser: Any, page_folder: Path, scheme: str) -> None:
    with Opened(browser, page_folder, viewport={"width": 400, "height": 800}, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)") == (
            scheme == "light"
        )


def test_markup_in_names_stays_text(browser: Any, tmp_path: Path) -> None:
    root, rng = tmp_path / "set", np.random.default_rng(0)
    root.mkdir()
    for name in (f"{MARKUP}.png".replace("/", ""), "b.png"):
        assert cv2.imwrite(str(root / name), rng.integers(0, 256, (64, 64)).astype(np.uint8))
        points = [[10, 10], [40, 10], [40, 40]]
        shape = {"label": MARKUP, "points": points, "shape_type": "polygon"}
        text = json.dumps({"shapes": [shape], "imageHeight": 64, "imageWidth": 64})
        (root / name).with_suffix(".json").write_text(text)
    found = explore(settings_of(root, classes=("auto",)), 0)
    with Opened(browser, write_eda(tmp_path / "out", found).parent) as page:
        assert page.locator("[aria-label='Classes'] tbody td").first.text_content() == MARKUP
        page.get_by_role("link", name="Open").click()
        page.wait_for_function("() => document.querySelector('.status').textContent.includes(' of 2')")
        assert page.locator(".name").first.text_content() == MARKUP
        assert page.evaluate("window.broken") is None
        assert page.locator("img[src='x']").count() == 0


def test_help_waits_for_nothing() -> None:
    code = "import sys, scripts.eda; print({'numpy', 'cv2', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
