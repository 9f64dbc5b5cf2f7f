# SPDX-License-Identifier: BSD-3-Clause
"""Delivers raws in object stores, which only notices report.

Only objects below ``arrivals.remote`` are read. An object is never visible
before it is complete, so only its group is missing: the reader process reads
one object of an exposure for all its detectors.
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
from ppdaemon.node.arrivals.exposurefacts import ExposureFactsCache, ExposureReader
from ppdaemon.node.arrivals.files import ExposureFacts, facts_in, sensors_in
from ppdaemon.node.arrivals.index import ExpectedSensors
from ppdaemon.node.arrivals.notices import StoredObject
from ppdaemon.node.arrivals.roots import RawPath, RawRoots, Sighting
from ppdaemon.node.processes.reader import ReaderProcess
from ppdaemon.raws.path import RawFileKind, RawName

__all__ = ("StoreArrivals", "StoreReader", "escaped")

MAX_EXPOSURES = 1000
"""Exposures that are being read at the same time; a whole night has some 1000."""
FIRST_PAUSE_S = 0.5
"""Pause after the first failed read of an object."""
LONGEST_PAUSE_S = 15.0
"""Limit of the growing pauses between further reads."""

type _Key = tuple[str, int]


def escaped(uri: str) -> str:
    """Escape the key of an object for URI parsers: groups contain ``#`` and ``:``."""
    scheme, _, rest = uri.partition("://")
    host, _, key = rest.partition("/")
    return f"{scheme}://{host}/{quote(key, safe='/')}"


@dataclass(eq=False)
class StoreArrivals:
    """Receives notices of objects and delivers their raws; repeats failed reads for `retry_s` seconds."""

    roots: RawRoots
    exposures: ExposureFactsCache
    completion: RawCompletion
    counts: ErrorCounts
    mono: Callable[[], float]
    retry_s: float
    spawn: Callable[[Coroutine[Any, Any, None]], object]
    expect: Callable[[ExpectedSensors], None]

    def __post_init__(self) -> None:
        self._hosts = frozenset("/".join(root.announced.split("/", 3)[:3]) for root in self.roots.roots)
        self._images: dict[_Key, dict[int, Sighting]] = {}
        self._sidecars: set[_Key] = set()

    def serves(self, object_: StoredObject) -> bool:
        """Return whether there is a configured root in an object's bucket, or on its host."""
        return f"{object_.scheme}://{object_.host}" in self._hosts

    def on_notice(self, source: str, object_: StoredObject) -> None:
        """Handle a notice; raises BadMessage if the object is outside all roots, or must not be read."""
        located = self.roots.locate(object_.uri)
        if located is None:
            return
        sighting = Sighting(source, *located, confirmed=True)
        match sighting.name.kind:
            case RawFileKind.IMAGE:
                self._take(sighting)
            case RawFileKind.SIDECAR:
                self._on_sidecar(sighting)
            case RawFileKind.EXPECTED:
                self.spawn(self._list(sighting))
            case unexpected:
                raise AssertionError(unexpected)

    def _take(self, sighting: Sighting) -> None:
        """Deliver a raw when its group is known."""
        name = sighting.name
        assert name.detector is not None
        if self.completion.delivered(name):
            return
        if (facts := self.exposures.cached(name)) is not None:
            self._deliver(sighting, facts)
        elif (key := _key(name)) in self._images:
            self._images[key].setdefault(name.detector, sighting)
        elif len(self._images) >= MAX_EXPOSURES:
            self.counts.warn(
                "dropped",
                f"{sighting.file.path}: not delivered, {MAX_EXPOSURES} exposures are being read already",
            )
        else:
            self._images[key] = {name.detector: sighting}
            self.spawn(self._resolve(key))

    def _on_sidecar(self, sighting: Sighting) -> None:
        """Read a sidecar unless one of its exposure was read or is being read."""
        key = _key(sighting.name)
        if (
            self.exposures.needs_sidecar(sighting.name)
            and key not in self._sidecars
            and len(self._sidecars) < MAX_EXPOSURES
        ):
            self._sidecars.add(key)
            self.spawn(self._read_sidecar(key, sighting))

    async def _read_sidecar(self, key: _Key, sighting: Sighting) -> None:
        try:
            await self.exposures.read_sidecar(sighting.name, sighting.file)
        finally:
            self._sidecars.discard(key)

    async def _list(self, sighting: Sighting) -> None:
        if (listed := await self.exposures.expected(sighting.name, sighting.file)) is not None:
            self.expect(listed)

    async def _resolve(self, key: _Key) -> None:
        """Find the group of an exposure, and deliver its raws."""
        images = self._images[key]
        try:
            while images:
                first = next(iter(images))
                facts = await self._facts(images[first])
                if facts is None:  # a raw without a group must not block the others
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
        """Return the facts of an exposure; repeat the read while the store is unavailable."""
        until, backoff = self.mono() + self.retry_s, Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while True:
            try:
                return await self.exposures.facts(sighting.name, sighting.file)
            except TimeoutError as error:
                text = f"{sighting.file.path}: store unavailable, retrying for {self.retry_s:g} s: {error}"
                self.counts.warn("store_unavailable", text)
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


class StoreReader(ExposureReader):
    """Reads objects in the reader process."""

    def __init__(self, reader: ReaderProcess):
        self._reader = reader

    async def sidecar(self, path: RawPath) -> ExposureFacts:
        """Read a sidecar."""
        return facts_in(await self._reader.ask("json", escaped(path.path)))

    async def header(self, path: RawPath) -> ExposureFacts:
        """Read the primary header of an image."""
        return facts_in(await self._reader.ask("header", escaped(path.path)))

    async def listed(self, path: RawPath) -> frozenset[str]:
        """Read the list of an exposure's detectors."""
        return sensors_in(await self._reader.ask("json", escaped(path.path)))

    async def neighbors(self, image: RawPath) -> tuple[RawPath, ...]:
        """Return none: stores are not listed."""
        return ()


def _key(name: RawName) -> _Key:
    return name.instrument, name.exposure
