"""Curves and pictures of a run: TensorBoard always, wandb where it is asked for. Neither can stop a run.

The only file that knows these two libraries; both are imported when they are used.
"""

from __future__ import annotations

import netrc
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

Mode = Literal["online", "offline", "disabled"]

SERVER = "https://api.wandb.ai"

SECONDS_TO_ANSWER = 3.0
"""How long wandb's server may take to say anything, names looked up and proxies included."""
SECONDS_TO_START = 30.0
"""How long wandb may take to begin a run, its server answering."""
SECONDS_TO_FINISH = 30.0
"""How long wandb may upload at the end; the rest lies on disk, for `wandb sync`."""

PICTURE_SIZE = 1024
"""Long side, px, that larger pictures are reduced to: one of 2048 has four times the pixels to encode."""


def wandb_mode(asked: str, environ: Mapping[str, str] = os.environ) -> Mode:
    """How wandb runs: to be decided first, as with a key and no network `wandb.init` blocks for 101 s (measured).

    Args:
        asked: off; offline (files for `wandb sync`); online, which becomes offline, with a line on stderr, where there
            is no key or no network; auto, which is online where there are both, else off.
        environ: its WANDB_MODE offline or disabled rules over auto; WANDB_BASE_URL names another server.
    """
    if asked in ("off", "offline"):
        return "offline" if asked == "offline" else "disabled"
    preset = environ.get("WANDB_MODE", "").casefold()
    if asked == "auto" and preset in ("offline", "disabled"):
        return "offline" if preset == "offline" else "disabled"
    server = environ.get("WANDB_BASE_URL") or SERVER
    host = server.partition("//")[2].partition("/")[0]
    if not _has_key(host, environ):
        fault = f"no key for {host}: run `wandb login`, or set WANDB_API_KEY"
    elif not _answers(server):
        fault = f"{host} does not answer"
    else:
        return "online"
    if asked == "auto":
        return "disabled"
    _warn(f"wandb is offline ({fault})")
    return "offline"


def _has_key(host: str, environ: Mapping[str, str]) -> bool:
    """Whether wandb would find a key: in the environment, or where `wandb login` writes it."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        entry = netrc.netrc(os.path.expanduser(environ.get("NETRC") or "~/.netrc")).authenticators(host)
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
    return bool(entry and entry[2])


def _answers(server: str) -> bool:
    """Whether the server says anything but that it is out of order. Connecting is not enough: a dead one may accept."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(f"{server.rstrip('/')}/healthz", timeout=SECONDS_TO_ANSWER).close()
            answered.set()
        except urllib.error.HTTPError as error:
            if error.code < 500:
                answered.set()
        except Exception:  # http.client, TLS and the name's encoding have errors of their own
            pass

    # Another thread, as looking a name up has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS_TO_ANSWER)
    return answered.is_set()


class _Sink(Protocol):
    """One tracker; any of its methods may raise."""

    name: str

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, rgb: NDArray[np.uint8]) -> None: ...

    def flush(self) -> None: ...

    def close(self, exit_code: int) -> None: ...


