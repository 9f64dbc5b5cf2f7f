# SPDX-License-Identifier: BSD-3-Clause
"""What landed lately: bounded memories of raws. Pure, the clock is an argument."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

from ppdaemon.messages import Raw
from ppdaemon.visit import parent_group

__all__ = ("ArrivalIndex", "Recent")

type _VisitKey = tuple[str, str, int]
type _RawKey = tuple[str, int, int]


class Recent[K: Hashable]:
    """Keys met within the last while, and not more than so many.

    Parameters
    ----------
    remember_s : `float`
        How long a key is known after `add`.
    most : `int`
        The oldest are forgotten above this number.
    """

    def __init__(self, remember_s: float, most: int):
        self._remember_s = remember_s
        self._most = most
        self._added: OrderedDict[K, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._added)

    def add(self, key: K, now: float) -> None:
        """Remember a key from now on; forget those whose time is over."""
        self._added[key] = now
        self._added.move_to_end(key)
        while len(self._added) > self._most or now - next(iter(self._added.values())) > self._remember_s:
            self._added.popitem(last=False)

    def knows(self, key: K, now: float) -> bool:
        """Tell whether a key was added and its time is not over."""
        added = self._added.get(key)
        return added is not None and now - added <= self._remember_s


class ArrivalIndex:
    """Delivered raws by visit and detector, for visits announced after them.

    A raw of a supplement's group belongs to the visit of its parent group.

    Parameters
    ----------
    remember_s : `float`
        How long a raw is kept.
    mono : `~collections.abc.Callable`
        Monotonic clock, seconds.
    most : `int`
        Raws kept at the most; the oldest are forgotten first.
    """

    def __init__(self, remember_s: float, mono: Callable[[], float], most: int = 100_000):
        self._remember_s = remember_s
        self._mono = mono
        self._most = most
        self._raws: OrderedDict[_RawKey, tuple[float, Raw]] = OrderedDict()
        self._visits: dict[_VisitKey, list[_RawKey]] = {}

    def __len__(self) -> int:
        return len(self._raws)

    def add(self, raw: Raw) -> bool:
        """Remember a raw.

        Parameters
        ----------
        raw : `~ppdaemon.messages.Raw`
            A complete raw.

        Returns
        -------
        new : `bool`
            `False` if this exposure of the detector is already here.
        """
        now = self._mono()
        self._expire(now)
        key = (raw.instrument, raw.exposure, raw.detector)
        if key in self._raws:
            return False
        self._raws[key] = (now, raw)
        self._visits.setdefault(_visit_key(raw.instrument, raw.group, raw.detector), []).append(key)
        self._expire(now)
        return True

    def of(self, instrument: str, group: str, detector: int) -> list[Raw]:
        """Return what landed of a visit-detector.

        Parameters
        ----------
        instrument, group : `str`
            The visit.
        detector : `int`
            The detector.

        Returns
        -------
        raws : `list` [`~ppdaemon.messages.Raw`]
            In the order of arrival; empty if there are none.
        """
        self._expire(self._mono())
        keys = self._visits.get(_visit_key(instrument, group, detector), ())
        return [self._raws[key][1] for key in keys]

    def _expire(self, now: float) -> None:
        while self._raws:
            key, (added, raw) = next(iter(self._raws.items()))
            if len(self._raws) <= self._most and now - added <= self._remember_s:
                return
            del self._raws[key]
            visit = _visit_key(raw.instrument, raw.group, raw.detector)
            self._visits[visit].remove(key)
            if not self._visits[visit]:
                del self._visits[visit]


def _visit_key(instrument: str, group: str, detector: int) -> _VisitKey:
    return instrument, parent_group(group), detector
