# SPDX-License-Identifier: BSD-3-Clause
"""Defines visits: which exposures belong to one, and its dimension records.

A visit's record is a function of its exposures' records, as in
``lsst.obs.base.DefineVisitsTask``. Each worker makes it from the exposures that
arrived for its detector. If a detector lacks a snap, its visit has the same id
nevertheless, and the record in the central repo is that of the exposures that
arrived for any detector: see `insert_records`.
"""

import cmath
import logging
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from lsst.daf.butler import (
    Butler,
    DataCoordinate,
    DimensionRecord,
    DimensionUniverse,
    Timespan,
)
from lsst.daf.butler.registry import DataIdError
from lsst.pipe.base import Instrument
from lsst.sphgeom import ConvexPolygon
from sqlalchemy.exc import IntegrityError

from ppdaemon.camera import Camera
from ppdaemon.middleware.raws.header import ExposureHeader
from ppdaemon.middleware.raws.records import exposure_records, make_record
from ppdaemon.middleware.raws.regions import Footprint, camera_region, detector_region
from ppdaemon.pointing import Pointing
from ppdaemon.visit import NextVisit

__all__ = ("AnnouncedVisit", "VisitSystem", "completed", "insert_records", "joined_visit")

_LOG = logging.getLogger(__name__)


class VisitSystem(IntEnum):
    """How exposures are combined to visits; numbers and names are those of
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
    """One detector of an announced visit."""

    universe: DimensionUniverse
    """Of the repo that gets the records."""
    instrument: Instrument
    visit: NextVisit
    detector: int
    footprint: Footprint
    camera: Camera | None
    """The focal-plane table, if there is one."""
    grouped: bool
    """Whether the exposures of a group are one visit."""

    def visit_records(self, exposures: Iterable[DimensionRecord]) -> list[DimensionRecord]:
        """Make the records of the visits of exposures of the sky, of one instrument and group, in the
        order of insertion.
        """
        ordered = sorted(exposures, key=lambda exposure: int(exposure.id))
        if not self.grouped:
            sets = [([exposure], int(exposure.id)) for exposure in ordered]
        else:
            sets = [(ordered, min(map(_first_of_sequence, ordered)))] if ordered else []
        return [record for members, visit in sets for record in self._records(members, visit)]

    def visits_seen(self, headers: Iterable[ExposureHeader]) -> list[DimensionRecord]:
        """Make the records of the visits of those exposures that have one."""
        universe = self.universe
        return self.visit_records(
            exposure_records(universe, header)[-1] for header in headers if header.has_visit
        )

    def _records(self, members: Sequence[DimensionRecord], visit: int) -> Iterator[DimensionRecord]:
        """Make the records of one visit."""
        universe, instrument = self.universe, members[0].instrument
        keys = {"instrument": instrument, "visit": visit}
        region, own_region = self._regions(next(filter(_has_pointing, members), members[0]))
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
        """Return the regions of camera and detector at the pointing of an exposure."""
        recorded = (first.tracking_ra, first.tracking_dec, first.sky_angle)
        announced = self.footprint.pointing
        pointing = announced if None in recorded else Pointing(*recorded)
        if None in recorded and announced is not None:
            _LOG.warning(
                "exposure %s: no pointing in the header, using the announced pointing for the visit's region",
                first.id,
            )
        if self.camera is None or pointing is None:
            why = "no focal-plane table" if self.camera is None else "no pointing in header and announcement"
            _LOG.warning("exposure %s: the visit is recorded without a region: %s", first.id, why)
            return None, None
        # The visit's region covers the whole camera, so that all detectors make the same record.
        visit_region = camera_region(self.camera, pointing)
        try:
            return visit_region, detector_region(self.camera, self.detector, pointing)
        except LookupError as error:
            _LOG.warning(
                "exposure %s: detector %d is recorded without a region: %s", first.id, self.detector, error
            )
            return visit_region, None


def joined_visit(
    universe: DimensionUniverse,
    visit: int,
    exposures: Iterable[DimensionRecord],
    region: ConvexPolygon | None,
) -> DimensionRecord:
    """Make a visit's record from those of its exposures, of which there is at least one.

    It is named after the first exposure, with ``_rest`` if an earlier exposure
    of the visit is missing. Times are summed, angles averaged; a value that
    differs between exposures is left blank, a differing reason is "various".
    These are the rules of ``lsst.obs.base.DefineVisitsTask``, which compares
    its record with the existing one to the last bit.
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
        # Names must be unique, and another visit may be named after the first exposure.
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
    """Insert records that may exist already, in any order, in one transaction.

    Existing records do not change, with two exceptions. The result does not
    depend on the order in which workers and hosts insert.

    * The header of one detector may lack a value, such as the pointing, that
      another one has: of two records of an exposure or visit, the values of
      the more complete one are stored, and those that only the other has.
    * Two detectors may have different snaps of a visit, because a raw can be
      lost. Each worker defines the visit with the snaps that it has. The
      definitions of all workers are kept here, and the visit's record is made
      again from all exposures of the visit.
    """
    by_element: dict[str, list[DimensionRecord]] = {}
    for record in records:
        by_element.setdefault(record.definition.name, []).append(record)
    if not by_element:
        return
    with butler.transaction():
        existing: dict[str, list[DimensionRecord]] = {}
        """Records that existed already, perhaps with other values."""
        for element in butler.dimensions.sorted(by_element):
            name, of_element = element.name, by_element[element.name]
            if name != "visit_detector_region" or not _insert_new(butler, name, of_element):
                butler.registry.insertDimensionData(element, *of_element, skip_existing=True)
                existing[name] = of_element
        for name in ("exposure", "visit"):
            for record in existing.pop(name, ()):
                stored = _stored(butler, record)
                if stored != record:
                    existing.setdefault(name, []).append(record)
                if (merged := completed(stored, record)) != stored:
                    butler.registry.syncDimensionData(name, merged, update=True)
        for name in ("visit", "visit_detector_region"):
            _remove_stray_overlaps(butler, existing.get(name, ()))
        grouped = {
            record.visit
            for record in by_element.get("visit_system_membership", ())
            if record.visit_system == VisitSystem.BY_SEQ_START_END
        }
        for visit in by_element.get("visit", ()):
            if visit.id in grouped:
                _update_visit(butler, visit)


