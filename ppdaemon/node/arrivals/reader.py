# SPDX-License-Identifier: BSD-3-Clause
"""The reader's seat: one process that reads objects in stores.

Started with the arrivals, again with growing pauses whenever it dies, and
killed when it owes an answer for too long: what it was to read is then asked
for again, of the next one.
"""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ppdaemon.errors import BadMessage
from ppdaemon.messages import (
    PACKET_LIMIT,
    READER_FACTS,
    ObjectRead,
    ObjectUnread,
    ReaderReady,
    ReadObject,
)
from ppdaemon.node.arrivals.exposures import Reading
from ppdaemon.node.arrivals.files import ExposureFacts, facts_in, sensors_in
from ppdaemon.node.arrivals.roots import RawPath
from ppdaemon.node.arrivals.stores import escaped
from ppdaemon.node.forker import ENVIRONMENT, Lifeline
from ppdaemon.wire import decode, encode

__all__ = ("ReaderSeat", "StoreReading")

type _Answer = asyncio.Future[dict[str, Any]]

_LOG = logging.getLogger(__name__)

AT_ONCE = 8
"""Objects asked for at once; as many as the process has threads."""
BOOT_S = 60.0
"""The import of lsst.resources takes 1 s; a busy machine is waited for."""
ANSWER_S = 30.0
"""A store is tried several times in this time."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STOP_S = 2.0

STORE_ENVIRONMENT = {
    # A read that hangs is to be an answer, not the end of the process:
    # lsst.resources waits for minutes by itself.
    "LSST_HTTP_TIMEOUT_CONNECT": "4",
    "LSST_HTTP_TIMEOUT_READ": "8",
    "LSST_HTTP_BACKOFF_MIN": "0.1",
    "LSST_HTTP_BACKOFF_MAX": "0.3",
}
"""Unless the daemon's environment, or ``workers.environment``, says otherwise."""


