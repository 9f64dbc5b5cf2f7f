# SPDX-License-Identifier: BSD-3-Clause
"""Ingests files by inserting the rows of all of them at once.

`RowIngest` does what `lsst.daf.butler.Butler.ingest` does, with the same rows and the same names of files.
That looks at each file and each row for itself, which takes most of the time of an export; here each
formatter, template and data ID is looked at once. Only this module uses what is internal to the Butler: a
repo with a part that it does not know is left to the public method, as are all repos where this module
cannot be imported.
"""

import datetime
import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import astropy.time
import sqlalchemy
from lsst.daf.butler import (
    Butler,
    DataCoordinate,
    DataIdValue,
    DatasetId,
    DatasetRef,
    DatasetType,
    DimensionGroup,
    Formatter,
    FormatterV2,
)
from lsst.daf.butler.datastore.file_templates import FileTemplate
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.daf.butler.datastores.fileDatastore import FileDatastore
from lsst.daf.butler.direct_butler import DirectButler
from lsst.daf.butler.registry import CollectionSummary, ConflictingDefinitionError
from lsst.utils.introspection import get_class_of

from ppdaemon.durable import sync
from ppdaemon.middleware.butler.datafiles import extension_of
from ppdaemon.middleware.export.bulk import (
    DIALECTS,
    KnownIds,
    Value,
    converter,
    insert_rows,
    uuid_converter,
)
from ppdaemon.middleware.export.newcontent import NewDataset, NewFile
from ppdaemon.middleware.export.syncing import sync_all

__all__ = ("RowIngest", "problem")

_KNOWN = {
    "ByDimensionsDatasetRecordStorageManagerUUID": (1, 2),
    "ByNameOpaqueTableStorageManager": (0,),
    "MonolithicDatastoreRegistryBridgeManager": (0,),
}
"""Classes of a registry whose tables get the rows, and the major versions of these tables."""
_PARTS = ("datasets", "opaque", "datastores")
_USED = attrgetter(
    "_datastore._table._table",
    "_datastore._transaction",
    "_datastore.bridge._tables.dataset_location",
    "_datastore.bridge.datastoreName",
    "_datastore.locationFactory.fromPath",
    "_datastore.templates.getTemplate",
    "_registry._db._transaction",
    "_registry._db.dialect",
    "_registry._db.query",
    "_registry._managers.collections.find",
    "_registry._managers.collections.getCollectionForeignKeyName",
    "_registry._managers.datasets._cache.get",
    "_registry._managers.datasets._fetch_dataset_type_record",
    "_registry._managers.datasets._find_storage",
    "_registry._managers.datasets._get_dynamic_tables",
    "_registry._managers.datasets._get_tags_table",
    "_registry._managers.datasets._run_key_column",
    "_registry._managers.datasets._static.dataset",
    "_registry._managers.datasets._summaries.update",
    "_registry._managers.datasets._use_astropy_ingest_date",
    "_registry.expand_data_ids",
)
"""What is used of a Butler."""

_ANY_TYPE = "ppdaemon_any_type"
"""Stands for the name of the dataset type in the name of a file."""
_TYPE_FIELDS = frozenset({"{datasetType}", "{datasetType:?}", "{datasetType:/}"})
"""Fields of templates that are replaced by the name of the dataset type as it is."""
_PLAIN = re.compile(r"[\w.+-]+/[\w./+:=-]*", re.ASCII)
_MAX_FOLDERS = 20_000
"""Folders whose names are known to be on the disk: a visit makes one for each dataset type."""


def problem(butler: Butler) -> str:
    """Return why `RowIngest` must not be used for a repo, or a blank."""
    if type(butler) is not DirectButler:
        return f"{type(butler).__name__} has no database of its own"
    inner: Any = butler
    try:
        store, managers = inner._datastore, inner._registry._managers
        if type(store) is not FileDatastore or not store.root.isLocal:
            return f"{store} is not a FileDatastore in a filesystem"
        if store.constraints._accept or store.constraints._reject:
            return "the datastore does not accept all dataset types"
        if store.useChecksum:
            return "the datastore records checksums"
        if managers.obscore is not None:
            return "the registry has an ObsCore table"
        for part in (getattr(managers, name) for name in _PARTS):
            name, version = type(part).__name__, part.newSchemaVersion()
            if version is None or version.major not in _KNOWN.get(name, ()):
                return f"{name} {version} is not known"
        _USED(butler)
        dialect = inner._registry._db.dialect
        if DIALECTS.get(dialect.name) != dialect.paramstyle:
            return f"the database driver {dialect.name}+{dialect.driver} is not known"
    except AttributeError as error:
        return f"this version of lsst.daf.butler is not known: {error}"
    return ""


