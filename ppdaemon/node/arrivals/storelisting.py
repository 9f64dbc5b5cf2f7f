# SPDX-License-Identifier: BSD-3-Clause
"""Looks for late raws in object stores by listing, as a last resort.

A store whose notification topic is stuck sends no notices, although the raws lie in the bucket. When a visit
has waited for too long, the folders that can contain its exposures are listed by the reader process: one
request for the exposures of a day, one for each of these that may be of the visit, none for each detector.
"""

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ppdaemon.backoff import Backoff
from ppdaemon.clock import Clock, day_obs
from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.counts import ErrorCounts
from ppdaemon.node.arrivals.exposurefacts import ExposureFactsCache
from ppdaemon.node.arrivals.pending import ExposureFacts
from ppdaemon.node.arrivals.roots import RawRoot, RawRoots, Sighting
from ppdaemon.node.processes.reader import ReaderProcess
from ppdaemon.raws.layout import Layout, SearchFolder
from ppdaemon.raws.path import ExpectedRaws, RawFileKind, RawName
from ppdaemon.raws.roots import escaped
from ppdaemon.visit import parent_group

__all__ = ("StoreListing", "prefixes_of")

LOOK_S = 2.0
"""Interval of looking whether raws are late; no request is sent for that."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 40.0
"""Pauses between listings, which grow while they find nothing: a visit waits for some 180 s."""
NOTICE_WAIT_S = 2.0
"""A raw that has just landed may be found before its notice arrives: only what has none after this time
counts as found by listing. Ceph sends one within 0.3 s."""
MAX_PREFIXES = 8
"""A layout with more folders in which exposures of a visit can be is not listed."""
MAX_FOLDERS = 10
"""Folders of exposures that one look lists, the newest first; the next one lists others."""
AGAIN_S = 30.0
"""Pause before a folder of an exposure is listed again."""
ADVICE = "look at the notification topics of the bucket, which may be stuck, and at the bridge"
MAX_LOOKED = 5000
"""Folders of exposures that are remembered; a night has some 1000."""


@dataclass(slots=True)
class _Looked:
    """A folder of an exposure that was listed."""

    at: float
    image: RawName | None
    """One of its images; `None` if this node serves none of them."""


@dataclass(slots=True)
class _Found:
    """What was found below one root."""

    raws: int = 0
    last: float = 0.0
    """Monotonic seconds."""
    problem: str = ""
    """Why it cannot be listed, or blank."""


class StoreListing:
    """Lists stores for the raws that `late` returns, and calls `take` with what it finds.

    `known` returns whether a raw needs no listing. `remember_s` is for how long a found raw is a problem.
    """

    def __init__(
        self,
        roots: RawRoots,
        reader: ReaderProcess,
        exposures: ExposureFactsCache,
        late: Callable[[], Sequence[ExpectedRaws]],
        known: Callable[[RawName], bool],
        take: Callable[[Sighting], None],
        clock: Clock,
        counts: ErrorCounts,
        remember_s: float,
    ):
        self._roots = roots
        self._reader = reader
        self._exposures = exposures
        self._late = late
        self._known = known
        self._take = take
        self._clock = clock
        self._counts = counts
        self._remember_s = remember_s
        self._looked: OrderedDict[tuple[str, str], _Looked] = OrderedDict()
        self._found = {root.path: _Found() for root in roots.roots}

    def states(self) -> Iterator[tuple[str, bool, str]]:
        """Yield for each root the name of this source, whether all is well, and what to know."""
        for root in self._roots.roots:
            found = self._found[root.path]
            stuck = found.raws and self._clock.mono() - found.last <= self._remember_s
            text = f"{found.raws} raws were found by listing, and no notice of them has come: {ADVICE}"
            off = "" if _is_listed(root.layout) else "off: the layout has no prefix of a visit"
            yield _source(root), not stuck, text if stuck else found.problem or off

    async def run(self) -> None:
        """Look for late raws until canceled."""
        pauses = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S, jitter=random.random)
        while True:
            await asyncio.sleep(max(LOOK_S, pauses.remaining_s(self._clock.mono())))
            if not (late := self._late()):
                pauses.succeeded()
                continue
            if await self.look(late):
                pauses.succeeded()
            pauses.failed(self._clock.mono())

    async def look(self, late: Sequence[ExpectedRaws]) -> int:
        """List once; return how many raws were found."""
        tai = self._clock.tai()
        days = frozenset(day_obs(tai - age_s) for age_s in (0.0, self._remember_s))
        late = [replace(expected, days=days) for expected in late]
        found = 0
        for root in self._roots.roots:
            try:
                found += await self._look_below(root, late)
            except TimeoutError as error:
                self._found[root.path].problem = f"cannot be listed: {error}"
                self._counts.warn("listing", f"{root.path}: late raws cannot be looked for: {error}")
            else:
                self._found[root.path].problem = ""
        return found

    async def _look_below(self, root: RawRoot, late: Sequence[ExpectedRaws]) -> int:
        prefixes = dict.fromkeys(prefix for each in late for prefix in prefixes_of(root.layout, each))
        folders = [prefix.path for prefix in prefixes if not prefix.below]
        below: list[str] = []
        for prefix in prefixes:
            if prefix.below:
                names, _ = await self._list(root, prefix.path)
                below += (f"{prefix.path}/{name}" for name in names)
        admitted = [each for each in below if any(root.layout.admits(each, expected) for expected in late)]
        due = [each for each in sorted(admitted, reverse=True) if self._may_help(root, each, late)]
        found = 0
        for folder in folders + due[:MAX_FOLDERS]:
            found += await self._look_into(root, folder, late)
        return found

    def _may_help(self, root: RawRoot, folder: str, late: Sequence[ExpectedRaws]) -> bool:
        """Return whether a folder is to be listed: not if its exposure is known to be of another visit."""
        looked = self._looked.get((root.path, folder))
        if looked is None:
            return True
        facts = None if looked.image is None else self._exposures.cached(looked.image)
        return (facts is None or _are_of(facts, late)) and self._clock.mono() - looked.at >= AGAIN_S

    async def _look_into(self, root: RawRoot, folder: str, late: Sequence[ExpectedRaws]) -> int:
        """List a folder of an exposure, and take its files; return how many raws no notice has named."""
        _, files = await self._list(root, folder)
        sightings = [
            sighting
            for file in files
            if (sighting := self._sighting(root, f"{folder}/{file}")) is not None
            and any(expected.matches(sighting.name) for expected in late)
        ]
        images = [each for each in sightings if each.name.kind is RawFileKind.IMAGE]
        self._looked[root.path, folder] = _Looked(self._clock.mono(), images[0].name if images else None)
        if len(self._looked) > MAX_LOOKED:
            self._looked.popitem(last=False)
        if all(self._known(image.name) for image in images):
            return 0
        await asyncio.sleep(NOTICE_WAIT_S)
        missed = [image for image in images if not self._known(image.name)]
        if not missed or not await self._is_late(missed[0], late):
            return 0
        for sighting in [each for each in sightings if each.name.kind is not RawFileKind.IMAGE] + missed:
            self._take(sighting)
        found = self._found[root.path]
        found.raws, found.last = found.raws + len(missed), self._clock.mono()
        self._counts.warn(
            "listed",
            f"{root.path}/{folder}: {len(missed)} raws without a notice were found by listing: {ADVICE}",
        )
        return len(missed)

    async def _is_late(self, image: Sighting, late: Sequence[ExpectedRaws]) -> bool:
        """Return whether an exposure is of a visit that waits. The notices of others may have come before
        this node was started.
        """
        try:
            facts = await self._exposures.facts(image.name, image.file)
        except TimeoutError:  # it is read again when the image is taken
            return True
        return facts is not None and _are_of(facts, late)

    def _sighting(self, root: RawRoot, relative: str) -> Sighting | None:
        try:
            located = self._roots.locate(f"{root.announced}/{relative}")
        except BadMessage:
            return None
        return None if located is None else Sighting(_source(root), *located, confirmed=True)

    async def _list(self, root: RawRoot, folder: str) -> tuple[list[str], list[str]]:
        """Return the names of folders and objects in a folder; raises TimeoutError."""
        try:
            content = await self._reader.ask("list", escaped(f"{root.path}/{folder}/"))
        except (FileNotFoundError, BadMessage):
            return [], []
        return content.get("folders", []), content.get("files", [])


def _are_of(facts: ExposureFacts, late: Sequence[ExpectedRaws]) -> bool:
    return parent_group(facts.group) in {expected.group for expected in late}


def prefixes_of(layout: Layout, expected: ExpectedRaws) -> tuple[SearchFolder, ...]:
    """Return the folders to list for a visit: its own, or those in which the exposures of its days have
    theirs; none where a layout has no such folders.
    """
    found = layout.folders(expected) if _is_listed(layout) else ()
    few = len(found) <= MAX_PREFIXES and all(each.path and each.below <= 1 for each in found)
    return found if few else ()


def _is_listed(layout: Layout) -> bool:
    """Return whether a folder with files has those of one visit only, and of all detectors."""
    folders = frozenset().union(*layout.levels[:-1])
    return (layout.one_exposure_per_folder or "group" in folders) and folders.isdisjoint(
        ("detector", "raft", "slot")
    )


def _source(root: RawRoot) -> str:
    return f"list {root.path}"
