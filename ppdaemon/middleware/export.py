# SPDX-License-Identifier: BSD-3-Clause
"""Registering spooled outputs in the central repo: many visits in one transaction, each dataset once.

Files get into the central repo by hard link where spool and repo are on one
filesystem. Elsewhere they are first copied beside the repo's own files and
then renamed, so that no database is locked while data are copied.
"""

import logging
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

# CollectionType is public, though its package does not list it.
from lsst.daf.butler import (  # type: ignore[attr-defined]
    Butler,
    CollectionType,
    DatasetRef,
    DimensionRecord,
    FileDataset,
)
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.resources import ResourcePath

from ppdaemon.clock import Clock
from ppdaemon.errors import BadMessage
from ppdaemon.messages import Exported
from ppdaemon.middleware.failures import AWAY_ERRORS, DATABASE_ERRORS, describe, is_link_refusal
from ppdaemon.middleware.records import insert_records
from ppdaemon.middleware.spool import Manifest, read_manifest, sync

__all__ = ("CentralExporter",)

_LOG = logging.getLogger(__name__)


class CentralExporter:
    """Writes to the central repo on behalf of a host.

    Parameters
    ----------
    uri : `str`
        Root, configuration file or alias of the central repo.
    clock : `~ppdaemon.clock.Clock`
        Tells when.
    node : `str`
        Name of this host's node; no other exporter into this repo has it.
    """

    def __init__(self, uri: str, clock: Clock, node: str):
        self._uri = uri
        self._clock = clock
        self._node = node
        self._butler: Butler | None = None
        self._links = True

    def export(self, spools: Sequence[Path]) -> Exported:
        """Register spooled outputs and delete the spools.

        Parameters
        ----------
        spools : `~collections.abc.Sequence` [`pathlib.Path`]
            Spool folders; those that are gone count as exported.

        Returns
        -------
        exported : `~ppdaemon.messages.Exported`
            The spools that are in the central repo now; one that cannot be
            exported is left out and stays.

        Raises
        ------
        Exception
            Raised if nothing could be exported: the central repo is away, or
            all spools are bad.
        """
        try:
            butler = self._open()
            done, datasets = self._export_some(butler, [path for path in spools if path.exists()])
        except AWAY_ERRORS:
            self.close()
            raise
        gone = [path for path in spools if not path.exists()]
        for path in done:
            _remove(path)
        finished = tuple(str(path) for path in spools if path in {*done, *gone})
        return Exported(spools=finished, tai=self._clock.tai(), datasets=datasets)

    def close(self) -> None:
        """Disconnect; the next export connects anew."""
        butler, self._butler = self._butler, None
        if butler is not None:
            try:
                butler.close()
            except DATABASE_ERRORS as error:
                _LOG.debug("closing the central repo: %s", describe(error))

    def _open(self) -> Butler:
        if self._butler is None:
            self._butler = Butler.from_config(self._uri, writeable=True)
        return self._butler

    def _export_some(self, butler: Butler, spools: Sequence[Path]) -> tuple[list[Path], int]:
        """Export all at once, or one by one where that does not go."""
        try:
            return list(spools), self._export_all(butler, spools)
        except AWAY_ERRORS:
            raise
        except Exception as error:
            if len(spools) == 1:
                raise
            _LOG.warning("exporting %d visits one by one: %s", len(spools), describe(error))
        done, datasets, last = [], 0, None
        for spool in spools:
            try:
                datasets += self._export_all(butler, [spool])
                done.append(spool)
            except AWAY_ERRORS:
                raise
            except Exception as error:  # one bad spool must not keep the others
                _LOG.error("%s cannot be exported: %s", spool, describe(error))
                last = error
        if not done and last is not None:
            raise last
        return done, datasets

    def _export_all(self, butler: Butler, spools: Sequence[Path]) -> int:
        """Export in one transaction; return the number of new datasets."""
        manifests = {spool: read_manifest(spool) for spool in spools}
        files = [file for spool, manifest in manifests.items() for file in _files(butler, spool, manifest)]
        for dataset_type in sorted({ref.datasetType for file in files for ref in file.refs}):
            butler.registry.registerDatasetType(dataset_type)
        for run in sorted({ref.run for file in files for ref in file.refs}):
            butler.collections.register(run)
        records = _records(butler, manifests.values())
        new = _without_global(butler, _without_known(butler, files))
        try:
            self._register(butler, records, new)
        except ConflictingDefinitionError as error:
            # Another attempt, or another host, was there first.
            _LOG.info("looking for datasets that are there already: %s", describe(error))
            new = _without_taken(butler, new)
            self._register(butler, records, new)
        _extend_chains(butler, manifests.values())
        return sum(len(file.refs) for file in new)

    def _register(self, butler: Butler, records: list[DimensionRecord], files: list[FileDataset]) -> None:
        if self._links:
            try:
                _commit(butler, records, files, "hardlink")
                return
            except OSError as error:
                if not is_link_refusal(error):
                    raise
                _LOG.info("files are copied to the central repo: %s", describe(error))
                self._links = False
        root = _local_root(butler)
        if root is None:
            _commit(butler, records, files, "copy")
            return
        # Only this exporter uses the folder: what is in it was left by a former life.
        incoming = root / f"incoming-{quote(self._node, safe='')}"
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir()
        try:
            _commit(butler, records, [_copied(file, incoming) for file in files], "move")
            _sync_names(butler, [ref for file in files for ref in file.refs])
        finally:
            shutil.rmtree(incoming, ignore_errors=True)


