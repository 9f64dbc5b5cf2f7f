# SPDX-License-Identifier: BSD-3-Clause
"""Dimension records of one exposure: what its header says, in the registry's terms."""

import logging
from typing import Any

import astropy.units as u
from lsst.daf.butler import Butler, DimensionRecord, DimensionUniverse, Timespan

from ppdaemon.camera import Camera
from ppdaemon.middleware.header import ExposureHeader
from ppdaemon.middleware.regions import Pointing, camera_region, detector_region

__all__ = ("exposure_records", "group_record", "header_pointing", "insert_records", "visit_records")

_LOG = logging.getLogger(__name__)

VISIT_SYSTEM = 0
"""The visit system in which each exposure is a visit."""
VISIT_SYSTEM_NAME = "one-to-one"


def group_record(universe: DimensionUniverse, instrument: str, group: str) -> DimensionRecord:
    """Make the record of a group.

    Parameters
    ----------
    universe : `lsst.daf.butler.DimensionUniverse`
        Dimensions of the repo.
    instrument, group : `str`
        Names.

    Returns
    -------
    record : `lsst.daf.butler.DimensionRecord`
        The record.
    """
    return _record(universe, "group", instrument=instrument, name=group)


def header_pointing(header: ExposureHeader) -> Pointing | None:
    """Return where an exposure looked, if its header says so.

    Parameters
    ----------
    header : `~ppdaemon.middleware.header.ExposureHeader`
        What the header says.

    Returns
    -------
    pointing : `Pointing` or `None`
        `None` where position or rotation is missing or not on the sky.
    """
    info = header.info
    angle = info.boresight_rotation_angle
    if info.tracking_radec is None or angle is None or info.boresight_rotation_coord != "sky":
        return None
    place = info.tracking_radec.icrs
    return Pointing(float(place.ra.deg), float(place.dec.deg), float(angle.deg))


def exposure_records(universe: DimensionUniverse, header: ExposureHeader) -> list[DimensionRecord]:
    """Make the records of day, group and exposure.

    Parameters
    ----------
    universe : `lsst.daf.butler.DimensionUniverse`
        Dimensions of the repo; fields that it does not have are left out.
    header : `~ppdaemon.middleware.header.ExposureHeader`
        What the header says.

    Returns
    -------
    records : `list` [`lsst.daf.butler.DimensionRecord`]
        In the order of insertion.
    """
    info = header.info
    pointing = header_pointing(header)
    place = None if info.tracking_radec is None else info.tracking_radec.icrs
    exposure = _common(header) | {
        "id": header.exposure,
        "obs_id": header.obs_id,
        "group": header.group,
        "dark_time": _value(info.dark_time, u.s),
        "observation_type": info.observation_type,
        "seq_start": info.group_counter_start,
        "seq_end": info.group_counter_end,
        "tracking_ra": None if place is None else float(place.ra.deg),
        "tracking_dec": None if place is None else float(place.dec.deg),
        "sky_angle": None if pointing is None else pointing.sky_angle_deg,
        "has_simulated": info.has_simulated_content,
        "can_see_sky": info.can_see_sky,
    }
    offset = 0 if info.observing_day_offset is None else round(info.observing_day_offset.to_value("s"))
    return [
        _record(
            universe,
            "day_obs",
            instrument=header.instrument,
            id=header.day_obs,
            timespan=Timespan.from_day_obs(header.day_obs, offset=offset),
        ),
        group_record(universe, header.instrument, header.group),
        _record(universe, "exposure", **exposure),
    ]


def visit_records(
    universe: DimensionUniverse, header: ExposureHeader, camera: Camera | None, announced: Pointing | None
) -> list[DimensionRecord]:
    """Make the records of a visit: one per exposure that saw the sky.

    Parameters
    ----------
    universe : `lsst.daf.butler.DimensionUniverse`
        Dimensions of the repo.
    header : `~ppdaemon.middleware.header.ExposureHeader`
        What the header says.
    camera : `~ppdaemon.camera.Camera` or `None`
        The focal-plane table, if there is one.
    announced : `Pointing` or `None`
        Where the visit was to look, for headers that do not say.

    Returns
    -------
    records : `list` [`lsst.daf.butler.DimensionRecord`]
        In the order of insertion; empty for exposures not of the sky.

    Notes
    -----
    The visit's own region covers the whole camera, so that the records which
    each detector's worker makes of one visit are the same.
    """
    if header.info.observation_type != "science" or header.info.can_see_sky is False:
        return []
    pointing = header_pointing(header)
    if pointing is None and announced is not None:
        _LOG.warning("exposure %s: no place on the sky in the header, taking the announced", header.exposure)
        pointing = announced
    visit: dict[str, Any] = _common(header) | {"id": header.exposure, "name": header.obs_id}
    keys = {"instrument": header.instrument, "visit": header.exposure}
    regions: list[DimensionRecord] = []
    if camera is None or pointing is None:
        _LOG.warning("exposure %s: the visit has no region", header.exposure)
    else:
        visit["region"] = camera_region(camera, pointing)
        region = detector_region(camera, header.detector, pointing)
        regions = [
            _record(universe, "visit_detector_region", detector=header.detector, region=region, **keys)
        ]
    return [
        _record(
            universe, "visit_system", instrument=header.instrument, id=VISIT_SYSTEM, name=VISIT_SYSTEM_NAME
        ),
        _record(universe, "visit", **visit),
        _record(universe, "visit_definition", exposure=header.exposure, **keys),
        _record(universe, "visit_system_membership", visit_system=VISIT_SYSTEM, **keys),
        *regions,
    ]


def insert_records(butler: Butler, records: list[DimensionRecord]) -> None:
    """Insert records that may be there already, in one transaction.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The repo.
    records : `list` [`lsst.daf.butler.DimensionRecord`]
        Any records; the order does not matter.
    """
    by_element: dict[str, list[DimensionRecord]] = {}
    for record in records:
        by_element.setdefault(record.definition.name, []).append(record)
    with butler.transaction():
        for element in butler.dimensions.sorted(by_element):
            butler.registry.insertDimensionData(element, *by_element[element.name], skip_existing=True)


def _common(header: ExposureHeader) -> dict[str, Any]:
    """Return the fields that exposure and visit have in common."""
    info = header.info
    altaz = info.altaz_begin
    return {
        "instrument": header.instrument,
        "physical_filter": header.physical_filter,
        "day_obs": header.day_obs,
        "seq_num": info.observation_counter,
        "exposure_time": _value(info.exposure_time, u.s),
        "target_name": info.object,
        "observation_reason": info.observation_reason,
        "science_program": info.science_program,
        "azimuth": None if altaz is None else float(altaz.az.deg),
        "zenith_angle": None if altaz is None else float(altaz.zen.deg),
        "timespan": Timespan(header.begin, header.end),
    }


def _value(quantity: u.Quantity | None, unit: u.Unit) -> float | None:
    return None if quantity is None else float(quantity.to_value(unit))


def _record(universe: DimensionUniverse, element: str, **fields: Any) -> DimensionRecord:
    """Make a record of those fields that this universe knows."""
    kind = universe[element].RecordClass
    known = kind.fields.names
    return kind(**{name: value for name, value in fields.items() if name in known})
