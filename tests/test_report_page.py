"""The report in a browser: Debian's Chromium through Playwright, from the file system; skipped where there is none."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_data import write_experiment, write_predictions

from dataset.readers import Record, read_competition
from engine import leaderboard
from engine.rle import runs_of_bits
from inference.metrics import write_csv
from report.case import pack_layer
from report.page import write_report
from report.sources import Source, csvs, experiments

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("there is no Chromium: apt-get install chromium", allow_module_level=True)

MARKUP = '<img src=x onerror="window.broken=1">&amp;'
"""As a file's and as a class's name."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # Containers run as root, for whom Chromium has no sandbox; the pages are our own.
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def single(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    return write_report(folder / "out", experiments([write_experiment(folder / "K", phantom_root)])).parent


@pytest.fixture(scope="module")
def pair(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    runs = [write_experiment(folder / name, phantom_root, shift) for name, shift in (("K", 1), ("L", 6))]
    return write_report(folder / "out", experiments(runs)).parent


class Opened:
    """A page, and what it did that no report may do."""

    def __init__(self, browser: Any, folder: Path, state: str = "", **options: Any) -> None:
        self.page = browser.new_page(**({"viewport": {"width": 900, "height": 600}} | options))
        self.folder = folder
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.goto(f"{(folder / 'index.html').as_uri()}{state}")

    def _asked(self, url: str) -> None:
        if not url.startswith((self.folder.as_uri(), "data:", "blob:")):
            self.said.append(f"request for {url}")

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *error: object) -> None:
        self.page.close()
        assert self.said == []


def cases(folder: Path) -> list[str]:
    text = (folder / "summary.js").read_text()
    return [case["name"] for case in json.loads(text[text.index("(") + 1 : text.rindex(")")])["cases"]]


def shown(page: Any, index: int = 0) -> str:
    """What a canvas shows after the next frame, as PNG."""
    return str(
        page.evaluate(
            """(index) => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() =>
            done(document.querySelectorAll('.panel canvas')[index].toDataURL()))))""",
            index,
        )
    )


def loaded(page: Any, name: str) -> None:
    page.wait_for_function("(name) => document.querySelector('.status').textContent.includes(name + ':')", arg=name)


def test_the_summary_shows_everything_and_sorts(browser: Any, single: Path) -> None:
    with Opened(browser, single) as page:
        headings = page.locator("#summary section h2").all_text_contents()
        assert headings == [
            *("Worst first", "Dice of each bone", "Images by their Dice", "Settings", "Training", "Dice by threshold"),
            "Time and memory",
        ]
        table = page.locator("[aria-label='Dice of each bone'] table").last
        first = table.locator("tbody tr td").first
        assert first.text_content() == "finger-1"
        table.get_by_role("button", name="Mean").click()
        means = [float(text) for text in table.locator("tbody tr td:nth-child(2)").all_text_contents()]
        assert means == sorted(means)
        table.get_by_role("button", name="Mean").press("Enter")
        means = [float(text) for text in table.locator("tbody tr td:nth-child(2)").all_text_contents()]
        assert means == sorted(means, reverse=True)
        assert table.locator("th[aria-sort=descending]").text_content() == "Mean"
        page.get_by_label("Bone", exact=True).select_option("Radius")
        assert page.locator("svg[aria-label='Dice by threshold'] polyline.strong").count() == 1


def test_clicks_lead_to_an_image_and_back(browser: Any, single: Path) -> None:
    names = cases(single)
    with Opened(browser, single) as page:
        page.get_by_role("link", name="Open the worst image").click()
        loaded(page, names[0])
        first = shown(page)
        page.get_by_role("button", name="Next worst ›").click()
        loaded(page, names[1])
        assert shown(page) != first
        page.go_back()
        loaded(page, names[0])
        assert shown(page) == first
        page.get_by_role("link", name="Summary").click()
        assert page.locator("#summary").is_visible()
        assert not page.locator("#viewer").is_visible()


def test_classes_modes_and_styles_change_the_picture_and_the_link(browser: Any, single: Path) -> None:
    name = cases(single)[0]
    with Opened(browser, single, f"#case={name}") as page:
        loaded(page, name)
        pictures = [shown(page)]
        for label in ("Truth (1)", "Difference (3)", "Fills (f)"):
            page.get_by_label(label).check()
            pictures.append(shown(page))
        page.get_by_label("show Radius", exact=True).uncheck()
        pictures.append(shown(page))
        page.get_by_role("button", name="None").click()
        bare = shown(page)
        assert all(a != b for i, a in enumerate([*pictures, bare]) for b in pictures[:i])
        assert "missed" in page.locator("#viewer .legend").text_content()
        page.get_by_role("button", name="All", exact=True).click()
        page.get_by_role("button", name="Radius").click()
        assert f"case={name}&class=Radius&show=difference&style=fill" in page.url
        url, focused = page.url, shown(page)
    with Opened(browser, single, url[url.index("#") :]) as page:  # a link to the state
        loaded(page, name)
        assert shown(page) == focused
        assert page.get_by_role("button", name="Radius").get_attribute("aria-pressed") == "true"


def test_keys(browser: Any, single: Path) -> None:
    names = cases(single)
    with Opened(browser, single, f"#case={names[0]}") as page:
        loaded(page, names[0])
        start = shown(page)
        for key, end in (("1", "show=truth"), ("3", "show=difference"), ("f", "style=fill"), ("a", "hide=0%2C1")):
            page.keyboard.press(key)
            assert end in page.url
        for key in ("2", "f", "a"):
            page.keyboard.press(key)
        assert page.url.endswith(f"#case={names[0]}")
        assert shown(page) == start
        page.locator(".panel canvas").focus()
        for key in ("+", "ArrowLeft", "ArrowUp", "-"):
            page.keyboard.press(key)
            moved = shown(page)
            assert moved != start
        page.keyboard.press("0")
        assert shown(page) == start
        page.keyboard.press("n")
        loaded(page, names[1])
        page.keyboard.press("p")
        loaded(page, names[0])
        page.keyboard.press("b")
        page.wait_for_function("() => location.hash.includes('class=')")
        page.keyboard.press("o")
        assert page.locator(".classes input:checked").count() == 1


def test_mouse_wheel_drag_grey_values_and_names(browser: Any, single: Path) -> None:
    name = cases(single)[0]
    with Opened(browser, single, f"#case={name}&class=Radius") as page:
        loaded(page, name)
        box = page.locator(".panel canvas").bounding_box()
        middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.move(*middle)
        assert "Radius" in page.locator(".hint").text_content()
        pictures = [shown(page)]
        page.mouse.wheel(0, -300)
        pictures.append(shown(page))
        page.mouse.down()
        page.mouse.move(middle[0] + 40, middle[1] + 20)
        page.mouse.up()
        pictures.append(shown(page))
        page.keyboard.down("Shift")
        page.mouse.down()
        page.mouse.move(middle[0] - 10, middle[1])
        page.mouse.up()
        page.keyboard.up("Shift")
        pictures.append(shown(page))
        assert "window=" in page.url
        assert all(a != b for i, a in enumerate(pictures) for b in pictures[:i])
        page.keyboard.press("r")
        assert "window=" not in page.url
        page.mouse.move(1, 1)
        assert page.locator(".hint").is_hidden()


def test_two_fingers_zoom(browser: Any, single: Path) -> None:
    name = cases(single)[0]
    with Opened(browser, single, f"#case={name}", has_touch=True, viewport={"width": 400, "height": 800}) as page:
        loaded(page, name)
        before = shown(page)
        box = page.locator(".panel canvas").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        client = page.context.new_cdp_session(page)

        def touch(kind: str, *spread: float) -> None:
            points = [{"x": x + side * s, "y": y, "id": int(side > 0)} for s in spread for side in (-1, 1)]
            client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", 20)
        for spread in (40, 60, 80):
            touch("touchMove", spread)
        touch("touchEnd")
        assert shown(page) != before
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", ["", "#case={}"])
def test_narrow_screens_do_not_scroll_sideways(browser: Any, pair: Path, scheme: str, state: str) -> None:
    size = {"width": 400, "height": 800}
    with Opened(browser, pair, state.format(cases(pair)[0]), viewport=size, color_scheme=scheme) as page:
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        page_grey = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (page_grey == "rgb(255, 255, 255)") == (scheme == "light")


def test_two_experiments_stand_side_by_side_and_move_together(browser: Any, pair: Path) -> None:
    name = cases(pair)[0]
    with Opened(browser, pair, f"#case={name}") as page:
        loaded(page, name)
        captions = page.locator(".panel figcaption").all_text_contents()
        assert [text.split(",")[0] for text in captions] == ["K", "L"]
        boxes = [page.locator(".panel canvas").nth(i).bounding_box() for i in (0, 1)]
        assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
        before = [shown(page, i) for i in (0, 1)]
        assert before[0] != before[1]
        page.locator(".panel canvas").nth(1).hover()
        page.mouse.wheel(0, -200)
        assert all(shown(page, i) != before[i] for i in (0, 1))
        page.get_by_label("Truth (1)").check()
        assert shown(page, 0) == shown(page, 1)


def test_without_labels_the_two_are_compared_with_each_other(browser: Any, phantom_root: Path, tmp_path: Path) -> None:
    records = [Record(record.image, None, record.subject) for record in read_competition(phantom_root, "test")]
    labelled = read_competition(phantom_root, "test")
    paths = [write_predictions(tmp_path / f"{name}.csv", labelled, shift) for name, shift in (("a", 1), ("b", 5))]
    folder = write_report(tmp_path / "out", csvs(paths, records)).parent
    name = cases(folder)[0]
    with Opened(browser, folder, f"#case={name}&show=difference") as page:
        loaded(page, name)
        assert page.get_by_label("Truth (1)").count() == 0
        assert page.locator("#viewer .legend").text_content() == "only in a.csvnot in a.csv"
        shown(page)


def test_markup_in_names_stays_text(browser: Any, phantom_root: Path, tmp_path: Path) -> None:
    image = tmp_path / "images" / f"{MARKUP}.png"
    image.parent.mkdir()
    shutil.copy(read_competition(phantom_root, "test")[0].image, image)
    csv = tmp_path / f"{MARKUP}.csv"
    rows = [("image_name", "class", "rle"), (image.name, MARKUP, "5000 40 5128 40"), (image.name, "b", "")]
    write_csv(csv, rows)
    folder = write_report(tmp_path / "out", csvs([csv], [Record(image, None, MARKUP)])).parent
    with Opened(browser, folder) as page:
        assert page.title() == csv.name
        page.get_by_role("link", name=image.name).click()
        loaded(page, image.name)
        assert page.locator(".name").first.text_content() == MARKUP
        page.locator(".name").first.click()
        page.locator(".panel canvas").hover()
        assert page.locator(".hint").text_content() == MARKUP
        assert page.locator("img").count() == 0
        assert page.evaluate("window.broken") is None


def test_an_image_that_is_not_held_is_named(browser: Any, single: Path) -> None:
    with Opened(browser, single, "#case=other.png&class=nothing") as page:
        said = page.locator(".status").text_content()
        assert said == "other.png is not here. This report holds 4 of 4 images: write it with --all to have every one."
        page.evaluate(f"location.hash = '#case={cases(single)[0]}'")
        loaded(page, cases(single)[0])
        shown(page)


def test_masks_are_decoded_compared_and_traced_exactly(browser: Any, single: Path) -> None:
    rng = np.random.default_rng(1)
    checks = np.indices((9, 12)).sum(0) % 2 == 0  # four pixels meet at every corner
    masks = [rng.random((9, 12)) < share for share in (0.05, 0.3, 0.5, 0.7, 1.0)] + [checks, ~checks]
    masks += [np.zeros((9, 12), bool)]
    with Opened(browser, single) as page:
        for mask, other in zip(masks, masks[1:] + masks[:1], strict=True):
            layers = [pack_layer(runs_of_bits(m[None].astype(np.int32), 1), 9, 12) for m in (mask, other)]
            found = page.evaluate(
                """async (layers) => {
                  const [a, b] = await Promise.all(layers.map((layer) => Report.decodeLayer(layer, 12)));
                  const paint = (ends) => { const m = new Array(108).fill(0);
                    for (let i = 0; i < ends.length; i += 2) m.fill(1, ends[i], ends[i + 1]); return m; };
                  const canvas = new OffscreenCanvas(24, 18), c = canvas.getContext('2d');
                  c.fill(Report.outline(a.masks[0], 12, 2), 'evenodd');
                  const drawn = [...c.getImageData(0, 0, 24, 18).data].filter((_, i) => i % 4 === 3);
                  const inside = [...new Array(108).keys()].map((i) =>
                    Number(Report.contains(a, 0, i % 12, Math.floor(i / 12))));
                  return { a: paint(a.masks[0]), minus: paint(Report.subtract(a.masks[0], b.masks[0])), drawn, inside,
                    box: Report.boxOf(a.masks[0], 12) }; }""",
                layers,
            )
            assert found["a"] == found["inside"] == mask.ravel().astype(int).tolist()
            assert found["minus"] == (mask & ~other).ravel().astype(int).tolist()
            assert found["drawn"] == (255 * np.kron(mask, np.ones((2, 2), int))).ravel().tolist()
            places = np.argwhere(mask)
            box = [*places.min(0)[::-1], *(places.max(0)[::-1] + 1)] if len(places) else None
            assert found["box"] == box


def test_touching_runs_are_one(browser: Any, single: Path) -> None:
    layer = pack_layer([np.array([[1, 3], [3, 14]])], 2, 12)
    assert base64.b64decode(str(layer["data"]))
    with Opened(browser, single) as page:
        ends = page.evaluate("async (layer) => [...(await Report.decodeLayer(layer, 12)).masks[0]]", layer)
        assert ends == [1, 12, 12, 14]


def test_a_missing_case_is_said(browser: Any, single: Path, tmp_path: Path) -> None:
    shutil.copytree(single, tmp_path / "out")
    (tmp_path / "out" / "cases" / "0001.js").unlink()
    opened = Opened(browser, tmp_path / "out", f"#case={cases(single)[0]}")
    opened.page.wait_for_function("() => document.querySelector('.status').textContent.includes('is missing')")
    assert opened.page.locator(".status").text_content() == "cases/0001.js is missing or cannot be read."
    opened.page.close()


def test_sources_may_be_many(phantom_root: Path, tmp_path: Path, browser: Any) -> None:
    sources: list[Source] = experiments([write_experiment(tmp_path / n, phantom_root, k) for k, n in enumerate("KLM")])
    folder = write_report(tmp_path / "out", sources, 1).parent
    with Opened(browser, folder, f"#case={cases(folder)[0]}") as page:
        loaded(page, cases(folder)[0])
        assert page.locator(".panel canvas").count() == 3


@pytest.fixture(scope="module")
def among(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of K, beside experiments with and without a report of their own."""
    folder = tmp_path_factory.mktemp("among")
    for name, lr in ((MARKUP.replace("/", ""), 1e-3), ("dull", 1e-5), ("fine", 2.5e-4)):
        other = write_experiment(folder / name, phantom_root, lr=lr, epoch=9)
        (other / "val_dice.csv").write_text(f"image,Radius\na,{1 - 100 * lr}\nb,{1 - 200 * lr}\n")
    (folder / "dull" / "val_dice.csv").unlink()
    (folder / "dull" / "result.json").write_text('{"exit_code": 1}')
    write_report(folder / "fine" / "report", experiments([folder / "fine"]))
    mine = write_experiment(folder / "K", phantom_root, epoch=9)
    return write_report(mine / "report", experiments([mine])).parent


def names_shown(page: Any) -> list[str]:
    found: list[str] = page.locator(".listing tbody tr td:first-child").all_text_contents()
    return found


def test_all_experiments_are_sorted_by_clicks_and_keys(browser: Any, among: Path) -> None:
    odd = MARKUP.replace("/", "")
    with Opened(browser, among) as page:
        table = page.locator(".listing")
        assert names_shown(page) == ["fine", odd, "K", "dull"], "without a Dice last"
        assert table.locator("tbody tr").first.text_content().startswith("finedied0.96250.01252")
        assert table.locator("strong").all_text_contents() == ["K"]
        table.get_by_role("button", name="dice").press("Enter")
        assert names_shown(page) == ["K", odd, "fine", "dull"]
        table.get_by_role("button", name="lr", exact=True).click()
        assert names_shown(page) == ["dull", "K", "fine", odd]
        assert table.locator("th[aria-sort=ascending]").text_content() == "lr"
        assert page.evaluate("window.broken") is None


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", "fine odd K dull"),
        ("FAILED", "dull"),
        ("dice>=0.59", "fine odd K"),
        ("dice<0.9 fi", ""),
        ("lr=1e-4", "K"),
        ("lr!=1e-4 state=died", "fine odd"),
        ("state!=Failed", "fine odd K"),
        ("experiment~N", "fine odd"),
        ("test>0", ""),
        ("epochs=9 data_root~set", "fine odd K dull"),  # what is alike in all has no column
    ],
)
def test_all_experiments_are_filtered_as_the_command_does(
    text: str, kept: str, browser: Any, among: Path
) -> None:
    with Opened(browser, among) as page:
        page.get_by_label("Filter").fill(text)
        found = ["odd" if "<" in name else name for name in names_shown(page)]
        assert " ".join(found) == kept
        assert f"{len(found)} of 4 experiments." == page.locator("section [role=status]").text_content()
    conditions = text.split()
    if all(re.search("[=<>~]", each) for each in conditions):
        rows = leaderboard.read_rows(among.parent.parent, {})
        same = {row.experiment for row in leaderboard.kept(rows, conditions)}
        assert {"odd" if "<" in name else name for name in same} == set(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [("dicce>1", "dicce is no column here."), ("lr<fast", "lr<fast: fast is no number, which < needs.")],
)
def test_a_filter_that_says_nothing_leaves_all(text: str, said: str, browser: Any, among: Path) -> None:
    with Opened(browser, among) as page:
        page.get_by_label("Filter").fill(text)
        assert page.locator("section [role=status]").text_content() == said
        assert len(names_shown(page)) == 4


def test_an_experiment_leads_to_its_own_report(browser: Any, among: Path) -> None:
    page = browser.new_page()
    page.goto((among / "index.html").as_uri())
    (link,) = page.locator(".listing a").all()
    link.click()
    page.wait_for_function("document.title === 'fine'")
    assert page.locator("#summary").is_visible()
    page.close()