class ReaderSeat:
    """Keeps one reader process, and asks it.

    Parameters
    ----------
    lifeline : `~ppdaemon.node.forker.Lifeline`
        Ends the process with the supervisor.
    environment : `~collections.abc.Mapping` [`str`, `str`]
        Of the process, beside `STORE_ENVIRONMENT`.
    log : `pathlib.Path`
        The file of its output.
    """

    def __init__(self, lifeline: Lifeline, environment: Mapping[str, str], log: Path):
        self.read = 0
        """Objects read since the start (`int`)."""
        self.failed = 0
        """Objects that were there and could not be read (`int`)."""
        self._lifeline = lifeline
        self._environment = {**STORE_ENVIRONMENT, **environment, **ENVIRONMENT}
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(AT_ONCE)
        self._ready = asyncio.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._pidfd = -1
        self._timer: asyncio.TimerHandle | None = None
        self._asked: dict[int, _Answer] = {}
        self._number = 0
        self._deaths = 0
        self._why = ""
        self._killed_because = ""
        self._closed = False
        self._over = asyncio.Event()
        self._over.set()

    @property
    def pid(self) -> int | None:
        """The reader's process id (`int` or `None`)."""
        return self._process.pid if self._process else None

    @property
    def live(self) -> bool:
        """Whether it answers (`bool`)."""
        return self._ready.is_set()

    @property
    def note(self) -> str:
        """What it has read, or why it does not (`str`)."""
        if not self._deaths:
            return f"{self.read} objects read, {self.failed} failed" if self.live else "starting"
        times = f", {self._deaths} deaths in a row" if self._deaths > 1 else ""
        return f"the reader {self._why}{times}; see {self._log}"

    def start(self) -> None:
        """Start the process."""
        self._timer = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = self._popen(theirs)
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError as error:
            ours.close()
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self._process = None
            self._gone(f"cannot be started: {error}")
            return
        ours.setblocking(False)
        self._channel = ours
        self._over.clear()
        self._loop.add_reader(ours, self._hear_one)
        self._loop.add_reader(self._pidfd, self._ended)
        self._timer = self._loop.call_later(BOOT_S, self._kill, f"was not ready in {BOOT_S:g} s")

    async def close(self) -> None:
        """End the process, and wait a moment until it is gone."""
        self._closed = True
        self._stop_timer()
        if self._process is not None:
            self._process.kill()
        with contextlib.suppress(TimeoutError):  # one that survives KILL is left
            async with asyncio.timeout(STOP_S):
                await self._over.wait()

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
                await self._ready.wait()
            self._number += 1
            order = ReadObject(number=self._number, what=what, uri=uri)
            answer = self._asked[order.number] = self._loop.create_future()
            try:
                return await self._answered(order, answer)
            finally:
                del self._asked[order.number]

    async def _answered(self, order: ReadObject, answer: _Answer) -> dict[str, Any]:
        if self._channel is None:  # it died in the moment in which it was ready
            raise TimeoutError("the reader is gone")
        process = self._process
        try:
            self._channel.send(encode(order))
        except OSError as error:
            raise TimeoutError(f"the reader takes no order: {error}") from None
        answered, _ = await asyncio.wait((answer,), timeout=ANSWER_S)
        if answered:
            return answer.result()
        if self._process is process:
            self._kill(f"did not answer in {ANSWER_S:g} s")
        raise TimeoutError(f"no answer in {ANSWER_S:g} s")

    # --- the process -----------------------------------------------------

    def _popen(self, channel: socket.socket) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "ppdaemon.worker.reader", "--log", str(self._log)]
        command += ["--channel", str(channel.fileno()), "--lifeline", str(self._lifeline.read_end)]
        # What goes wrong before the process opens its log by itself is there, too.
        with self._log.open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(channel.fileno(), self._lifeline.read_end),
                env=self._environment,
            )

    def _hear_one(self) -> bool:
        """Hear one packet; tell whether there may be more."""
        assert self._channel is not None
        try:
            packet = self._channel.recv(PACKET_LIMIT)
        except BlockingIOError:
            return False
        except OSError:
            packet = b""
        if not packet:
            self._loop.remove_reader(self._channel)
            return False
        try:
            self._hear(decode(packet, READER_FACTS, limit=PACKET_LIMIT))
        except BadMessage as error:
            self._kill(f"said nonsense: {error}")
        return True

    def _hear(self, fact: ReaderReady | ObjectRead | ObjectUnread) -> None:
        if isinstance(fact, ReaderReady):
            self._stop_timer()
            self._ready.set()
            return
        self._deaths = 0
        self._count(fact)
        answer = self._asked.get(fact.number)
        if answer is None or answer.done():
            return  # nobody waits any more
        match fact:
            case ObjectRead(content=content):
                answer.set_result(content)
            case ObjectUnread(why="missing", reason=reason):
                answer.set_exception(FileNotFoundError(reason))
            case ObjectUnread(why="bad", reason=reason):
                answer.set_exception(BadMessage(reason, "object"))
            case ObjectUnread(reason=reason):
                answer.set_exception(TimeoutError(reason))

    def _count(self, fact: ObjectRead | ObjectUnread) -> None:
        if isinstance(fact, ObjectRead):
            self.read += 1
        elif fact.why != "missing":
            self.failed += 1

    def _kill(self, because: str) -> None:
        self._killed_because = because
        if self._process is not None:
            self._process.kill()

    def _ended(self) -> None:
        while self._hear_one():  # its last answers are good
            pass
        assert self._process is not None
        status = self._process.wait()
        manner = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        self._let_go()
        self._gone(self._killed_because or manner)
        self._killed_because = ""

    def _gone(self, why: str) -> None:
        """Start another one after a pause."""
        self._give_up(f"the reader {why}")
        self._stop_timer()
        if self._closed:
            return
        self._why = why
        self._deaths += 1
        _LOG.error("the reader of object stores %s; see %s", why, self._log)
        pause_s = min(FIRST_PAUSE_S * 2.0 ** min(self._deaths - 1, 16), LONGEST_PAUSE_S)
        self._timer = self._loop.call_later(pause_s, self.start)

    def _give_up(self, why: str) -> None:
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(TimeoutError(why))

    def _let_go(self) -> None:
        self._ready.clear()
        assert self._channel is not None
        self._loop.remove_reader(self._channel)
        self._loop.remove_reader(self._pidfd)
        self._channel.close()
        os.close(self._pidfd)
        self._channel, self._process = None, None
        self._over.set()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class StoreReading(Reading):
    """Reads objects by the reader process.

    Parameters
    ----------
    seat : `ReaderSeat`
        The process.
    """

    def __init__(self, seat: ReaderSeat):
        self._seat = seat

    async def sidecar(self, place: RawPath) -> ExposureFacts:
        """Read a sidecar; see `~ppdaemon.node.arrivals.exposures.Reading`."""
        return facts_in(await self._seat.ask("json", escaped(place.path)))

    async def header(self, place: RawPath) -> ExposureFacts:
        """Read a primary header, as above."""
        return facts_in(await self._seat.ask("header", escaped(place.path)))

    async def listed(self, place: RawPath) -> frozenset[str]:
        """Read a list of detectors, as above."""
        return sensors_in(await self._seat.ask("json", escaped(place.path)))

    async def neighbours(self, image: RawPath) -> tuple[RawPath, ...]:
        """Find none: stores are not listed."""
        return ()
