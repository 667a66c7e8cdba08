"""Work that overlaps: a function over many items in threads, with the results in order and few items on their way."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


THREADS = max(1, min(4, cores() // 2))  # of a stage that reads or writes images beside the network


def ordered(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int = 1, ahead: int = 1
) -> Generator[Result, None, None]:
    """function(item) of every item, in the order of the items; the threads are up to `ahead` items ahead.

    What the caller does with a result overlaps with the next items; items are drawn in the caller's thread. So
    `ordered(write, map(predict, ordered(read, paths)))` reads and writes beside predict. At most ahead + 1 items are
    held. An exception of the function, KeyboardInterrupt too, is raised in place of its result, before another item is
    drawn. After an exception anywhere, or close(), items that have not been started are dropped and those that have
    are waited for.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            del item  # the caller may be long over a result, and another item is on its way
            # An error, of a full disk perhaps, must not wait until more items have been drawn.
            while len(waiting) > ahead or any(each.done() and each.exception() for each in waiting):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def side_by_side(
    function: Callable[[Item], Result], items: Iterable[Item], at_once: int
) -> Generator[Result, None, None]:
    """function(item) of every item, in order, `at_once` of them in threads; of one at a time in the caller's thread."""
    return ordered(function, items, at_once, at_once) if at_once > 1 else (function(item) for item in items)
