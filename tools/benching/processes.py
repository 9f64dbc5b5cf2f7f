# SPDX-License-Identifier: BSD-3-Clause
"""Processes of a bench that answer messages, and what any process has used."""

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from ppdaemon.errors import Unavailable

CONTEXT = multiprocessing.get_context("forkserver")
"""A bench has modules imported once in the fork server: each process would need seconds for it."""
# For one answer: making repos and raws takes most of a minute on an idle machine.
_LIMIT_S = 600.0


class BenchProcess:
    """A process of the bench and its channel; it is stopped at the end of the context.

    The channel is the last argument of `function`.
    """

    def __init__(self, function: Callable[..., object], *arguments: object):
        self._channel, child_end = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=function, args=(*arguments, child_end))
        self._process.start()
        # Without a copy in this process, the exit of the child closes the channel.
        child_end.close()

    def request(self, message: object) -> Any:
        """Send a message and return the answer; raise `Unavailable` if there is none."""
        self._send(message)
        return self.answer()

    def answer(self) -> Any:
        """Return the next answer; raise `Unavailable` if there is none."""
        with suppress(EOFError, ConnectionResetError):
            if self._channel.poll(_LIMIT_S):
                return self._channel.recv()
        raise Unavailable("a process of the bench exited or did not answer; see the output above")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._send(None)
        else:
            self._process.kill()
        self._process.join()
        self._channel.close()

    def _send(self, message: object) -> None:
        with suppress(BrokenPipeError):  # it has ended
            self._channel.send(message)


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process until now, finer than the ticks of 10 ms that psutil has; 0 if it
    has ended.
    """
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def pss_mb(pid: int) -> float:
    """Return the memory of a process, with its share of what it shares with others, 10^6 bytes."""
    return smaps_mb(_smaps(pid), "Pss:")


def private_mb(pid: int) -> float:
    """Return the private memory of a process, clean and dirty, 10^6 bytes."""
    return smaps_mb(_smaps(pid), "Private_")


def smaps_mb(smaps: str, prefix: str) -> float:
    """Add up the lines of a process's ``smaps_rollup`` that begin with a prefix, 10^6 bytes. Pure."""
    rows = (line.split() for line in smaps.splitlines() if line.startswith(prefix))
    return sum(int(row[1]) for row in rows) * 1024 / 1e6


def _smaps(pid: int) -> str:
    return Path(f"/proc/{pid}/smaps_rollup").read_text()
