# SPDX-License-Identifier: BSD-3-Clause
"""Handles the requests of the relay's control socket, and makes its reports.

A report looks at nodes and detectors, not at all visits: those are read from the
ledger, by another thread.
"""

import asyncio
import contextlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pydantic

from ppdaemon import __version__, reports
from ppdaemon.clock import Clock, tai_iso
from ppdaemon.controlserver import Reply, Rows, not_found
from ppdaemon.detectorlist import ranges
from ppdaemon.errors import ConfigError
from ppdaemon.ledgerfile import LEDGER_NAME, read_visit, read_visits
from ppdaemon.metricsserver import MetricsServer
from ppdaemon.problemlog import Finding, ProblemLog
from ppdaemon.relay.config import RelayConfig
from ppdaemon.relay.dispatcher import Dispatcher
from ppdaemon.relay.ledger import Ledger
from ppdaemon.relay.noderegistry import RegisteredNode
from ppdaemon.relay.orders import Permit, RefusePermit
from ppdaemon.relay.routing import NodeOffer, spares_suffice
from ppdaemon.reloading import Reloader
from ppdaemon.sqlitefile import BatchWriter, Commit
from ppdaemon.terminal import number_of
from ppdaemon.throttle import Throttle
from ppdaemon.tracesender import TraceSender
from ppdaemon.yamlfile import did_you_mean

__all__ = ("RelayControl",)

MAX_VISITS = 1000
"""Visits in one answer: some 200,000 rows of the ledger."""
DISK_S = 1.0
"""Between two looks at the disk."""
LONG_WAIT_S = 5.0
"""A detector that waits longer for a node is a problem; while nodes connect again it is none."""


