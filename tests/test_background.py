"""engine/background.py and engine/control.py: runs on record, in the background and in the foreground."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from config import ConfigProblem
from engine import background, control
from engine.background import BACKGROUND, FOREGROUND, QUEUE, Record, last_words, note, on_record, public, read_record
from engine.files import FileProblem
from engine.jobs.process import BOOT, MARK, Identity, kill_marked, marked

ROOT = Path(__file__).resolve().parent.parent

JOB = f'''
import ctypes, os, signal, subprocess, sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from engine import background
from engine.files import FileProblem
from engine.flags import run_command
from engine.stop import StopFlag

kind, name, folder = sys.argv[1:4]

def ready():
    print("ready", kind, flush=True)

def wait():
    with StopFlag() as flag:
        ready()
        while not flag.signum:
            time.sleep(0.005)

def run():
    if kind == "done":
        print("session", os.getsid(0) == os.getpid(), "stdin", repr(sys.stdin.read()), flush=True)
        print("to stderr", file=sys.stderr)
    elif kind == "raises":
        raise RuntimeError("boom\\nand more")
    elif kind == "problem":
        raise FileProblem("x.png is empty: copy it again.")
    elif kind == "crashes":
        ctypes.string_at(0)
    elif kind == "saves":
        wait()
        print("saved", flush=True)
        return 75
    elif kind == "talks":
        print(*(f"line {{k}}" for k in range(20)), sep="\\n", flush=True)
        wait()
        sys.stdout.buffer.write("é".encode()[:1])
        sys.stdout.flush()
        print("\\nlast line", flush=True)
        return 75
    elif kind == "waits":
        ready()
        signal.pause()
    elif kind == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ready()
        signal.pause()
    elif kind == "children":
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        ready()
        signal.pause()
    return 0

sys.exit(run_command(lambda: background.on_record(name, Path(folder), sys.argv[1:], run)))
'''


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """In an empty folder; what a test leaves running there is killed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(MARK, raising=False)
    Path("job.py").write_text(JOB)
    yield
    monkeypatch.undo()
    for path in (tmp_path / "log").glob("*.json"):
        if record := read_if_whole(tmp_path, path):
            kill_marked(record.token)
            if record.lives_here and record.identity.pid != os.getpid():
                os.kill(record.identity.pid, signal.SIGKILL)


def read_if_whole(folder: Path, path: Path) -> Record | None:
    before = os.getcwd()
    os.chdir(folder)
    try:
        return background.known(path.stem)
    finally:
        os.chdir(before)


def begin(kind: str, name: str = "exp", folder: str = "runs/exp") -> str:
    said = background.start(["job.py", kind, name, folder], name)
    if kind in ("saves", "talks", "waits", "deaf", "children"):
        wait_for(lambda: f"ready {kind}" in log_of(name))
    return said


def record_of(name: str = "exp") -> Record:
    found = read_record(name)
    assert found is not None
    return found


def log_of(name: str = "exp") -> list[str]:
    return (background.LOG / f"{name}.log").read_text(encoding="utf-8").splitlines()


def wait_for(true: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "nothing has happened for 20 s"
        time.sleep(0.005)


def gone(record: Record) -> bool:
    return not record.identity.alive()


def foreground(kind: str, name: str = "exp", folder: str = "runs/exp", **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "job.py", kind, name, folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **more},
    )  # fmt: skip


