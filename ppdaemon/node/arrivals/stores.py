# SPDX-License-Identifier: BSD-3-Clause
"""Raws in object stores, of which only notices tell.

Only what lies below ``arrivals.remote`` is ever asked for. An object is there
as a whole or not at all, so all that is missing is its group: one object of an
exposure is read, by the reader process, and serves all its detectors.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from ppdaemon.backoff import Backoff
from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.exposures import ExpectedSensors, Exposures, Reading
from ppdaemon.node.arrivals.files import ExposureFacts, facts_in, sensors_in
from ppdaemon.node.arrivals.notices import StoredObject
from ppdaemon.node.arrivals.settle import Settler
from ppdaemon.node.arrivals.tally import Tally
from ppdaemon.node.arrivals.tree import Place, RawTree, Sighting
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
    """Escape the key of an object.

    Parameters
    ----------
    uri : `str`
        Scheme, host and key, without escapes.

    Returns
    -------
    uri : `str`
        What URI parsers understand: groups have ``#`` and ``:`` in them.
    """
    scheme, _, rest = uri.partition("://")
    host, _, key = rest.partition("/")
    return f"{scheme}://{host}/{quote(key, safe='/')}"


class StoreArrivals:
    """Takes notices of objects, and has their raws delivered.

    Parameters
    ----------
    tree : `~ppdaemon.node.arrivals.tree.RawTree`
        The roots in stores.
    exposures : `~ppdaemon.node.arrivals.exposures.Exposures`
        Reads there.
    settler : `~ppdaemon.node.arrivals.settle.Settler`
        Delivers each raw once.
    tally : `~ppdaemon.node.arrivals.tally.Tally`
        Counts what goes wrong.
    mono : `~collections.abc.Callable`
        Monotonic clock, seconds.
    patience_s : `float`
        How long a store that does not serve is asked again.
    spawn : `~collections.abc.Callable`
        Runs a coroutine as a task.
    expect : `~collections.abc.Callable`
        Called with the detectors of an exposure, where a list of them came.
    """

    def __init__(
        self,
        tree: RawTree,
        exposures: Exposures,
        settler: Settler,
        tally: Tally,
        mono: Callable[[], float],
        patience_s: float,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        expect: Callable[[ExpectedSensors], None],
    ):
        self._tree = tree
        self._exposures = exposures
        self._settler = settler
        self._tally = tally
        self._mono = mono
        self._patience_s = patience_s
        self._spawn = spawn
        self._expect = expect
        self._hosts = frozenset("/".join(root.path.split("/", 3)[:3]) for root in tree.roots)
        self._images: dict[_Key, dict[int, Sighting]] = {}
        self._sidecars: set[_Key] = set()

    def serves(self, object_: StoredObject) -> bool:
        """Tell whether there is a root in an object's bucket, or on its host."""
        return f"{object_.scheme}://{object_.host}" in self._hosts

    def noticed(self, source: str, object_: StoredObject) -> None:
        """Take a notice.

        Parameters
        ----------
        source : `str`
            Which source told of it.
        object_ : `~ppdaemon.node.arrivals.notices.StoredObject`
            The object.

        Raises
        ------
        ppdaemon.errors.BadMessage
            Raised if it is below no root, or not to be asked for.
        """
        located = self._tree.locate(object_.uri)
        if located is None:
            return
        sighting = Sighting(source, *located, confirmed=True)
        match sighting.name.kind:
            case Kind.IMAGE:
                self._take(sighting)
            case Kind.SIDECAR:
                self._learn(sighting)
            case Kind.EXPECTED:
                self._spawn(self._list(sighting))
            case unexpected:
                raise AssertionError(unexpected)

    def _take(self, sighting: Sighting) -> None:
        """Deliver a raw, once its group is known."""
        name = sighting.name
        assert name.detector is not None
        if self._settler.delivered(name):
            return
        if (facts := self._exposures.known(name)) is not None:
            self._deliver(sighting, facts)
        elif (key := _key(name)) in self._images:
            self._images[key].setdefault(name.detector, sighting)
        elif len(self._images) >= MOST_EXPOSURES:
            self._tally.complain("dropped", f"{sighting.place.path}: {MOST_EXPOSURES} exposures are unread")
        else:
            self._images[key] = {name.detector: sighting}
            self._spawn(self._resolve(key))

    def _learn(self, sighting: Sighting) -> None:
        """Read a sidecar, unless one of the exposure was or is being read."""
        key = _key(sighting.name)
        if (
            self._exposures.unknown(sighting.name)
            and key not in self._sidecars
            and len(self._sidecars) < MOST_EXPOSURES
        ):
            self._sidecars.add(key)
            self._spawn(self._read_sidecar(key, sighting))

    async def _read_sidecar(self, key: _Key, sighting: Sighting) -> None:
        try:
            await self._exposures.learn_from(sighting.name, sighting.place)
        finally:
            self._sidecars.discard(key)

    async def _list(self, sighting: Sighting) -> None:
        if (listed := await self._exposures.expected(sighting.name, sighting.place)) is not None:
            self._expect(listed)

    async def _resolve(self, key: _Key) -> None:
        """Find out the visit of an exposure, and deliver its raws."""
        images = self._images[key]
        try:
            while images:
                first = next(iter(images))
                facts = await self._facts(images[first])
                if facts is None:  # one that tells nothing must not be in the way of the others
                    path = images.pop(first).place.path
                    text = f"{path}: no group in sidecar or header, not delivered"
                    self._settler.refuse(path, "no_group", text)
                    continue
                for sighting in images.values():
                    self._deliver(sighting, facts)
                return
        finally:
            del self._images[key]

    async def _facts(self, sighting: Sighting) -> ExposureFacts | None:
        """Ask again while the store does not serve."""
        until, backoff = self._mono() + self._patience_s, Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while True:
            try:
                return await self._exposures.facts(sighting.name, sighting.place)
            except TimeoutError as error:
                self._tally.complain("store_unavailable", f"{sighting.place.path}: {error}")
                if self._mono() >= until:
                    return None
            await asyncio.sleep(backoff.failed(self._mono()))

    def _deliver(self, sighting: Sighting, facts: ExposureFacts) -> None:
        name = sighting.name
        if name.group is not None:
            facts = replace(facts, group=name.group)
        try:
            self._settler.take_known(name, sighting.source, escaped(sighting.place.path), facts)
        except BadMessage as error:
            self._settler.refuse(sighting.place.path, f"refused.{error.kind}", str(error))


class StoreReading(Reading):
    """Reads objects by the reader process."""

    def __init__(self, reader: ReaderProcess):
        self._reader = reader

    async def sidecar(self, place: Place) -> ExposureFacts:
        """Read a sidecar; see `~ppdaemon.node.arrivals.exposures.Reading`."""
        return facts_in(await self._reader.ask("json", escaped(place.path)))

    async def header(self, place: Place) -> ExposureFacts:
        """Read a primary header, as above."""
        return facts_in(await self._reader.ask("header", escaped(place.path)))

    async def listed(self, place: Place) -> frozenset[str]:
        """Read a list of detectors, as above."""
        return sensors_in(await self._reader.ask("json", escaped(place.path)))

    async def neighbours(self, image: Place) -> tuple[Place, ...]:
        """Find none: stores are not listed."""
        return ()


def _key(name: RawName) -> _Key:
    return name.instrument, name.exposure
