# SPDX-License-Identifier: BSD-3-Clause
"""Finds and caches the group of each exposure: one read serves all its detectors.

All detectors of an exposure share OBSID and GROUPID. The group is read from the
first sidecar, else from the first FITS header if no sidecar arrives in time, else
from the sidecars of other nodes' detectors. A file with the OBSID of another
exposure is ignored: one misplaced file must not assign all detectors wrongly.
The group that most detectors have of their own replaces another one: it is used
for detectors without a group of their own.
"""

import asyncio
import contextlib
from collections import Counter, OrderedDict
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

__all__ = ("ExposureFactsCache", "FileReader", "ExposureReader")

type _Key = tuple[str, int]
type _Read = Callable[[RawPath], Awaitable[files.ExposureFacts]]

MOST = 5000
"""Exposures remembered; a night has some 1000."""
LIST_WAIT_S = 120.0
"""The list of an exposure's detectors arrives before its images, which contain its group."""


class ExposureReader(Protocol):
    """Reads the sidecars, headers and lists of an exposure.

    Each method raises FileNotFoundError if the file does not exist, TimeoutError if it cannot be
    reached at present, another OSError if it cannot be read, and BadMessage if its content is invalid.
    """

    async def sidecar(self, path: RawPath) -> files.ExposureFacts:
        """Read a sidecar."""

    async def header(self, path: RawPath) -> files.ExposureFacts:
        """Read the primary header of an image."""

    async def listed(self, path: RawPath) -> frozenset[str]:
        """Read the list of an exposure's detectors."""

    async def neighbors(self, image: RawPath) -> tuple[RawPath, ...]:
        """Return other sidecars of an image's exposure."""


class FileReader:
    """Reads files, each in the threads of its root."""

    def __init__(self, threads: Mapping[str, FileThreads]):
        self._threads = threads

    async def sidecar(self, path: RawPath) -> files.ExposureFacts:
        """Read a sidecar."""
        return await self._threads[path.root].run(files.facts_of_sidecar, path)

    async def header(self, path: RawPath) -> files.ExposureFacts:
        """Read the primary header of an image."""
        return await self._threads[path.root].run(files.facts_of_image, path)

    async def listed(self, path: RawPath) -> frozenset[str]:
        """Read the list of an exposure's detectors."""
        return await self._threads[path.root].run(files.expected_sensors, path)

    async def neighbors(self, image: RawPath) -> tuple[RawPath, ...]:
        """Return the other sidecars in the folder of an image."""
        return await self._threads[image.root].run(files.sidecars_beside, image)


class _Unresolved:
    """Synchronizes the tasks that wait for, or read, an exposure without facts."""

    def __init__(self) -> None:
        self.known = asyncio.Event()
        self.reading = asyncio.Lock()


@dataclass(slots=True)
class _Exposure:
    facts: files.ExposureFacts | None = None
    counted: dict[int | None, files.ExposureFacts] | None = None
    """By detector: the facts in its own header or sidecar; rescans read them again."""
    listed: bool = False
    unresolved: _Unresolved | None = field(default_factory=_Unresolved)
    """Deleted when the facts are known: it needs more memory than all other fields."""

    @property
    def reading(self) -> asyncio.Lock:
        """Lock held while a file of this exposure is read, so that 205 detectors cause one read."""
        return asyncio.Lock() if self.unresolved is None else self.unresolved.reading

    async def until_known(self, limit_s: float) -> None:
        """Wait until the facts are known, at most `limit_s` seconds."""
        if self.unresolved is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.unresolved.known.wait(), limit_s)

    def set_facts(self, facts: files.ExposureFacts) -> None:
        self.facts = facts
        self.use_majority()
        if self.unresolved is not None:
            self.unresolved.known.set()
            self.unresolved = None

    def use_majority(self) -> None:
        """Replace the facts, if they are known, where more detectors have another group."""
        if self.facts is None or not self.counted:
            return
        numbers = Counter(facts.group for facts in self.counted.values())
        [(group, most)] = numbers.most_common(1)
        # The file that was read first counts as one detector, which may not be served here.
        if most > max(1, numbers[self.facts.group]):
            self.facts = next(facts for facts in self.counted.values() if facts.group == group)


