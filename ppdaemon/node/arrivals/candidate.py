# SPDX-License-Identifier: BSD-3-Clause
"""One raw that was sighted and is not delivered yet."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.files import is_regular, look_at
from ppdaemon.node.arrivals.patience import Look, Patience, Verdict
from ppdaemon.node.arrivals.tree import Place, Sighting
from ppdaemon.raws.path import sidecar_path

__all__ = ("Candidate", "Glance", "glance_at")

PLACES = 4
"""Paths under which the raw of one detector is looked for."""


@dataclass(frozen=True, slots=True)
class Glance:
    """What a look at a raw showed, and whether a sidecar is beside it."""

    look: Look
    has_sidecar: bool = False


class Candidate:
    """A raw whose completeness is waited for.

    Parameters
    ----------
    sighting : `~ppdaemon.node.arrivals.tree.Sighting`
        The first of it.
    mono, unix : `float`
        When: monotonic seconds, and seconds since 1970 UTC.
    """

    __slots__ = (
        "_awaited",
        "_begun",
        "_changed_unix",
        "_confirmed",
        "_patience",
        "_settled",
        "_sighted_unix",
        "name",
        "news",
        "places",
        "source",
        "timer",
    )

    def __init__(self, sighting: Sighting, mono: float, unix: float):
        self.name = sighting.name
        """What its path says (`~ppdaemon.raws.path.RawName`)."""
        self.source = sighting.source
        """Which source saw it first (`str`)."""
        self.places: list[Place] = [sighting.place]
        """Where it was seen (`list` [`~ppdaemon.node.arrivals.tree.Place`])."""
        self._settled = False
        self._awaited: asyncio.Event | None = None
        self._sighted_unix = unix
        self._confirmed = sighting.confirmed
        self._begun = sighting.begun
        self.news = False
        """Whether something was heard of it since the last look began
        (`bool`)."""
        self.timer: asyncio.TimerHandle | None = None
        """When the next look is due; `None` while one is on its way."""
        self._patience = Patience(mono)
        self._changed_unix = 0.0

    def sighted_again(self, sighting: Sighting, unix: float) -> bool:
        """Take another sighting, of this source or another one.

        Parameters
        ----------
        sighting : `~ppdaemon.node.arrivals.tree.Sighting`
            Of the same raw.
        unix : `float`
            When, seconds since 1970 UTC.

        Returns
        -------
        is_news : `bool`
            Whether it is a reason to look at the file now.
        """
        if sighting.place not in self.places and len(self.places) < PLACES:
            self.places.append(sighting.place)
        self._begun = self._begun or sighting.begun
        if sighting.confirmed:
            self._confirmed, self._sighted_unix = True, unix
            self.news = True
        return sighting.confirmed

    def try_next_place(self) -> None:
        """Look at another place first: where this one is does not answer."""
        self.places.append(self.places.pop(0))

    def expect_no_end(self) -> None:
        """Wait for nobody to tell that it is closed."""
        self._begun = False

    def begin_again(self, mono: float) -> None:
        """Forget what was seen of it: it may be another file by now.

        Parameters
        ----------
        mono : `float`
            Monotonic seconds.
        """
        self._patience = Patience(mono)

    def settle(self) -> None:
        """Say that it was delivered, or given up."""
        self._settled = True
        if self._awaited is not None:
            self._awaited.set()

    async def until_settled(self) -> None:
        """Wait until it was delivered, or given up."""
        if not self._settled:
            # Few are waited for, and this takes more than all the rest.
            self._awaited = self._awaited or asyncio.Event()
            await self._awaited.wait()

    @property
    def lag_s(self) -> float:
        """Seconds from the last change of the file to the sighting that told
        of it (`float`).
        """
        return max(0.0, self._sighted_unix - self._changed_unix)

    @property
    def changed_unix(self) -> float:
        """When the file was last seen to change (`float`)."""
        return self._changed_unix

    def next_look(self, *, same_clock: bool) -> Callable[[], Glance]:
        """Return what is to be called in a thread.

        Parameters
        ----------
        same_clock : `bool`
            Whether the file's time stamps are by the clock of this host.

        Returns
        -------
        look : `~collections.abc.Callable`
            For `glance_at`.
        """
        news, self.news = self.news, False
        places, patience, confirmed = tuple(self.places), self._patience, self._confirmed
        return lambda: _glance(places, patience, confirmed, news, same_clock)

    def judge(self, glance: Glance, mono: float) -> Verdict:
        """Decide after a look.

        Parameters
        ----------
        glance : `Glance`
            What was seen.
        mono : `float`
            Monotonic seconds.

        Returns
        -------
        verdict : `~ppdaemon.node.arrivals.patience.Verdict`
            What to do.
        """
        self._changed_unix = glance.look.changed_ns / 1e9
        return self._patience.judge(glance.look, self._confirmed, mono, begun=self._begun)


def glance_at(looks: Sequence[Callable[[], Glance]]) -> list[Glance | BadMessage]:
    """Look at several raws. Blocking.

    Parameters
    ----------
    looks : `~collections.abc.Sequence`
        From `Candidate.next_look`.

    Returns
    -------
    glances : `list` [`Glance` or `~ppdaemon.errors.BadMessage`]
        What was seen, or why a file is not to be opened; in their order.
    """
    found: list[Glance | BadMessage] = []
    for look in looks:
        try:
            found.append(look())
        except BadMessage as error:
            found.append(error)
    return found


def _glance(
    places: Sequence[Place], patience: Patience, confirmed: bool, news: bool, same_clock: bool
) -> Glance:
    look = look_at(places, patience, confirmed, news, same_clock=same_clock)
    if look.place is None or not look.read:
        return Glance(look)
    return Glance(look, is_regular(Place(look.place.root, sidecar_path(look.place.path))))
