# SPDX-License-Identifier: BSD-3-Clause
"""Threads for blocking looks at the filesystem of raws.

`concurrent.futures.ThreadPoolExecutor` joins its threads when the interpreter
ends, so that a filesystem that hangs would keep the daemon from ending. These
threads are daemons, a hanging one is visible in `FilePool.stuck_s`, and calls
that hang can be given up: another thread takes the place of theirs.
"""

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ppdaemon.node.arrivals.roots import RawPath

__all__ = ("FilePool", "RootPools")

MOST_GIVEN_UP = 30
"""Threads that hang and are replaced; when so many hang, calls wait."""


@dataclass(frozen=True, slots=True)
class _Job:
    future: asyncio.Future[Any]
    call: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class _Running:
    job: _Job
    since: float


class FilePool:
    """Runs blocking calls beside one event loop.

    The threads start with the first call.

    Parameters
    ----------
    threads : `int`
        How many calls run at once; the others queue.
    mono : `~collections.abc.Callable`
        Monotonic clock, seconds.
    """

    def __init__(self, threads: int, mono: Callable[[], float]):
        self._loop: asyncio.AbstractEventLoop | None = None
        self._mono = mono
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._wanted = threads
        self._threads: set[int] = set()
        self._given_up: set[int] = set()
        self._started = 0
        self._running: dict[int, _Running] = {}
        self._done: deque[tuple[asyncio.Future[Any], Any, Exception | None]] = deque()
        self._called = False

    async def run[T](self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in a thread and wait for what it returns or raises.

        Parameters
        ----------
        function : `~collections.abc.Callable`
            May block.
        *args
            Its arguments.

        Returns
        -------
        result : `object`
            What the function returns.

        Raises
        ------
        TimeoutError
            Raised if the call was given up.
        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        while len(self._threads) < self._wanted:
            self._start_thread()
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(future, lambda: function(*args)))
        return await future

    @property
    def queued(self) -> int:
        """Calls that wait for a thread (`int`)."""
        return self._jobs.qsize()

    def stuck_s(self) -> float:
        """Return for how long the oldest running call has been running, s."""
        running = [*self._running.values()]
        return self._mono() - min(call.since for call in running) if running else 0.0

    def give_up(self, after_s: float) -> int:
        """Give up the calls that hang; other threads go on in their place.

        Parameters
        ----------
        after_s : `float`
            Calls that have been running for longer are meant.

        Returns
        -------
        count : `int`
            How many were given up now.
        """
        now, count = self._mono(), 0
        for number, call in [*self._running.items()]:
            if now - call.since <= after_s or number in self._given_up:
                continue
            if len(self._given_up) >= MOST_GIVEN_UP:
                break
            self._given_up.add(number)
            self._threads.discard(number)
            self._start_thread()
            count += 1
            if not call.job.future.done():
                call.job.future.set_exception(TimeoutError("the filesystem does not answer"))
        return count

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
        while (job := self._jobs.get()) is not None:
            if job.future.done():
                continue  # cancelled
            self._running[number] = _Running(job, self._mono())
            outcome: tuple[Any, Exception | None]
            try:
                outcome = (job.call(), None)
            except Exception as error:  # raised again where the call is awaited
                outcome = (None, error)
            del self._running[number]
            self._answer(job.future, *outcome)
            if number in self._given_up:
                self._given_up.discard(number)
                return  # another one serves in its place

    def _answer(self, future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
        self._done.append((future, result, error))
        # The loop is woken once for many answers: waking it costs a write.
        if not self._called and self._loop is not None:
            self._called = True
            with contextlib.suppress(RuntimeError):  # the loop closed meanwhile
                self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        # Cleared first: what is appended from here on calls again.
        self._called = False
        while self._done:
            future, result, error = self._done.popleft()
            if future.done():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)


class RootPools:
    """Threads of its own for each raw root: one that hangs stops no other.

    Parameters
    ----------
    roots : `~collections.abc.Iterable` [`str`]
        The roots' paths.
    threads : `int`
        For each of them.
    mono : `~collections.abc.Callable`
        Monotonic clock, seconds.
    """

    def __init__(self, roots: Iterable[str], threads: int, mono: Callable[[], float]):
        self._pools = {root: FilePool(threads, mono) for root in roots}

    def of(self, root: str) -> FilePool:
        """Return the threads of a root.

        Parameters
        ----------
        root : `str`
            Its path.

        Returns
        -------
        pool : `FilePool`
            Always the same.
        """
        return self._pools[root]

    async def run[T](self, function: Callable[..., T], place: RawPath, *args: Any) -> T:
        """Call a function that looks at a place; see `FilePool.run`.

        Parameters
        ----------
        function : `~collections.abc.Callable`
            May block.
        place : `~ppdaemon.node.arrivals.roots.RawPath`
            Its first argument, and what says which threads.
        *args
            Its other arguments.

        Returns
        -------
        result : `object`
            What the function returns.

        Raises
        ------
        TimeoutError
            Raised if the call was given up.
        """
        return await self._pools[place.root].run(function, place, *args)

    def close(self) -> None:
        """Let the threads end; waits for none."""
        for pool in self._pools.values():
            pool.close()
