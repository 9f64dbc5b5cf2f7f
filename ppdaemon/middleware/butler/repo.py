# SPDX-License-Identifier: BSD-3-Clause
"""The worker's local repo: a copy of the template, as it was again after each visit.

A visit's datasets are in files below its root at once. Its registry gets them
when the Butler is used: engines that query do so, the ``direct`` engine goes by
`LocalRepo.datasets` and `LocalRepo.records`. Most of a preload would otherwise
be SQL about what the worker itself has put there. Until it is used, there is
no registry: a copy of the template's is opened then, in 50 ms.
"""

import logging
import pickle
import shutil
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from lsst.daf.butler import (
    Butler,
    ButlerConfig,
    Config,
    DataCoordinate,
    DataIdValueError,
    DatasetRef,
    DatasetType,
    DimensionGroup,
    DimensionRecord,
    DimensionUniverse,
    MissingDatasetTypeError,
    StorageClassFactory,
)
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.pipe.base import Instrument

from ppdaemon.middleware.butler.central import own_storage_classes
from ppdaemon.middleware.butler.datafiles import LocatedFile, file_dataset, located
from ppdaemon.middleware.butler.failures import DATABASE_ERRORS, describe
from ppdaemon.middleware.butler.formatters import FileWriter, UnknownDatastore, read_dataset
from ppdaemon.middleware.butler.localdatasets import LocalDataset, LocalDatasets

__all__ = ("LocalRepo", "make_template", "template_dimensions", "template_repo", "write_content")

_LOG = logging.getLogger(__name__)
_REPO = "repo"
_CONTENT = "content"
_TEMPLATE_ELEMENTS = ("instrument", "detector", "physical_filter", "band", "visit_system")
"""Of which a template may have records."""

type _RecordKey = tuple[str, tuple[Any, ...]]
"""Element and required values of the data ID."""


@dataclass(frozen=True, slots=True)
class _TemplateContent:
    """What a template has, in a file that is read in less than a millisecond."""

    versions: str
    universe: DimensionUniverse
    datastore: dict[str, Any]
    """The complete configuration of the datastore."""
    storage_classes: dict[str, Any]
    """Those of the site and of the central repo."""
    types: dict[str, DatasetType]
    records: dict[_RecordKey, DimensionRecord]

    @classmethod
    def of(cls, template: Path, versions: str) -> "_TemplateContent":
        root = str(template_repo(template))
        with Butler.from_config(root, writeable=False) as butler:
            records = {
                _key_of(record): record
                for element in _TEMPLATE_ELEMENTS
                for record in butler.query_dimension_records(element, explain=False, limit=None)
            }
            types = {each.name: each for each in butler.registry.queryDatasetTypes()}
            return cls(
                versions,
                butler.dimensions,
                ButlerConfig(root)["datastore"].toDict(),
                own_storage_classes(root),
                types,
                records,
            )

    @classmethod
    def read(cls, template: Path) -> "_TemplateContent":
        with (template / _CONTENT).open("rb") as file:
            DimensionUniverse(pickle.load(file))  # kept by its version, which is all that pickles have of it
            content = pickle.load(file)
        assert isinstance(content, cls)
        if content.storage_classes:
            StorageClassFactory().addFromConfig(Config({"storageClasses": content.storage_classes}))
        return content


