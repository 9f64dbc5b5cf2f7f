# SPDX-License-Identifier: BSD-3-Clause
"""Registering outputs in the central repo: many visits in one transaction, each dataset once.

Other hosts do the same at the same moment, often with records of the same
visit and into the same runs. Whoever commits first wins; the others find out
and leave out what is there.

Files get into the central repo by hard link where spool and repo are on one
filesystem. Elsewhere they are first copied beside the repo's own files and
then renamed, so that no database is locked while data are copied.
"""

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import sqlalchemy.exc
from lsst.daf.butler import Butler, CollectionType, DatasetRef, DimensionRecord, FileDataset
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.resources import ResourcePath

from ppdaemon.durable import sync
from ppdaemon.middleware.butler.datafiles import file_dataset
from ppdaemon.middleware.butler.failures import describe, is_contention, is_link_refusal
from ppdaemon.middleware.export.spool import Manifest
from ppdaemon.middleware.raws.visits import fuller, insert_records

__all__ = ("Registrar",)

_LOG = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often a transaction is begun that others disturb. Each of them wins
once, so that several in a row mean several hosts at the same moment."""


class Registrar:
    """Registers outputs of visits.

    Parameters
    ----------
    node : `str`
        Name of this host's node; no other exporter into the repo has it.
    """

    def __init__(self, node: str):
        self._node = node
        self._links = True

    def register(self, butler: Butler, batch: Mapping[Path, Manifest]) -> int:
        """Register what some spools hold: all of it, or nothing.

        Parameters
        ----------
        butler : `lsst.daf.butler.Butler`
            The central repo.
        batch : `~collections.abc.Mapping` [`pathlib.Path`, `Manifest`]
            What is in each spool.

        Returns
        -------
        datasets : `int`
            How many are new in the central repo. What it had before, from
            an earlier try, another attempt or another host, stays as it is.
        """
        files = [file for spool, manifest in batch.items() for file in _files(butler, spool, manifest)]
        for dataset_type in sorted({ref.datasetType for file in files for ref in file.refs}):
            butler.registry.registerDatasetType(dataset_type)
        for run in sorted({ref.run for file in files for ref in file.refs}):
            butler.collections.register(run)
        new = _without_shared(butler, _first_of_each(_without_known(butler, files)))
        new = self._commit_new(butler, _records(butler, batch.values()), new)
        _extend_chains(butler, batch.values())
        return sum(len(file.refs) for file in new)

    def _commit_new(
        self, butler: Butler, records: list[DimensionRecord], files: list[FileDataset]
    ) -> list[FileDataset]:
        """Commit in spite of other exporters; return the files that were new."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._commit(butler, records, files)
                break
            except ConflictingDefinitionError as error:
                left = _without_taken(butler, files)
                if len(left) == len(files) or attempt == ATTEMPTS:
                    raise
                _LOG.warning(
                    "%d of %d datasets are in the central repo already, by another attempt or host: %s",
                    len(files) - len(left),
                    len(files),
                    describe(error),
                )
                files = left
            except sqlalchemy.exc.OperationalError as error:
                if not is_contention(error) or attempt == ATTEMPTS:
                    raise
                _LOG.info("another exporter was in the way, trying again: %s", describe(error))
        return files

    def _commit(self, butler: Butler, records: list[DimensionRecord], files: list[FileDataset]) -> None:
        if self._links:
            try:
                _ingest(butler, records, files, "hardlink")
                return
            except OSError as error:
                if not is_link_refusal(error):
                    raise
                _LOG.info("files are copied to the central repo: %s", describe(error))
                self._links = False
        root = _local_root(butler)
        if root is None:
            _ingest(butler, records, files, "copy")
            return
        # Only this exporter uses the folder: what is in it was left by its previous run.
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
    """Return the one folder below which a repo keeps its files, if that is so."""
    roots = list(butler.get_datastore_roots().values())
    if len(roots) != 1 or roots[0] is None or not roots[0].isLocal:
        return None
    return Path(roots[0].ospath)


def _copied(file: FileDataset, folder: Path) -> FileDataset:
    """Copy a file to a folder, for good: its spool will be deleted."""
    source = ResourcePath(file.path)
    copy = folder / source.basename()
    shutil.copyfile(source.ospath, copy)
    sync(copy)
    return file_dataset(copy, file.refs, file.formatter)


def _sync_names(butler: Butler, refs: Sequence[DatasetRef]) -> None:
    """Make the names of new files durable too."""
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
    """Return the records of all manifests, each once, the fullest, and in an order that all hosts have.

    Two transactions that insert the same rows in different orders would wait
    for each other.
    """
    found: dict[tuple[str, tuple[object, ...]], DimensionRecord] = {}
    for manifest in manifests:
        for simple in manifest.records:
            record = DimensionRecord.from_simple(simple, universe=butler.dimensions)
            key = record.definition.name, record.dataId.required_values
            found[key] = fuller(found.get(key, record), record)
    return [found[key] for key in sorted(found)]


def _without_known(butler: Butler, files: Sequence[FileDataset]) -> list[FileDataset]:
    """Leave out what was exported before: a repeat after a lost answer."""
    known = {ref.id for ref in butler.get_many_datasets([ref.id for file in files for ref in file.refs])}
    return [file for file in files if not any(ref.id in known for ref in file.refs)]


def _first_of_each(files: Iterable[FileDataset]) -> list[FileDataset]:
    """Keep the first where several are of one type, run and data ID: the first attempt wins."""
    kept: dict[object, FileDataset] = {}
    for file in files:
        ref = file.refs[0]
        kept.setdefault((ref.datasetType.name, ref.run, ref.dataId), file)
    return list(kept.values())


def _without_shared(butler: Butler, files: Iterable[FileDataset]) -> list[FileDataset]:
    """Leave out configurations and the like that are there.

    Each host makes them for each run, and alike: the run's name depends on
    all that they depend on.
    """
    return [file for file in files if file.refs[0].dataId.dimensions or not _is_taken(butler, file.refs[0])]


def _without_taken(butler: Butler, files: Sequence[FileDataset]) -> list[FileDataset]:
    """Keep those whose run has no dataset of the same data ID."""
    return [file for file in files if not any(_is_taken(butler, ref) for ref in file.refs)]


def _is_taken(butler: Butler, ref: DatasetRef) -> bool:
    return butler.find_dataset(ref.datasetType, ref.dataId, collections=ref.run) is not None


def _extend_chains(butler: Butler, manifests: Iterable[Manifest]) -> None:
    """Put new runs in front of the day's chain; leave old ones where they are."""
    runs_of: dict[str, dict[str, None]] = {}
    for manifest in manifests:
        for chain, runs in manifest.chains.items():
            runs_of.setdefault(chain, {}).update(dict.fromkeys(runs))
    for chain, wanted in runs_of.items():
        butler.collections.register(chain, CollectionType.CHAINED)
        present = butler.collections.get_info(chain).children
        new = [run for run in wanted if run not in present]
        if new:
            butler.collections.prepend_chain(chain, new)
