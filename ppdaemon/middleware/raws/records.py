# SPDX-License-Identifier: BSD-3-Clause
"""Dimension records of one exposure: what its header says, in the registry's terms.

Visits are `ppdaemon.middleware.raws.visits`'.
"""

from typing import Any

import astropy.units as u
from lsst.daf.butler import DimensionRecord, DimensionUniverse, Timespan

from ppdaemon.middleware.raws.header import ExposureHeader

__all__ = ("exposure_records", "group_record", "make_record")


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
    return make_record(universe, "group", instrument=instrument, name=group)


def exposure_records(universe: DimensionUniverse, header: ExposureHeader) -> list[DimensionRecord]:
    """Make the records of day, group and exposure.

    Parameters
    ----------
    universe : `lsst.daf.butler.DimensionUniverse`
        Dimensions of the repo; fields that it does not have are left out.
    header : `~ppdaemon.middleware.raws.header.ExposureHeader`
        What the header says.

    Returns
    -------
    records : `list` [`lsst.daf.butler.DimensionRecord`]
        In the order of insertion; the exposure is the last one.
    """
    info = header.info
    ra, dec = header.boresight or (None, None)
    altaz = info.altaz_begin
    exposure = {
        "instrument": header.instrument,
        "id": header.exposure,
        "obs_id": header.obs_id,
        "group": header.group,
        "day_obs": header.day_obs,
        "physical_filter": header.physical_filter,
        "timespan": Timespan(header.begin, header.end),
        "exposure_time": _value(info.exposure_time, u.s),
        "dark_time": _value(info.dark_time, u.s),
        "observation_type": info.observation_type,
        "observation_reason": info.observation_reason,
        "science_program": info.science_program,
        "target_name": info.object,
        "seq_num": info.observation_counter,
        "seq_start": info.group_counter_start,
        "seq_end": info.group_counter_end,
        "tracking_ra": ra,
        "tracking_dec": dec,
        "sky_angle": None if ra is None else header.sky_angle,
        "azimuth": None if altaz is None else float(altaz.az.deg),
        "zenith_angle": None if altaz is None else float(altaz.zen.deg),
        "has_simulated": info.has_simulated_content,
        "can_see_sky": info.can_see_sky,
    }
    offset = 0 if info.observing_day_offset is None else round(info.observing_day_offset.to_value("s"))
    return [
        make_record(
            universe,
            "day_obs",
            instrument=header.instrument,
            id=header.day_obs,
            timespan=Timespan.from_day_obs(header.day_obs, offset=offset),
        ),
        group_record(universe, header.instrument, header.group),
        make_record(universe, "exposure", **exposure),
    ]


def make_record(universe: DimensionUniverse, element: str, **fields: Any) -> DimensionRecord:
    """Make a record of those fields that a universe knows.

    Parameters
    ----------
    universe : `lsst.daf.butler.DimensionUniverse`
        Dimensions of the repo, of any version.
    element : `str`
        What it is a record of.
    **fields
        Values; those of fields that this version does not have are left out.

    Returns
    -------
    record : `lsst.daf.butler.DimensionRecord`
        The record.
    """
    kind = universe[element].RecordClass
    known = kind.fields.names
    return kind(**{name: value for name, value in fields.items() if name in known})


def _value(quantity: u.Quantity | None, unit: u.Unit) -> float | None:
    return None if quantity is None else float(quantity.to_value(unit))
