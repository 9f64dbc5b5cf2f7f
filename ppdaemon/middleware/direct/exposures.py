# SPDX-License-Identifier: BSD-3-Clause
"""What is known of a detector's exposures, before they are taken or when they are here."""

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
    "MOST_EXPECTED",
    "DetectorExposures",
    "arrived_exposures",
    "expected_exposures",
    "exposure_independent_records",
    "raw_files",
)

_EXPOSURE_INDEPENDENT = ("instrument", "detector", "physical_filter", "band", "visit_system")
_SKY_ELEMENTS = ("skymap", "tract", "patch")


MOST_EXPECTED = 50
"""Images that are prepared for: an announcement can tell any number."""


@dataclass(frozen=True, slots=True)
class DetectorExposures:
    """A detector's exposures, as they are announced or as they came; not in the repo."""

    announced: AnnouncedVisit
    ids: tuple[int, ...]
    records: tuple[DimensionRecord, ...]
    """Of days, groups, exposures and visits."""
    files: Mapping[int, Path] = field(default_factory=dict)
    """The raws; none before they came."""

    @property
    def run(self) -> str:
        """Where raws belong (`str`)."""
        return str(self.announced.instrument.makeDefaultRawIngestRunName())

    def rows(self, data_ids: DataIds, dimensions: DimensionGroup) -> Iterator[Row]:
        """Return their rows; see `~ppdaemon.middleware.direct.dataids.DataIds.rows`."""
        return data_ids.rows(
            dimensions, self.announced.instrument.getName(), self.announced.detector, self.ids
        )


def arrived_exposures(raws: VisitRaws) -> DetectorExposures:
    """Return the exposures of which visits were defined."""
    return DetectorExposures(raws.announced, raws.exposures, tuple(raws.records), dict(raws.files))


def expected_exposures(announced: AnnouncedVisit) -> DetectorExposures:
    """Return what was announced, as if it had come.

    It has the first of the announced filters, ids that no exposure has, and
    never more than `MOST_EXPECTED` exposures.
    """
    universe, footprint, pointing = (
        announced.butler.dimensions,
        announced.footprint,
        announced.footprint.pointing,
    )
    name, group, day = announced.instrument.getName(), announced.visit.group, footprint.day_obs
    ids = tuple(range(1, min(max(announced.visit.nimages, 1), MOST_EXPECTED) + 1))
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
    """Return the first announced filter that the instrument has, or else any; blank if it has none."""
    records = butler.query_dimension_records("physical_filter", instrument=instrument, explain=False)
    available = sorted(str(record.name) for record in records)
    return next((name for name in (*names, *available) if name in available), "")


def raw_files(
    raw_type: DatasetType, exposures: DetectorExposures, data_ids: DataIds
) -> Iterator[LocatedFile]:
    """Return the raws as datasets.

    Parameters
    ----------
    raw_type : `lsst.daf.butler.DatasetType`
        The type of raws.
    exposures : `DetectorExposures`
        The exposures.
    data_ids : `~ppdaemon.middleware.direct.dataids.DataIds`
        With their records.

    Yields
    ------
    file : `~ppdaemon.middleware.butler.datafiles.LocatedFile`
        Without a path that exists, if the exposure is only expected.
    """
    universe = raw_type.dimensions.universe
    dimensions = universe.conform(("instrument", "exposure", "detector"))
    for row in exposures.rows(data_ids, dimensions):
        data_id = data_ids.of(raw_type.dimensions, row)
        ref = DatasetRef(raw_type, data_id, run=exposures.run)
        formatter = exposures.announced.instrument.getRawFormatter(data_id)
        path = exposures.files.get(row["exposure"], Path("/"))
        yield LocatedFile(path, get_full_type_name(formatter), (ref,))


def exposure_independent_records(butler: Butler, shape: PipelineShape) -> tuple[DimensionRecord, ...]:
    """Return the records that the exposure has no part in.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The worker's repo.
    shape : `~ppdaemon.middleware.direct.shape.PipelineShape`
        The pipeline: tells whether places on the sky are needed.

    Returns
    -------
    records : `tuple` [`lsst.daf.butler.DimensionRecord`]
        Of instrument, detectors, filters and patches.
    """
    names = {name for subgraph in shape.subgraphs for name in subgraph.dimensions.names}
    return tuple(
        record
        for element in (*_EXPOSURE_INDEPENDENT, *_SKY_ELEMENTS)
        if element in _EXPOSURE_INDEPENDENT or element in names
        for record in butler.query_dimension_records(element, explain=False, limit=None)
    )
