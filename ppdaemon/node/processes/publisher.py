# SPDX-License-Identifier: BSD-3-Clause
"""The publisher: one process that sends metrics and telemetry to Kafka and REST proxies.

Nothing waits for it: what it cannot take is dropped, and counted.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppdaemon.config import LogConfig
from ppdaemon.node.processes.child import ChildProcess, Lifeline, launch
from ppdaemon.node.processes.lifecycle import Lifecycle, ProcessState
from ppdaemon.node.processes.supervised import SupervisedProcess
from ppdaemon.publish.config import Publication
from ppdaemon.publish.messages import (
    PUBLISHER_FACTS,
    Publish,
    PublisherFact,
    PublisherReady,
    PublisherSettings,
    PublishReport,
    Telemetry,
)
from ppdaemon.reports import DestinationReport
from ppdaemon.wire import encode

__all__ = ("PublisherProcess",)

BOOT_S = 60.0
ANSWER_S = 60.0
"""From an outcome until its records are in a report: queueing them takes milliseconds."""
_ORDERS = "orders"
MAX_PENDING = 1000
"""Outcomes that wait for a publisher that starts; then the oldest are dropped."""


class PublisherProcess(SupervisedProcess[PublisherFact]):
    """Supervises one publisher, and sends it the outcomes of visit-detectors."""

    def __init__(
        self,
        publish: Sequence[Publication],
        folder: Path,
        lifeline: Lifeline,
        environment: Mapping[str, str],
        log: Path,
        log_config: LogConfig,
    ):
        lifecycle = Lifecycle(boot_s=BOOT_S, answer_s=ANSWER_S, first_pause_s=1.0, longest_pause_s=30.0)
        super().__init__("publisher", log, PUBLISHER_FACTS, lifecycle)
        self._folder = folder
        self._lifeline = lifeline
        self._environment = environment
        self._settings = self._settings_of(publish, log_config)
        self._settings_sent: PublisherSettings | None = None
        self._pending: deque[Publish] = deque()
        self._orders = 0
        """Outcomes that were sent to the present publisher."""
        self._reported = 0
        """Those that are in its last report."""
        self._dropped = 0
        """Outcomes that this process could not hand on."""
        self._before: Counter[tuple[str, str]] = Counter()
        """What publishers that have ended had sent and dropped, by destination."""
        self._now: dict[str, DestinationReport] = {}

    @property
    def enabled(self) -> bool:
        """Whether anything is published."""
        return bool(self._settings.publish)

    def _settings_of(self, publish: Sequence[Publication], log_config: LogConfig) -> PublisherSettings:
        return PublisherSettings(
            publish=tuple(publish),
            folder=str(self._folder),
            log_level=log_config.level,
            log_format=log_config.format,
        )

    def reconfigure(self, publish: Sequence[Publication], log_config: LogConfig) -> None:
        """Publish there from now on. The process stays, and with it what waits for the same places."""
        self._settings = self._settings_of(publish, log_config)
        if self.enabled and self.lifecycle.state is ProcessState.CLOSED:
            self.lifecycle.reopen()
        self._serve()
        self.start()

    def start(self) -> None:
        """Start the process, if anything is published; if not, none follows the last one."""
        if self.enabled:
            self._folder.mkdir(exist_ok=True)
            super().start()
        elif self._child is None:
            self.lifecycle.close()

    def add(self, telemetry: Telemetry, file: str) -> None:
        """Publish an outcome, and the metrics in the worker's file of this name."""
        if not self.enabled:
            return
        self._pending.append(Publish(telemetry=telemetry, file=file))
        if len(self._pending) > MAX_PENDING:
            self._pending.popleft()
            self._dropped += 1
        self._serve()

    @property
    def waiting(self) -> int:
        """How many records and outcomes are not published, as far as is known."""
        unreported = self._orders - self._reported
        return len(self._pending) + unreported + sum(each.waiting for each in self._now.values())

    def report(self) -> tuple[DestinationReport, ...]:
        """Return the counts of each destination since the start of the daemon."""
        rows = []
        for config in self._settings.publish:
            now = self._now.get(config.name, DestinationReport(name=config.name))
            rows.append(
                now.model_copy(
                    update={
                        "sent": now.sent + self._before[config.name, "sent"],
                        "dropped": now.dropped + self._before[config.name, "dropped"] + self._dropped,
                        "waiting": now.waiting + len(self._pending),
                        "problem": now.problem or self.problem,
                    }
                )
            )
        return tuple(rows)

    def _launch(self) -> ChildProcess:
        child = launch(
            "ppdaemon.worker.publisher",
            ["--log", str(self._log)],
            self._lifeline,
            self._environment,
            self._log,
        )
        child.send(encode(self._settings))  # a new channel has room for it
        self._settings_sent = self._settings
        return child

    def _serve(self) -> None:
        if self._child is None or self.lifecycle.state is not ProcessState.SERVING:
            return
        if self._settings != self._settings_sent:
            if not self._child.send(encode(self._settings)):
                return  # as below
            self._settings_sent = self._settings
        while self._pending:
            if not self._child.send(encode(self._pending[0])):
                return  # it does not read: sent with a later one, or dropped
            self._pending.popleft()
            self._orders += 1
            if not self.lifecycle.unanswered:
                self.lifecycle.ordered(_ORDERS, self._loop.time())
                self._set_timer()

    def _received(self, message: PublisherFact, descriptors: list[int]) -> None:
        match message:
            case PublisherReady():
                self._ready()
            case PublishReport() if self.lifecycle.state in (ProcessState.KILLED, ProcessState.CLOSED):
                pass  # the last one of a process whose outcomes `_give_up` has counted
            case PublishReport(orders=orders, places=places):
                self.lifecycle.succeeded()
                self._answered(_ORDERS)
                if orders < self._orders:
                    self.lifecycle.ordered(_ORDERS, self._loop.time())
                    self._set_timer()
                self._reported = orders
                self._now = {each.name: each for each in places}

    def _give_up(self, cause: str, unanswered: list[Any]) -> None:
        for name, each in self._now.items():
            self._before[name, "sent"] += each.sent
            # What waited in the process is lost with it.
            self._before[name, "dropped"] += each.dropped + each.waiting
        # At most: it may have sent some of them since its last report.
        self._dropped += max(0, self._orders - self._reported)
        self._now, self._orders, self._reported = {}, 0, 0
