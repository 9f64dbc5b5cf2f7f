# SPDX-License-Identifier: BSD-3-Clause
"""Putting datasets of the central repo into a worker's: files by link, records in one transaction."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from lsst.daf.butler import (
    Butler,
    CollectionType,
    DatasetId,
    DatasetRef,
    DimensionRecord,
    FileDataset,
    Timespan,
)
from lsst.resources import ResourcePath

from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.butler.datafiles import DataFile, file_dataset
from ppdaemon.middleware.butler.failures import describe, is_out_of_space
from ppdaemon.middleware.preload.cache import CacheStats, SharedCache
from ppdaemon.middleware.preload.search import Found, Search
from ppdaemon.middleware.raws.visits import insert_records
from ppdaemon.states import Outcome

__all__ = ("Absent", "cache_names", "input_collections", "register", "take_files")


class Absent(VisitFailed):
    """A file is not where the central repo says it is.

    Parameters
    ----------
    reason : `str`
        Which file, and what the system says.
    refs : `tuple` [`lsst.daf.butler.DatasetRef`]
        Its datasets.
    """

    def __init__(self, reason: str, refs: tuple[DatasetRef, ...]):
        super().__init__(Outcome.PRELOAD_FAILED, reason, retriable=True)
        self.refs = refs


def cache_names(refs: Iterable[DatasetRef], files: Mapping[DatasetId, DataFile]) -> dict[str, DataFile]:
    """Return the names of datasets' files in the shared cache.

    Parameters
    ----------
    refs : `~collections.abc.Iterable` [`lsst.daf.butler.DatasetRef`]
        Datasets.
    files : `~collections.abc.Mapping`
        Their files, by dataset id; datasets without one are passed over.

    Returns
    -------
    names : `dict`
        The files, by name: made of the id of a dataset, which never comes to
        mean something else.
    """
    return {_name(file, holders): file for file, holders in _sharing(refs, files)}


def take_files(
    refs: Iterable[DatasetRef],
    files: Mapping[DatasetId, DataFile],
    cache: SharedCache,
    folder: Path,
    stats: CacheStats,
) -> list[FileDataset]:
    """Take the files of datasets from the shared cache, which fetches what it has not.

    Parameters
    ----------
    refs : `~collections.abc.Iterable` [`lsst.daf.butler.DatasetRef`]
        Datasets.
    files : `~collections.abc.Mapping`
        Their files, by dataset id; datasets without one are passed over.
    cache : `~ppdaemon.middleware.preload.cache.SharedCache`
        The cache.
    folder : `pathlib.Path`
        Takes the links; on the cache's filesystem.
    stats : `~ppdaemon.middleware.preload.cache.CacheStats`
        Counts.

    Returns
    -------
    taken : `list` [`lsst.daf.butler.FileDataset`]
        One for each file, however many datasets it holds.

    Raises
    ------
    ppdaemon.errors.VisitFailed
        Raised with ``RAMDISK_FULL`` or ``PRELOAD_FAILED``.
    """
    taken = []
    for file, holders in _sharing(refs, files):
        name = _name(file, holders)
        try:
            cache.take(name, file.uri, folder / name, stats, file.size_bytes)
        except FileNotFoundError as error:
            raise Absent(f"{file.uri} cannot be copied: {describe(error)}", tuple(holders)) from error
        except OSError as error:
            if is_out_of_space(error):
                reason = f"no room for {file.uri} in the shared cache"
                raise VisitFailed(Outcome.RAMDISK_FULL, reason, retriable=True) from error
            reason = f"{file.uri} cannot be copied: {describe(error)}"
            raise VisitFailed(Outcome.PRELOAD_FAILED, reason, retriable=True) from error
        taken.append(file_dataset(folder / name, holders, file.formatter))
    return taken


def register(
    local: Butler,
    found: Sequence[Found],
    files: Sequence[FileDataset],
    kinds: Mapping[str, CollectionType],
    bring_rest: Callable[[], None],
) -> None:
    """Put datasets into a worker's repo, in the collections that they have in the central one.

    Parameters
    ----------
    local : `lsst.daf.butler.Butler`
        The worker's repo.
    found : `~collections.abc.Sequence` [`~ppdaemon.middleware.preload.search.Found`]
        Datasets, with dimension records; the types are registered even if
        nothing was found.
    files : `~collections.abc.Sequence` [`lsst.daf.butler.FileDataset`]
        Their files, which are moved into the repo.
    kinds : `~collections.abc.Mapping`
        What the collections of `found`'s associations are in the central
        repo.
    bring_rest : `~collections.abc.Callable`
        Copies the datasets that are not one file each, once their dimension
        records are there.
    """
    for each in found:
        local.registry.registerDatasetType(each.dataset_type)
    with local.transaction():
        insert_records(local, _records(each.refs for each in found))
        local.ingest(*files, transfer="move")
        bring_rest()
        for (collection, span), refs in _certified(found).items():
            local.collections.register(collection, kinds[collection])
            if kinds[collection] is CollectionType.CALIBRATION:
                local.registry.certify(collection, refs, span)
            else:
                local.registry.associate(collection, refs)


def _sharing(
    refs: Iterable[DatasetRef], files: Mapping[DatasetId, DataFile]
) -> list[tuple[DataFile, list[DatasetRef]]]:
    """Return each file with the datasets that are wanted of it."""
    sharing: dict[ResourcePath, list[DatasetRef]] = defaultdict(list)
    for ref in refs:
        if ref.id in files:
            sharing[files[ref.id].uri].append(ref)
    return [(files[holders[0].id], holders) for holders in sharing.values()]


def _name(file: DataFile, holders: Iterable[DatasetRef]) -> str:
    return min(str(ref.id) for ref in holders) + str(file.uri.getExtension())


def _records(groups: Iterable[Iterable[DatasetRef]]) -> list[DimensionRecord]:
    """Return the dimension records of datasets, each once."""
    records: dict[object, DimensionRecord] = {}
    for refs in groups:
        for ref in refs:
            for name in ref.dataId.dimensions.elements:
                record = ref.dataId.records[name]
                if record is not None and record.definition.has_own_table:
                    records[name, record.dataId] = record
    return list(records.values())


def _certified(found: Iterable[Found]) -> dict[tuple[str, Timespan], list[DatasetRef]]:
    """Return the datasets of each collection that is not their run, by validity."""
    certified: dict[tuple[str, Timespan], list[DatasetRef]] = defaultdict(list)
    for each in found:
        for association in each.associations:
            if association.collection != association.ref.run and association.timespan is not None:
                certified[association.collection, association.timespan].append(association.ref)
    return certified


def input_collections(found: Iterable[Found], search: Search) -> tuple[str, ...]:
    """Return the collections in which the copies are found again, in order.

    Parameters
    ----------
    found : `~collections.abc.Iterable` [`~ppdaemon.middleware.preload.search.Found`]
        What was copied.
    search : `~ppdaemon.middleware.preload.search.Search`
        How it was found.

    Returns
    -------
    collections : `tuple` [`str`]
        Collections of the central repo that the worker's has too.
    """
    used: set[str] = set()
    for each in found:
        used.update(association.collection for association in each.associations)
        if not each.associations:
            used.update(ref.run for ref in each.refs)
    ordered = [name for name in dict.fromkeys((*search.calibs, *search.inputs)) if name in used]
    # A dataset found through a tag lies in a run that was not searched.
    return (*ordered, *sorted(used - set(ordered)))