class Tracker:
    """Where the curves and pictures of a run go. A tracker that fails says so in one line on stderr and is off then.

    Args:
        folder: of the experiment; TensorBoard's files lie in folder/tensorboard, wandb's in folder/wandb.
        name: of the run in wandb.
        settings: shown by wandb; leave out what must not leave the machine.
        mode: of wandb, from `wandb_mode`.
        project: of wandb.
        first_step: the first step that this process will report, so one above the step it resumes at. TensorBoard
            drops what a killed process had reported from there on; wandb draws both, one over the other.
        run_id: `run_id` of the process that this one continues, None for a new run.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        settings: Mapping[str, Any],
        mode: Mode,
        project: str,
        first_step: int,
        run_id: str | None,
    ) -> None:
        self.run_id = run_id
        """wandb's name for the run; belongs into the saved state. None where wandb was never on."""
        self._sinks: list[_Sink] = []
        self._open("TensorBoard", lambda: _TensorBoard(folder / "tensorboard", first_step))
        if mode != "disabled":
            self._open("wandb", lambda: self._wandb(folder, name, settings, mode, project))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Report numbers by their names; a name may have groups (`dice/Ulna`)."""
        self._each(lambda sink: sink.scalars(step, values))

    def picture(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        """Report a (H, W, 3) uint8 BGR picture, such as `inference.overlay.draw_overlay` draws.

        wandb's own masks have one integer a pixel, which overlapping bones don't fit in: draw them.
        """
        factor = PICTURE_SIZE / max(picture.shape)
        if factor < 1:
            reduced = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            picture = np.asarray(reduced, dtype=np.uint8)
        rgb = np.ascontiguousarray(picture[..., ::-1])
        self._each(lambda sink: sink.picture(step, name, rgb))

    def flush(self) -> None:
        """Write TensorBoard's files: before a state is saved, or a process that is killed leaves a gap before it."""
        self._each(lambda sink: sink.flush())

    def close(self, exit_code: int = 0) -> None:
        """Write out what was reported and end; nothing can be reported afterwards."""
        self._each(lambda sink: sink.close(exit_code))
        self._sinks = []

    def _wandb(self, folder: Path, name: str, settings: Mapping[str, Any], mode: Mode, project: str) -> _Sink:
        sink = _Wandb(folder, name, settings, mode, project, self.run_id)
        self.run_id = sink.run.id
        return sink

    def _open(self, name: str, build: Callable[[], _Sink]) -> None:
        _works(name, lambda: self._sinks.append(build()))

    def _each(self, act: Callable[[_Sink], None]) -> None:
        self._sinks = [sink for sink in self._sinks if _works(sink.name, partial(act, sink))]


def _works(name: str, act: Callable[[], None]) -> bool:
    """Whether `act` goes through; else says why not."""
    try:
        act()
    except Exception as error:  # a tracker never stops a run
        reason = (str(error).splitlines() or [""])[0][:200]
        _warn(f"{name} is off from here on ({reason or type(error).__name__})")
        return False
    return True


def _warn(text: str) -> None:
    print(f"tracking: {text}", file=sys.stderr, flush=True)


class _TensorBoard:
    name = "TensorBoard"

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=first_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, rgb: NDArray[np.uint8]) -> None:
        self.writer.add_image(name, rgb, step, dataformats="HWC")

    def flush(self) -> None:
        self.writer.flush()

    def close(self, exit_code: int) -> None:
        self.writer.close()


class _Wandb:
    name = "wandb"

    def __init__(
        self, folder: Path, name: str, settings: Mapping[str, Any], mode: Mode, project: str, run_id: str | None
    ) -> None:
        # Its reports of its own errors would leave the machine, also when offline.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.image = wandb.Image
        self.run = wandb.init(
            dir=folder,
            project=project,
            name=name,
            config=dict(settings),
            mode=mode,
            id=run_id,
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(
                console="off",  # it would stand between the run and its output
                silent=True,
                init_timeout=SECONDS_TO_START,
                finish_timeout=SECONDS_TO_FINISH,
                # The command line with a webhook's address, user names and changed source lines; env.json has the rest.
                x_disable_meta=True,
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,  # system_load is reported as scalars
            ),
        )
        # wandb's own steps only grow, and what a resumed run reports again would be dropped.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        where = self.run.url if mode == "online" else f"upload with: wandb sync {self.run.settings.sync_dir}"
        print(f"wandb: {where}", file=sys.stderr, flush=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"step": step, **values})

    def picture(self, step: int, name: str, rgb: NDArray[np.uint8]) -> None:
        self.run.log({"step": step, name: self.image(rgb)})

    def flush(self) -> None:
        """Nothing can be done: wandb writes its offline file in blocks of 32 KiB, and a kill -9 loses the last one."""

    def close(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)
