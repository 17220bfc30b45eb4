"""--serve: bound to this machine, deaf to other sites, and a new image comes back predicted."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from report_data import write_experiment, write_predictions

from config import BEST, ConfigProblem
from dataset.readers import Record, read_competition
from engine.files import FileProblem
from report import serve
from report.page import write_report
from report.serve import HOST, Server, checkpoints
from report.sources import experiments
from scripts import report as command


@pytest.fixture(scope="module")
def served(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    experiment = write_experiment(folder / "K", phantom_root)
    write_report(folder / "out", experiments([experiment]), worst=1)
    with Server(folder / "out", 0, {"K": experiment}) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, phantom_root: Path) -> list[Record]:
    """Predictions without a network; returns the images that may be sent."""
    records = read_competition(phantom_root, "test")

    def predict(folder: Path, image: Path, output: Path) -> None:
        assert image.read_bytes() == records[0].image.read_bytes()
        label = Record(image, records[0].label, "new")
        write_predictions(output / "submission.csv", [label], 2)

    monkeypatch.setattr(serve, "predict", predict)
    return records


def ask(
    server: Server, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=30)
    connection.request(method, path, body, dict(headers or {}))
    response = connection.getresponse()
    return response.status, response.read()


def test_it_listens_on_this_machine_only(served: Server) -> None:
    assert served.server_address[0] == "127.0.0.1"
    assert served.address == f"http://127.0.0.1:{served.server_port}/"


def test_the_report_is_served_and_nothing_else(served: Server) -> None:
    status, page = ask(served, "GET", "/index.html")
    assert (status, page) == (200, (served.report / "index.html").read_bytes())
    for path in ("/cases/", "/../K/config.json", "/%2e%2e/K/config.json", "/new/", "/new/../images/", "/nothing.js"):
        assert ask(served, "GET", path)[0] == 404, path


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example:80"}, {"Host": "127.0.0.1.evil.example"}, {"Origin": "http://evil.example"}]
)
def test_other_sites_are_refused(served: Server, headers: dict[str, str]) -> None:
    assert ask(served, "GET", "/index.html", headers=headers)[0] == 403
    assert ask(served, "POST", "/predict?checkpoint=K&name=a.png", b"x", headers)[0] == 403


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("checkpoint=L&name=a.png", "'L' is no checkpoint of this server: choose one of K."),
        ("checkpoint=K&name=a.txt", "'a.txt' is no image: supported are .png, .jpg"),
        ("checkpoint=K&name=a%00.png", "is no image"),
        ("", "'' is no checkpoint"),
    ],
)
def test_what_is_wrong_is_said(served: Server, query: str, said: str) -> None:
    status, answer = ask(served, "POST", f"/predict?{query}", b"x")
    assert status == 400
    assert said in json.loads(answer)["error"]


def test_empty_and_huge_files_are_refused(served: Server) -> None:
    assert ask(served, "POST", "/predict?checkpoint=K&name=a.png", b"")[0] == 413
    assert ask(served, "POST", "/predict?checkpoint=K&name=a.png", b"x", {"Content-Length": str(2**40)})[0] == 413


def test_a_new_image_is_predicted(served: Server, quick: list[Record]) -> None:
    query = "/predict?checkpoint=K&name=..%2F..%2Fmy%20hand.png"
    status, answer = ask(served, "POST", query, quick[0].image.read_bytes())
    assert status == 200
    page = json.loads(answer)["page"]
    assert page.endswith("/index.html#case=my%20hand.png")
    assert ask(served, "GET", page.split("#")[0])[0] == 200
    assert b'"title":"K"' in ask(served, "GET", page.split("index")[0] + "summary.js")[1]


def test_the_page_sends_an_image_and_shows_the_prediction(served: Server, quick: list[Record]) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page: Any = browser.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(served.address)
        page.locator("#upload-file").set_input_files(quick[0].image)
        page.get_by_role("button", name="Predict").click()
        page.wait_for_url("**/new/**")
        page.wait_for_function("() => document.querySelector('.status')?.textContent.includes(': 1 of 1')")
        assert page.locator(".panel figcaption").text_content() == "K"
        browser.close()
    assert said == []


def test_checkpoints_are_experiments_with_weights(tmp_path: Path) -> None:
    for name in ("A/fold0", "B", "C"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("A/fold0", "B"):
        (tmp_path / name / BEST).touch()
    assert checkpoints(sorted(tmp_path.iterdir())) == {"A": tmp_path / "A", "B": tmp_path / "B"}


def test_the_reason_of_a_failed_prediction_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phantom_root: Path
) -> None:
    scripts = tmp_path / "inference"
    scripts.mkdir()
    (scripts / "inference_kfold.py").write_text("import sys; sys.exit('error: weights are of another network')")
    monkeypatch.setattr(serve, "INFERENCE", scripts)
    with pytest.raises(FileProblem, match=r"K could not predict a\.png: weights are of another network$"):
        serve.predict(tmp_path / "K", tmp_path / "a.png", tmp_path / "out")


def test_a_port_in_use_is_said(served: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigProblem, match=r"port \d+ can't be used \(Address already in use\): give another --port"):
        Server(tmp_path, served.server_port, {})
    with pytest.raises(SystemExit):
        command.main(["K", "--port", "70000"])
    assert "port is 70000, but must lie between 0 and 65535." in capsys.readouterr().err
