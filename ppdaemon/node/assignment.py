# SPDX-License-Identifier: BSD-3-Clause
"""A visit-detector on its way through the node: facts, no decisions."""

from dataclasses import dataclass, replace
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
    raws: tuple[Raw, ...] = ()
    """Seen, in the order of arrival; one per exposure."""
    ingested: tuple[int, ...] = ()
    """Exposures in the worker's repo."""
    refused: tuple[int, ...] = ()
    """Exposures that cannot be used."""
    avoid: int | None = None
    """The seat of the attempt before."""
    no_return: str = ""
    """What the worker announced before the first irrevocable write."""

    @property
    def snaps(self) -> int | None:
        """How many exposures the visit has; `None` if nobody has said."""
        if self.visit.nimages:
            return self.visit.nimages
        return max((raw.snaps for raw in self.raws if raw.snaps), default=None)

    @property
    def settled(self) -> bool:
        """Whether every raw seen is ingested or refused."""
        return len(self.ingested) + len(self.refused) >= len(self.raws)

    @property
    def complete(self) -> bool:
        """Whether all raws of the visit are ingested or refused."""
        return self.settled and self.snaps is not None and len(self.raws) >= self.snaps

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

    def again(self, avoid: int | None) -> "Assignment":
        """Return the next attempt.

        Parameters
        ----------
        avoid : `int` or `None`
            The seat of this attempt.

        Returns
        -------
        assignment : `Assignment`
            Nothing seen, nothing ingested, nothing announced.
        """
        return replace(
            self,
            key=self.key._replace(attempt=self.key.attempt + 1),
            raws=(),
            ingested=(),
            refused=(),
            avoid=avoid,
            no_return="",
        )
