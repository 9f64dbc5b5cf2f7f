# SPDX-License-Identifier: BSD-3-Clause
"""The exposures of a detector: as announced, or as they arrived."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lsst.daf.butler import Butler, DatasetRef, DatasetType, DimensionGroup, DimensionRecord
from lsst.utils.introspection import get_full_type_name

from ppdaemon.middleware.butler.datafiles import LocatedFile
from ppdaemon.middleware.direct.dataids import DataIds, Row
from ppdaemon.middleware.direct.shape import PipelineShape
from ppdaemon.middleware.raws.ingest import VisitRaws
from ppdaemon.middleware.raws.records import group_record, make_record
from ppdaemon.middleware.raws.visits import AnnouncedVisit

__all__ = (
    "MAX_EXPECTED",
    "DetectorExposures",
    "arrived_exposures",
    "expected_exposures",
    "static_records",
    "raw_files",
)

_STATIC = ("instrument", "detector", "physical_filter", "band", "visit_system")
_SKY_ELEMENTS = ("skymap", "tract", "patch")


MAX_EXPECTED = 50
"""Exposures of a visit that are prepared for at the most: an announcement can
contain any number."""


@dataclass(frozen=True, slots=True)
class DetectorExposures:
    """The exposures of a detector, announced or arrived; their records are not in the repo."""

    announced: AnnouncedVisit
    ids: tuple[int, ...]
    records: tuple[DimensionRecord, ...]
    """Of days, groups, exposures and visits."""
    files: Mapping[int, Path] = field(default_factory=dict)
    """The raws by exposure; empty before they arrive."""

    @property
    def run(self) -> str:
        """Collection of the raws (`str`)."""
        return str(self.announced.instrument.makeDefaultRawIngestRunName())

    def rows(self, data_ids: DataIds, dimensions: DimensionGroup) -> Iterator[Row]:
        """Return their rows; see `~ppdaemon.middleware.direct.dataids.DataIds.rows`."""
        return data_ids.rows(
            dimensions, self.announced.instrument.getName(), self.announced.detector, self.ids
        )


def arrived_exposures(raws: VisitRaws) -> DetectorExposures:
    """Return the exposures for which visits were defined."""
    return DetectorExposures(raws.announced, raws.exposures, tuple(raws.records), dict(raws.files))


def expected_exposures(announced: AnnouncedVisit) -> DetectorExposures:
    """Return the announced exposures as if they had arrived.

    They have the first of the announced filters and ids that no exposure has.
    There are never more than `MAX_EXPECTED`.
    """
    universe, footprint, pointing = (
        announced.butler.dimensions,
        announced.footprint,
        announced.footprint.pointing,
    )
    name, group, day = announced.instrument.getName(), announced.visit.group, footprint.day_obs
    ids = tuple(range(1, min(max(announced.visit.nimages, 1), MAX_EXPECTED) + 1))
    likely = _likely_filter(announced.butler, name, announced.visit.filter_names)
    exposures = [
        make_record(
            universe,
            "exposure",
            instrument=name,
            id=exposure,
            obs_id=str(exposure),
            group=group,
            day_obs=day,
            physical_filter=likely,
            timespan=footprint.exposure,
            seq_num=exposure,
            seq_start=1,
            seq_end=ids[-1],
            tracking_ra=None if pointing is None else pointing.ra_deg,
            tracking_dec=None if pointing is None else pointing.dec_deg,
            sky_angle=None if pointing is None else pointing.sky_angle_deg,
        )
        for exposure in ids
    ]
    records = (
        make_record(universe, "day_obs", instrument=name, id=day, timespan=None),
        group_record(universe, name, group),
        *exposures,
        *announced.visit_records(exposures),
    )
    return DetectorExposures(announced, ids, records)


def _likely_filter(butler: Butler, instrument: str, names: Iterable[str]) -> str:
    """Return the first announced filter that the instrument has, else any of its filters, else ""."""
    records = butler.query_dimension_records("physical_filter", instrument=instrument, explain=False)
    available = sorted(str(record.name) for record in records)
    return next((name for name in (*names, *available) if name in available), "")


def raw_files(
    raw_type: DatasetType, exposures: DetectorExposures, data_ids: DataIds
) -> Iterator[LocatedFile]:
    """Yield the raws as datasets; the path of an exposure that is only expected does not exist."""
    universe = raw_type.dimensions.universe
    dimensions = universe.conform(("instrument", "exposure", "detector"))
    for row in exposures.rows(data_ids, dimensions):
        data_id = data_ids.of(raw_type.dimensions, row)
        ref = DatasetRef(raw_type, data_id, run=exposures.run)
        formatter = exposures.announced.instrument.getRawFormatter(data_id)
        path = exposures.files.get(row["exposure"], Path("/"))
        yield LocatedFile(path, get_full_type_name(formatter), (ref,))


def static_records(butler: Butler, shape: PipelineShape) -> tuple[DimensionRecord, ...]:
    """Return the records of instrument, detectors and filters, and of patches if the pipeline needs them."""
    names = {name for subgraph in shape.subgraphs for name in subgraph.dimensions.names}
    return tuple(
        record
        for element in (*_STATIC, *_SKY_ELEMENTS)
        if element in _STATIC or element in names
        for record in butler.query_dimension_records(element, explain=False, limit=None)
    )
