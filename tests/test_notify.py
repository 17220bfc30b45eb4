"""engine/notify.py: messages to a webhook that answers, fails, refuses, hangs or isn't there."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from config import ConfigProblem
from engine import notify
from engine.notify import check_url


class Server(ThreadingHTTPServer):
    """Answers its requests with these codes, one after the other, the last one for ever."""

    def __init__(self, codes: tuple[int, ...]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.codes = list(codes)
        self.bodies: list[bytes] = []
        self.types: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"] or 0)))
        self.server.types.append(self.headers["Content-Type"])
        self.send_response(self.server.codes.pop(0) if len(self.server.codes) > 1 else self.server.codes[0])
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the tests' stderr."""


@contextmanager
def serving(*codes: int) -> Iterator[Server]:
    """A server on this machine, alive inside the block."""
    with Server(codes) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def dead(accepts: bool) -> Iterator[str]:
    """The address of a server that accepts connections and never answers, or of none at all."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if accepts:
            listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_message_is_sent_once_in_slacks_format(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(200) as server:
        notify.notify(f"{server.url}/services/secret", 'Dice 0.91 in "größe" & <module>')
    # https://docs.slack.dev/messaging/formatting-message-text: &, < and > as entities, nothing else.
    assert [json.loads(body) for body in server.bodies] == [{"text": 'Dice 0.91 in "größe" &amp; &lt;module&gt;'}]
    assert server.types == ["application/json"]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("codes", [(500, 200), (429, 200), (500, 503, 200)])
def test_a_server_in_trouble_is_asked_again(codes: tuple[int, ...], capfd: pytest.CaptureFixture[str]) -> None:
    with serving(*codes) as server:
        notify.notify(server.url, "done")
    assert server.bodies == [b'{"text": "done"}'] * len(codes)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("code", "tries"), [(500, notify.TRIES), (404, 1), (403, 1)])
def test_a_refused_message_is_one_line(code: int, tries: int, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(code) as server:
        notify.notify(f"{server.url}/services/secret", "done")
    assert len(server.bodies) == tries
    err = capfd.readouterr().err
    assert err.startswith("notify: no message to 127.0.0.1 (") and str(code) in err
    assert err.count("\n") == 1 and "secret" not in err


@pytest.mark.parametrize("accepts", [False, True], ids=["no server", "hanging server"])
def test_a_dead_server_is_one_line(
    accepts: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notify, "SECONDS_A_TRY", 0.1)
    with dead(accepts) as url:
        notify.notify(url, "done")
    err = capfd.readouterr().err
    assert err.startswith("notify: no message to 127.0.0.1 (") and err.count("\n") == 1


def test_a_name_that_is_never_found_holds_up_for_a_while_only(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found = threading.Event()

    def look_up(*args: object, **kwargs: object) -> None:
        found.wait()
        raise OSError("found too late")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)  # has no time limit, whatever urllib is told
    monkeypatch.setattr(notify, "SECONDS", 0.1)
    start = time.monotonic()
    notify.notify("http://nowhere.example/secret", "done")
    assert time.monotonic() - start < 5
    assert capfd.readouterr().err == "notify: no message to nowhere.example (no answer within 0.1 s)\n"
    found.set()


def test_no_address_sends_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    check_url("")
    notify.notify("", "done")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("url", ["hooks.slack.com/x", "ftp://host/x", "file:///etc/x", "https://", "http://[x", "1"])
def test_other_addresses_are_refused_at_the_start(url: str) -> None:
    check_url("https://hooks.slack.com/services/T0/B0/x")
    with pytest.raises(ConfigProblem, match=r"notify is .*https://host"):
        check_url(url)
