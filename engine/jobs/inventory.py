"""The GPUs of this machine, and which of them others use."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from config import ConfigProblem, suggest

OVERRIDE = "BONES_GPUS"
"""Environment variable in place of the real GPUs: their number, or a JSON list of objects with the fields of Gpu."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Where it is set, the queue keeps to these GPUs, as it would to a share of a server that was agreed upon."""

MIB = 2**20
IDLE_MIB = 300
"""A GPU of which no more is in use counts as free: monitors and desktops hold some."""


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    index: int
    """Its number in the order of the PCI bus: that of nvidia-smi, and of CUDA with CUDA_DEVICE_ORDER=PCI_BUS_ID."""
    name: str = ""
    memory_total: int = 0
    """MiB."""
    memory_used: int = 0
    """MiB."""
    foreign: bool = False
    """A process computes on it with more than 300 MiB: a foreign one, where the queue has given the GPU to no entry.
    Also where the GPU does not answer."""


def gpus() -> list[Gpu]:
    """The GPUs that the queue may use, by index; none where there is no driver.

    Raises:
        ConfigProblem: BONES_GPUS or CUDA_VISIBLE_DEVICES is set to something that names no GPUs.
    """
    if (text := os.environ.get(OVERRIDE)) is not None:
        return _given(text)
    import pynvml  # here: it takes 20 ms, and most commands ask for no GPU

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        uuids = [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    except pynvml.NVMLError:
        return []
    return [_seen(index, handles[index]) for index in visible(os.environ.get(VISIBLE), uuids)]


def visible(text: str | None, uuids: Sequence[str]) -> list[int]:
    """Indices of the GPUs that CUDA_VISIBLE_DEVICES leaves, sorted.

    Args:
        text: its value, numbers or beginnings of UUIDs with commas between; None where it is not set.
        uuids: of all GPUs, by index.

    Raises:
        ConfigProblem: a part names no GPU, or not one alone.
    """
    if text is None:
        return list(range(len(uuids)))
    found: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part == "-1":  # CUDA takes nothing from there on
            break
        hits = [i for i, uuid in enumerate(uuids) if part == str(i) or (not part.isdecimal() and uuid.startswith(part))]
        if len(hits) != 1:
            raise ConfigProblem(
                f"{VISIBLE} is {text!r}, but {part!r} names none of the {len(uuids)} GPUs here: give their numbers, "
                f"or unset it."
            )
        found.update(hits)
    return sorted(found)


def _seen(index: int, handle: Any) -> Gpu:
    import pynvml

    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)  # without the driver's own share
        name = str(pynvml.nvmlDeviceGetName(handle))
        compute = [process.usedGpuMemory for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        desktop = pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle)
    except pynvml.NVMLError as error:  # a GPU that has fallen off the bus, say
        return Gpu(index, f"does not answer: {error}", foreign=True)
    used = int(memory.used)
    # In a container the processes of others are not listed, but the memory that they take is.
    taken = compute if compute or desktop else [used]
    return Gpu(index, name, memory.total // MIB, used // MIB, any(b is None or b > IDLE_MIB * MIB for b in taken))


def _given(text: str) -> list[Gpu]:
    """What BONES_GPUS says."""
    known = get_type_hints(Gpu)
    try:
        entries = json.loads(text)
    except ValueError:
        raise _wrong(text, "is no JSON") from None
    if type(entries) is int and 0 <= entries <= 1024:
        return [Gpu(index) for index in range(entries)]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _wrong(text, "is neither a number of GPUs nor a list of objects")
    for entry in entries:
        for key, value in entry.items():
            if key not in known:
                raise _wrong(text, f"has the unknown key {key!r}{suggest(key, known)}")
            if type(value) is not known[key]:
                raise _wrong(text, f"has {key} {value!r}, which is no {known[key].__name__}")
        if "index" not in entry:
            raise _wrong(text, "has an entry without an index")
    found = [Gpu(**entry) for entry in entries]
    if len({gpu.index for gpu in found}) < len(found):
        raise _wrong(text, "has an index twice")
    return sorted(found, key=lambda gpu: gpu.index)


def _wrong(text: str, fault: str) -> ConfigProblem:
    keys = ", ".join(field.name for field in fields(Gpu))
    return ConfigProblem(f'{OVERRIDE} {text!r} {fault}: give a number, or [{{"index": 0}}, …] with any of {keys}.')