def is_ready(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline().startswith("ready")


# --- in the background


def test_a_run_in_the_background_is_detached_logged_and_on_record() -> None:
    Path("log").mkdir()
    Path("log/exp.log").write_text("an earlier run\n")
    before = time.time()
    said = begin("saves")
    record = record_of()
    assert f"process {record.identity.pid}" in said
    assert "log/exp.log" in said and "--stop exp" in said
    assert record.identity == Identity.of(record.identity.pid)  # pid, start time, boot id
    written = json.loads(Path("log/exp.json").read_text())
    assert written["identity"]["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert record.argv == ("saves", "exp", "runs/exp")
    assert before <= record.started <= time.time()
    assert (record.ended, record.exit_code, record.where) == (None, None, BACKGROUND)
    assert record.folder == str(Path("runs/exp").resolve())
    assert record.state() == "running"
    assert control.stop("exp") == 0
    lines = log_of()
    assert lines[0] == "an earlier run"
    assert re.fullmatch(r"--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S*python\S* -u job.py saves exp runs/exp", lines[1])
    assert lines[2:4] == ["ready saves", "saved"]
    assert re.fullmatch(r"--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d ended with exit code 75", lines[4])
    after = record_of()
    assert after.exit_code == 75
    assert after.ended is not None and before < after.ended <= time.time()
    assert after.state() == "stopped, resumable"


def test_it_has_a_session_of_its_own_and_no_input() -> None:
    begin("done")
    wait_for(lambda: record_of().ended)
    wait_for(lambda: gone(record_of()))
    assert log_of()[1:3] == ["session True stdin ''", "to stderr"]
    assert record_of().state() == "done"
    begin("done")  # what has ended does not stand in the way
    wait_for(lambda: record_of().ended)


def test_it_survives_the_hangup_of_its_terminal() -> None:
    starter = "from engine import background as b; b.start(['job.py', 'saves', 'exp', 'runs/exp'], 'exp')"
    pid, terminal = pty.fork()
    if not pid:
        os.execve(
            "/bin/sh", ["sh", "-c", f'{sys.executable} -c "{starter}"; echo started; cat'],
            {**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    said = b""
    while b"started" not in said:
        said += os.read(terminal, 1000)
    os.close(terminal)  # as ssh does when the connection is lost
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGHUP
    record = record_of()
    assert record.lives
    assert os.getsid(record.identity.pid) == record.identity.pid
    assert control.stop("exp") == 0
    assert record_of().exit_code == 75


def test_a_crash_leaves_its_traceback_in_the_log_and_its_state_on_record() -> None:
    with suppress(FileProblem):  # which says so where it is quick
        begin("raises")
    wait_for(lambda: record_of().ended)
    wait_for(lambda: gone(record_of()))
    lines = log_of()
    assert "Traceback (most recent call last):" in lines
    assert lines[-3:-1] == ["RuntimeError: boom", "and more"]
    assert lines[-1].endswith("ended with exit code 1")
    assert record_of().exit_code == 1
    assert record_of().state() == "failed, exit code 1: RuntimeError: boom"


def test_what_users_can_mend_is_on_record_too() -> None:
    with_sentence = foreground("problem")
    _, err = with_sentence.communicate()
    assert with_sentence.returncode == 1
    assert err == "error: x.png is empty: copy it again.\n"
    assert record_of().state() == "failed, exit code 1: FileProblem: x.png is empty: copy it again."


def test_a_crash_in_c_leaves_its_traceback_too() -> None:
    with suppress(FileProblem):  # which says so where it is quick
        begin("crashes")
    wait_for(lambda: gone(record_of()))
    lines = log_of()
    assert "Fatal Python error: Segmentation fault" in lines
    assert any("job.py" in line and "in run" in line for line in lines)
    assert record_of().exit_code is None
    assert record_of().state().startswith("died, last heard of ")
    assert record_of().state().endswith(": Fatal Python error: Segmentation fault")


def test_what_was_killed_is_seen_as_died() -> None:
    begin("saves")
    os.kill(record_of().identity.pid, signal.SIGKILL)
    wait_for(lambda: gone(record_of()))
    assert re.fullmatch(r"died, last heard of \d{4}-\d\d-\d\d \d\d:\d\d:\d\d: ready saves", record_of().state())
    assert record_of().exit_code is None
    begin("saves")  # its lock went with it
    assert record_of().state() == "running"


def test_what_fails_at_once_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(FileProblem, match=r"exp has ended at once, exit code 1: ModuleNotFoundError: .*log/exp\.log"):
        background.start(["broken.py"], "exp")
    assert "done already" in background.start(["-c", "pass"], "exp")
    with pytest.raises(FileProblem, match=r"exit code 2: a\.py"):
        background.start(["-c", "import sys; print('error: a.py', file=sys.stderr); sys.exit(2)"], "exp")


# --- one run at a time


def test_a_second_run_is_refused_while_one_lives() -> None:
    begin("saves")
    record = record_of()
    refused = rf"exp runs already \(process {record.identity.pid} on .*, in the background, since .*--stop exp ends it"
    with pytest.raises(FileProblem, match=refused):
        begin("saves")
    with pytest.raises(FileProblem, match=refused):
        on_record("exp", Path("runs/exp"), [], lambda: pytest.fail("it ran"))
    with pytest.raises(FileProblem, match=refused):
        background.check_free("exp", Path("runs/exp"))
    background.check_free("exp", Path("others/exp"))
    with pytest.raises(FileProblem, match=refused):
        begin("saves", folder="others/exp")  # into the same log
    Path("log/exp.json").unlink()
    with pytest.raises(FileProblem, match=r"exit code 1: runs/exp belongs to a run that goes on"):
        begin("saves")
    note(record)
    assert log_of().count("ready saves") == 1
    assert record.lives


def test_a_run_in_the_foreground_counts() -> None:
    process = foreground("saves")
    assert is_ready(process)
    assert record_of().where == FOREGROUND
    with pytest.raises(FileProblem, match=r"exp runs already .* in the foreground"):
        begin("saves")
    with pytest.raises(FileProblem, match="in the foreground: its output is in its terminal"):
        control.follow("exp")
    # Another experiment of the same name: it runs, and the record stays that of the first.
    assert on_record("exp", Path("others/exp"), [], lambda: 0) == 0
    assert record_of().identity.pid == process.pid
    process.terminate()
    process.communicate()
    assert (process.returncode, record_of().exit_code) == (75, 75)


def test_of_many_that_start_at_once_one_runs() -> None:
    processes = [foreground("saves") for _ in range(6)]
    said = [is_ready(process) for process in processes if process.stdout]  # the refused ones say nothing there
    assert said.count(True) == 1
    control.stop("exp")
    errors = [process.communicate()[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [1, 1, 1, 1, 1, 75]
    assert all(re.match("error: (exp runs already|runs/exp belongs)", error) for error in errors if error)


def test_processes_that_a_dead_run_has_left_are_found_and_ended(capsys: pytest.CaptureFixture[str]) -> None:
    begin("children")
    record = record_of()
    os.kill(record.identity.pid, signal.SIGKILL)
    wait_for(lambda: gone(record))
    left = rf"1 processes \({marked(record.token)[0].pid}\) left"
    assert re.fullmatch(f"died with {left}: --stop exp ends them", record.state())
    with pytest.raises(FileProblem, match=f"^exp: {left} of its earlier run: --stop exp ends them"):
        on_record("exp", Path("runs/exp"), [], lambda: pytest.fail("it ran"))
    assert control.stop("exp") == 0
    assert marked(record.token) == []
    assert on_record("exp", Path("runs/exp"), [], lambda: 0) == 0


# --- exit codes


@pytest.mark.parametrize(
    ("error", "code", "comes"),
    [
        (ConfigProblem("lr is 0"), 2, SystemExit),
        (FileProblem("x is empty"), 1, None),
        (KeyboardInterrupt(), 130, None),
        (SystemExit(3), 3, SystemExit),
        (SystemExit(None), 0, SystemExit),
        (SystemExit("said"), 1, SystemExit),
        (ValueError("x"), 1, ValueError),
    ],
)
def test_each_ending_has_its_exit_code(error: BaseException, code: int, comes: type[BaseException] | None) -> None:
    def run() -> int:
        raise error

    if comes:
        with pytest.raises(comes):
            on_record("exp", Path("runs/exp"), [], run)
    else:
        assert on_record("exp", Path("runs/exp"), [], run) == code
    assert record_of().exit_code == code
    assert MARK not in os.environ


@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_exit_code_is_passed_on_and_recorded(code: int) -> None:
    seen: list[str] = []

    def run() -> int:
        seen.append(os.environ[MARK])
        assert record_of().lives
        return code

    assert on_record("exp", Path("runs/exp"), ["--lr", "1"], run) == code
    assert (record_of().exit_code, [record_of().token]) == (code, seen)


def test_ranks_of_a_run_just_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert on_record("exp", Path("runs/exp"), [], lambda: 7) == 7
    assert not Path("log").exists()
    monkeypatch.setenv("RANK", "0")  # torchrun was started by hand
    assert on_record("exp", Path("runs/exp"), [], lambda: 7) == 7
    assert record_of().exit_code == 7
    monkeypatch.setenv(MARK, "of its parent, which is on record")
    assert on_record("exp", Path("runs/exp"), [], lambda: 8) == 8
    assert record_of().exit_code == 7


def test_a_run_does_not_fail_for_its_record(capsys: pytest.CaptureFixture[str]) -> None:
    Path("log").touch()
    assert on_record("exp", Path("runs/exp"), [], lambda: 0) == 0
    assert capsys.readouterr().err.count("not on record in log/exp.json: ") == 2


def test_the_queue_asks_by_token_how_a_run_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, "t1")

    def run() -> int:
        assert background.noted("exp", "t1") is None
        assert record_of().where == QUEUE
        with pytest.raises(FileProblem, match=r"run by the queue.*scripts/schedule\.py cancel"):
            control.stop("exp")
        return 75

    assert background.noted("exp", "t1") is None
    assert on_record("exp", Path("runs/exp"), [], run) == 75
    assert background.noted("exp", "t1") == 75
    assert background.noted("exp", "t2") is None
    assert os.environ[MARK] == "t1"
    Path("log/exp.json").write_text("{")
    assert background.noted("exp", "t1") is None


def test_the_address_for_messages_is_a_password() -> None:
    given = ["--lr", "1", "--notify", "https://a/b", "--notify=https://c", "--notify"]
    assert public(given) == ["--lr", "1", "--notify", "...", "--notify=...", "--notify"]
    on_record("exp", Path("runs/exp"), given, lambda: 0)
    background.spawn(["true", *given], "exp").wait()
    assert not any("https" in path.read_text() for path in Path("log").iterdir())


# --- looking, stopping, following


def test_a_deaf_run_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    begin("deaf")
    assert control.stop("exp", grace=0.1) == 0
    assert capsys.readouterr().out.splitlines() == [
        "asking exp to save and stop; it is killed after 0.1 s",
        "exp: killed, resumable from its newest state",
    ]
    assert gone(record_of())
    assert record_of().exit_code == 137
    assert record_of().ended is not None
    assert control.stop("exp") == 0
    assert capsys.readouterr().out.startswith("exp does not run: killed")


def test_two_sigterms_at_once_are_one(tmp_path: Path) -> None:
    """Slurm and torchrun send it twice: what unwinds goes on to its end."""
    done: list[str] = []

    def run() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("cleaned up")
        return 0

    with pytest.raises(SystemExit) as left:
        background.on_record("exp", tmp_path / "exp", [], run)
    assert (left.value.code, done) == (143, ["cleaned up"])
    assert record_of().exit_code == 143


def test_a_run_that_does_not_know_sigterm_is_on_record_too() -> None:
    begin("waits")
    os.kill(record_of().identity.pid, signal.SIGTERM)
    wait_for(lambda: gone(record_of()))
    assert (record_of().exit_code, record_of().error) == (143, "Terminated: stopped by SIGTERM")
    assert record_of().state() == "stopped, resumable from its newest state"
    assert log_of()[-1].endswith("ended with exit code 143")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert on_record("exp", Path("runs/exp"), [], lambda: 0) == 0
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_a_run_leaves_is_killed() -> None:
    begin("children")
    assert control.stop("exp", grace=0.1) == 0
    assert record_of().exit_code == 143  # it left by itself
    assert marked(record_of().token) == []


def test_a_reboot_ends_everything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    note(Record("exp", Identity.me(), "t", BACKGROUND, "/runs/exp", (), 0.0))
    assert record_of().state() == "running"
    monkeypatch.setenv(BOOT, "another")
    assert record_of().state() == "died as the machine did"
    assert control.stop("exp") == 0
    assert capsys.readouterr().out == "exp does not run: died as the machine did\n"


def test_what_runs_elsewhere_is_left_alone() -> None:
    there = replace(Identity.me(), host="another-host", boot="another")
    note(Record("exp", there, "t", BACKGROUND, str(Path("runs/exp").resolve()), (), 0.0))
    assert record_of().state() == "running on another-host, which can't be seen from here"
    with pytest.raises(FileProblem, match="exp runs on another-host: stop it there"):
        control.stop("exp")
    assert on_record("exp", Path("runs/exp"), [], lambda: 0) == 0  # its lock is open, so it is gone
    assert record_of().state() == "done"


def test_all_runs_are_listed_in_the_order_of_their_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert control.status() == "nothing has run here yet (log/*.json)"
    me, folder = Identity.me(), Path("runs/fold_all/fold1")
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("epoch,step,lr\n1,10,0.1\n2,20,0.1\n")
    runs = str(folder.parent.resolve())
    note(Record("b", me, "t", FOREGROUND, "/runs/b", (), 2e9, 2e9 + 5, 0))
    note(Record("a_long_name", me, "t", FOREGROUND, "/runs/a", (), 1e9, 1e9 + 5, 2, "ConfigProblem: lr is 0"))
    note(Record("fold_all", me, "t", FOREGROUND, runs, ("--fold", "all"), 3e9))
    Path("log/damaged.json").write_text("{")
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert control.status().splitlines() == [
        "log/damaged.json is no record of a run: delete it, the next run writes it anew.",
        "experiment   started              epoch  state",
        "a_long_name  2001-09-09 01:46:40         failed, exit code 2: ConfigProblem: lr is 0",
        "b            2033-05-18 03:33:20         done",
        "fold_all     2065-01-24 05:20:00  2      running",
    ]
    assert control.status("fold_all").splitlines() == [
        "fold_all: running",
        "  started 2065-01-24 05:20:00",
        "  epoch   2",
        f"  process {os.getpid()} in the foreground",
        f"  folder  {runs}",
        "  flags   --fold all",
    ]
    monkeypatch.undo()
    time.tzset()


def test_what_never_ran_is_one_sentence() -> None:
    note(Record("unet_a", Identity.me(), "t", FOREGROUND, "/runs/b", (), 0.0))
    for ask in (control.status, control.stop, control.follow):
        with pytest.raises(FileProblem, match=r"unet_b has never run here \(did you mean unet_a\?\): --status lists"):
            ask("unet_b")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"identity": {"pid": 1}, "argv": []}', '{"argv": 3}'])
def test_a_damaged_record_is_one_sentence_and_stops_no_run(text: str) -> None:
    Path("log").mkdir()
    Path("log/exp.json").write_text(text)
    with pytest.raises(FileProblem, match=r"log/exp\.json is no record of a run: delete it"):
        control.status("exp")
    assert on_record("exp", Path("runs/exp"), [], lambda: 0) == 0
    assert record_of().state() == "done"


def follower() -> subprocess.Popen[str]:
    code = "import sys; from engine import control; sys.exit(control.follow('exp'))"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_following_shows_the_end_and_what_comes() -> None:
    begin("talks")
    one, other = follower(), follower()
    assert one.stdout is not None and other.stdout is not None
    assert [one.stdout.readline() for _ in range(10)] == [*(f"line {k}\n" for k in range(11, 20)), "ready talks\n"]
    other.stdout.readline()
    other.send_signal(signal.SIGINT)
    said, _ = other.communicate()
    assert (other.returncode, "exp goes on: " in said) == (130, True)
    os.kill(record_of().identity.pid, signal.SIGTERM)
    said, _ = one.communicate()
    assert one.returncode == 75
    lines = said.splitlines()
    assert lines[:2] == ["�", "last line"]
    assert lines[2].endswith("ended with exit code 75")
    assert lines[3:] == ["exp: stopped, resumable"]


def test_following_what_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    identity = replace(Identity.me(), started=0.0)
    note(Record("exp", identity, "t", BACKGROUND, "/runs/exp", (), 0.0))
    with pytest.raises(FileProblem, match=r"log/exp\.log does not exist"):
        control.follow("exp")
    Path("log/exp.log").write_text("a\nb\n")
    assert control.follow("exp", lines=1) == 1  # it died
    assert capsys.readouterr().out.startswith("b\nexp: died, last heard of ")
    note(Record("exp", identity, "t", BACKGROUND, "/runs/exp", (), 0.0, 1.0, 0))
    assert control.follow("exp") == 0
    assert capsys.readouterr().out == "a\nb\nexp: done\n"


TRACEBACK = "Traceback (most recent call last):\n  File 'x'\n    y\n"


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("", ""),
        ("epoch 1\nepoch 2\n\n", "epoch 2"),
        ("error: lr is 0\nbye\n", "error: lr is 0"),
        (f"{TRACEBACK}ValueError: x\nand more\n", "ValueError: x"),
        (f"{TRACEBACK}KeyError: 1\n\nDuring it:\n\n{TRACEBACK}a.b.Problem: 2\n", "a.b.Problem: 2"),
        ("".join(f"[rank0]: {line}\n" for line in [*TRACEBACK.splitlines(), "ValueError: x"])
         + f"{TRACEBACK}torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n=====\n", "ValueError: x"),
        (f"{TRACEBACK}ValueError: x\n--- 2026 ended with exit code 1\n", "ValueError: x"),
        (f"{TRACEBACK}ValueError: x\n--- 2026 python run_exp.py\nepoch 1\n", "epoch 1"),
    ],
)  # fmt: skip
def test_the_last_words_are_the_error(log: str, said: str) -> None:
    Path("log").mkdir()
    Path("log/exp.log").write_text("an old line\n" * 10_000 + "--- 2026 python run_exp.py\n" + log)
    assert last_words("exp") == (said or "an old line")
    assert last_words("another") == ""


def test_records_come_back() -> None:
    record = Record("exp", Identity.me(), "t", QUEUE, "/runs/é", ("--lr", "1"), 1.5, 2.5, 75, "E: é")
    note(record)
    assert read_record("exp") == record
    assert "name" not in json.loads(Path("log/exp.json").read_text())
    assert asdict(record)["identity"] == json.loads(Path("log/exp.json").read_text())["identity"]


def test_looking_needs_no_torch() -> None:
    code = "import sys, engine.control; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
