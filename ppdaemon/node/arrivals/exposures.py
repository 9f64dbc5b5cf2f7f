# SPDX-License-Identifier: BSD-3-Clause
"""Which group an exposure belongs to: one read serves all its detectors.

All detectors of an exposure share OBSID and GROUPID. The first sidecar or,
where none comes in time, the first FITS header that can be read names the
group, and at last the sidecars of other nodes' detectors. One that is another
exposure's by its OBSID does not count: else a single misplaced file would lead
all detectors astray.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals import files
from ppdaemon.node.arrivals.counts import ErrorCounts
from ppdaemon.node.arrivals.index import ExpectedSensors
from ppdaemon.node.arrivals.roots import RawPath, RawRoots
from ppdaemon.node.arrivals.threads import FileThreads
from ppdaemon.raws.path import RawName

__all__ = ("Exposures", "FileReading", "Reading")

type _Key = tuple[str, int]
type _Read = Callable[[RawPath], Awaitable[files.ExposureFacts]]

MOST = 5000
"""Exposures remembered; a night has some 1000."""
LIST_WAIT_S = 120.0
"""The list of an exposure's detectors comes before its images, which name the
group that it is for."""


class Reading(Protocol):
    """Reads the sidecars, headers and lists of an exposure.

    Each method may raise `FileNotFoundError` if there is no such file,
    `TimeoutError` if it cannot be reached now, another `OSError` if it
    cannot be read, and `~ppdaemon.errors.BadMessage` if it cannot be used.
    """

    async def sidecar(self, path: RawPath) -> files.ExposureFacts:
        """Read a sidecar."""

    async def header(self, path: RawPath) -> files.ExposureFacts:
        """Read the primary header of an image."""

    async def listed(self, path: RawPath) -> frozenset[str]:
        """Read the list of an exposure's detectors."""

    async def neighbors(self, image: RawPath) -> tuple[RawPath, ...]:
        """Find other sidecars of an image's exposure."""


class FileReading:
    """Reads files in the threads of their root."""

    def __init__(self, threads: Mapping[str, FileThreads]):
        self._threads = threads

    async def sidecar(self, path: RawPath) -> files.ExposureFacts:
        """Read a sidecar; see `Reading`."""
        return await self._threads[path.root].run(files.facts_of_sidecar, path)

    async def header(self, path: RawPath) -> files.ExposureFacts:
        """Read a primary header; see `Reading`."""
        return await self._threads[path.root].run(files.facts_of_image, path)

    async def listed(self, path: RawPath) -> frozenset[str]:
        """Read a list; see `Reading`."""
        return await self._threads[path.root].run(files.expected_sensors, path)

    async def neighbors(self, image: RawPath) -> tuple[RawPath, ...]:
        """List the folder of an image; see `Reading`."""
        return await self._threads[image.root].run(files.sidecars_beside, image)


class _Unknown:
    """Ties together those who want to know an exposure that nobody knows yet."""

    def __init__(self) -> None:
        self.known = asyncio.Event()
        self.reading = asyncio.Lock()


@dataclass(slots=True)
class _Exposure:
    facts: files.ExposureFacts | None = None
    listed: bool = False
    unknown: _Unknown | None = field(default_factory=_Unknown)
    """Not kept once it is known: it takes more than all the rest."""

    @property
    def reading(self) -> asyncio.Lock:
        """Held while a file of this exposure is read."""
        return asyncio.Lock() if self.unknown is None else self.unknown.reading

    async def until_known(self, limit_s: float) -> None:
        """Wait until the facts are known, or as long as this."""
        if self.unknown is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.unknown.known.wait(), limit_s)

    def learn(self, facts: files.ExposureFacts) -> None:
        self.facts = facts
        if self.unknown is not None:
            self.unknown.known.set()
            self.unknown = None


