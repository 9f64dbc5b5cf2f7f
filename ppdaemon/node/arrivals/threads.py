# SPDX-License-Identifier: BSD-3-Clause
"""Threads for blocking looks at the filesystem of raws, and the way back to the event loop.

`concurrent.futures.ThreadPoolExecutor` joins its threads when the interpreter
ends, so that a filesystem that hangs would keep the daemon from ending. These
threads are daemons, a hanging one is visible in `FileThreads.stuck_s`, and
calls that hang can be given up: another thread takes the place of theirs.

Each raw root has threads of its own: one that hangs stops no other.
"""

import asyncio
import contextlib
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

__all__ = ("FileThreads", "Mailbox")

AT_ONCE = 100
"""Calls from a mailbox without a pause: some 2 ms."""
MOST_GIVEN_UP = 30
"""Threads that hang and are replaced; when so many hang, calls wait."""


@dataclass(eq=False)
class Mailbox:
    """Has the loop call what other threads put in, in order.

    Above `most` waiting calls further ones are dropped, and `overflowed` is called once in
    their place.
    """

    loop: asyncio.AbstractEventLoop
    most: int = sys.maxsize
    overflowed: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        self._calls: deque[Callable[[], object]] = deque()
        self._woken = False

    def put(self, call: Callable[[], object]) -> None:
        """Have something called in the loop; from any thread."""
        if len(self._calls) > self.most:
            return
        self._calls.append(call if len(self._calls) < self.most else self.overflowed)
        # The loop is woken once for many calls: waking it costs a write.
        if not self._woken:
            self._woken = True
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        # Cleared first: what is appended from here on wakes the loop again.
        self._woken = False
        for _ in range(AT_ONCE):
            if not self._calls:
                return
            self._calls.popleft()()
        # The loop has other things to do too.
        self._woken = True
        self._wake()


@dataclass(frozen=True, slots=True)
class _Job:
    future: asyncio.Future[Any]
    call: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class _Running:
    job: _Job
    since: float


class FileThreads:
    """Runs blocking calls beside one event loop, so many at once; the others queue.

    The threads start with the first call.
    """

    def __init__(self, threads: int, mono: Callable[[], float]):
        self._mono = mono
        self._mailbox: Mailbox | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._wanted = threads
        self._threads: set[int] = set()
        self._given_up: set[int] = set()
        self._started = 0
        self._running: dict[int, _Running] = {}

    async def run[T](self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in a thread, and return or raise what it does; TimeoutError if it is given up."""
        loop = asyncio.get_running_loop()
        if self._mailbox is None:
            self._mailbox = Mailbox(loop)
        while len(self._threads) < self._wanted:
            self._start_thread()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(future, lambda: function(*args)))
        return await future

    def stuck_s(self) -> float:
        """Return for how long the oldest running call has been running, s."""
        running = [*self._running.values()]
        return self._mono() - min(call.since for call in running) if running else 0.0

    def give_up(self, after_s: float) -> None:
        """Give up the calls that have been running for longer; other threads go on in their place."""
        now = self._mono()
        for number, call in [*self._running.items()]:
            if now - call.since <= after_s or number in self._given_up:
                continue
            if len(self._given_up) >= MOST_GIVEN_UP:
                return
            self._given_up.add(number)
            self._threads.discard(number)
            self._start_thread()
            if not call.job.future.done():
                call.job.future.set_exception(TimeoutError("the filesystem does not answer"))

    def close(self) -> None:
        """Let the threads end after what they do now; waits for none."""
        for _ in self._threads | self._given_up:
            self._jobs.put(None)

    def _start_thread(self) -> None:
        number = self._started = self._started + 1
        self._threads.add(number)
        threading.Thread(target=self._serve, args=(number,), name=f"arrivals-{number}", daemon=True).start()

    # --- in the threads ---

    def _serve(self, number: int) -> None:
        assert self._mailbox is not None
        while (job := self._jobs.get()) is not None:
            if job.future.done():
                continue  # cancelled
            self._running[number] = _Running(job, self._mono())
            result: Any = None
            failure: Exception | None = None
            try:
                result = job.call()
            except Exception as error:  # raised again where the call is awaited
                failure = error
            del self._running[number]
            self._mailbox.put(partial(_answer, job.future, result, failure))
            if number in self._given_up:
                self._given_up.discard(number)
                return  # another one serves in its place


def _answer(future: asyncio.Future[Any], result: Any, failure: Exception | None) -> None:
    if future.done():
        return  # cancelled, or given up
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)
