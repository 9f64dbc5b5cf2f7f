# SPDX-License-Identifier: BSD-3-Clause
"""The exposures of a detector: as announced, or as they arrived."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lsst.daf.butler import DataCoordinate, DatasetRef, DatasetType, DimensionGroup, DimensionRecord
from lsst.utils.introspection import get_full_type_name

from ppdaemon.middleware.butler.datafiles import LocatedFile
from ppdaemon.middleware.butler.repo import LocalRepo
from ppdaemon.middleware.direct.dataids import DataIds, Row
from ppdaemon.middleware.direct.shape import PipelineShape
from ppdaemon.middleware.raws.ingest import VisitRaws
from ppdaemon.middleware.raws.records import group_record, make_record
from ppdaemon.middleware.raws.visits import AnnouncedVisit
from ppdaemon.middleware.run.engine import Unsupported

__all__ = (
    "MAX_EXPECTED",
    "DetectorExposures",
    "DetectorGroup",
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


@dataclass(frozen=True, slots=True)
class DetectorGroup:
    """A detector of a group whose exposures are not known."""

    data_id: DataCoordinate
    """With dimension records."""

    @classmethod
    def of(cls, data_id: DataCoordinate, shape: PipelineShape) -> "DetectorGroup":
        """Return the data of a pipeline that needs no image; raise `Unsupported` if it needs others."""
        names = {name for subgraph in shape.subgraphs for name in subgraph.dimensions.names}
        if other := sorted(names - data_id.dimensions.names):
            raise Unsupported(f"datasets with dimension {', '.join(other)} before the image")
        for task in shape.tasks:
            for finder in task.finders:
                if finder.dataset_has_timespan:
                    raise Unsupported(
                        f"{task.label}.{finder.edge.connection_name}: a calibration before the image"
                    )
        return cls(data_id)

    @property
    def records(self) -> tuple[DimensionRecord, ...]:
        """Of instrument, group and detector (`tuple`)."""
        found = (self.data_id.records[name] for name in self.data_id.dimensions.elements)
        return tuple(record for record in found if record is not None)

    def rows(self, data_ids: DataIds, dimensions: DimensionGroup) -> Iterator[Row]:
        """Return its row; see `~ppdaemon.middleware.direct.dataids.DataIds.rows`."""
        yield dict(self.data_id.mapping)


def arrived_exposures(raws: VisitRaws) -> DetectorExposures:
    """Return the exposures for which visits were defined."""
    return DetectorExposures(raws.announced, raws.exposures, tuple(raws.records), dict(raws.files))


def expected_exposures(announced: AnnouncedVisit, filters: Iterable[str]) -> DetectorExposures:
    """Return the announced exposures as if they had arrived.

    They have the first of the announced filters, if it is one of the instrument's `filters`,
    and ids that no exposure has.
    There are never more than `MAX_EXPECTED`.
    """
    universe, footprint, pointing = announced.universe, announced.footprint, announced.footprint.pointing
    name, group, day = announced.instrument.getName(), announced.visit.group, footprint.day_obs
    ids = tuple(range(1, min(max(announced.visit.nimages, 1), MAX_EXPECTED) + 1))
    likely = _likely_filter(filters, announced.visit.filter_names)
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


def _likely_filter(filters: Iterable[str], names: Iterable[str]) -> str:
    """Return the first announced filter that the instrument has, else any of its filters, else ""."""
    available = sorted(filters)
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


def static_records(repo: LocalRepo, shape: PipelineShape) -> tuple[DimensionRecord, ...]:
    """Return the records of instrument, detectors and filters, and of patches if the pipeline needs them."""
    names = {name for subgraph in shape.subgraphs for name in subgraph.dimensions.names}
    return tuple(repo.records_of((*_STATIC, *(each for each in _SKY_ELEMENTS if each in names))))
