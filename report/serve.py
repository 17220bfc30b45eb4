"""A report on 127.0.0.1, for a remote machine behind an SSH tunnel: there the page also takes new images and predicts
them with a checkpoint.

    GET  /checkpoints                  names of the experiments that can predict, as JSON
    POST /predict?checkpoint=K&name=F  an image file; returns {"page": …}, the address of a report of the prediction

A prediction runs inference/inference.py in a process of its own. What it writes is deleted when the server ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from config import BEST, ConfigProblem
from dataset.images import IMAGE_SUFFIXES
from dataset.readers import read_folder
from engine.files import FileProblem
from report.page import write_report
from report.sources import SUBMISSION, csvs, titled

HOST = "127.0.0.1"
LARGEST = 256 * 2**20
"""Bytes of an image file: a DICOM of 10 000 x 10 000 px has 200 MB."""
NEW = "/new/"
"""Address below which predictions lie."""
INFERENCE = Path(__file__).resolve().parent.parent / "inference"


def checkpoints(folders: list[Path]) -> dict[str, Path]:
    """Name -> folder of the experiments that have weights, their own or their folds'."""
    found = {folder.name: folder for folder in folders if (folder / BEST).exists()}
    return found | {folder.name: folder for folder in folders if any(folder.glob(f"fold*/{BEST}"))}


def predict(folder: Path, image: Path, output: Path) -> None:
    """Predict one image with an experiment's weights, or the mean of its folds, into a new folder.

    Raises:
        FileProblem: it can't be done; says what the inference said.
    """
    script = "inference.py" if (folder / BEST).exists() else "inference_kfold.py"
    named = ["--exp_name", folder.name, "--output_dir", str(folder.parent)]
    command = [sys.executable, str(INFERENCE / script), *named, "--input", str(image), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("error: ")
        raise FileProblem(f"{folder.name} could not predict {image.name}: {said}")


class Server(ThreadingHTTPServer):
    """Serves a report folder and predicts; use it as a context manager.

    Args:
        port: 0 takes a free one.

    Raises:
        ConfigProblem: the port is taken.
    """

    daemon_threads = True

    def __init__(self, report: Path, port: int, known: Mapping[str, Path]) -> None:
        self._made = tempfile.TemporaryDirectory(prefix="report-")
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise ConfigProblem(f"port {port} can't be used ({error.strerror}): give another --port.") from None
        self.report, self.known = report, dict(known)
        self.busy = threading.Lock()
        """One prediction at a time: two would share the GPU's memory."""
        self.count = 0
        self.made = Path(self._made.name)

    @property
    def address(self) -> str:
        """URL of the page."""
        return f"http://{HOST}:{self.server_port}/"

    def server_close(self) -> None:
        """Stop listening, and delete what was predicted."""
        super().server_close()
        self._made.cleanup()

    def predicted(self, checkpoint: str, name: str, data: bytes) -> str:
        """Predict an image file; returns the address of its report.

        Raises:
            FileProblem: an unknown checkpoint or type of file, or it can't be predicted.
        """
        if checkpoint not in self.known:
            raise FileProblem(f"{checkpoint!r} is no checkpoint of this server: choose one of {', '.join(self.known)}.")
        name = Path(name.replace("\\", "/")).name
        if Path(name).suffix.casefold() not in IMAGE_SUFFIXES or "\0" in name or len(name.encode()) > 200:
            raise FileProblem(f"{name!r} is no image: supported are {', '.join(IMAGE_SUFFIXES)}.")
        with self.busy:
            self.count += 1
            number = f"{self.count:04}"
            image = self.made / "images" / number / name
            image.parent.mkdir(parents=True)
            image.write_bytes(data)
            results = self.made / "results" / number
            predict(self.known[checkpoint], image, results)
            sources = titled(csvs([results / SUBMISSION], read_folder(image)), [checkpoint])
            write_report(self.made / NEW.strip("/") / number, sources)
        return f"{NEW}{number}/index.html#case={quote(name)}"


class Handler(SimpleHTTPRequestHandler):
    """Requests of the page; what another site makes the browser ask for is refused."""

    server: Server

    def do_GET(self) -> None:
        """A file of the report or of a prediction, or the checkpoints."""
        if not self._is_ours():
            self.send_error(HTTPStatus.FORBIDDEN)
        elif urlsplit(self.path).path == "/checkpoints":
            self._answer(HTTPStatus.OK, list(self.server.known))
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        """As do_GET, without the content."""
        if self._is_ours():
            super().do_HEAD()
        else:
            self.send_error(HTTPStatus.FORBIDDEN)

    def do_POST(self) -> None:
        """Predict the image that is sent."""
        size = int(self.headers.get("Content-Length") or 0)
        if not self._is_ours() or urlsplit(self.path).path != "/predict":
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        if not 0 < size <= LARGEST:
            self.close_connection = True
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"files must have 1 to {LARGEST} bytes."})
            return
        data = self.rfile.read(size)
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        try:
            page = self.server.predicted(asked.get("checkpoint", ""), asked.get("name", ""), data)
            self._answer(HTTPStatus.OK, {"page": page})
        except FileProblem as problem:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": str(problem)})

    def translate_path(self, path: str) -> str:
        """Where a file lies: predictions lie in a folder of their own."""
        new = urlsplit(path).path.startswith(NEW)
        self.directory = str(self.server.made if new else self.server.report)
        return super().translate_path(path)

    def list_directory(self, path: Any) -> None:
        """Folders are not listed."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""

    def _is_ours(self) -> bool:
        """Whether the address bar shows this server: a name that another site lets point here does not count."""
        # Behind a tunnel the port may be another one, so only the name counts; a browser's own Origin must agree.
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        return host.rsplit(":", 1)[0] in (HOST, "localhost") and origin in (None, f"http://{host}")

    def _answer(self, status: HTTPStatus, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
