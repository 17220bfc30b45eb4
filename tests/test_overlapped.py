"""inference/overlapped.py: order, errors at their place, back-pressure, and no thread that stays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.overlapped import Behind, prefetch

WAIT = 20.0
"""Seconds after which a test that would hang fails."""


class Gates:
    """Work that waits until the test lets it go on."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self._begins = threading.Semaphore(0)
        self._open = threading.Semaphore(0)

    def work(self, item: int) -> int:
        self.begun.append(item)
        self._begins.release()
        assert self._open.acquire(timeout=WAIT)
        self.ended.append(item)
        return item

    def until_begun(self) -> None:
        assert self._begins.acquire(timeout=WAIT)

    def let(self, count: int = 1) -> None:
        self._open.release(count)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.integers()), st.integers(1, 5))
def test_the_results_are_those_of_map(items: list[int], ahead: int) -> None:
    assert list(prefetch(iter(items), str, ahead)) == list(map(str, items))


@pytest.mark.parametrize("ahead", [1, 2, 4])
def test_so_many_are_worked_on_ahead_and_no_more(ahead: int) -> None:
    taken, worked = [], threading.Semaphore(0)

    def items() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    def work(item: int) -> int:
        worked.release()
        return item

    results = prefetch(items(), work, ahead)
    assert taken == [], "nothing is done before the first is asked for"
    for count in range(1, 4):
        assert next(results) == count - 1
        while len(taken) < count + ahead:  # the thread comes there by itself
            assert worked.acquire(timeout=WAIT)
    # The thread has taken what it may; whatever it would do now, closing waits for.
    results.close()  # type: ignore[attr-defined]
    assert len(taken) == 3 + ahead


def test_the_next_one_is_worked_on_while_the_caller_has_one() -> None:
    gates = Gates()
    gates.let(1)
    results = prefetch(range(5), gates.work)
    assert next(results) == 0
    gates.until_begun()  # the first
    gates.until_begun()  # the second has begun, and nobody has asked for it
    assert gates.begun == [0, 1] and gates.ended == [0]
    gates.let(4)
    assert list(results) == [1, 2, 3, 4]


@pytest.mark.parametrize("place", [0, 1, 3])
def test_an_error_comes_where_its_result_would(place: int) -> None:
    def work(item: int) -> int:
        if item == place:
            raise KeyError(item)
        return item

    def items() -> Iterator[int]:
        yield from range(place)
        raise OSError("no more files")

    for results, kind in ((prefetch(range(9), work), KeyError), (prefetch(items(), abs), OSError)):
        assert [next(results) for _ in range(place)] == list(range(place))
        with pytest.raises(kind):
            next(results)
        assert list(results) == [], "an iterator that has failed has ended"


def let_go_on_when_shut(gates: Gates, monkeypatch: pytest.MonkeyPatch) -> None:
    """Works go on when the thread was told to end, and before anyone waits for it."""
    shutdown = ThreadPoolExecutor.shutdown

    def and_let(pool: ThreadPoolExecutor, wait: bool = True, *, cancel_futures: bool = False) -> None:
        shutdown(pool, wait=False, cancel_futures=cancel_futures)
        gates.let(20)
        shutdown(pool, wait=wait)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", and_let)


def test_leaving_early_waits_for_the_one_in_work_and_drops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = Gates()
    gates.let(1)
    results = prefetch(range(9), gates.work, 3)
    assert next(results) == 0
    gates.until_begun()
    gates.until_begun()
    let_go_on_when_shut(gates, monkeypatch)
    results.close()  # type: ignore[attr-defined]
    assert gates.begun == gates.ended == [0, 1]


def test_an_iterator_that_is_never_used_has_no_thread() -> None:
    prefetch(range(3), abs)
    with pytest.raises(ValueError, match="ahead is 0, but must be 1 or more"):
        prefetch(range(3), abs, 0)


# --- Behind


def test_works_are_done_one_by_one_in_their_order() -> None:
    done: list[tuple[int, int]] = []
    with Behind() as behind:
        for item in range(50):
            behind.put(lambda item=item: done.append((item, threading.get_ident())))
    assert [item for item, _ in done] == list(range(50)), "leaving waits for all"
    assert len({thread for _, thread in done}) == 1 and done[0][1] != threading.get_ident()


@pytest.mark.parametrize("waiting", [1, 2, 3])
def test_put_waits_where_too_many_wait(waiting: int) -> None:
    gates, put = Gates(), []
    with Behind(waiting) as behind:
        for item in range(waiting + 1):  # one runs
            behind.put(lambda item=item: gates.work(item))
        gates.until_begun()

        def more() -> None:
            behind.put(lambda: gates.work(99))
            put.append(len(gates.ended))

        thread = in_thread(more)
        assert gates.begun == [0] and not put
        gates.let(1)
        thread.join(WAIT)
        assert not thread.is_alive() and put == [1], "it went on when one was done"
        gates.let(20)
    assert gates.ended == [*range(waiting + 1), 99]


class Odd(Exception):
    pass


def fail() -> None:
    raise Odd("first")


def test_the_first_error_is_raised_at_the_next_put() -> None:
    done: list[int] = []
    with pytest.raises(Odd, match="first"), Behind(1) as behind:
        behind.put(fail)
        for item in range(4):  # it is raised here at the latest when the third waits for room
            behind.put(lambda item=item: done.append(item))
        pytest.fail("nothing was raised")
    assert done == [], "nothing is done after an error"


def test_the_first_error_is_raised_on_leaving() -> None:
    gates, done = Gates(), []

    def wait_and_fail() -> None:
        gates.work(0)
        fail()

    def fail_again() -> None:
        raise AssertionError("the second work must not run")

    with pytest.raises(Odd, match="first"), Behind() as behind:
        behind.put(wait_and_fail)
        behind.put(fail_again)
        behind.put(lambda: done.append(1))
        gates.let()
    assert done == [] and gates.ended == [0]


def test_an_error_of_the_body_drops_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = Gates()
    let_go_on_when_shut(gates, monkeypatch)
    with pytest.raises(Odd, match="body"), Behind() as behind:
        for item in range(3):
            behind.put(lambda item=item: gates.work(item))
        gates.until_begun()
        raise Odd("body")
    assert gates.begun == gates.ended == [0]
