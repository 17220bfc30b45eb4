"""Several processes: the loss curve of one, every image counted once, one writer, one decision, one exit code.

Two gloo ranks on the CPU, started by torchrun as `--gpus 2` does. Run as a script, this file is such a rank.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # as a script

from test_run_exp import command, elsewhere, last_state, read_csv, run, tiny  # noqa: E402

from config import ConfigProblem  # noqa: E402
from dataset.order import Shard  # noqa: E402
from engine import launch  # noqa: E402
from engine.distributed import ALONE, World, join, synchronise_norms  # noqa: E402
from engine.run_state import newest_state  # noqa: E402

__all__ = ["elsewhere"]  # a fixture

MORE = ("--norm", "group", "--threshold", "0.01", "--wandb", "off", "--limit_val", "3", "--epoch", "2")
"""Group normalisation: torch synchronises batch normalisation on GPUs only."""

TOLERANCE = 1e-4
"""Relative, of losses after 4 updates. Two ranks add up the same float32 numbers in another order: halves of a batch
first, and convolutions choose other kernels for another batch size. That is some 1e-7 a step, and AdamW divides tiny
gradients by their own size, which enlarges it."""


# --- alone


def test_alone_every_answer_is_ones_own() -> None:
    assert (ALONE.first, ALONE.highest(3, 0), ALONE.mean(2.5), ALONE.gather("x")) == (True, (3, 0), 2.5, ["x"])
    rows = torch.ones(2, 3)
    assert ALONE.stack(rows) is rows
    ALONE.wait()
    ALONE.close()
    assert not World(1, 2).first


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    assert join("cpu") == World(0, 1, "cpu")
    assert not launch.inside()


def test_batch_normalisation_on_cpu_ranks_is_refused() -> None:
    with pytest.raises(ConfigProblem, match="--norm group"):
        synchronise_norms(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), "cpu")
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2))
    assert synchronise_norms(plain, "cpu") is plain
    synchronised = synchronise_norms(nn.Sequential(nn.BatchNorm2d(2)), "cuda")
    assert isinstance(synchronised[0], nn.SyncBatchNorm)


@pytest.mark.parametrize(("images", "ranks"), [(5, 2), (4, 2), (1, 3), (7, 3), (2, 4)])
def test_every_image_counts_once_and_ranks_have_equally_many(images: int, ranks: int) -> None:
    parts = [Shard(rank, ranks).padded(images) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    assert sorted(i for part in parts for i, counts in part if counts) == list(range(images))


def test_torchrun_hands_all_signals_on() -> None:
    arguments = launch.torchrun(3, ["run_exp.py", "--lr", "1"])
    assert arguments[-3:] == ["run_exp.py", "--lr", "1"] and "--nproc_per_node=3" in arguments
    (handled,) = (word.partition("=")[2] for word in arguments if word.startswith("--signals-to-handle"))
    assert set(handled.split(",")) >= {"SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"}


AGENT = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from engine.launch import write_result
does, noted = sys.argv[1:]
if noted != "None":
    write_result(Path({folder!r}), int(noted))
if does == "wait":  # ranks that still begin, and a torchrun that is told to stop them
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    Path({folder!r}, "ready").touch()
    time.sleep(60)
if int(does) < 0:
    os.kill(os.getpid(), -int(does))
sys.exit(int(does))
"""


def launched(folder: Path, monkeypatch: pytest.MonkeyPatch, does: str, noted: int | None, state: bool) -> int:
    """Exit code of a launch whose torchrun does this, after rank 0 has noted that."""
    script = folder / "agent.py"
    script.write_text(AGENT.format(root=str(ROOT), folder=str(folder)))
    monkeypatch.setattr(launch, "torchrun", lambda processes, argv: [str(script), *argv])
    if state:
        (folder / "last.pt").touch()
    return launch.launch(2, [does, str(noted)], folder)


