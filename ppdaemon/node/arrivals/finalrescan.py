# SPDX-License-Identifier: BSD-3-Clause
"""The final rescan of one raw root for one visit: delivers raws, and finds why others are not taken."""

import asyncio
import os
from collections.abc import Sequence
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
from ppdaemon.node.arrivals.walk import RawSearch, WalkTime
from ppdaemon.raws.path import ExpectedRaws, RawName
from ppdaemon.visit import parent_group

__all__ = ("FinalRescan",)


@dataclass(eq=False)
class FinalRescan:
    """Lists the folders that can contain raws of a visit; without the group in the paths, those of
    exposures that have changed since `since_unix`.
    """

    expected: ExpectedRaws
    since_unix: float
    search: RawSearch
    threads: FileThreads
    exposures: ExposureFactsCache
    completion: RawCompletion
    clock: Clock
    long_ago_mono: float
    """When the wait for a late sidecar is to have begun, so that it is over."""
    _listed: bool = False
    """Whether the search has ended; else its thread still uses it."""
    _taken: list[tuple[Sighting, PendingRaw | None]] = field(default_factory=list)
    _others: list[tuple[Sighting, ExposureFacts | None]] = field(default_factory=list)
    """Images without a group or of another one."""

    async def deliver(self) -> None:
        """Deliver the complete raws of the visit, also those that were delivered before."""
        sightings = await self.threads.run(
            self.search.rescan, self.expected, self.since_unix, WalkTime.by(self.clock)
        )
        self._listed = True
        exposures: dict[int, list[Sighting]] = {}
        for sighting in sightings:
            exposures.setdefault(sighting.name.exposure, []).append(sighting)
        await asyncio.gather(*map(self._deliver_exposure, exposures.values()))

    async def not_taken(self) -> list[FileNotTaken]:
        """Return the files that were not delivered; empty if each expected detector has a raw."""
        files = [file for each in self._taken if (file := self._unfinished(*each)) is not None]
        delivered = {sighting.name.detector for sighting, _ in self._taken} - {
            file.detector for file in files
        }
        if None in delivered or self.expected.detectors <= delivered:  # one file may hold all detectors
            return []
        if not self._listed:
            return files
        files += [_of_other_group(sighting, facts) for sighting, facts in self._others]
        # A folder with 400 files takes 10 ms, and there are those of 25 exposures.
        others = {
            os.path.dirname(sighting.file.path) for sighting, facts in self._others if facts is not None
        }
        strange = await self.threads.run(self.search.strange_files, self.expected, self.since_unix, others)
        of_visit: dict[int, bool] = {}
        for each in strange:
            if each.near is not None and each.near[0].exposure not in of_visit:
                of_visit[each.near[0].exposure] = await self._may_be_of_visit(*each.near)
            if each.near is None or of_visit[each.near[0].exposure]:
                files.append(FileNotTaken(each.path, each.reason, each.detector))
        return files

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
            facts = await self.exposures.facts(sighting.name, sighting.file, self.long_ago_mono)
            if facts is not None:
                return facts
        return None

    async def _may_be_of_visit(self, name: RawName, image: RawPath) -> bool:
        facts = await self.exposures.facts(name, image, self.long_ago_mono)
        return facts is None or parent_group(facts.group) == self.expected.group

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
            case Raw(group=group) if parent_group(group) != self.expected.group:
                return FileNotTaken(path, f"its own header has the group {group}", detector, group)
            case Raw():
                return None
        return FileNotTaken(path, pending.problem, detector)


def _of_other_group(sighting: Sighting, facts: ExposureFacts | None) -> FileNotTaken:
    path, detector = sighting.file.path, sighting.name.detector
    if facts is None:
        return FileNotTaken(path, "no group in sidecar or header", detector)
    return FileNotTaken(path, f"it has the group {facts.group}", detector, facts.group)
