# SPDX-License-Identifier: BSD-3-Clause
"""Visits: which exposures make one, and what the registry is told of it.

A visit's record is a function of its exposures' records, as it is in
``lsst.obs.base.DefineVisitsTask``. Each worker makes it of the exposures that
came to its own detector. Where a detector lacks a snap, its visit has the same
id nevertheless, and the central repo's record is that of all exposures that
came to any detector: see `ppdaemon.middleware.raws.insertion`.
"""

import cmath
import logging
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Any

from lsst.daf.butler import DimensionRecord, DimensionUniverse, Timespan
from lsst.sphgeom import ConvexPolygon

from ppdaemon.camera import Camera
from ppdaemon.middleware.raws.records import make_record
from ppdaemon.middleware.raws.regions import camera_region, detector_region
from ppdaemon.pointing import Pointing

__all__ = ("VisitSystem", "joined_visit", "visit_records")

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


def visit_records(
    universe: DimensionUniverse,
    exposures: Sequence[DimensionRecord],
    detector: int,
    *,
    grouped: bool,
    camera: Camera | None,
    announced: Pointing | None,
) -> list[DimensionRecord]:
    """Make the records of the visits of some exposures.

    Parameters
    ----------
    universe : `lsst.daf.butler.DimensionUniverse`
        Dimensions of the repo.
    exposures : `~collections.abc.Sequence` [`lsst.daf.butler.DimensionRecord`]
        Exposures of the sky, of one instrument and one group.
    detector : `int`
        Id of the detector that has them.
    grouped : `bool`
        Whether they are one visit, or each is one.
    camera : `~ppdaemon.camera.Camera` or `None`
        The focal-plane table, if there is one.
    announced : `~ppdaemon.pointing.Pointing` or `None`
        Where the visit was to look, for headers that do not say.

    Returns
    -------
    records : `list` [`lsst.daf.butler.DimensionRecord`]
        In the order of insertion; empty without exposures.
    """
    ordered = sorted(exposures, key=lambda exposure: int(exposure.id))
    if not grouped:
        sets = [([exposure], int(exposure.id)) for exposure in ordered]
    else:
        sets = [(ordered, min(map(_first_of_sequence, ordered)))] if ordered else []
    records: list[DimensionRecord] = []
    for members, visit in sets:
        keys = {"instrument": members[0].instrument, "visit": visit}
        region, own_region = _regions(members, detector, camera, announced)
        systems = _systems(members, grouped)
        records += [
            *(
                make_record(
                    universe,
                    "visit_system",
                    instrument=members[0].instrument,
                    id=system.value,
                    name=system.title,
                )
                for system in systems
            ),
            joined_visit(universe, visit, members, region),
            *(
                make_record(universe, "visit_system_membership", visit_system=system.value, **keys)
                for system in systems
            ),
            *(
                make_record(universe, "visit_definition", exposure=exposure.id, **keys)
                for exposure in members
            ),
        ]
        if own_region is not None:
            records.append(
                make_record(universe, "visit_detector_region", detector=detector, region=own_region, **keys)
            )
    return records


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


def _regions(
    members: Sequence[DimensionRecord], detector: int, camera: Camera | None, announced: Pointing | None
) -> tuple[ConvexPolygon | None, ConvexPolygon | None]:
    """Return the regions of camera and detector: where the first exposure looked that says so.

    The visit's own region covers the whole camera, so that it is the same for
    each detector.
    """
    places = [(each.tracking_ra, each.tracking_dec, each.sky_angle) for each in members]
    first, place = next(
        (found for found in zip(members, places, strict=True) if None not in found[1]),
        (members[0], places[0]),
    )
    pointing = announced if None in place else Pointing(*place)
    if None in place and announced is not None:
        _LOG.warning("exposure %s: no place on the sky in the header, taking the announced", first.id)
    if camera is None or pointing is None:
        _LOG.warning("exposure %s: the visit has no region", first.id)
        return None, None
    try:
        return camera_region(camera, pointing), detector_region(camera, detector, pointing)
    except LookupError as error:
        _LOG.warning("exposure %s: the visit's detector has no region: %s", first.id, error)
        return camera_region(camera, pointing), None


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
