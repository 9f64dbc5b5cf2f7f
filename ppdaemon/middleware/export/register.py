# SPDX-License-Identifier: BSD-3-Clause
"""Registers outputs in the central repo: many visits in one transaction, each dataset once.

Exporters of other hosts do the same concurrently, often with records of the
same visit and into the same runs. The first commit wins; the other exporters
detect it and skip the datasets that are there.

Files are hard-linked into the central repo where it is on the spool's
filesystem. Elsewhere they are first copied to a folder beside the repo's files
and then renamed, so that no database is locked while data are copied.
"""

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import sqlalchemy.exc
from lsst.daf.butler import Butler, CollectionType, DatasetRef, DimensionRecord, FileDataset
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.resources import ResourcePath

from ppdaemon.durable import sync
from ppdaemon.middleware.butler.datafiles import file_dataset
from ppdaemon.middleware.butler.failures import describe, is_contention, is_link_refusal
from ppdaemon.middleware.export.owners import Owners
from ppdaemon.middleware.export.spool import Manifest
from ppdaemon.middleware.raws.visits import completed, insert_records

__all__ = ("Registered", "Registrar")

_LOG = logging.getLogger(__name__)

ATTEMPTS = 5
"""Attempts at a transaction that collides with others. Each collision means that
one other exporter has committed: five in a row are five hosts at once."""


@dataclass(frozen=True, slots=True)
class Registered:
    """What a transaction has registered."""

    datasets: int
    """Number of new datasets."""
    skipped: Mapping[Path, str]
    """By spool: which of its datasets were skipped, and whose are there instead."""


class Registrar:
    """Registers outputs of visits; `node` must differ between the hosts that export to one repo."""

    def __init__(self, node: str):
        self._node = node
        self._links = True
        self._owners = Owners()

    def register(self, butler: Butler, batch: Mapping[Path, Manifest]) -> Registered:
        """Register the content of spools, all or nothing.

        Datasets that the central repo already has, from an earlier export,
        another attempt or another host, are not changed.
        """
        files = [file for spool, manifest in batch.items() for file in _files(butler, spool, manifest)]
        for dataset_type in sorted({ref.datasetType for file in files for ref in file.refs}):
            butler.registry.registerDatasetType(dataset_type)
        for run in sorted({ref.run for file in files for ref in file.refs}):
            butler.collections.register(run)
        unknown = _without_known(butler, files)
        new = self._without_shared(butler, _first_of_each(unknown))
        new = self._commit_new(butler, _records(butler, batch.values()), new)
        _extend_chains(butler, batch.values())
        return self._registered(batch, unknown, new)

    def _registered(
        self, batch: Mapping[Path, Manifest], unknown: Iterable[FileDataset], new: Iterable[FileDataset]
    ) -> Registered:
        spools = {
            ref.id: spool for spool, manifest in batch.items() for file in manifest.files for ref in file.refs
        }
        exported = {ref.id: ref for file in new for ref in file.refs}
        skipped = [
            ref
            for file in unknown
            for ref in file.refs
            if ref.id not in exported and ref.dataId.dimensions  # init-outputs are the same in each spool
        ]
        owned = [[(ref, batch[spools[ref.id]].key) for ref in refs] for refs in (exported.values(), skipped)]
        notes = self._owners.record(*owned)
        by_spool = {spool: notes[manifest.key] for spool, manifest in batch.items() if manifest.key in notes}
        return Registered(len(exported), by_spool)

    def _without_shared(self, butler: Butler, files: Iterable[FileDataset]) -> list[FileDataset]:
        """Remove init-outputs (datasets without dimensions), and datasets of which another detector
        was first, if the central repo has them.
        """
        # Each host writes init-outputs for each run, with the same content: the
        # run's name depends on everything that they depend on. The others would
        # collide, and the whole transaction would be repeated.
        return [
            file
            for file in files
            if (file.refs[0].dataId.dimensions and not self._owners.knows(file.refs[0]))
            or not _exists(butler, file.refs[0])
        ]

    def _commit_new(
        self, butler: Butler, records: list[DimensionRecord], files: list[FileDataset]
    ) -> list[FileDataset]:
        """Commit, retrying after collisions with other exporters; return the files that were new."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._commit(butler, records, files)
                break
            except ConflictingDefinitionError as error:
                new = _without_existing(butler, files)
                if len(new) == len(files) or attempt == ATTEMPTS:
                    raise
                _LOG.warning(
                    "%d of %d files are skipped, another attempt or host has exported their datasets: %s",
                    len(files) - len(new),
                    len(files),
                    describe(error),
                )
                files = new
            except sqlalchemy.exc.OperationalError as error:
                if not is_contention(error) or attempt == ATTEMPTS:
                    raise
                _LOG.info("the transaction collided with another one, trying again: %s", describe(error))
        return files

    def _commit(self, butler: Butler, records: list[DimensionRecord], files: list[FileDataset]) -> None:
        if self._links:
            try:
                _ingest(butler, records, files, "hardlink")
                return
            except OSError as error:
                if not is_link_refusal(error):
                    raise
                _LOG.info("files cannot be hard-linked into the central repo, copying: %s", describe(error))
                self._links = False
        root = _local_root(butler)
        if root is None:
            _ingest(butler, records, files, "copy")
            return
        # Only this exporter uses the folder: files in it are leftovers of its previous run.
        incoming = root / f"incoming-{quote(self._node, safe='')}"
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir()
        try:
            _ingest(butler, records, [_copied(file, incoming) for file in files], "move")
            _sync_names(butler, [ref for file in files for ref in file.refs])
        finally:
            shutil.rmtree(incoming, ignore_errors=True)


def _ingest(
    butler: Butler, records: list[DimensionRecord], files: Sequence[FileDataset], transfer: str
) -> None:
    """Insert records and ingest files, all or nothing."""
    with butler.transaction():
        insert_records(butler, records)
        if files:
            butler.ingest(*files, transfer=transfer)


def _local_root(butler: Butler) -> Path | None:
    """Return the root of a repo's datastore; `None` if there are several or it is not local."""
    roots = list(butler.get_datastore_roots().values())
    if len(roots) != 1 or roots[0] is None or not roots[0].isLocal:
        return None
    return Path(roots[0].ospath)


