# SPDX-License-Identifier: BSD-3-Clause
"""Puts datasets of the central repo into a worker's: files by link, and what its registry gets later."""

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lsst.daf.butler import (
    Butler,
    CollectionType,
    DatasetId,
    DatasetRef,
    DimensionRecord,
    Timespan,
)
from lsst.resources import ResourcePath

from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.butler.datafiles import DataFile, LocatedFile
from ppdaemon.middleware.butler.failures import describe, is_out_of_space
from ppdaemon.middleware.butler.localdatasets import LocalDataset
from ppdaemon.middleware.butler.repo import LocalRepo
from ppdaemon.middleware.preload.cache import CacheStats, SharedCache
from ppdaemon.middleware.preload.search import Found, Search
from ppdaemon.middleware.raws.visits import insert_records
from ppdaemon.states import Outcome

__all__ = ("MissingFile", "add", "copy_datasets", "input_collections", "take_files")


class MissingFile(VisitFailed):
    """A file is not at its location in the central repo."""

    def __init__(self, reason: str):
        super().__init__(Outcome.PRELOAD_FAILED, reason, retriable=True)


def take_files(
    refs: Iterable[DatasetRef],
    files: Mapping[DatasetId, DataFile],
    cache: SharedCache,
    folder: Path,
    stats: CacheStats,
) -> list[LocatedFile]:
    """Link the datasets' files from the shared cache into a folder, fetching missing ones; return them.

    An archive with several datasets is linked once. Datasets without a file
    are skipped. The folder must be on the cache's filesystem. Raises
    `~ppdaemon.errors.VisitFailed` (``RAMDISK_FULL`` or ``PRELOAD_FAILED``).
    """
    taken = []
    for file, members in _by_file(refs, files):
        name = _name(file, members)
        target = folder / name
        try:
            if not (file.member and target.exists()):  # datasets that were copied before may be in it
                cache.take(name, file.uri, target, stats, file.size_bytes)
        except FileNotFoundError as error:
            raise MissingFile(f"{file.uri} cannot be copied: {describe(error)}") from error
        except OSError as error:
            if is_out_of_space(error):
                reason = f"no room for {file.uri} in the shared cache on the RAM disk"
                raise VisitFailed(Outcome.RAMDISK_FULL, reason, retriable=True) from error
            reason = f"{file.uri} cannot be copied: {describe(error)}"
            raise VisitFailed(Outcome.PRELOAD_FAILED, reason, retriable=True) from error
        if file.member:
            each = [(ref, files[ref.id]) for ref in members]
            taken += [LocatedFile(target, one.formatter, (ref,), member=one.member) for ref, one in each]
        else:
            taken.append(LocatedFile(target, file.formatter, tuple(members)))
    return taken


def copy_datasets(refs: Sequence[DatasetRef], source: Butler, target: Butler) -> None:
    """Copy datasets with all of their files, or none. Raises `MissingFile` if a file cannot be copied; an
    error of a full disk is raised unchanged.
    """
    try:
        target.transfer_from(source, refs, transfer="copy")
    except ExceptionGroup as error:  # whatever failed, also a single file
        if is_out_of_space(error):
            raise
        raise MissingFile(f"{len(refs)} datasets cannot be copied: {describe(error)}") from error


def add(
    repo: LocalRepo,
    found: Sequence[Found],
    files: Sequence[LocatedFile],
    collection_types: Mapping[str, CollectionType],
    copy_rest: Callable[[Butler], None],
) -> None:
    """Put datasets into a worker's repo, in the collections that they have in the central one.

    The dataset types are defined even if no dataset was found. `copy_rest`
    copies the datasets that are not one file; it needs their dimension records.
    """
    repo.define(each.dataset_type for each in found)
    records = _records(each.refs for each in found)
    repo.add_records(records)
    certified = _certified(found)
    files_by_id = {ref.id: file for file in files for ref in file.refs}
    repo.datasets.add(
        LocalDataset(ref, _of_one(files_by_id.get(ref.id), ref)) for each in found for ref in each.refs
    )
    for (collection, validity), refs in certified.items():
        repo.datasets.certify(refs, collection, validity)

    def register(butler: Butler) -> None:
        with butler.transaction():
            insert_records(butler, records)
            repo.ingest_into(butler, files)
            copy_rest(butler)
            for (collection, span), refs in certified.items():
                butler.collections.register(collection, collection_types[collection])
                if collection_types[collection] is CollectionType.CALIBRATION:
                    butler.registry.certify(collection, refs, span)
                else:
                    butler.registry.associate(collection, refs)

    repo.write_later(register)


def _of_one(file: LocatedFile | None, ref: DatasetRef) -> LocatedFile | None:
    return None if file is None else replace(file, refs=(ref,))


def _by_file(
    refs: Iterable[DatasetRef], files: Mapping[DatasetId, DataFile]
) -> list[tuple[DataFile, list[DatasetRef]]]:
    """Return each file with those of the datasets that are in it."""
    by_uri: dict[ResourcePath, list[DatasetRef]] = defaultdict(list)
    for ref in refs:
        if ref.id in files:
            by_uri[files[ref.id].uri].append(ref)
    return [(files[members[0].id], members) for members in by_uri.values()]


def _name(file: DataFile, refs: Iterable[DatasetRef]) -> str:
    # The id of a dataset: the same name never means other content, unless a dataset was
    # removed and ingested again with an id that is made of its run and data ID. Of an archive
    # other workers need other members: its name, which a Butler makes of its content.
    name = uuid.uuid5(uuid.NAMESPACE_URL, str(file.uri)) if file.member else min(ref.id for ref in refs)
    return f"{name}{file.uri.getExtension()}"


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
    """Return the datasets by collection and validity, without those of their own runs."""
    certified: dict[tuple[str, Timespan], list[DatasetRef]] = defaultdict(list)
    for each in found:
        for association in each.associations:
            if association.collection != association.ref.run and association.timespan is not None:
                certified[association.collection, association.timespan].append(association.ref)
    return certified


def input_collections(found: Iterable[Found], search: Search) -> tuple[str, ...]:
    """Return the collections of the worker's repo that have the copies, in order of search."""
    used: set[str] = set()
    for each in found:
        used.update(association.collection for association in each.associations)
        if not each.associations:
            used.update(ref.run for ref in each.refs)
    ordered = [name for name in dict.fromkeys((*search.calibs, *search.inputs)) if name in used]
    # A dataset found through a tagged collection is in a run that was not searched.
    return (*ordered, *sorted(used - set(ordered)))
