"""Work beside the GPU: the next images are decoded, and the last ones written, while one goes through the network.

One thread each: decoding (zlib, OpenCV), run-length encoding (numba) and compression all release the GIL.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _End:
    """What a thread finds behind the last item."""


_END = _End()


def prefetch(items: Iterable[T], work: Callable[[T], R], ahead: int = 2) -> Iterator[R]:
    """`map(work, items)`, which one thread works on while the caller is busy with a result.

    At most `ahead` results wait; the items too are taken in that thread. An error, of `work` or of `items`, is raised
    where its result would have come. Closing the iterator early waits for the item in work and drops the others.

    Raises:
        ValueError: `ahead` is below 1.
    """
    if ahead < 1:
        raise ValueError(f"ahead is {ahead}, but must be 1 or more: with 0 nothing overlaps.")
    return _prefetch(map(work, items), ahead)


def _prefetch(results: Iterator[R], ahead: int) -> Iterator[R]:
    pool = ThreadPoolExecutor(1, "prefetch")
    try:
        waiting: deque[Future[R | _End]] = deque(pool.submit(next, results, _END) for _ in range(ahead))
        while True:
            # Another one before this one is handed out: while the caller has it, `ahead` are waiting or in work.
            waiting.append(pool.submit(next, results, _END))
            found = waiting.popleft().result()
            if isinstance(found, _End):
                return
            yield found
            del found  # else it would stay in memory until the next one is there
    finally:
        pool.shutdown(cancel_futures=True)


class Behind:
    """Context manager with one thread that does what is put, in that order.

    The first error ends it: nothing that was put after that work is done any more, and the next `put`, or leaving,
    raises it. Leaving waits for all work; on an error of the body only for the one that runs, and drops the others.

    Args:
        waiting: works that may wait beside the one that runs; `put` waits where there are more.
    """

    def __init__(self, waiting: int = 2) -> None:
        self._most = waiting + 1
        self._pool = ThreadPoolExecutor(1, "behind")
        self._works: deque[Future[None]] = deque()
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self._settle(0)

    def put(self, work: Callable[[], object]) -> None:
        """Have `work` done later. Raises the error of an earlier one."""
        self._settle(self._most - 1)
        self._works.append(self._pool.submit(self._do, work))

    def _settle(self, most: int) -> None:
        """Wait until at most `most` works are left; raise the first error of those that are done."""
        while self._works and (len(self._works) > most or self._works[0].done()):
            self._works.popleft().result()

    def _do(self, work: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            work()
        except BaseException:
            self._failed = True
            raise
