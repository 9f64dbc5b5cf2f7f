# SPDX-License-Identifier: BSD-3-Clause
"""What is known of a detector's exposures, before they are taken or when they are here."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler, DataCoordinate, DatasetRef, DatasetType, DimensionRecord
from lsst.utils.introspection import get_full_type_name

from ppdaemon.middleware.direct.dataids import DataIds
from ppdaemon.middleware.direct.files import DatasetFile
from ppdaemon.middleware.direct.shape import Shape

__all__ = ("Exposures", "lasting_records", "raw_files")

_LASTING = ("instrument", "detector", "physical_filter", "band", "visit_system")
_SKY = ("skymap", "tract", "patch")


@dataclass(frozen=True, slots=True)
class Exposures:
    """A detector's exposures, as they are announced or as they came."""

    instrument: str
    detector: int
    ids: tuple[int, ...]
    records: tuple[DimensionRecord, ...]
    """Of days, groups, exposures and visits."""
    run: str
    """Where raws belong."""
    formatter: Callable[[DataCoordinate], Any]
    """Returns what reads a raw."""
    files: Mapping[int, Path] = field(default_factory=dict)
    """The raws; none before they came."""
    context: Mapping[str, str] = field(default_factory=dict)
    """What log records tell of the visit."""


def raw_files(raw_type: DatasetType, exposures: Exposures, data_ids: DataIds) -> Iterator[DatasetFile]:
    """Return the raws as datasets.

    Parameters
    ----------
    raw_type : `lsst.daf.butler.DatasetType`
        The type of raws.
    exposures : `Exposures`
        The exposures.
    data_ids : `~ppdaemon.middleware.direct.dataids.DataIds`
        With their records.

    Yields
    ------
    file : `~ppdaemon.middleware.direct.files.DatasetFile`
        Without a path that exists, if the exposure is only expected.
    """
    universe = raw_type.dimensions.universe
    dimensions = universe.conform(("instrument", "exposure", "detector"))
    for row in data_ids.rows(dimensions, exposures.instrument, exposures.detector, exposures.ids):
        data_id = data_ids.of(raw_type.dimensions, row)
        ref = DatasetRef(raw_type, data_id, run=exposures.run)
        formatter = exposures.formatter(data_id)
        path = exposures.files.get(row["exposure"], Path("/"))
        yield DatasetFile(path, get_full_type_name(formatter), ref)


def lasting_records(butler: Butler, shape: Shape) -> tuple[DimensionRecord, ...]:
    """Return the records that the exposure has no part in.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The worker's repo.
    shape : `~ppdaemon.middleware.direct.shape.Shape`
        The pipeline: tells whether places on the sky are needed.

    Returns
    -------
    records : `tuple` [`lsst.daf.butler.DimensionRecord`]
        Of instrument, detectors, filters and patches.
    """
    names = {name for part in shape.parts for name in part.dimensions.names}
    return tuple(
        record
        for element in (*_LASTING, *_SKY)
        if element in _LASTING or element in names
        for record in butler.query_dimension_records(element, explain=False, limit=None)
    )
