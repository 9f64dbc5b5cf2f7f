# SPDX-License-Identifier: BSD-3-Clause
"""Creates and connects the parts of a node; nothing is decided here."""

import asyncio
import contextlib
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

import zmq.asyncio

from ppdaemon import log
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.configfile import ConfigFile
from ppdaemon.controlserver import ControlServer
from ppdaemon.curve import ClientKeys
from ppdaemon.errors import Refused
from ppdaemon.folders import NodeFolders
from ppdaemon.keyfiles import UnusableKey
from ppdaemon.messages import Forked, ForkFact, ForkFailed, Reaped
from ppdaemon.metricsserver import MetricsServer
from ppdaemon.node.arrivals.arrivals import Arrivals
from ppdaemon.node.arrivals.bridges import BridgeUse
from ppdaemon.node.control.handler import RequestHandler
from ppdaemon.node.control.metrics import NODE_METRICS, NodeSource
from ppdaemon.node.control.reloader import Reloader
from ppdaemon.node.control.status import Status
from ppdaemon.node.control.ticker import Ticker
from ppdaemon.node.lock import OWNER_VARIABLE, NodeLock
from ppdaemon.node.processes.asker import AskerProcess
from ppdaemon.node.processes.child import Lifeline, end_children
from ppdaemon.node.processes.exporter import ExporterProcess
from ppdaemon.node.processes.names import NameCheck
from ppdaemon.node.processes.publisher import PublisherProcess
from ppdaemon.node.processes.reader import ReaderProcess
from ppdaemon.node.processes.reload import Generations
from ppdaemon.node.slots.events import RawArrived
from ppdaemon.node.slots.meters import Limited, Meters
from ppdaemon.node.slots.pipelinehealth import PipelineHealth
from ppdaemon.node.slots.pool import Pool
from ppdaemon.node.slots.schedulerloop import SchedulerLoop
from ppdaemon.node.visits.chooser import PipelineChooser
from ppdaemon.node.visits.core import Visits
from ppdaemon.node.visits.fallbacks import Fallbacks
from ppdaemon.node.visits.journal import Journal
from ppdaemon.node.visits.model import JournalEntry
from ppdaemon.node.visits.offer import CapacityOffer
from ppdaemon.node.visits.pruner import JournalPruner
from ppdaemon.node.visits.pump import Inbox, VisitPump
from ppdaemon.node.visits.redisclient import RedisClient
from ppdaemon.node.visits.relayclient import RelayClient
from ppdaemon.node.visits.reprocess import Reprocessor
from ppdaemon.node.visits.source import VisitSource
from ppdaemon.node.visits.spans import spans_of
from ppdaemon.node.visits.telemetry import telemetry_of
from ppdaemon.notify import Notifier
from ppdaemon.reports import REQUESTS
from ppdaemon.sqlitefile import BatchWriter
from ppdaemon.traces import TraceKey
from ppdaemon.tracesender import TraceSender

__all__ = ("NodeParts",)

_LOG = logging.getLogger(__name__)

COMMIT_BATCH_S = 0.02
"""Writes within this time share a transaction: 205 outcomes within a second take
some 50 instead of 205."""
CHILDREN_S = 2.0
"""How long a stop waits for killed processes to exit."""

type Service = Callable[[], Coroutine[Any, Any, None]]
"""Runs until it is canceled."""


