# SPDX-License-Identifier: BSD-3-Clause
"""Threads for blocking calls on the filesystem of raws, with results in the event loop.

`concurrent.futures.ThreadPoolExecutor` joins its threads when the interpreter
exits, so a filesystem that hangs would block the exit of the daemon. These are
daemon threads, `FileThreads.stuck_s` shows a hanging call, and a call that hangs
can be abandoned: a new thread replaces its thread.

Each raw root has separate threads: a root that hangs does not block the others.
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
"""Calls from a mailbox before the event loop runs other tasks: some 2 ms."""
MAX_ABANDONED = 30
"""Hanging threads that are replaced; beyond that, calls wait: threads need memory."""


@dataclass(eq=False)
class Mailbox:
    """Runs calls from other threads in the event loop, in order.

    When `max_calls` calls are waiting, further ones are dropped, and `overflowed` is called once
    instead.
    """

    loop: asyncio.AbstractEventLoop
    max_calls: int = sys.maxsize
    overflowed: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        self._calls: deque[Callable[[], object]] = deque()
        self._woken = False

    def put(self, call: Callable[[], object]) -> None:
        """Queue a call for the event loop; from any thread."""
        if len(self._calls) > self.max_calls:
            return
        self._calls.append(call if len(self._calls) < self.max_calls else self.overflowed)
        # Wake the loop once for many calls: each wake-up is a write to a socket.
        if not self._woken:
            self._woken = True
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        # Cleared before the queue is read: a call appended from here on wakes the loop again.
        self._woken = False
        for _ in range(AT_ONCE):
            if not self._calls:
                return
            self._calls.popleft()()
        # Give other tasks a turn before the remaining calls.
        self._woken = True
        self._wake()


@dataclass(frozen=True, slots=True)
class _Job:
    future: asyncio.Future[Any]
    call: Callable[[], Any]


class FileThreads:
    """Runs blocking calls in a fixed number of threads, which start with the first call."""

    def __init__(self, threads: int, mono: Callable[[], float]):
        self._mono = mono
        self._mailbox: Mailbox | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread_count = threads
        self._threads: set[int] = set()
        self._abandoned: set[int] = set()
        self._started = 0
        self._running: dict[int, tuple[_Job, float]] = {}

    async def run[T](self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in a thread; raises TimeoutError if the call is abandoned."""
        loop = asyncio.get_running_loop()
        if self._mailbox is None:
            self._mailbox = Mailbox(loop)
        while len(self._threads) < self._thread_count:
            self._start_thread()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(future, lambda: function(*args)))
        return await future

    def stuck_s(self) -> float:
        """Return how long the oldest running call has been running, seconds."""
        running = [*self._running.values()]
        return self._mono() - min(since for _, since in running) if running else 0.0

    def abandon_calls(self, after_s: float) -> None:
        """Abandon calls that have been running for more than `after_s` seconds, and replace their threads."""
        now = self._mono()
        # A copy: the threads change the dictionary.
        for number, (job, since) in [*self._running.items()]:
            if now - since <= after_s or number in self._abandoned:
                continue
            if len(self._abandoned) >= MAX_ABANDONED:
                return
            self._abandoned.add(number)
            self._threads.discard(number)
            self._start_thread()
            if not job.future.done():
                job.future.set_exception(TimeoutError("the filesystem does not answer"))

    def close(self) -> None:
        """Make each thread exit after its current call; returns at once."""
        for _ in self._threads | self._abandoned:
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
                continue  # canceled
            self._running[number] = job, self._mono()
            result: Any = None
            failure: Exception | None = None
            try:
                result = job.call()
            except Exception as error:  # raised again in `run`
                failure = error
            del self._running[number]
            self._mailbox.put(partial(_answer, job.future, result, failure))
            if number in self._abandoned:
                self._abandoned.discard(number)
                return  # this thread was replaced


def _answer(future: asyncio.Future[Any], result: Any, failure: Exception | None) -> None:
    if future.done():
        return  # canceled or abandoned
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)
