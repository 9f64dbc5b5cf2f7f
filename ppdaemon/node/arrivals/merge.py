# SPDX-License-Identifier: BSD-3-Clause
"""Raw images as they land: from the sources' sightings to complete raws.

Covers the merging of sources, the dropping of duplicates, and when a raw is
delivered. Does not cover which worker waits for it. Nothing here touches the
filesystem of raws in the event loop: if that filesystem hangs, raws are late
and the supervisor is not.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import pydantic
import zmq.asyncio

from ppdaemon.clock import Clock
from ppdaemon.config import ArrivalsConfig
from ppdaemon.errors import BadMessage, ConfigError
from ppdaemon.messages import Raw
from ppdaemon.node.arrivals.exposures import Exposures
from ppdaemon.node.arrivals.files import is_regular, look_at
from ppdaemon.node.arrivals.index import Recent
from ppdaemon.node.arrivals.notices import listen, subscriber
from ppdaemon.node.arrivals.patience import GiveUp, LookAgain, Patience, Take
from ppdaemon.node.arrivals.pool import FilePool
from ppdaemon.node.arrivals.root import RootSource
from ppdaemon.node.arrivals.tally import Tally
from ppdaemon.node.arrivals.tree import Place, RawTree, Sighting
from ppdaemon.rawpath import Kind, RawName, sidecar_path
from ppdaemon.reports import ArrivalSource

__all__ = ("Arrivals",)

_LOG = logging.getLogger(__name__)

THREADS = 4
"""Looks at files that run at once; each root's survey takes one of them."""
MOST_CANDIDATES = 20_000
"""Files looked at until they are complete: ten exposures of 205 detectors are
2050."""
MOST_DELIVERED = 200_000
PLACES = 4
"""Paths under which the raw of one detector is looked for."""
STOP_S = 3.0

type _Key = tuple[str, int, int]


@dataclass(slots=True)
class _Candidate:
    """A raw that was sighted and is not delivered yet."""

    name: RawName
    places: list[Place]
    confirmed: bool
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def sighted_again(self, sighting: Sighting) -> None:
        if sighting.place not in self.places and len(self.places) < PLACES:
            self.places.append(sighting.place)
        self.confirmed = self.confirmed or sighting.confirmed
        self.news.set()


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
    ):
        self._config = config
        self._clock = clock
        self._deliver = deliver
        self._tree = RawTree(config.roots, config.layout, instruments)
        self._tally = Tally(clock.mono)
        self._pool = FilePool(THREADS + len(self._tree.roots), clock.mono)
        self._exposures = Exposures(self._pool, config.sidecar_wait_s, clock.mono, self._tally)
        self._candidates: dict[_Key, _Candidate] = {}
        # A scan finds a file again while it is younger than remember_s.
        self._delivered: Recent[_Key] = Recent(2.0 * config.remember_s, MOST_DELIVERED)
        self._files: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._roots: list[RootSource] = []
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
        for root in self._tree.roots:
            source = RootSource(
                self._tree, root, self._config, self._clock, self._pool, self._sighted, self._tally
            )
            self._roots.append(source)
            self._spawn(source.run())

    async def stop(self) -> None:
        """End all watching; what is not complete yet is forgotten."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None
        # A hanging filesystem must not keep the supervisor from stopping.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await asyncio.gather(*(root.stop() for root in self._roots))
        self._pool.close()

    def report(self) -> tuple[ArrivalSource, ...]:
        """Tell how the sources are.

        Returns
        -------
        sources : `tuple` [`~ppdaemon.reports.ArrivalSource`]
            Watch and scan of each root, then the subscriptions.
        """
        sources = [source for root in self._roots for source in root.report(self._files)]
        for name, task in self._listeners.items():
            sources.append(ArrivalSource(name=name, live=not task.done(), files=self._files[name]))
        return tuple(sources)

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

    def _noticed(self, source: str, path: str) -> None:
        """A notice named a finished file."""
        for absolute in self._tree.spell_out(path):
            try:
                located = self._tree.locate(absolute)
            except BadMessage as error:
                self._tally.complain(f"refused.{error.kind}", f"{source}: {error}")
                return
            if located is not None:
                self._sighted(Sighting(source, *located, confirmed=True))

    def _sighted(self, sighting: Sighting) -> None:
        """A source met a raw or a sidecar of this node."""
        name = sighting.name
        if name.kind is Kind.SIDECAR:
            if self._exposures.unknown(name) and len(self._tasks) < MOST_CANDIDATES:
                self._spawn(self._exposures.learn_from(name, sighting.place))
            return
        assert name.detector is not None
        key = (name.instrument, name.exposure, name.detector)
        if self._delivered.knows(key, self._clock.mono()):
            return
        candidate = self._candidates.get(key)
        if candidate is not None:
            candidate.sighted_again(sighting)
        elif len(self._candidates) >= MOST_CANDIDATES:
            self._tally.complain("dropped", f"{len(self._candidates)} raws are incomplete, one more dropped")
        else:
            self._files[sighting.source] += 1
            candidate = _Candidate(name, [sighting.place], sighting.confirmed)
            self._candidates[key] = candidate
            self._spawn(self._settle(key, candidate))

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

    # --- one raw ---

    async def _settle(self, key: _Key, candidate: _Candidate) -> None:
        """Look at a raw until it is complete, then deliver it."""
        try:
            taken = await self._completed(candidate)
            raw = await self._resolve(candidate.name, key[2], taken) if taken is not None else None
        except BadMessage as error:
            self._tally.complain(f"refused.{error.kind}", str(error))
            return
        finally:
            del self._candidates[key]
        if taken is not None and raw is not None:
            self._delivered.add(key, self._clock.mono())
            self._tally.count("delivered" if taken.whole else "delivered_broken")
            self._deliver(raw)

    async def _completed(self, candidate: _Candidate) -> Take | None:
        """Look again and again; `None` if the file is given up."""
        patience = Patience(self._clock.mono())
        while True:
            candidate.news.clear()
            look = await self._pool.run(look_at, tuple(candidate.places))
            match patience.judge(look, candidate.confirmed, self._clock.mono()):
                case Take() as taken:
                    return taken
                case GiveUp(kind, reason):
                    self._tally.complain(kind, f"{candidate.places[0].path}: {reason}")
                    return None
                case LookAgain(pause_s):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(candidate.news.wait(), pause_s)
                case unexpected:
                    raise AssertionError(unexpected)

    async def _resolve(self, name: RawName, detector: int, taken: Take) -> Raw | None:
        """Find out the visit of a complete raw; `None` if nothing names it."""
        seen_tai = self._clock.tai()
        image = taken.place
        facts = await self._exposures.facts(name, image)
        if facts is None:
            self._tally.complain("no_group", f"{image.path}: no group in sidecar or header, not delivered")
            return None
        sidecar = Place(image.root, sidecar_path(image.path))
        has_sidecar = await self._pool.run(is_regular, sidecar)
        try:
            return Raw(
                path=image.path,
                sidecar=sidecar.path if has_sidecar else None,
                instrument=name.instrument,
                group=facts.group,
                detector=detector,
                exposure=name.exposure,
                snap=facts.snap,
                snaps=facts.snaps,
                seen_tai=seen_tai,
            )
        except pydantic.ValidationError as error:
            raise BadMessage(
                f"{image.path}: {error.errors()[0]['loc']} is not acceptable", "header"
            ) from None
