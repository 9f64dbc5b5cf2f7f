# SPDX-License-Identifier: BSD-3-Clause
"""Registers outputs in the central repo: many visits in one transaction, each dataset once.

Exporters of other hosts do the same concurrently, often with records of the
same visit and into the same runs. The first commit wins; the other exporters
detect it and skip the datasets that are there.

Files are copied by threads to a folder beside the repo's files, and compared with
their checksums meanwhile; then they are renamed, so that no database is locked while
data are copied. Those of a spool in the same filesystem are linked instead, but never a
file that a process, which a worker may have left, can still write to. What is no image is
copied and registered first.
"""

import logging
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import sqlalchemy.exc
from lsst.daf.butler import (
    Butler,
    CollectionType,
    DatasetRef,
    DatasetType,
    DatasetTypeNotSupportedError,
    DimensionRecord,
    MissingCollectionError,
)
from lsst.daf.butler.registry import ConflictingDefinitionError

from ppdaemon.config import ExportConfig
from ppdaemon.durable import sync
from ppdaemon.errors import BadMessage
from ppdaemon.middleware.butler.datafiles import file_dataset
from ppdaemon.middleware.butler.failures import describe, is_contention
from ppdaemon.middleware.export.checksums import copy_checked, facts_of_new
from ppdaemon.middleware.export.manifest import Manifest
from ppdaemon.middleware.export.mark import DatastoreMark
from ppdaemon.middleware.export.newcontent import NewContent, NewDataset, NewFile, Place
from ppdaemon.middleware.export.owners import Owners
from ppdaemon.middleware.export.quarantine import rejection
from ppdaemon.middleware.export.spool import image_types
from ppdaemon.middleware.export.syncing import sync_all
from ppdaemon.middleware.raws.visits import insert_records

if TYPE_CHECKING:
    from ppdaemon.middleware.export.rows import RowIngest

__all__ = ("DamagedSpools", "Registered", "Registrar")

_LOG = logging.getLogger(__name__)

ATTEMPTS = 5
"""Attempts at a transaction that collides with others. Each collision means that
one other exporter has committed: five in a row are five hosts at once."""

MAX_PRESENT = 5000
"""Dimension records that are remembered, those of some visits: in 10 MB."""


class DamagedSpools(Exception):
    """Files of these spools cannot be read, or were changed; nothing more was registered."""

    def __init__(self, faults: Mapping[Path, BadMessage]):
        super().__init__("; ".join(map(str, faults.values())))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Registered:
    """What a transaction has registered."""

    datasets: int
    """Number of new datasets."""
    skipped: Mapping[Path, str]
    """By spool: which of its datasets were skipped, and whose are there instead."""


