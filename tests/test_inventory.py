"""engine/jobs/inventory.py: GPUs, foreign ones, and what the environment says in their place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from config import ConfigProblem
from engine.jobs.inventory import IDLE_MIB, MIB, OVERRIDE, VISIBLE, Gpu, gpus, visible

ROOT = Path(__file__).resolve().parent.parent
UUIDS = ["GPU-aa11", "GPU-aa22", "GPU-bb33"]
FREE = SimpleNamespace(used=100 * MIB, compute=[], desktop=[])


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A stand-in for NVIDIA's driver: one argument for each GPU."""
    monkeypatch.delenv(OVERRIDE, raising=False)
    monkeypatch.delenv(VISIBLE, raising=False)

    def install(*cards: Any) -> None:
        def asked(index: int, what: str) -> Any:
            if cards[index] is None:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
            return getattr(cards[index], what)

        def processes(what: str) -> Callable[[int], list[Any]]:
            return lambda i: [SimpleNamespace(usedGpuMemory=b and b * MIB) for b in asked(i, what)]

        def memory(index: int, version: int) -> Any:
            assert version == pynvml.nvmlMemory_v2
            return SimpleNamespace(total=80 * 1024 * MIB, used=asked(index, "used"))

        stand_ins = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: len(cards),
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetUUID": lambda index: UUIDS[index],
            "nvmlDeviceGetName": lambda index: "H100",
            "nvmlDeviceGetMemoryInfo": memory,
            "nvmlDeviceGetComputeRunningProcesses": processes("compute"),
            "nvmlDeviceGetGraphicsRunningProcesses": processes("desktop"),
        }
        for name, function in stand_ins.items():
            monkeypatch.setattr(pynvml, name, function)

    return install


def card(used: int, *compute: int | None, desktop: tuple[int, ...] = ()) -> SimpleNamespace:
    return SimpleNamespace(used=used * MIB, compute=list(compute), desktop=list(desktop))


@pytest.mark.parametrize(
    ("seen", "foreign"),
    [
        (card(0), False),
        (card(20000, 20000), True),
        (card(900, IDLE_MIB, IDLE_MIB), False),
        (card(900, 100, IDLE_MIB + 1), True),
        (card(500, None), True),
        (card(2000, desktop=(2000,)), False),
        (card(IDLE_MIB), False),
        (card(IDLE_MIB + 1), True),
        (None, True),
    ],
)
def test_a_gpu_is_foreign_where_something_computes_on_it(
    driver: Callable[..., None], seen: SimpleNamespace | None, foreign: bool
) -> None:
    driver(FREE, seen)
    first, second = gpus()
    assert first == Gpu(0, "H100", 80 * 1024, 100, False)
    assert second.index == 1 and second.foreign is foreign
    if seen is None:
        assert second.name.startswith("does not answer: ")


def test_there_are_none_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OVERRIDE, raising=False)

    def refuse() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    assert gpus() == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, [0, 1, 2]), ("", []), ("-1", []), ("2, 0", [0, 2]), ("1,-1,2", [1]), ("GPU-bb", [2]),
        ("GPU-aa22,0", [0, 1]), ("1,1", [1]),
    ],
)  # fmt: skip
def test_the_queue_keeps_to_visible_gpus(text: str | None, found: list[int]) -> None:
    assert visible(text, UUIDS) == found


@pytest.mark.parametrize("text", ["3", "GPU-cc", "GPU-aa", "all"])
def test_a_visible_gpu_that_is_not_there(text: str) -> None:
    with pytest.raises(ConfigProblem, match=f"is '{text}', but '{text}' names none of the 3 GPUs"):
        visible(text, UUIDS)


def test_the_environment_is_read(driver: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    driver(FREE, FREE, FREE)
    monkeypatch.setenv(VISIBLE, "GPU-bb33")
    assert [gpu.index for gpu in gpus()] == [2]
    monkeypatch.setenv(OVERRIDE, "4")
    assert gpus() == [Gpu(0), Gpu(1), Gpu(2), Gpu(3)]
    monkeypatch.setenv(OVERRIDE, '[{"index": 3}, {"index": 0, "foreign": true, "name": "A40", "memory_total": 48}]')
    assert gpus() == [Gpu(0, "A40", 48, foreign=True), Gpu(3)]
    monkeypatch.setenv(OVERRIDE, "0")
    assert gpus() == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("two", "is no JSON"),
        ("-1", "is neither a number of GPUs nor a list of objects"),
        ("true", "is neither"),
        ("[1]", "is neither"),
        ('[{"index": 0, "forein": true}]', "has the unknown key 'forein' (did you mean foreign?)"),
        ('[{"index": "0"}]', "has index '0', which is no int"),
        ('[{"index": 0, "foreign": 1}]', "has foreign 1, which is no bool"),
        ('[{"name": "x"}]', "has an entry without an index"),
        ('[{"index": 0}, {"index": 0}]', "has an index twice"),
    ],
)
def test_what_the_environment_says_is_checked(text: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, text)
    with pytest.raises(ConfigProblem) as caught:
        gpus()
    assert f"BONES_GPUS {text!r} {fault}" in str(caught.value)


def test_it_imports_nothing_slow() -> None:
    code = "import sys, engine.jobs.inventory as i, engine.jobs.policy; print({'numpy', 'pynvml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
