# SPDX-License-Identifier: BSD-3-Clause
"""Copying datasets from the central repo into a worker's, and describing files of datasets."""

import errno
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# CollectionType is public, though its package does not list it.
from lsst.daf.butler import (  # type: ignore[attr-defined]
    Butler,
    CollectionType,
    DatasetRef,
    FileDataset,
    Timespan,
)
from lsst.resources import ResourcePath

from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.cache import SharedCache
from ppdaemon.middleware.failures import describe, is_link_refusal
from ppdaemon.middleware.search import Found, Search
from ppdaemon.states import Outcome

__all__ = ("Fetched", "describe_files", "input_collections", "transfer")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fetched:
    """Files of datasets, on the RAM disk."""

    files: tuple[FileDataset, ...]
    """With absolute paths in the shared cache."""
    others: tuple[DatasetRef, ...]
    """Datasets that are not one file each, to be copied by the Butler."""
    total_bytes: int
    fetched_bytes: int
    """Of these, what was not in the cache before."""


def describe_files(butler: Butler, refs: Iterable[DatasetRef]) -> list[FileDataset]:
    """Return path and formatter of stored datasets.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The repo that has them.
    refs : `~collections.abc.Iterable` [`lsst.daf.butler.DatasetRef`]
        Datasets that are one file each, or share one.

    Returns
    -------
    files : `list` [`lsst.daf.butler.FileDataset`]
        Paths are relative to the datastore's root, or absolute.

    Notes
    -----
    `Butler.export` is the public way to the formatter that a dataset was
    written with, which the repo's configuration does not tell. Its text is
    not needed.
    """
    files: list[FileDataset] = []

    def keep(file: FileDataset) -> FileDataset:
        files.append(file)
        return file

    with butler.export(filename=os.devnull, format="yaml") as export:
        export.saveDatasets(refs, elements=(), rewrite=keep)
    return files


def fetch(central: Butler, refs: Sequence[DatasetRef], cache: SharedCache) -> Fetched:
    """Bring the files of datasets into the shared cache.

    Parameters
    ----------
    central : `lsst.daf.butler.Butler`
        The central repo.
    refs : `~collections.abc.Sequence` [`lsst.daf.butler.DatasetRef`]
        Datasets there.
    cache : `~ppdaemon.middleware.cache.SharedCache`
        The cache.

    Returns
    -------
    fetched : `Fetched`
        What is in the cache now.
    """
    uris = {
        ref.id: found.primaryURI
        for ref, found in central.get_many_uris(refs).items()
        if found.primaryURI is not None and not found.primaryURI.fragment
    }
    single = [ref for ref in refs if ref.id in uris]
    others = tuple(ref for ref in refs if ref.id not in uris)
    files, total, fetched = [], 0, 0
    for file in describe_files(central, single):
        uri = uris[file.refs[0].id]
        path, new = _shared(cache, min(str(ref.id) for ref in file.refs), uri)
        size = path.stat().st_size
        total += size
        fetched += size if new else 0
        files.append(FileDataset(path=ResourcePath(path.as_uri()), refs=file.refs, formatter=file.formatter))
    return Fetched(tuple(files), others, total, fetched)


def _shared(cache: SharedCache, name: str, uri: ResourcePath) -> tuple[Path, bool]:
    try:
        return cache.fetch(name + uri.getExtension(), uri)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise VisitFailed(
                Outcome.RAMDISK_FULL, f"no room for {uri} in the shared cache", retriable=True
            ) from error
        raise VisitFailed(
            Outcome.PRELOAD_FAILED, f"{uri} cannot be copied: {describe(error)}", retriable=True
        ) from error


def transfer(central: Butler, local: Butler, found: Sequence[Found], cache: SharedCache) -> Fetched:
    """Put datasets into a worker's repo, in the runs that they have in the central one.

    Parameters
    ----------
    central : `lsst.daf.butler.Butler`
        The central repo.
    local : `lsst.daf.butler.Butler`
        The worker's repo.
    found : `~collections.abc.Sequence` [`~ppdaemon.middleware.search.Found`]
        What to copy; the types are registered even if nothing was found.
    cache : `~ppdaemon.middleware.cache.SharedCache`
        Where files are shared.

    Returns
    -------
    fetched : `Fetched`
        What was copied.
    """
    for each in found:
        local.registry.registerDatasetType(each.dataset_type)
    refs = list({ref.id: ref for each in found for ref in each.refs}.values())
    if not refs:
        return Fetched((), (), 0, 0)
    fetched = fetch(central, refs, cache)
    local.transfer_dimension_records_from(central, refs)
    for run in sorted({ref.run for ref in refs}):
        local.collections.register(run, CollectionType.RUN)
    _ingest(local, fetched.files)
    if fetched.others:
        local.transfer_from(central, fetched.others, transfer="copy")
    for each in found:
        _certify(central, local, each)
    return fetched


def _ingest(butler: Butler, files: Sequence[FileDataset]) -> None:
    """Ingest shared files by hard link, or by copy where links cannot be made."""
    try:
        butler.ingest(*files, transfer="hardlink")
    except OSError as error:
        if not is_link_refusal(error):
            raise
        _LOG.warning("files are copied, not shared: %s", describe(error))
        butler.ingest(*files, transfer="copy")


def _certify(central: Butler, local: Butler, found: Found) -> None:
    """Give calibrations the validity that they have in the central repo."""
    certified: dict[tuple[str, Timespan], list[DatasetRef]] = defaultdict(list)
    for association in found.associations:
        if association.collection != association.ref.run and association.timespan is not None:
            certified[association.collection, association.timespan].append(association.ref)
    for (collection, span), refs in certified.items():
        kind = central.collections.get_info(collection).type
        local.collections.register(collection, kind)
        if kind is CollectionType.CALIBRATION:
            local.registry.certify(collection, refs, span)
        else:
            local.registry.associate(collection, refs)


def input_collections(found: Iterable[Found], search: Search) -> tuple[str, ...]:
    """Return the collections in which the copies are found again, in order.

    Parameters
    ----------
    found : `~collections.abc.Iterable` [`~ppdaemon.middleware.search.Found`]
        What was copied.
    search : `~ppdaemon.middleware.search.Search`
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