@pytest.mark.parametrize(
    ("torchrun", "noted", "state", "code", "left"),
    [
        (1, None, True, 1, 3),
        (1, 1, True, 1, 1),  # a full disk
        (1, 75, True, 75, 75),
        (0, 0, True, 0, 0),
        (137, None, True, 75, 3),  # rank 0 was killed
        (137, 1, True, 75, 75),  # another one, and rank 0 has lost it
        (137, 1, False, 137, 137),
        (137, 75, True, 75, 75),
        (-9, None, True, 75, 3),
        (-9, None, False, 137, 3),
        (130, 1, True, 130, 130),
    ],
)
def test_the_exit_code_is_rank_0s_or_says_that_a_signal_has_ended_them(
    torchrun: int, noted: int | None, state: bool, code: int, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun itself exits with 1 whatever its ranks say; an older note doesn't count."""
    launch.write_result(tmp_path, 3)
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    assert launched(tmp_path, monkeypatch, str(torchrun), noted, state) == code
    assert launch.read_result(tmp_path) == left
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize(("noted", "state", "code"), [(None, True, 75), (None, False, 143), (75, True, 75)])
def test_ranks_that_are_stopped_before_they_can_save_have_not_failed(
    noted: int | None, state: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    assert launched(tmp_path, monkeypatch, "wait", noted, state) == code
    thread.join()


@pytest.mark.parametrize(("rank_1", "code"), [("os.kill(os.getpid(), 9)", 137), ("sys.exit('a full disk')", None)])
def test_torchrun_says_whether_a_rank_was_killed(
    rank_1: str, code: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "rank.py"
    script.write_text(f"import os, sys, time\nif os.environ['RANK'] == '1':\n    {rank_1}\ntime.sleep(60)\n")
    handlers = {each: signal.getsignal(each) for each in signal.valid_signals()}
    try:
        arguments = launch.torchrun(2, [str(script)])
        assert arguments[0] == launch.__file__
        if code is None:
            with pytest.raises(ChildFailedError):
                launch.main(arguments[1:])
        else:
            assert launch.main(arguments[1:]) == code
    finally:
        for signum, handler in handlers.items():
            if signal.getsignal(signum) is not handler:
                signal.signal(signum, handler)
    assert ("error: rank 1 was ended by SIGKILL\n" in capfd.readouterr().err) == (code == 137)


@pytest.mark.parametrize(
    ("ended", "rank"),
    [
        ({1: (-9, 100), 0: (-15, 100)}, 1),
        ({0: (1, 100), 1: (-9, 100), 2: (-15, 100)}, 1),  # 0 has lost 1, and was found first
        ({1: (-11, 100), 0: (1, 100)}, 1),
        ({1: (1, 100), 0: (-15, 100)}, None),  # torchrun's
        ({1: (1, 100), 0: (-9, 130)}, None),  # torchrun's, of one that did not leave
        ({1: (1, 100), 0: (-6, 101)}, None),  # NCCL's, as it lost 1
        ({0: (1, 100)}, None),
    ],
)
def test_which_rank_was_killed_is_told_from_what_torchrun_did(
    ended: dict[int, tuple[int, float]], rank: int | None
) -> None:
    assert launch.killed_rank(ended) == rank


# --- two ranks


def two(data: Path, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """A run on two ranks, from the repository's own command."""
    return command("run_exp.py", *tiny(data, folder, "two", *MORE, "--gpus", "2", *more), cwd=folder)


def assert_near(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """But for a few weights: where rounding decides the sign of a gradient, AdamW takes a whole step either way."""
    assert one.keys() == other.keys()
    off = {name: (tensor - other[name]).abs() > 1e-3 + 1e-2 * tensor.abs() for name, tensor in one.items()}
    assert sum(int(each.sum()) for each in off.values()) < 0.005 * sum(each.numel() for each in off.values()), off


@pytest.mark.full
def test_two_processes_give_the_loss_curve_of_one(phantom_root: Path, tmp_path: Path) -> None:
    code, _, err = run(*tiny(phantom_root, tmp_path, "one", *MORE, "--batch_size", "4", "--metrics", "all"))
    assert code == 0, err
    done = two(phantom_root, tmp_path, "--metrics", "all")
    assert done.returncode == 0, done.stderr
    for said in ("8 training and 3 validation images, 2 steps of 4 an epoch", "epoch 2/2 ", "CSV: "):
        assert done.stdout.count(said) == 1, "one rank speaks"
    one, other = (read_csv(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert len(one) == len(other) == 2
    for a, b in zip(one, other, strict=True):
        assert (a["epoch"], a["step"], a["lr"]) == (b["epoch"], b["step"], b["lr"])
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), rel=TOLERANCE)
        assert float(a["val_dice"]) == pytest.approx(float(b["val_dice"]), abs=1e-2)
    assert_near(last_state(tmp_path / "one")["network"], last_state(tmp_path / "two")["network"])
    # 3 images on 2 ranks: one is padding, and counts nowhere.
    images = [[row["image"] for row in read_csv(tmp_path / name / "val_dice.csv")] for name in ("one", "two")]
    assert images[0] == images[1] and len(images[0]) == 3
    metrics = [{row["metric"] for row in read_csv(tmp_path / name / "scores.csv")} for name in ("one", "two")]
    assert metrics[0] == metrics[1] and "hausdorff95" in metrics[0]
    assert len(list((tmp_path / "two").glob("inference/*/submission.csv"))) == 1
    assert len(list((tmp_path / "two").glob("tensorboard/*"))) == len(list((tmp_path / "one").glob("tensorboard/*")))
    assert len(last_state(tmp_path / "two")["generators"]) == 2


@pytest.fixture(scope="module")
def found(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks of `as_rank` have found."""
    folder = tmp_path_factory.mktemp("ranks")
    arguments = [__file__, str(phantom_root), str(folder)]
    done = subprocess.run([sys.executable, *launch.torchrun(2, arguments)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return result | {"out": done.stdout}


def test_ranks_decide_together(found: dict[str, Any]) -> None:
    assert found["highest"] == [[10, 5], [10, 5]]
    assert found["mean"] == [1.5, 1.5]
    assert found["gather"] == [[["rank 0"], ["rank 1"]]] * 2
    assert found["stack"] == [[[0.0], [1.0]]] * 2
    assert found["slope"] == [[[3.0]], [[3.0]]], "of each rank's own rows alone"


def test_nan_on_one_of_two_ranks_is_left_out_by_both(found: dict[str, Any]) -> None:
    assert found["weights"][0] == found["weights"][1], "the ranks' weights are the same, bit by bit"
    assert all(found["finite"]) and all(found["moved"])
    assert found["losses"] == [3, 3], "3 of 4 steps"
    (line,) = (line for line in found["out"].splitlines() if line.startswith("left out") and "step 2 (" in line)
    for keys in found["keys"]:
        assert all(key in line for key in keys), "the images of both ranks are named"
    assert not set(found["keys"][0]) & set(found["keys"][1])


def test_several_in_a_row_stop_both_ranks(found: dict[str, Any]) -> None:
    first, second = found["problem"]
    assert "No finite step in 2 in a row" in first and "a loss of nan" in second
    images = [text[text.index("(") : text.index(")")] for text in (first, second)]
    assert images[0] == images[1] and images[0].count(", ") == 1


def as_rank(data: Path, folder: Path) -> None:
    """One of two ranks; rank 0 writes found.json, whose lists have an entry for each rank."""
    from test_train import ALIKE, small

    from engine.files import FileProblem
    from train import Trainer

    torch.set_num_threads(1)
    trainer = Trainer(small(data, folder, **ALIKE, epoch=1, batch_size=1, bad_steps=2))
    world, real, calls, keys = trainer.world, trainer.loss, [0], [list[str]()]
    rows = torch.full((1, 1), float(world.rank), requires_grad=True)
    stacked = world.stack(rows)
    (stacked.sum() * 3).backward()
    before = [p.detach().clone() for p in trainer.network.parameters()]

    def loss(*args: Any) -> Tensor:
        calls[0] += 1
        value: Tensor = real(*args)
        return value * math.nan if world.rank == 1 and calls[0] in faulty else value

    faulty = {2}
    trainer.network.train()
    trainer.loss = loss  # type: ignore[assignment]
    for batch in trainer.loader.epoch(0):
        if calls[0] == 1:
            keys[0] = batch.keys
        trainer.step(batch)
        trainer.at.step += 1
        trainer.update()
    parameters = list(trainer.network.parameters())
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in parameters)).hexdigest()
    mine: dict[str, Any] = {
        "highest": world.highest(10 * world.rank, 5 * (1 - world.rank)), "mean": world.mean(1.0 + world.rank),
        "gather": world.gather([f"rank {world.rank}"]), "stack": stacked.tolist(),
        "slope": rows.grad.tolist() if rows.grad is not None else None, "weights": digest, "keys": keys[0],
        "finite": all(bool(torch.isfinite(p).all()) for p in parameters), "losses": trainer.at.losses,
        "moved": any(not torch.equal(p, old) for p, old in zip(parameters, before, strict=True)),
    }  # fmt: skip
    faulty = {5, 6}
    try:
        for batch in trainer.loader.epoch(1):
            trainer.step(batch)
    except FileProblem as problem:
        mine["problem"] = str(problem)
    parts = world.gather(mine)
    if world.first:
        found = {name: [part[name] for part in parts] for name in mine}
        (folder / "found.json").write_text(json.dumps(found))
    trainer.close(0)


# --- longer


@pytest.mark.full
def test_a_signal_reaches_all_ranks_and_75_comes_back(phantom_root: Path, tmp_path: Path) -> None:
    argv = tiny(phantom_root, tmp_path, "two", *MORE, "--gpus", "2", "--epoch", "500", "--val_interval", "500")
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "run_exp.py"), *argv], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("epoch 2/"):
            child.send_signal(signal.SIGTERM)
            break
    out = child.stdout.read()
    assert child.wait() == 75
    assert out.count("stopped by SIGTERM: saved") == 1
    done = newest_state(tmp_path / "two")[0]["position"]["epoch"]
    resume = ["--exp_name", "two", "--output_dir", str(tmp_path), "--resume", "--epoch", str(done + 1)]
    assert command("run_exp.py", *resume, cwd=tmp_path).returncode == 0
    assert len(read_csv(tmp_path / "two" / "metrics.csv")) == done + 1


@pytest.mark.full
def test_two_ranks_go_on_bit_identically(phantom_root: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    assert two(phantom_root, tmp_path / "whole", "--dropout", "0.3").returncode == 0
    done = two(phantom_root, tmp_path, "--dropout", "0.3", "--max_hours", "1e-7")
    assert done.returncode == 75 and done.stdout.count("stopped by the time limit (max_hours): saved") == 1
    position = newest_state(tmp_path / "two")[0]["position"]
    assert (position["epoch"], position["step"]) == (0, 1)
    resume = ["--exp_name", "two", "--output_dir", str(tmp_path), "--resume", "--max_hours", "0"]
    assert command("run_exp.py", *resume, cwd=tmp_path).returncode == 0
    whole, cut = (last_state(folder / "two") for folder in (tmp_path / "whole", tmp_path))
    assert all(torch.equal(tensor, cut["network"][name]) for name, tensor in whole["network"].items())
    assert all(torch.equal(a, b) for a, b in zip(whole["generators"], cut["generators"], strict=True))


@pytest.mark.full
def test_all_folds_on_two_ranks(phantom_root: Path, tmp_path: Path) -> None:
    done = two(phantom_root, tmp_path, "--fold", "all", "--limit_val", "0", "--epoch", "1")
    assert done.returncode == 0, done.stderr
    assert [row["images"] for row in read_csv(tmp_path / "two" / "folds.csv")] == ["4", "4", "4", "12"]
    assert len(list((tmp_path / "two").glob("inference/*/submission.csv"))) == 1


if __name__ == "__main__":
    assert "RANK" in os.environ, "started by torchrun"
    as_rank(Path(sys.argv[1]), Path(sys.argv[2]))
