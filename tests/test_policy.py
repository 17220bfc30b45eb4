"""engine/jobs/policy.py: what may start, and on which GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.jobs.entry import Entry, Spec, State, may_start
from engine.jobs.inventory import Gpu
from engine.jobs.policy import OVERDUE, choose, left_over, rank

NOW = 1e9
fixed = settings(derandomize=True, max_examples=60, deadline=None)


def entry(
    id: int,
    gpus: int = 0,
    priority: int = 0,
    *,
    after: tuple[str, ...] = (),
    age: float = 0.0,
    state: State = "queued",
    devices: tuple[int, ...] = (),
    executor: str = "local",
) -> Entry:
    spec = Spec(f"e{id}", gpus=gpus, priority=priority, after=after, executor=executor)
    added = NOW - age
    return Entry(id, spec, state, False, "", 0, "", None, devices, "", None, added, 0.0, 0.0, False, 0, 0, 0)


def running(id: int, *devices: int) -> Entry:
    return entry(id, len(devices), state="running", devices=devices)


def cards(count: int, *foreign: int) -> list[Gpu]:
    return [Gpu(index, foreign=index in foreign) for index in range(count)]


def started(
    waiting: Sequence[Entry], held: Sequence[Entry], gpus: Sequence[Gpu], slots: int = 1
) -> dict[int, tuple[int, ...]]:
    return {e.id: devices for e, devices in choose(waiting, held, gpus, slots, NOW)}


Table = tuple[list[Entry], list[Entry], list[Gpu], int, set[str]]
"""Waiting, running, GPUs, slots for what runs on the CPU, names that run elsewhere."""


@st.composite
def tables(draw: st.DrawFn) -> Table:
    gpus = [Gpu(index, foreign=draw(st.booleans())) for index in range(draw(st.integers(0, 8)))]
    free = [gpu.index for gpu in gpus if not gpu.foreign]
    held: list[Entry] = []
    while free and draw(st.booleans()):
        size = draw(st.integers(1, len(free)))
        held.append(running(100 + len(held), *free[:size]))
        free = free[size:]
    held += [running(200 + number) for number in range(draw(st.integers(0, 3)))]
    names = [f"e{number}" for number in range(8)]
    waiting = [
        entry(
            number,
            draw(st.integers(0, 9)),
            draw(st.integers(-2, 2)),
            age=draw(st.sampled_from([0.0, 1.0, 2 * OVERDUE])),
            executor=draw(st.sampled_from(["local", "local", "local", "slurm"])),
        )
        for number in range(draw(st.integers(0, 8)))
    ]
    return waiting, held, gpus, draw(st.integers(0, 4)), set(draw(st.lists(st.sampled_from(names), max_size=1)))


@fixed
@given(tables())
def test_what_starts_has_its_gpus_alone_and_may_start(table: Table) -> None:
    waiting, held, gpus, slots, busy = table
    chosen = choose(waiting, held, gpus, slots, NOW, busy)
    taken = [index for _, devices in chosen for index in devices]
    assert len(taken) == len(set(taken))
    assert not {index for e in held for index in e.devices} & set(taken)
    assert set(taken) <= {gpu.index for gpu in gpus if not gpu.foreign}
    for e, devices in chosen:
        assert len(devices) == e.spec.gpus and e in waiting
        assert e.spec.executor == "local" and e.spec.name not in busy
    on_cpu = [e for e, _ in chosen if not e.spec.gpus]
    assert len(on_cpu) <= max(0, slots - sum(not e.devices for e in held))
    assert len({e.id for e, _ in chosen}) == len(chosen)


@fixed
@given(tables())
def test_nothing_that_fits_is_passed_over_by_a_lower_one_that_needs_as_much(table: Table) -> None:
    waiting, held, gpus, slots, busy = table
    chosen = {e.id for e, _ in choose(waiting, held, gpus, slots, NOW, busy)}
    may = [e for e in waiting if e.spec.executor == "local" and e.spec.name not in busy]
    for passed in (e for e in may if e.id not in chosen):
        for other in (e for e in may if e.id in chosen):
            alike = passed.spec.gpus <= other.spec.gpus and (passed.spec.gpus == 0) == (other.spec.gpus == 0)
            assert not alike or rank(other, NOW) < rank(passed, NOW)


@fixed
@given(tables())
def test_nothing_idles_without_a_reason(table: Table) -> None:
    waiting, held, gpus, slots, busy = table
    chosen = choose(waiting, held, gpus, slots, NOW, busy)
    may = [e for e in waiting if e.spec.executor == "local" and e.spec.name not in busy]
    used = {index for e in held for index in e.devices} | {index for _, devices in chosen for index in devices}
    free = sum(not gpu.foreign and gpu.index not in used for gpu in gpus)
    all_of_ours = sum(not gpu.foreign for gpu in gpus)
    left = [e for e in may if e not in [c for c, _ in chosen] and e.spec.gpus]
    if any(e.spec.gpus <= free for e in left):
        assert any(free < e.spec.gpus <= all_of_ours for e in left), "kept for one that lacks some"
    if any(not e.spec.gpus and e not in [c for c, _ in chosen] for e in may):
        assert sum(not e.devices for e in held) + sum(not d for _, d in chosen) >= slots


@fixed
@given(st.integers(2, 8), st.data(), st.lists(st.integers(1, 3), min_size=1, max_size=8))
def test_a_big_entry_starts_after_finitely_many_small_ones(count: int, data: st.DataObject, sizes: list[int]) -> None:
    """Small ones come for ever, and end in any order; none runs for more than three rounds."""
    big = entry(0, data.draw(st.integers(2, count)))
    runs: list[tuple[Entry, int]] = []
    for round in range(4 * count):
        small = [entry(1 + len(sizes) * round + k, min(size, count)) for k, size in enumerate(sizes)]
        waiting = [big, *small] if round else small
        chosen = choose(waiting, [e for e, _ in runs], cards(count), 0, NOW)
        runs += [(replace(e, state="running", devices=devices), round) for e, devices in chosen]
        if any(e.id == big.id for e, _ in runs):
            return
        runs = [run for run in runs if run[1] > round - 3]
        if runs:
            runs.pop(data.draw(st.integers(0, len(runs) - 1)))
    raise AssertionError("it still waits")


@fixed
@given(st.integers(1, 8), st.integers(0, 8), st.lists(st.integers(1, 4), max_size=6))
def test_what_is_left_over_is_never_missed(wanted: int, free: int, sizes: list[int]) -> None:
    """Taking that much away delays it in no order in which running entries end."""
    spare = left_over(wanted, free, sizes)
    sums = [free + sum(s for k, s in enumerate(sizes) if kept >> k & 1) for kept in range(2 ** len(sizes))]
    if spare is None:
        assert max(sums) < wanted
    else:
        assert all(total - spare >= wanted for total in sums if total >= wanted)
        assert any(total - spare - 1 < wanted for total in sums if total >= wanted), "and no more could be"


def test_a_free_gpu_that_the_big_one_can_not_need_is_used() -> None:
    three = running(1, 0, 1, 2)
    assert started([entry(2, 2), entry(3, 1)], [three], cards(4)) == {3: (3,)}
    assert started([entry(2, 2), entry(3, 1)], [running(1, 0)], cards(2)) == {}, "but not one that it needs"
    assert started([entry(2, 2), entry(3, 1), entry(4, 1)], [running(1, 0, 1), running(5, 2)], cards(5)) == {2: (3, 4)}


def test_one_that_can_never_fit_keeps_nothing() -> None:
    assert started([entry(1, 5), entry(2, 1)], [], cards(4)) == {2: (0,)}
    assert started([entry(1, 2), entry(2, 1)], [], cards(2, 0)) == {2: (1,)}, "not while others are on the second GPU"


def test_order_is_priority_then_age_then_number() -> None:
    waiting = [entry(1, 1), entry(2, 1, priority=5), entry(3, 1, age=10), entry(4, 1)]
    assert [e.id for e, _ in choose(waiting, [], cards(4), 0, NOW)] == [2, 3, 1, 4]


def test_an_overdue_big_one_goes_before_higher_priorities() -> None:
    old, fresh = entry(1, 2, age=OVERDUE + 1), entry(2, 1, priority=9)
    assert started([old, fresh], [running(3, 0)], cards(2)) == {}
    assert started([replace(old, added=NOW), fresh], [running(3, 0)], cards(2)) == {2: (1,)}
    single = entry(1, 1, age=OVERDUE + 1)
    assert started([single, fresh], [running(3, 0)], cards(2)) == {2: (1,)}, "one GPU is free sooner or later"


def test_what_runs_on_the_cpu_waits_for_no_gpu() -> None:
    assert started([entry(1, 2), entry(2), entry(3)], [running(4)], cards(1), slots=2) == {2: ()}
    assert started([entry(1)], [], [], slots=0) == {}


def test_what_comes_after_something_waits_for_it() -> None:
    child = entry(2, after=("e1", "e9"))
    parents = {"e1": entry(1, state="done"), "e9": entry(9, state="running")}
    assert not may_start(child, parents) and not may_start(child, {"e1": parents["e1"]})
    done = {**parents, "e9": entry(9, state="done")}
    assert may_start(child, done) and not may_start(replace(child, held=True), done)
    away = {"e9": entry(9, state="running", executor="slurm")}
    assert may_start(entry(3, after=("e9",), executor="slurm"), away), "the cluster waits for it"
    assert not may_start(entry(3, after=("e9",)), away)


def test_running_entries_of_clusters_hold_nothing_here() -> None:
    away = replace(running(1), spec=Spec("e1", gpus=2, executor="ray"))
    assert started([entry(2), entry(3, 1)], [away], cards(1)) == {2: (), 3: (0,)}


def test_a_gpu_that_has_left_the_inventory_frees_nothing() -> None:
    gone = running(1, 7)
    assert started([entry(2, 2), entry(3, 1)], [gone], cards(1)) == {3: (0,)}


def test_an_experiment_that_runs_outside_of_the_queue_is_not_started() -> None:
    assert choose([entry(1)], [], [], 1, NOW, {"e1"}) == []
    assert choose([entry(1)], [], [], 1, NOW, {"e2"}) == [(entry(1), ())]
