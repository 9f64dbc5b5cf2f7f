# SPDX-License-Identifier: BSD-3-Clause
"""Calls in threads that hang, fail, or are too many, and the way back to the loop."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ppdaemon.node.arrivals import threads as module
from ppdaemon.node.arrivals.threads import FileThreads, Mailbox

HANG_S = 30.0


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Give what hanging calls wait for."""
    event = threading.Event()
    yield event
    event.set()


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + HANG_S / 2
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


async def test_what_a_call_returns_or_raises_comes_back():
    threads = FileThreads(1, time.monotonic)
    assert await threads.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await threads.run(divmod, 7, 0)
    assert threads.stuck_s() == 0.0
    threads.close()


async def test_a_call_that_hangs_is_abandoned_and_the_next_one_runs(release):
    now = [0.0]
    threads = FileThreads(1, lambda: now[0])
    hanging = asyncio.create_task(threads.run(release.wait, HANG_S))
    await until(lambda: threads._running)
    now[0] = 11.0
    assert threads.stuck_s() == 11.0
    threads.abandon_calls(11.0)
    assert not hanging.done()
    threads.abandon_calls(10.0)
    with pytest.raises(TimeoutError):
        await hanging
    assert await threads.run(abs, -1) == 1
    # The operator is to see it as long as it hangs.
    assert threads.stuck_s() == 11.0
    release.set()
    await until(lambda: not threads._abandoned)
    assert threads.stuck_s() == 0.0
    threads.close()


async def test_threads_that_hang_are_replaced_up_to_a_bound(release, monkeypatch):
    monkeypatch.setattr(module, "MAX_ABANDONED", 3)
    threads = FileThreads(2, time.monotonic)
    hanging = [asyncio.create_task(threads.run(release.wait, HANG_S)) for _ in range(8)]
    for count in (2, 3, 3):
        await until(lambda: len(threads._running) == len(threads._abandoned) + 2)
        threads.abandon_calls(-1.0)
        assert len(threads._abandoned) == count
        await asyncio.gather(*(task for task in hanging if task.done()), return_exceptions=True)
    release.set()
    ended = await asyncio.gather(*hanging, return_exceptions=True)
    assert sum(isinstance(each, TimeoutError) for each in ended) == 3
    threads.close()


async def test_a_call_that_was_canceled_is_not_made(release):
    made = []
    threads = FileThreads(1, time.monotonic)
    first = asyncio.create_task(threads.run(release.wait, HANG_S))
    await until(lambda: threads._running)
    second = asyncio.create_task(threads.run(made.append, 2))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    third = asyncio.create_task(threads.run(made.append, 3))
    release.set()
    await asyncio.gather(first, third)
    assert made == [3]
    threads.close()


class Loop:
    """Counts how often it is woken, and runs the calls on request."""

    def __init__(self) -> None:
        self.due: list[Callable[[], object]] = []
        self.woken = 0

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        self.woken += 1
        self.due.append(callback)

    def turn(self) -> None:
        due, self.due = self.due, []
        for callback in due:
            callback()


def test_the_loop_is_woken_once_for_many_calls_and_given_pauses():
    loop, called = Loop(), []
    mailbox = Mailbox(loop)
    for number in range(250):
        mailbox.put(lambda number=number: called.append(number))
    assert loop.woken == 1
    for count in (100, 200, 250):
        loop.turn()
        assert called == [*range(count)]
    mailbox.put(lambda: called.append(250))
    loop.turn()
    assert called == [*range(251)]


def test_above_its_bound_calls_are_dropped_and_that_is_reported_once():
    loop, called, lost = Loop(), [], []
    mailbox = Mailbox(loop, 3, lambda: lost.append(len(called)))
    for number in range(10):
        mailbox.put(lambda number=number: called.append(number))
    loop.turn()
    assert (called, lost) == ([0, 1, 2], [3])
    mailbox.put(lambda: called.append(10))
    loop.turn()
    assert called == [0, 1, 2, 10]
