"""engine/tracking.py: when wandb is on, what TensorBoard and wandb write, and trackers that break."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_notify import dead, serving
from torch.utils.tensorboard import SummaryWriter

from engine import tracking
from engine.tracking import Mode, Tracker, wandb_mode

KEY = "a" * 40
NO_KEY = {"NETRC": "/no/such/file"}


@pytest.fixture(autouse=True)
def on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the machine's proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def tracker(folder: Path, first_step: int = 0, mode: Mode = "disabled", run_id: str | None = None) -> Tracker:
    return Tracker(folder, "name", {"train": {"lr": 0.25}}, mode, "project", first_step, run_id)


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in events(folder).Scalars(name)]


# --- whether wandb is on


@pytest.mark.parametrize(("asked", "mode"), [("off", "disabled"), ("offline", "offline")])
def test_what_needs_no_network_asks_nobody(asked: str, mode: str, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(200) as server:
        assert wandb_mode(asked, {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}) == mode
    assert server.bodies == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("code", [200, 404])
@pytest.mark.parametrize("asked", ["auto", "online"])
def test_with_a_key_and_a_server_it_is_online(asked: str, code: int, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(code) as server:
        assert wandb_mode(asked, {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}) == "online"
    assert len(server.bodies) == 1
    assert capfd.readouterr().err == ""


def test_without_a_key_nobody_is_asked(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(200) as server:
        environ = NO_KEY | {"WANDB_BASE_URL": server.url}
        assert wandb_mode("auto", environ) == "disabled"
        assert capfd.readouterr().err == ""
        assert wandb_mode("online", environ) == "offline"
        err = capfd.readouterr().err
    assert "wandb login" in err and err.count("\n") == 1
    assert server.bodies == []


@pytest.mark.parametrize("kind", ["refuses", "hangs", "out of order", "no address"])
def test_a_server_that_does_not_answer(
    kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "SECONDS_TO_ANSWER", 0.2)
    with serving(503) as server, dead(accepts=kind == "hangs") as nobody:
        url = {"out of order": server.url, "no address": "http://["}.get(kind, nobody)
        environ = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": url}
        assert wandb_mode("auto", environ) == "disabled"
        assert capfd.readouterr().err == ""
        assert wandb_mode("online", environ) == "offline"
    err = capfd.readouterr().err
    assert "does not answer" in err and err.count("\n") == 1


def test_a_name_that_is_never_found_holds_up_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    found = threading.Event()

    def look_up(*args: object, **kwargs: object) -> None:
        found.wait()
        raise OSError("found too late")

    monkeypatch.setattr("socket.getaddrinfo", look_up)  # has no time limit, whatever urllib is told
    monkeypatch.setattr(tracking, "SECONDS_TO_ANSWER", 0.1)
    start = time.monotonic()
    assert wandb_mode("auto", {"WANDB_API_KEY": KEY}) == "disabled"
    assert time.monotonic() - start < 5
    found.set()


def test_the_key_may_lie_where_wandb_login_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "netrc"
    with serving(200) as server:
        environ = {"NETRC": str(file), "WANDB_BASE_URL": f"{server.url}/"}
        host = f"127.0.0.1:{server.server_port}"
        for text, mode in [
            (f"machine {host}\n  login user\n  password {KEY}\n", "online"),
            (f"machine elsewhere\n  login user\n  password {KEY}\n", "disabled"),
            ("machine", "disabled"),
            ("\udcff", "disabled"),
        ]:
            file.write_text(text, encoding="utf-8", errors="surrogateescape")
            assert wandb_mode("auto", environ) == mode, text


@pytest.mark.parametrize(
    ("preset", "asked", "mode"),
    [("offline", "auto", "offline"), ("disabled", "auto", "disabled"), ("disabled", "online", "online")],
)
def test_wandbs_own_variable_rules_over_auto_only(preset: str, asked: str, mode: str) -> None:
    with serving(200) as server:
        environ = {"WANDB_MODE": preset, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}
        assert wandb_mode(asked, environ) == mode


# --- TensorBoard


def test_tensorboard_reads_back_what_was_reported(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    record = tracker(tmp_path)
    for step in (1, 2):
        record.scalars(step, {"loss": 1 / step, "dice/Ulna": 0.25})
    record.picture(2, "overlay/ID001", picture)
    record.close()
    assert curve(tmp_path, "loss") == [(1, 1.0), (2, 0.5)]
    assert curve(tmp_path, "dice/Ulna") == [(1, 0.25), (2, 0.25)]
    (image,) = events(tmp_path).Images("overlay/ID001")
    read = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert image.step == 2
    np.testing.assert_array_equal(read, picture)
    assert record.run_id is None


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    """Blue above, red below, in BGR."""
    drawn = np.zeros((6, 8, 3), np.uint8)
    drawn[:3, :, 0] = drawn[3:, :, 2] = 200
    return drawn


def test_large_pictures_are_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "PICTURE_SIZE", 64)
    record = tracker(tmp_path)
    record.picture(0, "x", np.full((256, 128, 3), 7, np.uint8))
    record.close()
    (image,) = events(tmp_path).Images("x")
    assert (image.height, image.width) == (64, 32)


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_resumed_run_replaces_what_came_after_its_state(at: int, tmp_path: Path) -> None:
    killed = tracker(tmp_path)
    for step in range(1, 5):
        killed.scalars(step, {"loss": 10.0 + step})
    killed.flush()  # and never closed
    resumed = tracker(tmp_path, first_step=at + 1)
    for step in range(at + 1, 6):
        resumed.scalars(step, {"loss": 20.0 + step})
    resumed.close()
    assert curve(tmp_path, "loss") == [(step, (10.0 if step <= at else 20.0) + step) for step in range(1, 6)]
    killed.close()


def test_a_file_that_ends_in_the_middle_of_an_event_hides_only_that(tmp_path: Path) -> None:
    killed = tracker(tmp_path)
    for step in (1, 2):
        killed.scalars(step, {"loss": float(step)})
    killed.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    # Files are read in the order of their names, which two of the same second and process need not be written in.
    file.rename(file.with_name("events.out.tfevents.0000000001.earlier"))
    resumed = tracker(tmp_path, first_step=2)
    resumed.scalars(2, {"loss": 7.0})
    resumed.close()
    assert curve(tmp_path, "loss") == [(1, 1.0), (2, 7.0)]


# --- trackers that break


@pytest.mark.parametrize("method", ["add_scalar", "add_image", "flush", "close", "__init__"])
def test_a_tracker_that_breaks_is_off_after_one_line(
    method: str,
    tmp_path: Path,
    picture: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, method, fail)
    record = tracker(tmp_path)
    for step in range(3):
        record.scalars(step, {"loss": 1.0})
        record.picture(step, "x", picture)
        record.flush()
    record.close()
    record.scalars(4, {"loss": 1.0})
    err = capfd.readouterr().err
    assert err == "tracking: TensorBoard is off from here on ([Errno 28] No space left on device)\n"


class Broken:
    name = "wandb"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        raise RuntimeError


def test_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tracking, "_Wandb", lambda *args: Broken())
    monkeypatch.setattr(Broken, "run", type("Run", (), {"id": "abc"}), raising=False)
    record = tracker(tmp_path, mode="offline")
    record.scalars(1, {"loss": 1.0})
    record.scalars(2, {"loss": 0.5})
    record.close()
    assert record.run_id == "abc"
    assert capfd.readouterr().err == "tracking: wandb is off from here on (RuntimeError)\n"
    assert curve(tmp_path, "loss") == [(1, 1.0), (2, 0.5)]


# --- wandb itself


@pytest.fixture(scope="module")
def wandb_core() -> Iterator[Callable[[], None]]:
    """Ends wandb's own process, which all runs of a process share; nothing of wandb is left after the module."""
    import wandb  # here: it takes seconds

    def end() -> None:
        for child in psutil.Process().children():
            if "wandb-core" in child.name():
                child.kill()
                child.wait()

    yield end
    with suppress(ConnectionError):
        wandb.teardown()
    end()


