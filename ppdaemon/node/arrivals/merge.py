# SPDX-License-Identifier: BSD-3-Clause
"""Raw images as they land: from the sources' sightings to complete raws.

Covers the merging of sources and the last look. When a raw is complete, and
that it is delivered once, is `ppdaemon.node.arrivals.settle`'s; which worker
waits for it, `ppdaemon.node.desk`'s. Nothing here touches the filesystem of
raws in the event loop: if that filesystem hangs, raws are late and the
supervisor is not.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import zmq.asyncio

from ppdaemon.clock import TAI_MINUS_UTC_S, Clock
from ppdaemon.config import ArrivalsConfig
from ppdaemon.errors import BadMessage, ConfigError
from ppdaemon.messages import Raw
from ppdaemon.node.arrivals.exposures import ExpectedSensors, Exposures, FileReading
from ppdaemon.node.arrivals.files import ExposureFacts
from ppdaemon.node.arrivals.lags import SourceFigures
from ppdaemon.node.arrivals.lastlook import find_expected
from ppdaemon.node.arrivals.notices import StoredObject, listen, subscriber
from ppdaemon.node.arrivals.pool import RootPools
from ppdaemon.node.arrivals.root import RootSource, SourceState, Surroundings
from ppdaemon.node.arrivals.settle import READERS, Settler
from ppdaemon.node.arrivals.stores import StoreArrivals, StoreReading
from ppdaemon.node.arrivals.tally import Tally
from ppdaemon.node.arrivals.tree import RawRoot, RawTree, Sighting
from ppdaemon.node.processes.reader import ReaderProcess
from ppdaemon.raws.path import Expected, Kind
from ppdaemon.reports import ArrivalSource, RefusedRaw
from ppdaemon.visit import NextVisit, parent_group

__all__ = ("Arrivals",)

_LOG = logging.getLogger(__name__)

MOST_TASKS = 20_000
"""Above, sidecars and lists met by themselves are not read."""
STOP_S = 3.0
LOOK_S = 2.0
"""A last look that takes longer is broken off."""


class Arrivals:
    """Watches the raw roots and delivers each raw once, when it is complete.

    Parameters
    ----------
    config : `~ppdaemon.config.ArrivalsConfig`
        Where to look and how long to wait.
    instruments : `~collections.abc.Mapping` [`str`, `~collections.abc.Collection`]
        Detectors that this node serves, by instrument; files of others are
        never opened.
    clock : `~ppdaemon.clock.Clock`
        The time.
    deliver : `~collections.abc.Callable`
        Called with each raw in the event loop's thread.
    expect : `~collections.abc.Callable`, optional
        Called with the detectors of an exposure, where a list of them came.
    waiting : `~collections.abc.Callable`, optional
        Returns what open visits wait for; that is looked for where the kernel
        has no news.
    canaries : `pathlib.Path`, optional
        A folder of our own, outside of all raw roots, whose files prove that
        the kernel's news come through. Without it they are trusted.
    reader : `~ppdaemon.node.processes.reader.ReaderProcess`, optional
        Reads what lies in object stores; needed if such are configured. It is
        started and closed here.

    Raises
    ------
    ppdaemon.errors.ConfigError
        Raised if an instrument has no focal-plane table.
    """

    def __init__(
        self,
        config: ArrivalsConfig,
        instruments: Mapping[str, Collection[int]],
        clock: Clock,
        deliver: Callable[[Raw], None],
        expect: Callable[[ExpectedSensors], None] | None = None,
        waiting: Callable[[], Sequence[Expected]] = tuple,
        canaries: Path | None = None,
        reader: ReaderProcess | None = None,
    ):
        self._config = config
        self._mono = clock.mono
        self._expect = expect or (lambda expected: None)
        self._tree = RawTree(config, instruments)
        self._tally = Tally(clock.mono)
        roots = [root.path for root in self._tree.roots]
        self._pools = RootPools(roots, READERS, clock.mono)
        self._exposures = Exposures(
            FileReading(self._pools), config.sidecar_wait_s, clock.mono, self._tally, self._tree
        )
        self._settler = Settler(
            roots, self._pools, self._exposures, clock, self._tally, config.remember_s, deliver, self._spawn
        )
        self._settler.overfull = self._look_again
        self._settler.same_clock = self._is_local
        self._shared = Surroundings(
            self._tree,
            config,
            clock,
            self._tally,
            self._sighted,
            self._settler.room,
            self._settler.expect_no_end,
            waiting,
            canaries,
        )
        self._reader = reader
        self._stores = None if reader is None else self._make_stores(reader, instruments, clock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._roots: dict[str, RootSource] = {}
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._listeners: dict[str, asyncio.Task[None]] = {}
        self._context: zmq.asyncio.Context | None = None

    async def start(self) -> None:
        """Begin to watch, scan and listen.

        Raises
        ------
        ppdaemon.errors.ConfigError
            Raised if an address of ``arrivals.subscribe`` cannot be used.
        """
        try:
            self._subscribe(self._config.subscribe)
        except ConfigError:
            await self.stop()
            raise
        self._settler.start()
        if self._reader is not None:
            self._reader.start()
        for number, root in enumerate(self._tree.roots):
            source = RootSource(root, number, self._shared, self._pools.of(root.path))
            self._roots[root.path] = source
            self._runs[root.path] = self._spawn(source.run())

    async def stop(self) -> None:
        """End all watching; what is not complete yet is forgotten."""
        self._settler.stop()
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
                await asyncio.gather(*(root.stop() for root in self._roots.values()))
        self._pools.close()

    def report(self) -> tuple[ArrivalSource, ...]:
        """Tell how the sources are.

        Returns
        -------
        sources : `tuple` [`~ppdaemon.reports.ArrivalSource`]
            Watch, polling and scan of each root, then the subscriptions, then
            the reader of object stores.
        """
        states = [
            replace(state, live=False, note="ended by an error, see the log")
            if self._runs[path].done()
            else state
            for path, root in self._roots.items()
            for state in root.states()
        ]
        states += [SourceState(name, not task.done(), "") for name, task in self._listeners.items()]
        if self._reader is not None:
            states.append(SourceState("reader", self._reader.live, self._reader.note))
        return tuple(_report(state, self._settler.lags.of(state.name)) for state in states)

    async def last_look(self, visit: NextVisit, detectors: Collection[int], announced_tai: float) -> None:
        """Look where raws of a visit must be, whatever the sources have said.

        What is found and complete is delivered before this returns, also what
        was delivered before. Returns after `LOOK_S` at the latest.

        Parameters
        ----------
        visit : `~ppdaemon.visit.NextVisit`
            The visit.
        detectors : `~collections.abc.Collection` [`int`]
            Whose raws are missed.
        announced_tai : `float`
            When the visit was announced, TAI seconds since 1970. Where paths
            do not tell the group, exposures that were complete ``remember_s``
            before are not looked at.
        """
        expected = Expected(visit.instrument, frozenset(detectors), visit.group)
        since_unix = announced_tai - TAI_MINUS_UTC_S - self._config.remember_s
        self._tally.count("last_looks")
        try:
            async with asyncio.timeout(LOOK_S):
                await asyncio.gather(
                    *(self._look_in(root, expected, since_unix) for root in self._tree.roots)
                )
        except TimeoutError:
            self._tally.complain("last_look_broken_off", f"a last look for {visit.group} took {LOOK_S:g} s")

    @property
    def refused(self) -> tuple[RefusedRaw, ...]:
        """The last raws that were not delivered (`tuple`
        [`~ppdaemon.reports.RefusedRaw`]).
        """
        return tuple(self._settler.refused)

    @property
    def counters(self) -> Mapping[str, int]:
        """Events by kind since the start, such as ``notice.json``
        (`~collections.abc.Mapping` [`str`, `int`]).
        """
        return self._tally.counts

    # --- sightings ---

    def _subscribe(self, addresses: Collection[str]) -> None:
        if not addresses:
            return
        self._context = zmq.asyncio.Context()
        for address in addresses:
            source = f"zmq {address}"
            socket = subscriber(self._context, address)
            self._listeners[source] = self._spawn(
                listen(
                    socket,
                    lambda path, source=source: self._noticed(source, path),  # type: ignore[misc]
                    lambda error: self._tally.complain(f"notice.{error.kind}", f"notice refused: {error}"),
                )
            )

    def _noticed(self, source: str, file: str | StoredObject) -> None:
        """A notice named a finished file."""
        try:
            if isinstance(file, StoredObject):
                self._object_noticed(source, file)
            else:
                self._path_noticed(source, file)
        except BadMessage as error:
            self._tally.complain(f"refused.{error.kind}", f"{source}: {error}")

    def _object_noticed(self, source: str, file: StoredObject) -> None:
        if self._stores is not None and self._stores.serves(file):
            self._stores.noticed(source, file)
        elif file.scheme == "s3":  # a raw root may be what a bucket is on this host
            self._path_noticed(source, file.key)
        else:
            raise BadMessage(f"{file.uri[:200]!r} is not below a root of arrivals.remote", "outside")

    def _path_noticed(self, source: str, path: str) -> None:
        for absolute in self._tree.spell_out(path):
            located = self._tree.locate(absolute)
            if located is not None:
                self._sighted(Sighting(source, *located, confirmed=True))

    def _sighted(self, sighting: Sighting) -> None:
        """A source met a raw or a sidecar of this node."""
        name = sighting.name
        if name.kind is Kind.EXPECTED:
            if self._exposures.unlisted(name) and len(self._tasks) < MOST_TASKS:
                self._spawn(self._list(sighting))
            return
        if name.kind is Kind.SIDECAR:
            if self._exposures.unknown(name) and len(self._tasks) < MOST_TASKS:
                self._spawn(self._exposures.learn_from(name, sighting.place))
            return
        if not self._settler.delivered(name):
            self._settler.take_up(sighting)

    def _make_stores(
        self, reader: ReaderProcess, instruments: Mapping[str, Collection[int]], clock: Clock
    ) -> StoreArrivals:
        config, tree = self._config, RawTree(self._config, instruments, stores=True)
        reading = StoreReading(reader)
        exposures = Exposures(reading, config.sidecar_wait_s, clock.mono, self._tally, tree)
        return StoreArrivals(
            tree,
            exposures,
            self._settler,
            self._tally,
            clock.mono,
            config.remember_s,
            self._spawn,
            self._expect,
        )

    def _look_again(self) -> None:
        for root in self._roots.values():
            root.look_again()

    def _is_local(self, root: str) -> bool:
        return root in self._roots and self._roots[root].is_local

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._tally.count("internal")
            _LOG.error("an error in the arrivals", exc_info=error)

    async def _list(self, sighting: Sighting) -> None:
        expected = await self._exposures.expected(sighting.name, sighting.place)
        if expected is not None:
            self._expect(expected)

    # --- the last look ---

    async def _look_in(self, root: RawRoot, expected: Expected, since_unix: float) -> None:
        reading = self._pools.of(root.path)
        sightings = await reading.run(find_expected, self._tree, root, expected, since_unix)
        exposures: dict[int, list[Sighting]] = {}
        for sighting in sightings:
            exposures.setdefault(sighting.name.exposure, []).append(sighting)
        await asyncio.gather(*(self._take_found(expected, found) for found in exposures.values()))

    async def _take_found(self, expected: Expected, sightings: list[Sighting]) -> None:
        """Deliver the raws of one exposure, if it is one of the visit."""
        facts = await self._group_told_by(sightings)
        if facts is None or parent_group(facts.group) != expected.group:
            return
        candidates = [self._settler.take_up(sighting) for sighting in sightings]
        await asyncio.gather(
            *(candidate.until_settled() for candidate in candidates if candidate is not None)
        )

    async def _group_told_by(self, sightings: list[Sighting]) -> ExposureFacts | None:
        """Ask one raw of an exposure after the other, and wait for no sidecar."""
        long_ago = self._mono() - self._config.sidecar_wait_s
        for sighting in sightings:
            if (facts := await self._exposures.facts(sighting.name, sighting.place, long_ago)) is not None:
                return facts
        return None


def _report(state: SourceState, figures: SourceFigures) -> ArrivalSource:
    return ArrivalSource(
        name=state.name,
        live=state.live,
        note=state.note,
        files=figures.files,
        lag_p50_ms=figures.lag_p50_ms,
        lag_p99_ms=figures.lag_p99_ms,
    )
