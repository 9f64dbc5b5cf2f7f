# SPDX-License-Identifier: BSD-3-Clause
"""The datasets of the worker's repo, found without its registry: the worker itself has put them there."""

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace

from lsst.daf.butler import DatasetId, DatasetRef, Timespan

from ppdaemon.middleware.butler.datafiles import LocatedFile

__all__ = ("LocalDataset", "LocalDatasets")


@dataclass(frozen=True, slots=True)
class LocalDataset:
    """A dataset of the worker's repo."""

    ref: DatasetRef
    """With dimension records."""
    file: LocatedFile | None = None
    """A file with this dataset alone in its `refs`; `None` if only the Butler can read it."""
    certified: tuple[tuple[str, Timespan], ...] = ()
    """Calibration collections that have it, and when it is valid there."""

    @classmethod
    def of_files(cls, files: Iterable[LocatedFile]) -> "Iterator[LocalDataset]":
        """Yield the datasets in files."""
        for file in files:
            for ref in file.refs:
                yield cls(ref, replace(file, refs=(ref,)))

    def within(self, collections: Container[str]) -> Iterator[tuple[str, Timespan | None]]:
        """Yield those of the collections that have it, and when it is valid there; `None` for always."""
        if self.ref.run in collections:
            yield self.ref.run, None
        yield from (each for each in self.certified if each[0] in collections)


class LocalDatasets:
    """Datasets in the order in which they were added."""

    def __init__(self) -> None:
        self._datasets: dict[DatasetId, LocalDataset] = {}

    def add(self, datasets: Iterable[LocalDataset]) -> None:
        """Add datasets; one of the same id is replaced."""
        self._datasets.update((each.ref.id, each) for each in datasets)

    def certify(self, refs: Iterable[DatasetRef], collection: str, validity: Timespan) -> None:
        """Add datasets, which must be there, to a calibration collection."""
        for ref in refs:
            known = self._datasets[ref.id]
            self._datasets[ref.id] = replace(known, certified=(*known.certified, (collection, validity)))

    def remove(self, refs: Iterable[DatasetRef]) -> None:
        """Remove datasets, which may not be there."""
        for ref in refs:
            self._datasets.pop(ref.id, None)

    def clear(self) -> None:
        """Remove all datasets."""
        self._datasets.clear()

    def get(self, dataset: DatasetId) -> LocalDataset | None:
        """Return a dataset, if it is there."""
        return self._datasets.get(dataset)

    def by_type(self) -> dict[str, list[LocalDataset]]:
        """Return all datasets by the names of their types."""
        found: dict[str, list[LocalDataset]] = defaultdict(list)
        for each in self._datasets.values():
            found[each.ref.datasetType.name].append(each)
        return found

    def in_run(self, run: str) -> list[LocalDataset]:
        """Return the datasets of a run, sorted by the names of their types."""
        found = (each for each in self._datasets.values() if each.ref.run == run)
        return sorted(found, key=lambda each: str(each.ref.datasetType.name))