@dataclass(eq=False)
class Exposures:
    """Reads and remembers the facts of exposures; `sidecar_wait_s` is how long a late
    sidecar is waited for.
    """

    reading: Reading
    sidecar_wait_s: float
    mono: Callable[[], float]
    counts: ErrorCounts
    roots: RawRoots

    def __post_init__(self) -> None:
        self._exposures: OrderedDict[_Key, _Exposure] = OrderedDict()

    def unknown(self, name: RawName) -> bool:
        """Return whether a sidecar of this exposure would add something."""
        return name.group is None and self._exposure(name).facts is None

    def unlisted(self, name: RawName) -> bool:
        """Return whether the list of this exposure's detectors was not read yet."""
        return not self._exposure(name).listed

    async def learn_from(self, name: RawName, sidecar: RawPath) -> None:
        """Read a sidecar that was met by itself."""
        exposure = self._exposure(name)
        async with exposure.reading:
            try:
                await self._read(exposure, name, self.reading.sidecar, sidecar)
            except (OSError, BadMessage):
                # It may be half written: the image, or the next sidecar, follows.
                self.counts.count("sidecar_unread")

    async def expected(self, name: RawName, path: RawPath) -> ExpectedSensors | None:
        """Return which detectors of an exposure will come, when its group is known, which the list
        does not name; `None` if the list cannot be read, was read before, or nothing named the group.
        """
        exposure = self._exposure(name)
        try:
            names = await self.reading.listed(path)
        except (OSError, BadMessage) as error:
            self.counts.complain("bad_list", f"{path.path}: {error}")
            return None
        # Told more than once, it is read more than once: the first may have
        # met half of it.
        if exposure.listed:
            return None
        exposure.listed = True
        await exposure.until_known(LIST_WAIT_S)
        if exposure.facts is None:
            return None
        detectors = self.roots.detectors_named(name.instrument, path, names)
        return ExpectedSensors(name.instrument, exposure.facts.group, name.exposure, detectors)

    async def facts(
        self, name: RawName, image: RawPath, since_mono: float | None = None
    ) -> files.ExposureFacts | None:
        """Return the exposure's facts; `None` if neither path nor sidecar nor header name a group.

        A late sidecar is waited for from `since_mono` on, or from now on. Raises TimeoutError if
        the filesystem hangs.
        """
        exposure = self._exposure(name)
        sidecar = files.sidecar_of(image)
        deadline = (self.mono() if since_mono is None else since_mono) + self.sidecar_wait_s
        late = not await self._try(exposure, name, self.reading.sidecar, sidecar, "bad_sidecar")
        if late and exposure.facts is None and name.group is None:
            await exposure.until_known(deadline - self.mono())
            await self._try(exposure, name, self.reading.sidecar, sidecar, "bad_sidecar")
        await self._try(exposure, name, self.reading.header, image, "bad_header")
        if name.group is None:
            if exposure.facts is None:
                await self._ask_neighbors(exposure, name, image)
            if exposure.facts is None and (wait_s := deadline - self.mono()) > 0.0:
                # Its sidecar is there, but perhaps half of it.
                await exposure.until_known(wait_s)
                await self._try(exposure, name, self.reading.sidecar, sidecar, "bad_sidecar")
            return exposure.facts
        said = exposure.facts or files.ExposureFacts(name.group, name.snap)
        return replace(said, group=name.group)

    def known(self, name: RawName) -> files.ExposureFacts | None:
        """Return what `facts` returns, if no file has to be read for it; else `None`."""
        facts = self._exposure(name).facts
        return facts if facts is None or name.group is None else replace(facts, group=name.group)

    async def _ask_neighbors(self, exposure: _Exposure, name: RawName, image: RawPath) -> None:
        """Learn from the sidecars of detectors that this node does not serve.

        So a raw whose header is another exposure's comes to its own visit,
        which then reports that it is bad.
        """
        try:
            sidecars = await self.reading.neighbors(image)
        except OSError as error:
            self.counts.complain("bad_sidecar", f"{image.path}: {error}")
            return
        for sidecar in sidecars:
            await self._try(exposure, name, self.reading.sidecar, sidecar, "bad_sidecar")

    async def _try(
        self,
        exposure: _Exposure,
        name: RawName,
        read: _Read,
        path: RawPath,
        kind: str,
    ) -> bool:
        """Read a file unless the exposure is known; `False` if it is not there."""
        if exposure.facts is not None:
            return True
        async with exposure.reading:
            try:
                await self._read(exposure, name, read, path)
            except FileNotFoundError:
                return False
            except TimeoutError:
                raise  # the filesystem hangs: the file may be good
            except (OSError, BadMessage) as error:
                self.counts.complain(kind, f"{path.path}: {error}")
        return True

    async def _read(self, exposure: _Exposure, name: RawName, read: _Read, path: RawPath) -> None:
        if exposure.facts is not None:
            return
        facts = await read(path)
        if name.obsid is not None and facts.obsid not in (None, name.obsid):
            raise BadMessage(f"OBSID is {facts.obsid!r}, another exposure's", "obsid")
        exposure.learn(facts)

    def _exposure(self, name: RawName) -> _Exposure:
        key = (name.instrument, name.exposure)
        exposure = self._exposures.setdefault(key, _Exposure())
        self._exposures.move_to_end(key)
        if len(self._exposures) > MOST:
            self._exposures.popitem(last=False)
        return exposure
