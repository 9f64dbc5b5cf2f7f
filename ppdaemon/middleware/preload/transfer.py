# SPDX-License-Identifier: BSD-3-Clause
"""Puts datasets of the central repo into a worker's: files by link, records in one transaction."""

import uuid
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

__all__ = ("MissingFile", "cache_names", "input_collections", "register", "take_files")


class MissingFile(VisitFailed):
    """A file is not at its location in the central repo; `refs` are its datasets."""

    def __init__(self, reason: str, refs: tuple[DatasetRef, ...]):
        super().__init__(Outcome.PRELOAD_FAILED, reason, retriable=True)
        self.refs = refs


def cache_names(refs: Iterable[DatasetRef], files: Mapping[DatasetId, DataFile]) -> dict[str, DataFile]:
    """Return the datasets' files by their names in the shared cache; datasets without a file are skipped."""
    return {_name(file, members): file for file, members in _by_file(refs, files)}


def take_files(
    refs: Iterable[DatasetRef],
    files: Mapping[DatasetId, DataFile],
    cache: SharedCache,
    folder: Path,
    archives: Path,
    stats: CacheStats,
) -> list[FileDataset]:
    """Link the datasets' files from the shared cache, fetching missing ones; return them for `register`.

    An archive with several datasets is linked once, to a folder where it must
    stay. Datasets without a file are skipped. Both folders must be on the
    cache's filesystem. Raises `~ppdaemon.errors.VisitFailed`
    (``RAMDISK_FULL`` or ``PRELOAD_FAILED``).
    """
    taken = []
    for file, members in _by_file(refs, files):
        name = _name(file, members)
        target = (archives if file.member else folder) / name
        try:
            if file.member:
                archives.mkdir(exist_ok=True)
            if not target.exists():  # an archive: the datasets of a saved layer may be in it
                cache.take(name, file.uri, target, stats, file.size_bytes)
        except FileNotFoundError as error:
            raise MissingFile(f"{file.uri} cannot be copied: {describe(error)}", tuple(members)) from error
        except OSError as error:
            if is_out_of_space(error):
                reason = f"no room for {file.uri} in the shared cache on the RAM disk"
                raise VisitFailed(Outcome.RAMDISK_FULL, reason, retriable=True) from error
            reason = f"{file.uri} cannot be copied: {describe(error)}"
            raise VisitFailed(Outcome.PRELOAD_FAILED, reason, retriable=True) from error
        if file.member:
            members_of = [(ref, files[ref.id]) for ref in members]
            taken += [file_dataset(target, [ref], each.formatter, each.member) for ref, each in members_of]
        else:
            taken.append(file_dataset(target, members, file.formatter))
    return taken


def register(
    local: Butler,
    found: Sequence[Found],
    files: Sequence[FileDataset],
    collection_types: Mapping[str, CollectionType],
    copy_rest: Callable[[], None],
) -> None:
    """Put datasets into a worker's repo, in the collections that they have in the central one.

    The dataset types are registered even if no dataset was found. The files
    are moved, except archives. `copy_rest` copies the datasets that are not one
    file; it needs their dimension records.
    """
    for each in found:
        local.registry.registerDatasetType(each.dataset_type)
    with local.transaction():
        insert_records(local, _records(each.refs for each in found))
        for transfer, in_archive in (("move", False), ("direct", True)):
            chosen = [file for file in files if bool(ResourcePath(file.path).fragment) is in_archive]
            local.ingest(*chosen, transfer=transfer)
        copy_rest()
        for (collection, span), refs in _certified(found).items():
            local.collections.register(collection, collection_types[collection])
            if collection_types[collection] is CollectionType.CALIBRATION:
                local.registry.certify(collection, refs, span)
            else:
                local.registry.associate(collection, refs)


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
    # The id of a dataset: the same name never means other content. Of an archive other
    # workers need other members: its name, which a Butler makes of its content.
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