class Registrar:
    """Registers outputs of visits; `node` must differ between the hosts that export to one repo."""

    def __init__(self, node: str, config: ExportConfig):
        self._node = node
        self._copies = config.copies
        self.images = image_types(config.images)
        """Matches the names or storage classes of images."""
        self._owners = Owners()
        self._rows: RowIngest | None = None
        self._present: set[DatasetType | DimensionRecord | str] = set()
        """Dataset types, dimension records and names of runs that the repo has; see `forget`."""

    def connect(self, butler: Butler) -> None:
        """Decide how files are ingested into a repo that was just opened."""
        self.forget()
        try:
            # Another version of the Butler may have what it imports elsewhere.
            from ppdaemon.middleware.export.rows import RowIngest, problem

            reason = problem(butler)
        except ImportError as error:
            reason = f"this version of lsst.daf.butler is not known: {error}"
        if reason:
            _LOG.warning("files are ingested one by one, which is slower: %s", reason)
            self._rows = None
        else:
            _LOG.info("files are ingested by inserting the rows of all of them at once")
            self._rows = RowIngest(butler)

    def register(self, butler: Butler, mark: DatastoreMark, batch: Mapping[Path, Manifest]) -> Registered:
        """Register the content of spools in two transactions, the second one for images.

        Datasets that the central repo already has, from an earlier export,
        another attempt or another host, are not changed. After an error it may be
        called again with the same spools.
        """
        found = NewContent.of(batch, butler.dimensions)
        files = found.files
        runs = {each.run for file in files for each in file.datasets}
        # Of all types, not only of those that are present here: the Butler does not correct the key of one
        # that is registered again, and may remember that of each type in the repo.
        if self._rows is not None and not self._rows.is_current(each.name for each in found.types):
            butler.registry.refresh()
            self.forget()
        elif len(self._present) > MAX_PRESENT:
            self.forget()
        records = self._new_records(found.records)
        for dataset_type in sorted(found.types - self._present):
            butler.registry.registerDatasetType(dataset_type)
        # A run has two rows, which the Butler inserts one by one: with one of them only, which a kill would
        # leave, nothing can be inserted into the run any more.
        if new_runs := sorted(runs - self._present):
            with butler.transaction():
                for run in new_runs:
                    butler.collections.register(run)
        shared = {id(kind) for kind in found.types if "detector" not in kind.dimensions}
        images = {id(kind) for kind in found.types if self._is_image(kind)}
        unknown = self._without_known(butler, files)
        wanted = self._without_shared(butler, _first_of_each(unknown), shared)
        new = []
        # The records go with the first part.
        for part in _parts(wanted, images):
            new += self._commit_new(butler, mark, records, part)
            records = []  # they are there now
        _extend_chains(butler, batch.values())
        self._present.update(found.types, found.records, runs)
        return self._registered(batch, unknown, new, shared)

    def forget(self) -> bool:
        """Let the next `register` look again for the dataset types, runs and records that the repo had: an
        error may be that one has been removed since. Return whether there were any.
        """
        present, self._present = self._present, set()
        if self._rows is not None:
            self._rows.forget()
        return bool(present)

    def _new_records(self, records: Sequence[DimensionRecord]) -> list[DimensionRecord]:
        """Return the records that the repo may lack. With a visit come its memberships in systems, because
        of which `insert_records` makes it again from all its exposures.
        """
        new = [record for record in records if record not in self._present]
        if all(record.definition.name != "visit" for record in new):
            return new
        return [
            record
            for record in records
            if record not in self._present or record.definition.name == "visit_system_membership"
        ]

    def _registered(
        self,
        batch: Mapping[Path, Manifest],
        unknown: Sequence[NewFile],
        new: Sequence[NewFile],
        shared: Collection[int],
    ) -> Registered:
        # By identity: hashes of the ids of datasets are slow.
        exported = set(map(id, new))
        skipped = [
            (each, batch[file.spool].key)
            for file in unknown
            if id(file) not in exported
            for each in file.datasets
            if each.dataset_type.dimensions  # init-outputs are the same in each spool
        ]
        owned = (
            (each, batch[file.spool].key)
            for file in new
            for each in file.datasets
            if skipped or id(each.dataset_type) in shared  # of others nothing is remembered
        )
        notes = self._owners.record(owned, skipped)
        by_spool = {spool: notes[manifest.key] for spool, manifest in batch.items() if manifest.key in notes}
        return Registered(sum(len(file.datasets) for file in new), by_spool)

    def _is_image(self, kind: DatasetType) -> bool:
        return any(self.images.fullmatch(name) for name in (kind.name, kind.storageClass_name))

    def _without_shared(
        self, butler: Butler, files: Iterable[NewFile], shared: Collection[int]
    ) -> list[NewFile]:
        """Remove init-outputs (datasets without dimensions), and datasets of which another detector
        was first, if the central repo has them.
        """
        # Each host writes init-outputs for each run, with the same content: the
        # run's name depends on everything that they depend on. The others would
        # collide, and the whole transaction would be repeated.
        return [
            file
            for file in files
            if id(file.first.dataset_type) not in shared
            or (file.first.dataset_type.dimensions and not self._owners.knows(file.first))
            or not _exists(butler, file.first)
        ]

    def _without_known(self, butler: Butler, files: Sequence[NewFile]) -> list[NewFile]:
        """Remove files whose datasets were exported before: the reply to that export was lost."""
        ids = [each.id for file in files for each in file.datasets]
        if self._rows is not None:
            known = self._rows.known(ids)
        else:
            known = {ref.id for ref in butler.get_many_datasets(ids)}
        return [file for file in files if not known or known.isdisjoint(each.id for each in file.datasets)]

    def _commit_new(
        self, butler: Butler, mark: DatastoreMark, records: Sequence[DimensionRecord], files: list[NewFile]
    ) -> list[NewFile]:
        """Commit, retrying after collisions with other exporters; return the files that were new."""
        with self._copied(butler, mark, files) as copies:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    self._ingest(butler, mark, records, files, copies)
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
                except (AttributeError, TypeError) as error:
                    if self._rows is None or attempt == ATTEMPTS:
                        raise
                    # Another version of the Butler may have other parameters.
                    _LOG.warning(
                        "files are ingested one by one from now on, which is slower: %s", describe(error)
                    )
                    self._rows = None
        return files

    @contextmanager
    def _copied(
        self, butler: Butler, mark: DatastoreMark, files: Sequence[NewFile]
    ) -> Iterator[Mapping[str, str]]:
        """Copy files into the filesystem of the datastore, in a folder that is deleted afterwards; yield
        where they are. Files for another kind of store are compared only.
        """
        mark.check()
        root = _local_root(butler)
        if root is None:
            yield self._copy(files, None)
            return
        # Only this exporter uses the folder: files in it are leftovers of its previous run.
        incoming = root / f"incoming-{quote(self._node, safe='')}"
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir()
        try:
            yield self._copy(files, incoming)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def _copy(self, files: Sequence[NewFile], folder: Path | None) -> dict[str, str]:
        """Copy or link and sync files, or compare them if there is no folder; return the path of each. Raises
        `DamagedSpools` after all were compared.
        """
        # Numbered: two spools may have files of the same name.
        copies = {
            file.path: file.path if folder is None else f"{folder}/{number}-{file.spooled.name}"
            for number, file in enumerate(files)
        }
        linkable = None if folder is None else facts_of_new(folder)
        dirty: list[str] = []
        faults: dict[Path, BadMessage] = {}
        # The threads share it: a task for each file would take longer than a small file.
        left = iter(files)

        def copy() -> None:
            for file in left:
                target, spooled = None if folder is None else copies[file.path], file.spooled
                if file.spool in faults:
                    continue
                try:
                    size_bytes, checksum = spooled.size_bytes, spooled.checksum
                    if copy_checked(file.path, target, size_bytes, checksum, linkable, spooled.changed_ns):
                        dirty.append(copies[file.path])
                except BadMessage as error:
                    faults[file.spool] = error
                except BaseException:
                    list(left)  # the others end, too
                    raise

        with ThreadPoolExecutor(self._copies, "copy") as threads:
            copying = [threads.submit(copy) for _ in range(self._copies)]
        for each in copying:
            each.result()
        if faults:
            raise DamagedSpools(faults)
        sync_all(dirty)  # the spools will be deleted
        return copies

    def _ingest(
        self,
        butler: Butler,
        mark: DatastoreMark,
        records: Sequence[DimensionRecord],
        files: Sequence[NewFile],
        copies: Mapping[str, str],
    ) -> None:
        """Insert records and ingest files, all or nothing. Raises `~ppdaemon.errors.BadMessage` if the
        datastore does not accept a dataset.
        """
        with butler.transaction():
            insert_records(butler, records)
            if not files:
                return
            if self._rows is not None:
                self._rows.ingest(files, copies)
            else:
                local = _local_root(butler) is not None
                datasets = [
                    file_dataset(Path(copies[file.path]), file.refs(), file.spooled.formatter)
                    for file in files
                ]
                try:
                    butler.ingest(*datasets, transfer="move" if local else "copy")
                except DatasetTypeNotSupportedError as error:
                    raise rejection(error) from error
                if local:
                    _sync_names(butler, [ref for each in datasets for ref in each.refs])
            # Before the commit: a dataset that is registered is on the disk, and the next export
            # of its spool does not copy it again.
            mark.check()


