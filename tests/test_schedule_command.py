"""scripts/schedule.py: the commands of the queue, and its table."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from config import Config
from engine import background, flags
from engine.files import FileProblem
from engine.jobs import service, table
from engine.jobs.entry import Entry, Spec
from engine.jobs.experiments import plan
from engine.jobs.inventory import OVERRIDE
from engine.jobs.process import Identity
from engine.jobs.store import Store
from engine.stop import EXIT_INTERRUPTED
from scripts import schedule

ROOT = Path(__file__).resolve().parent.parent
CHECK = schedule.check
Output = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class NoCommands:
    """Flags that are no settings: none."""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with two GPUs, in which checks are those of the flags alone."""

    def check(argv: list[str], waits: bool) -> Config:
        return flags.parse(argv, NoCommands, "")[0].cfg

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(OVERRIDE, "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # `add` sets it: so that it is restored
    monkeypatch.setattr(schedule, "check", check)
    monkeypatch.setattr(background, "LOG", Path("log"))
    return tmp_path


def queued(*specs: Spec) -> Store:
    store = Store(schedule.QUEUE)
    store.add([spec if isinstance(spec, Spec) else Spec(spec) for spec in specs])
    return store


def states() -> dict[str, str]:
    with Store(schedule.QUEUE) as store:
        return {e.spec.name: "held" if e.held else e.state for e in store.entries()}


def end(store: Store, name: str, exit_code: int) -> None:
    entry = store.newest()[name]
    token = store.claim(entry.id, [])
    assert token and store.ended(entry.id, token, exit_code, "", True)


def refusal(argv: list[str], code: int, capsys: Output) -> str:
    """What a command that leaves with this exit code says."""
    try:
        found: Any = schedule.main(argv)
    except SystemExit as left:
        found = left.code
    assert found == code
    said = capsys.readouterr()
    assert not said.out
    return said.err


# add


GOOD = "experiments: [{exp_name: a, lr: 1e-3}, {exp_name: b, after: a, gpus: 2, folds: 2}]"


def test_add_says_what_is_queued_and_how_it_starts(place: Path, capsys: Output) -> None:
    (place / "e.yaml").write_text(GOOD)
    assert schedule.main(["add", "e.yaml"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "a (entry 1): queued",
        "b-fold0 (entry 2): queued",
        "b-fold1 (entry 3): queued",
        "3 experiments added to log/queue",
        "nothing starts them yet: python scripts/schedule.py run",
    ]
    with Store(schedule.QUEUE) as store:
        assert [entry.spec for entry in store.entries()][::2] == [
            Spec("a", ("--lr", "0.001"), gpus=1),
            Spec("b-fold1", ("--n_folds", "2", "--fold", "1", "--gpus", "2"), gpus=2, after=("a",)),
        ]
        store.beat(Identity.me())
    assert schedule.main(["add", "e.yaml", "--new"]) == 0
    assert capsys.readouterr().out == "0 experiments added to log/queue\n", "a scheduler works, so nothing to say"


def test_several_files_are_added_together_or_not_at_all(place: Path, capsys: Output) -> None:
    (place / "e.yaml").write_text(GOOD)
    (place / "f.py").write_text("experiments = [{'exp_name': 'c', 'after': ['b-fold0', 'd']}]")
    said = refusal(["add", "e.yaml", "f.py"], 2, capsys)
    assert said.startswith("error: c (entry 4) comes after d, which is not in the queue")
    assert states() == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("experiments: [{exp_name: a, lrr: 1}]", "e.yaml, experiment 1 (a): unknown key 'lrr' (did you mean lr"),
        ("experiments: [{exp_name: a, gpus: 3}]", "needs 3 GPUs, but the queue may use 2 here"),
        ("experiments: [{exp_name: a", "e.yaml, line 1: expected ',' or '}'"),
        ("experiments: [{exp_name: a, after: b}, {exp_name: b, after: a}]", "none of these could ever start."),
        ("experiments: [{exp_name: a, after: a}]", "a after a: none of these could ever start."),
        ("experiments: [{exp_name: a, after: z}]", "a (entry 1) comes after z, which is not in the queue"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_adds_nothing(text: str, said: str, place: Path, capsys: Output) -> None:
    (place / "e.yaml").write_text(text)
    error = refusal(["add", "e.yaml"], 2, capsys)
    assert said in error and error.startswith("error: ") and error.count("\n") == 1
    assert not schedule.QUEUE.exists() or states() == {}


def test_there_must_be_a_file(place: Path, capsys: Output) -> None:
    assert "There is nothing to add" in refusal(["add"], 2, capsys)
    assert "none.py is no file" in refusal(["add", "none.py"], 2, capsys)


@pytest.mark.parametrize("executor", ["slurm", "ray"])
def test_a_cluster_must_be_there(executor: str, place: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    (place / "e.yaml").write_text(GOOD)
    said = refusal(["add", "e.yaml", "--executor", executor], 2, capsys)
    assert f"executor {executor} needs the package" in said and f"pip install -e '.[{executor}]'" in said
    assert not schedule.QUEUE.exists()


def test_run_exp_itself_checks(phantom_root: Path, place: Path) -> None:
    small = {
        "data_root": str(phantom_root), "image_size": 64, "window_size": 64, "stride": 32, "batch_size": 2,
        "base_channels": 8, "model": "simple_unet_quarter", "wandb": "off", "workers": 0, "loss": "focal_dice",
    }  # fmt: skip

    def said(**changes: Any) -> str:
        with pytest.raises(schedule.ConfigProblem) as caught:
            plan([{"exp_name": "x", **small, **changes}], "list", CHECK, 0, "local", {})
        return str(caught.value).removeprefix("list, experiment 1 (x): ")

    (spec,) = plan([{"exp_name": "x", **small}], "list", CHECK, 0, "local", {})
    assert spec.gpus == 0 and spec.argv[:2] == ("--data_root", str(phantom_root))
    assert said(model="simple_unet_third").startswith("model.model_simple_unet_third is unknown")
    assert said(optimizer="adamq").startswith("optimizer 'adamq' is unknown (did you mean adam")
    assert said(stride=128).startswith("stride 128 is larger than window_size 64")
    assert said(resume=True, overwrite=True) == "resume and overwrite contradict each other: give one of them."
    (place / "checkpoints" / "x").mkdir(parents=True)
    (place / "checkpoints" / "x" / "config.json").write_text("{}")
    assert said().startswith("checkpoints/x exists: give --resume to continue it")
    shutil.rmtree(place / "checkpoints")
    assert "none.pt" in said(init_from="none.pt")
    assert re.match(r"preset 'smok' is none of demo, smoke, .* \(did you mean smoke\?\)", said(preset="smok"))
    after = {"exp_name": "x", "after": "a", **small, "init_from": "none.pt"}
    (spec,) = plan([after], "list", CHECK, 0, "local", {})
    assert spec.after == ("a",), "what it comes after may write that file"
    assert not any(place.iterdir())


def test_ctrl_c_ends_a_check() -> None:
    with pytest.raises(KeyboardInterrupt):
        schedule._quiet(lambda: EXIT_INTERRUPTED, {1, 2})


# ls


def test_ls_is_a_line_of_time(capsys: Output) -> None:
    with queued(
        Spec("late"), Spec("first", gpus=1), Spec("broken"), Spec("soon", priority=2), Spec("runs", gpus=2),
        Spec("child", after=("runs", "late")), Spec("kept"),
    ) as store:  # fmt: skip
        end(store, "first", 0)
        end(store, "broken", 1)
        token = store.claim(5, [0, 1])
        assert token and store.began(5, token, Identity.me())
        store.hold([7])
        store.pause()
    assert schedule.main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "id experiment state slot prio try time left reason",
        "2 first done 1 GPU 0 1 0:00:00",
        "3 broken failed CPU 0 1 0:00:00 exit code 1",
        "5 runs running GPU 0,1 0 1 0:00:00",
        "4 soon queued CPU 2 0",
        "1 late queued CPU 0 0",
        "6 child queued CPU 0 0 after runs, late",
        "7 kept queued CPU 0 0 held",
        f"1 done, 1 failed, 1 running, 3 queued, 1 held; {table.NOBODY}; paused: `resume` lets it go on",
    ]
    assert schedule.main(["ls", "s*", "1", "failed", "cancelled"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:-1]] == ["broken", "soon", "late"]
    assert schedule.main(["ls", "lost"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("no entries")


def test_json_has_everything(capsys: Output) -> None:
    with queued(Spec("a", ("--lr", "1"), gpus=2), Spec("b", after=("a",))) as store:
        token = store.claim(1, [1, 0])
        assert token and store.began(1, token, Identity.me())
        store.beat(Identity.me())
    assert schedule.main(["ls", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first, second = found["entries"]
    assert found["paused"] is False and found["scheduler"]["pid"] == Identity.me().pid
    assert (first["name"], first["argv"], first["gpus"], first["devices"]) == ("a", ["--lr", "1"], 2, [1, 0])
    assert (first["state"], first["attempt"], first["left"], first["waits_for"]) == ("running", 1, None, [])
    assert abs(first["started"] - time.time()) < 60 and first["runner"]["pid"] == Identity.me().pid
    assert second["waits_for"] == ["a"]


def seen(entry: Entry, **values: Any) -> str:
    view = table.View([entry], {"p": "running", entry.spec.name: entry.state}, False, None, entry.added + 7322)
    return table.lines(table.View([replace(entry, **values)], view.states, False, None, view.now))[1]


def test_cells(tmp_path: Path) -> None:
    with queued(Spec("a", gpus=4)) as store:
        (entry,) = store.entries()
    line = seen(entry, state="running", started=entry.added, attempt=3, devices=(2, 3))
    assert " ".join(line.split()) == "1 a running GPU 2,3 0 3 2:02:02 is being started"
    assert "4 GPUs" in seen(entry)
    assert "slurm 77 4 GPUs" in seen(entry, external="77", spec=replace(entry.spec, executor="slurm"))
    assert seen(entry, state="running", cancelling=True, reason="enough").endswith("to be stopped: enough")
    assert seen(entry, held=True, reason="crash loop: 3").endswith("held: crash loop: 3")
    assert seen(entry, reason="exit code 75; retry 1 of 2").endswith("exit code 75; retry 1 of 2")
    waits = replace(entry.spec, after=("p", "q", "r"))
    assert seen(entry, spec=waits, reason="retry").endswith("after p, q and 1 more; retry")


def test_what_runs_stays_in_sight() -> None:
    with queued(*(Spec(f"e{k:02}") for k in range(40))) as store:
        for k in range(20):
            end(store, f"e{k:02}", 0)
        token = store.claim(21, [])
        assert token
        shown = table.view(store)
    text = table.styled(shown, height=12).plain.splitlines()
    assert len(text) == 12 and text[-1].startswith("20 done, 1 running, 19 queued")
    assert [line.split()[1] for line in text[1:-1]] == [f"e{k:02}" for k in range(18, 28)]
    assert len(table.styled(shown).plain.splitlines()) == 42
    assert len(table.styled(shown, height=1).plain.splitlines()) == 3


def test_a_queue_is_not_begun_by_looking(place: Path, capsys: Output) -> None:
    for command in (["ls"], ["cancel", "*"], ["log"], ["pause"], ["retry", "1"]):
        said = refusal(command, 1, capsys)
        assert said == "error: log/queue holds no queue: `add` begins one, and --queue names another.\n"
    assert not any(place.iterdir())


def test_watching_needs_a_terminal(capsys: Output) -> None:
    queued().close()
    assert "ls --watch needs a terminal" in refusal(["ls", "--watch"], 2, capsys)


def test_ls_imports_nothing_slow(place: Path) -> None:
    queued("a").close()
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from scripts import schedule; schedule.main(['ls']); "
        "print({'torch', 'numpy', 'pynvml', 'rich', 'yaml', 'optuna', 'pandas', 'typeguard'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


# What changes entries


def test_commands_change_what_they_are_for(capsys: Output) -> None:
    with queued(*map(Spec, ("a", "b", "c", "d")), Spec("e", after=("d",))) as store:
        end(store, "c", 0)
        end(store, "d", 2)
        store.skip_children()
    assert schedule.main(["hold", "a"]) == 0 and states()["a"] == "held"
    assert schedule.main(["release", "*"]) == 0 and states()["a"] == "queued"
    assert schedule.main(["prio", "-7", "a", "2"]) == 0
    with Store(schedule.QUEUE) as store:
        assert [entry.spec.priority for entry in store.entries()] == [-7, -7, 0, 0, 0]
    assert schedule.main(["retry", "*"]) == 0
    assert states() == {"a": "queued", "b": "queued", "c": "done", "d": "queued", "e": "queued"}
    assert schedule.main(["cancel", "[ab]"]) == 0
    assert schedule.main(["rm", "*"]) == 0
    assert states() == {"d": "queued", "e": "queued"}
    assert schedule.main(["pause"]) == 0
    with Store(schedule.QUEUE) as store:
        assert store.paused and store.claim(4, []) is None
    assert schedule.main(["resume"]) == 0
    with Store(schedule.QUEUE) as store:
        assert not store.paused
    said = capsys.readouterr().out
    assert "d (entry 4): queued\ne (entry 5): queued\n" in said and "a (entry 1): cancelled\n" in said
    assert said.endswith("nothing starts them yet: python scripts/schedule.py run\n")


def test_cancelling_what_runs_asks_it(capsys: Output) -> None:
    with queued("a") as store:
        token = store.claim(1, [])
        assert token and store.began(1, token, Identity.me())
    assert schedule.main(["cancel", "a"]) == 0
    assert capsys.readouterr().out == "a (entry 1): is asked to save and stop\n"
    assert states() == {"a": "running"}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["cancel"], "No entry is named"),
        (["prio", str(10**30), "unet1"], "but must be a whole number up to 1000000."),
        (["cancel", "unet2"], "'unet2' is no entry of log/queue (did you mean unet1?)."),
        (["cancel", "9"], "entry 9 is not in the queue"),
        (["rm", "u*"], "'u*' is no entry of log/queue that is done or failed or cancelled or skipped or lost."),
        (["rm", "unet1"], "unet1 (entry 1) is queued: only what has ended can be removed: cancel it first."),
        (["retry", "unet1"], "unet1 (entry 1) is queued"),
    ],
)
def test_an_entry_that_is_not_there(argv: list[str], said: str, capsys: Output) -> None:
    queued("unet1").close()
    assert said in refusal(argv, 2, capsys)
    assert states() == {"unet1": "queued"}


def test_a_name_means_its_newest_entry(capsys: Output) -> None:
    with queued("a") as store:
        store.cancel([1])
        store.add([Spec("a"), Spec("12")])
        assert schedule.chosen(store, ["a"]) == [2]
        assert schedule.chosen(store, ["1", "a", "2", "*", "12"]) == [1, 2, 3]
        assert schedule.chosen(store, ["cancelled", "queued"]) == [1, 2, 3]
        assert schedule.chosen(store, ["cancelled", "queued"], ["queued"]) == [2, 3]
    assert schedule.main(["cancel", "a"]) == 0
    assert capsys.readouterr().out == "a (entry 2): cancelled\n"


# log


def test_log(place: Path, capsys: Output) -> None:
    queued("a", "b").close()
    (place / "log" / "a.log").write_text("epoch 1\nepoch 2\n")
    assert schedule.main(["log", "1"]) == 0
    assert capsys.readouterr().out == "epoch 1\nepoch 2\n"
    said = refusal(["log", "b", "-f"], 1, capsys)
    assert said == "error: log/b.log does not exist: b (entry 2) is queued and has not begun.\n"
    assert schedule.main(["log"]) == 0
    assert [line.partition("  ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "a: queued: added", "b: queued: added",
    ]  # fmt: skip


def test_log_follows_the_queue_until_ctrl_c(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks > 1:
            raise KeyboardInterrupt
        with Store(schedule.QUEUE) as store:
            store.cancel([1])

    queued("a").close()
    monkeypatch.setattr(schedule.time, "sleep", sleep)
    assert schedule.main(["log", "--follow"]) == EXIT_INTERRUPTED
    assert [line.partition("  ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "a: queued: added", "a: cancelled: cancelled",
    ]  # fmt: skip


# run and what stands at the top of the file


def test_the_list_at_the_top_can_be_run(phantom_root: Path) -> None:
    assert [spec.name for spec in plan(schedule.experiments, "list", schedule.check, 1, "local", {})] == [
        "smoke-bce", "smoke-focal", "smoke-both",
    ]  # fmt: skip


@pytest.mark.parametrize("works", [False, True])
def test_without_a_command_the_list_is_added_and_run(
    works: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = place / "stand_in.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path; from engine.jobs.store import Store; from engine.jobs.entry import Spec\n"
        "with Store(Path('log/queue')) as store: store.add([Spec(' '.join(sys.argv[1:]))])\n"
    )
    asked: list[bool] = []
    monkeypatch.setattr(schedule, "SCRIPT", script)
    monkeypatch.setattr(schedule, "run", lambda until_empty: asked.append(until_empty) or 7)
    if works:
        with queued() as store:
            store.beat(Identity.me())
    assert schedule.main([]) == (0 if works else 7)
    assert states() == {f"add {script} --new": "queued"} and asked == ([] if works else [True])
    script.write_text("import sys; sys.exit(2)")
    assert schedule.main([]) == 2 and len(asked) == (not works)


def test_run_leaves_when_the_queue_is_empty(capsys: Output) -> None:
    assert schedule.main(["run", "--until_empty"]) == 0
    assert "Ctrl-C" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--cpu_slots", "-1"], "cpu_slots is -1, but must be 0 or more."),
        (["--min_free", "nan"], "min_free is nan, but must be 0 or more."),
        (["--notify", "example"], "notify"),
    ],
)
@pytest.mark.parametrize("command", ["run", "install-service"])
def test_how_a_queue_is_run_is_checked(command: str, argv: list[str], said: str, capsys: Output) -> None:
    assert said in refusal([command, *argv], 2, capsys)


def test_service(place: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "my config"))
    path = place / "my config" / "systemd" / "user" / service.UNIT
    assert schedule.main(["install-service", "--cpu_slots", "3"]) == 0
    text = path.read_text()
    said = capsys.readouterr().out
    assert text in said and f"systemctl --user enable --now {service.UNIT}" in said
    assert f"WorkingDirectory={place}\n" in text and "KillMode=process\n" in text
    assert f'"run" "--queue" "{place}/log/queue" "--cpu_slots" "3" "--min_free" "5.0"\n' in text
    assert schedule.main(["install-service", "--cpu_slots", "3"]) == 0
    capsys.readouterr()
    assert "exists and is never overwritten" in refusal(["install-service"], 1, capsys)
    assert path.read_text() == text


def test_units_quote_what_systemd_would_read() -> None:
    text = service.unit(["/a b/py", "run", 'x"%$\\'], Path("/50% of it"))
    assert 'ExecStart="/a b/py" "run" "x\\"%%$$\\\\"\n' in text
    assert "WorkingDirectory=/50%% of it\n" in text


# Help and usage


@pytest.mark.parametrize("command", sorted(schedule.COMMANDS))
def test_every_command_has_help(command: str, capsys: Output) -> None:
    with pytest.raises(SystemExit) as left:
        schedule.main([command, "--help"])
    assert left.value.code == 0 and f"schedule.py {command}" in capsys.readouterr().out


def test_help_lists_the_commands(capsys: Output) -> None:
    with pytest.raises(SystemExit) as left:
        schedule.main(["--help"])
    said = capsys.readouterr().out
    assert left.value.code == 0 and all(f"• {command}" in said for command in schedule.COMMANDS)


@pytest.mark.parametrize("argv", [["lst"], ["prio", "high", "a"], ["ls", "--state"]])
def test_usage_errors_leave_with_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        schedule.main(argv)
    assert left.value.code == 2


def test_a_queue_of_a_newer_version_stays_as_it_is(place: Path, capsys: Output) -> None:
    queued("a").close()
    path = schedule.QUEUE / "queue.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    assert "is of version 99" in refusal(["ls"], 1, capsys)
    assert path.read_bytes() == before
    with pytest.raises(FileProblem):
        schedule.opened(schedule.QUEUE)
