# SPDX-License-Identifier: BSD-3-Clause
"""A visit-detector on its way through the node: facts, no decisions."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from ppdaemon.messages import Pipelines, Raw
from ppdaemon.visit import NextVisit

__all__ = ("Assignment", "Key")


class Key(NamedTuple):
    """What names one attempt at a visit-detector, everywhere."""

    instrument: str
    group: str
    detector: int
    attempt: int = 1

    def __str__(self) -> str:
        return f"{self.instrument} {self.group} detector {self.detector} attempt {self.attempt}"


@dataclass(frozen=True, slots=True)
class Assignment:
    """One accepted visit-detector, and what became of its raws so far."""

    key: Key
    visit: NextVisit
    pipelines: Pipelines
    no_image_at: float
    """Monotonic: without a raw until then, none will come."""
    pointless_at: float
    """Monotonic: not worth starting after this."""
    quiet_s: float = math.inf
    """When so long nothing came and nobody knows of more, that was all."""
    raws: tuple[Raw, ...] = ()
    """Seen, in the order of arrival; one per exposure."""
    came_at: float = -math.inf
    """Monotonic: when the last of them was seen."""
    lists: tuple[tuple[int, bool], ...] = ()
    """Exposures whose list of detectors came, and whether this one is on it."""
    ingested: tuple[int, ...] = ()
    """Exposures in the worker's repo."""
    refused: tuple[int, ...] = ()
    """Exposures that cannot be used, or are not what was announced."""
    remarks: tuple[str, ...] = ()
    """Why, in the same order."""
    avoid: int | None = None
    """The slot of the attempt before."""
    no_return: str = ""
    """What the worker announced before the first irrevocable write."""

    @property
    def snaps(self) -> int | None:
        """How many exposures the visit has, by its announcement or by their
        headers, whichever says more; `None` if nobody has said.
        """
        return max(self.visit.nimages, self._by_headers) or None

    @property
    def settled(self) -> bool:
        """Whether every raw seen is ingested or refused."""
        return len(self.ingested) + len(self.refused) >= len(self.raws)

    @property
    def all_came(self) -> bool:
        """Whether no further raw is to be expected.

        An exposure that was taken without this detector counts as one that
        came, unless the number was announced: a list is of its exposure, and
        others may follow. Where nobody has said a number, the lists have.
        """
        came = {raw.exposure for raw in self.raws}
        if self.visit.nimages:
            return len(came) >= max(self.visit.nimages, self._by_headers)
        came |= {exposure for exposure, included in self.lists if not included}
        if self._by_headers:
            return len(came) >= self._by_headers
        return bool(self.lists) and came.issuperset(exposure for exposure, _ in self.lists)

    @property
    def complete(self) -> bool:
        """Whether all raws of the visit are ingested or refused."""
        return self.settled and self.all_came

    @property
    def wait_until(self) -> float:
        """Monotonic: when a further raw is not waited for any more.

        What was announced, or is on a list, is waited for as long as an image
        may take; what nobody knows of, or a header only, as long as it is not
        quiet.
        """
        promised = any(included and not self.has(exposure) for exposure, included in self.lists)
        enough = self.visit.nimages or self._by_headers or 1
        if promised or self.all_came or len(self.raws) < enough:
            return self.no_image_at
        return min(self.no_image_at, self.came_at + self.quiet_s)

    @property
    def partial(self) -> bool:
        """Whether the pipeline runs on fewer or more exposures than said."""
        return len(self.ingested) != (self.snaps or len(self.ingested))

    def has(self, exposure: int) -> bool:
        """Tell whether a raw of this exposure was seen.

        Parameters
        ----------
        exposure : `int`
            Exposure id.

        Returns
        -------
        seen : `bool`
            Whether it was.
        """
        return any(raw.exposure == exposure for raw in self.raws)

    def with_remarks(self, reason: str) -> str:
        """Return the reason of an outcome, why exposures were left out, and
        what is contradictory about their number.

        Parameters
        ----------
        reason : `str`
            May be blank.

        Returns
        -------
        text : `str`
            Blank if there is nothing to tell.
        """
        announced, told = self.visit.nimages, self._by_headers
        differ = announced and told and announced != told
        contradiction = f"announced were {announced} images, their headers say {told}" if differ else ""
        return "; ".join(filter(None, (reason, *self.remarks, contradiction)))

    def again(self, avoid: int | None) -> "Assignment":
        """Return the next attempt.

        Parameters
        ----------
        avoid : `int` or `None`
            The slot of this attempt.

        Returns
        -------
        assignment : `Assignment`
            Nothing seen, nothing ingested, nothing announced.
        """
        key = self.key._replace(attempt=self.key.attempt + 1)
        times = self.no_image_at, self.pointless_at, self.quiet_s
        return Assignment(key, self.visit, self.pipelines, *times, avoid=avoid)

    @property
    def _by_headers(self) -> int:
        """What ``MAXINDEX`` says; 0 if it says nothing."""
        return max((raw.snaps for raw in self.raws if raw.snaps), default=0)