def _stored(butler: Butler, record: DimensionRecord) -> DimensionRecord:
    """Return the record that the registry has instead of this one."""
    name = record.definition.name
    try:
        # Without a query of the general kind, which takes some milliseconds to build.
        found = butler.registry.expandDataId(dict(record.dataId.required)).records[name]
    except DataIdError:  # its filter was registered after the registry had read all filters
        (found,) = butler.query_dimension_records(name, data_id=record.dataId)
    assert found is not None  # it was inserted, or was there
    return found


def _insert_new(butler: Butler, name: str, records: Sequence[DimensionRecord]) -> bool:
    """Insert records if none of them exists; return whether it did. A query for those that exist, of all
    detectors of a visit, takes half as long as to insert them, and most are new.
    """
    try:
        with butler.registry.transaction(savepoint=True):
            butler.registry.insertDimensionData(name, *records)
    except IntegrityError:
        return False
    return True


def completed(one: DimensionRecord, other: DimensionRecord) -> DimensionRecord:
    """Return the record with more values, with those of the other where it has none; the first of equals."""
    values = [record.toDict() for record in (one, other)]
    more, less = sorted(values, key=lambda each: sum(value is None for value in each.values()))
    return type(one)(**{name: less[name] if value is None else value for name, value in more.items()})


def _remove_stray_overlaps(butler: Butler, records: Iterable[DimensionRecord]) -> None:
    """Remove the sky pixels of regions that were not stored, because their records existed already.

    The insert has added them to those of the stored regions, so that the
    visits would be found in places where they are not. This comes after the
    insert: that waits for other hosts which insert the same records.
    """
    by_visit: dict[DataCoordinate, dict[DataCoordinate, DimensionRecord]] = {}
    group = butler.dimensions.conform(("instrument", "visit"))
    for record in records:
        visit = record.dataId.subset(group)
        by_visit.setdefault(visit, {})[record.dataId] = record
    for visit, inserted in by_visit.items():
        name = next(iter(inserted.values())).definition.name
        for stored in butler.query_dimension_records(name, data_id=visit):
            if stored.dataId in inserted and stored.region != inserted[stored.dataId].region:
                # Deletes all pixels of the record and computes them again.
                butler.registry.insertDimensionData(name, stored, replace=True)


def _update_visit(butler: Butler, visit: DimensionRecord) -> None:
    """Replace a visit's record by that of all exposures that now belong to the visit."""
    data_id = {"instrument": visit.instrument, "visit": visit.id}
    exposures = butler.query_dimension_records("exposure", data_id=data_id, explain=False)
    (stored,) = butler.query_dimension_records("visit", data_id=data_id)
    joined = joined_visit(butler.dimensions, visit.id, exposures, stored.region or visit.region)
    butler.registry.syncDimensionData("visit", joined, update=True)


def _has_pointing(exposure: DimensionRecord) -> bool:
    return None not in (exposure.tracking_ra, exposure.tracking_dec, exposure.sky_angle)


def _systems(members: Sequence[DimensionRecord], grouped: bool) -> tuple[VisitSystem, ...]:
    """Return the systems of a visit: both, if it is the only exposure of its sequence."""
    if not grouped:
        return (VisitSystem.ONE_TO_ONE,)
    single = len(members) == 1 and members[0].seq_start == members[0].seq_end
    return tuple(VisitSystem) if single else (VisitSystem.BY_SEQ_START_END,)


def _first_of_sequence(exposure: DimensionRecord) -> int:
    """Return the id of the first exposure of a sequence, which may be missing."""
    # Within a day, ids increase with the sequence number.
    start, number = exposure.seq_start, exposure.seq_num
    known = start is not None and number is not None and 0 < start <= number
    return int(exposure.id) - (number - start if known else 0)


def _reduced(rule: Callable[[Any, Any], Any], values: Sequence[Any]) -> Any:
    """Reduce values to one; to `None` if one of them is `None`."""
    if None in values:
        return None
    result = None
    for value in values:
        # After a None in between, the rule starts again with the next value, as
        # in obs_base.
        result = value if result is None else rule(result, value)
    return result


def _common(values: Sequence[Any]) -> Any:
    return _reduced(lambda one, other: one if one == other else None, values)


def _mean(values: Sequence[float | None]) -> float | None:
    total: float | None = _reduced(operator.add, values)
    return None if total is None else total / len(values)


def _mean_angle(values: Sequence[float | None]) -> float | None:
    """Return the mean direction of angles in degrees, from -180 to 180; one angle is unchanged."""
    angles = [value for value in values if value is not None]
    if len(values) == 1 or len(angles) < len(values):
        return values[0] if len(values) == 1 else None
    total = sum(cmath.rect(1.0, math.radians(angle)) for angle in angles)
    return math.degrees(cmath.phase(total / len(angles)))