class RowIngest:
    """Ingests files into a repo that has no `problem`."""

    def __init__(self, butler: Butler):
        inner: Any = butler
        self._registry = inner._registry
        self._managers = inner._registry._managers
        self._db = inner._registry._db
        self._store = inner._datastore
        self._root = str(self._store.root.ospath).rstrip("/")
        self._templates: dict[tuple[DatasetType, Any], tuple[FileTemplate, DatasetType | None]] = {}
        self._records: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._stems: dict[tuple[int, str, int], tuple[DataCoordinate, str, bool]] = {}
        """Names of the files that were ingested last, by template, run and identity of the data ID, and
        whether they are plain: images of an exposure follow its other files."""
        self._synced: set[str] = set()
        """Folders of the datastore whose names are on the disk."""
        column = self._managers.datasets._static.dataset.columns.id
        self._digits = uuid_converter(column, self._db.dialect)
        self._known = KnownIds(column, self._db.dialect)
        self._runs: dict[str, Any] = {}
        """What the registry has of runs."""
        # SQLite gives the key of what was removed to what is registered next; PostgreSQL gives each key once.
        self._reuses_keys = self._db.dialect.name == "sqlite"

    def forget(self) -> None:
        """Look again for runs: one may have been removed, and made anew."""
        self._runs.clear()

    def is_current(self, names: Iterable[str]) -> bool:
        """Return whether dataset types still have the keys that the Butler remembers. If not, its registry
        has to be refreshed: what is stored as one of them would be of another type.
        """
        if not self._reuses_keys:
            return True
        datasets = self._managers.datasets
        for name in names:
            _, remembered = datasets._cache.get(name)
            if remembered is not None:
                record = datasets._fetch_dataset_type_record(name)
                if record is None or record.dataset_type_id != remembered:
                    return False
        return True

    def known(self, ids: Sequence[DatasetId]) -> set[DatasetId]:
        """Return those of the ids that the registry has."""
        parameters = self._known.parameters(list(map(self._digits, ids)))
        with self._db.query(self._known.query, parameters) as found:
            return set(found.scalars())

    def ingest(self, files: Sequence[NewFile], copies: Mapping[str, str]) -> None:
        """Insert the rows of files, and rename their copies, by the path of the spooled one, to where the
        datastore has them; in a transaction.

        Raises `~lsst.daf.butler.registry.ConflictingDefinitionError` if the run has another dataset of
        the same type and data ID. If the transaction fails, the copies are moved back.
        """
        extensions = [extension_of(file.spooled.name) for file in files]
        places = self._places(files, extensions)
        try:
            with self._db._transaction() as (_, connection):
                self._insert(connection, files, extensions, [name for name, _ in places])
        except sqlalchemy.exc.IntegrityError as error:
            raise ConflictingDefinitionError(
                f"the repo has one of the datasets, or lacks records of their dimensions: {error}"
            ) from error
        self._move({copies[file.path]: target for file, (_, target) in zip(files, places, strict=True)})

    def _insert(
        self,
        connection: sqlalchemy.Connection,
        files: Sequence[NewFile],
        extensions: Sequence[str],
        names: Sequence[str],
    ) -> None:
        """Insert all rows of files with these names in the datastore."""
        digits = self._digits
        groups: dict[tuple[str, DimensionGroup], _Group] = {}
        # By identity: hashes of dataset types are slow, and few are different objects.
        kinds: dict[tuple[str, int, str, str], tuple[_Group, int, dict[str, Any]]] = {}
        ids, paths, sizes, records = list[Value](), list[Value](), list[Value](), list[dict[str, Any]]()
        for (_, _, spooled, datasets), extension, name in zip(files, extensions, names, strict=True):
            formatter, size_bytes = spooled.formatter, spooled.size_bytes
            for dataset_id, kind, _, values, run in datasets:
                key = run, id(kind), formatter, extension
                if (found := kinds.get(key)) is None:
                    group = groups.setdefault((run, kind.dimensions), _Group())
                    type_id = self._managers.datasets._find_storage(kind.name).dataset_type_id
                    group.types[type_id] = kind
                    found = kinds[key] = group, type_id, self._record(formatter, extension, kind)
                group, type_id, record = found
                id_digits = digits(dataset_id)
                group.ids.append(id_digits)
                group.type_ids.append(type_id)
                group.values.append(values)
                ids.append(id_digits)
                paths.append(name)
                sizes.append(size_bytes)
                records.append(record)
        ingest_date = self._now(connection.dialect)
        # Sorted: two transactions that insert the same datasets in different orders would deadlock.
        for run, dimensions in sorted(groups, key=lambda key: (key[0], tuple(key[1].required))):
            self._insert_datasets(connection, run, dimensions, groups[run, dimensions], ingest_date)
        bridge = self._store.bridge
        insert_rows(
            connection,
            bridge._tables.dataset_location,
            {"dataset_id": ids},
            {"datastore_name": bridge.datastoreName},
        )
        common = {name: [record[name] for record in records] for name in records[0]}
        own = {"dataset_id": ids, "path": paths, "file_size": sizes}
        insert_rows(connection, self._store._table._table, common | own, {})

    def _insert_datasets(
        self,
        connection: sqlalchemy.Connection,
        run: str,
        dimensions: DimensionGroup,
        new: "_Group",
        ingest_date: Value,
    ) -> None:
        """Insert the registry's rows of datasets of a run that have the same dimensions."""
        datasets = self._managers.datasets
        # One that was removed since cannot get rows, unless its key is that of another one now.
        if (collection := self._runs.get(run)) is None or self._reuses_keys:
            collection = self._runs[run] = self._managers.collections.find(run)
        known = {"dataset_type_id": new.type_ids}
        table = datasets._static.dataset
        constants = {datasets._run_key_column: collection.key, "ingest_date": ingest_date}
        insert_rows(connection, table, {"id": new.ids, **known}, constants)
        values = zip(*new.values, strict=True)
        by_dimension = dict(zip(dimensions.required, values, strict=False))  # none of init-outputs
        summary = CollectionSummary()
        summary.dataset_types.update(new.types.values())
        for name in dimensions.governors:
            summary.governors[name] = set(map(str, by_dimension[name]))
        datasets._summaries.update(collection, new.types, summary)
        insert_rows(
            connection,
            datasets._get_tags_table(datasets._get_dynamic_tables(dimensions)),
            {"dataset_id": new.ids, **known, **by_dimension},
            {self._managers.collections.getCollectionForeignKeyName(): collection.key},
        )

    def _now(self, dialect: sqlalchemy.Dialect) -> Value:
        """Return the date of ingest: once for all, as to make and convert one takes longer than some rows."""
        datasets = self._managers.datasets
        now = (
            astropy.time.Time.now()
            if datasets._use_astropy_ingest_date
            else datetime.datetime.now(datetime.UTC)
        )
        return converter(datasets._static.dataset.columns.ingest_date, dialect)(now)

    def _record(self, formatter_name: str, extension: str, dataset_type: DatasetType) -> dict[str, Any]:
        """Return what the rows of files with the same formatter, extension and storage class have in common.

        Raises `ValueError` if the formatter does not read files with the extension.
        """
        kind = dataset_type.storageClass_name
        key = formatter_name, extension, kind
        if key not in self._records:
            formatter = get_class_of(formatter_name)
            if not issubclass(formatter, Formatter | FormatterV2):
                raise TypeError(f"{formatter_name} is no formatter")
            formatter.validate_extension(self._store.locationFactory.fromPath(f"file{extension}"))
            self._records[key] = StoredFileInfo(
                formatter, "", None, None, None, -1, storage_class_name=kind
            ).to_record()
        return self._records[key]

    def _places(self, files: Sequence[NewFile], extensions: Sequence[str]) -> list[tuple[str, str]]:
        """Return the names of files in the datastore, and their paths."""
        # By identity: hashes of data IDs and dataset types are slow, and few are different objects.
        ids = {id(file.datasets[0].data_id): file.datasets[0].data_id for file in files}
        instruments = {key: data_id.get("instrument") for key, data_id in ids.items()}
        # Names have values of dimension records, such as those of the exposure.
        ids = dict(zip(ids, self._registry.expand_data_ids(list(ids.values())), strict=True))
        templates: dict[tuple[int, Any], tuple[FileTemplate, DatasetType | None]] = {}
        stems: dict[tuple[int, str, int], tuple[DataCoordinate, str, bool]] = {}
        places = []
        for extension, (_, _, _, datasets) in zip(extensions, files, strict=True):
            first = datasets[0]
            _, kind, data_id, _, run = first
            number = id(data_id)
            template_key = id(kind), instruments[number]
            if (found := templates.get(template_key)) is None:
                found = templates[template_key] = self._template(first)
            template, any_type = found
            if any_type is None:
                stem = template.format(first.ref().expanded(ids[number]))
                is_plain = _is_plain(stem)
            else:
                key = id(template), run, number
                if (known := stems.get(key)) is None:
                    known = self._stems.get(key)
                    # Another object may have its identity now.
                    if known is None or known[0] is not data_id:
                        any_ref = DatasetRef(any_type, ids[number], run, id=first.id, conform=False)
                        stem = template.format(any_ref)
                        known = data_id, stem, _is_plain(stem)
                    stems[key] = known
                _, stem, is_plain = known
                stem = stem.replace(_ANY_TYPE, kind.name)
            if is_plain:
                name = f"{stem}{extension}"
                places.append((name, f"{self._root}/{name}"))
            else:
                location = self._store.locationFactory.fromPath(stem, trusted_path=True)
                location.updateExtension(extension)
                places.append((location.pathInStore.path, location.uri.ospath))
        self._stems = stems
        return places

    def _template(self, dataset: NewDataset) -> tuple[FileTemplate, DatasetType | None]:
        """Return the template of a file's name and, if the name differs from those of other dataset types
        by the name of the type only, a type that stands for all.
        """
        kind = dataset.dataset_type
        key = kind, dataset.data_id.get("instrument")
        if key not in self._templates:
            template = self._store.templates.getTemplate(dataset.ref())
            fields = re.findall(r"\{(?:datasetType|id)\b[^}]*\}", template.template)
            any_type = DatasetType(_ANY_TYPE, kind.dimensions, kind.storageClass)
            # A name with a period, as components have, may be changed in a path.
            usual = _TYPE_FIELDS.issuperset(fields) and kind.name.isidentifier()
            self._templates[key] = template, any_type if usual else None
        return self._templates[key]

    def _move(self, targets: Mapping[str, str]) -> None:
        """Rename files, and sync the folders with new names."""
        leaves = {target.rpartition("/")[0] for target in targets.values()}
        new = {folder for leaf in leaves for folder in self._unsynced(leaf)}
        for leaf in leaves:
            os.makedirs(leaf, exist_ok=True)
        for path, target in targets.items():
            _rename(path, target)
            self._store._transaction.registerUndo("move", _rename, target, path)
        sync_all(leaves.union(map(os.path.dirname, new)))
        if len(self._synced) > _MAX_FOLDERS:
            self._synced.clear()
        self._synced |= new

    def _unsynced(self, folder: str) -> Iterator[str]:
        """Yield the folders, from this one upwards, whose names may not be on the disk."""
        while len(folder) > len(self._root) and not (folder in self._synced and os.path.isdir(folder)):
            yield folder
            folder = os.path.dirname(folder)


@dataclass(slots=True)
class _Group:
    """Datasets of a run that have the same dimensions: the values of their rows, as the driver gets them."""

    types: dict[int, DatasetType] = field(default_factory=dict)
    """Of all datasets, by their ids in the database."""
    ids: list[Value] = field(default_factory=list)
    type_ids: list[Value] = field(default_factory=list)
    values: list[tuple[DataIdValue, ...]] = field(default_factory=list)


def _is_plain(name: str) -> bool:
    """Return whether a name is the same in a path and in a URI."""
    return _PLAIN.fullmatch(name) is not None


def _rename(path: str, target: str) -> None:
    try:
        os.rename(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # A folder of the datastore may be a link to another filesystem.
        shutil.move(path, target)
        sync(Path(target))