@dataclass(eq=False)
class ExposureFactsCache:
    """Reads and caches the facts of exposures; waits up to `sidecar_wait_s` for a late sidecar."""

    reading: ExposureReader
    sidecar_wait_s: float
    mono: Callable[[], float]
    counts: ErrorCounts
    roots: RawRoots

    def __post_init__(self) -> None:
        self._exposures: OrderedDict[_Key, _Exposure] = OrderedDict()

    def needs_sidecar(self, name: RawName) -> bool:
        """Return whether a sidecar of this exposure should be read."""
        return name.group is None and self._exposure(name).facts is None

    def needs_list(self, name: RawName) -> bool:
        """Return whether the list of this exposure's detectors should be read."""
        return not self._exposure(name).listed

    async def read_sidecar(self, name: RawName, sidecar: RawPath) -> None:
        """Read a sidecar that a source reported."""
        exposure = self._exposure(name)
        async with exposure.reading:
            try:
                await self._read(exposure, name, self.reading.sidecar, sidecar)
            except (OSError, BadMessage):
                # It may be incomplete: the image, or another sidecar, follows.
                self.counts.count("sidecar_unread")

    async def expected(self, name: RawName, path: RawPath) -> ExpectedSensors | None:
        """Read the list of an exposure's detectors, and wait for its group, which the list does not
        contain; `None` if the list cannot be read or was read before, or if the group stays unknown.
        """
        exposure = self._exposure(name)
        try:
            names = await self.reading.listed(path)
        except (OSError, BadMessage) as error:
            self.counts.warn("bad_list", f"{path.path}: ignoring this list of detectors: {error}")
            return None
        # Checked after the read: a list may be reported several times, and the
        # first read may have found an incomplete file.
        if exposure.listed:
            return None
        # Before the next `await`: a second report of the list ends above.
        exposure.listed = True
        await exposure.until_known(LIST_WAIT_S)
        if exposure.facts is None:
            return None
        detectors = self.roots.detectors_named(name.instrument, path, names)
        return ExpectedSensors(name.instrument, exposure.facts.group, name.exposure, detectors)

    async def facts(
        self, name: RawName, image: RawPath, since_mono: float | None = None
    ) -> files.ExposureFacts | None:
        """Return the exposure's facts; `None` if path, sidecar and header contain no group.

        The wait for a late sidecar starts at `since_mono` (monotonic seconds), or now. Raises
        TimeoutError if the filesystem hangs.
        """
        exposure = self._exposure(name)
        sidecar = files.sidecar_of(image)
        deadline = (self.mono() if since_mono is None else since_mono) + self.sidecar_wait_s
        late = not await self._try_read(exposure, name, self.reading.sidecar, sidecar, "bad_sidecar")
        if late and exposure.facts is None and name.group is None:
            await exposure.until_known(deadline - self.mono())
            await self._try_read(exposure, name, self.reading.sidecar, sidecar, "bad_sidecar")
        await self._try_read(exposure, name, self.reading.header, image, "bad_header")
        if name.group is None:
            if exposure.facts is None:
                await self._read_neighbors(exposure, name, image)
            if exposure.facts is None and (wait_s := deadline - self.mono()) > 0.0:
                # Its sidecar exists, but may be incomplete.
                await exposure.until_known(wait_s)
                await self._try_read(exposure, name, self.reading.sidecar, sidecar, "bad_sidecar")
            return exposure.facts
        facts = exposure.facts or files.ExposureFacts(name.group, name.snap)
        return replace(facts, group=name.group)

    def count_group(self, name: RawName, own: files.ExposureFacts) -> None:
        """Count the group that a detector's own header or sidecar has, unless it is a misplaced file."""
        if name.group is not None or (name.obsid is not None and own.obsid not in (None, name.obsid)):
            return
        exposure = self._exposure(name)
        exposure.counted = counted = exposure.counted or {}
        # One object for all detectors with equal facts, to save memory.
        counted[name.detector] = next((facts for facts in counted.values() if facts == own), own)
        # One more for the group that is used changes nothing; counting them all for each of 205 would.
        if exposure.facts is None or own.group != exposure.facts.group:
            exposure.use_majority()

    def cached(self, name: RawName) -> files.ExposureFacts | None:
        """Return the cached facts of an exposure; `None` if a file has to be read."""
        facts = self._exposure(name).facts
        return facts if facts is None or name.group is None else replace(facts, group=name.group)

    async def _read_neighbors(self, exposure: _Exposure, name: RawName, image: RawPath) -> None:
        """Read the sidecars of detectors that this node does not serve.

        Then a raw with the header of another exposure is delivered to the visit
        that its path belongs to, which reports it as bad.
        """
        try:
            sidecars = await self.reading.neighbors(image)
        except OSError as error:
            self.counts.warn("bad_sidecar", f"{image.path}: cannot list its folder for sidecars: {error}")
            return
        for sidecar in sidecars:
            await self._try_read(exposure, name, self.reading.sidecar, sidecar, "bad_sidecar")

    async def _try_read(
        self,
        exposure: _Exposure,
        name: RawName,
        read: _Read,
        path: RawPath,
        kind: str,
    ) -> bool:
        """Read a file unless the facts are known; return `False` if it does not exist."""
        if exposure.facts is not None:
            return True
        async with exposure.reading:
            try:
                await self._read(exposure, name, read, path)
            except FileNotFoundError:
                return False
            except TimeoutError:
                raise  # the filesystem hangs: the file may be valid
            except (OSError, BadMessage) as error:
                self.counts.warn(kind, f"{path.path}: not used to find the group: {error}")
        return True

    async def _read(self, exposure: _Exposure, name: RawName, read: _Read, path: RawPath) -> None:
        if exposure.facts is not None:  # another task has read them while this one waited for the lock
            return
        facts = await read(path)
        if name.obsid is not None and facts.obsid not in (None, name.obsid):
            raise BadMessage(f"OBSID is {facts.obsid!r}, which is another exposure", "obsid")
        exposure.set_facts(facts)

    def _exposure(self, name: RawName) -> _Exposure:
        key = (name.instrument, name.exposure)
        exposure = self._exposures.get(key)
        if exposure is None:
            exposure = self._exposures[key] = _Exposure()
        self._exposures.move_to_end(key)
        if len(self._exposures) > MOST:
            self._exposures.popitem(last=False)
        return exposure
