# SPDX-License-Identifier: BSD-3-Clause
"""Makes the dimension records of an exposure from its header.

Records of visits are made by `ppdaemon.middleware.raws.visits`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import astropy.units as u
from lsst.daf.butler import DimensionRecord, DimensionUniverse, Timespan

from ppdaemon.middleware.raws.header import ExposureHeader

__all__ = ("exposure_records", "group_record", "make_record", "with_own_groups")

_SURROGATE = re.compile("[\ud800-\udfff]")


def group_record(universe: DimensionUniverse, instrument: str, group: str) -> DimensionRecord:
    """Make the record of a group."""
    return make_record(universe, "group", instrument=instrument, name=group)


def exposure_records(universe: DimensionUniverse, header: ExposureHeader) -> list[DimensionRecord]:
    """Make the records of day, group and exposure, in the order of insertion.

    They are those of ``lsst.obs.base.RawIngestTask``, except the group: see
    `with_own_groups`. Fields that the repo's dimensions do not have are left
    out.
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
    """Return records for a repo that other programs write to, too.

    In a worker's repo a supplement is an exposure of its visit's group. Here it
    has the group of its header, whose record is added.
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
    """Make a record; fields that this version of the dimensions does not have are left out.

    NaN is a missing value: SQLite stores it as NULL, and the Butler's synchronization then finds
    a conflict with the record that it has just inserted. So is a text that databases refuse where
    its column may be NULL.
    """
    kind = universe[element].RecordClass
    known = kind.fields.names
    return kind(**{name: _storable(value, kind, name) for name, value in fields.items() if name in known})


def _storable(value: Any, kind: type[DimensionRecord], name: str) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if not isinstance(value, str) or not kind.fields.standard[name].nullable:
        return value
    # The Butler limits texts of at most 32 characters only; other columns have no length.
    longest = getattr(kind.fields.standard[name].getSizedColumnType(), "length", None)
    too_long = longest is not None and len(value) > longest
    # PostgreSQL has no NUL in texts, UTF-8 no half of a surrogate pair; JSON has both.
    return None if too_long or "\0" in value or _SURROGATE.search(value) else value


def _value(quantity: u.Quantity | None, unit: u.Unit) -> float | None:
    return None if quantity is None else float(quantity.to_value(unit))