@dataclass(eq=False, kw_only=True)
class RelayControl:
    """Handles one request at a time for each client."""

    config: RelayConfig
    dispatcher: Dispatcher
    writer: BatchWriter[Ledger]
    throttle: Throttle
    clock: Clock
    reloader: Reloader
    metrics: MetricsServer
    traces: TraceSender

    stopping: bool = field(default=False, init=False)
    kafka_problem: Callable[[], str] = field(default=str, init=False)
    """Why no events come from Kafka."""
    other_protocol: str = field(default="", init=False)
    """Which node was refused last because of the version of its messages."""

    def __post_init__(self) -> None:
        self._started_tai = self.clock.tai()
        self._ledger = self.config.state_dir / LEDGER_NAME
        self._problem_log = ProblemLog()
        self._slots_of_node = 0.0
        """The average when any was ready last: all hosts of Slurm may be given back at the same time."""
        self._permits: dict[Literal["granted", "refused"], int] = {"granted": 0, "refused": 0}
        self._measure()

    async def watch_disk(self) -> None:
        """Measure the ledger each second until canceled: a report is made by the event loop, which a
        disk that does not answer must not stop.
        """
        while True:
            await asyncio.sleep(DISK_S)
            await asyncio.to_thread(self._measure)

    def _measure(self) -> None:
        size_mb: float | None = None
        with contextlib.suppress(OSError):
            size_mb = self._ledger.stat().st_size / 1e6
        self._ledger_mb = size_mb
        self._corrupt = sorted(
            self._ledger.parent.glob(f"{self._ledger.stem}.corrupt-*{self._ledger.suffix}")
        )

    async def handle(self, request: pydantic.BaseModel) -> Reply:
        """Handle one request and return the reply.

        Raises `~ppdaemon.errors.PPDaemonError` if it cannot be done now.
        """
        match request:
            case reports.StatusRequest():
                return reports.Ok(data=self.report().model_dump(mode="json"))
            case reports.NodesRequest():
                return Rows(self.nodes())
            case reports.VisitsRequest(limit=limit):
                return Rows(await asyncio.to_thread(read_visits, self._ledger, min(limit, MAX_VISITS)))
            case reports.VisitRequest(group=group):
                rows = await asyncio.to_thread(read_visit, self._ledger, group)
                return Rows(rows) if rows else not_found(f"no visit of group {group!r} in the ledger")
            case reports.DrainNodeRequest(node=node):
                return await self._set_drained(node, True)
            case reports.ResumeNodeRequest(node=node):
                return await self._set_drained(node, False)
            case reports.ReloadRequest():
                try:
                    await self.reloader.now()
                except ConfigError as error:
                    return reports.RequestFailed(code="config", text=str(error))
                return reports.Ok(data="the configuration is in use")
            case unexpected:
                raise AssertionError(unexpected)

    async def _set_drained(self, node: str, drained: bool) -> reports.Ok | reports.RequestFailed:
        known = [row.node for row in self.nodes()]
        if node not in known:
            hint = did_you_mean(node, known)
            return not_found(f"the relay has had no node {node!r} since its start{hint}")
        written: asyncio.Future[set[str]] = asyncio.get_running_loop().create_future()
        # On disk first: a drained node must not get visits again because the relay restarted.
        self.writer.put(
            Commit(
                lambda ledger: ledger.set_drained(node, drained), written.set_result, written.set_exception
            )
        )
        self.dispatcher.set_drained(await asyncio.shield(written), self.clock.mono())
        if drained:
            return reports.Ok()
        return reports.Ok(data=reports.Resumed(closed=self._closed(node)).model_dump(mode="json"))

    def _closed(self, name: str) -> tuple[str, ...]:
        """Return why a node that is not drained here gets no visits."""
        row = next(row for row in self.nodes() if row.node == name)
        if not row.connected:
            return (f"{name} is not connected: start it, or see ppctl status on its host",)
        if row.state == "closed":
            own = ": ".join(filter(None, (row.own_state, row.problem)))
            return (f"{name} takes none ({own or 'no reason known'}): see ppctl status on its host",)
        return ()

    def count_permits(self, order: Permit | RefusePermit) -> None:
        """Count an answer to a node that asked for permits."""
        answer: Literal["granted", "refused"] = "granted" if isinstance(order, Permit) else "refused"
        self._permits[answer] += sum(len(visit.detectors) for visit in order.visits)

    # --- reports ------------------------------------------------------------

    def report(self) -> reports.RelayStatusReport:
        """Return the state of the relay."""
        dispatcher, routes = self.dispatcher, self.dispatcher.registry.routes
        nodes = self.nodes()
        unserved = {
            name: missing
            for name, detectors in self.config.active_detectors.items()
            if (missing := routes.unserved(name, detectors))
        }
        waits = tuple(self._waits())
        tai = self.clock.tai()
        problems = self._problem_log.update(self._problems(nodes, unserved, waits), tai)
        off = self.config.switched_off
        is_limited = any(problem.degrades for problem in problems)
        state: Literal["running", "degraded", "stopping"] = "degraded" if is_limited else "running"
        if self.stopping:
            state = "stopping"
        connected = sum(row.connected for row in nodes)
        return reports.RelayStatusReport(
            relay=self.config.name,
            version=__version__,
            pid=os.getpid(),
            state=state,
            text=f"{number_of(connected, 'node')}, {number_of(len(dispatcher), 'open visit')} with"
            f" {number_of(dispatcher.reservations, 'open detector')},"
            f" {sum(row.visits for row in waits)} of them wait for a node",
            started_tai=self._started_tai,
            tai=tai,
            nodes=Counter(row.state for row in nodes),
            open_visits=len(dispatcher),
            open_detectors=dispatcher.reservations,
            waits=waits,
            unserved=unserved,
            switched_off={
                "instruments": off.instruments,
                "surveys": off.surveys,
                "detectors": tuple(f"{name} {ranges(ids)}" for name, ids in off.detectors.items() if ids),
            },
            spares_suffice=self._spares_suffice(),
            ledger=str(self._ledger),
            ledger_mb=self._ledger_mb,
            ledger_backlog=self.writer.backlog,
            counters={**self.throttle.by_kind, **self.traces.counters},
            reloaded_tai=self.reloader.reloaded_tai,
            reload_refused=bool(self.reloader.refused),
            permits=dict(self._permits),
            messages_lost=sum(row.messages_lost for row in nodes),
            hosts=self._hosts(nodes),
            problems=problems,
        )

    def nodes(self) -> list[reports.RelayNodeRow]:
        """Return the known nodes, by name."""
        registry = self.dispatcher.registry
        connected = {node.offer.node: node for node in registry.nodes}
        names = {*connected, *registry.departed, *registry.drained, *self.dispatcher.assignments.nodes}
        return [
            self._node_row(name, connected.get(name), registry.departed.get(name)) for name in sorted(names)
        ]

    def _node_row(
        self, name: str, connected: RegisteredNode | None, departed: RegisteredNode | None
    ) -> reports.RelayNodeRow:
        node = connected or departed
        assignments, drained = self.dispatcher.assignments, name in self.dispatcher.registry.drained
        state: Literal["ready", "full", "draining", "closed", "disconnected"] = "ready"
        if connected is None:
            state = "disconnected"
        elif drained:
            state = "draining"
        elif not connected.offer.capacity:
            state = "closed"
        elif assignments.is_full(connected.offer):
            state = "full"
        offer = NodeOffer(name, {}, 0) if node is None else node.offer
        return reports.RelayNodeRow(
            node=name,
            state=state,
            connected=connected is not None,
            drained=drained,
            spare=offer.spare,
            capacity=offer.capacity,
            open=assignments.load(name),
            detectors={instrument: ranges(ids) for instrument, ids in offer.detectors.items()},
            last_message_s=None if node is None else self.clock.mono() - node.last_message_at,
            messages_lost=0 if node is None else node.sequence.lost,
            version="" if node is None else node.version,
            own_state="" if connected is None else connected.state,
            problem="" if connected is None else connected.problem,
        )

    def _waits(self) -> Iterator[reports.RelayWaitRow]:
        routes = self.dispatcher.registry.routes
        for instrument, detector, number, oldest in sorted(
            self.dispatcher.assignments.waiting(), key=lambda wait: wait[:2]
        ):
            served = routes.ranking(instrument, detector)
            yield reports.RelayWaitRow(
                instrument=instrument,
                detector=detector,
                visits=number,
                oldest_group=oldest.visit.group,
                since_tai=oldest.received_tai,
                reason="the nodes that serve it are full or refused it" if served else "no node serves it",
            )

    def _hosts(self, nodes: Sequence[reports.RelayNodeRow]) -> reports.RelayHostsReport:
        """Return how many nodes the latest visits need, of the average size of those that are ready."""
        offered = [row.capacity for row in nodes if row.connected and not row.drained and row.capacity]
        if offered:
            self._slots_of_node = sum(offered) / len(offered)
        rows = tuple(
            reports.RelayDemandRow(
                instrument=name,
                cadence_s=each.cadence_s,
                detectors=each.detectors,
                visit_s=each.visit_s,
                slots=each.slots,
            )
            for name, each in sorted(self.dispatcher.demand.of_instruments(self.clock.mono()).items())
        )
        needed = None
        if rows and self._slots_of_node:
            needed = math.ceil(sum(row.slots for row in rows) / self._slots_of_node)
        return reports.RelayHostsReport(
            ready=len(offered), slots=sum(offered), needed=needed, instruments=rows
        )

    def _spares_suffice(self) -> dict[str, bool]:
        """Return by instrument whether the idle spares can have one whole visit."""
        registry, assignments = self.dispatcher.registry, self.dispatcher.assignments
        spares = [
            node.offer
            for node in registry.nodes
            if node.offer.spare and registry.offer_of(node.offer.node) is not None
        ]
        free = {offer.node: max(0, offer.capacity - assignments.load(offer.node)) for offer in spares}
        return {
            name: spares_suffice(spares, free, name, detectors)
            for name, detectors in self.config.active_detectors.items()
            if any(name in offer.detectors for offer in spares)
        }

    def _problems(
        self,
        nodes: Sequence[reports.RelayNodeRow],
        unserved: dict[str, tuple[int, ...]],
        waits: Sequence[reports.RelayWaitRow],
    ) -> Iterator[Finding]:
        if self.writer.problem:
            yield Finding("ledger", self.writer.problem)
        if self.reloader.refused:
            yield Finding("configuration", self.reloader.refused, degrades=False)
        if self.metrics.problem:
            yield Finding("metrics", self.metrics.problem, degrades=False)
        if self.traces.problem:
            yield Finding("traces", self.traces.problem, degrades=False)
        if text := self.kafka_problem():
            yield Finding("kafka", text)
        if self.other_protocol:
            yield Finding("nodes", f"refused a node: {self.other_protocol}", "protocol")
        for path in self._corrupt:
            text = (
                f"the ledger was corrupt and is now {path}: visits in it that are announced again are"
                " processed again; move the file away when you have read this"
            )
            yield Finding("ledger", text, path.name)
        if self.dispatcher.adopted:
            text = (
                f"the ledger is older than the journals of the nodes: {self.dispatcher.adopted}"
                " visit-detectors were adopted from them; do not announce visits again that are not in it"
                " before all nodes are connected"
            )
            yield Finding("ledger", text, "adopted")
        for row in nodes:
            if not row.connected and row.open:
                text = f"node {row.node} is not connected and has {row.open} open visit-detectors"
                yield Finding("nodes", text, row.node)
        for instrument, detectors in unserved.items():
            yield Finding("detectors", f"no node serves {instrument} {ranges(detectors)} now", instrument)
        oldest = min(waits, key=lambda wait: wait.since_tai, default=None)
        if oldest is not None and self.clock.tai() - oldest.since_tai > LONG_WAIT_S:
            yield Finding(
                "nodes",
                f"visit {oldest.oldest_group} waits for a node since {tai_iso(oldest.since_tai)} TAI:"
                f" detector {oldest.detector}, {oldest.reason}",
                "waits",
                self.clock.tai() - oldest.since_tai,
            )
