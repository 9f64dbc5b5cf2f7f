# SPDX-License-Identifier: BSD-3-Clause
"""The reader: one process that reads objects in stores.

It starts with the arrivals, restarts with growing pauses whenever it dies, and is killed when
an answer takes too long: callers then ask the next one again.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppdaemon.errors import BadMessage
from ppdaemon.messages import (
    READER_FACTS,
    ObjectRead,
    ObjectUnread,
    ReaderFact,
    ReaderReady,
    ReadKind,
    ReadObject,
)
from ppdaemon.node.processes.child import ChildProcess, Lifeline, launch
from ppdaemon.node.processes.lifecycle import Lifecycle, ProcessState
from ppdaemon.node.processes.supervised import SupervisedProcess

__all__ = ("ReaderProcess",)

AT_ONCE = 8
"""Maximum of objects that are read at the same time; the process has as many threads."""
BOOT_S = 60.0
"""The import of lsst.resources takes 1 s; much longer on a busy machine."""
ANSWER_S = 30.0
"""A store is tried several times within this time."""

STORE_ENVIRONMENT = {
    # A read that hangs must end with an error before ANSWER_S, which kills the
    # process: the defaults of lsst.resources are minutes.
    "LSST_HTTP_TIMEOUT_CONNECT": "4",
    "LSST_HTTP_TIMEOUT_READ": "8",
    "LSST_HTTP_BACKOFF_MIN": "0.1",
    "LSST_HTTP_BACKOFF_MAX": "0.3",
}
"""Defaults; the daemon's environment and ``workers.environment`` take precedence."""


class ReaderProcess(SupervisedProcess[ReaderFact]):
    """Supervises one reader, and reads objects by it."""

    def __init__(
        self, lifeline: Lifeline, environment: Mapping[str, str], log: Path, answer_s: float = ANSWER_S
    ):
        lifecycle = Lifecycle(boot_s=BOOT_S, answer_s=answer_s, first_pause_s=0.5, longest_pause_s=30.0)
        super().__init__("reader", log, READER_FACTS, lifecycle)
        self.read = 0
        """Objects read since the start."""
        self.failed = 0
        """Objects that exist and could not be read."""
        self._lifeline = lifeline
        self._environment = {**STORE_ENVIRONMENT, **environment}
        # The time limit of an answer starts when its order is sent: other callers wait here.
        self._room = asyncio.Semaphore(AT_ONCE)
        self._serving = asyncio.Event()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0

    @property
    def live(self) -> bool:
        """Whether the process answers."""
        return self.lifecycle.state is ProcessState.SERVING

    @property
    def note(self) -> str:
        """How many objects it has read, or why it does not."""
        figures = f"{self.read} objects read, {self.failed} failed" if self.live else "starting"
        return self.problem or figures

    async def ask(self, what: ReadKind, uri: str) -> dict[str, Any]:
        """Read an object, given by its escaped URI: all of it (``json``), or the primary header
        of a FITS file (``header``); or list a folder (``list``). Return those of
        `~ppdaemon.messages.FACT_KEYS` that it has. Raise `FileNotFoundError` if there is no such object,
        `TimeoutError` if the store or the reader does not serve now, and
        `~ppdaemon.errors.BadMessage` if the content is invalid.
        """
        async with self._room:
            async with asyncio.timeout(BOOT_S):
                await self._serving.wait()
            self._number += 1
            number = self._number
            # It may have died just after it became ready.
            if not self._order(number, ReadObject(number=number, what=what, uri=uri)):
                raise TimeoutError("the reader does not accept orders now")
            # No `await` since the order: its answer is not handled before the future exists.
            answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
            self._answers[number] = answer
            try:
                return await answer
            finally:
                # Also if the caller was canceled: a late answer is then ignored.
                del self._answers[number]
                self._answered(number)

    def _launch(self) -> ChildProcess:
        arguments = ["--log", str(self._log)]
        return launch("ppdaemon.worker.reader", arguments, self._lifeline, self._environment, self._log)

    def _serve(self) -> None:
        if self.live:  # one that was killed meanwhile may still say that it is ready
            self._serving.set()

    def _received(self, message: ReaderFact, descriptors: list[int]) -> None:
        if isinstance(message, ReaderReady):
            self._ready()
            return
        self.lifecycle.succeeded()
        self.read += isinstance(message, ObjectRead)
        self.failed += isinstance(message, ObjectUnread) and message.why != "missing"
        answer = self._answers.get(message.number)
        if answer is None or answer.done():
            return  # the caller was canceled
        match message:
            case ObjectRead(content=content):
                answer.set_result(content)
            case ObjectUnread(why="missing", reason=reason):
                answer.set_exception(FileNotFoundError(reason))
            case ObjectUnread(why="bad", reason=reason):
                answer.set_exception(BadMessage(reason, "object"))
            case ObjectUnread(reason=reason):
                answer.set_exception(TimeoutError(reason))

    def _give_up(self, cause: str, unanswered: list[Any]) -> None:
        self._serving.clear()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(TimeoutError(f"the reader {cause}"))
