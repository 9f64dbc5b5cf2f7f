# SPDX-License-Identifier: BSD-3-Clause
"""Threads for blocking looks at the filesystem of raws.

`concurrent.futures.ThreadPoolExecutor` joins its threads when the interpreter
ends, so that a filesystem that hangs would keep the daemon from ending. These
threads are daemons, and a hanging one is visible in `FilePool.stuck_s`.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ("FilePool",)


@dataclass(frozen=True, slots=True)
class _Job:
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    call: Callable[[], Any]


class FilePool:
    """Runs blocking calls beside the event loop.

    The threads start with the first call.

    Parameters
    ----------
    threads : `int`
        How many calls run at once; the others queue.
    mono : `~collections.abc.Callable`
        Monotonic clock, seconds.
    """

    def __init__(self, threads: int, mono: Callable[[], float]):
        self._mono = mono
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._running: dict[int, float] = {}
        self._size = threads
        self._threads: list[threading.Thread] = []

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
        """
        while len(self._threads) < self._size:
            number = len(self._threads)
            self._threads.append(
                threading.Thread(target=self._serve, args=(number,), name=f"arrivals-{number}", daemon=True)
            )
            self._threads[-1].start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(loop, future, lambda: function(*args)))
        return await future

    def stuck_s(self) -> float:
        """Return for how long the oldest running call has been running, s."""
        started = list(self._running.values())
        return self._mono() - min(started) if started else 0.0

    def close(self) -> None:
        """Let the threads end after what they do now; waits for none."""
        for _ in self._threads:
            self._jobs.put(None)

    def _serve(self, number: int) -> None:
        while (job := self._jobs.get()) is not None:
            if job.future.cancelled():
                continue
            self._running[number] = self._mono()
            outcome: tuple[Any, Exception | None]
            try:
                outcome = (job.call(), None)
            except Exception as error:  # raised again where the call is awaited
                outcome = (None, error)
            del self._running[number]
            with contextlib.suppress(RuntimeError):  # the loop closed meanwhile
                job.loop.call_soon_threadsafe(_settle, job.future, *outcome)


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
