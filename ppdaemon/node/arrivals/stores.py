# SPDX-License-Identifier: BSD-3-Clause
"""Raws in object stores, which only notices report.

Only what lies below ``arrivals.remote`` is ever asked for. An object is there
as a whole or not at all, so all that is missing is its group: one object of an
exposure is read, by the reader process, and serves all its detectors.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from ppdaemon.backoff import Backoff
from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.completion import RawCompletion
from ppdaemon.node.arrivals.counts import ErrorCounts
from ppdaemon.node.arrivals.exposures import Exposures, Reading
from ppdaemon.node.arrivals.files import ExposureFacts, facts_in, sensors_in
from ppdaemon.node.arrivals.index import ExpectedSensors
from ppdaemon.node.arrivals.notices import StoredObject
from ppdaemon.node.arrivals.roots import RawPath, RawRoots, Sighting
from ppdaemon.node.processes.reader import ReaderProcess
from ppdaemon.raws.path import Kind, RawName

__all__ = ("StoreArrivals", "StoreReading", "escaped")

MOST_EXPOSURES = 1000
"""Of which something is being read; a night has some 1000 in all."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0
"""Between tries while a store does not serve."""

type _Key = tuple[str, int]


def escaped(uri: str) -> str:
    """Escape the key of an object, as URI parsers need it: groups have ``#`` and ``:`` in them."""
    scheme, _, rest = uri.partition("://")
    host, _, key = rest.partition("/")
    return f"{scheme}://{host}/{quote(key, safe='/')}"


@dataclass(eq=False)
class StoreArrivals:
    """Takes notices of objects, and has their raws delivered; a store that does not serve is asked
    again for `retry_s`.
    """

    roots: RawRoots
    exposures: Exposures
    completion: RawCompletion
    counts: ErrorCounts
    mono: Callable[[], float]
    retry_s: float
    spawn: Callable[[Coroutine[Any, Any, None]], object]
    expect: Callable[[ExpectedSensors], None]

    def __post_init__(self) -> None:
        self._hosts = frozenset("/".join(root.path.split("/", 3)[:3]) for root in self.roots.roots)
        self._images: dict[_Key, dict[int, Sighting]] = {}
        self._sidecars: set[_Key] = set()

    def serves(self, object_: StoredObject) -> bool:
        """Return whether there is a root in an object's bucket, or on its host."""
        return f"{object_.scheme}://{object_.host}" in self._hosts

    def noticed(self, source: str, object_: StoredObject) -> None:
        """Take a notice; raises BadMessage if it is below no root, or not to be asked for."""
        located = self.roots.locate(object_.uri)
        if located is None:
            return
        sighting = Sighting(source, *located, confirmed=True)
        match sighting.name.kind:
            case Kind.IMAGE:
                self._take(sighting)
            case Kind.SIDECAR:
                self._learn(sighting)
            case Kind.EXPECTED:
                self.spawn(self._list(sighting))
            case unexpected:
                raise AssertionError(unexpected)

    def _take(self, sighting: Sighting) -> None:
        """Deliver a raw, once its group is known."""
        name = sighting.name
        assert name.detector is not None
        if self.completion.delivered(name):
            return
        if (facts := self.exposures.known(name)) is not None:
            self._deliver(sighting, facts)
        elif (key := _key(name)) in self._images:
            self._images[key].setdefault(name.detector, sighting)
        elif len(self._images) >= MOST_EXPOSURES:
            self.counts.complain("dropped", f"{sighting.file.path}: {MOST_EXPOSURES} exposures are unread")
        else:
            self._images[key] = {name.detector: sighting}
            self.spawn(self._resolve(key))

    def _learn(self, sighting: Sighting) -> None:
        """Read a sidecar, unless one of the exposure was or is being read."""
        key = _key(sighting.name)
        if (
            self.exposures.unknown(sighting.name)
            and key not in self._sidecars
            and len(self._sidecars) < MOST_EXPOSURES
        ):
            self._sidecars.add(key)
            self.spawn(self._read_sidecar(key, sighting))

    async def _read_sidecar(self, key: _Key, sighting: Sighting) -> None:
        try:
            await self.exposures.learn_from(sighting.name, sighting.file)
        finally:
            self._sidecars.discard(key)

    async def _list(self, sighting: Sighting) -> None:
        if (listed := await self.exposures.expected(sighting.name, sighting.file)) is not None:
            self.expect(listed)

    async def _resolve(self, key: _Key) -> None:
        """Find out the visit of an exposure, and deliver its raws."""
        images = self._images[key]
        try:
            while images:
                first = next(iter(images))
                facts = await self._facts(images[first])
                if facts is None:  # one without a group must not be in the way of the others
                    path = images.pop(first).file.path
                    text = f"{path}: no group in sidecar or header, not delivered"
                    self.completion.refuse(path, "no_group", text)
                    continue
                for sighting in images.values():
                    self._deliver(sighting, facts)
                return
        finally:
            del self._images[key]

    async def _facts(self, sighting: Sighting) -> ExposureFacts | None:
        """Ask again while the store does not serve."""
        until, backoff = self.mono() + self.retry_s, Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while True:
            try:
                return await self.exposures.facts(sighting.name, sighting.file)
            except TimeoutError as error:
                self.counts.complain("store_unavailable", f"{sighting.file.path}: {error}")
                if self.mono() >= until:
                    return None
            await asyncio.sleep(backoff.failed(self.mono()))

    def _deliver(self, sighting: Sighting, facts: ExposureFacts) -> None:
        name = sighting.name
        if name.group is not None:
            facts = replace(facts, group=name.group)
        try:
            self.completion.take_stored(name, sighting.source, escaped(sighting.file.path), facts)
        except BadMessage as error:
            self.completion.refuse(sighting.file.path, f"refused.{error.kind}", str(error))


class StoreReading(Reading):
    """Reads objects by the reader process."""

    def __init__(self, reader: ReaderProcess):
        self._reader = reader

    async def sidecar(self, path: RawPath) -> ExposureFacts:
        """Read a sidecar; see `~ppdaemon.node.arrivals.exposures.Reading`."""
        return facts_in(await self._reader.ask("json", escaped(path.path)))

    async def header(self, path: RawPath) -> ExposureFacts:
        """Read a primary header, as above."""
        return facts_in(await self._reader.ask("header", escaped(path.path)))

    async def listed(self, path: RawPath) -> frozenset[str]:
        """Read a list of detectors, as above."""
        return sensors_in(await self._reader.ask("json", escaped(path.path)))

    async def neighbors(self, image: RawPath) -> tuple[RawPath, ...]:
        """Find none: stores are not listed."""
        return ()


def _key(name: RawName) -> _Key:
    return name.instrument, name.exposure
