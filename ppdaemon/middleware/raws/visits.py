# SPDX-License-Identifier: BSD-3-Clause
"""Visits: which exposures make one, and what the registry is told of it.

A visit's record is a function of its exposures' records, as it is in
``lsst.obs.base.DefineVisitsTask``. Each worker makes it of the exposures that
came to its own detector. Where a detector lacks a snap, its visit has the same
id nevertheless, and the central repo's record is that of all exposures that
came to any detector: see `insert_records`.
"""

import cmath
import logging
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from lsst.daf.butler import Butler, DimensionRecord, DimensionUniverse, Timespan
from lsst.pipe.base import Instrument
from lsst.sphgeom import ConvexPolygon

from ppdaemon.camera import Camera
from ppdaemon.middleware.raws.header import ExposureHeader
from ppdaemon.middleware.raws.records import exposure_records, make_record
from ppdaemon.middleware.raws.regions import Footprint, camera_region, detector_region
from ppdaemon.pointing import Pointing
from ppdaemon.visit import NextVisit

__all__ = ("AnnouncedVisit", "VisitSystem", "fuller", "insert_records", "joined_visit")

_LOG = logging.getLogger(__name__)


class VisitSystem(IntEnum):
    """How exposures are joined to visits; numbers and names are those of
    ``lsst.obs.base``.
    """

    ONE_TO_ONE = 0
    BY_SEQ_START_END = 2

    @property
    def title(self) -> str:
        """Name in the registry (`str`)."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class AnnouncedVisit:
    """One detector of an announced visit, and the repo that its worker has for it."""

    butler: Butler
    instrument: Instrument
    visit: NextVisit
    detector: int
    footprint: Footprint
    camera: Camera | None
    """The focal-plane table, if there is one."""
    grouped: bool
    """Whether a group's exposures are one visit."""

    def visit_records(self, exposures: Iterable[DimensionRecord]) -> list[DimensionRecord]:
        """Make the records of the visits of some exposures.

        Parameters
        ----------
        exposures : `~collections.abc.Iterable` [`lsst.daf.butler.DimensionRecord`]
            Exposures of the sky, of one instrument and one group.

        Returns
        -------
        records : `list` [`lsst.daf.butler.DimensionRecord`]
            In the order of insertion; empty without exposures.
        """
        ordered = sorted(exposures, key=lambda exposure: int(exposure.id))
        if not self.grouped:
            sets = [([exposure], int(exposure.id)) for exposure in ordered]
        else:
            sets = [(ordered, min(map(_first_of_sequence, ordered)))] if ordered else []
        return [record for members, visit in sets for record in self._records(members, visit)]

    def visits_seen(self, headers: Iterable[ExposureHeader]) -> list[DimensionRecord]:
        """Make the records of the visits of exposures, of those that have one."""
        universe = self.butler.dimensions
        return self.visit_records(
            exposure_records(universe, header)[-1] for header in headers if header.has_visit
        )

    def _records(self, members: Sequence[DimensionRecord], visit: int) -> Iterator[DimensionRecord]:
        """Make the records of one visit."""
        universe, instrument = self.butler.dimensions, members[0].instrument
        keys = {"instrument": instrument, "visit": visit}
        region, own_region = self._regions(next(filter(_tells_place, members), members[0]))
        yield joined_visit(universe, visit, members, region)
        for system in _systems(members, self.grouped):
            named = {"id": system.value, "name": system.title}
            yield make_record(universe, "visit_system", instrument=instrument, **named)
            yield make_record(universe, "visit_system_membership", visit_system=system.value, **keys)
        for exposure in members:
            yield make_record(universe, "visit_definition", exposure=exposure.id, **keys)
        if own_region is not None:
            own = {"detector": self.detector, "region": own_region}
            yield make_record(universe, "visit_detector_region", **own, **keys)

    def _regions(self, first: DimensionRecord) -> tuple[ConvexPolygon | None, ConvexPolygon | None]:
        """Return the regions of camera and detector: where the first exposure looked that tells it.

        The visit's own region covers the whole camera, so that it is the same
        for each detector.
        """
        place = (first.tracking_ra, first.tracking_dec, first.sky_angle)
        announced = self.footprint.pointing
        pointing = announced if None in place else Pointing(*place)
        if None in place and announced is not None:
            _LOG.warning("exposure %s: no place on the sky in the header, taking the announced", first.id)
        if self.camera is None or pointing is None:
            _LOG.warning("exposure %s: the visit has no region", first.id)
            return None, None
        whole = camera_region(self.camera, pointing)
        try:
            return whole, detector_region(self.camera, self.detector, pointing)
        except LookupError as error:
            _LOG.warning("exposure %s: the visit's detector has no region: %s", first.id, error)
            return whole, None


