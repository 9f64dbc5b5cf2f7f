# SPDX-License-Identifier: BSD-3-Clause
"""Which group an exposure belongs to: one read serves all its detectors.

All detectors of an exposure share OBSID and GROUPID. The first sidecar or,
where none comes in time, the first FITS header that can be read tells.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.files import ExposureFacts, facts_of_image, facts_of_sidecar
from ppdaemon.node.arrivals.pool import FilePool
from ppdaemon.node.arrivals.tally import Tally
from ppdaemon.node.arrivals.tree import Place
from ppdaemon.rawpath import RawName, sidecar_path

__all__ = ("Exposures",)

type _Key = tuple[str, int]

MOST = 5000
"""Exposures remembered; a night has some 1000."""


@dataclass(slots=True)
class _Exposure:
    facts: ExposureFacts | None = None
    known: asyncio.Event = field(default_factory=asyncio.Event)
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    def learn(self, facts: ExposureFacts) -> None:
        self.facts = facts
        self.known.set()


class Exposures:
    """Reads and remembers what the headers of exposures say.

    Parameters
    ----------
    pool : `~ppdaemon.node.arrivals.pool.FilePool`
        Where files are read.
    sidecar_wait_s : `float`
        How long a late sidecar is waited for.
    mono : `~collections.abc.Callable`
        Monotonic clock, seconds.
    tally : `~ppdaemon.node.arrivals.tally.Tally`
        Counts what cannot be read.
    """

    def __init__(self, pool: FilePool, sidecar_wait_s: float, mono: Callable[[], float], tally: Tally):
        self._pool = pool
        self._sidecar_wait_s = sidecar_wait_s
        self._mono = mono
        self._tally = tally
        self._exposures: OrderedDict[_Key, _Exposure] = OrderedDict()

    def unknown(self, name: RawName) -> bool:
        """Tell whether a sidecar of this exposure would say something new."""
        return name.group is None and self._exposure(name).facts is None

    async def learn_from(self, name: RawName, sidecar: Place) -> None:
        """Read a sidecar that was met by itself.

        Parameters
        ----------
        name : `~ppdaemon.rawpath.RawName`
            What its path says.
        sidecar : `Place`
            Where it is.
        """
        exposure = self._exposure(name)
        async with exposure.reading:
            try:
                await self._read(exposure, facts_of_sidecar, sidecar)
            except (OSError, BadMessage):
                # It may be half written: the image, or the next sidecar, tells.
                self._tally.count("sidecar_unread")

    async def facts(self, name: RawName, image: Place) -> ExposureFacts | None:
        """Return what the exposure's headers say.

        Parameters
        ----------
        name : `~ppdaemon.rawpath.RawName`
            What the path of an image says.
        image : `Place`
            A complete image.

        Returns
        -------
        facts : `ExposureFacts` or `None`
            `None` if neither path nor sidecar nor header name a group.
        """
        exposure = self._exposure(name)
        sidecar = Place(image.root, sidecar_path(image.path))
        deadline = self._mono() + self._sidecar_wait_s
        late = not await self._try(exposure, facts_of_sidecar, sidecar, "bad_sidecar")
        if late and exposure.facts is None and name.group is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(exposure.known.wait(), deadline - self._mono())
            await self._try(exposure, facts_of_sidecar, sidecar, "bad_sidecar")
        await self._try(exposure, facts_of_image, image, "bad_header")
        if name.group is None:
            return exposure.facts
        said = exposure.facts or ExposureFacts(name.group, name.snap)
        return replace(said, group=name.group)

    async def _try(
        self, exposure: _Exposure, read: Callable[[Place], ExposureFacts], place: Place, kind: str
    ) -> bool:
        """Read a file unless the exposure is known; `False` if it is not there."""
        async with exposure.reading:
            try:
                await self._read(exposure, read, place)
            except FileNotFoundError:
                return False
            except (OSError, BadMessage) as error:
                self._tally.complain(kind, f"{place.path}: {error}")
        return True

    async def _read(self, exposure: _Exposure, read: Callable[[Place], ExposureFacts], place: Place) -> None:
        if exposure.facts is None:
            exposure.learn(await self._pool.run(read, place))

    def _exposure(self, name: RawName) -> _Exposure:
        key = (name.instrument, name.exposure)
        exposure = self._exposures.setdefault(key, _Exposure())
        self._exposures.move_to_end(key)
        if len(self._exposures) > MOST:
            self._exposures.popitem(last=False)
        return exposure
