# SPDX-License-Identifier: BSD-3-Clause
"""One visit-detector that the node has accepted, with the state of its raws. Holds data and
derives facts; decides nothing.
"""

import math
from typing import NamedTuple

from ppdaemon.messages import Pipelines, Raw
from ppdaemon.visit import NextVisit

__all__ = ("Assignment", "Key")


class Key(NamedTuple):
    """The identity of one attempt at a visit-detector, used in the journal, in messages and on disk."""

    instrument: str
    group: str
    detector: int
    attempt: int = 1

    def __str__(self) -> str:
        return f"{self.instrument} {self.group} detector {self.detector} attempt {self.attempt}"


class Assignment(NamedTuple):
    """One accepted visit-detector, and the state of its raws; a copy with a change takes 5 us."""

    key: Key
    visit: NextVisit
    pipelines: Pipelines
    image_deadline: float
    """Monotonic seconds: without a raw until then, the outcome is `no_image`."""
    expires_at: float
    """Monotonic seconds: the visit-detector is not started after this time."""
    quiet_s: float = math.inf
    """Where the number of exposures is unknown, the wait ends after this time without a new raw."""
    raws: tuple[Raw, ...] = ()
    """Raws that arrived, in order of arrival; one per exposure."""
    last_raw_at: float = -math.inf
    """Monotonic seconds: arrival of the last raw."""
    detector_lists: tuple[tuple[int, bool], ...] = ()
    """Exposures whose list of detectors arrived, and whether this detector is on the list."""
    ingested: tuple[int, ...] = ()
    """Exposures in the worker's repo."""
    refused: tuple[int, ...] = ()
    """Exposures that are unusable, or do not belong to the announced visit."""
    remarks: tuple[str, ...] = ()
    """The reason for each refused exposure, in the same order."""
    replaced: tuple[int, ...] = ()
    """Exposures whose file was replaced after the worker was ordered to ingest the former one."""
    pipeline: str = ""
    """Name of the pipeline that the worker has prepared; blank before that."""
    avoid: int | None = None
    """The slot of the previous attempt: another one is preferred."""
    at_door: str | None = None
    """What the worker waits for: a task that must not be repeated, or a blank, the completion of its
    spool; `None` if it does not wait."""
    no_return: str = ""
    """The task before which the worker was allowed to write what must not be repeated; blank before that."""
    may_spool: bool = False
    """Whether the worker was allowed to complete its spool; always with `no_return`."""
    run_until: float = -math.inf
    """Monotonic seconds: the time limit of the pipeline, once it runs."""

    @property
    def snaps(self) -> int | None:
        """The number of exposures: the larger of the announced number and the number in the
        headers; `None` if both are unknown.
        """
        return max(self.visit.nimages, self._snaps_by_headers) or None

    @property
    def has_run(self) -> bool:
        """Whether the worker was ordered to run the pipeline: before that it writes no spool."""
        return self.run_until > -math.inf

    @property
    def all_resolved(self) -> bool:
        """Whether every raw that arrived is ingested or refused."""
        return len(self.ingested) + len(self.refused) >= len(self.raws)

    @property
    def all_arrived(self) -> bool:
        """Whether no further raw is expected. An exposure that was taken without this detector
        counts as arrived, unless the number of exposures was announced: one list describes one
        exposure, and others may follow. Without an announced number and a number in the
        headers, the listed exposures are all that is expected.
        """
        arrived = {raw.exposure for raw in self.raws}
        if self.visit.nimages:
            return len(arrived) >= max(self.visit.nimages, self._snaps_by_headers)
        arrived |= {exposure for exposure, included in self.detector_lists if not included}
        if self._snaps_by_headers:
            return len(arrived) >= self._snaps_by_headers
        return bool(self.detector_lists) and arrived.issuperset(
            exposure for exposure, _ in self.detector_lists
        )

    @property
    def complete(self) -> bool:
        """Whether all raws of the visit are ingested or refused."""
        return self.all_resolved and self.all_arrived

    @property
    def wait_deadline(self) -> float:
        """Monotonic seconds: when the wait for further raws ends. Announced and listed exposures
        are waited for until the image deadline, and those in the headers where no number was
        announced; further ones only while raws keep arriving.
        """
        listed = any(included and not self.has(exposure) for exposure, included in self.detector_lists)
        enough = self.visit.nimages or self._snaps_by_headers or 1
        if listed or self.all_arrived or len(self.raws) < enough:
            return self.image_deadline
        return min(self.image_deadline, self.last_raw_at + self.quiet_s)

    @property
    def partial(self) -> bool:
        """Whether the pipeline runs on another number of exposures than expected."""
        return len(self.ingested) != (self.snaps or len(self.ingested))

    def has(self, exposure: int) -> bool:
        """Return whether a raw of this exposure arrived."""
        return any(raw.exposure == exposure for raw in self.raws)

    def with_other_file(self, raw: Raw) -> "Assignment":
        """Return the assignment with another file of an exposure, which is no longer refused."""
        raws = tuple(raw if each.exposure == raw.exposure else each for each in self.raws)
        refusals = [each for each in zip(self.refused, self.remarks, strict=True) if each[0] != raw.exposure]
        return self._replace(
            raws=raws,
            refused=tuple(exposure for exposure, _ in refusals),
            remarks=tuple(remark for _, remark in refusals),
        )

    def with_remarks(self, reason: str) -> str:
        """Return an outcome's reason, followed by the reasons for refused exposures and by a
        contradiction between announced and actual number of exposures.
        """
        announced, by_headers = self.visit.nimages, self._snaps_by_headers
        contradict = announced and by_headers and announced != by_headers
        contradiction = (
            f"{announced} images were announced, but MAXINDEX in the headers is {by_headers}"
            if contradict
            else ""
        )
        return "; ".join(filter(None, (reason, *self.remarks, contradiction)))

    def again(self, avoid: int | None) -> "Assignment":
        """Return the next attempt, which prefers another slot; raws, ingests, pipeline and point of no
        return start empty.
        """
        key = self.key._replace(attempt=self.key.attempt + 1)
        times = self.image_deadline, self.expires_at, self.quiet_s
        return Assignment(key, self.visit, self.pipelines, *times, avoid=avoid)

    @property
    def _snaps_by_headers(self) -> int:
        """The number of exposures by the header key ``MAXINDEX``; 0 if no header has it."""
        return max((raw.snaps for raw in self.raws if raw.snaps), default=0)