def _copied(file: FileDataset, folder: Path) -> FileDataset:
    """Copy a file to a folder and sync it: its spool will be deleted."""
    source = ResourcePath(file.path)
    copy = folder / source.basename()
    shutil.copyfile(source.ospath, copy)
    sync(copy)
    return file_dataset(copy, file.refs, file.formatter)


def _sync_names(butler: Butler, refs: Sequence[DatasetRef]) -> None:
    """Sync the folders of new files, so that their names are on the disk too."""
    uris = [found.primaryURI for found in butler.get_many_uris(refs).values()]
    for folder in {Path(uri.ospath).parent for uri in uris if uri is not None}:
        sync(folder)


def _files(butler: Butler, spool: Path, manifest: Manifest) -> list[FileDataset]:
    return [
        file_dataset(
            spool / file.name,
            [DatasetRef.from_simple(ref, universe=butler.dimensions) for ref in file.refs],
            file.formatter,
        )
        for file in manifest.files
    ]


def _records(butler: Butler, manifests: Iterable[Manifest]) -> list[DimensionRecord]:
    """Return the records of all manifests, sorted, of each one with all known values."""
    # Sorted: two transactions that insert the same rows in different orders
    # would deadlock.
    found: dict[tuple[str, tuple[object, ...]], DimensionRecord] = {}
    for manifest in manifests:
        for simple in manifest.records:
            record = DimensionRecord.from_simple(simple, universe=butler.dimensions)
            key = record.definition.name, record.dataId.required_values
            found[key] = completed(found.get(key, record), record)
    return [found[key] for key in sorted(found)]


def _without_known(butler: Butler, files: Sequence[FileDataset]) -> list[FileDataset]:
    """Remove files whose datasets were exported before: the reply to that export was lost."""
    known = {ref.id for ref in butler.get_many_datasets([ref.id for file in files for ref in file.refs])}
    return [file for file in files if not any(ref.id in known for ref in file.refs)]


def _first_of_each(files: Iterable[FileDataset]) -> list[FileDataset]:
    """Return the first file of each type, run and data ID: the first attempt wins."""
    first: dict[object, FileDataset] = {}
    for file in files:
        ref = file.refs[0]
        first.setdefault((ref.datasetType.name, ref.run, ref.dataId), file)
    return list(first.values())


def _without_existing(butler: Butler, files: Sequence[FileDataset]) -> list[FileDataset]:
    """Remove files whose run already has a dataset of the same type and data ID."""
    return [file for file in files if not any(_exists(butler, ref) for ref in file.refs)]


def _exists(butler: Butler, ref: DatasetRef) -> bool:
    return butler.find_dataset(ref.datasetType, ref.dataId, collections=ref.run) is not None


def _extend_chains(butler: Butler, manifests: Iterable[Manifest]) -> None:
    """Prepend new runs to the chain of the day; do not move the others."""
    runs_of: dict[str, dict[str, None]] = {}
    for manifest in manifests:
        for chain, runs in manifest.chains.items():
            runs_of.setdefault(chain, {}).update(dict.fromkeys(runs))
    for chain, needed in runs_of.items():
        butler.collections.register(chain, CollectionType.CHAINED)
        present = butler.collections.get_info(chain).children
        new = [run for run in needed if run not in present]
        if new:
            butler.collections.prepend_chain(chain, new)