class NodeParts:
    """The connected parts of a node. The constructor starts nothing."""

    def __init__(
        self,
        file: ConfigFile,
        read_config: Callable[[], ConfigFile],
        environment: Mapping[str, str],
        incarnation: str,
        clock: Clock,
        notifier: Notifier,
        watchdog_s: float | None,
        lock: NodeLock,
        journal: Journal,
        stopping: asyncio.Event,
        reload_requested: asyncio.Event,
        ends_at: float = math.inf,
    ):
        config = file.config
        folders, count = NodeFolders.of(config), Counter[str]()
        environment = {"TMPDIR": str(folders.temporary), **environment, OWNER_VARIABLE: str(folders.state)}
        self.clock = clock
        self._context = zmq.asyncio.Context()
        self._lifeline = Lifeline()
        self.inbox = inbox = Inbox()
        self._count = count
        self.journal = BatchWriter(journal, "journal", self._journal_failed, batch_s=COMMIT_BATCH_S)
        self.names = NameCheck(
            self._lifeline, environment, folders.logs / "names.log", clock.mono, self._stop_accepting
        )
        self.generations = Generations(
            file,
            read_config,
            self.names,
            self._lifeline,
            environment,
            clock,
            self._forked,
            self._switch,
            count,
        )
        request_fork = self.generations.ask
        self.visits = Visits(config, count, ends_at)
        self.pool = Pool(config, clock, request_fork, inbox.post, count)
        self.scheduler = SchedulerLoop(config.workers, clock, self.pool, inbox.post)
        self.exporter = ExporterProcess(config.export, folders, request_fork, inbox.post)
        self.asker = AskerProcess(folders, request_fork, random.random)
        self.publisher = PublisherProcess(
            config.publish,
            folders.publish,
            self._lifeline,
            environment,
            folders.logs / "publisher.log",
            config.log,
        )
        self.chooser = PipelineChooser(config, inbox.post, count)
        self.source: VisitSource
        if config.redis.url is not None:
            self.source = RedisClient(
                config, incarnation, clock, self.chooser.receive, count, lambda: len(self.visits.open)
            )
        else:
            self.source = relay = RelayClient(
                config.relay,
                config.node.name,
                incarnation,
                config.node.instruments,
                config.workers.max,
                clock,
                self._context,
                self.chooser.receive,
                count,
                self.visits.open.held,
                self.visits.ended.listed,
                config.node.spare,
                config.shadow.enabled,
                ClientKeys.read(config.security.key, config.relay.server),
            )
            # Called by the ticker's time, when the status exists.
            relay.health = lambda: self.status.health()
        self.reader = None
        if config.arrivals.remote:
            reader_environment = {**environment, **config.workers.environment}
            self.reader = ReaderProcess(self._lifeline, reader_environment, folders.logs / "reader.log")
        self.arrivals = Arrivals(
            config.arrivals,
            config.node.instruments,
            clock,
            lambda raw: inbox.post(RawArrived(raw)),
            inbox.post,
            self.visits.open.expected,
            folders.canaries,
            self.reader,
            config.security.key,
            BridgeUse(config.node.name, folders.bridges, self.visits.open.oldest_tai),
            lambda after_s: self.visits.open.late(clock.tai(), after_s),
        )
        self.pool.urgent = self.arrivals.checking
        self.offer = CapacityOffer(
            config.workers, self.pool, self.generations, self.visits, self.journal, self.source, inbox.post
        )
        self.pump = VisitPump(
            inbox,
            self.visits,
            self.journal,
            self.source,
            self.pool,
            self.scheduler,
            self.exporter,
            self.arrivals,
            folders,
            clock,
            count,
            ended=self._attempt_ended,
        )
        self.traces = TraceSender(config.traces)
        self.reprocessor = Reprocessor(
            folders, self.journal, self.chooser, inbox, self.pump, self.exporter, self.arrivals
        )
        meters = Meters(config.workers, folders, urgent=self._ordering_raws)
        self.metrics = MetricsServer(config.metrics.listen, NODE_METRICS, self._metrics_source)
        self.status = Status(
            config,
            folders,
            clock,
            count,
            lock,
            self.pool,
            self.visits,
            self.pump,
            self.journal,
            self.scheduler,
            self.exporter,
            self.asker,
            self.source,
            self.arrivals,
            meters,
            self.generations,
            self.offer,
            self.metrics,
            self.publisher,
            self.traces,
        )
        reloader = Reloader(self.generations, self.status, notifier, clock, stopping, reload_requested)
        handler = RequestHandler(self.status, self.pool, self.reprocessor, self.source, reloader)
        self.handler = handler
        self.control = ControlServer(
            config.node.control,
            REQUESTS,
            handler.handle,
            self.status.report,
            config.security,
            count,
            self.pump.changes,
        )
        self.scheduler.watch(self.control.changed)
        ticker = Ticker(
            self.scheduler,
            self.pump,
            self.status,
            notifier,
            self.generations,
            self.pool,
            self.exporter,
            self.asker,
            self.reader,
            self.publisher,
            self.names,
            self.offer,
            folders,
            watchdog_s,
            self._ordering_raws,
        )
        self._meters = meters
        self._pruner = JournalPruner(
            self.journal, clock, config.node.keep_days, reporting=config.shares_visits
        )
        limited: list[Limited] = [self.asker, self.exporter, self.publisher]
        if self.reader is not None:
            limited.append(self.reader)
        self.services: tuple[Service, ...] = (
            self.chooser.run,
            self.source.run,
            partial(meters.run, self.pool, limited, count),
            ticker.run,
            ticker.run_slowly,
            self._pruner.run,
            reloader.run,
            self.names.run,
        )
        """Services that run from the start to the stop."""

    async def close(self) -> None:
        """End all processes and release all resources.

        The caller has ended the services before; it closes the journal
        afterwards, because outcomes may still be written here.
        """
        await self.control.stop()
        await self.arrivals.stop()
        self.exporter.close()
        self.asker.close()
        self.publisher.close()
        self.pool.close()
        await self.generations.close()
        self._lifeline.close()
        await end_children(self.clock.mono, CHILDREN_S)
        self._context.term()

    def _ordering_raws(self) -> bool:
        """Return whether raws are being checked, or workers are reading the orders that follow."""
        return self.arrivals.checking() or self.pool.holds

    def _attempt_ended(self, entry: JournalEntry) -> None:
        config = self.status.config
        if self.publisher.enabled and (telemetry := telemetry_of(entry, config.node.name)) is not None:
            self.publisher.add(telemetry, f"{self.status.folders.spooled(*entry.key).name}.json")
        has_relay = config.relay.address is not None
        make = partial(spans_of, entry, config.node.name, has_relay=has_relay)
        self.traces.put(TraceKey(*entry.key[:3]), make)

    def _metrics_source(self) -> NodeSource:
        return NodeSource(
            self.status.report(),
            self.pump.times,
            self.exporter.times,
            self.asker.waits,
            tuple(self.status.config.node.instruments),
            tuple(self.pool.slots[number].usage.used_bytes for number in self.pool.pids()),
        )

    def _journal_failed(self, reason: str) -> None:
        """Count each failure, and log the first one of a series."""
        if not self.journal.problem:
            _LOG.error("%s; new visits are refused until it can be written", reason)
        self._count["journal_error"] += 1

    def _forked(self, fact: ForkFact, descriptors: list[int]) -> None:
        """Pass the result of a fork to the part that requested it."""
        match fact:
            case Forked(role="worker"):
                self.pool.forked(fact, descriptors)
            case Forked(role="asker"):
                self.asker.forked(fact, descriptors)
            case Forked():
                self.exporter.forked(fact, descriptors)
            case ForkFailed(role="worker"):
                self.pool.not_forked(fact)
            case ForkFailed(role="asker", reason=reason):
                self.asker.not_forked(reason)
            case ForkFailed(reason=reason):
                self.exporter.not_forked(reason)
            case Reaped():
                for part in (self.pool, self.exporter, self.asker):
                    part.reaped(fact)

    def _stop_accepting(self) -> None:
        with contextlib.suppress(Refused):  # the daemon stops, and accepts nothing
            self.handler.set_accepting(False, self.status.drained_since)

    def _switch(self, config: NodeConfig) -> None:
        """Switch to a configuration whose zygote is ready."""
        log.set_up(config.log.level, config.log.format, config.log.levels, node=config.node.name)
        self.visits.config = self.status.config = config
        self.control.set_access(config.security)
        try:
            # Two small files, which the reload has read a moment ago in a thread.
            self.source.reconfigure(config)
        except UnusableKey as error:
            _LOG.error("the old keys stay in use: %s", error)
        # Pipelines and their environment may be others now.
        self.visits.health, self.visits.fallbacks = PipelineHealth(), Fallbacks()
        self.chooser.reconfigure(config)
        self.pool.reconfigure(config)
        self.scheduler.reconfigure(config.workers)
        self._meters.config = config.workers
        self.metrics.reconfigure(config.metrics.listen)
        self.traces.reconfigure(config.traces)
        self._pruner.keep_days = config.node.keep_days
        self.exporter.replace(config.export)
        self.asker.replace(wanted=config.butler is not None)
        self.publisher.reconfigure(config.publish, config.log)
        self.offer.reconfigure(config.workers)
        self.reprocessor.export_moved_back()
