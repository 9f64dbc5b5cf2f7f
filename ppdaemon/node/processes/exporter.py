# SPDX-License-Identifier: BSD-3-Clause
"""The exporter: one process that registers spools in the central repo.

A central database that is down costs nothing but delay: the spool is the
list of what is left, and every failure is followed by a longer pause.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppdaemon import messages
from ppdaemon.config import ExportConfig
from ppdaemon.node.processes.lifecycle import Lifecycle, State
from ppdaemon.node.processes.supervised import ForkedProcess
from ppdaemon.wire import encode

__all__ = ("ExporterProcess",)

_LOG = logging.getLogger(__name__)

SLOT = -1
BOOT_S = 60.0
EXPORT_S = 600.0
"""A database that answers so late is not there."""
LONGEST_PAUSE = 16
"""In units of the first one."""
BATCH = 100
"""Spools in one order; one central transaction takes them all."""


class ExporterProcess(ForkedProcess[messages.ExporterFact]):
    """Keeps one exporter busy with what is in the spool.

    Parameters
    ----------
    repo, log : `pathlib.Path`
        The process's folder and the file of its output.
    ask_fork : `~collections.abc.Callable`
        Returns whether the generation takes the order.
    done : `~collections.abc.Callable`
        Called with each `~ppdaemon.messages.Exported`.
    """

    def __init__(
        self,
        config: ExportConfig,
        repo: Path,
        log: Path,
        ask_fork: Callable[[messages.ForkWorker], bool],
        done: Callable[[messages.Exported], None],
    ):
        pauses = {"first_pause_s": config.retry_s, "longest_pause_s": LONGEST_PAUSE * config.retry_s}
        lifecycle = Lifecycle(boot_s=BOOT_S, answer_s=EXPORT_S, **pauses)
        super().__init__("exporter", SLOT, repo, log, messages.EXPORTER_FACTS, lifecycle, ask_fork)
        self._failure = ""
        self._done = done
        self._spools: dict[str, None] = {}  # in order

    @property
    def waiting(self) -> int:
        """How many spools are left."""
        return len(self._spools)

    @property
    def problem(self) -> str:
        """Why the last export failed, or blank."""
        return self._failure

    @property
    def pausing(self) -> bool:
        """Whether what is left is tried again only after a pause."""
        due = self.lifecycle.deadline
        is_idle = self.lifecycle.state in (State.PAUSING, State.RESTING)
        return is_idle and due is not None and due > self._loop.time()

    @property
    def text(self) -> str:
        """The exporter in a word or two."""
        if self.problem:
            return f"failing: {self.problem}"
        if self.lifecycle.state in (State.PAUSING, State.STARTING):
            return "starting"
        return f"exporting {len(self._under_way)}" if self._under_way else "idle"

    def add(self, spool: str) -> None:
        """Export this spool, a directory with a manifest, as soon as possible."""
        self._spools[spool] = None
        self._serve()

    def hurry(self) -> None:
        """Start the next process now if it pauses before that: the daemon stops."""
        if self._spools and self.lifecycle.state is State.PAUSING:
            self.start()

    def withdraw(self, spool: str) -> bool:
        """Return whether a spool will not be exported: it is forgotten, unless its export is under way."""
        if spool in self._under_way:
            return False
        self._spools.pop(spool, None)
        return True

    def replace(self, config: ExportConfig) -> None:
        """Have another process, of a new configuration, after the export that runs."""
        self.lifecycle.set_pauses(config.retry_s, LONGEST_PAUSE * config.retry_s)
        if self._child is None:
            self.start()  # one that was asked for is of the old kind: it will come too late
        else:
            self.lifecycle.replace(self._loop.time())
            self._serve()
            self._set_timer()

    @property
    def _under_way(self) -> tuple[str, ...]:
        return tuple(spool for spools in self.lifecycle.owed for spool in spools)

    def _serve(self) -> None:
        if self.lifecycle.owed:
            return
        if self.lifecycle.state is State.REPLACING and self._child is not None:
            self._child.send(encode(messages.Quit()))
        elif self._spools:
            spools = tuple(self._spools)[:BATCH]
            self._order(spools, messages.ExportSpool(spools=spools))

    def _received(self, message: messages.ExporterFact, descriptors: list[int]) -> None:
        self._answered(self._under_way)
        match message:
            case messages.Ready():
                self._ready()
                return
            case messages.Exported():
                for spool in (*message.spools, *message.refused):
                    self._spools.pop(spool, None)
                self._failure = ""
                self.lifecycle.succeeded()
                self._done(message)
            case messages.SpoolRefused(reason=reason):
                _LOG.error("export failed, the spool stays: %s", reason)
                self._failure = reason
                self.lifecycle.failed(self._loop.time())
        self._serve()
        self._set_timer()

    def _lost(self, manner: str, owed: list[Any]) -> None:
        self._failure = f"the process {manner}"
