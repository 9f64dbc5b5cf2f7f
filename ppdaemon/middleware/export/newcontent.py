# SPDX-License-Identifier: BSD-3-Clause
"""What the manifests of spools have that is to be registered: files, datasets, dimension records."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lsst.daf.butler import (
    DataCoordinate,
    DataIdValue,
    DatasetId,
    DatasetRef,
    DatasetType,
    DimensionGroup,
    DimensionRecord,
    DimensionUniverse,
    SerializedDatasetType,
)
from lsst.daf.butler.dimensions import SerializedDataCoordinate, SerializedDimensionRecord

from ppdaemon.middleware.export.manifest import Manifest, SpooledFile, SpooledRef
from ppdaemon.middleware.raws.visits import completed

__all__ = ("NewContent", "NewDataset", "NewFile", "Place")

type Place = tuple[str, str, tuple[DataIdValue, ...]]
"""Type, run and data ID: there is one dataset of each."""


# Tuples, and not frozen classes: there are thousands, and each would take three times as long.
class NewDataset(NamedTuple):
    """A dataset; to make the reference of each takes as long as to insert the rows of some."""

    id: DatasetId
    dataset_type: DatasetType
    data_id: DataCoordinate
    values: tuple[DataIdValue, ...]
    """Those of the required dimensions."""
    run: str

    @property
    def place(self) -> Place:
        """Its type, run and data ID."""
        return self.dataset_type.name, self.run, self.values

    def ref(self) -> DatasetRef:
        """Return its reference."""
        return DatasetRef(self.dataset_type, self.data_id, self.run, id=self.id, conform=False)


class NewFile(NamedTuple):
    """A spooled file and its datasets."""

    spool: Path
    path: str
    spooled: SpooledFile
    datasets: list[NewDataset]

    @property
    def first(self) -> NewDataset:
        """The dataset that it is named after (`NewDataset`)."""
        return self.datasets[0]

    def refs(self) -> list[DatasetRef]:
        """Return references to its datasets."""
        return [each.ref() for each in self.datasets]


@dataclass(frozen=True, slots=True)
class NewContent:
    """The content of some spools. What is equal in their manifests is mostly one object in it."""

    files: list[NewFile]
    types: set[DatasetType]
    """Equal types are one object."""
    records: list[DimensionRecord]
    """Sorted, each one with all known values."""

    @classmethod
    def of(cls, batch: Mapping[Path, Manifest], universe: DimensionUniverse) -> "NewContent":
        """Return the content of spools with these manifests."""
        parser = _Parser(universe)
        files = []
        for spool, manifest in batch.items():
            prefix = f"{spool}/"
            for file in manifest.files:
                files.append(NewFile(spool, prefix + file.name, file, parser.datasets(file.refs)))
        return cls(files, parser.types, _records(parser, batch.values()))


type _Ids = dict[int, tuple[DataCoordinate, tuple[DataIdValue, ...]]]
"""Data IDs of the same dimensions, and the values of the required ones."""


class _Parser:
    """Makes datasets and records of what manifests have.

    One object for each dataset type, data ID and record, which manifests repeat. They are known by their
    identity, as hashes are slow: manifests share what is equal, and outlive this.
    """

    def __init__(self, universe: DimensionUniverse):
        self._universe = universe
        self._types: dict[int, tuple[DatasetType, _Ids]] = {}
        self._equal: dict[DatasetType, DatasetType] = {}
        self._ids: dict[DimensionGroup, _Ids] = {}
        self._records: dict[int, DimensionRecord] = {}

    @property
    def types(self) -> set[DatasetType]:
        """The types of all datasets."""
        return set(self._equal)

    def datasets(self, refs: Iterable[SpooledRef]) -> list[NewDataset]:
        """Return the datasets of a file."""
        datasets = []
        for dataset_id, kind, simple, run in refs:
            dataset_type, ids = self._types.get(id(kind)) or self._type(kind)
            if (found := ids.get(id(simple))) is None:
                data_id = self._data_id(simple, dataset_type.dimensions)
                found = ids[id(simple)] = data_id, data_id.required_values
            data_id, values = found
            datasets.append(NewDataset(dataset_id, dataset_type, data_id, values, run))
        return datasets

    def _type(self, simple: SerializedDatasetType) -> "tuple[DatasetType, _Ids]":
        """Return a dataset type, one object for all equal ones, and the data IDs of its dimensions."""
        found = DatasetType.from_simple(simple, universe=self._universe)
        found = self._equal.setdefault(found, found)
        result = self._types[id(simple)] = found, self._ids.setdefault(found.dimensions, {})
        return result

    def record(self, simple: SerializedDimensionRecord) -> DimensionRecord:
        """Return a dimension record."""
        record = self._records.get(id(simple))
        if record is None:
            record = DimensionRecord.from_simple(simple, universe=self._universe)
            self._records[id(simple)] = record
        return record

    def _data_id(self, simple: SerializedDataCoordinate, dimensions: DimensionGroup) -> DataCoordinate:
        """Return a data ID, with its records if it has them."""
        # `DataCoordinate.from_simple` finds out the dimensions from the names of all values.
        data_id = DataCoordinate.standardize(simple.dataId, dimensions=dimensions)
        if not simple.records:
            return data_id
        return data_id.expanded(_Records(simple.records, self.record))


class _Records(Mapping[str, DimensionRecord]):
    """The records of a data ID; each is made when it is needed: the names of files have values of few."""

    def __init__(
        self,
        simple: Mapping[str, SerializedDimensionRecord],
        make: Callable[[SerializedDimensionRecord], DimensionRecord],
    ):
        self._simple = simple
        self._make = make

    def __getitem__(self, name: str) -> DimensionRecord:
        return self._make(self._simple[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._simple)

    def __len__(self) -> int:
        return len(self._simple)


def _records(parser: _Parser, manifests: Iterable[Manifest]) -> list[DimensionRecord]:
    """Return the records of all manifests."""
    # Sorted: two transactions that insert the same rows in different orders
    # would deadlock.
    found: dict[tuple[str, tuple[object, ...]], DimensionRecord] = {}
    for simple in {id(each): each for manifest in manifests for each in manifest.records}.values():
        record = parser.record(simple)
        key = record.definition.name, record.dataId.required_values
        if found.setdefault(key, record) is not record:
            found[key] = completed(found[key], record)
    return [found[key] for key in sorted(found)]
