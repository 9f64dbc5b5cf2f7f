# SPDX-License-Identifier: BSD-3-Clause
"""The final rescan of one raw root for one visit: delivers raws, and finds why others are not taken."""

import asyncio
import os
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field

from ppdaemon.clock import Clock
from ppdaemon.messages import Raw
from ppdaemon.node.arrivals.completion import RawCompletion, until_concluded
from ppdaemon.node.arrivals.exposurefacts import ExposureFactsCache
from ppdaemon.node.arrivals.files import ExposureFacts
from ppdaemon.node.arrivals.nottaken import FileNotTaken
from ppdaemon.node.arrivals.pending import Abandon, PendingRaw
from ppdaemon.node.arrivals.roots import RawPath, Sighting
from ppdaemon.node.arrivals.threads import FileThreads
from ppdaemon.node.arrivals.unrecognized import UnrecognizedFiles
from ppdaemon.node.arrivals.walk import RawSearch, WalkTime
from ppdaemon.raws.path import ExpectedRaws, RawName
from ppdaemon.visit import parent_group

__all__ = ("RESCAN_S", "FinalRescan")


RESCAN_S = 1.5
"""Time limit of a final rescan: a worker slot is occupied meanwhile."""
REASONS_S = 0.3
"""Time for finding why files are not taken; with `RESCAN_S` less than the 2 s that a slot waits."""


@dataclass(eq=False)
class FinalRescan:
    """Lists the folders that can contain raws of a visit; without the group in the paths, those of
    exposures that have changed since `since_unix`.
    """

    expected: ExpectedRaws
    since_unix: float
    search: RawSearch
    unrecognized: UnrecognizedFiles
    threads: FileThreads
    exposures: ExposureFactsCache
    completion: RawCompletion
    clock: Clock
    sidecar_wait_since_mono: float
    """When the wait for a late sidecar counts as begun: so early that it is over."""
    not_taken: list[FileNotTaken] = field(default_factory=list)
    """Files that were not delivered, those found so far; empty if each expected detector has a raw."""
    _listed: bool = False
    """Whether the search has ended; else its thread still uses it."""
    _taken: list[tuple[Sighting, PendingRaw | None]] = field(default_factory=list)
    _others: list[tuple[Sighting, ExposureFacts | None]] = field(default_factory=list)
    """Images without a group or of another one."""

    async def run(self) -> bool:
        """Deliver the complete raws of the visit, also those that were delivered before, in at most
        `RESCAN_S`, and find in `REASONS_S` why other files are not taken; return whether the first has
        ended in time.
        """
        in_time = await _ends_within(RESCAN_S, self._deliver())
        await _ends_within(REASONS_S, self._find_reasons())
        return in_time

    async def _deliver(self) -> None:
        sightings = await self.threads.run(
            self.search.rescan, self.expected, self.since_unix, WalkTime.by(self.clock)
        )
        self._listed = True
        exposures: dict[int, list[Sighting]] = {}
        for sighting in sightings:
            exposures.setdefault(sighting.name.exposure, []).append(sighting)
        await asyncio.gather(*map(self._deliver_exposure, exposures.values()))

    async def _find_reasons(self) -> None:
        """Add the files that were not taken: first those that need no I/O, then folder by folder, so
        that a time-out loses only the rest.
        """
        files = [file for each in self._taken if (file := self._unfinished(*each)) is not None]
        delivered = {sighting.name.detector for sighting, _ in self._taken} - {
            file.detector for file in files
        }
        if None in delivered or self.expected.detectors <= delivered:  # one file may hold all detectors
            return
        self.not_taken += files
        if not self._listed:
            return
        self.not_taken += [_of_other_group(sighting, facts) for sighting, facts in self._others]
        if self.search.problem:
            folder, _, why = self.search.problem.rpartition(": ")
            self.not_taken.append(FileNotTaken(folder, f"cannot be listed: {why}"))
        # A folder with 400 files takes 10 ms, and there are those of 25 exposures: those with images of
        # other visits are skipped, unless exposures share a folder.
        skipped: set[str] = set()
        if self.unrecognized.root.layout.one_exposure_per_folder:
            skipped = {os.path.dirname(each.file.path) for each, facts in self._others if facts is not None}
        of_visit: dict[int, bool] = {}
        for folder in self.search.folders_of_files:
            if folder not in skipped:
                for each in await self.threads.run(self.unrecognized.in_folder, folder):
                    if each.image is None or await self._may_be_of_visit(*each.image, of_visit):
                        self.not_taken.append(FileNotTaken(each.path, each.reason, each.detector))

    async def _deliver_exposure(self, sightings: Sequence[Sighting]) -> None:
        facts = await self._find_facts(sightings)
        if facts is None or parent_group(facts.group) != self.expected.group:
            self._others += [(sighting, facts) for sighting in sightings]
            return
        taken = [(sighting, self.completion.take(sighting, again=True)) for sighting in sightings]
        self._taken += taken
        await asyncio.gather(*(until_concluded(pending) for _, pending in taken if pending is not None))

    async def _find_facts(self, sightings: Sequence[Sighting]) -> ExposureFacts | None:
        """Read the raws of an exposure one by one until one has the group; wait for no late sidecar."""
        for sighting in sightings:
            facts = await self.exposures.facts(sighting.name, sighting.file, self.sidecar_wait_since_mono)
            if facts is not None:
                return facts
        return None

    async def _may_be_of_visit(self, name: RawName, image: RawPath, of_visit: dict[int, bool]) -> bool:
        """Return whether an exposure may be of the visit; `of_visit` has those that were read before."""
        if name.exposure not in of_visit:
            facts = await self.exposures.facts(name, image, self.sidecar_wait_since_mono)
            of_visit[name.exposure] = facts is None or parent_group(facts.group) == self.expected.group
        return of_visit[name.exposure]

    def _unfinished(self, sighting: Sighting, pending: PendingRaw | None) -> FileNotTaken | None:
        """Return why a raw of the visit was not delivered to it; `None` if it was."""
        path, detector = sighting.file.path, sighting.name.detector
        if pending is None:
            return FileNotTaken(path, "too many raws are being checked", detector)
        match pending.end:
            case Abandon(reason=reason):
                # The path is named already.
                return FileNotTaken(
                    path, reason.removeprefix(f"{path}: ").removeprefix(f"{path!r} "), detector
                )
            case [Raw(group=group), *_] if parent_group(group) != self.expected.group:
                return FileNotTaken(path, f"its own header has the group {group}", detector, group)
            case [*_]:
                return None
        return FileNotTaken(path, pending.problem, detector)


async def _ends_within(limit_s: float, work: Awaitable[None]) -> bool:
    """Wait for work; return `False` if it was stopped at the limit, or the filesystem hangs."""
    try:
        async with asyncio.timeout(limit_s):
            await work
    except TimeoutError:
        return False
    return True


def _of_other_group(sighting: Sighting, facts: ExposureFacts | None) -> FileNotTaken:
    path, detector = sighting.file.path, sighting.name.detector
    if facts is None:
        return FileNotTaken(path, "no group in sidecar or header", detector)
    return FileNotTaken(path, f"it has the group {facts.group}", detector, facts.group)
