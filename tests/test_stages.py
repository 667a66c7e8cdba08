import threading
import time
import weakref

import pytest

from emanet.stages import ordered


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_the_order_of_the_items(threads):
    def slow_if_even(item):
        time.sleep(0.002 * (item % 2 == 0))
        return item * item

    assert list(ordered(slow_if_even, range(20), threads, 4)) == [item * item for item in range(20)]
    assert list(ordered(slow_if_even, [], threads)) == []


def test_the_next_items_are_on_their_way_while_the_caller_works():
    started = [threading.Event() for _ in range(3)]
    results = ordered(lambda i: started[i].set(), range(3), ahead=2)
    next(results)
    assert all(event.wait(5) for event in started), "nobody has asked for the second and the third result yet"
    results.close()


def test_stages_in_a_row_run_at_once():
    """Each waits until all three are at work, on three items: one after the other they would wait for ever."""
    together = threading.Barrier(3, timeout=10)

    def read(i):
        if i == 2:
            together.wait()
        return i

    def network(i):
        if i == 1:
            together.wait()
        return i

    def write(i):
        if i == 0:
            together.wait()
        return i

    assert list(ordered(write, map(network, ordered(read, range(4), ahead=2)), ahead=2)) == [0, 1, 2, 3]


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (2, 4)])
def test_few_items_are_held(threads, ahead):
    class Item:
        pass

    held, most = weakref.WeakSet(), 0

    def items():
        for _ in range(50):
            item = Item()
            held.add(item)
            yield item
            del item

    for result in ordered(lambda item: item, items(), threads, ahead):
        del result
        most = max(most, len(held))
    assert 0 < most <= ahead + 2  # one more is the worker's, until it takes the next


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_takes_the_place_of_its_result_and_ends_the_rest(error):
    before, done = threading.active_count(), []

    def fails_at_3(i):
        done.append(i)
        if i == 3:
            raise error("3")
        return i

    results = []
    with pytest.raises(error, match="3"):
        for result in ordered(fails_at_3, range(1000), ahead=2):
            results.append(result)
    assert results == [0, 1, 2] and max(done) <= 6 and threading.active_count() == before


def test_an_error_is_raised_before_many_other_items_are_drawn():
    """Of the last stage, whose items cost most: a full disk ends the work at once, however far ahead it may be."""

    def items():
        for i in range(100):
            yield i
            drawn.append(i)
            time.sleep(0.001)

    def full(i):
        raise OSError("full")

    drawn = []
    with pytest.raises(OSError, match="full"):
        list(ordered(full, items(), ahead=50))
    assert len(drawn) < 50


def test_an_error_of_the_items_or_the_caller_ends_the_threads():
    def items():
        yield 0
        raise ZeroDivisionError

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        list(ordered(lambda i: i, items()))
    results = ordered(lambda i: i, range(9))
    next(results)
    results.close()
    assert threading.active_count() == before
