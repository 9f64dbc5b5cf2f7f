# SPDX-License-Identifier: BSD-3-Clause
"""Delivers raws in object stores, which notices report, and in need a listing.

Only objects below ``arrivals.remote`` are read. An object is never visible
before it is complete, so only its group is missing: the reader process reads
one object of an exposure for all its detectors.
"""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import Any

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
from ppdaemon.raws.roots import StoreHost, escaped

__all__ = ("StoreArrivals", "StoreReader")

MAX_EXPOSURES = 1000
"""Exposures that are being read at the same time; a whole night has some 1000."""
FULL_EXPOSURES = 100
"""Exposures being read above which a backlog of notices waits where it is kept."""
FIRST_PAUSE_S = 0.5
"""Pause after the first failed read of an object."""
LONGEST_PAUSE_S = 15.0
"""Limit of the growing pauses between further reads."""

MAX_VERSIONS = 50_000
"""Versions of delivered objects that are remembered: more than 200 exposures of 205 detectors."""

type _Key = tuple[str, int]


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
        self._hosts = _hosts(root.announced for root in self.roots.roots)
        self._images: dict[_Key, dict[int | None, _StoredRaw]] = {}
        self._versions: OrderedDict[tuple[_Key, int | None], str] = OrderedDict()
        """By exposure and detector: the version of the object that was delivered last."""
        self._sidecars: set[_Key] = set()
        self._room = asyncio.Event()
        self._room.set()

    def serves(self, object_: StoredObject) -> bool:
        """Return whether there is a configured root in an object's bucket, or on its host."""
        bucket = StoreHost.of(object_.scheme, object_.host).bucket
        return (object_.scheme, bucket) in self._hosts

    def on_notice(self, source: str, object_: StoredObject) -> None:
        """Handle a notice; raises BadMessage if the object is outside all roots, or must not be read."""
        located = self.roots.locate(self._uri(object_))
        if located is None:
            return
        self.on_sighting(Sighting(source, *located, confirmed=True), object_.version)

    def is_known(self, name: RawName) -> bool:
        """Return whether a raw was delivered, or its group is being read."""
        return self.completion.delivered(name) or name.detector in self._images.get(_key(name), ())

    def on_sighting(self, sighting: Sighting, version: str = "") -> None:
        """Handle an object that was reported or found."""
        match sighting.name.kind:
            case RawFileKind.IMAGE:
                self._take(_StoredRaw(sighting, version))
            case RawFileKind.SIDECAR:
                self._on_sidecar(sighting)
            case RawFileKind.EXPECTED:
                self.spawn(self._list(sighting))
            case unexpected:
                raise AssertionError(unexpected)

    async def room(self) -> None:
        """Wait while so many exposures are being read that further ones may be dropped."""
        await self._room.wait()

    def _uri(self, object_: StoredObject) -> str:
        """Return an object's URI as `RawRoots.locate` has the root that it is below.

        Where roots of several tenants fit, that of the notice's tenant is used, else one
        without a tenant.
        """
        named = StoreHost.of(object_.scheme, object_.host)
        tenant = object_.tenant if named.tenant is None else named.tenant
        hosts = self._hosts.get((object_.scheme, named.bucket), {object_.host: None})
        uris = {f"{object_.scheme}://{host}/{object_.key}": owner for host, owner in hosts.items()}
        # True is more than False; `max` returns the first of equal ones.
        return max(
            uris,
            key=lambda uri: (
                self.roots.depth(uri) > 0,
                uris[uri] == (tenant or None),
                uris[uri] is None,
                self.roots.depth(uri),
            ),
        )

    def _take(self, stored: "_StoredRaw") -> None:
        """Deliver a raw when its group is known."""
        sighting, name = stored.sighting, stored.sighting.name
        if self.completion.delivered(name) and not self._is_replaced(stored):
            return
        if (facts := self.exposures.cached(name)) is not None:
            self._deliver(stored, facts)
        elif (key := _key(name)) in self._images:
            self._images[key][name.detector] = stored
        elif len(self._images) >= MAX_EXPOSURES:
            self.counts.warn(
                "dropped",
                f"{sighting.file.path}: not delivered, {MAX_EXPOSURES} exposures are being read already",
            )
        else:
            self._images[key] = {name.detector: stored}
            if len(self._images) >= FULL_EXPOSURES:
                self._room.clear()
            self.spawn(self._resolve(key))

    def _is_replaced(self, stored: "_StoredRaw") -> bool:
        """Return whether a delivered raw has other content now, for example a complete upload
        after one that was cut.
        """
        known = self._versions.get((_key(stored.sighting.name), stored.sighting.name.detector), "")
        return bool(stored.version and known) and stored.version != known

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
                facts = await self._facts(images[first].sighting)
                if facts is None:  # a raw without a group must not block the others
                    path = images.pop(first).sighting.file.path
                    text = f"{path}: no group in sidecar or header, not delivered"
                    self.completion.refuse(path, "no_group", text)
                    continue
                for stored in images.values():
                    self._deliver(stored, facts)
                return
        finally:
            del self._images[key]
            if len(self._images) < FULL_EXPOSURES:
                self._room.set()

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

    def _deliver(self, stored: "_StoredRaw", facts: ExposureFacts) -> None:
        sighting, name = stored.sighting, stored.sighting.name
        if name.group is not None:
            facts = replace(facts, group=name.group)
        try:
            self.completion.take_stored(
                name,
                sighting.source,
                escaped(sighting.file.path),
                facts,
                stored.version,
                replaced=self._is_replaced(stored),
            )
        except BadMessage as error:
            self.completion.refuse(sighting.file.path, f"refused.{error.kind}", str(error))
            return
        if stored.version:
            self._versions[_key(name), name.detector] = stored.version
            if len(self._versions) > MAX_VERSIONS:
                self._versions.popitem(last=False)


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
        """Return none: a store is listed only for late raws."""
        return ()


@dataclass(frozen=True, slots=True)
class _StoredRaw:
    """A sighting of an image in a store."""

    sighting: Sighting
    version: str
    """See `StoredObject.version`."""


def _hosts(roots: Iterable[str]) -> dict[tuple[str, str], dict[str, str | None]]:
    """Return the hosts of roots and their tenants, by scheme and bucket."""
    hosts: defaultdict[tuple[str, str], dict[str, str | None]] = defaultdict(dict)
    for root in roots:
        scheme, _, rest = root.partition("://")
        host = rest.partition("/")[0]
        tenant, bucket = StoreHost.of(scheme, host)
        hosts[scheme, bucket][host] = tenant
    return dict(hosts)


def _key(name: RawName) -> _Key:
    return name.instrument, name.exposure
