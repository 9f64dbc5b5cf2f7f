# SPDX-License-Identifier: BSD-3-Clause
"""Connects the sources of raws with the check for completeness, and runs the final rescan.

The event loop never touches the filesystem of raws: if that filesystem hangs,
raws are late, but the supervisor is not blocked.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import zmq.asyncio

from ppdaemon import log
from ppdaemon.clock import TAI_MINUS_UTC_S, Clock
from ppdaemon.config import ArrivalsConfig, Publisher
from ppdaemon.curve import ClientKeys
from ppdaemon.errors import BadMessage, ConfigError
from ppdaemon.messages import Raw
from ppdaemon.node.arrivals.bridges import SAVE_S, BridgeLink, BridgeUse, Position, Positions
from ppdaemon.node.arrivals.completion import READERS, RawCompletion
from ppdaemon.node.arrivals.counts import ErrorCounts
from ppdaemon.node.arrivals.exposurefacts import ExposureFactsCache, ExposureReader, FileReader
from ppdaemon.node.arrivals.finalrescan import RESCAN_S, FinalRescan
from ppdaemon.node.arrivals.index import ExpectedSensors
from ppdaemon.node.arrivals.notices import Elsewhere, StoredObject, Subscription, listen, pass_on
from ppdaemon.node.arrivals.nottaken import FileNotTaken
from ppdaemon.node.arrivals.roots import RawRoot, RawRoots, Sighting
from ppdaemon.node.arrivals.rootsource import RootSource, SourceContext
from ppdaemon.node.arrivals.storelisting import StoreListing
from ppdaemon.node.arrivals.stores import StoreArrivals, StoreReader
from ppdaemon.node.arrivals.threads import FileThreads
from ppdaemon.node.arrivals.unrecognized import UnrecognizedFiles
from ppdaemon.node.arrivals.walk import RawSearch
from ppdaemon.node.processes.reader import ReaderProcess
from ppdaemon.ratelimit import RateLimit
from ppdaemon.raws.path import ExpectedRaws, RawFileKind
from ppdaemon.reports import ArrivalSource, RefusedRaw
from ppdaemon.visit import NextVisit

__all__ = ("Arrivals",)

_LOG = logging.getLogger(__name__)

MAX_TASKS = 20_000
"""With more tasks, sidecars and lists of detectors are not read when they are sighted."""
STOP_S = 3.0
"""Time for closing the watches; a filesystem that hangs would block the stop."""
ENDED = "ended by an error, see the log"
"""Note of a source whose task has failed."""


class Arrivals:
    """Watches the raw roots and delivers each raw once, when it is complete.

    `deliver` is called in the event loop with each raw, `expect` with each list
    of the detectors of an exposure. `waiting` returns the raws that open visits
    need; they are polled for where inotify does not report them. `canaries` is a
    folder outside all raw roots for files that test inotify; without it inotify
    is not tested. `reader` reads object stores; it is started and closed here.
    `bridges` is needed for ``arrivals.bridges``. `late` returns the raws that visits need whose duration has
    passed so many seconds ago; object stores are then listed.
    Raises ConfigError if an instrument has no focal-plane table.
    """

    def __init__(
        self,
        config: ArrivalsConfig,
        instruments: Mapping[str, Collection[int]],
        clock: Clock,
        deliver: Callable[[Raw], None],
        expect: Callable[[ExpectedSensors], None] | None = None,
        waiting: Callable[[], Sequence[ExpectedRaws]] = tuple,
        canaries: Path | None = None,
        reader: ReaderProcess | None = None,
        key: Path | None = None,
        bridges: BridgeUse | None = None,
        late: Callable[[float], Sequence[ExpectedRaws]] = lambda after_s: (),
    ):
        self._config = config
        self._key = key
        self._bridges = bridges
        self._clock = clock
        self._expect = expect or (lambda expected: None)
        self._counts = ErrorCounts(clock.mono)
        self._tasks: set[asyncio.Task[None]] = set()
        self._raw_roots = RawRoots(config, instruments)
        # Separate threads for each root: a root that hangs must not block the others.
        self._threads = {root.path: FileThreads(READERS, clock.mono) for root in self._raw_roots.roots}
        self._exposures = self._new_exposures(FileReader(self._threads), self._raw_roots)
        self._completion = RawCompletion(
            self._threads,
            self._exposures,
            clock,
            self._counts,
            config.remember_s,
            deliver,
            self._spawn,
            self._relist_all,
            self._is_local,
            self._raw_roots.served,
        )
        context = SourceContext(
            self._raw_roots,
            config,
            clock,
            self._counts,
            self._on_sighting,
            self._completion.room,
            self._completion.expect_no_close,
            waiting,
            canaries,
        )
        self._sources = {
            root.path: RootSource(root, number, context, self._threads[root.path])
            for number, root in enumerate(self._raw_roots.roots)
        }
        self._reader = reader
        self._late = late
        self._listing: StoreListing | None = None
        self._listing_task: asyncio.Task[None] | None = None
        self._stores = None if reader is None else self._new_stores(reader, instruments)
        self._source_tasks: dict[str, asyncio.Task[None]] = {}
        self._listener_tasks: dict[str, asyncio.Task[None]] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._elsewhere: dict[str, Elsewhere] = {}
        self._links: dict[str, BridgeLink] = {}
        self._positions: Positions | None = None
        self._context: zmq.asyncio.Context | None = None

    async def start(self) -> None:
        """Start all sources; raises ConfigError if an address of ``arrivals.subscribe`` cannot be used."""
        try:
            self._subscribe(self._config.subscribe)
            await self._use_bridges(self._config.bridges)
        except ConfigError:
            await self.stop()
            raise
        self._completion.start()
        if self._reader is not None:
            self._reader.start()
        if self._listing is not None:
            self._listing_task = self._spawn(self._listing.run())
        self._source_tasks = {path: self._spawn(source.run()) for path, source in self._sources.items()}

    async def stop(self) -> None:
        """Stop all sources, and discard raws that are not complete."""
        self._completion.stop()
        await self._save_positions()
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._reader is not None:
            self._reader.close()
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None
        # A hanging filesystem must not keep the supervisor from stopping.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await asyncio.gather(*(source.stop() for source in self._sources.values()))
        for threads in self._threads.values():
            threads.close()

    def checking(self) -> bool:
        """Return whether files of raws are being checked, or are to be checked now."""
        return self._completion.checking

    def report(self) -> tuple[ArrivalSource, ...]:
        """Return the states of each root's watch, polling and survey, of the subscriptions, and of the
        reader of object stores.
        """
        report = self._completion.latencies.report
        sources = [
            report(state.name, live=False, note=ENDED)
            if path in self._source_tasks and self._source_tasks[path].done()
            else report(state.name, live=state.live, note=state.note)
            for path, source in self._sources.items()
            for state in source.states()
        ]
        for name, subscription in self._subscriptions.items():
            task = self._listener_tasks[name]
            missing = "" if subscription.connected else subscription.refusal or "no publisher is connected"
            note = "; ".join(filter(None, (missing, self._elsewhere[name].note)))
            sources.append(report(name, live=not task.done(), note=note))
        for name, link in self._links.items():
            live = link.live and not self._listener_tasks[name].done()
            elsewhere = "; ".join(filter(None, (link.note, self._elsewhere[name].note)))
            sources.append(report(name, live=live, note=elsewhere, last_notice_s=link.last_notice_s))
        if self._listing is not None:
            ended = self._listing_task is not None and self._listing_task.done()
            sources += [
                report(name, live=False, note=ENDED) if ended else report(name, live=live, note=note)
                for name, live, note in self._listing.states()
            ]
        if self._reader is not None:
            sources.append(report("reader", live=self._reader.live, note=self._reader.note))
        return tuple(sources)

    async def rescan(
        self, visit: NextVisit, detectors: Collection[int], announced_tai: float
    ) -> tuple[FileNotTaken, ...]:
        """List the folders that can contain raws of a visit, and deliver the complete raws found there.

        Raws that were delivered before are delivered again. Returns the files that were not delivered,
        those found within the time limits of `FinalRescan`. Where paths do not contain the group,
        folders of exposures that have not changed since `remember_s` before the announcement are skipped.
        """
        expected = ExpectedRaws(visit.instrument, frozenset(detectors), visit.group)
        since_unix = announced_tai - TAI_MINUS_UTC_S - self._config.remember_s
        rescans = [self._final_rescan(root, expected, since_unix) for root in self._raw_roots.roots]
        self._counts.count("final_rescans")
        if not all(await asyncio.gather(*(rescan.run() for rescan in rescans))):
            text = (
                f"the final rescan for {visit.group} was stopped after {RESCAN_S:g} s; raws that it has not "
                "found may be reported as missing: check that the filesystem of the raw roots is not slow"
            )
            with log.about(instrument=visit.instrument, group=visit.group):
                self._counts.warn("final_rescan_cut_short", text)
        return tuple(file for rescan in rescans for file in rescan.not_taken)

    @property
    def refused(self) -> tuple[RefusedRaw, ...]:
        """The most recent raws that were not delivered."""
        return tuple(self._completion.refused)

    @property
    def refused_by_kind(self) -> Mapping[str, int]:
        """How many raws were not delivered since the start, by category of the reason."""
        return self._completion.refused_by_kind

    @property
    def counters(self) -> Mapping[str, int]:
        """Events by kind since the start, such as ``notice.json``."""
        return self._counts.by_kind

    @property
    def samples(self) -> Mapping[str, str]:
        """For kinds of `counters`: the beginning of a message that was not understood."""
        return self._counts.samples

    # --- sightings ---

    def _subscribe(self, publishers: Collection[Publisher]) -> None:
        if not publishers:
            return
        self._context = self._context or zmq.asyncio.Context()
        for publisher in publishers:
            source = f"zmq {publisher.address}"
            keys = ClientKeys.read(self._key, publisher.server)
            subscription = self._subscriptions[source] = Subscription(
                self._context, publisher.address, self._clock.mono, keys
            )
            self._elsewhere[source] = Elsewhere()
            self._listener_tasks[source] = self._spawn(
                listen(
                    subscription,
                    partial(self._on_notice, source),
                    self._on_bad_notice,
                    partial(self._counts.count, "notice.test_event"),
                    RateLimit(self._config.notices_per_s, self._clock.mono),
                )
            )

    async def _use_bridges(self, bridges: Collection[Publisher]) -> None:
        if not bridges or self._bridges is None:
            return
        self._context = self._context or zmq.asyncio.Context()
        positions = self._positions = await asyncio.to_thread(Positions, self._bridges.positions)
        now_tai, remember_s = self._clock.tai(), self._config.remember_s
        for bridge in bridges:
            source = f"bridge {bridge.address}"
            position = positions.of.get(bridge.address, Position())
            link = self._links[source] = BridgeLink(
                self._context,
                bridge,
                ClientKeys.read(self._key, bridge.server),
                self._bridges.node,
                positions,
                position.age_s(now_tai, self._bridges.open_since_tai(), remember_s),
                remember_s,
                partial(
                    pass_on,
                    on_file=partial(self._on_notice, source),
                    on_problem=self._on_bad_notice,
                    on_test=partial(self._counts.count, "notice.test_event"),
                ),
                self._room,
                self._counts,
                self._clock,
            )
            self._elsewhere[source] = Elsewhere()
            self._listener_tasks[source] = self._spawn(link.run())
        self._spawn(self._keep_positions())

    async def _keep_positions(self) -> None:
        while True:
            await asyncio.sleep(SAVE_S)
            await self._save_positions()

    async def _save_positions(self) -> None:
        if self._positions is not None:
            try:
                await asyncio.to_thread(self._positions.save)
            except OSError as error:  # notices are taken again after the next start
                self._counts.warn("bridge.position", f"the last notice of a bridge is not saved: {error}")

    async def _room(self) -> None:
        """Wait until a notice of an object can be used."""
        if self._stores is not None:
            await self._stores.room()
        await self._completion.room()

    def _on_notice(self, source: str, file: str | StoredObject) -> None:
        """Pass on a finished file that a notice names."""
        try:
            if isinstance(file, StoredObject):
                self._on_object_notice(source, file)
            else:
                self._on_path_notice(source, file)
        except BadMessage as error:
            self._counts.warn(f"refused.{error.kind}", f"{source}: ignoring a file: {error}")

    def _on_object_notice(self, source: str, file: StoredObject) -> None:
        try:
            if self._stores is not None and self._stores.serves(file):
                self._stores.on_notice(source, file)
                return
            # A bucket may be mounted on this host as a raw root.
            if file.scheme == "s3" and self._on_path_notice(source, file.key):
                return
        except BadMessage as error:
            if error.kind != "outside":
                raise
        # Many sites share one topic among buckets: not worth a warning.
        self._counts.count("elsewhere")
        self._elsewhere[source].add(file)

    def _on_bad_notice(self, error: BadMessage, data: bytes | None) -> None:
        # An error of the connection has no message.
        text = str(error) if data is None else f"ignoring a notice: {error}"
        self._counts.warn(f"notice.{error.kind}", text, data)

    def _on_path_notice(self, source: str, path: str) -> bool:
        """Pass on a finished file; return whether its path is that of a raw of any detector."""
        is_raw = False
        for absolute in self._raw_roots.absolute_paths(path):
            if (found := self._raw_roots.read(absolute)) is not None:
                is_raw = True
                if self._raw_roots.serves(found[0]):
                    self._on_sighting(Sighting(source, *found, confirmed=True))
        return is_raw

    def _on_sighting(self, sighting: Sighting) -> None:
        """Handle a raw, a sidecar or a list of detectors that a source reports."""
        name = sighting.name
        if name.kind is RawFileKind.EXPECTED:
            if self._exposures.needs_list(name) and len(self._tasks) < MAX_TASKS:
                self._spawn(self._list(sighting))
            return
        if name.kind is RawFileKind.SIDECAR:
            if self._exposures.needs_sidecar(name) and len(self._tasks) < MAX_TASKS:
                self._spawn(self._exposures.read_sidecar(name, sighting.file))
            return
        self._completion.take(sighting)

    def _new_exposures(self, reading: ExposureReader, roots: RawRoots) -> ExposureFactsCache:
        return ExposureFactsCache(reading, self._config.sidecar_wait_s, self._clock.mono, self._counts, roots)

    def _new_stores(self, reader: ReaderProcess, instruments: Mapping[str, Collection[int]]) -> StoreArrivals:
        roots = RawRoots(self._config, instruments, stores=True)
        exposures = self._new_exposures(StoreReader(reader), roots)
        stores = StoreArrivals(
            roots,
            exposures,
            self._completion,
            self._counts,
            self._clock.mono,
            self._config.remember_s,
            self._spawn,
            self._expect,
        )
        if (after_s := self._config.list_s) is not None:
            self._listing = StoreListing(
                roots,
                reader,
                exposures,
                partial(self._late, after_s),
                stores.is_known,
                stores.on_sighting,
                self._clock,
                self._counts,
                self._config.remember_s,
            )
        return stores

    def _relist_all(self) -> None:
        for source in self._sources.values():
            source.relist()

    def _is_local(self, root: str) -> bool:
        return self._sources[root].is_local

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._counts.count("internal")
            _LOG.error(
                "internal error: a task that handles raw arrivals has failed; please report this",
                exc_info=error,
            )

    async def _list(self, sighting: Sighting) -> None:
        expected = await self._exposures.expected(sighting.name, sighting.file)
        if expected is not None:
            self._expect(expected)

    def _final_rescan(self, root: RawRoot, expected: ExpectedRaws, since_unix: float) -> FinalRescan:
        return FinalRescan(
            expected,
            since_unix,
            RawSearch(self._raw_roots, root, f"rescan {root.path}", self._config.remember_s),
            UnrecognizedFiles(root, expected, since_unix),
            self._threads[root.path],
            self._exposures,
            self._completion,
            self._clock,
            self._clock.mono() - self._config.sidecar_wait_s,
        )