def _local_root(butler: Butler) -> Path | None:
    """Return the root of a repo's datastore; `None` if there are several or it is not local."""
    roots = list(butler.get_datastore_roots().values())
    if len(roots) != 1 or roots[0] is None or not roots[0].isLocal:
        return None
    return Path(roots[0].ospath)


def _sync_names(butler: Butler, refs: Sequence[DatasetRef]) -> None:
    """Sync the folders of new files, and those above, which may be new too."""
    root = _local_root(butler)
    uris = (found.primaryURI for found in butler.get_many_uris(refs).values())
    leaves = {os.path.dirname(uri.ospath) for uri in uris if uri is not None}
    folders = {folder for leaf in leaves for folder in (Path(leaf), *Path(leaf).parents)}
    for folder in folders:
        if root and folder.is_relative_to(root):
            sync(folder)


def _first_of_each(files: Iterable[NewFile]) -> list[NewFile]:
    """Return the first file of each type, run and data ID: the first attempt wins."""
    first: dict[Place, NewFile] = {}
    for file in files:
        first.setdefault(file.first.place, file)
    return list(first.values())


def _parts(files: Iterable[NewFile], images: Collection[int]) -> list[list[NewFile]]:
    """Return the files that are no images, and the images."""
    parts: tuple[list[NewFile], list[NewFile]] = [], []
    for file in files:
        parts[id(file.first.dataset_type) in images].append(file)
    return [part for part in parts if part] or [[]]


def _without_existing(butler: Butler, files: Sequence[NewFile]) -> list[NewFile]:
    """Remove files whose run already has a dataset of the same type and data ID."""
    return [file for file in files if not any(_exists(butler, each) for each in file.datasets)]


def _exists(butler: Butler, dataset: NewDataset) -> bool:
    found = butler.find_dataset(dataset.dataset_type, dataset.data_id, collections=dataset.run)
    return found is not None


def _extend_chains(butler: Butler, manifests: Iterable[Manifest]) -> None:
    """Prepend new runs to the chain of the day; do not move the others."""
    runs_of: dict[str, list[str]] = {}
    for manifest in manifests:
        for chain, runs in manifest.chains.items():
            _merge(runs_of.setdefault(chain, []), runs)
    for chain, needed in runs_of.items():
        try:
            (info,) = butler.collections.query_info(chain)
            present = info.children
        except MissingCollectionError:
            butler.collections.register(chain, CollectionType.CHAINED)
            present = ()
        new = [run for run in needed if run not in present]
        if new:
            butler.collections.prepend_chain(chain, new)


def _merge(chain: list[str], runs: Sequence[str]) -> None:
    """Add the runs of another manifest to a chain, each before the one that follows it there: some manifests
    begin behind runs whose images are still to be packed.
    """
    place = len(chain)
    for run in reversed(runs):
        if run in chain:
            place = chain.index(run)
        else:
            chain.insert(place, run)
