# SPDX-License-Identifier: BSD-3-Clause
"""The exporter's seat: one process that registers spools in the central repo.

A central database that is down costs nothing but delay: the spool is the
list of what is left, and every failure is followed by a longer pause.
"""

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path

from ppdaemon.config import ExportConfig
from ppdaemon.errors import BadMessage
from ppdaemon.messages import (
    EXPORTER_FACTS,
    PACKET_LIMIT,
    Exported,
    ExportSpool,
    Forked,
    ForkWorker,
    Quit,
    Ready,
    SpoolRefused,
)
from ppdaemon.node.processes.child import Child, adopt
from ppdaemon.wire import decode, encode

__all__ = ("ExporterSeat",)

_LOG = logging.getLogger(__name__)

SLOT = -1
BOOT_LIMIT_S = 60.0
EXPORT_LIMIT_S = 600.0
"""A database that answers so late is not there."""
BATCH = 100
"""Spools in one order; one central transaction takes them all."""


class ExporterSeat:
    """Keeps one exporter process busy with what is in the spool.

    Parameters
    ----------
    config : `~ppdaemon.config.ExportConfig`
        How long to pause.
    repo, log : `pathlib.Path`
        The process's folder and the file of its output.
    ask_fork : `~collections.abc.Callable`
        Gets a `~ppdaemon.messages.ForkWorker`, returns whether it was asked.
    done : `~collections.abc.Callable`
        Gets each `~ppdaemon.messages.Exported`.
    """

    def __init__(
        self,
        config: ExportConfig,
        repo: Path,
        log: Path,
        ask_fork: Callable[[ForkWorker], bool],
        done: Callable[[Exported], None],
    ):
        self.problem = ""
        """Why the last export failed, or blank."""
        self._config = config
        self._repo = repo
        self._log = log
        self._ask_fork = ask_fork
        self._done = done
        self._spools: dict[str, None] = {}  # in order
        self._sent: tuple[str, ...] = ()
        self._child: Child | None = None
        self._ready = False
        self._epoch = 0
        self._pause_s = config.retry_s
        self._timer: asyncio.TimerHandle | None = None
        self._overdue: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._outdated = False

    @property
    def waiting(self) -> int:
        """How many spools are left (`int`)."""
        return len(self._spools)

    @property
    def text(self) -> str:
        """The exporter in a word or two (`str`)."""
        if self.problem:
            return f"failing: {self.problem}"
        if self._child is None or not self._ready:
            return "starting"
        return f"exporting {len(self._sent)}" if self._sent else "idle"

    @property
    def pid(self) -> int | None:
        """The exporter's process id (`int` or `None`)."""
        return self._child.pid if self._child else None

    def start(self) -> None:
        """Ask for the process."""
        self._timer = None
        if self._closed or self._child is not None:
            return
        self._epoch += 1
        self._repo.mkdir(parents=True, exist_ok=True)
        order = ForkWorker(
            role="exporter", slot=SLOT, epoch=self._epoch, repo=str(self._repo), log=str(self._log)
        )
        if not self._ask_fork(order):
            self._later(self.start)

    def add(self, spool: str) -> None:
        """Export this spool as soon as possible.

        Parameters
        ----------
        spool : `str`
            Directory with a manifest.
        """
        self._spools[spool] = None
        self._next()

    def withdraw(self, spool: str) -> bool:
        """Forget a spool, unless it is being exported.

        Parameters
        ----------
        spool : `str`
            Directory with a manifest.

        Returns
        -------
        withdrawn : `bool`
            Whether it will not be exported.
        """
        if spool in self._sent:
            return False
        self._spools.pop(spool, None)
        return True

    def forked(self, words: Forked, descriptors: list[int]) -> None:
        """Take over the freshly forked process.

        Parameters
        ----------
        words : `~ppdaemon.messages.Forked`
            What the zygote said.
        descriptors : `list` [`int`]
            Channel and pidfd.
        """
        child = adopt(words, descriptors)
        if words.epoch != self._epoch or self._closed or self._child is not None:
            child.signal(signal.SIGKILL)
            child.close()
            return
        self._child = child
        self._expect(BOOT_LIMIT_S)
        self._loop.add_reader(child.channel, self._read)
        self._loop.add_reader(child.pidfd, self._ended)

    def not_forked(self, reason: str) -> None:
        """Try again later.

        Parameters
        ----------
        reason : `str`
            Why there was no fork.
        """
        self.problem = f"not forked: {reason}"
        self._later(self.start)

    def replace(self, config: ExportConfig) -> None:
        """Have another process, of a new configuration, after the export that
        runs.

        Parameters
        ----------
        config : `~ppdaemon.config.ExportConfig`
            How long to pause.
        """
        self._config = config
        self._pause_s = config.retry_s
        if self._child is not None:
            self._outdated = True
            self._next()
        else:  # one that was asked for is of the old kind: it will come too late
            if self._timer:
                self._timer.cancel()
            self.start()

    def quit(self) -> None:
        """Let the process end by itself; unfinished spools stay."""
        self._closed = True
        if self._timer:
            self._timer.cancel()
        if self._child:
            self._child.send(encode(Quit()))

    def close(self) -> None:
        """End the process now."""
        self.quit()
        if self._child:
            self._child.signal(signal.SIGKILL)
            self._let_go()

    def _next(self) -> None:
        if self._outdated and self._child and not self._sent:
            self._child.send(encode(Quit()))
        elif self._child and self._ready and not self._sent and not self._timer and self._spools:
            self._sent = tuple(list(self._spools)[:BATCH])
            self._expect(EXPORT_LIMIT_S)
            self._child.send(encode(ExportSpool(spools=self._sent)))

    def _later(self, what: Callable[[], None]) -> None:
        if not self._closed and self._timer is None:
            self._timer = self._loop.call_later(self._pause_s, what)
            self._pause_s = min(2 * self._pause_s, 16 * self._config.retry_s)

    def _retry(self) -> None:
        self._timer = None
        self._next()

    def _read(self) -> bool:
        """Hear one fact; tell whether there may be more."""
        assert self._child is not None
        try:
            packet = self._child.channel.recv(PACKET_LIMIT)
        except BlockingIOError:
            return False
        except OSError:
            packet = b""
        if not packet:
            self._loop.remove_reader(self._child.channel)
            return False
        try:
            self._hear(decode(packet, EXPORTER_FACTS, limit=PACKET_LIMIT))
        except BadMessage as error:
            _LOG.error("the exporter said nonsense: %s", error)
            self._child.signal(signal.SIGKILL)
        return True

    def _hear(self, fact: Ready | Exported | SpoolRefused) -> None:
        self._expect(None)
        match fact:
            case Ready():
                self._ready = True
                self._next()
            case Exported():
                for spool in (*fact.spools, *fact.refused):
                    self._spools.pop(spool, None)
                self._sent = ()
                self.problem = ""
                self._pause_s = self._config.retry_s
                self._done(fact)
                self._next()
            case SpoolRefused(reason=reason):
                _LOG.error("export failed, the spool stays: %s", reason)
                self.problem = reason
                self._sent = ()
                self._later(self._retry)

    def _ended(self) -> None:
        while self._read():  # its last words may be that it has exported
            pass
        if self._outdated and not self._closed:
            self._outdated = False
            self._let_go()
            self.start()
            return
        if not self._closed:
            _LOG.error("the exporter ended; see %s", self._log)
            self.problem = self.problem or "the process ended"
        self._let_go()
        if self._timer is not None:  # a pause of the dead process's export
            self._timer.cancel()
            self._timer = None
        self._later(self.start)

    def _expect(self, limit_s: float | None) -> None:
        """Kill the process if it says nothing for so long."""
        if self._overdue is not None:
            self._overdue.cancel()
        self._overdue = None if limit_s is None else self._loop.call_later(limit_s, self._hang, limit_s)

    def _hang(self, limit_s: float) -> None:
        self._overdue = None
        self.problem = f"the process said nothing for {limit_s:g} s"
        _LOG.error("export: %s", self.problem)
        if self._child is not None:
            self._child.signal(signal.SIGKILL)

    def _let_go(self) -> None:
        assert self._child is not None
        self._expect(None)
        self._loop.remove_reader(self._child.channel)
        self._loop.remove_reader(self._child.pidfd)
        self._child.close()
        self._child = None
        self._ready = False
        self._sent = ()