def make_template(
    folder: Path,
    universe: DimensionUniverse,
    instruments: Sequence[Instrument],
    dataset_types: Iterable[DatasetType],
    versions: str,
    settings: Mapping[str, Any] | None = None,
    records: Iterable[DimensionRecord] = (),
) -> None:
    """Make the repo that all workers copy, replacing an older one; it appears complete.

    The universe is the central repo's, which may be an older version. `records`
    are the central repo's detectors and filters, which the installed package of
    an instrument may not have.
    Registering a dataset type takes about 10 ms: the types that pipelines will
    need are registered here, so that no visit waits for it.
    """
    # No dot in the name: Butler.makeRepo takes a path with a dot for a file.
    partial = folder.with_name(f"{folder.name}-partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    root = str(template_repo(partial))
    config = Butler.makeRepo(
        root, config=Config(dict(settings or {})), dimensionConfig=universe.dimensionConfig
    )
    with Butler.from_config(config, writeable=True) as butler:
        for instrument in instruments:
            instrument.register(butler.registry)
            butler.collections.register(instrument.makeDefaultRawIngestRunName())
        for record in records:
            butler.registry.insertDimensionData(record.definition.name, record, skip_existing=True)
        for dataset_type in dataset_types:
            butler.registry.registerDatasetType(dataset_type)
    write_content(partial, versions)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def write_content(template: Path, versions: str) -> None:
    """Write what is in a template's repo into the file from which workers learn it."""
    content = _TemplateContent.of(template, versions)
    with (template / _CONTENT).open("wb") as file:
        for each in (content.universe.dimensionConfig, content):
            pickle.dump(each, file, pickle.HIGHEST_PROTOCOL)


def template_dimensions(template: Path) -> DimensionUniverse:
    """Return the dimensions of a template, which are those of the central repo."""
    return _TemplateContent.read(template).universe


def template_repo(template: Path) -> Path:
    """Return the root of the repo in a template."""
    return template / _REPO


class LocalRepo:
    """A copy of the template, and the Butler that is opened on it if it is needed.

    `folder` is the worker's, on the filesystem of the template.
    """

    def __init__(self, template: Path, folder: Path):
        self._template = template
        self._content = _TemplateContent.read(template)
        self.root = folder / _REPO
        """Root of the repo (`pathlib.Path`)."""
        self.incoming = folder / "incoming"
        """Folder of files that are about to be ingested (`pathlib.Path`)."""
        self.files = self.root / "files"
        """Folder of files that the registry may not have yet (`pathlib.Path`)."""
        self.datasets = LocalDatasets()
        """All datasets, except what `butler` has been told alone; see `adopt`."""
        self._pending: deque[Callable[[Butler], object]] = deque()
        """What the registry does not have yet, in the order of its making."""
        self._used = False
        """Whether the registry may differ from the template's."""
        self._types: dict[str, DatasetType] = {}
        self._records: dict[_RecordKey, DimensionRecord] = {}
        self._butler: Butler | None = None
        self.renew()

    @cached_property
    def _writer(self) -> FileWriter | None:
        try:
            return FileWriter(self.config, self.dimensions)
        except UnknownDatastore:  # its own Butler must write then
            return None

    @property
    def versions(self) -> str:
        """Digest of package versions (`str`)."""
        return self._content.versions

    @property
    def config(self) -> Config:
        """Configuration of the datastore (`lsst.daf.butler.Config`)."""
        return Config({"datastore": self._content.datastore})

    # --- the registry ------------------------------------------------------

    @property
    def butler(self) -> Butler:
        """The open Butler, whose registry has all datasets (`lsst.daf.butler.Butler`)."""
        self.write_registry()
        return self._open_butler

    def write_later(self, write: Callable[[Butler], object]) -> None:
        """Call a function with the Butler before that is used."""
        self._pending.append(write)

    def write_registry(self) -> None:
        """Write what the registry does not have yet, for a program that opens it by itself."""
        self._used = True
        butler = self._open_butler
        while self._pending:
            self._pending[0](butler)
            self._pending.popleft()  # now, so that an error is raised at each use

    @property
    def dimensions(self) -> DimensionUniverse:
        """Dimensions of the repo (`lsst.daf.butler.DimensionUniverse`)."""
        return self._content.universe

    @property
    def _open_butler(self) -> Butler:
        if self._butler is None:
            root = template_repo(self._template)
            shutil.copytree(root, self.root, copy_function=shutil.copyfile, dirs_exist_ok=True)
            self._butler = Butler.from_config(str(self.root), writeable=True)
        return self._butler

    # --- dataset types and dimension records ---------------------------------

    def get_dataset_type(self, name: str) -> DatasetType:
        """Return the definition of a dataset type, as `lsst.daf.butler.Butler.get_dataset_type`."""
        found = self._types.get(name) or self._content.types.get(name)
        if found is None:
            raise MissingDatasetTypeError(f"Dataset type with name {name!r} not found.")
        return found

    def define(self, dataset_types: Iterable[DatasetType]) -> None:
        """Add dataset types; raise ``ConflictingDefinitionError`` if one has another definition here."""
        for dataset_type in dataset_types:
            try:
                known = self.get_dataset_type(dataset_type.name)
            except MissingDatasetTypeError:
                self._types[dataset_type.name] = dataset_type
                self.write_later(partial(_register_type, dataset_type=dataset_type))
            else:
                if known != dataset_type:
                    raise ConflictingDefinitionError(f"{dataset_type} is not {known} in the worker's repo")

    def records_of(self, elements: Iterable[str]) -> list[DimensionRecord]:
        """Return the dimension records of some elements."""
        names, known = frozenset(elements), (self._content.records, self._records)
        return [record for each in known for (name, _), record in each.items() if name in names]

    def add_records(self, records: Iterable[DimensionRecord]) -> None:
        """Add dimension records, except those of which there is one; the caller writes them later."""
        for record in records:
            if (key := _key_of(record)) not in self._content.records:
                self._records.setdefault(key, record)

    def expand(self, dimensions: DimensionGroup, data_id: Mapping[str, Any]) -> DataCoordinate:
        """Return a data ID with its dimension records, all of which must have been added."""
        plain = DataCoordinate.standardize(data_id, dimensions=dimensions)
        found = {}
        for name in dimensions.elements:
            required = self.dimensions[name].minimal_group.required
            key = name, tuple(plain[each] for each in required)
            record = self._records.get(key) or self._content.records.get(key)
            if record is None:
                raise DataIdValueError(f"no record of {name} {key[1]} in the worker's repo")
            found[name] = record
        return plain.expanded(found)

    # --- datasets ------------------------------------------------------------

    def add_files(self, files: Sequence[LocatedFile]) -> None:
        """Add datasets in files of the folder `files`; their types and data IDs must have been added."""
        self.datasets.add(LocalDataset.of_files(files))
        self.write_later(partial(self._ingest, files=files))

    def _ingest(self, butler: Butler, files: Sequence[LocatedFile]) -> None:
        for run in dict.fromkeys(ref.run for file in files for ref in file.refs):
            butler.collections.register(run)
        self.ingest_into(butler, files)

    def ingest_into(self, butler: Butler, files: Sequence[LocatedFile]) -> None:
        """Give datasets in files of the folder `files` to the registry, whose runs it has."""
        plain = [
            file_dataset(file.path, list(file.refs), file.formatter) for file in files if not file.member
        ]
        # They stay where they are, unless the datastore has other folders.
        butler.ingest(*plain, transfer=None if self._writer is not None else "move")
        members = [
            file_dataset(each.path, list(each.refs), each.formatter, each.member)
            for each in files
            if each.member
        ]
        butler.ingest(*members, transfer="direct")

    def put(self, content: object, name: str, data_id: Mapping[str, Any], *, run: str) -> None:
        """Write a dataset, as `lsst.daf.butler.Butler.put`."""
        dataset_type = self.get_dataset_type(name)
        if self._writer is None:
            self.datasets.add([LocalDataset(self.butler.put(content, name, data_id, run=run))])
            return
        ref = DatasetRef(dataset_type, self.expand(dataset_type.dimensions, data_id), run=run)
        self.add_files([self._writer.write(content, ref, self.files)])

    def get(self, ref: DatasetRef, parameters: Mapping[str, Any] | None = None) -> Any:
        """Return a dataset, or the component or storage class that `ref` names."""
        known = self.datasets.get(ref.id)
        if known is None or known.file is None:
            return self.butler.get(ref, parameters=dict(parameters or {}))
        return read_dataset(known.file, ref, parameters)

    def remove(self, refs: Sequence[DatasetRef]) -> None:
        """Remove datasets."""
        self.datasets.remove(refs)
        self.write_later(
            lambda butler: butler.pruneDatasets(refs, disassociate=True, unstore=True, purge=True)
        )

    def types_in(self, runs: Iterable[str]) -> set[str]:
        """Return the names of the dataset types that have datasets in some runs."""
        runs = tuple(runs)
        names = {str(each.ref.datasetType.name) for run in runs for each in self.datasets.in_run(run)}
        if self._used:
            for info in self.butler.collections.query_info(runs, include_summary=True):
                names.update(map(str, info.dataset_types or ()))
        return names

    def adopt(self, run: str) -> None:
        """Query the datasets that a program has written into a run with the Butler alone."""
        butler = self.butler
        names = butler.collections.get_info(run, include_summary=True).dataset_types or ()
        for name in sorted(names):
            refs = butler.query_datasets(
                name, run, find_first=False, with_dimension_records=True, explain=False, limit=None
            )
            self.datasets.add(LocalDataset.of_files(located(butler, refs)))

    # --- visits --------------------------------------------------------------

    def renew(self) -> None:
        """Delete all that the template does not have."""
        self._pending.clear()
        self.datasets.clear()
        self._types.clear()
        self._records.clear()
        self._used = False
        # Also if the Butler was not used: a task may have found the database.
        # Another datastore may have datasets in memory.
        if self._butler is not None and (self._writer is None or not self._restore()):
            self.close()
        if self._butler is None and self.root.exists():
            shutil.rmtree(self.root)
        for folder in (*self.root.glob("*/"), self.incoming):
            if folder.exists():
                shutil.rmtree(folder)
        for folder in (self.incoming, self.files):
            folder.mkdir(parents=True)

    def _restore(self) -> bool:
        """Put the template's content into the database under the open Butler; return whether that was
        possible. It takes a thirtieth of opening a Butler.
        """
        try:
            with (
                closing(
                    sqlite3.connect(
                        f"{_database_in(template_repo(self._template)).as_uri()}?mode=ro", uri=True
                    )
                ) as source,
                closing(sqlite3.connect(_database_in(self.root), timeout=0.0)) as target,
            ):
                # The Butler would not see that the table of a dataset type is gone.
                if _tables(source) != _tables(target):
                    return False
                source.backup(target, progress=_refuse_to_wait)
            self._open_butler.registry.refresh()
        except (sqlite3.Error, *DATABASE_ERRORS) as error:
            _LOG.warning("the worker's repo is copied again, it cannot be restored: %s", describe(error))
            return False
        return True

    def close(self) -> None:
        """Close the Butler and its database."""
        if self._butler is not None:
            self._butler.close()
            self._butler = None


def _key_of(record: DimensionRecord) -> _RecordKey:
    return record.definition.name, record.dataId.required_values


def _register_type(butler: Butler, dataset_type: DatasetType) -> None:
    butler.registry.registerDatasetType(dataset_type)


def _database_in(root: Path) -> Path:
    (path,) = root.glob("*.sqlite3")
    return path


def _refuse_to_wait(status: int, remaining: int, total: int) -> None:
    """End a backup that would otherwise wait for a lock without an end."""
    if status != sqlite3.SQLITE_DONE:
        raise sqlite3.OperationalError("database is locked")


def _tables(database: sqlite3.Connection) -> int:
    (count,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return int(count)