def _remove(spool: Path) -> None:
    """Delete a spool in such a way that half of one is never taken for one."""
    doomed = spool.with_name(f"{spool.name}.done")
    shutil.rmtree(doomed, ignore_errors=True)
    spool.rename(doomed)
    shutil.rmtree(doomed)


def _commit(
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
    return FileDataset(path=ResourcePath(copy.as_uri()), refs=file.refs, formatter=file.formatter)


def _sync_names(butler: Butler, refs: Sequence[DatasetRef]) -> None:
    """Make the names of new files durable too."""
    uris = [found.primaryURI for found in butler.get_many_uris(refs).values()]
    for folder in {Path(uri.ospath).parent for uri in uris if uri is not None}:
        sync(folder)


def _files(butler: Butler, spool: Path, manifest: Manifest) -> list[FileDataset]:
    missing = [file.name for file in manifest.files if not (spool / file.name).is_file()]
    if missing:
        raise BadMessage(f"{spool}: the manifest names files that are not there: {', '.join(missing)}")
    return [
        FileDataset(
            path=ResourcePath((spool / file.name).as_uri()),
            refs=[DatasetRef.from_simple(ref, universe=butler.dimensions) for ref in file.refs],
            formatter=file.formatter,
        )
        for file in manifest.files
    ]


def _records(butler: Butler, manifests: Iterable[Manifest]) -> list[DimensionRecord]:
    """Return the records of all manifests, each once."""
    found: dict[tuple[str, object], DimensionRecord] = {}
    for manifest in manifests:
        for simple in manifest.records:
            record = DimensionRecord.from_simple(simple, universe=butler.dimensions)
            found.setdefault((record.definition.name, record.dataId), record)
    return list(found.values())


def _without_known(butler: Butler, files: Sequence[FileDataset]) -> list[FileDataset]:
    """Leave out what was exported before: a repeat after a lost answer."""
    known = {ref.id for ref in butler.get_many_datasets([ref.id for file in files for ref in file.refs])}
    return [file for file in files if not any(ref.id in known for ref in file.refs)]


def _without_global(butler: Butler, files: Sequence[FileDataset]) -> list[FileDataset]:
    """Keep the first of datasets without dimensions, such as configurations.

    Each visit makes them anew and alike: a run's name depends on all that
    they depend on.
    """
    kept, seen = [], set()
    for file in files:
        ref = file.refs[0]
        if not ref.dataId.dimensions:
            place = (ref.datasetType.name, ref.run)
            if place in seen or _is_taken(butler, ref):
                continue
            seen.add(place)
        kept.append(file)
    return kept


def _without_taken(butler: Butler, files: Sequence[FileDataset]) -> list[FileDataset]:
    """Keep those whose run has no dataset of the same data ID: the first attempt wins."""
    kept: dict[object, FileDataset] = {}
    for file in files:
        if not any(_is_taken(butler, ref) for ref in file.refs):
            ref = file.refs[0]
            kept.setdefault((ref.datasetType.name, ref.run, ref.dataId), file)
    return list(kept.values())


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