def joined_visit(
    universe: DimensionUniverse,
    visit: int,
    exposures: Iterable[DimensionRecord],
    region: ConvexPolygon | None,
) -> DimensionRecord:
    """Make a visit's record of those of its exposures.

    Parameters
    ----------
    universe : `lsst.daf.butler.DimensionUniverse`
        Dimensions of the repo.
    visit : `int`
        The visit's id.
    exposures : `~collections.abc.Iterable` [`lsst.daf.butler.DimensionRecord`]
        Its exposures, at least one.
    region : `lsst.sphgeom.ConvexPolygon` or `None`
        Where the camera looked.

    Returns
    -------
    record : `lsst.daf.butler.DimensionRecord`
        Named after the first exposure, with ``_rest`` where the visit began
        with an earlier one. Times are added up, angles averaged; what
        exposures differ in is left blank, but for a reason, which is
        "various" then. These rules are those of ``DefineVisitsTask``, which
        compares what it makes with what is there, to the last bit.
    """
    ordered = sorted(exposures, key=lambda exposure: int(exposure.id))

    def each(name: str) -> list[Any]:
        return [getattr(exposure, name) for exposure in ordered]

    spans, reason = each("timespan"), _common(each("observation_reason"))
    first = ordered[0]
    return make_record(
        universe,
        "visit",
        instrument=first.instrument,
        id=visit,
        # Names are unique, and the exposure's own may be that of another visit.
        name=first.obs_id if first.id == visit else f"{first.obs_id}_rest",
        day_obs=min(each("day_obs")),
        seq_num=_reduced(min, each("seq_num")),
        physical_filter=_common(each("physical_filter")),
        exposure_time=_reduced(operator.add, each("exposure_time")),
        target_name=_common(each("target_name")),
        science_program=_common(each("science_program")),
        observation_reason="various" if reason is None else reason,
        azimuth=_mean_angle(each("azimuth")),
        zenith_angle=_mean(each("zenith_angle")),
        timespan=Timespan(min(span.begin for span in spans), max(span.end for span in spans)),
        region=region,
    )


def insert_records(butler: Butler, records: Iterable[DimensionRecord]) -> None:
    """Insert records that may be there already, in one transaction.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The repo.
    records : `~collections.abc.Iterable` [`lsst.daf.butler.DimensionRecord`]
        Any records; the order does not matter.

    Notes
    -----
    What is there stays as it is, with two exceptions. The result does not
    depend on who came first.

    One detector's header may lack what another's has, such as the pointing: the
    fuller record of an exposure or visit takes the other's place.

    Of a visit of several snaps two detectors may have different ones, since a
    raw can be lost; each of their workers makes a visit of what it has. Its
    definitions add up here, and then the visit's record is made anew of all its
    exposures.
    """
    by_element: dict[str, list[DimensionRecord]] = {}
    for record in records:
        by_element.setdefault(record.definition.name, []).append(record)
    with butler.transaction():
        for element in butler.dimensions.sorted(by_element):
            butler.registry.insertDimensionData(element, *by_element[element.name], skip_existing=True)
        for name in ("exposure", "visit"):
            for record in by_element.get(name, ()):
                (stored,) = butler.query_dimension_records(name, data_id=record.dataId)
                if fuller(stored, record) is record:
                    butler.registry.syncDimensionData(name, record, update=True)
        grouped = {
            record.visit
            for record in by_element.get("visit_system_membership", ())
            if record.visit_system == VisitSystem.BY_SEQ_START_END
        }
        for visit in by_element.get("visit", ()):
            if visit.id in grouped:
                _join(butler, visit)


def fuller(one: DimensionRecord, other: DimensionRecord) -> DimensionRecord:
    """Return the record that tells more; the first, if both tell the same."""
    told = [sum(value is not None for value in record.toDict().values()) for record in (one, other)]
    return other if told[1] > told[0] else one


def _join(butler: Butler, visit: DimensionRecord) -> None:
    """Make a visit's record that of all exposures that belong to it now."""
    place = {"instrument": visit.instrument, "visit": visit.id}
    exposures = butler.query_dimension_records("exposure", data_id=place, explain=False)
    (stored,) = butler.query_dimension_records("visit", data_id=place)
    whole = joined_visit(butler.dimensions, visit.id, exposures, stored.region or visit.region)
    butler.registry.syncDimensionData("visit", whole, update=True)


def _tells_place(exposure: DimensionRecord) -> bool:
    return None not in (exposure.tracking_ra, exposure.tracking_dec, exposure.sky_angle)


def _systems(members: Sequence[DimensionRecord], grouped: bool) -> tuple[VisitSystem, ...]:
    """Return the systems that a visit belongs to: of a sequence of one exposure it belongs to both."""
    if not grouped:
        return (VisitSystem.ONE_TO_ONE,)
    single = len(members) == 1 and members[0].seq_start == members[0].seq_end
    return tuple(VisitSystem) if single else (VisitSystem.BY_SEQ_START_END,)


def _first_of_sequence(exposure: DimensionRecord) -> int:
    """Return the id of the exposure that begins a sequence, which need not have come.

    Ids count on with the sequence number within a day.
    """
    start, number = exposure.seq_start, exposure.seq_num
    known = start is not None and number is not None and 0 < start <= number
    return int(exposure.id) - (number - start if known else 0)


def _reduced(rule: Callable[[Any, Any], Any], values: Sequence[Any]) -> Any:
    """Reduce values to one, to `None` if one of them is."""
    if None in values:
        return None
    result = None
    for value in values:
        # Where a rule gives None in between, it begins anew with the next.
        result = value if result is None else rule(result, value)
    return result


def _common(values: Sequence[Any]) -> Any:
    return _reduced(lambda one, other: one if one == other else None, values)


def _mean(values: Sequence[float | None]) -> float | None:
    total: float | None = _reduced(operator.add, values)
    return None if total is None else total / len(values)


def _mean_angle(values: Sequence[float | None]) -> float | None:
    """Return the mean direction of angles, degrees, from -180 to 180; of one it is that one."""
    angles = [value for value in values if value is not None]
    if len(values) == 1 or len(angles) < len(values):
        return values[0] if len(values) == 1 else None
    total = sum(cmath.rect(1.0, math.radians(angle)) for angle in angles)
    return math.degrees(cmath.phase(total / len(angles)))
