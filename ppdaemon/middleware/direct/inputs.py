# SPDX-License-Identifier: BSD-3-Clause
"""An index of the datasets that a pipeline can read, made before the image.

Regular inputs are found by their data ID. Prerequisites are joined as
``separable`` joins them: by all dimensions that are known, calibrations by the
time of the exposure, spatial datasets by overlap.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from lsst.daf.butler import (
    DataCoordinate,
    DatasetRef,
    DimensionElement,
    DimensionGroup,
    SkyPixDimension,
    Timespan,
)
from lsst.pipe.base.prerequisite_helpers import PrerequisiteFinder
from lsst.sphgeom import RangeSet, Region

from ppdaemon.middleware.butler.localdatasets import LocalDatasets
from ppdaemon.middleware.raws.regions import regions_overlap
from ppdaemon.middleware.run.engine import Unsupported

__all__ = ("InputDataset", "InputIndex", "find_datasets", "spatial_join")


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


@cache
def spatial_join(
    task: DimensionGroup, dataset: DimensionGroup
) -> tuple[DimensionElement, DimensionElement] | None:
    """Return the elements of a task and of its prerequisites whose regions must overlap, if any.

    As in a query, the finest elements of two kinds of region, such as those of
    visits and patches, are joined, unless one data ID has both. A task without
    a region gets all datasets. `Unsupported` is raised where a query is
    ambiguous, or cannot join such pixels.
    """
    together = task.union(dataset)
    common = together.universe.commonSkyPix
    finest = {together.universe[family.choose(together).name] for family in together.spatial}
    of_task = {element for element in finest if element.name in task.elements}
    of_dataset = {element for element in finest if element.name in dataset.elements}
    uncommon = any(isinstance(element, SkyPixDimension) and element != common for element in finest)
    if not task.spatial and len(finest) < 2 and not uncommon:
        return None
    complete = of_task | of_dataset == finest
    if task.spatial and (finest in (of_task, of_dataset) or (complete and of_task & of_dataset)):
        return None
    if complete and len(of_task) == len(of_dataset) == 1 and not uncommon:
        return of_task.pop(), of_dataset.pop()
    names = ", ".join(sorted(element.name for element in finest))
    raise Unsupported(f"a prerequisite that the registry cannot join by regions of {names}")


@dataclass(frozen=True, slots=True)
class _JoinCondition:
    """The dimension values and the region that a prerequisite must match."""

    shared_values: tuple[tuple[str, Any], ...]
    element: DimensionElement | None
    """Whose region must overlap that of the quantum; `None` if any will do."""
    region: Region | None
    pixels: RangeSet
    """Common sky pixels that overlap the region, if the element is one of these."""

    @classmethod
    def of(cls, finder: PrerequisiteFinder, data_id: DataCoordinate) -> "_JoinCondition":
        dimensions = finder.dataset_type_node.dimensions
        shared_values = tuple(
            (name, data_id[name]) for name in dimensions.required if name in data_id.mapping
        )
        join = spatial_join(data_id.dimensions, dimensions)
        if join is None:
            return cls(shared_values, None, None, RangeSet())
        record = data_id.records[join[0].name]
        region = None if record is None else record.region
        return cls(shared_values, join[1], region, _envelope(join[1], region))

    def matches(self, other: DataCoordinate) -> bool:
        if any(other[name] != value for name, value in self.shared_values):
            return False
        if self.element is None:
            return True
        if isinstance(self.element, SkyPixDimension):
            return bool(self.pixels.contains(int(other[self.element.name])))
        record = other.records[self.element.name]
        return record is not None and regions_overlap(self.region, record.region, other.universe)


def _envelope(element: DimensionElement, region: Region | None) -> RangeSet:
    if region is None or not isinstance(element, SkyPixDimension):
        return RangeSet()
    envelope: RangeSet = element.pixelization.envelope(region)
    return envelope


def _is_valid(entry: InputDataset, time: Timespan | None) -> bool:
    return time is None or entry.timespan is None or bool(entry.timespan.overlaps(time))


def find_datasets(
    datasets: LocalDatasets, names: Iterable[str], collections: Sequence[str]
) -> dict[str, tuple[InputDataset, ...]]:
    """Return all datasets of some types by name of the type: the worker has only what a visit needs."""
    ranks = {name: rank for rank, name in enumerate(collections)}
    by_type = datasets.by_type()
    return {
        name: tuple(
            InputDataset(each.ref, ranks[collection], validity)
            for each in by_type.get(name, ())
            for collection, validity in each.within(ranks)
        )
        for name in names
    }
