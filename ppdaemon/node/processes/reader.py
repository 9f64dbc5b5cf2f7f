# SPDX-License-Identifier: BSD-3-Clause
"""The reader: one process that reads objects in stores.

Started with the arrivals, again with growing pauses whenever it dies, and
killed when it owes an answer for too long: what it was to read is then asked
for again, of the next one.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ppdaemon.errors import BadMessage
from ppdaemon.messages import READER_FACTS, ObjectRead, ObjectUnread, ReaderFact, ReaderReady, ReadObject
from ppdaemon.node.processes.child import Child, Lifeline, launch
from ppdaemon.node.processes.lifecycle import Lifecycle, State
from ppdaemon.node.processes.supervised import SupervisedProcess

__all__ = ("ReaderProcess",)

AT_ONCE = 8
"""Objects asked for at once; as many as the process has threads."""
BOOT_S = 60.0
"""The import of lsst.resources takes 1 s; a busy machine is waited for."""
ANSWER_S = 30.0
"""A store is tried several times in this time."""

STORE_ENVIRONMENT = {
    # A read that hangs is to be an answer, not the end of the process:
    # lsst.resources waits for minutes by itself.
    "LSST_HTTP_TIMEOUT_CONNECT": "4",
    "LSST_HTTP_TIMEOUT_READ": "8",
    "LSST_HTTP_BACKOFF_MIN": "0.1",
    "LSST_HTTP_BACKOFF_MAX": "0.3",
}
"""Unless the daemon's environment, or ``workers.environment``, has others."""


class ReaderProcess(SupervisedProcess[ReaderFact]):
    """Keeps one reader, and has objects read by it.

    Parameters
    ----------
    lifeline : `~ppdaemon.node.processes.child.Lifeline`
        Ends the process with the supervisor.
    environment : `~collections.abc.Mapping` [`str`, `str`]
        Of the process, beside `STORE_ENVIRONMENT`.
    log : `pathlib.Path`
        The file of its output.
    answer_s : `float`, optional
        How long an answer may take.
    """

    def __init__(
        self, lifeline: Lifeline, environment: Mapping[str, str], log: Path, answer_s: float = ANSWER_S
    ):
        lifecycle = Lifecycle(boot_s=BOOT_S, answer_s=answer_s, first_pause_s=0.5, longest_pause_s=30.0)
        super().__init__("reader", log, READER_FACTS, lifecycle)
        self.read = 0
        """Objects read since the start."""
        self.failed = 0
        """Objects that were there and could not be read."""
        self._lifeline = lifeline
        self._environment = {**STORE_ENVIRONMENT, **environment}
        self._room = asyncio.Semaphore(AT_ONCE)
        self._serving = asyncio.Event()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0

    @property
    def live(self) -> bool:
        """Whether it answers."""
        return self.lifecycle.state is State.SERVING

    @property
    def note(self) -> str:
        """What it has read, or why it does not."""
        figures = f"{self.read} objects read, {self.failed} failed" if self.live else "starting"
        return self.problem or figures

    async def ask(self, what: Literal["json", "header"], uri: str) -> dict[str, Any]:
        """Have an object read.

        Parameters
        ----------
        what : `str`
            ``json`` for all of it, ``header`` for the primary header of a
            FITS file.
        uri : `str`
            Escaped.

        Returns
        -------
        content : `dict`
            Those of `~ppdaemon.messages.FACT_KEYS` that it has.

        Raises
        ------
        FileNotFoundError
            Raised if there is no such object.
        TimeoutError
            Raised if the store, or the reader, does not serve now.
        ppdaemon.errors.BadMessage
            Raised if it cannot be understood.
        """
        async with self._room:
            async with asyncio.timeout(BOOT_S):
                await self._serving.wait()
            self._number += 1
            number = self._number
            # It may have died in the moment in which it was ready.
            if not self._order(number, ReadObject(number=number, what=what, uri=uri)):
                raise TimeoutError("the reader takes no order")
            answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
            self._answers[number] = answer
            try:
                return await answer
            finally:
                del self._answers[number]
                self._answered(number)

    def _launch(self) -> Child:
        arguments = ["--log", str(self._log)]
        return launch("ppdaemon.worker.reader", arguments, self._lifeline, self._environment, self._log)

    def _serve(self) -> None:
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
            return  # nobody waits any more
        match message:
            case ObjectRead(content=content):
                answer.set_result(content)
            case ObjectUnread(why="missing", reason=reason):
                answer.set_exception(FileNotFoundError(reason))
            case ObjectUnread(why="bad", reason=reason):
                answer.set_exception(BadMessage(reason, "object"))
            case ObjectUnread(reason=reason):
                answer.set_exception(TimeoutError(reason))

    def _lost(self, manner: str, owed: list[Any]) -> None:
        self._serving.clear()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(TimeoutError(f"the reader {manner}"))
