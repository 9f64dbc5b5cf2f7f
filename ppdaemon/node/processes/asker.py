# SPDX-License-Identifier: BSD-3-Clause
"""The asker: one process that asks the central repo for all workers.

It has no orders: the workers wake it. Without it each worker asks by itself, so that its end is no problem of
the node, and it is killed whenever something is wrong with it: another one starts.
"""

import contextlib
import logging
import os
import select
from collections import deque
from collections.abc import Callable
from typing import Any

from ppdaemon import messages
from ppdaemon.config import WorkersConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.metrics import Histogram
from ppdaemon.node.processes.lifecycle import Lifecycle, ProcessState
from ppdaemon.node.processes.supervised import ForkedProcess
from ppdaemon.reports import AskerReport
from ppdaemon.terminal import size

__all__ = ("AskerProcess",)

_LOG = logging.getLogger(__name__)

SLOT = -3
"""Instead of the number of a slot, in orders to the zygote."""
BOOT_S = 60.0
"""From the order to fork until it is ready; one that is spawned imports everything itself."""
SILENT_S = 60.0
"""Between two reports: many times what a slow database needs for the questions of a host. The workers have
not waited as long."""
LATE_S = 2 * messages.ASKER_REPORT_S
"""Without a report, until that is a problem."""
MOST_LEFT = 2
"""Killed processes that have not ended: each has its memory and connections, so that no other one starts."""
JITTER = 0.1
"""It is replaced up to a tenth earlier or later than configured, so that not all hosts do it together."""
PAUSES_S = 1.0, 60.0
"""Before it is started again, shortest and longest."""
WAIT_BOUNDS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
"""An answer takes some 20 ms; after `~ppdaemon.middleware.preload.questions.ASKER_LATE_S` workers begin to
ask by themselves."""
RECENT = 1000
"""Answers whose times are in the status."""
_REPORTS = "reports"


class AskerProcess(ForkedProcess[messages.AskerFact]):
    """Supervises the asker. `jitter` returns random numbers in [0, 1)."""

    def __init__(
        self,
        folders: NodeFolders,
        request_fork: Callable[[messages.ForkWorker], bool],
        jitter: Callable[[], float],
    ):
        first_s, longest_s = PAUSES_S
        lifecycle = Lifecycle(
            boot_s=BOOT_S,
            answer_s=SILENT_S,
            first_pause_s=first_s,
            longest_pause_s=longest_s,
            steady_s=longest_s,
        )
        repo, log = folders.slots / "asker", folders.logs / "asker.log"
        super().__init__("asker", SLOT, repo, log, messages.ASKER_FACTS, lifecycle, request_fork)
        self.waits = Histogram(WAIT_BOUNDS_S)
        """How long questions had waited for their answers, seconds."""
        self._recent = deque[float](maxlen=RECENT)
        self._batches = 0
        self._replaced = 0
        self._memory_bytes = 0
        self._left: list[int] = []
        """Pidfds of earlier processes that may not have ended."""
        self._started = 0.0
        """When the process was requested, monotonic seconds."""
        self._jitter = jitter
        self._stretch = 1.0
        """By this factor the process may be older than configured."""
        self._is_old = False
        self._reported = 0.0
        """When the process has reported last, monotonic seconds."""

    def report(self) -> AskerReport:
        """Return its state and figures."""
        recent = sorted(self._recent)
        p50, p99 = (1e3 * recent[int(q * len(recent))] if recent else None for q in (0.5, 0.99))
        return AskerReport(
            serving=self.lifecycle.state is ProcessState.SERVING and self._late_s is None,
            questions=self.waits.count,
            batches=self._batches,
            wait_p50_ms=p50,
            wait_p99_ms=p99,
            memory_mb=self._memory_bytes / 1e6 if self._child is not None else None,
            replaced=self._replaced,
            late_s=self._late_s,
        )

    @property
    def problem(self) -> str:
        """Why there is no process, why it is unreliable, or for how long it is late; or blank."""
        if self._late_s is None:
            return super().problem
        return (
            f"the asker has not reported for {self._late_s:.0f} s; workers ask the central repo by"
            f" themselves, and it is killed and replaced after {SILENT_S:g} s"
        )

    @property
    def _late_s(self) -> float | None:
        if self.lifecycle.state is not ProcessState.SERVING:
            return None
        silent_s = self._loop.time() - self._reported
        return silent_s if silent_s > LATE_S else None

    def measured(self, used_bytes: int, config: WorkersConfig) -> None:
        """Note its memory; replace it if it has more than it may, or if it is old, as soon as it has no
        questions: it goes on with the central repo's configuration that it has read.
        """
        self._memory_bytes = used_bytes
        if used_bytes > (most := config.memory.soft):  # it holds nothing that would be lost
            self._kill(f"uses {size(used_bytes)}, more than the {size(most)} of workers.memory.soft")
        else:
            self._is_old = self._loop.time() - self._started > config.recycle_age_s * self._stretch

    def replace(self, *, wanted: bool) -> None:
        """End the process, and start one with a new configuration, if that wants one."""
        super().close()  # one that is being forked has the old configuration: its epoch is refused
        if wanted:
            self.lifecycle.reopen()
            self.start()

    def close(self) -> None:
        """Kill the process, and start no other."""
        super().close()
        while self._left:
            os.close(self._left.pop())

    def _launch(self) -> None:
        self._forget_ended()
        if len(self._left) >= MOST_LEFT:
            raise OSError(
                f"{len(self._left)} that were killed have not ended, such as on a file system that hangs"
            )
        self._started, self._is_old = self._loop.time(), False
        self._stretch = 1.0 + JITTER * (2.0 * self._jitter() - 1.0)
        super()._launch()

    def _serve(self) -> None:
        """Send nothing: it has no orders."""

    def _received(self, message: messages.AskerFact, descriptors: list[int]) -> None:
        now = self._reported = self._loop.time()
        self.lifecycle.ordered(_REPORTS, now)  # the next one
        match message:
            case messages.Ready():
                self._ready()
            case messages.Asked(idle=True) if self._is_old:
                _LOG.info("the asker is replaced because of its age")
                self.replace(wanted=True)
            case messages.Asked(waited_s=waited_s):
                self._batches += bool(waited_s)
                self._recent.extend(waited_s)
                for each in waited_s:
                    self.waits.add(each)
                self._set_timer()

    def _kill(self, reason: str) -> None:
        super()._kill(reason)
        if self._child is not None:
            # Now: one that hangs on a file system does not end, and the next one starts all the same.
            self._end(reason)
            self._set_timer()

    def _release(self) -> None:
        if self._child is not None:
            with contextlib.suppress(OSError):  # no descriptor is free: then none can be forked, either
                self._left.append(os.dup(self._child.pidfd))
        super()._release()

    def _forget_ended(self) -> None:
        poll = select.poll()
        for pidfd in self._left:
            poll.register(pidfd, select.POLLIN)
        for pidfd, _ in poll.poll(0):
            self._left.remove(pidfd)
            os.close(pidfd)

    def _give_up(self, cause: str, unanswered: list[Any]) -> None:
        self._replaced += 1
