# SPDX-License-Identifier: BSD-3-Clause
"""Dimension records of one exposure: what its header says, in the registry's terms.

Visits are `ppdaemon.middleware.raws.visits`'.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import astropy.units as u
from lsst.daf.butler import DimensionRecord, DimensionUniverse, Timespan

from ppdaemon.middleware.raws.header import ExposureHeader

__all__ = ("exposure_records", "group_record", "make_record", "with_own_groups")


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

    Notes
    -----
    All is as ``lsst.obs.base.RawIngestTask`` makes it, but for the group: see
    `with_own_groups`.
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
        "exposure_time": _value(info.exposure_time_requested, u.s),
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
    offset = info.observing_day_offset
    day = None if offset is None else Timespan.from_day_obs(header.day_obs, round(offset.to_value("s")))
    return [
        make_record(universe, "day_obs", instrument=header.instrument, id=header.day_obs, timespan=day),
        group_record(universe, header.instrument, header.group),
        make_record(universe, "exposure", **exposure),
    ]


def with_own_groups(
    records: Iterable[DimensionRecord], headers: Mapping[int, ExposureHeader]
) -> list[DimensionRecord]:
    """Return records as a repo takes them that others write into, too.

    Parameters
    ----------
    records : `~collections.abc.Iterable` [`lsst.daf.butler.DimensionRecord`]
        Of a worker's repo, where a supplement is an exposure of its visit's
        group.
    headers : `~collections.abc.Mapping` [`int`, `ExposureHeader`]
        Of the exposures.

    Returns
    -------
    records : `list` [`lsst.daf.butler.DimensionRecord`]
        With the supplements in the groups of their headers, and these groups.
    """
    found = []
    for record in records:
        header = headers.get(record.id) if record.definition.name == "exposure" else None
        own = None if header is None else header.info.exposure_group
        if own is not None and own != record.group:
            found.append(group_record(record.definition.universe, record.instrument, own))
            record = type(record)(**record.toDict() | {"group": own})
        found.append(record)
    return found


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
