# SPDX-License-Identifier: BSD-3-Clause
"""Bounded indexes of recently delivered raws. Pure: the clock is an argument."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

from ppdaemon.messages import Raw
from ppdaemon.visit import parent_group

__all__ = ("ArrivalIndex", "ExpectedSensors", "Recent")

MAX_LISTED_VISITS = 1000
"""Visits whose lists of detectors are stored, as many as in a night; some 10 MB."""
MAX_LISTS = 32
"""Lists of one visit: one for each exposure, snaps and supplements included."""

type _VisitKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ExpectedSensors:
    """The detectors of an exposure whose raws will arrive, as the observatory listed them."""

    instrument: str
    group: str
    """As in the header: a supplement has a separate group."""
    exposure: int
    detectors: frozenset[int]
    """Only those that this node serves."""


class Recent[K: Hashable]:
    """Keys that were added within the last `remember_s` seconds, at most `max_keys`."""

    def __init__(self, remember_s: float, most: int):
        self._remember_s = remember_s
        self._most = most
        self._added: OrderedDict[K, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._added)

    def add(self, key: K, now: float) -> None:
        """Add a key, and remove expired keys."""
        self._added[key] = now
        self._added.move_to_end(key)
        while len(self._added) > self._most or now - next(iter(self._added.values())) > self._remember_s:
            self._added.popitem(last=False)

    def contains(self, key: K, now: float) -> bool:
        """Return whether a key was added and has not expired."""
        added = self._added.get(key)
        return added is not None and now - added <= self._remember_s


class _StoredRaw(NamedTuple):
    """One raw, without the values that all raws of its exposure share."""

    added: float
    seen_tai: float
    folder: str
    file: str
    sidecar: str | None
    """File name, or the full path if it is in another folder."""
    file_id: tuple[int, int, int, int] | str | None


class _ExposureKey(NamedTuple):
    """Values that all raws of an exposure share."""

    instrument: str
    exposure: int
    group: str
    snap: int | None
    snaps: int | None


@dataclass(slots=True)
class _Exposure:
    key: _ExposureKey
    added: float = 0.0
    """When the last raw was added, monotonic seconds."""
    raws: dict[int, _StoredRaw] = field(default_factory=dict)
    """By detector, in the order of arrival."""

    def add(self, raw: Raw, now: float) -> None:
        folder, _, file = raw.path.rpartition("/")
        first = next(iter(self.raws.values()), None)
        if first is not None and first.folder == folder:
            folder = first.folder  # one string for all: most of the memory of a raw is its path
        sidecar = raw.sidecar
        if sidecar is not None and sidecar.rpartition("/")[0] == folder:
            sidecar = sidecar.rpartition("/")[2]
        self.added = now
        self.raws[raw.detector] = _StoredRaw(now, raw.seen_tai, folder, file, sidecar, raw.file_id)

    def raw(self, detector: int) -> Raw:
        landed = self.raws[detector]
        sidecar = landed.sidecar
        if sidecar is not None and "/" not in sidecar:
            sidecar = f"{landed.folder}/{sidecar}"
        return Raw(
            path=f"{landed.folder}/{landed.file}",
            sidecar=sidecar,
            detector=detector,
            seen_tai=landed.seen_tai,
            file_id=landed.file_id,
            **self.key._asdict(),
        )


@dataclass(eq=False)
class ArrivalIndex:
    """Delivered raws by visit and detector, for visits announced after them.

    A raw of a supplement's group belongs to the visit of its parent group. A
    raw needs some 0.4 kB. The raws of an exposure expire `remember_s` after the
    last one; above `most` raws the oldest exposure is removed first.
    """

    remember_s: float
    mono: Callable[[], float]
    most: int = 100_000

    def __post_init__(self) -> None:
        self._count = 0
        self._exposures: OrderedDict[_ExposureKey, _Exposure] = OrderedDict()
        self._visits: dict[_VisitKey, dict[_ExposureKey, _Exposure]] = {}
        self._lists: OrderedDict[_VisitKey, tuple[float, list[ExpectedSensors]]] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def add(self, raw: Raw) -> bool:
        """Add a raw; return `False` if this file is already stored. Another file of the same exposure and
        detector replaces it.
        """
        now = self.mono()
        self._expire(now)
        key = _ExposureKey(raw.instrument, raw.exposure, raw.group, raw.snap, raw.snaps)
        exposure = self._exposures.get(key)
        if exposure is None:
            exposure = self._exposures[key] = _Exposure(key)
            self._visits.setdefault(_visit_key(raw.instrument, raw.group), {})[key] = exposure
        elif raw.detector in exposure.raws:
            if exposure.raw(raw.detector).is_same_file(raw):
                return False
            self._count -= 1
        exposure.add(raw, now)
        self._exposures.move_to_end(key)
        self._count += 1
        self._expire(now)
        return True

    def of(self, instrument: str, group: str, detector: int) -> list[Raw]:
        """Return the raws of a visit-detector, in the order of arrival."""
        self._expire(self.mono())
        exposures = self._visits.get(_visit_key(instrument, group), {}).values()
        found = [exposure for exposure in exposures if detector in exposure.raws]
        found.sort(key=lambda exposure: exposure.raws[detector].added)
        return [exposure.raw(detector) for exposure in found]

    def add_list(self, listed: ExpectedSensors) -> None:
        """Add the list of an exposure's detectors."""
        now = self.mono()
        visit = _visit_key(listed.instrument, listed.group)
        lists = [*self.lists_of(*visit), listed][-MAX_LISTS:]
        self._lists[visit] = (now, lists)
        self._lists.move_to_end(visit)
        while (
            len(self._lists) > MAX_LISTED_VISITS
            or now - next(iter(self._lists.values()))[0] > self.remember_s
        ):
            self._lists.popitem(last=False)

    def lists_of(self, instrument: str, group: str) -> list[ExpectedSensors]:
        """Return the lists of a visit's exposures, in the order of arrival."""
        _, lists = self._lists.get(_visit_key(instrument, group), (0.0, []))
        return lists

    def _expire(self, now: float) -> None:
        while self._exposures:
            exposure = next(iter(self._exposures.values()))
            if now - exposure.added > self.remember_s:
                self._count -= len(exposure.raws)
                self._forget(exposure)
            elif self._count > self.most:
                del exposure.raws[next(iter(exposure.raws))]
                self._count -= 1
                if not exposure.raws:
                    self._forget(exposure)
            else:
                return

    def _forget(self, exposure: _Exposure) -> None:
        del self._exposures[exposure.key]
        visit = _visit_key(exposure.key.instrument, exposure.key.group)
        del self._visits[visit][exposure.key]
        if not self._visits[visit]:
            del self._visits[visit]


def _visit_key(instrument: str, group: str) -> _VisitKey:
    return instrument, parent_group(group)