def states() -> list[Any]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    return [random.getstate(), str(numpy_state), torch.get_rng_state().tolist()]


def test_wandb_offline_writes_files(
    wandb_core: object,
    tmp_path: Path,
    picture: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["run_exp.py", "--notify", "https://host/secret"])
    before = states()
    first = tracker(tmp_path, mode=wandb_mode("auto", {"WANDB_MODE": "offline"}))
    first.scalars(1, {"loss": 0.125})
    first.picture(1, "overlay", picture)
    first.close()
    assert states() == before  # a tracker draws none of the run's random numbers
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (file,) = folder.glob("run-*.wandb")
    assert first.run_id and first.run_id in file.name
    assert b"loss" in file.read_bytes()
    (image,) = folder.rglob("*.png")
    np.testing.assert_array_equal(cv2.imread(str(image)), picture)
    assert not [path for path in folder.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]
    assert f"wandb sync {folder}" in capfd.readouterr().err

    second = tracker(tmp_path, first_step=2, mode="offline", run_id=first.run_id)
    second.close()
    assert second.run_id == first.run_id


def test_a_server_that_dies_before_wandb_has_begun(
    wandb_core: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(tracking, "SECONDS_TO_START", 0.5)
    with dead(accepts=True) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        record = tracker(tmp_path, mode="online", run_id="abc")
        record.scalars(1, {"loss": 0.5})
        record.close()
    assert curve(tmp_path, "loss") == [(1, 0.5)]
    assert record.run_id == "abc"  # for a resumed run that finds the server well
    assert capfd.readouterr().err.count("tracking: wandb is off from here on") == 1


def test_wandbs_process_may_die(
    wandb_core: Callable[[], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record = tracker(tmp_path, mode="offline")
    wandb_core()
    for step in range(5):
        record.scalars(step, {"loss": 0.5})
    record.close(1)
    assert curve(tmp_path, "loss") == [(step, 0.5) for step in range(5)]
    assert capfd.readouterr().err.count("tracking: wandb is off from here on") == 1
