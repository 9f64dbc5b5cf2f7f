# SPDX-License-Identifier: BSD-3-Clause
"""An index of the datasets that a pipeline can read, made by one query per dataset type before the image.

Regular inputs are found by their data ID. Prerequisites are joined as
``separable`` joins them: by all dimensions that are known, calibrations by the
time of the exposure, spatial datasets by overlap.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lsst.daf.butler import (
    Butler,
    DataCoordinate,
    DatasetAssociation,
    DatasetRef,
    DatasetType,
    MissingDatasetTypeError,
    SkyPixDimension,
    Timespan,
)
from lsst.pipe.base.prerequisite_helpers import PrerequisiteFinder
from lsst.sphgeom import RangeSet, Region

from ppdaemon.middleware.direct.dataids import regions_overlap
from ppdaemon.middleware.run.engine import Unsupported

__all__ = ("InputDataset", "InputIndex", "find_datasets")


@dataclass(frozen=True, slots=True)
class InputDataset:
    """A dataset in a collection."""

    ref: DatasetRef
    """With dimension records."""
    rank: int
    """Position of its collection in the search order."""
    timespan: Timespan | None
    """When it is valid; `None` for always."""


@dataclass(slots=True)
class InputIndex:
    """The datasets that exist before the exposure, and those of the exposure itself."""

    entries: Mapping[str, Sequence[InputDataset]]
    """By name of the dataset type."""
    exposure_datasets: Mapping[tuple[str, tuple[Any, ...]], DatasetRef] = field(default_factory=dict)
    """Datasets that arrived with the exposures, by dataset type and values of the data ID."""
    _first: dict[tuple[str, tuple[Any, ...]], DatasetRef] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, entries in self.entries.items():
            for entry in sorted(entries, key=lambda entry: entry.rank):
                self._first.setdefault((name, entry.ref.dataId.required_values), entry.ref)

    def find_regular(self, name: str, data_id: DataCoordinate) -> DatasetRef | None:
        """Return the regular input or init-input in the first collection that has it."""
        key = name, data_id.required_values
        return self.exposure_datasets.get(key) or self._first.get(key)

    def find_prerequisites(self, finder: PrerequisiteFinder, data_id: DataCoordinate) -> list[DatasetRef]:
        """Return the prerequisites of a quantum: for each data ID the one in the first collection
        that has it.

        `Unsupported` is raised if several are valid at the time: that is an
        error, and ``separable`` reports it in the usual text.
        """
        node = finder.dataset_type_node
        time = data_id.timespan if finder.dataset_has_timespan else None
        if finder.dataset_has_timespan and time is None:
            return []
        condition = _JoinCondition.of(finder, data_id)
        best: dict[tuple[Any, ...], list[InputDataset]] = {}
        for entry in self.entries.get(node.name, ()):
            if not _is_valid(entry, time) or not condition.matches(entry.ref.dataId):
                continue
            candidates = best.setdefault(entry.ref.dataId.required_values, [])
            if candidates and entry.rank < candidates[0].rank:
                candidates.clear()
            if not candidates or entry.rank == candidates[0].rank:
                candidates.append(entry)
        if any(len(candidates) > 1 for candidates in best.values()):
            raise Unsupported(f"several {node.name} datasets are valid at the same time")
        return [candidates[0].ref for candidates in best.values()]


@dataclass(frozen=True, slots=True)
class _JoinCondition:
    """The dimension values, regions and sky pixels that a prerequisite must match."""

    shared_values: tuple[tuple[str, Any], ...]
    region: Region | None
    """Region of the quantum, if the datasets are spatial and it does not name them."""
    elements: tuple[str, ...]
    """Dimension elements whose regions must overlap it."""
    pixels: tuple[tuple[str, RangeSet], ...]
    """Sky pixels that overlap it, by dimension."""

    @classmethod
    def of(cls, finder: PrerequisiteFinder, data_id: DataCoordinate) -> "_JoinCondition":
        dimensions = finder.dataset_type_node.dimensions
        spatial = bool(finder.dataset_skypix or finder.dataset_other_spatial)
        region = data_id.region if spatial else None
        return cls(
            shared_values=tuple(
                (name, data_id[name]) for name in dimensions.required if name in data_id.mapping
            ),
            region=region,
            elements=tuple(finder.dataset_other_spatial),
            pixels=tuple((name, _envelope(skypix, region)) for name, skypix in finder.dataset_skypix.items()),
        )

    def matches(self, other: DataCoordinate) -> bool:
        if any(other[name] != value for name, value in self.shared_values):
            return False
        if any(not pixels.contains(int(other[name])) for name, pixels in self.pixels):
            return False
        return all(self._overlaps(other, name) for name in self.elements)

    def _overlaps(self, other: DataCoordinate, name: str) -> bool:
        record = other.records[name]
        return record is not None and regions_overlap(self.region, record.region, other.universe)


def _envelope(skypix: SkyPixDimension, region: Region | None) -> RangeSet:
    return RangeSet() if region is None else skypix.pixelization.envelope(region)


def _is_valid(entry: InputDataset, time: Timespan | None) -> bool:
    return time is None or entry.timespan is None or bool(entry.timespan.overlaps(time))


def find_datasets(
    butler: Butler, dataset_types: Iterable[DatasetType], collections: Sequence[str]
) -> dict[str, tuple[InputDataset, ...]]:
    """Return all datasets of some types by name of the type: the worker has only what a visit needs."""
    searched = butler.collections.query(collections, flatten_chains=True)
    ranks = {name: rank for rank, name in enumerate(searched)}
    return {
        dataset_type.name: tuple(_entries(butler, dataset_type, searched, ranks))
        for dataset_type in dataset_types
    }


def _entries(
    butler: Butler, dataset_type: DatasetType, collections: Sequence[str], ranks: Mapping[str, int]
) -> list[InputDataset]:
    name = dataset_type.name
    try:
        with butler.query() as query:
            result = (
                query.join_dataset_search(dataset_type, collections)
                .general(
                    dataset_type.dimensions,
                    dataset_fields={name: {"dataset_id", "run", "collection", "timespan"}},
                    find_first=False,
                )
                .with_dimension_records()
            )
            associations = list(DatasetAssociation.from_query_result(result, dataset_type))
    except MissingDatasetTypeError:
        return []
    return [InputDataset(found.ref, ranks[found.collection], found.timespan) for found in associations]
